"""Sampling as both backends do it: streams of random numbers, chunks by memory, out of memory."""

from __future__ import annotations

import gc
import importlib.util
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import random_batch, write_model

from miniact import UserError
from miniact.backends.held import slices
from miniact.backends.memory import ran_out_of_memory, until_it_fits
from miniact.backends.protocol import load_policy
from miniact.backends.sampling import Request, Room, chunks, uniforms
from miniact.config.sections import ModelConfig
from miniact.method.losses import cross_entropy

HAS_MLX = importlib.util.find_spec("mlx_lm") is not None
NO_MLX = pytest.mark.skipif(not HAS_MLX, reason="mlx is not installed: pip install 'miniact[mlx]'")
BACKENDS = pytest.mark.parametrize("backend", ["torch", pytest.param("mlx", marks=NO_MLX)])

PROMPTS = [tuple(range(5, 5 + n)) for n in (17, 3, 30, 9, 9, 24)]
GROUPS = random_batch([5, 9, 3], [[3, 1, 4], [6, 2], [5]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    return write_model(tmp_path_factory.mktemp("llama"), "llama-untied", tokenizer)


def load(folder: Path, backend: str, **options: Any) -> Any:
    config = ModelConfig(path=str(folder), backend=backend, device="cpu", rank=4, **options)
    policy: Any = load_policy(config, seed=0)
    policy.ends = tuple(range(0, 256, 9))  # so that answers end at many different steps
    return policy


def tokens(samples: list[list[Any]]) -> list[list[tuple[int, ...]]]:
    return [[s.tokens for s in answers] for answers in samples]


# ---- what is drawn -------------------------------------------------------------------------------


@BACKENDS
def test_samples_depend_neither_on_budgets_nor_on_memory(folder, backend):
    policy = load(folder, backend, max_tokens_per_batch=4000)
    expected = policy.sample(PROMPTS, 4, 20, 1.0, seed=3)
    assert len({len(s.tokens) for answers in expected for s in answers}) > 4
    for options in ({"max_tokens_per_batch": 40}, {"sample_memory": 2e-4}, {"sample_memory": 1e-9}):
        other = load(folder, backend, **options)
        again = other.sample(PROMPTS, 4, 20, 1.0, seed=3)
        assert tokens(again) == tokens(expected)
        for a, b in zip((s for x in again for s in x), (s for x in expected for s in x)):
            assert np.allclose(a.logps, b.logps, atol=1e-4)


@BACKENDS
def test_an_answer_is_the_same_whatever_is_sampled_beside_it(folder, backend):
    policy = load(folder, backend)
    together = policy.sample(PROMPTS, 5, 20, 1.0, seed=8)
    assert tokens(policy.sample(PROMPTS[:1], 5, 20, 1.0, seed=8)) == tokens(together)[:1]
    assert tokens(policy.sample(PROMPTS, 2, 20, 1.0, seed=8)) == [a[:2] for a in tokens(together)]
    shorter = policy.sample(PROMPTS, 5, 7, 1.0, seed=8)
    assert tokens(shorter) == [[t[:7] for t in a] for a in tokens(together)]
    assert tokens(policy.sample(PROMPTS, 5, 20, 1.0, seed=9)) != tokens(together)


@BACKENDS
def test_equal_prompts_get_answers_of_their_own(folder, backend):
    first, second = tokens(load(folder, backend).sample([PROMPTS[0]] * 2, 6, 20, 1.0, seed=0))
    assert len({*first, *second}) > 9


@NO_MLX
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_both_backends_draw_the_same_tokens(folder, temperature, tmp_path):
    torch, mlx = load(folder, "torch"), load(folder, "mlx")
    torch.save_adapter(tmp_path)
    mlx.load_adapter(tmp_path)
    a, b = (p.sample(PROMPTS, 6, 20, temperature, seed=5) for p in (torch, mlx))
    assert tokens(a) == tokens(b)


@settings(max_examples=20)
@given(
    st.integers(0, 2**40),
    st.lists(st.integers(0, 300), min_size=1, max_size=4, unique=True),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_every_answer_has_a_stream_of_its_own(seed, prompts, n, size):
    request = Request([()] * 301, 9, size, 1.0, seed)
    u_RC = uniforms(request, (prompts, range(n)))
    assert u_RC.shape == (len(prompts) * n, size) and u_RC.dtype == np.float32
    assert (u_RC >= 0).all() and (u_RC < 1).all()
    alone = uniforms(request, (prompts[-1:], range(n - 1, n)))
    assert (alone[0] == u_RC[-1]).all()
    assert len(np.unique(u_RC)) == u_RC.size
    longer = uniforms(Request([()], 9, size + 3, 1.0, seed), (prompts, range(n)))
    assert (longer[:, :size] == u_RC).all()


# ---- what goes together --------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    n=st.integers(1, 9),
    C=st.integers(1, 20),
    limit=st.integers(1, 4000),
    kind=st.tuples(st.booleans(), st.sampled_from([0, 40]), st.booleans()),
)
def test_chunks_hold_every_answer_once_and_fit(lengths, n, C, limit, kind):
    shared, prefill, one_length = kind
    request = Request([(1,) * length for length in lengths], n, C, 1.0, 0)
    room = Room(limit, token=2, row=3, shared=shared, prefill=prefill, one_length=one_length)
    seen = []
    for part, answers in chunks(request, room, range(len(lengths))):
        seen += [(i, a) for i in part for a in answers]
        longest, rows = max(lengths[i] for i in part), len(part) * len(answers)
        kept = longest * len(part) if shared else longest * rows
        assert rows == 1 or 2 * (kept + rows * C) + 3 * rows <= limit
        assert not prefill or len(part) == 1 or len(part) * longest <= prefill
        assert not one_length or len({lengths[i] for i in part}) == 1
    assert sorted(seen) == [(i, a) for i in range(len(lengths)) for a in range(n)]


@given(st.lists(st.integers(1, 30), min_size=1), st.integers(1, 100))
def test_slices_hold_no_more_than_they_may(lengths, most):
    parts = [lengths[part] for part in slices(lengths, most)]
    assert [length for part in parts for length in part] == lengths
    assert all(len(part) == 1 or len(part) * max(part) <= most for part in parts)


def test_rows_in_flight_follow_the_memory_and_not_the_training_budget(folder, monkeypatch):
    """With the budget of the 8B configs, where two groups of 8 answers did not fit: 64 rows."""
    from miniact.backends.torch import sample as torch_sample

    policy = load(folder, "torch", max_tokens_per_batch=40)
    rows, passes = [], []
    draw = torch_sample.draw
    monkeypatch.setattr(
        torch_sample, "draw", lambda head, hidden_RD, *a: rows.append(len(hidden_RD))
        or draw(head, hidden_RD, *a),
    )  # fmt: skip
    run = torch_sample.SharedKeys._run
    monkeypatch.setattr(
        torch_sample.SharedKeys, "_run",
        lambda self, token_RL, *a: passes.append(token_RL.shape) or run(self, token_RL, *a),
    )  # fmt: skip
    policy.sample([(7,) * 15] * 8, 8, 10, 1.0, seed=0)
    assert rows[0] == 64
    prompts = [B * L for B, L in passes if L > 1]
    assert prompts == [30] * 4  # two prompts of 15 at a time: the pass itself is bounded by it


# ---- out of memory -------------------------------------------------------------------------------

ERRORS = [
    MemoryError(),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.91 GB)"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[metal::malloc] Attempting to allocate 90 bytes which is greater than"),
    RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008:…)"),
]


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_every_library_s_way_to_say_it_is_known(error):
    assert ran_out_of_memory(error)
    assert not ran_out_of_memory(RuntimeError("shape '[2, 3]' is invalid for input of size 5"))


