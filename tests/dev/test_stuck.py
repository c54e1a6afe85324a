"""The experiment on repeats: real failures, and how copying is told from not noticing."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import stuck
from click.testing import CliRunner
from failures import after_failure, build_trial, main, own_trials, with_repeats
from fakes import SMALL, FakePolicy
from rich.console import Console

from miniact.config import load_config
from miniact.data.trajectories import TrajectoryFile, collect, to_row
from miniact.envs import make_env
from miniact.envs.household import NOTHING
from miniact.evaluation.episodes import Episode, Move
from miniact.experiments.pipeline import run_recipe
from miniact.method.pairs import read_pairs
from miniact.method.prompts import Prompter
from miniact.runs.files import write_jsonl
from miniact.types import Question

PLAIN = "household-plain"
AWAY = "examine moon 1"  # applies nowhere


def prompter_for(tokenizer):  # type: ignore[no-untyped-def]
    return Prompter(tokenizer, load_config(PLAIN, ["prompt.max_tokens=6000"]).prompt)


@pytest.fixture(scope="module")
def world():
    return make_env("household", max_steps=20)


@pytest.fixture(scope="module")
def played(world):
    return list(collect(world, "id", 6, 0, "expert"))


def test_what_applies_is_no_failure_and_what_fails_changes_nothing(world, played):
    for trajectory in played:
        state = trajectory.state(2)
        assert after_failure(world, state, trajectory.steps[2].action) is None
        trial = build_trial(world, state, AWAY, {AWAY, "examine sun 1"})
        assert trial.after.observation == trial.beside.observation == NOTHING
        assert trial.after.history == (*state.history, (state.observation, AWAY))
        assert trial.beside.history[-1][1] == "examine sun 1"
        assert trial.expert == world.expert_action() == trajectory.steps[2].action


def test_an_agents_own_trial_is_its_first_failure(world, played):
    first = played[0]
    moves = [Move(s.observation, "", s.action, True) for s in first.steps[:2]]
    lost = Move(first.steps[2].observation, "", AWAY, False)
    episode = Episode(first.id, first.task, [*moves, lost, replace(lost, observation=NOTHING)])
    (trial,) = own_trials(world, [episode, Episode(first.id, first.task, moves)])
    assert trial.action == AWAY and trial.expert == first.steps[2].action
    assert replace(trial.before, admissible=None) == replace(first.state(2), admissible=None)


def test_the_harder_pairs_ask_after_a_failure_and_keep_the_others(world, tmp_path):
    train = list(collect(world, "train", 6, 0, "expert"))
    write_jsonl(tmp_path / "t.jsonl", map(to_row, train))
    pairs = [Question(t.state(1), t.steps[1].action, ("look",)) for t in train]
    pairs.append(Question(train[0].state(0), train[0].steps[0].action, (AWAY,)))
    pairs.append(replace(pairs[0], split="id"))
    harder = list(with_repeats(world, pairs, TrajectoryFile(tmp_path / "t.jsonl")))
    added = [pair for pair in harder if pair not in pairs]
    assert [pair for pair in harder if pair in pairs] == pairs
    assert len(added) == len(train) + 1 and {pair.split for pair in added} == {"train"}
    for pair in added:
        assert pair.state.observation == NOTHING
        assert pair.state.history[-1][1] == pair.alternative != pair.expert
        play = replace(pair.state, history=pair.state.history[:-1])
        assert after_failure(world, play, pair.alternative), "it applies"
    assert added[-1].alternative == AWAY  # its own alternative had failed


def copier(prompt: str, _: int) -> str:
    """Does what stands last in its prompt."""
    return re.findall(r"> (.*)", prompt)[-1]


def blind(prompt: str, _: int) -> str:
    """Does the same whatever happened."""
    return AWAY


def wise(prompt: str, _: int) -> str:
    """Does it, but not twice."""
    return "look" if NOTHING in prompt else AWAY


@pytest.mark.parametrize(
    ("script", "done"),
    [(copier, (0, 0, 1)), (blind, (1, 1, 1)), (wise, (1, 0, 0))],
)
def test_it_tells_copying_from_not_noticing(world, played, tokenizer, script, done):
    agent = stuck.Agent(FakePolicy(tokenizer, script), prompter_for(tokenizer), load_config(PLAIN))
    words = {AWAY, "examine sun 1"}
    trials = [build_trial(world, t.state(i), AWAY, words) for t in played for i in (1, 2)]
    values = stuck.after_failing(agent, trials)
    names = ("before", "after another failed", "after it failed")
    assert tuple(values[f"it is done, {name}"] for name in names) == done
    assert values["trials"] == len(played) * 2


def test_play_is_counted_move_by_move():
    def moves(*done: str) -> list[Move]:
        return [Move("", "", action, not action.startswith("bad")) for action in done]

    episodes = [Episode("1", moves=moves("a", "a", "bad", "bad", "bad", "b", "bad"))]
    play = stuck.in_play([*episodes, Episode("2", moves=moves("a", "b"))])
    assert list(play.values()) == pytest.approx([1 / 2, 2 / 4, 1 / 4, 1 / 1, 1 / 2])


def test_a_thought_is_checked_before_each_move_and_compared_after_a_failure(
    world, played, tokenizer
):
    first = played[0]
    holds, lies = "i hold nothing", "i hold moon 1"

    def move(i: int, thought: str, action: str, applied: bool) -> Move:
        return Move(
            first.steps[i].observation, f"{thought}<action>{action}</action>", action, applied
        )

    moves = [move(0, holds, first.steps[0].action, True), move(1, lies, AWAY, False)]
    moves += [replace(moves[1], observation=NOTHING)] * 2
    prompter = Prompter(tokenizer, load_config(PLAIN, ["prompt.form=tags"]).prompt)
    values = stuck.thoughts_in_play(world, prompter, [Episode(first.id, first.task, moves)])
    assert list(values.values()) == [1.0, 0.0, 1.0]
    bare = [replace(m, reply=m.action) for m in moves]
    plain = Prompter(tokenizer, load_config(PLAIN, ["prompt.form=tags"]).prompt)
    assert not stuck.thoughts_in_play(world, plain, [Episode(first.id, first.task, bare[:1])])


def test_both_commands_on_a_run(tmp_path):
    run = tmp_path / "run"
    config = load_config(PLAIN, [*SMALL, "recipe=il"])
    run_recipe(config, run, Console(quiet=True))
    result = CliRunner().invoke(stuck.main, [str(run), "--states", "8"])
    assert result.exit_code == 0, result.output
    assert "| % | base | il |" in result.output
    assert re.search(
        r"\| log π of it, after it failed, nats \| −\d+\.\d \| −\d+\.\d \|", result.output
    )
    CliRunner().invoke(main, [str(run), "--out", str(tmp_path / "p.jsonl")], catch_exceptions=False)
    assert len(read_pairs(tmp_path / "p.jsonl")) > len(read_pairs(run / "pairs.jsonl"))
