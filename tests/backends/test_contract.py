"""The contract of every backend: what `policy.Policy` promises, and that backends agree on it.

The first half holds for each backend alone, the second half for both together: one adapter, one
batch, the same numbers. Nothing here is quantised and all is float32, so only rounding differs.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import KINDS, batches, random_batch
from zoo import BACKENDS, NO_MLX, Zoo, distance, gradients, train

from miniact import UserError
from miniact.backends.protocol import Policy, load_policy
from miniact.config.sections import ModelConfig
from miniact.method.losses import GRPOLoss, cross_entropy
from miniact.types import Completion, Group, Sample

LOSSES = {"cross_entropy": cross_entropy, "grpo": GRPOLoss(0.2, 0.28, beta=0.05)}
BATCH = random_batch([5, 9, 3, 1], [[3, 1, 4], [6, 2], [5], [1, 2]])
PROMPTS = [g.prompt for g in BATCH]
few = settings(max_examples=6)


def gradient_of(policy: Policy, groups: list[Group], loss: Any) -> dict[str, np.ndarray]:
    policy.forward_backward(groups, loss)
    found = {name: g.copy() for name, g in gradients(policy).items()}
    policy.optim_step(0.0, 1.0)
    return found


def weights(policy: Policy, folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    folder.mkdir(parents=True, exist_ok=True)
    policy.save_adapter(folder)
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def largest(a: list[list[np.ndarray]], b: list[list[np.ndarray]]) -> float:
    assert [[len(x) for x in g] for g in a] == [[len(x) for x in g] for g in b]
    return max(float(np.abs(x - y).max()) for g, h in zip(a, b) for x, y in zip(g, h))


def as_groups(prompts: list[tuple[int, ...]], samples: list[list[Sample]]) -> list[Group]:
    return [
        Group(p, tuple(Completion(s.tokens) for s in answers))
        for p, answers in zip(prompts, samples)
    ]


# ---- each backend alone ------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_no_groups_there_are_no_logprobs(backend):
    """As the first thing that is asked of a policy: imitation may find no thought to score."""
    policy = load_policy(ModelConfig(backend=backend), 0)
    assert policy.logprobs([]) == []


@pytest.mark.parametrize("backend", BACKENDS)
class TestSampling:
    @few
    @given(
        lengths=st.lists(st.integers(1, 14), min_size=1, max_size=4),
        n=st.integers(1, 3),
        temperature=st.sampled_from([0.6, 1.0, 1.7]),
        seed=st.integers(0, 99),
    )
    def test_logps_are_those_of_the_tokens_that_were_sampled(
        self, zoo, backend, lengths, n, temperature, seed
    ):
        policy = zoo.policy(backend, "qwen3-tied")
        prompts = [g.prompt for g in random_batch(lengths, [[1]] * len(lengths), seed)]
        samples = policy.sample(prompts, n, 7, temperature, seed)
        scored = policy.logprobs(as_groups(prompts, samples), temperature)
        told = [[np.array(s.logps) for s in answers] for answers in samples]
        assert largest(told, scored) < 1e-4

    def test_stops_at_an_end_token_or_at_the_limit(self, zoo, backend):
        policy = zoo.policy(backend)
        ends = {policy.tokenizer.eos_token_id, *range(40)}
        samples = [s for a in policy.sample(PROMPTS, 8, 9, 1.5, 3) for s in a]
        for s in samples:
            assert len(s.tokens) == len(s.logps) <= 9
            assert not ends & set(s.tokens[:-1])
            assert s.stop == ("end" if s.tokens[-1] in ends else "length")
            assert s.stop == "end" or len(s.tokens) == 9
            shown = s.tokens[:-1] if s.stop == "end" else s.tokens
            assert s.text == policy.tokenizer.decode(shown)
        assert {s.stop for s in samples} == {"end", "length"}
        assert len({len(s.tokens) for s in samples}) > 4  # rows left the batch at many steps

    def test_gives_n_answers_and_repeats_them_for_the_same_seed(self, zoo, backend):
        policy = zoo.policy(backend)
        first = policy.sample(PROMPTS, 3, 6, 1.0, seed=11)
        assert [len(a) for a in first] == [3] * len(PROMPTS)
        assert policy.sample(PROMPTS, 3, 6, 1.0, seed=11) == first
        assert policy.sample(PROMPTS, 3, 6, 1.0, seed=12) != first
        assert len({s.tokens for s in first[0]}) > 1

    @few
    @given(lengths=st.lists(st.integers(1, 20), min_size=2, max_size=5), seed=st.integers(0, 99))
    def test_a_batch_of_prompts_is_as_good_as_one_at_a_time(self, zoo, backend, lengths, seed):
        policy = zoo.policy(backend, "qwen3-untied", max_tokens_per_batch=400)
        prompts = [g.prompt for g in random_batch(lengths, [[1]] * len(lengths), seed)]
        together = policy.sample(prompts, 2, 6, 0.0, 0)
        alone = [policy.sample([p], 1, 6, 0.0, 0)[0][0] for p in prompts]
        for (one, two), single in zip(together, alone):
            assert one.tokens == two.tokens == single.tokens
            assert np.allclose(one.logps, single.logps, atol=1e-4)

    def test_samples_follow_the_probabilities(self, zoo, backend):
        """One-token answers: how often each comes, against π."""
        policy = zoo.policy(backend, max_tokens_per_batch=10**6)
        n = 4000
        (answers,) = policy.sample([PROMPTS[0]], n, 1, 0.5, 0)
        everything = Group(PROMPTS[0], tuple(Completion((t,)) for t in range(256)))
        (logps,) = policy.logprobs([everything], 0.5)
        p = np.exp(np.concatenate(logps))
        counts = np.bincount([s.tokens[0] for s in answers], minlength=260)[:256]
        error = (counts - n * p) / np.sqrt(n * p + 1)
        assert np.abs(error).max() < 5

    def test_every_draw_is_a_new_one(self, zoo, backend):
        """At a high temperature all tokens are alike, so one seldom follows itself."""
        policy = zoo.policy(backend)
        answers = [policy.sample([PROMPTS[0]], 1, 8, 100.0, seed)[0][0] for seed in range(25)]
        steps = [pair for s in answers for pair in zip(s.tokens, s.tokens[1:])]
        assert len(steps) > 50
        assert np.mean([a == b for a, b in steps]) < 0.1  # by chance 1 / 260

    def test_sampling_after_training_uses_the_trained_weights(self, zoo, backend):
        policy = zoo.policy(backend)
        target = (70, 71, 72, policy.tokenizer.eos_token_id)
        before = policy.sample([PROMPTS[1]], 1, 6, 0.0, 0)[0][0]
        for _ in range(25):
            policy.forward_backward([Group(PROMPTS[1], (Completion(target),))], cross_entropy)
            policy.optim_step(0.02, 1.0)
        after = policy.sample([PROMPTS[1]], 1, 6, 0.0, 0)[0][0]
        assert before.tokens != after.tokens == target
        assert after.stop == "end"


@pytest.mark.parametrize("backend", BACKENDS)
class TestScoring:
    @few
    @given(groups=batches())
    def test_sharing_a_prompt_changes_no_logprob(self, zoo, backend, groups):
        policy = zoo.policy(backend, "qwen3-tied")
        single = [Group(g.prompt, (c,)) for g in groups for c in g.completions]
        alone = [policy.logprobs([g])[0][0] for g in single]
        assert largest([alone], [[x for g in policy.logprobs(groups) for x in g]]) < 1e-4

    @few
    @given(groups=batches(), at=st.integers(0, 5))
    def test_no_token_sees_what_comes_after_it(self, zoo, backend, groups, at):
        policy = zoo.policy(backend)
        before = policy.logprobs(groups)[0][0]
        answer = groups[0].completions[0].tokens
        at = min(at, len(answer) - 1)
        changed = (*answer[:at], *((t + 1) % 256 for t in answer[at:]))
        others = (Completion((9,)) for _ in groups[0].completions[1:])
        first = Group(groups[0].prompt, (Completion(changed), *others))
        after = policy.logprobs([first, *random_batch([3], [[2]], seed=5)])[0][0]
        assert np.allclose(before[:at], after[:at], atol=1e-4)
        assert abs(before[at] - after[at]) > 1e-4  # another target

    def test_every_token_sees_the_prompt(self, zoo, backend):
        policy = zoo.policy(backend)
        (group,) = random_batch([6], [[4, 2]])
        other = replace(group, prompt=((group.prompt[0] + 1) % 256, *group.prompt[1:]))
        for a, b in zip(policy.logprobs([group])[0], policy.logprobs([other])[0]):
            assert (np.abs(a - b) > 1e-5).all()

    def test_temperature_divides_the_logits(self, zoo, backend):
        policy = zoo.policy(backend)
        everything = Group(PROMPTS[0], tuple(Completion((t,)) for t in range(260)))
        (at_1,), (at_2,) = policy.logprobs([everything]), policy.logprobs([everything], 2.0)
        half = np.concatenate(at_1) / 2
        expected = half - np.log(np.exp(half).sum())
        assert np.allclose(np.concatenate(at_2), expected, atol=1e-4)
        assert np.isclose(np.exp(np.concatenate(at_1)).sum(), 1, atol=1e-4)

    def test_the_reference_stays_while_the_policy_learns(self, zoo, backend):
        policy = zoo.policy(backend)
        before = policy.logprobs(BATCH)
        train(policy, cross_entropy, 2)
        policy.forward_backward(BATCH, cross_entropy)  # gradients survive a look at the reference
        assert largest(policy.logprobs(BATCH, reference=True), before) == 0
        assert largest(policy.logprobs(BATCH), before) > 1e-3
        assert policy.optim_step(0.0, 1.0) > 0
        policy.freeze_reference()  # the next stage's reference is where that stage starts
        assert largest(policy.logprobs(BATCH, reference=True), policy.logprobs(BATCH)) == 0


@pytest.mark.parametrize("backend", BACKENDS)
class TestTraining:
    @pytest.mark.parametrize("name", LOSSES)
    def test_micro_batches_padding_and_order_change_nothing(self, zoo, backend, name):
        loss = LOSSES[name]
        whole = gradient_of(zoo.policy(backend, max_tokens_per_batch=4096), BATCH, loss)
        policy = zoo.policy(backend)
        single = [Group(g.prompt, (c,)) for g in BATCH for c in g.completions]
        for groups in (BATCH, BATCH[::-1], single):
            assert distance(gradient_of(policy, groups, loss), whole) < 1e-4
        for group in single:  # one after the other: gradients gather
            metrics = policy.forward_backward([group], loss)
        assert distance(gradients(policy), whole) < 1e-4
        assert metrics["loss"] != 0

    def test_the_loss_is_that_of_every_token_the_end_token_too(self, zoo, backend):
        policy = zoo.policy(backend)
        end = policy.tokenizer.eos_token_id
        groups = [Group(PROMPTS[0], (Completion((80, 81, end), weight=0.5), Completion((82,))))]
        a, b = policy.logprobs(groups)[0]
        metrics = policy.forward_backward(groups, cross_entropy)
        assert metrics["loss"] == pytest.approx(-(0.5 * a.sum() + b.sum()), rel=1e-5)
        policy.optim_step(1e-3, 1.0)
        assert policy.logprobs(groups)[0][0][-1] > a[-1]  # the end token has become likelier

    def test_on_policy_the_gradient_is_that_of_pi_old_known_exactly(self, zoo, backend):
        """The sampler's log-probs, here far off, count for nothing but the metric."""
        policy = zoo.policy(backend)
        exact = [g.having(old_logps=old) for g, old in zip(BATCH, policy.logprobs(BATCH))]
        expected = gradient_of(policy, exact, GRPOLoss(0.2, 0.28))
        loss = GRPOLoss(0.01, 0.01, on_policy=True)
        assert distance(gradient_of(policy, BATCH, loss), expected) < 1e-4
        metrics = policy.forward_backward(BATCH, loss)
        assert metrics["clip_fraction"] == 0 and metrics["sampler_gap"] > 0.1

    @pytest.mark.parametrize("option", ["plain", "checkpointing", "small chunks"])
    def test_the_gradient_is_the_slope(self, zoo, backend, option, monkeypatch):
        """∂L/∂w · d against (L(w + h·d) − L(w − h·d)) / 2h, in a random direction d."""
        if option == "small chunks":  # the output layer in many pieces
            module = importlib.import_module(f"miniact.backends.{backend}.head")
            monkeypatch.setattr(module, "CHUNK", 2)
        checkpointing = {"gradient_checkpointing": True} if option == "checkpointing" else {}
        policy = zoo.policy(backend, "qwen3-tied", **checkpointing)
        direct = zoo.policy(backend, "qwen3-tied", max_tokens_per_batch=4096)
        for loss in LOSSES.values():
            gradient = gradient_of(policy, BATCH, loss)
            if option == "plain":
                assert slope_error(direct, loss, gradient, zoo) < 0.02
            else:
                monkeypatch.undo()
                assert distance(gradient, gradient_of(direct, BATCH, loss)) < 1e-4

    def test_adamw_is_the_textbook_one(self, zoo, backend, tmp_path):
        """m, v, bias correction, no decay, ε outside the root; global norm clipping."""
        policy = zoo.policy(backend)
        w = {n: x.astype(np.float64) for n, x in weights(policy, tmp_path / "0").items()}
        m = {n: np.zeros_like(x) for n, x in w.items()}
        v = {n: np.zeros_like(x) for n, x in w.items()}
        for t, lr in enumerate([0.01, 0.003, 0.02], start=1):
            policy.forward_backward(BATCH, cross_entropy)
            g = {n: x.astype(np.float64) for n, x in gradients(policy).items()}
            norm = np.sqrt(sum((x**2).sum() for x in g.values()))
            limit = norm / 3 if t < 3 else norm * 3
            assert policy.optim_step(lr, limit) == pytest.approx(norm, rel=1e-5)
            for n in w:
                x = g[n] * min(1, limit / (norm + 1e-6))
                m[n] = 0.9 * m[n] + 0.1 * x
                v[n] = 0.999 * v[n] + 0.001 * x**2
                step = m[n] / (1 - 0.9**t) / (np.sqrt(v[n] / (1 - 0.999**t)) + 1e-8)
                w[n] = w[n] - lr * step
        assert distance(weights(policy, tmp_path / "3"), w) < 1e-5

    @pytest.mark.parametrize("adapter", ["lora", "full"])
    def test_save_load_and_the_same_next_step_to_the_bit(self, zoo, backend, adapter, tmp_path):
        loss = LOSSES["grpo"]
        policy = zoo.policy(backend, adapter=adapter)
        train(policy, loss, 3)
        policy.save_adapter(tmp_path / "saved")
        policy.save_optimizer(tmp_path / "optimizer.safetensors")
        metrics = train(policy, loss, 2)
        samples = policy.sample(PROMPTS, 2, 5, 1.0, 4)
        other = zoo.load(backend, "llama-tied", seed=99, adapter=adapter)
        other.load_adapter(tmp_path / "saved")
        other.load_optimizer(tmp_path / "optimizer.safetensors")
        assert train(other, loss, 2) == metrics
        assert other.sample(PROMPTS, 2, 5, 1.0, 4) == samples
        weights(policy, tmp_path / "a")
        weights(other, tmp_path / "b")
        (file,) = (tmp_path / "a").glob("*.safetensors")
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()

    def test_reset_optimizer_forgets(self, zoo, backend, tmp_path):
        policy = zoo.policy(backend)
        train(policy, cross_entropy, 1)
        policy.load_adapter(zoo.start("llama-tied"))
        policy.reset_optimizer()
        train(policy, cross_entropy, 1)
        again = weights(policy, tmp_path / "a")
        train(zoo.policy(backend), cross_entropy, 1)
        assert distance(weights(policy, tmp_path / "b"), again) == 0

    def test_a_fresh_adapter_changes_nothing_and_follows_its_seed(self, zoo, backend, tmp_path):
        a, b, c = (
            weights(zoo.load(backend, "llama-tied", seed=s), tmp_path / str(i))
            for i, s in enumerate([5, 5, 6])
        )
        assert distance({n: x for n, x in a.items() if "lora_A" in n}, only_a(b)) == 0
        assert distance(only_a(a), only_a(c)) > 0.1
        assert all((x == 0).all() for n, x in a.items() if "lora_B" in n)
        assert not any("lm_head" in n or "embed" in n for n in a)
        for x in only_a(a).values():  # kaiming_uniform(a=√5): U(−1/√in, 1/√in)
            bound = x.shape[1] ** -0.5
            assert 0.8 * bound < np.abs(x).max() <= bound
            assert x.std() == pytest.approx(bound / 3**0.5, rel=0.25)


