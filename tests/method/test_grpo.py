"""Group advantages and token weights: each by the identity that defines it. And one whole step."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from miniact.backends.layout import layouts, loss_tokens
from miniact.config.sections import GRPOConfig
from miniact.method.grpo import (
    EPSILON,
    advantages,
    grpo_step,
    is_live,
    make_group,
    token_weights,
    weigh,
)
from miniact.types import Completion, Group, Sample, Scored

# rewards in 64ths: sums and shifts of them are exact, so only the code's own rounding is tested
REWARD = st.integers(-64, 128).map(lambda n: n / 64)
REWARDS = st.lists(REWARD, min_size=2, max_size=16).map(np.array)
VARIANTS = st.sampled_from(["grpo", "dapo", "dr_grpo"])
LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=20)


# ---- advantages ----------------------------------------------------------------------------


@given(REWARDS, st.booleans())
def test_advantages_sum_to_zero(reward_G, scale):
    assert advantages(reward_G, scale).sum() == pytest.approx(0, abs=1e-9)


@given(REWARDS, st.booleans(), st.integers(-100, 100))
def test_advantages_ignore_a_shift_of_the_rewards(reward_G, scale, shift):
    np.testing.assert_allclose(
        advantages(reward_G + shift, scale), advantages(reward_G, scale), atol=1e-9
    )


@given(st.floats(-1e6, 1e6), st.integers(1, 16), st.booleans())
def test_a_constant_group_gets_exact_zeros(reward, size, scale):
    # 0.1 + 0.1 + 0.1 is not 0.3: a mean that is off by one bit must not become an advantage
    assert advantages(np.full(size, reward), scale).tolist() == [0.0] * size


@given(REWARDS, st.sampled_from([0.5, 2.0, 10.0, 1000.0]))
def test_scaled_advantages_ignore_the_scale_of_the_rewards_up_to_epsilon(reward_G, factor):
    spread = reward_G.std(ddof=1)
    assume(spread > 0)
    one_G, other_G = advantages(reward_G), advantages(factor * reward_G)
    slack = EPSILON / (spread * min(1, factor))
    assert (np.abs(other_G - one_G) <= np.abs(one_G) * slack + 1e-12).all()
    np.testing.assert_allclose(
        advantages(factor * reward_G, scale=False), factor * advantages(reward_G, scale=False)
    )


@given(REWARDS, st.randoms(use_true_random=False))
def test_advantages_follow_their_rewards(reward_G, random):
    """Order in the group does not matter, and the better answer has the higher advantage."""
    order = random.sample(range(len(reward_G)), len(reward_G))
    advantage_G = advantages(reward_G)
    np.testing.assert_allclose(advantages(reward_G[order]), advantage_G[order], atol=1e-12)
    above = reward_G[:, None] > reward_G[None, :]
    assert (advantage_G[:, None] > advantage_G[None, :])[above].all()


@given(REWARDS)
def test_advantages_are_the_textbook_formula(reward_G):
    mean = sum(reward_G) / len(reward_G)
    std = (sum((r - mean) ** 2 for r in reward_G) / (len(reward_G) - 1)) ** 0.5
    np.testing.assert_allclose(
        advantages(reward_G), [(r - mean) / (std + 1e-4) for r in reward_G], atol=1e-12
    )


def test_nearly_equal_rewards_stay_finite_and_small():
    advantage_G = advantages(np.array([1.0, 1.0 + 1e-12]))
    assert np.isfinite(advantage_G).all() and np.abs(advantage_G).max() < 1e-6


def test_rewards_may_be_integers():
    assert advantages(np.array([1, 0]), scale=False).tolist() == [0.5, -0.5]


# ---- token weights -------------------------------------------------------------------------


@given(LENGTHS)
def test_grpo_gives_every_completion_the_same_say(lengths):
    weights = token_weights(lengths, "grpo", 50)
    np.testing.assert_allclose(weights * lengths, 1 / len(lengths))


@given(LENGTHS)
def test_dapo_gives_every_token_the_same_say(lengths):
    weights = token_weights(lengths, "dapo", 50)
    assert len(set(weights)) == 1
    assert weights @ lengths == pytest.approx(1)


@given(LENGTHS)
def test_dr_grpo_divides_by_a_constant(lengths):
    weights = token_weights(lengths, "dr_grpo", 50)
    np.testing.assert_allclose(weights, 1 / (50 * len(lengths)))


@given(st.integers(1, 20), st.integers(1, 50))
def test_for_answers_of_full_length_all_variants_are_one(n, length):
    weights = [token_weights([length] * n, v, length) for v in ("grpo", "dapo", "dr_grpo")]
    np.testing.assert_allclose(weights, 1 / (n * length))


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="bnpo"):
        token_weights([1], "bnpo", 1)


# ---- groups --------------------------------------------------------------------------------


def samples(lengths):
    return [Sample((7,) * n, tuple(-0.5 * t for t in range(n)), "x", "end") for n in lengths]


def test_make_group_keeps_what_was_sampled():
    group = make_group([1, 2], samples([3, 1]), np.array([0.5, -0.5]))
    assert group.prompt == (1, 2)
    assert [c.tokens for c in group.completions] == [(7, 7, 7), (7,)]
    assert [c.advantage for c in group.completions] == [0.5, -0.5]
    assert group.completions[0].old_logps.tolist() == [0.0, -0.5, -1.0]
    assert group.completions[0].ref_logps is None


def test_make_group_refuses_a_count_that_does_not_match():
    with pytest.raises(ValueError):
        make_group([1], samples([1, 1]), np.zeros(3))


@settings(max_examples=50)
@given(st.lists(LENGTHS, max_size=5), VARIANTS)
def test_weigh_spreads_the_weights_of_the_whole_batch(batch, variant):
    groups = [make_group([1], samples(ns), np.arange(len(ns))) for ns in batch]
    weighed = weigh(groups, variant, 50)
    flat = [n for ns in batch for n in ns]
    got = [c.weight for g in weighed for c in g.completions]
    np.testing.assert_allclose(got, token_weights(flat, variant, 50) if flat else [])
    for before, after in zip(groups, weighed, strict=True):
        assert after.prompt == before.prompt
        assert [(c.tokens, c.advantage) for c in after.completions] == [
            (c.tokens, c.advantage) for c in before.completions
        ]


@given(REWARDS)
def test_a_group_is_live_unless_all_its_rewards_are_equal(reward_G):
    group = make_group([1], samples([1] * len(reward_G)), advantages(reward_G))
    assert is_live(group) == (len(set(reward_G)) > 1)


def test_imitation_has_weight_one_and_no_advantage():
    completion = Completion((1,))
    assert completion.weight == 1 and not is_live(Group((1,), (completion,)))


# ---- one step ------------------------------------------------------------------------------


class ScriptedPolicy:
    """Answers prompt (p,) with p tokens in each of G samples; records what it is asked to learn."""

    def __init__(self) -> None:
        self.learned: list[list[Group]] = []
        self.steps: list[tuple[float, float]] = []

    def sample(self, prompts, n, max_tokens, temperature, seed):
        return [samples([prompt[0]] * n) for prompt in prompts]

    def logprobs(self, groups, temperature=1.0, reference=False):
        if not reference:  # 0.1 nats from what the sampler said
            return [[c.old_logps + 0.1 for c in g.completions] for g in groups]
        return [[np.full(len(c.tokens), -3.0) for c in g.completions] for g in groups]

    def forward_backward(self, groups, loss, temperature=1.0):
        self.learned.append(groups)
        sums: Counter = Counter()
        for layout in layouts(groups, 100):
            tokens = loss_tokens(groups, layout)
            sums.update(loss(np, tokens.old_logp_N + np.log(1.1), tokens)[1])
        return dict(sums)

    def optim_step(self, lr, max_grad_norm):
        self.steps.append((lr, max_grad_norm))
        return 0.5


def run_step(right: dict[int, int], **config):
    """A GRPO step on one prompt (p,) per entry p: k, of whose 4 answers the first k are right."""
    policy, judged = ScriptedPolicy(), Counter()

    def score(prompt, sample):
        judged[prompt] += 1
        good = judged[prompt] <= right[prompt]
        return Scored(float(good), good, valid=True)

    grpo = GRPOConfig(group_size=4, max_tokens=8, **config)
    scorers = [partial(score, p) for p in right]
    metrics, rollouts = grpo_step(policy, [(p,) for p in right], scorers, grpo, lr=0.1, seed=0)
    return policy, metrics, rollouts


def test_dr_grpo_leaves_the_division_by_the_deviation_out():
    divided, plain = (run_step({2: 1}, variant=v)[2][0].advantages for v in ("dapo", "dr_grpo"))
    assert plain.tolist() == [0.75, -0.25, -0.25, -0.25]
    assert divided == pytest.approx(plain / (0.5 + EPSILON))


def test_groups_without_a_signal_are_dropped_but_keep_their_share_of_the_weights():
    policy, metrics, rollouts = run_step({1: 0, 2: 1, 3: 4, 5: 2}, variant="dapo")
    assert [g.prompt for g in policy.learned[0]] == [(2,), (5,)]
    for group in policy.learned[0]:  # answers that came out alike are one, with their joint weight
        weight = sum(c.weight for c in group.completions)
        assert weight == pytest.approx(4 / (4 * (1 + 2 + 3 + 5)))
    assert metrics["zero_variance"] == 0.5
    assert metrics["all_wrong"] == 0.25 and metrics["all_correct"] == 0.25
    assert metrics["reward"] == metrics["correct"] == 7 / 16
    assert metrics["reply_tokens"] == 11 / 4
    drawn = [logp for r in rollouts for sample in r.samples for logp in sample.logps]
    assert metrics["entropy"] == pytest.approx(-np.mean(drawn)) and metrics["entropy"] > 0
    assert [r.prompt for r in rollouts] == [(1,), (2,), (3,), (5,)]
    assert metrics["grad_norm"] == 0.5 and policy.steps == [(0.1, 1.0)]


def test_with_a_kl_term_no_group_is_dropped_and_the_reference_is_known():
    policy, metrics, _ = run_step({1: 0, 2: 1}, beta=0.1)
    assert [g.prompt for g in policy.learned[0]] == [(1,), (2,)]
    for group in policy.learned[0]:
        assert all((c.ref_logps == -3).all() for c in group.completions)
    assert metrics["kl"] >= 0


def test_metrics_are_means_over_the_tokens_that_were_learned():
    for variant in ("grpo", "dapo", "dr_grpo"):
        _, metrics, _ = run_step({1: 0, 2: 1, 5: 2}, variant=variant, updates=2)
        assert metrics["ratio"] == pytest.approx(1.1)
        assert metrics["clip_fraction"] == 0
        _, metrics, _ = run_step({2: 2, 5: 2}, variant=variant, clip_high=0.05, updates=2)
        assert metrics["clip_fraction"] == pytest.approx(0.5)  # those with a positive advantage


def test_one_update_per_batch_clips_nothing_whatever_the_sampler_said():
    """The fake's training pass is log 1.1 from its sampler: with ε 0.05 all would be clipped."""
    _, metrics, _ = run_step({2: 2, 5: 2}, clip_low=0.05, clip_high=0.05)
    assert metrics["ratio"] == pytest.approx(1) and metrics["clip_fraction"] == 0
    assert metrics["sampler_gap"] == pytest.approx(np.log(1.1))


