"""What the thinking base is made of: true thoughts, no expert, nothing on what is better."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import make_thinker as maker
import pytest
from rich.console import Console

from miniact.backends.models import find_model
from miniact.config import load_config
from miniact.envs import make_env
from miniact.envs.household_facts import check, read, things
from miniact.experiments.pipeline import run_recipe
from miniact.method.prompts import Prompter
from miniact.runs.files import read_json
from miniact.types import State


@pytest.fixture(scope="module")
def world():
    return make_env("household", max_steps=maker.MOST)


@pytest.fixture(scope="module")
def prompter(world):
    return Prompter(maker.tokenizer_for(world, 0), maker.PROMPT)


@pytest.fixture(scope="module")
def visits(world):
    played = islice(maker.play(world, random.Random(1)), 60)
    return [visit for episode in played for visit in episode]


def text_of(prompter: Prompter, tokens) -> str:
    return prompter.tokenizer.decode(tokens)


def test_it_is_played_where_nothing_else_is(visits):
    assert {visit.state.id.split("/")[0] for visit in visits} == {"play"}


def test_the_expert_is_never_asked(world, monkeypatch):
    monkeypatch.setattr(type(world), "expert_action", None)
    assert len(list(islice(maker.play(world, random.Random(2)), 3))) == 3


def test_every_thought_is_true_and_every_reply_is_read(prompter, visits):
    player = maker.Player(random.Random(3))
    for visit in visits[:200]:
        group = maker.action_example(prompter, visit, player)
        for completion in group.completions:
            reply = text_of(prompter, completion.tokens[:-1])
            assert prompter.tokenizer.unk_token_id not in completion.tokens
            assert prompter.parse_action(reply)
            for kind, true in check(visit.state, prompter.parse_thought(reply) or ""):
                assert true and kind != "other", (kind, reply)


def test_in_critic_texts_the_choice_is_a_fair_coin_and_the_thought_is_about_it(prompter, visits):
    """Of a skilled move and a random one, each is chosen half of the time."""
    player, chosen, about = maker.Player(random.Random(4)), Counter(), Counter()
    for visit in visits[:400]:
        known = read(visit.state)
        skilled = player.plan(known, visit.actions).action
        group = maker.critic_example(prompter, visit, player)
        prompt = text_of(prompter, group.prompt)
        shown = [line.partition(":")[2].strip() for line in prompt.split("\n")[-3:-1]]
        for completion in group.completions:
            reply = text_of(prompter, completion.tokens[:-1])
            choice = prompter.parse_choice(reply, shown)
            assert choice is not None
            if skilled in shown:
                chosen[shown[choice] == skilled] += 1
            thought = things(prompter.parse_thought(reply) or "")
            if things(shown[choice]):
                about[bool(thought & things(shown[choice]))] += 1
    n = sum(chosen.values())
    assert n > 500 and abs(chosen[True] / n - 0.5) < 3 * (0.25 / n) ** 0.5 * 2  # 4 replies a prompt
    assert about[True] > 0.75 * sum(about.values())


def test_blunders_are_played_and_never_learned(prompter, visits):
    """Some moves of the histories do nothing; each that a reply holds applies."""
    seen = [pair[0] for visit in visits for pair in visit.state.history]
    assert 0.03 < seen.count("Nothing happens.") / len(seen) < 0.25
    player = maker.Player(random.Random(6))
    for visit in visits[:200]:
        for completion in maker.action_example(prompter, visit, player).completions:
            taken = prompter.parse_action(text_of(prompter, completion.tokens[:-1]))
            assert " ".join(taken.split()) in visit.actions


def test_the_player_is_of_mixed_skill(world):
    def solved(skill: float) -> float:
        player, won = maker.Player(random.Random(5)), 0
        for task_id in world.tasks("play", 60, 5):
            task, turn = world.reset(task_id)
            history: list[tuple[str, str]] = []
            while not turn.done:
                state = State(task_id, task, tuple(history), turn.observation)
                visit = maker.Visit(state, world.admissible())
                taken, _ = maker.move(visit, read(state), player, skill)
                history.append((turn.observation, taken))
                turn = world.step(taken)
            won += turn.success
        return won / 60

    assert solved(1.0) == 1 and 0.05 < solved(0.3) < 0.6 and solved(0.0) < 0.1


@pytest.mark.slow
def test_the_same_seed_makes_the_same_bytes(tmp_path):
    from io import StringIO

    for name in ("a", "b"):
        maker.pretrain(tmp_path / name, seed=1, steps=2, batch=2, console=Console(file=StringIO()))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


@pytest.mark.slow
def test_the_one_that_ships_is_a_beginner_that_acts_better_when_it_thinks(tmp_path):
    """What its card says (docs/thinking.md), on fewer episodes."""
    folder = Path(find_model("builtin:thinker").path)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4e6
    sizes = ["eval.episodes=48", "eval.splits=id", "eval.states=0", "eval.pairs=20"]
    config = load_config("household", ["seed=9", "stage.act.steps=0", *sizes])
    run_recipe(replace(config, recipe=["act"]), tmp_path / "run", Console(quiet=True))
    stages = tmp_path / "run" / "stages"
    plain, thinking = (
        read_json(stages / name / "eval.json") for name in ("0-base", "0-base-thinking")
    )
    success = [ev["splits"]["id"]["success"]["value"] for ev in (plain, thinking)]
    assert success[0] < 0.12 < success[1] < 0.5, success
    assert thinking["thoughts"]["act"]["true"]["value"] > 0.7
    assert thinking["judgement"]["valid"]["value"] > 0.8
