"""The controls and options beside IL, ACT and RL: what each asks, learns from and writes down."""

from __future__ import annotations

import json
from collections import Counter
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import FakePolicy
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from miniact import UserError
from miniact.config.sections import (
    ACTConfig,
    ChoiceSFTConfig,
    DPOConfig,
    EvalConfig,
    PairsConfig,
    PromptConfig,
    ReflectConfig,
)
from miniact.data.trajectories import TrajectoryFile, to_row
from miniact.evaluation.evaluate import judgement_accuracy
from miniact.method import act
from miniact.method.controls import choice_sft, dpo, reflect
from miniact.method.pairs import (
    draw_admissible,
    draw_orders,
    gather,
    make_pairs,
    pairs_at,
    questions,
    read_pairs,
)
from miniact.method.prompts import Prompter
from miniact.method.rewards import canonical
from miniact.method.stage import Stage
from miniact.runs.files import write_jsonl
from miniact.runs.folder import RunFolder
from miniact.runs.log import StageLog
from miniact.runs.progress import Bar
from miniact.types import Question, Reflection, State, Step, Trajectory

STATES = [State(f"s{i}", "walk", (), f"room {i}") for i in range(6)]
PAIRS = [Question(s, "good", (bad,)) for s in STATES for bad in ("bad", "worse", "worst")]


@pytest.fixture
def world(tmp_path, tokenizer):
    """Run a stage over six states with the given script; returns policy, metrics and folder."""
    steps = tuple(Step(f"room {i}", f"go {i}", (f"go {i}", "wait")) for i in range(6))
    write_jsonl(tmp_path / "t.jsonl", [to_row(Trajectory("t", "walk", steps, True))])
    states = TrajectoryFile(tmp_path / "t.jsonl").states("train")

    def run(stage, config, script=lambda p, i: "", out="run", **given):  # type: ignore[no-untyped-def]
        run.policy = policy = FakePolicy(tokenizer, script)  # where a script can look at it
        prompter = Prompter(tokenizer, PromptConfig(max_tokens=4000))
        given = {"pairs": PAIRS[::3], **given}
        with RunFolder(tmp_path / out) as folder:
            log = StageLog(folder, 1, "x", Bar(Console(file=StringIO()), "x"))
            stage.run(Stage(policy, prompter, config, states, log=log, seed=5, **given))
        file = tmp_path / out / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        return SimpleNamespace(policy=policy, rows=rows, folder=log.folder)

    return run


def texts(tokenizer, groups):  # type: ignore[no-untyped-def]
    """(prompt, reply) of every completion."""
    return [
        (tokenizer.decode(g.prompt), tokenizer.decode(c.tokens))
        for g in groups
        for c in g.completions
    ]


# ---- SFT on the choice -------------------------------------------------------------------------


def test_choice_sft_trains_the_number_of_the_right_action_wherever_it_stands(world, tokenizer):
    result = world(choice_sft, ChoiceSFTConfig(steps=3, batch=4))
    told = texts(tokenizer, result.policy.trained)
    assert len(told) == 12 and result.policy.updates == 3
    firsts = 0
    for prompt, reply in told:
        first = "Action 1: good\nAction 2: bad" in prompt
        assert first or "Action 1: bad\nAction 2: good" in prompt
        assert reply == f"<choice>{1 if first else 2}</choice><|im_end|>"
        assert "Answer only with the number" in prompt
        firsts += first
    assert firsts == 6  # balanced within every batch
    total = sum(len(c.tokens) for g in result.policy.trained[:4] for c in g.completions)
    weights = [c.weight for g in result.policy.trained[:4] for c in g.completions]
    assert weights == pytest.approx([1 / total] * 4)


def test_choice_sft_sees_the_questions_of_act_in_the_same_orders(world):
    asked = world(act, ACTConfig(steps=3, batch=4, group_size=2), out="a").policy.prompts
    sft = world(choice_sft, ChoiceSFTConfig(steps=3, batch=4), out="b").policy
    assert asked == [sft.tokenizer.decode(g.prompt) for g in sft.trained]


# ---- DPO ---------------------------------------------------------------------------------------


def test_dpo_pulls_the_expert_up_and_the_alternative_down(world, tokenizer):
    result = world(dpo, DPOConfig(steps=2, batch=3, beta=0.2))
    assert result.policy.frozen_at == 0 and len(result.policy.trained) == 6
    for group in result.policy.trained:
        good, bad = group.completions
        assert tokenizer.decode(good.tokens) == "<action>good</action><|im_end|>"
        assert tokenizer.decode(bad.tokens) == "<action>bad</action><|im_end|>"
        # the fake's log-probs never move: margin 0, so β·σ(0) / batch
        assert good.weight == pytest.approx(0.2 * 0.5 / 3) and bad.weight == -good.weight
        assert "What is the best next action?" in tokenizer.decode(group.prompt)
    for row in result.rows:
        assert row["loss"] == pytest.approx(np.log(2)) and row["margin"] == 0
    batch = result.policy.trained[:3]
    once = sum(len(g.prompt) + sum(len(c.tokens) for c in g.completions) for g in batch)
    assert result.rows[0]["tokens"] == 3 * once  # scored now and before, trained