def test_several_updates_compare_with_log_probs_of_the_trainer():
    policy, metrics, _ = run_step({2: 1}, updates=2)
    for c in policy.learned[0][0].completions:
        assert c.old_logps == pytest.approx(np.asarray(samples([2])[0].logps) + 0.1)
    assert metrics["sampler_gap"] == pytest.approx(0.1)


def test_without_any_signal_nothing_is_learned():
    policy, metrics, _ = run_step({1: 0, 2: 4})
    assert policy.learned == [] and policy.steps == []
    assert metrics["zero_variance"] == 1 and metrics["reward"] == 0.5


@pytest.mark.parametrize(
    ("right", "config", "tokens"),
    [
        ({2: 1}, {}, (1 + 4 * 2) + (1 + 2 * 2)),  # sampled, then trained: two different answers
        ({2: 1}, {"updates": 3}, 9 + (1 + 3) * 5),  # π_old is computed anew
        ({2: 1}, {"updates": 3, "beta": 0.1}, 9 + 5 * 5),  # scored by the reference as well
        ({2: 1, 3: 4}, {}, 9 + (1 + 4 * 3) + 5),  # a dead group is sampled and not trained
        ({2: 0}, {}, 9),
    ],
)
def test_all_tokens_that_pass_the_model_are_counted(right, config, tokens):
    _, metrics, _ = run_step(right, **config)
    assert metrics["tokens"] == tokens


def test_several_updates_on_one_sampled_batch():
    policy, _, _ = run_step({2: 1}, updates=3)
    assert len(policy.learned) == len(policy.steps) == 3


def test_merging_answers_that_came_out_alike_keeps_the_loss():
    from miniact.method.grpo import merge

    same = Completion((4, 5), weight=0.5, advantage=1.0, old_logps=np.array([-1.0, -2.0]))
    other = Completion((4, 6), weight=0.5, advantage=-2.0, old_logps=np.array([-1.0, -3.0]))
    merged = merge(Group((1, 2), (same, other, same)))
    assert [(c.tokens, c.weight, c.advantage) for c in merged.completions] == [
        ((4, 5), 1.0, 1.0),
        ((4, 6), 0.5, -2.0),
    ]
    apart = merge(Group((1,), (same, replace(same, advantage=0.5))))
    assert len(apart.completions) == 2  # judged differently: not the same example
