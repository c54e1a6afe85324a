"""Both backends over trees: the log-probs and the gradients of the plain layout, which shares none.

test_layout.py tests what a tree is; here it passes real models, of the style of Llama and of Qwen3.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layout import trajectory
from tiny_models import trees, write_model
from zoo import BACKENDS

from miniact.backends.layout import layouts
from miniact.backends.protocol import load_policy
from miniact.config.sections import ModelConfig
from miniact.method.grpo import weigh
from miniact.method.losses import GRPOLoss

LOSS = GRPOLoss(0.2, 0.3, beta=0.1)
STYLES = ("llama-tied", "qwen3-untied")
EACH = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(scope="module")
def load(tmp_path_factory, tokenizer):
    """A policy whose adapter is not what it starts with: B = 0 would hide mistakes in A."""

    @cache
    def policy(backend: str, style: str, checkpointing: bool = False) -> Any:
        folder = write_model(tmp_path_factory.mktemp("tree") / style, style, tokenizer)
        model = ModelConfig(path=str(folder), backend=backend, device="cpu", rank=4,
                            gradient_checkpointing=checkpointing)  # fmt: skip
        loaded = load_policy(model, seed=0)
        loaded.disturbed(seed=3).__enter__()
        return loaded

    return policy


def gradient(policy: Any, groups: list) -> np.ndarray:
    """Every trainable gradient in one vector, and none left behind."""
    policy.forward_backward(groups, LOSS)
    if hasattr(policy, "gradients"):
        from mlx.utils import tree_flatten

        flat = [np.array(g, np.float64).ravel() for _, g in sorted(tree_flatten(policy.gradients))]
        policy.gradients = None
        return np.concatenate(flat)
    flat = [p.grad.numpy().ravel().astype(np.float64) for p in policy.trainable.values()]
    policy.optimizer.zero_grad(set_to_none=True)
    return np.concatenate(flat)


def compare(policy: Any, groups: list, budget: int = 4096) -> None:
    """Log-probs to 1e-5, gradients to 1e-5 relative; the plain layout is the reference."""
    policy.budgets.training = budget
    results = []
    for policy.shares_prompts in (False, True):
        logps = np.concatenate([x for each in policy.logprobs(groups) for x in each])
        results.append((logps, gradient(policy, groups)))
    (plain, plain_gradient), (shared, shared_gradient) = results
    assert policy.shares_prompts  # it was not given up on the way
    assert np.abs(shared - plain).max() < 1e-5
    norm = np.linalg.norm(plain_gradient)
    assert norm > 1e-4 and np.linalg.norm(shared_gradient - plain_gradient) < 1e-5 * norm


@EACH
@settings(max_examples=20)
@given(groups=trees(), style=st.sampled_from(STYLES), budget=st.sampled_from([112, 4096]))
def test_a_tree_is_computed_as_the_plain_layout_is(load, backend, groups, style, budget):
    compare(load(backend, style), groups, budget)


@EACH
@pytest.mark.parametrize("style", STYLES)
def test_a_trajectory_of_several_blocks_under_checkpointing(load, backend, style):
    """Two trajectories whose stems hang on what both begin with; longer than a block."""
    groups = weigh(trajectory(4, turn=50) + trajectory(3, turn=70, question=0), "grpo", 9)
    compare(load(backend, style, checkpointing=True), groups)


@EACH
def test_what_several_micro_batches_compute_is_counted(load, backend):
    groups, policy = weigh(trajectory(6), "grpo", 9), load(backend, STYLES[0])
    for policy.budgets.training in (4096, len(groups[-1].prompt) + 9):
        policy.shares_prompts = True
        parts = list(layouts(groups, policy.budgets.training))
        repeated = sum(part.size for part in parts) - next(layouts(groups, 4096)).size
        assert policy.forward_backward(groups, LOSS)["repeated_tokens"] == repeated
        gradient(policy, groups)
    assert repeated > 0


@EACH
def test_a_trajectory_of_one_state(load, backend):
    compare(load(backend, STYLES[0]), weigh(trajectory(1, answers=1), "grpo", 9))
