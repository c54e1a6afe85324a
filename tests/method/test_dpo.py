"""DPO on both backends: its gradient is that of the loss it names, and it learns to prefer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import random_batch
from zoo import BACKENDS, NO_MLX, Zoo, distance, gradients, train

from miniact.backends.protocol import Policy
from miniact.method.controls.dpo import weigh_preferences
from miniact.method.losses import cross_entropy, dpo

BETA = 0.3
PAIRS = random_batch([5, 9, 3, 1], [[3, 4], [6, 2], [5, 1], [1, 2]], seed=2)


def away_from_reference(zoo: Zoo, backend: str, **options: Any) -> Policy:
    """A policy that has moved since its reference was kept, so that margins are not 0."""
    policy = zoo.policy(backend, "qwen3-tied", **options)
    train(policy, cross_entropy, 2, lr=1e-2)
    return policy


def dpo_gradient(policy: Policy) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    weighted, metrics = weigh_preferences(policy, PAIRS, BETA)
    policy.forward_backward(weighted, cross_entropy)
    found = {name: g.copy() for name, g in gradients(policy).items()}
    policy.optim_step(0.0, 1.0)
    return found, metrics


def test_the_gradient_is_that_of_a_direct_computation(zoo):
    """Plain autograd through −log σ(β·m), one sequence at a time, with transformers' own model."""
    import torch

    policy: Any = away_from_reference(zoo, "torch")
    found, metrics = dpo_gradient(policy)

    def logp(prompt: tuple[int, ...], reply: tuple[int, ...]) -> Any:
        logits = policy.model(torch.tensor([[*prompt, *reply]])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits, -1).gather(1, torch.tensor(reply)[:, None]).sum()

    with torch.no_grad(), policy._reference_weights():
        before = [[logp(g.prompt, c.tokens) for c in g.completions] for g in PAIRS]
    replies = [[logp(g.prompt, c.tokens) for c in g.completions] for g in PAIRS]
    margins = [(a - c) - (b - d) for (a, b), (c, d) in zip(replies, before)]
    loss = -torch.stack([torch.nn.functional.logsigmoid(BETA * m) for m in margins]).mean()
    loss.backward()
    assert min(abs(float(m)) for m in margins) > 1e-2
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert metrics["margin"] == pytest.approx(float(sum(margins)) / len(PAIRS), abs=1e-4)
    assert distance(found, gradients(policy)) < 1e-4
    policy.optim_step(0.0, 1.0)


@pytest.mark.parametrize("backend", BACKENDS)
class TestEachBackend:
    def test_the_gradient_is_the_slope_of_the_loss(self, zoo, backend, tmp_path):
        """A step of length h down the gradient lowers the loss by h·|gradient|."""
        from safetensors.numpy import load_file, save_file

        policy = away_from_reference(zoo, backend)
        gradient, _ = dpo_gradient(policy)
        norm = np.sqrt(sum(float((g**2).sum()) for g in gradient.values()))
        policy.save_adapter(tmp_path)
        file = tmp_path / "adapter_model.safetensors"
        w, losses = load_file(file), []
        for h in (1e-2, -1e-2):
            save_file({n: (w[n] - h / norm * gradient[n]).astype(np.float32) for n in w}, file)
            policy.load_adapter(tmp_path)
            losses.append(weigh_preferences(policy, PAIRS, BETA)[1]["loss"])
        assert (losses[1] - losses[0]) / 2e-2 == pytest.approx(norm, rel=0.03)

    def test_micro_batches_change_nothing(self, zoo, backend):
        """a⁺ and a⁻ of one pair may lie in different micro-batches."""
        small, _ = dpo_gradient(away_from_reference(zoo, backend, max_tokens_per_batch=16))
        whole, _ = dpo_gradient(away_from_reference(zoo, backend, max_tokens_per_batch=4096))
        assert distance(small, whole) < 1e-3

    def test_it_starts_at_log_2_and_learns_to_prefer(self, zoo, backend):
        policy = zoo.policy(backend, "qwen3-tied")
        _, first = weigh_preferences(policy, PAIRS, BETA)
        assert first["loss"] == pytest.approx(np.log(2)) and first["margin"] == 0
        for _ in range(15):
            weighted, _ = weigh_preferences(policy, PAIRS, BETA)
            policy.forward_backward(weighted, cross_entropy)
            policy.optim_step(1e-2, 1.0)
        _, last = weigh_preferences(policy, PAIRS, BETA)
        assert last["correct"] == 1 and last["loss"] < 0.3 and last["margin"] > 3


@NO_MLX
def test_both_backends_agree(zoo):
    (a, told_a), (b, told_b) = (
        dpo_gradient(zoo.policy(backend, "qwen3-untied")) for backend in ("torch", "mlx")
    )
    assert distance(a, b) < 1e-4
    assert told_a == pytest.approx(told_b, abs=1e-5)


values = st.floats(-1e3, 1e3)


@given(values, values, st.floats(1e-3, 10))
def test_the_pull_is_the_derivative_and_never_overflows(chosen, rejected, beta):
    loss, pull = dpo(np.array([chosen]), np.array([rejected]), beta)
    assert np.isfinite(loss).all() and loss[0] >= 0 and 0 <= pull[0] <= beta
    swapped, push = dpo(np.array([rejected]), np.array([chosen]), beta)
    assert pull[0] + push[0] == pytest.approx(beta)  # σ(x) + σ(−x) = 1
    assert swapped[0] - loss[0] == pytest.approx(beta * (chosen - rejected), abs=1e-6)
    h = 1e-4 / beta
    up, down = (dpo(np.array([chosen + s * h]), np.array([rejected]), beta)[0][0] for s in (1, -1))
    assert (down - up) / (2 * h) == pytest.approx(pull[0], rel=1e-3, abs=1e-5 * beta)
