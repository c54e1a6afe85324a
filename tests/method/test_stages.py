"""The stages' loops over a scripted policy: what is asked, rewarded and learned from."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import FakePolicy
from rich.console import Console

from miniact.config.sections import ACTConfig, GRPOConfig, ILConfig, PromptConfig
from miniact.data.trajectories import TrajectoryFile, to_row
from miniact.method import act, il, rl
from miniact.method.prompts import Prompter
from miniact.method.stage import Stage, learning_rate
from miniact.runs.files import write_jsonl
from miniact.runs.folder import RunFolder
from miniact.runs.log import StageLog
from miniact.runs.progress import Bar
from miniact.types import Question, State, Step, Trajectory


@pytest.fixture
def world(tmp_path, tokenizer):
    """Run a stage over six states with the given script; returns policy and metrics rows."""
    import json

    steps = tuple(Step(f"room {i}", f"go {i}", (f"go {i}", "wait")) for i in range(6))
    write_jsonl(tmp_path / "t.jsonl", [to_row(Trajectory("t", "walk", steps, True))])
    states = TrajectoryFile(tmp_path / "t.jsonl").states("train")
    pairs = [Question(State(f"s{i}", "walk", (), f"room {i}"), "good", ("bad",)) for i in range(6)]

    def run(stage, config, script, logps=None):  # type: ignore[no-untyped-def]
        policy = FakePolicy(tokenizer, script)
        if logps:
            policy.logprobs = lambda groups: [
                [logps(c.tokens) for c in group.completions] for group in groups
            ]
        prompter = Prompter(tokenizer, PromptConfig(max_tokens=4000))
        with RunFolder(tmp_path / "run") as folder:
            log = StageLog(folder, 1, "x", Bar(Console(file=StringIO()), "x"))
            stage.run(Stage(policy, prompter, config, states, pairs, log, seed=5))
        file = tmp_path / "run" / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        return SimpleNamespace(policy=policy, rows=rows)

    return run


def test_il_trains_exactly_the_reply_and_its_end(world, tokenizer):
    result = world(il, ILConfig(steps=3, batch=2), lambda p, i: "")
    assert result.policy.updates == 3 and len(result.policy.trained) == 6
    for group in result.policy.trained:
        (completion,) = group.completions
        text = tokenizer.decode(completion.tokens)
        prompt = tokenizer.decode(group.prompt)
        room = prompt.rpartition("room ")[2][0]
        assert text == f"<action>go {room}</action><|im_end|>"
        assert prompt.endswith("assistant\n")
    # one epoch of six states in three batches of two: each state once
    assert len({g.prompt for g in result.policy.trained}) == 6
    batch = result.policy.trained[:2]
    sizes = [len(g.prompt) + len(g.completions[0].tokens) for g in batch]
    assert result.rows[0]["tokens"] == sum(sizes)
    total = sum(len(c.tokens) for g in batch for c in g.completions)
    assert all(c.weight == pytest.approx(1 / total) for g in batch for c in g.completions)


def knows_half(prompt: str, i: int) -> str:
    right = 1 if "Action 1: good" in prompt else 2
    return f"<choice>{right if i % 2 else 3 - right}</choice>"


def test_act_rewards_the_right_choice_wherever_it_stands(world):
    config = ACTConfig(steps=4, batch=4, group_size=4)
    result = world(act, config, knows_half)
    assert all(row["reward"] == 0.5 and row["valid"] == 1 for row in result.rows)
    assert all(row["zero_variance"] == 0 for row in result.rows)
    for group in result.policy.trained:
        advantage = [c.advantage for c in group.completions]
        assert np.sign(advantage).tolist() == [-1, 1]  # answers that are alike are trained once,
        shares = [c.weight * len(c.tokens) for c in group.completions]
        assert shares == pytest.approx([2 / 16, 2 / 16])  # with the weight of both
    asked = [p for p in result.policy.prompts if "Which action is better" in p]
    first = sum("Action 1: good" in p for p in asked)
    assert len(asked) == 16 and first == 8  # balanced within every batch


def test_act_counts_and_skips_groups_without_variance(world):
    config = ACTConfig(steps=3, batch=2, group_size=4)
    result = world(act, config, lambda p, i: "no idea")
    assert result.policy.trained == [] and result.policy.updates == 0
    assert all(
        r["zero_variance"] == 1 and r["valid"] == 0 and r["all_wrong"] == 1 for r in result.rows
    )


def test_rl_rewards_the_experts_action_canonically(world):
    def script(prompt: str, i: int) -> str:
        room = prompt.rpartition("room ")[2][0]
        replies = [f"<action>GO  {room}.</action>", *(["<action>wait</action>"] * 2), "no idea"]
        return replies[i]

    config = GRPOConfig(steps=2, batch=3, group_size=4)
    result = world(rl, config, script)
    assert all(r["correct"] == 0.25 and r["reward"] == 0.25 for r in result.rows)
    assert all(r["valid"] == 0.75 for r in result.rows)
    assert all(
        g.completions[0].advantage > 0 > g.completions[1].advantage for g in result.policy.trained
    )


def test_rl_gives_the_configured_credit_to_admissible_actions(world):
    config = GRPOConfig(steps=1, batch=3, group_size=2, admissible_credit=0.2)
    replies = ["<action>wait</action>", "<action>fly</action>"]
    result = world(rl, config, lambda p, i: replies[i])
    assert result.rows[0]["reward"] == pytest.approx(0.1) and result.rows[0]["correct"] == 0


def test_several_updates_per_batch(world):
    config = ACTConfig(steps=2, batch=2, group_size=4, updates=3)
    result = world(act, config, knows_half)
    assert result.policy.updates == 6 and len(result.policy.trained) == 2 * 2 * 3
    assert all(r["ratio"] == pytest.approx(1) for r in result.rows)


def test_beta_needs_the_reference_and_keeps_dead_groups(world):
    config = ACTConfig(steps=1, batch=2, group_size=2, beta=0.1)
    result = world(act, config, lambda p, i: "no idea")
    assert result.policy.frozen_at == 0 and len(result.policy.trained) == 2
    assert all((c.ref_logps == -1.0).all() for g in result.policy.trained for c in g.completions)


def test_the_learning_rate_warms_up_and_stays():
    config = ILConfig(lr=1.0, warmup=4)
    assert [learning_rate(config, s) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert learning_rate(ILConfig(lr=1.0, warmup=0), 0) == 1.0
    falling = ILConfig(lr=1.0, warmup=2, steps=4, schedule="linear")
    assert [learning_rate(falling, s) for s in range(4)] == [0.5, 0.75, 0.5, 0.25]


def thinks_of_its_room(prompt: str, i: int) -> str:
    room = prompt.rpartition("room ")[2][0]
    return "I never come to an end" if room == "3" else f"I see {room}. <action>stay</action>"


def test_il_with_thinking_keeps_the_thoughts_of_its_start(world, tokenizer, tmp_path):
    config = ILConfig(steps=6, batch=2, thinking=True)
    result = world(il, config, lambda p, i: thinks_of_its_room(p, i))
    assert len(result.policy.prompts) == 6  # each state is asked once, before anything is trained
    replies = {tokenizer.decode(g.completions[0].tokens) for g in result.policy.trained}
    thought = {f"I see {i}.\n<action>go {i}</action><|im_end|>" for i in (0, 1, 2, 4, 5)}
    assert replies == {*thought, "<action>go 3</action><|im_end|>"}  # of 3 nothing was to be had
    for group in result.policy.trained:
        asks_for_thought = "Think first" in tokenizer.decode(group.prompt)
        assert asks_for_thought == ("I see" in tokenizer.decode(group.completions[0].tokens))

    (tmp_path / "run" / "metrics.jsonl").unlink()
    for checkpoint in (tmp_path / "run" / "stages" / "1-x").glob("checkpoint-*"):
        checkpoint.rename(checkpoint.with_name("gone.part"))
    again = world(il, config, lambda p, i: "another policy by now")
    assert again.policy.prompts == [] and again.policy.trained == result.policy.trained


def test_il_imitates_the_thought_that_leads_best_to_the_experts_action(world, tokenizer):
    """Of four thoughts the third; the thought's own likelihood does not count."""

    def logps(tokens):
        likely = "idea 2" in tokenizer.decode(tokens)
        logp = np.full(len(tokens), -9.0 if likely else -0.1)  # of an unlikely thought …
        logp[-answer - 1 :] = -0.1 if likely else -9.0  # … which the action follows from
        return logp

    answer = len(tokenizer("<action>go 1</action>", add_special_tokens=False)["input_ids"])
    config = ILConfig(steps=2, batch=2, thinking=True)
    result = world(il, config, lambda p, i: f"idea {i}. <action>stay</action>", logps)
    replies = [tokenizer.decode(g.completions[0].tokens) for g in result.policy.trained]
    assert len(replies) == 4 and all(reply.startswith("idea 2.") for reply in replies)
