"""Layouts: nothing lost, nothing twice, nothing seen that must not be, never over the budget."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import trees, visible_BLL

from miniact import UserError
from miniact.backends import tree
from miniact.backends.layout import Layout, layouts, loss_tokens, split_by_completion
from miniact.types import Completion, Group

PROMPTS = st.sampled_from([1, 2, 3, 12])  # lengths; small ones, so that several groups share a row
ANSWERS = st.lists(st.sampled_from([1, 2, 6]), min_size=1, max_size=4)
BUDGETS = st.integers(112, 400)  # the longest prompt and answer always fit
SHARED = st.booleans()


@st.composite
def batches(draw) -> list[Group]:
    """Groups of drawn lengths, filled with random tokens and numbers."""
    lengths = draw(st.lists(st.tuples(PROMPTS, ANSWERS), max_size=9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(rng.integers(1, 10, n).tolist())

    def completion(n: int) -> Completion:
        logps = rng.normal(size=(2, n)).astype(np.float32) if rng.random() < 0.7 else (None, None)
        weight, advantage = rng.normal(size=2).astype(np.float32).tolist()
        return Completion(tokens(n), weight, advantage, *logps)

    return [Group(tokens(p), tuple(map(completion, answers))) for p, answers in lengths]


GROUPS = batches() | trees()


def answers(layout: Layout):
    """(group, completion, places, targets) of every completion in a layout."""
    ends = np.cumsum(layout.lengths)[:-1]
    parts = (np.split(x_N, ends) for x_N in (layout.place_N, layout.target_N))
    return [
        (g, c, *rest) for (g, c), *rest in zip(layout.order, *parts, strict=True)
    ]  # no layout is empty, so that `ends` cuts exactly len(order) parts


@given(GROUPS, BUDGETS, SHARED)
def test_every_completion_token_is_predicted_exactly_once(groups, budget, shared):
    seen = Counter()
    for layout in layouts(groups, budget, shared):
        for g, c, _, target_C in answers(layout):
            seen[g, c] += 1
            assert tuple(target_C) == groups[g].completions[c].tokens
    expected = [(g, c) for g, group in enumerate(groups) for c in range(len(group.completions))]
    assert seen == Counter(expected)


@given(GROUPS, BUDGETS, SHARED)
def test_what_a_prediction_sees_is_its_prompt_and_its_own_past(groups, budget, shared):
    """The mask and the positions, followed from every predicting place back to the tokens."""
    for layout in layouts(groups, budget, shared):
        seen_BLL, L = visible_BLL(layout), layout.token_BL.shape[1]
        position_L = np.arange(L) if layout.tree is None else layout.tree.position_T
        for g, c, place_C, _ in answers(layout):
            prompt, tokens = groups[g].prompt, groups[g].completions[c].tokens
            for t, (b, q) in enumerate(zip(*np.divmod(place_C, L))):
                keys = np.flatnonzero(seen_BLL[b, q])
                keys = keys[np.argsort(position_L[keys])]
                past = (*prompt, *tokens[:t])
                assert tuple(layout.token_BL[b, keys]) == past
                assert tuple(position_L[keys]) == tuple(range(len(past)))
                assert keys[-1] == q  # the token itself is the newest that it sees


@given(GROUPS, BUDGETS)
def test_every_token_of_a_tree_sees_its_own_past_alone(groups, budget):
    for layout in layouts(groups, budget):
        seen_LL = visible_BLL(layout)[0]
        unseen = set(range(layout.size))
        for path in layout.tree.paths:
            for t, place in enumerate(path):
                assert np.flatnonzero(seen_LL[place]).tolist() == sorted(path[: t + 1])
            unseen -= set(path.tolist())
        assert not unseen  # nothing is computed that no answer needs


@given(GROUPS, BUDGETS)
def test_segments_and_links_follow_one_another(groups, budget):
    """What attention counts on: links are stretches of whole segments, which see earlier ones."""
    for layout in layouts(groups, budget):
        ends = [end for _, end in layout.tree.segments]
        assert [first for first, _ in layout.tree.segments] == [0, *ends[:-1]]
        assert ends[-1] == layout.size
        for first, end, key, last in layout.tree.links:
            assert first in ends and end in ends and key < last <= first
            assert sum(a <= key and last <= b for a, b in layout.tree.segments) == 1


@given(GROUPS, BUDGETS, SHARED)
def test_the_budget_holds_with_padding(groups, budget, shared):
    for layout in layouts(groups, budget, shared):
        assert 0 < layout.size <= budget
        L = layout.token_BL.shape[1]
        assert len(layout.target_N) > 0
        assert set(layout.place_N // L) == set(range(len(layout.token_BL)))  # no row is padding


@given(GROUPS)
def test_what_begins_alike_is_computed_once(groups):
    """As many tokens as there are distinct beginnings, but for those that are alike too shortly."""
    inputs = [(*g.prompt, *c.tokens[:-1]) for g in groups for c in g.completions]
    distinct = {x[:n] for x in inputs for n in range(1, len(x) + 1)}
    with patch.object(tree, "LEAST", 1):
        assert sum(x.size for x in layouts(groups, 10**6)) == len(distinct)
    whole = sum(x.size for x in layouts(groups, 10**6))
    assert len(distinct) <= whole <= len(distinct) + len(inputs) * (tree.LEAST - 1)


@given(GROUPS, BUDGETS)
def test_a_row_that_is_full_repeats_one_beginning_at_most(groups, budget):
    whole = sum(x.size for x in layouts(groups, 10**6))
    sizes = [x.size for x in layouts(groups, budget)]
    longest = max((len(g.prompt) + len(c.tokens) for g in groups for c in g.completions), default=0)
    assert whole <= sum(sizes) <= whole + max(len(sizes) - 1, 0) * longest


def test_one_prompt_with_three_answers_by_hand():
    completions_ = tuple(Completion(tokens) for tokens in [(5, 6), (7,), (8, 9, 3)])
    with patch.object(tree, "LEAST", 1):
        (layout,) = layouts([Group((1, 2), completions_)], 100)
    assert layout.token_BL.tolist() == [[1, 2, 8, 9, 5]]  # a last token predicts nothing
    assert layout.tree.position_T.tolist() == [0, 1, 2, 3, 2]
    assert layout.tree.segments == [(0, 4), (4, 5)] and layout.tree.links == [(4, 5, 0, 2)]
    assert layout.place_N.tolist() == [1, 1, 2, 3, 1, 4]
    assert layout.target_N.tolist() == [7, 8, 9, 3, 5, 6]
    assert layout.order == [(0, 1), (0, 2), (0, 0)] and layout.lengths == [1, 3, 2]


def test_the_tree_that_is_drawn_in_its_module():
    sequences = ["abcdef", "abcxy", "abcxyp", "abcxyqr"]
    with patch.object(tree, "LEAST", 1):
        row = tree.grow([[ord(letter) for letter in s] for s in sequences])
    assert "".join(map(chr, row.token_T)) == "abcxyqrdefp"
    assert row.links == [(7, 10, 0, 3), (10, 11, 0, 5)]
    assert row.position_T.tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 5]
    assert row.paths[2].tolist() == [0, 1, 2, 3, 4, 10]
    few = row.only([0, 2])
    assert "".join(map(chr, few.token_T)) == "abcxydefp"
    assert few.links == [(5, 8, 0, 3), (8, 9, 0, 5)] and few.segments == [(0, 5), (5, 8), (8, 9)]


def trajectory(states: int, turn: int = 40, question: int = 12, answers: int = 3) -> list[Group]:
    """The states of a trajectory: its history grows by a turn, then comes a question."""
    rng, history, groups = np.random.default_rng(states), (7,) * 10, []
    for _ in range(states):
        history += tuple(rng.integers(0, 250, turn).tolist())
        prompt = history + tuple(rng.integers(0, 250, question).tolist())
        group = [tuple(rng.integers(0, 250, 9).tolist()) for _ in range(answers)]
        groups.append(Group(prompt, tuple(map(Completion, group))))
    return groups


def test_the_tokens_of_a_trajectory_grow_with_its_length_not_its_square():
    sizes = {T: sum(x.size for x in layouts(trajectory(T), 10**6)) for T in (1, 2, 20, 40)}
    each = 40 + 12 + 3 * 8
    assert all(T * (each - 1) < size - 10 <= T * each for T, size in sizes.items())  # by chance
    plain = sum(x.size for x in layouts(trajectory(40), 10**6, shared=False))
    assert plain > 50 * sizes[40]


def test_a_trajectory_longer_than_the_budget_is_done_in_parts():
    groups = trajectory(20)
    longest = len(groups[-1].prompt) + 9
    parts = list(layouts(groups, longest))
    assert all(x.size <= longest for x in parts) and len(parts) > 2
    states = [{g for g, _ in x.order} for x in parts]
    assert all(max(s) - min(s) + 1 == len(s) for s in states)  # neighbours stay together
    assert sum(x.size for x in parts) < sum(len(g.prompt) for g in groups)
    (whole,) = layouts(groups, 10**6)
    assert whole.repeated == parts[0].repeated == 0
    assert sum(x.repeated for x in parts) == sum(x.size for x in parts) - whole.size > 0


@given(GROUPS, st.integers(1, 4))
def test_groups_are_divided_once_each(groups, ways):
    answers = [g.size - len(g.prompt) for g in groups]
    parts = tree.divide([g.prompt for g in groups], answers, ways)
    assert len(parts) == ways
    assert sorted(i for part in parts for i in part) == list(range(len(groups)))


def test_the_states_of_a_trajectory_stay_in_one_process():
    groups = [*trajectory(4), *trajectory(4, turn=41), *trajectory(4, turn=42)]
    groups = [replace(g, prompt=(i // 4,) * 9 + g.prompt) for i, g in enumerate(groups)]
    mixed = [groups[i] for i in (0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11)]
    parts = tree.divide([g.prompt for g in mixed], [27] * 12, 3)
    assert sorted(parts) == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_prompts_that_share_nothing_stand_side_by_side():
    long = Group((1,) * 10, (Completion((2,) * 6),))
    short = Group((3,), (Completion((3,)),))
    (layout,) = layouts([short, long, short], 100)
    assert layout.token_BL.shape == (1, 15 + 1 + 1 - 1)  # the short one twice, computed once
    assert layout.tree.links == [] and len(layout.tree.segments) == 2
    assert sorted(layout.order) == [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize("shared", [True, False])
def test_a_row_that_cannot_fit_is_named(shared):
    fits = Group((1,) * 5, (Completion((2,) * 5),))
    too_long = Group((1,) * 5, (Completion((2,)), Completion((2,) * 6)))
    assert list(layouts([fits], 10, shared))
    with pytest.raises(
        UserError, match=r"group 1, answer 1: prompt 5 \+ answer 6 .*max_tokens_per_batch 10"
    ):
        list(layouts([fits, too_long], 10, shared))


@pytest.mark.parametrize("shared", [True, False])
def test_nothing_to_lay_out(shared):
    assert list(layouts([], 10, shared)) == []


@given(GROUPS, BUDGETS, SHARED)
def test_what_the_loss_is_told_belongs_to_the_right_token(groups, budget, shared):
    for layout in layouts(groups, budget, shared):
        tokens = loss_tokens(groups, layout)
        arrays = (tokens.weight_N, tokens.advantage_N, tokens.old_logp_N, tokens.ref_logp_N)
        assert all(x.dtype == np.float32 and x.shape == layout.target_N.shape for x in arrays)
        ends = np.cumsum(layout.lengths)[:-1]
        for (g, c), *parts in zip(layout.order, *(np.split(x, ends) for x in arrays)):
            completion = groups[g].completions[c]
            zeros = np.zeros(len(completion.tokens))
            assert (parts[0] == completion.weight).all()
            assert (parts[1] == completion.advantage).all()
            for part, logps in zip(parts[2:], (completion.old_logps, completion.ref_logps)):
                assert part.tolist() == (zeros if logps is None else logps).tolist()


@given(GROUPS, BUDGETS, SHARED)
def test_results_return_to_their_completions(groups, budget, shared):
    """Send every target through split_by_completion: the completions come back."""
    back = [[None] * len(g.completions) for g in groups]
    for layout in layouts(groups, budget, shared):
        split_by_completion(layout.target_N, layout, back)
    for group, parts in zip(groups, back, strict=True):
        assert [tuple(p) for p in parts] == [c.tokens for c in group.completions]


def test_an_empty_answer_is_named():
    groups = [Group((1, 2), (Completion((3,)), Completion(())))]
    with pytest.raises(UserError, match="group 0, answer 1: is empty"):
        list(layouts(groups, 64))