# ---- n-way questions ---------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abcdefg"), max_size=12), st.integers(2, 4))
def test_a_question_holds_distinct_alternatives_of_one_state_and_none_is_used_twice(names, choices):
    pairs = [Question(STATES[ord(n) % 2], "good", (n,)) for n in names]
    asked = questions(pairs, choices)
    used = Counter((q.state.id, a) for q in asked for a in q.alternatives)
    assert all(n == 1 for n in used.values())
    assert set(used) <= {(p.state.id, p.alternative) for p in pairs}
    assert all(len(q.alternatives) == choices - 1 and q.expert == "good" for q in asked)
    for state in STATES[:2]:
        distinct = {p.alternative for p in pairs if p.state == state}
        assert sum(q.state == state for q in asked) == len(distinct) // (choices - 1)


def test_two_candidates_are_the_pairs_themselves_in_their_order():
    asked = questions(PAIRS)
    assert [(q.state, q.expert, *q.alternatives) for q in asked] == [
        (p.state, p.expert, p.alternative) for p in PAIRS
    ]


def test_every_candidate_comes_to_every_place():
    asked = questions(PAIRS, 4)
    assert len(asked) == 6
    shown = [s for step in range(400) for s in draw_orders(asked, (0, step))]
    for place in range(4):
        counts = Counter(s.actions[place] for s in shown)
        assert set(counts) == {"good", "bad", "worse", "worst"}
        assert all(abs(n / len(shown) - 1 / 4) < 0.05 for n in counts.values())
    assert all(s.actions[s.right] == "good" for s in shown)
    assert draw_orders(asked, (0, 7)) == draw_orders(asked, (0, 7))


def test_act_with_three_candidates_rewards_only_the_expert(world):
    def script(prompt: str, i: int) -> str:
        numbers = {n for n in "123" if f"Action {n}: good" in prompt}
        assert len(numbers) == 1 and "Action 4" not in prompt and "is best for the task" in prompt
        (right,) = numbers
        return f"<choice>{right if i == 0 else int(right) % 3 + 1}</choice>"

    config = ACTConfig(steps=2, batch=3, group_size=4)
    result = world(act, config, script, pairs=PAIRS, alternatives=PairsConfig(k=3, choices=3))
    assert all(row["correct"] == 0.25 and row["valid"] == 1 for row in result.rows)
    asked = result.policy.prompts
    assert [sum(f"Action {n}: good" in p for p in asked) for n in (1, 2, 3)] == [2, 2, 2]


def test_too_few_alternatives_say_what_to_do(world):
    with pytest.raises(UserError, match=r"no state has 3 distinct alternatives; raise pairs\.k"):
        world(act, ACTConfig(steps=1), alternatives=PairsConfig(choices=4))


def test_judging_puts_the_expert_in_every_place(tokenizer):
    policy = FakePolicy(tokenizer, lambda prompt, i: "<choice>2</choice>")
    prompter = Prompter(tokenizer, PromptConfig(max_tokens=4000))
    asked = questions(PAIRS, 4)
    result = judgement_accuracy(policy, prompter, asked, EvalConfig(), seed=0)
    assert result["accuracy"]["value"] == 0.25 and result["accuracy"]["n"] == 6
    by_place = [result[f"expert_{n}"]["value"] for n in ("first", "second", "third", "fourth")]
    assert by_place == [0, 1, 0, 0] and "expert_fifth" not in result
    assert result["consistent"]["value"] == 0 and result["implicit"]["n"] == 6

    def knows(prompt: str, i: int) -> str:
        return f"<choice>{next(n for n in '1234' if f'Action {n}: good' in prompt)}</choice>"

    result = judgement_accuracy(FakePolicy(tokenizer, knows), prompter, asked, EvalConfig(), seed=0)
    assert result["accuracy"]["value"] == result["consistent"]["value"] == 1


@given(st.integers(0, 3))
def test_presenting_moves_the_expert_and_keeps_the_others_in_order(place):
    shown = Question(STATES[0], "x", ("a", "b", "c")).present(place).actions
    assert shown[place] == "x" and [a for a in shown if a != "x"] == ["a", "b", "c"]


# ---- where alternatives come from --------------------------------------------------------------


actions = st.lists(st.sampled_from(["go 1", "Go 1.", "wait", "look", "take a", "take b"]))


@given(actions, st.integers(1, 4), st.integers(0, 2**32))
def test_drawn_alternatives_are_admissible_distinct_and_never_the_experts(listed, k, seed):
    state = State("s", "t", (), "o", tuple(listed) or None)
    (drawn,) = draw_admissible([(state, "go 1")], k, seed)
    forms = [canonical(a) for a in drawn]
    others = {canonical(a) for a in listed} - {"go 1"}
    assert set(forms) <= others and len(set(forms)) == len(forms) == min(k, len(others))
    config = PairsConfig(source="admissible")
    _, counts = gather(pairs_at([(state, "go 1")], [drawn], config))
    assert counts["unlisted"] == (not listed)