def test_what_the_failed_pass_held_is_gone_before_the_next():
    class Activations:
        def __init__(self) -> None:
            self.itself = self  # a cycle, as a graph and its nodes are

    held: list[Any] = []
    alive: list[bool] = []

    def run() -> str:
        if alive:
            return "done"
        activations = Activations()
        held.append(weakref.ref(activations))
        raise RuntimeError("CUDA out of memory")

    gc.disable()
    try:
        assert until_it_fits(run, lambda: alive.append(held[0]() is not None)) == "done"
    finally:
        gc.enable()
    assert alive == [False]
    with pytest.raises(ZeroDivisionError):
        until_it_fits(lambda: 1 / 0, lambda: None)  # type: ignore[arg-type]


def scarce(policy: Any, name: str, monkeypatch: Any, failures: int, after: bool = True) -> None:
    """policy.name runs out of memory so many times, at its end or at its start."""
    inner, left = getattr(policy, name), [failures]

    def failing(*args: Any, **kwargs: Any) -> Any:
        if left[0] and not after:
            left[0] -= 1
            raise RuntimeError("MPS backend out of memory")
        result = inner(*args, **kwargs)
        if left[0]:
            left[0] -= 1
            raise RuntimeError("MPS backend out of memory")
        return result

    monkeypatch.setattr(policy, name, failing)


