"""Layouts: nothing lost, nothing twice, nothing seen that must not be, never over the budget."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import visible_BLL

from miniact import UserError
from miniact.backends.layout import PADDING, Layout, layouts, loss_tokens, split_by_completion
from miniact.types import Completion, Group

PROMPTS = st.sampled_from([1, 2, 3, 12])  # lengths; small ones, so that several groups share a row
ANSWERS = st.lists(st.sampled_from([1, 2, 6]), min_size=1, max_size=4)
BUDGETS = st.integers(18, 80)  # 12 + 6 always fit
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


GROUPS = batches()


def answers(layout: Layout):
    """(group, completion, rows, columns, targets) of every completion in a layout."""
    ends = np.cumsum(layout.lengths)[:-1]
    parts = (np.split(x_N, ends) for x_N in (layout.row_N, layout.col_N, layout.target_N))
    return [
        (g, c, *rest) for (g, c), *rest in zip(layout.order, *parts, strict=True)
    ]  # no layout is empty, so that `ends` cuts exactly len(order) parts


def slow_visible(layout: Layout, b: int, q: int, k: int) -> bool:
    """May token q look at token k? Said as plainly as can be."""
    if k > q:
        return False
    if layout.group_BL[b, q] == PADDING or layout.group_BL[b, k] == PADDING:
        return layout.group_BL[b, q] == layout.group_BL[b, k]
    if layout.group_BL[b, q] != layout.group_BL[b, k]:
        return False
    if layout.answer_BL[b, k] == 0:
        return True
    return layout.answer_BL[b, q] == layout.answer_BL[b, k]


@given(GROUPS, BUDGETS, SHARED)
def test_every_completion_token_is_predicted_exactly_once(groups, budget, shared):
    seen = Counter()
    for layout in layouts(groups, budget, shared):
        for g, c, _, _, target_C in answers(layout):
            seen[g, c] += 1
            assert tuple(target_C) == groups[g].completions[c].tokens
    expected = [(g, c) for g, group in enumerate(groups) for c in range(len(group.completions))]
    assert seen == Counter(expected)


@given(GROUPS, BUDGETS, SHARED)
def test_what_a_prediction_sees_is_its_prompt_and_its_own_past(groups, budget, shared):
    """The mask and the positions, followed from every predicting column back to the tokens."""
    for layout in layouts(groups, budget, shared):
        seen_BLL = visible_BLL(layout)
        for g, c, row_C, col_C, _ in answers(layout):
            prompt, tokens = groups[g].prompt, groups[g].completions[c].tokens
            for t, (b, q) in enumerate(zip(row_C, col_C)):
                keys = np.flatnonzero(seen_BLL[b, q])
                past = (*prompt, *tokens[:t])
                assert tuple(layout.token_BL[b, keys]) == past
                assert tuple(layout.position_BL[b, keys]) == tuple(range(len(past)))
                assert layout.position_BL[b, q] == len(past) - 1
                assert keys[-1] == q  # the token itself is the newest that it sees


@given(GROUPS, BUDGETS, SHARED)
def test_the_visible_mask_is_its_slow_definition(groups, budget, shared):
    for layout in layouts(groups, budget, shared):
        seen_BLL = visible_BLL(layout)
        for b, q, k in np.ndindex(*seen_BLL.shape):
            assert seen_BLL[b, q, k] == slow_visible(layout, b, q, k)


@given(GROUPS, BUDGETS, SHARED)
def test_the_budget_holds_with_padding(groups, budget, shared):
    for layout in layouts(groups, budget, shared):
        assert 0 < layout.token_BL.size <= budget
        assert len(layout.target_N) > 0
        assert (layout.group_BL[:, 0] != PADDING).all()  # no row is all padding
        unused = layout.group_BL == PADDING
        assert (layout.token_BL[unused] == 0).all() and (layout.answer_BL[unused] == 0).all()


@given(GROUPS, BUDGETS)
def test_sharing_computes_no_more_tokens_than_the_plain_way(groups, budget):
    def computed(shared):
        return sum((x.group_BL != PADDING).sum() for x in layouts(groups, budget, shared))

    plain = sum(len(g.prompt) + len(c.tokens) for g in groups for c in g.completions)
    assert computed(False) == plain
    once = sum(len(g.prompt) + sum(len(c.tokens) for c in g.completions) for g in groups)
    assert once <= computed(True) <= plain
    if all(len(g.prompt) + sum(len(c.tokens) for c in g.completions) <= budget for g in groups):
        assert computed(True) == once


@given(GROUPS, BUDGETS, SHARED)
def test_is_causal_means_that_the_causal_mask_is_right_for_real_tokens(groups, budget, shared):
    for layout in layouts(groups, budget, shared):
        real_BL = layout.group_BL != PADDING
        causal_BLL = np.tri(layout.token_BL.shape[1], dtype=bool) & real_BL[:, None, :]
        same = (visible_BLL(layout) == causal_BLL)[real_BL].all()
        assert layout.is_causal == same
        assert shared or layout.is_causal


def test_one_prompt_with_three_answers_by_hand():
    completions_ = tuple(Completion(tokens) for tokens in [(5, 6), (7,), (8, 9, 3)])
    (layout,) = layouts([Group((1, 2), completions_)], 100)
    assert layout.token_BL.tolist() == [[1, 2, 5, 6, 7, 8, 9, 3]]
    assert layout.position_BL.tolist() == [[0, 1, 2, 3, 2, 2, 3, 4]]
    assert layout.answer_BL.tolist() == [[0, 0, 1, 1, 2, 3, 3, 3]]
    assert layout.col_N.tolist() == [1, 2, 1, 1, 5, 6]
    assert layout.target_N.tolist() == [5, 6, 7, 8, 9, 3]
    assert layout.order == [(0, 0), (0, 1), (0, 2)] and layout.lengths == [2, 1, 3]
    assert not layout.is_causal
    (single,) = layouts([Group((1, 2), completions_[:1])], 100)
    assert single.is_causal


def test_small_groups_share_a_row():
    long = Group((1,) * 10, (Completion((2,) * 6),))
    short = Group((1,), (Completion((3,)),))
    (layout,) = layouts([short, long, short], 100)
    assert layout.token_BL.shape == (2, 16)  # the two short ones stand in one row
    assert not layout.is_causal
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