def only_a(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n: x for n, x in weights.items() if "lora_A" in n}


def slope_error(policy: Policy, loss: Any, gradient: dict[str, np.ndarray], zoo: Zoo) -> float:
    """How far gradient·d is from the measured slope, relative to |gradient|·|d|."""
    from safetensors.numpy import load_file, save_file

    start, moved = zoo.start("qwen3-tied"), zoo.root / "moved"
    w = load_file(start / "adapter_model.safetensors")
    d = {n: g / np.linalg.norm(g) for n, g in gradient.items()}
    moved.mkdir(exist_ok=True)
    (moved / "adapter_config.json").write_bytes((start / "adapter_config.json").read_bytes())
    h, values = 1e-3, []
    for sign in (1, -1):
        shifted = {n: (w[n] + sign * h * d[n]).astype(np.float32) for n in w}
        save_file(shifted, moved / "adapter_model.safetensors")
        policy.load_adapter(moved)
        values.append(policy.forward_backward(BATCH, loss)["loss"])
        policy.optim_step(0.0, 1.0)
    policy.load_adapter(start)
    expected = sum(float((gradient[n] * d[n]).sum()) for n in w)
    return abs((values[0] - values[1]) / (2 * h) - expected) / expected


@pytest.mark.parametrize("backend", BACKENDS)
class TestBadAdapters:
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda f: (f / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
            (lambda f: (f / "adapter_model.safetensors").write_bytes(b"junk"), "no safetensors"),
            (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json"),
            (lambda f: edit(f, lora_alpha=99), "alpha/rank 99/4"),
            (lambda f: edit(f, use_rslora=True), "use_rslora"),
            (lambda f: rename(f, "q_proj", "query"), "which this model lacks"),
            (lambda f: rename(f, "q_proj", None), "lacks .*q_proj"),
        ],
        ids=["no file", "junk", "no config", "other scale", "rslora", "other names", "too few"],
    )
    def test_one_clear_line(self, zoo, backend, damage, message, tmp_path):
        policy = zoo.policy(backend)
        policy.save_adapter(tmp_path)
        damage(tmp_path)
        with pytest.raises(UserError, match=message) as caught:
            policy.load_adapter(tmp_path)
        assert "\n" not in str(caught.value)

    def test_adapter_of_another_rank(self, zoo, backend, tmp_path):
        zoo.load(backend, "llama-tied", rank=2, alpha=3).save_adapter(tmp_path)
        with pytest.raises(UserError, match=r"has shape \(2, 96\), expected \(4, 96\)"):
            zoo.policy(backend).load_adapter(tmp_path)


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rename(folder: Path, old: str, new: str | None) -> None:
    from safetensors.numpy import load_file, save_file

    file = folder / "adapter_model.safetensors"
    kept = {n: w for n, w in load_file(file).items() if new or old not in n}
    save_file({n.replace(old, new or old): w for n, w in kept.items()}, file)