def test_admissible_alternatives_are_drawn_uniformly():
    state = State("s", "t", (), "o", ("a", "b", "c", "d", "x"))
    drawn = draw_admissible([(state, "x")] * 4000, 2, 0)
    counts = Counter(a for pair in drawn for a in pair)
    assert all(abs(counts[a] - 2000) < 150 for a in "abcd")  # 5 σ


def test_pairs_from_admissible_actions_ask_no_policy(tmp_path, tokenizer):
    steps = tuple(Step(f"room {i}", f"go {i}", (f"go {i}", "wait", "look")) for i in range(4))
    write_jsonl(tmp_path / "t.jsonl", [to_row(Trajectory("t", "walk", steps, True))])
    states = TrajectoryFile(tmp_path / "t.jsonl").states("train")
    policy = FakePolicy(tokenizer, lambda p, i: "")
    config = PairsConfig(source="admissible", k=5)
    prompter = Prompter(tokenizer, PromptConfig())
    pairs, counts = gather(make_pairs(policy, prompter, states, config, 1))
    assert not policy.prompts and counts["kept"] == len(pairs) == 8
    assert Counter(p.alternative for p in pairs) == {"wait": 4, "look": 4}


def test_refreshed_pairs_come_from_the_policy_of_that_step(world):
    updates: set[int] = set()

    def script(prompt: str, i: int) -> str:
        if "Which action is better" in prompt:
            return f"<choice>{1 + i % 2}</choice>"
        updates.add(world.policy.updates)
        return f"<action>new {world.policy.updates}</action>"

    config = ACTConfig(steps=7, batch=2, group_size=2, refresh_pairs=3)
    result = world(act, config, script)
    asked = [p for p in result.policy.prompts if "Which action is better" in p]
    shown = [next(w for w in ("bad", "new 3", "new 6") if f": {w}\n" in p) for p in asked]
    assert shown == ["bad"] * 6 + ["new 3"] * 6 + ["new 6"] * 2
    assert updates == {3, 6}
    files = sorted(f.name for f in result.folder.glob("pairs-*"))
    assert files == [
        *("pairs-0000003.counts.json", "pairs-0000003.jsonl"),
        *("pairs-0000006.counts.json", "pairs-0000006.jsonl"),
    ]
    pairs = read_pairs(result.folder / "pairs-0000003.jsonl")
    assert {p.provenance["step"] for p in pairs} == {3}
    counts = json.loads((result.folder / "pairs-0000003.counts.json").read_text())
    assert counts == {"kept": 6, "duplicate": 6}  # k = 2 alike alternatives at each of 6 states


def test_when_nothing_new_is_left_the_first_pairs_go_on(world):
    """A policy that has become as good as the expert proposes no alternatives."""

    def script(prompt: str, i: int) -> str:
        if "Which action is better" in prompt:
            return f"<choice>{1 + i % 2}</choice>"
        return "<action>good</action>"

    result = world(act, ACTConfig(steps=4, batch=2, group_size=2, refresh_pairs=2), script)
    asked = [p for p in result.policy.prompts if "Which action is better" in p]
    assert len(asked) == 8 and all("bad" in p for p in asked)
    assert len(result.rows) == 4


# ---- reflections as training texts -------------------------------------------------------------


THOUGHTS = [
    Reflection(s, "good", f"it is room {i}", (("good", "ok"),)) for i, s in enumerate(STATES)
]


def test_reflect_mixes_reflections_with_expert_actions(world, tokenizer):
    config = ReflectConfig(steps=3, batch=4, share=0.5)
    result = world(reflect, config, reflections=THOUGHTS)
    told = texts(tokenizer, result.policy.trained)
    reflected = [(p, r) for p, r in told if "it is room" in r]
    plain = [(p, r) for p, r in told if "it is room" not in r]
    assert len(reflected) == len(plain) == 6
    for prompt, reply in reflected:
        room = prompt.rpartition("room ")[2][0]
        assert reply == f"it is room {room}\n<action>good</action><|im_end|>"
        assert "Think first" in prompt
    for prompt, reply in plain:
        room = prompt.rpartition("room ")[2][0]
        assert reply == f"<action>go {room}</action><|im_end|>"
        assert "Answer only with" in prompt
    assert len({p for p, _ in reflected}) == 6  # one epoch: each reflection once


@pytest.mark.parametrize(("share", "thoughts"), [(0.0, 0), (0.25, 1), (1.0, 4)])
def test_the_share_of_reflections_is_the_configured_one(world, tokenizer, share, thoughts):
    given_thoughts = THOUGHTS if share else ()
    config = ReflectConfig(steps=1, batch=4, share=share)
    result = world(reflect, config, reflections=given_thoughts)
    told = texts(tokenizer, result.policy.trained)
    assert sum("it is room" in reply for _, reply in told) == thoughts and len(told) == 4


def test_reflect_without_reflections_says_so(world):
    with pytest.raises(UserError, match=r"no reflections; see reflections\.counts\.json"):
        world(reflect, ReflectConfig(steps=1))
