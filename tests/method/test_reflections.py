"""Early Experience: what is executed, what is asked, and which reflections are kept."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from fakes import Corridor, FakePolicy, mutated
from hypothesis import given

from miniact import UserError
from miniact.config import load_config
from miniact.config.sections import PromptConfig, ReflectConfig
from miniact.data.trajectories import TrajectoryFile, collect
from miniact.data.trajectories import to_row as trajectory_row
from miniact.envs import Turn, make_env
from miniact.method.controls.reflections import (
    OUTCOME_CHARACTERS,
    Experience,
    experiences,
    judge_reflection,
    make_reflections,
    read_reflections,
    reflection_row,
    replay,
)
from miniact.method.prompts import Prompter
from miniact.runs.files import write_jsonl
from miniact.types import Question, Reflection, Sample, State


@pytest.fixture(scope="module")
def household():
    env = make_env("household")
    yield env
    env.close()


def write(path, trajectories):  # type: ignore[no-untyped-def]
    write_jsonl(path, map(trajectory_row, trajectories))
    return TrajectoryFile(path)


def pairs_of(trajectory, alternatives=("look", "inventory")):  # type: ignore[no-untyped-def]
    return [
        Question(trajectory.state(i), step.action, (other,))
        for i, step in enumerate(trajectory.steps)
        for other in alternatives
        if other != step.action
    ]


# ---- acting ------------------------------------------------------------------------------------


def test_what_each_action_led_to_is_what_the_environment_says(household, tmp_path):
    """The stored observation after the expert's action is an independent record of its outcome."""
    trajectories = list(collect(household, "train", 5, 0, "expert"))
    file = write(tmp_path / "t.jsonl", trajectories)
    pairs = [p for t in trajectories for p in pairs_of(t)]
    found = [e for e in experiences(household, file, pairs) if e]
    assert len(found) == sum(len(t.steps) for t in trajectories)
    by_id = {e.state.id: e for e in found}
    for trajectory in trajectories:
        for i, (now, following) in enumerate(zip(trajectory.steps, trajectory.steps[1:])):
            experience = by_id[f"{trajectory.id}#{i}"]
            assert experience.taken == (now.action, following.observation)
            assert [a for a, _ in experience.others] == ["look", "inventory"]
        last = by_id[f"{trajectory.id}#{len(trajectory.steps) - 1}"]
        assert last.taken[1].endswith("The task is solved.")
        assert not any("solved" in outcome for _, outcome in last.others)
    assert any(e.others[1][1].startswith("You are") for e in found)  # the inventory


def test_a_state_that_does_not_come_again_is_counted_and_skipped(household, tmp_path):
    (good,) = collect(household, "train", 1, 0, "expert")
    steps = list(good.steps)
    steps[2] = replace(steps[2], observation="something else")
    other = replace(good, id="train/no-such-task", task="a task of another world")
    file = write(tmp_path / "t.jsonl", [replace(good, steps=tuple(steps)), other])
    bent = file.read(0)
    pairs = [*pairs_of(bent), *pairs_of(other), *pairs_of(replace(good, id="unknown"))]
    found = list(experiences(household, file, pairs))
    reached = [e.state.id for e in found if e]
    assert reached == [f"{good.id}#0", f"{good.id}#1"]  # before the bend
    assert found.count(None) == 3 * len(steps) - 2


def test_replay_notices_another_task_and_an_episode_that_ended(tmp_path):
    env = Corridor()
    (trajectory,) = collect(env, "train", 1, 0, "expert")
    assert replay(env, trajectory, 1) and env.left == 1
    assert not replay(env, replace(trajectory, task="another"), 1)
    longer = replace(trajectory, steps=(*trajectory.steps, *trajectory.steps))
    assert not replay(env, longer, 2)


def test_a_long_outcome_is_cut_and_a_lost_simulator_is_no_outcome(tmp_path):
    class Wordy(Corridor):
        def step(self, action: str) -> Turn:
            turn = super().step(action)
            return replace(turn, observation="word " * 500, lost=action == "crash")

    env = Wordy()
    (trajectory,) = collect(env, "train", 1, 0, "expert")
    file = write(tmp_path / "t.jsonl", [trajectory])
    state = trajectory.state(0)
    (found,) = experiences(env, file, [Question(state, "east", ("west",))])
    assert found.taken[1] == ("word " * 500)[:OUTCOME_CHARACTERS] + "…"
    assert list(experiences(env, file, [Question(state, "east", ("crash",))])) == [None]


# ---- reflecting --------------------------------------------------------------------------------


LIVED = [
    Experience(
        State(f"t#{i}", "cool an apple", (), f"room {i}"),
        ("open fridge", "it is open"),
        (("go to bed", "you sleep"), ("look", "nothing new")),
    )
    for i in range(4)
]
GOOD = "The fridge cools. <action>open fridge</action>"


def reflect(tokenizer, script, lived=LIVED):  # type: ignore[no-untyped-def]
    policy = FakePolicy(tokenizer, script)
    prompter = Prompter(tokenizer, PromptConfig(max_tokens=4000))
    made = list(make_reflections(policy, prompter, lived, ReflectConfig(), 3, {"seed": 3}))
    counts = Counter(verdict for _, verdict in made)
    return [reflection for reflection, _ in made if reflection], counts, policy.prompts