@BACKENDS
def test_sampling_goes_on_with_less_memory_and_draws_the_same(folder, backend, monkeypatch, capsys):
    expected = load(folder, backend).sample(PROMPTS, 4, 12, 1.0, seed=2)
    policy = load(folder, backend, max_tokens_per_batch=400)
    scarce(policy, "sample_rows", monkeypatch, failures=3)
    assert tokens(policy.sample(PROMPTS, 4, 12, 1.0, seed=2)) == tokens(expected)
    assert capsys.readouterr().err.count("model.sample_memory → ") == 3
    assert policy.budgets.training == 400  # training has said nothing yet
    scarce(policy, "sample_rows", monkeypatch, failures=99)
    with pytest.raises(UserError, match=r"^out of memory while sampling a single answer; lower"):
        policy.sample(PROMPTS, 4, 12, 1.0, seed=2)


@BACKENDS
def test_out_of_memory_between_two_parts_of_a_prompt_s_answers(folder, backend, monkeypatch):
    policy = load(folder, backend, sample_memory=3e-5)  # two answers at most
    expected = policy.sample(PROMPTS[:1], 9, 12, 1.0, seed=2)
    inner, calls = policy.sample_rows, [0]

    def failing(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise MemoryError
        return inner(*args)

    monkeypatch.setattr(policy, "sample_rows", failing)
    assert tokens(policy.sample(PROMPTS[:1], 9, 12, 1.0, seed=2)) == tokens(expected)
    assert calls[0] > 6


@BACKENDS
def test_training_goes_on_with_smaller_passes_and_the_same_gradient(
    folder, backend, monkeypatch, capsys
):
    honest = load(folder, backend, max_tokens_per_batch=64)
    policy = load(folder, backend, max_tokens_per_batch=64)
    before = policy.budgets.sampling
    for each in (honest, policy):
        each.forward_backward(GROUPS[:1], cross_entropy)  # gradients that must survive
    scarce(policy, "_forward_backward", monkeypatch, failures=2)
    loss = policy.forward_backward(GROUPS, cross_entropy)["loss"]
    assert loss == pytest.approx(honest.forward_backward(GROUPS, cross_entropy)["loss"], rel=1e-5)
    assert policy.optim_step(0.0, 1.0) == pytest.approx(honest.optim_step(0.0, 1.0), rel=1e-5)
    assert policy.budgets.training == 16 and policy.budgets.sampling == before
    assert "model.max_tokens_per_batch → 16" in capsys.readouterr().err
    scarce(policy, "_forward_backward", monkeypatch, failures=99)
    with pytest.raises(UserError, match=r"^out of memory in a pass of 15 tokens.*checkpointing"):
        policy.forward_backward(GROUPS, cross_entropy)
    assert policy.budgets.training == 15


@BACKENDS
def test_scoring_goes_on_with_smaller_passes(folder, backend, monkeypatch):
    policy = load(folder, backend, max_tokens_per_batch=64)
    expected = policy.logprobs(GROUPS)
    scarce(policy, "_logp_N", monkeypatch, failures=1, after=False)
    for a, b in zip(policy.logprobs(GROUPS), expected):
        assert all(np.allclose(x, y, atol=1e-5) for x, y in zip(a, b))
    assert policy.budgets.training == 32
