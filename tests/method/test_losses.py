"""Losses: value, gradient, agreement of numpy, torch and TRL, and indifference to micro-batches."""

from __future__ import annotations

import ast
import importlib.util
from collections import defaultdict
from dataclasses import astuple, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from miniact.backends.layout import layouts, loss_tokens
from miniact.method.grpo import advantages, token_weights, weigh
from miniact.method.losses import GRPOLoss, cross_entropy
from miniact.types import Completion, Group, Tokens

SEEDS = st.integers(0, 2**32 - 1)
CLIPS = st.floats(0.0, 0.9)
LOSSES = st.builds(
    GRPOLoss, clip_low=CLIPS, clip_high=CLIPS, beta=st.sampled_from([0.0, 0.04, 1.0])
)


def drawn(seed: int, n: int = 12, spread: float = 0.5) -> tuple[np.ndarray, Tokens]:
    """Random log π_θ and what belongs to it, float64: ratios on both sides of every clip."""
    rng = np.random.default_rng(seed)
    old_N = -rng.exponential(1.0, n)
    logp_N = np.minimum(old_N + rng.normal(0, spread, n), 0)
    ref_N = -rng.exponential(1.0, n)
    return logp_N, Tokens(rng.uniform(0, 1, n), rng.normal(0, 1, n), old_N, ref_N)


def in_torch(tokens: Tokens) -> Tokens:
    return Tokens(*map(torch.as_tensor, astuple(tokens)))


def value_and_gradient(loss, logp_N: np.ndarray, tokens: Tokens) -> tuple[float, np.ndarray, dict]:
    leaf_N = torch.tensor(logp_N, requires_grad=True)
    value, metrics = loss(torch, leaf_N, in_torch(tokens))
    value.backward()
    return value.item(), leaf_N.grad.numpy(), metrics


def smooth(loss: GRPOLoss, logp_N: np.ndarray, tokens: Tokens, margin: float = 1e-4) -> bool:
    """Whether every ratio keeps away from the two corners of the clip."""
    ratio_N = np.exp(logp_N - tokens.old_logp_N)
    corners = (1 - loss.clip_low, 1 + loss.clip_high)
    return all(np.abs(ratio_N - corner).min() > margin for corner in corners)


# ---- value and gradient --------------------------------------------------------------------


@given(SEEDS, LOSSES)
def test_the_gradient_is_the_closed_form(seed, loss):
    """∂L/∂log π = −w·A·ρ·1[unclipped] + w·β·(1 − π_ref/π_θ)"""
    logp_N, t = drawn(seed)
    assume(smooth(loss, logp_N, t))
    ratio_N = np.exp(logp_N - t.old_logp_N)
    too_high = (ratio_N > 1 + loss.clip_high) & (t.advantage_N > 0)
    too_low = (ratio_N < 1 - loss.clip_low) & (t.advantage_N < 0)
    unclipped_N = ~(too_high | too_low)
    policy_N = -t.weight_N * t.advantage_N * ratio_N * unclipped_N
    kl_N = t.weight_N * loss.beta * (1 - np.exp(t.ref_logp_N - logp_N))
    _, gradient_N, metrics = value_and_gradient(loss, logp_N, t)
    np.testing.assert_allclose(gradient_N, policy_N + kl_N, rtol=1e-9, atol=1e-12)
    assert metrics["clip_fraction"].item() == pytest.approx((t.weight_N * ~unclipped_N).sum())


@given(SEEDS, LOSSES)
def test_the_gradient_is_that_of_finite_differences(seed, loss):
    logp_N, t = drawn(seed, n=6)
    assume(smooth(loss, logp_N, t))
    h = 1e-6
    slopes = [
        (loss(np, logp_N + h * e, t)[0] - loss(np, logp_N - h * e, t)[0]) / (2 * h)
        for e in np.eye(6)
    ]
    np.testing.assert_allclose(value_and_gradient(loss, logp_N, t)[1], slopes, atol=1e-6)