# ---- both together -----------------------------------------------------------------------------


@pytest.fixture
def both(zoo: Zoo) -> Callable[..., tuple[Policy, Policy]]:
    return lambda kind, **options: (
        zoo.policy("torch", kind, **options),
        zoo.policy("mlx", kind, **options),
    )


@NO_MLX
@pytest.mark.parametrize("kind", KINDS)
class TestAgreement:
    @few
    @given(groups=batches(), temperature=st.sampled_from([1.0, 0.6]))
    def test_logprobs(self, zoo, kind, groups, temperature):
        torch, mlx = zoo.policy("torch", kind), zoo.policy("mlx", kind)
        a, b = torch.logprobs(groups, temperature), mlx.logprobs(groups, temperature)
        assert largest(a, b) < 1e-4

    @pytest.mark.parametrize("adapter", ["lora", "full"])
    @pytest.mark.parametrize("name", LOSSES)
    def test_losses_and_gradients(self, both, kind, name, adapter):
        torch, mlx = both(kind, adapter=adapter)
        a, b = (p.forward_backward(BATCH, LOSSES[name], 0.8) for p in (torch, mlx))
        assert a == pytest.approx(b, rel=1e-4)
        assert distance(gradients(torch), gradients(mlx)) < 1e-4

    def test_greedy_samples_are_identical(self, both, kind):
        torch, mlx = both(kind)
        prompts = [g.prompt for g in random_batch([1, 7, 3, 12, 12, 20], [[1]] * 6, seed=8)]
        a, b = (p.sample(prompts, 2, 16, 0.0, 0) for p in (torch, mlx))
        assert [[s.tokens for s in x] for x in a] == [[s.tokens for s in x] for x in b]
        assert [[s.stop for s in x] for x in a] == [[s.stop for s in x] for x in b]
        told = [[[np.array(s.logps) for s in x] for x in y] for y in (a, b)]
        assert largest(*told) < 1e-4


