"""Contrastive pairs: filters, provenance, balanced order, files."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest
from fakes import FakePolicy, mutated
from hypothesis import example, given
from hypothesis import strategies as st

from miniact import UserError
from miniact.config.sections import PairsConfig, PromptConfig
from miniact.data.trajectories import TrajectoryFile
from miniact.data.trajectories import to_row as trajectory_row
from miniact.method.pairs import (
    choose_states,
    filter_alternatives,
    gather,
    make_pairs,
    pair_from,
    pair_row,
    positions,
    read_pairs,
)
from miniact.method.prompts import Prompter
from miniact.method.rewards import canonical, choice_reward
from miniact.runs.files import write_jsonl
from miniact.types import Question, State, Step, Trajectory

actions = st.sampled_from(
    ["look", "Look.", " look ", "go east", "GO  EAST", "open door!", "", "  ."]
)


@given(actions.filter(canonical), st.lists(st.none() | actions))
def test_no_pair_holds_two_equal_actions_and_every_sample_is_counted(expert, sampled):
    kept, counts = filter_alternatives(expert, sampled, None)
    forms = [canonical(a) for a in kept]
    assert canonical(expert) not in forms
    assert len(set(forms)) == len(forms)
    assert all(forms)
    assert counts.total() == len(sampled)
    assert counts["kept"] == len(kept)


def test_the_admissible_filter_drops_and_counts():
    kept, counts = filter_alternatives("look", ["go east", "fly"], ["Go East", "look"])
    assert kept == ["go east"] and counts["inadmissible"] == 1


@given(st.integers(0, 200), st.integers(2, 4), st.integers(0, 2**32))
def test_every_position_comes_equally_often(n, ways, seed):
    where = positions(n, (seed, 1), ways)
    counts = np.bincount(where, minlength=ways)
    assert len(where) == n and counts.max() - counts.min() <= 1
    assert (where == positions(n, (seed, 1), ways)).all()


def test_the_order_is_not_always_the_same():
    drawn = np.array([positions(8, (0, step)) for step in range(50)])
    assert len({tuple(row) for row in drawn}) > 25
    assert 0.3 < drawn[:, 0].mean() < 0.7


@given(st.text(min_size=1), st.text(min_size=1))
def test_swapping_flips_the_right_answer_and_nothing_else(a, b):
    pair = Question(State("s", "t", (), "o"), a, (b,))
    first, second = pair.present(0).actions, pair.present(1).actions
    assert first == second[::-1]
    for position, shown in enumerate((first, second)):
        assert shown[position] == a
        assert choice_reward(position, position) == 1.0
        assert choice_reward(1 - position, position) == 0.0


@pytest.fixture
def states(tmp_path):
    steps = tuple(Step(f"room {i}", f"go {i}") for i in range(6))
    rows = [Trajectory(f"t{j}", "walk", steps, True) for j in range(3)]
    path = tmp_path / "trajectories.jsonl"
    write_jsonl(path, map(trajectory_row, rows))
    return TrajectoryFile(path).states("train")


def test_pairs_come_from_the_policy_with_provenance(states, tokenizer):
    replies = ["go 99", "go 1", "", "go 99"]
    policy = FakePolicy(tokenizer, lambda prompt, i: replies[i])
    prompter = Prompter(tokenizer, PromptConfig(form="plain"))
    provenance = {"model": "fake", "seed": 3, "temperature": 1.0}
    config = PairsConfig(k=4, states_per_trajectory=2)
    pairs, counts = gather(make_pairs(policy, prompter, states, config, 3, provenance))
    asked = 3 * 2
    assert counts.total() == asked * 4
    assert counts["unparseable"] == asked and counts["duplicate"] == asked
    assert counts["kept"] == len(pairs)
    assert all(p.provenance == provenance for p in pairs)
    assert all(canonical(p.expert) != canonical(p.alternative) for p in pairs)
    assert all(p.expert == f"go {p.state.observation.split()[1]}" for p in pairs)


def test_states_per_trajectory_are_drawn_from_each(states):
    chosen = choose_states(states, 2, seed=1)
    assert Counter(i // 6 for i in chosen) == {0: 2, 1: 2, 2: 2}
    assert chosen == choose_states(states, 2, seed=1)
    assert choose_states(states, 0, seed=1) == list(range(18))


def test_a_pair_survives_the_file_and_says_what_history_it_lost(tmp_path):
    history = tuple((f"o{i}", f"a{i}") for i in range(5))
    pair = Question(State("s", "t", history, "o", ("x", "y")), "x", ("y",), "id", {"seed": 1})
    path = tmp_path / "pairs.jsonl"
    write_jsonl(path, [pair_row(pair, history=99)])
    assert read_pairs(path) == [pair]
    write_jsonl(path, [pair_row(pair, history=2)])
    (short,) = read_pairs(path)
    assert short.state.history == history[3:] and short.state.earlier == 3


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda row: row.pop("expert"), "no field 'expert'"),
        (lambda row: row.update(alternative=row["expert"].upper()), "the same action"),
        (lambda row: row["state"].pop("task"), "task"),
    ],
)
def test_a_damaged_pair_names_its_line(tmp_path, damage, says):
    good = pair_row(Question(State("s", "t", (), "o"), "x", ("y",)), 9)
    bad = json.loads(json.dumps(good))
    damage(bad)
    path = tmp_path / "pairs.jsonl"
    write_jsonl(path, [good, bad])
    with pytest.raises(UserError, match=rf"pairs.jsonl:2: .*{says}"):
        read_pairs(path)
    assert len(read_pairs(path, skip_bad_rows=True)) == 1


STATE = State("s", "t", (("o", "a"),), "o", ("x", "y"))
ROW = pair_row(Question(STATE, "x", ("y",), "id", {"k": 1}), 9)


@given(mutated(ROW))
@example({**ROW, "state": {**ROW["state"], "earlier": "3"}})
@example({**ROW, "state": {**ROW["state"], "task": ["t"]}})
def test_any_row_is_a_pair_or_one_line_that_names_it(tokenizer, tmp_path_factory, row):
    path = tmp_path_factory.getbasetemp() / "mutated.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n{json.dumps(row)}\n")
    try:
        pairs = read_pairs(path)
    except UserError as error:
        named = "|".join([*ROW, *ROW["state"]])
        assert re.fullmatch(rf"{path}:2: [^\n]*\b({named})\b[^\n]*", str(error)), error
        return
    prompter = Prompter(tokenizer, PromptConfig())
    for pair in pairs:
        prompter.critic(pair.state, pair.present(0).actions)
    write_jsonl(path, [pair_row(pair, 9) for pair in pairs])
    assert read_pairs(path) == pairs


def test_pairs_follow_the_rule_of_their_state():
    sampled = ["git add", "git add .", "Git add ."]
    assert filter_alternatives("git add .", sampled, None, "exact")[0] == ["git add", "Git add ."]
    assert filter_alternatives("git add .", sampled, None, "words")[0] == []
    state = State("s#0", "task", (), "seen", compare="exact")
    pair = Question(state, "git add .", ("git add",))
    assert pair_from(json.loads(json.dumps(pair_row(pair)))) == pair
    plain = pair_row(Question(State("s#0", "task", (), "seen"), "a", ("b",)))
    assert "compare" not in plain["state"]  # files of text worlds look as they did