def test_the_value_by_hand():
    loss = GRPOLoss(clip_low=0.2, clip_high=0.3, beta=0.5)
    ratio_N = np.array([1.0, 2.0, 2.0, 0.5, 0.5])
    advantage_N = np.array([1.0, 1.0, -1.0, 1.0, -1.0])
    old_N = np.full(5, -1.0)
    policy = -(1.0 + 1.3 - 2.0 + 0.5 - 0.8)  # min(ρA, clip(ρ)A), one after the other
    logp_N = old_N + np.log(ratio_N)
    value, metrics = loss(np, logp_N, Tokens(np.ones(5), advantage_N, old_N, logp_N))
    assert value == pytest.approx(policy)
    assert metrics["clip_fraction"] == 2 and metrics["ratio"] == pytest.approx(6.0)
    far = Tokens(np.ones(5), advantage_N, old_N, logp_N + np.log(2))
    assert loss(np, logp_N, far)[0] == pytest.approx(policy + 0.5 * 5 * (2 - np.log(2) - 1))


@given(SEEDS)
def test_on_the_first_update_the_gradient_is_reinforce(seed):
    """ρ = 1: the value is −Σ w·A and the gradient is −w·A, whatever the clips."""
    _, t = drawn(seed)
    value, gradient_N, metrics = value_and_gradient(GRPOLoss(0.0, 0.0), t.old_logp_N, t)
    assert value == pytest.approx(-(t.weight_N * t.advantage_N).sum())
    assert metrics["clip_fraction"] == 0
    _, gradient_N, _ = value_and_gradient(GRPOLoss(0.2, 0.2), t.old_logp_N, t)
    np.testing.assert_allclose(gradient_N, -t.weight_N * t.advantage_N)


@given(SEEDS, LOSSES)
def test_numpy_and_torch_agree(seed, loss):
    logp_N, t = drawn(seed)
    for each in (loss, cross_entropy):
        ours, ours_metrics = each(np, logp_N, t)
        theirs, theirs_metrics = each(torch, torch.as_tensor(logp_N), in_torch(t))
        assert theirs.item() == pytest.approx(ours, abs=1e-12)
        assert ours_metrics.keys() == theirs_metrics.keys()
        for name, metric in ours_metrics.items():
            assert theirs_metrics[name].item() == pytest.approx(metric, abs=1e-12)


@given(SEEDS, st.floats(0, 5))
def test_k3_is_never_negative_and_zero_at_the_reference(seed, spread):
    logp_N, t = drawn(seed, n=1, spread=spread)
    loss = GRPOLoss(beta=1.0)
    assert loss(np, logp_N, t)[1]["kl"] >= 0
    at_reference = replace(t, ref_logp_N=logp_N)
    assert loss(np, logp_N, at_reference)[1]["kl"] == 0
    without = value_and_gradient(GRPOLoss(), logp_N, at_reference)
    np.testing.assert_allclose(
        value_and_gradient(loss, logp_N, at_reference)[1], without[1], atol=1e-12
    )


def test_without_beta_the_reference_is_not_read():
    logp_N, t = drawn(0)
    value, metrics = GRPOLoss()(np, logp_N, replace(t, ref_logp_N=np.full(12, np.nan)))
    assert np.isfinite(value) and "kl" not in metrics


@given(SEEDS)
def test_cross_entropy_is_a_weighted_sum(seed):
    logp_N, t = drawn(seed)
    value, gradient_N, _ = value_and_gradient(cross_entropy, logp_N, t)
    assert value == pytest.approx(-(t.weight_N * logp_N).sum())
    np.testing.assert_allclose(gradient_N, -t.weight_N)


# ---- micro-batches -------------------------------------------------------------------------------