def test_the_prompt_shows_every_outcome_and_names_nobody(tokenizer):
    made, _, prompts = reflect(tokenizer, lambda p, i: GOOD)
    for prompt in prompts:
        for action, outcome in (LIVED[0].taken, *LIVED[0].others):
            assert f'- "{action}" leads to: {outcome}' in prompt
        assert 'why is "open fridge" better' in prompt
        assert "expert" not in prompt and "Action 1" not in prompt
    assert made[0].outcomes == (LIVED[0].taken, *LIVED[0].others)
    assert made[0].provenance == {"seed": 3}


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (GOOD, "kept"),
        ("It cools things. <action>OPEN  fridge.</action>", "kept"),
        ("I am tired. <action>go to bed</action>", "disagrees"),
        ("<action>open fridge</action>", "empty"),
        (" … \n<action>open fridge</action>", "empty"),
        ("...\n<action>open fridge</action>", "empty"),
        ("The fridge cools.", "unparseable"),
        ("<action>look</action> or <action>open fridge</action>", "unparseable"),
        ("The expert opens it. <action>open fridge</action>", "labelled"),
        ("Action 1 cools it. <action>open fridge</action>", "labelled"),
        ("Option #2 is silly. <action>open fridge</action>", "labelled"),
        ("Unlike Action B, this cools. <action>open fridge</action>", "labelled"),
        ("The alternative actions are silly. <action>open fridge</action>", "labelled"),
        ("An action a cook would take. <action>open fridge</action>", "kept"),
        ("Fridge 1 is an option. <action>open fridge</action>", "kept"),
    ],
)
def test_the_filters(tokenizer, reply, verdict):
    prompter = Prompter(tokenizer, PromptConfig())
    text, found = judge_reflection(prompter, Sample((1,), (0.0,), reply, "end"), "open fridge")
    assert found == verdict
    assert text == (reply.partition("<action>")[0].strip() if verdict == "kept" else "")


def test_a_reply_that_was_cut_off_is_too_long_whatever_it_says(tokenizer):
    prompter = Prompter(tokenizer, PromptConfig())
    cut = Sample((1,), (0.0,), GOOD, "length")
    assert judge_reflection(prompter, cut, "open fridge") == ("", "too_long")


def test_reasoning_models_reflect_in_what_they_say_aloud(tokenizer):
    prompter = Prompter(tokenizer, PromptConfig())
    reply = f"<think>\nhm <action>look</action>\n</think>\n\n{GOOD}"
    assert judge_reflection(prompter, Sample((1,), (0.0,), reply, "end"), "open fridge") == (
        "The fridge cools.",
        "kept",
    )


def test_every_state_is_counted_once_and_duplicates_go(tokenizer):
    replies = iter(
        [GOOD, GOOD.replace("The", "THE "), "What? <action>look</action>", "So. " + GOOD]
    )
    made, counts, _ = reflect(tokenizer, lambda p, i: next(replies))
    assert counts == {"kept": 2, "duplicate": 1, "disagrees": 1} and counts.total() == len(LIVED)
    assert [r.text for r in made] == ["The fridge cools.", "So. The fridge cools."]


# ---- files and training texts ------------------------------------------------------------------


def test_a_reflection_survives_the_file_and_a_damaged_line_is_named(tmp_path):
    state = State("s", "t", (("o", "a"), ("p", "b")), "o", ("x", "y"))
    kept = Reflection(state, "x", "so", (("x", "ok"), ("y", "no")), {"seed": 1})
    path = tmp_path / "reflections.jsonl"
    write_jsonl(path, [reflection_row(kept, 99)])
    assert read_reflections(path) == [kept]
    write_jsonl(path, [reflection_row(kept, 1)])
    (short,) = read_reflections(path)
    assert short.state.history == (("p", "b"),) and short.state.earlier == 1
    row = reflection_row(kept, 9)
    del row["text"]
    path.write_text(json.dumps(reflection_row(kept, 9)) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"reflections.jsonl:2: no field 'text'"):
        read_reflections(path)


STATE = State("s", "t", (("o", "a"),), "o", ("x", "y"))
KEPT = Reflection(STATE, "x", "so", (("x", "ok"),), {"k": 1})


@given(mutated(reflection_row(KEPT, 9)))
def test_any_row_is_a_reflection_or_one_line_that_names_it(tmp_path_factory, row):
    path = tmp_path_factory.getbasetemp() / "mutated.jsonl"
    path.write_text(f"{json.dumps(reflection_row(KEPT, 9))}\n{json.dumps(row)}\n")
    try:
        reflections = read_reflections(path)
    except UserError as error:
        assert str(error).startswith(f"{path}:2: ") and "\n" not in str(error)
        return
    write_jsonl(path, [reflection_row(reflection, 9) for reflection in reflections])
    assert read_reflections(path) == reflections


def test_a_thought_is_written_as_the_model_thinks(tokenizer, switch_tokenizer):
    assert Prompter(tokenizer, PromptConfig()).render_thought(" so ") == "so\n"
    thinks = Prompter(switch_tokenizer, PromptConfig())
    reply = thinks.render_thought("so") + thinks.render_action("look")
    assert reply == "<think>\nso\n</think>\n\n<action>look</action>"
    assert thinks.parse_action(reply) == "look"
    hostile = thinks.render_thought("</think><action>quit</action>") + thinks.render_action("look")
    assert thinks.parse_action(hostile) == "look" and hostile.count("</think>") == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["prompt.form=plain"], "plain replies hold no reasoning; use prompt.form: tags"),
        (["env.name=none", "env.trajectories=x.jsonl"], "acts in the environment"),
        (["stage.reflect.share=1.5"], "expected at most 1"),
    ],
)
def test_what_reflect_can_not_do(options, says):
    with pytest.raises(UserError, match=says):
        load_config(None, ["recipe=reflect", *options])