@NO_MLX
class TestSameResults:
    @pytest.mark.parametrize("name", LOSSES)
    @pytest.mark.parametrize("kind", ["llama-untied", "qwen3-tied"])
    def test_weights_after_30_steps(self, both, kind, name, tmp_path):
        torch, mlx = both(kind)
        start = weights(torch, tmp_path / "start")
        log_a, log_b = (train(p, LOSSES[name], 30) for p in (torch, mlx))
        a, b = weights(torch, tmp_path / "a"), weights(mlx, tmp_path / "b")
        assert distance(a, b) < 1e-3
        assert distance(a, start) > 0.05  # they did move
        for x, y in zip(log_a, log_b):
            assert x == pytest.approx(y, rel=5e-3, abs=1e-4)

    def test_all_weights_after_10_steps(self, both, tmp_path):
        torch, mlx = both("qwen3-untied", adapter="full")
        for policy in (torch, mlx):
            train(policy, cross_entropy, 10, lr=1e-3)
        assert distance(weights(torch, tmp_path / "a"), weights(mlx, tmp_path / "b")) < 1e-3


@NO_MLX
class TestOneAdapterFormat:
    @pytest.mark.parametrize(("first", "second"), [("torch", "mlx"), ("mlx", "torch")])
    @pytest.mark.parametrize("kind", ["llama-tied", "qwen3-untied"])
    @pytest.mark.parametrize("adapter", ["lora", "full"])
    def test_what_one_saves_the_other_loads(self, zoo, first, second, kind, adapter, tmp_path):
        teacher = zoo.policy(first, kind, adapter=adapter)
        train(teacher, cross_entropy, 2)
        teacher.save_adapter(tmp_path)
        pupil = zoo.policy(second, kind, adapter=adapter)
        assert largest(pupil.logprobs(BATCH), teacher.logprobs(BATCH)) > 1e-2
        pupil.load_adapter(tmp_path)
        assert largest(pupil.logprobs(BATCH), teacher.logprobs(BATCH)) < 1e-4

    def test_mlx_to_peft_to_mlx(self, zoo, tmp_path):
        """PEFT itself loads what MLX trained, with equal logits, and its own copy comes back."""
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        kind = "qwen3-tied"
        policy: Any = zoo.policy("mlx", kind)
        train(policy, cross_entropy, 3)
        policy.save_adapter(tmp_path / "from-mlx")
        tokens = [[1, 50, 99, 200, 7, 8]]
        before = mlx_logits(policy, tokens)
        base = AutoModelForCausalLM.from_pretrained(zoo.model(kind))
        peft = PeftModel.from_pretrained(base, tmp_path / "from-mlx")
        with torch.no_grad():
            theirs = peft(torch.tensor(tokens)).logits.numpy()
        assert np.abs(theirs - before).max() < 1e-4
        peft.save_pretrained(tmp_path / "from-peft")
        back: Any = zoo.load("mlx", kind, seed=7)
        assert np.abs(mlx_logits(back, tokens) - before).max() > 0.1
        back.load_adapter(tmp_path / "from-peft")
        assert (mlx_logits(back, tokens) == before).all()

    def test_an_optimizer_of_the_other_backend_is_refused(self, zoo, tmp_path):
        policies = [zoo.policy("torch"), zoo.policy("mlx")]
        for policy, other in (policies, policies[::-1]):
            train(policy, cross_entropy, 1)
            policy.save_optimizer(tmp_path / "optimizer.safetensors")
            with pytest.raises(UserError, match="finish this stage where it was begun"):
                other.load_optimizer(tmp_path / "optimizer.safetensors")


def mlx_logits(policy: Any, tokens: list[list[int]]) -> np.ndarray:
    import mlx.core as mx

    return np.array(policy.model(mx.array(tokens)))