@given(SEEDS, LOSSES, st.lists(st.integers(0, 12), max_size=3), st.permutations(range(12)))
def test_loss_and_gradient_ignore_split_and_order(seed, loss, cuts, order):
    logp_N, t = drawn(seed)
    whole, whole_gradient_N, whole_metrics = value_and_gradient(loss, logp_N, t)
    sums, gradient_N = defaultdict(float), np.zeros(12)
    for part in np.split(np.array(order), sorted(cuts)):
        taken = Tokens(*(x[part] for x in astuple(t)))
        _, gradient_N[part], metrics = value_and_gradient(loss, logp_N[part], taken)
        for name, metric in metrics.items():
            sums[name] += metric.item()
    np.testing.assert_allclose(gradient_N, whole_gradient_N)
    assert sums["loss"] == pytest.approx(whole)
    for name, metric in whole_metrics.items():
        assert sums[name] == pytest.approx(metric.item(), abs=1e-12)


V = 7  # words of the toy policy: a table of bigram logits


def toy_groups(rng: np.random.Generator, n: int, variant: str) -> list[Group]:
    groups = []
    for _ in range(n):
        size = int(rng.integers(2, 5))
        lengths = rng.integers(1, 6, size)
        groups.append(
            Group(
                tuple(map(int, rng.integers(0, V, rng.integers(1, 6)))),
                tuple(
                    Completion(
                        tuple(map(int, rng.integers(0, V, c))),
                        advantage=float(a),
                        old_logps=np.log(rng.uniform(0.05, 0.5, c)),
                        ref_logps=np.log(rng.uniform(0.05, 0.5, c)),
                    )
                    for c, a in zip(lengths, advantages(rng.normal(size=size)), strict=True)
                ),
            )
        )
    return weigh(groups, variant, max_tokens=8)


def step(table_VV: torch.Tensor, groups: list[Group], loss, budget: int, shared: bool):
    """What a backend does, with a table for a model: metrics and ∂L/∂table, over micro-batches."""
    leaf_VV = table_VV.clone().requires_grad_()
    sums, batches = defaultdict(float), 0
    for layout in layouts(groups, budget, shared):
        tokens = in_torch(loss_tokens(groups, layout))
        before_N = torch.as_tensor(layout.token_BL.flatten()[layout.place_N])
        logp_NV = leaf_VV[before_N].log_softmax(-1)
        logp_N = logp_NV.gather(1, torch.as_tensor(layout.target_N)[:, None])[:, 0]
        value, metrics = loss(torch, logp_N, tokens)
        value.backward()
        batches += 1
        for name, metric in metrics.items():
            sums[name] += metric.item()
    return dict(sums), leaf_VV.grad.numpy(), batches


@settings(max_examples=20)
@given(SEEDS, st.sampled_from(["grpo", "dapo", "dr_grpo"]), st.integers(10, 40))
def test_a_training_step_ignores_layout_budget_and_order(seed, variant, budget):
    rng = np.random.default_rng(seed)
    groups = toy_groups(rng, 4, variant)
    table_VV = torch.tensor(rng.normal(size=(V, V)))
    loss = GRPOLoss(0.2, 0.28, beta=0.1)
    one, gradient, batches = step(table_VV, groups, loss, 10_000, shared=False)
    assert batches == 1 and np.abs(gradient).max() > 0
    shuffled = [groups[i] for i in rng.permutation(4)]
    for shared in (True, False):
        other, other_gradient, batches = step(table_VV, shuffled, loss, budget, shared)
        assert batches > 1
        assert other == pytest.approx(one, rel=1e-5, abs=1e-6)
        np.testing.assert_allclose(other_gradient, gradient, atol=1e-6)


# ---- an independent reference --------------------------------------------------------------


@pytest.fixture(scope="module")
def trl_loss():
    """TRL's own GRPO loss on given log-probs: its trainer's method, on a stand-in for the trainer.

    The method is compiled alone from TRL's source, because importing its trainer takes ten seconds.
    """
    package = importlib.util.find_spec("trl")
    if package is None:
        pytest.skip("trl is not installed")
    source = (Path(package.origin).parent / "trainer" / "grpo_trainer.py").read_text()
    method = next(
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == "_compute_loss"
    )
    names = {"torch": torch, "nanmin": torch.min, "nanmax": torch.max}
    exec(compile(ast.Module([method], []), "trl/trainer/grpo_trainer.py", "exec"), names)

    def call(loss, variant, mask_BT, advantage_B, logps):
        logp_BT, old_BT, ref_BT = logps
        stand_in = SimpleNamespace(
            _get_per_token_logps_and_entropies=lambda *_, **__: (logp_BT, 0 * logp_BT, None),
            _entropy_bonus_enabled=False,
            _metrics=defaultdict(lambda: defaultdict(list)),
            accelerator=SimpleNamespace(
                num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
            ),
            args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
            aux_loss_enabled=False,
            beta=loss.beta,
            current_gradient_accumulation_steps=1,
            epsilon_low=loss.clip_low,
            epsilon_high=loss.clip_high,
            importance_sampling_level="token",
            loss_type=variant,
            max_completion_length=mask_BT.shape[1],
            model=SimpleNamespace(training=True),
            off_policy_mask_threshold=None,
            top_entropy_quantile=1.0,
            use_vllm=False,
            vllm_importance_sampling_correction=False,
        )
        nothing_B0 = torch.zeros(len(logp_BT), 0, dtype=torch.long)
        inputs = {
            "prompt_ids": nothing_B0,
            "prompt_mask": nothing_B0,
            "completion_ids": torch.zeros_like(mask_BT),
            "completion_mask": mask_BT,
            "advantages": advantage_B,
            "old_per_token_logps": old_BT,
            "ref_per_token_logps": ref_BT,
            "num_items_in_batch": mask_BT.sum(),
        }
        value = names["_compute_loss"](stand_in, None, inputs)
        return value, {name: values[0] for name, values in stand_in._metrics["train"].items()}

    return call


@pytest.mark.parametrize("variant", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("loss", [GRPOLoss(0.2, 0.2), GRPOLoss(0.1, 0.28, beta=0.04)])
@settings(max_examples=15)
@given(SEEDS)
def test_trl_agrees(trl_loss, variant, loss, seed):
    rng = np.random.default_rng(seed)
    lengths, max_tokens = rng.integers(1, 6, 6), 5
    mask_BT = torch.as_tensor(np.arange(max_tokens) < lengths[:, None]).long()
    keep_BT = mask_BT.bool()
    old_BT, ref_BT = (torch.tensor(-rng.exponential(1, (6, max_tokens))) for _ in range(2))
    logp_BT = (old_BT + torch.tensor(rng.normal(0, 0.4, (6, max_tokens)))).requires_grad_()
    advantage_B = torch.tensor(advantages(rng.integers(0, 3, 6)))

    logps = (logp_BT, old_BT, ref_BT)
    theirs, their_metrics = trl_loss(loss, variant, mask_BT, advantage_B, logps)
    theirs.backward()
    their_gradient_BT, logp_BT.grad = logp_BT.grad, None

    weight_B = torch.as_tensor(token_weights(lengths, variant, max_tokens))
    tokens = Tokens(
        *(x_B.repeat_interleave(torch.as_tensor(lengths)) for x_B in (weight_B, advantage_B)),
        old_BT[keep_BT],
        ref_BT[keep_BT],
    )
    ours, our_metrics = loss(torch, logp_BT[keep_BT], tokens)
    ours.backward()

    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(logp_BT.grad, their_gradient_BT)
    if variant == "dapo":  # TRL's metrics are means over tokens, whatever the variant
        clipped = their_metrics["clip_ratio/region_mean"]  # counted in float32
        assert our_metrics["clip_fraction"].item() == pytest.approx(clipped, abs=1e-6)
        if loss.beta:
            assert our_metrics["kl"].item() == pytest.approx(their_metrics["kl"])
