"""What only the PyTorch backend has: NF4, the shared layout's gradients, the chunked head."""

from __future__ import annotations

import json
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_layout import trajectory
from tiny_models import batches, random_batch, trees, visible_BLL, write_model

from miniact import UserError
from miniact.backends.layout import layouts
from miniact.backends.protocol import load_policy
from miniact.config.sections import ModelConfig
from miniact.method.grpo import weigh
from miniact.method.losses import GRPOLoss, cross_entropy
from miniact.types import Completion, Group

torch = pytest.importorskip("torch")
from cuda_kernels import ATEN  # noqa: E402

from miniact.backends.torch import kernels, plain  # noqa: E402
from miniact.backends.torch.tree import PackedRow  # noqa: E402

GROUPS = weigh(random_batch([23, 9, 31], [[7, 1, 4], [3, 12], [5, 5, 2, 9]]), "grpo", 12)
LOSS = GRPOLoss(0.2, 0.3, beta=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    return write_model(tmp_path_factory.mktemp("llama"), "llama-tied", tokenizer)


@pytest.fixture(scope="module")
def wide(tmp_path_factory, tokenizer):
    """All rows are a multiple of 64 long, as NF4 on a CPU needs them."""
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    return write_model(tmp_path_factory.mktemp("wide"), "llama-tied", tokenizer, **sizes)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory, tokenizer):
    return write_model(tmp_path_factory.mktemp("qwen"), "qwen3-untied", tokenizer)


def load(folder, **options):
    config = ModelConfig(path=str(folder), backend="torch", device="cpu", rank=4, **options)
    policy = load_policy(config, seed=0)
    torch.manual_seed(5)
    for name, parameter in policy.trainable.items():
        if "lora" in name:  # B = 0 would hide mistakes in A
            torch.nn.init.normal_(parameter, std=0.1)
    return policy


def gradient(policy, groups=GROUPS, loss=LOSS) -> np.ndarray:
    """Every trainable gradient in one vector, and none left behind."""
    policy.forward_backward(groups, loss)
    flat = torch.cat([p.grad.flatten().double() for p in policy.trainable.values()])
    policy.optimizer.zero_grad(set_to_none=True)
    return flat.numpy()


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model", ["folder", "qwen"])
def test_sharing_prompts_keeps_the_gradient(request, model, checkpointing, attention):
    policy = load(request.getfixturevalue(model), gradient_checkpointing=checkpointing)
    shared = gradient(policy)
    assert policy.shares_prompts
    policy.shares_prompts = False
    policy.causal_lm.set_attn_implementation(attention)
    plain = gradient(policy)
    assert np.linalg.norm(plain) > 1e-3
    assert relative(shared, plain) < 1e-5


def test_an_adapter_is_saved_to_the_same_bytes_by_every_process(folder, tmp_path):
    load(folder).save_adapter(tmp_path)
    names = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert len(names) >= 7 and names == sorted(names)  # a set follows PYTHONHASHSEED


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_threads_that_race_do_not_change_a_gradient(wide, adapter):
    groups = random_batch([5, 23], [[9] * 64, [4] * 64])  # 64 first tokens from one hidden state
    policy, threads = load(wide, adapter=adapter), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert len({gradient(policy, groups).tobytes() for _ in range(8)}) == 1
    finally:
        torch.set_num_threads(threads)


def test_the_token_budget_changes_nothing_but_the_memory(wide):
    policy = load(wide)
    whole = gradient(policy)
    policy.budgets.training = 45
    assert sum(1 for _ in layouts(GROUPS, 45)) >= 3
    assert relative(gradient(policy), whole) < 1e-5


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nf4_on_a_cpu_shares_prompts_with_the_same_gradient(wide, checkpointing):
    policy = load(wide, adapter="qlora", gradient_checkpointing=checkpointing)
    for groups in (GROUPS, weigh(trajectory(3), "grpo", 9)):
        policy.shares_prompts = True
        shared = gradient(policy, groups)
        policy.shares_prompts = False
        assert relative(shared, gradient(policy, groups)) < 1e-4


def test_nf4_is_double_quantised_and_only_lora_is_trained(wide):
    policy = load(wide, adapter="qlora")
    layers = [m for m in policy.model.modules() if type(m).__module__.startswith("bitsandbytes")]
    assert len(layers) == 2 * 7  # every linear layer of both blocks; the head stays as it is
    state = layers[0].weight.quant_state
    assert state.quant_type == "nf4" and state.nested
    assert all("lora_" in name for name in policy.trainable)


def test_what_nf4_stores_is_restored(wide):
    """The error of NF4 on normal weights is 9 %; a wrong scale for some blocks makes it 24 %."""
    from bitsandbytes.functional import dequantize_4bit

    plain = dict(load(wide).model.named_modules())
    layers = {n: m for n, m in load(wide, adapter="qlora").model.named_modules()
              if type(m).__name__ == "Linear4bit"}  # fmt: skip
    for name, layer in layers.items():
        exact = plain[name].weight
        restored = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert (restored - exact).norm() < 0.11 * exact.norm(), name


def test_nf4_refuses_rows_that_it_would_restore_wrongly(folder):
    with pytest.raises(UserError, match=r"multiple of 64 weights on a CPU.*down_proj has 96"):
        load(folder, adapter="qlora")


def test_sampling_does_not_spoil_later_gradients_of_nf4(wide):
    """On some CPUs one forward in eval mode repacks 4-bit weights for good."""
    policy = load(wide, adapter="qlora")
    before = gradient(policy)
    policy.sample([(1, 2, 3), (4, 5)], 3, 5, 1.0, seed=0)
    policy.logprobs(GROUPS)
    assert relative(gradient(policy), before) < 1e-6


def test_training_4_bit_lowers_the_loss(wide):
    policy = load(wide, adapter="qlora")
    groups = weigh([Group((1, 2, 3), (Completion((7, 8, 9)),))], "dapo", 0)
    losses = []
    for _ in range(12):
        losses.append(policy.forward_backward(groups, cross_entropy)["loss"])
        policy.optim_step(2e-2, 1.0)
    assert losses[-1] < 0.5 * losses[0]


def test_merging_for_sampling_leaves_the_weights_as_they_were(folder):
    policy = load(folder)
    before = {n: t.clone() for n, t in policy.model.state_dict().items()}
    (samples,) = policy.sample([(1, 2, 3)], 4, 6, 1.0, seed=1)
    after = policy.model.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items())
    assert all(p.requires_grad for p in policy.trainable.values())
    group = Group((1, 2, 3), tuple(Completion(s.tokens) for s in samples))
    for sample, logp in zip(samples, policy.logprobs([group])[0]):
        assert np.abs(np.array(sample.logps) - logp).max() < 1e-4


def test_a_sliding_window_trains_plainly(tmp_path, tokenizer):
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    policy = load(write_model(tmp_path, "qwen3-tied", tokenizer, **window))
    assert not policy.shares_prompts


SINGLE = weigh(random_batch([30, 9, 8], [[5], [4], [6]]), "dapo", 0)  # IL: two share a row


@pytest.mark.parametrize("groups", [GROUPS, SINGLE], ids=["grpo", "il"])
def test_an_architecture_that_cannot_share_is_found_out_and_named(folder, capsys, groups):
    """A model that is deaf to `shared` gives wrong log-probs: noticed on the first batch."""
    policy = load(folder)
    body = policy.causal_lm.get_decoder()
    forward = body.forward

    def deaf(*args, attention_mask=None, shared=None, **kwargs):  # type: ignore[no-untyped-def]
        causal = torch.full((1, 1, 400, 400), torch.finfo(torch.float32).min).triu(1)
        L = kwargs["input_ids"].shape[1]
        return forward(*args, attention_mask=causal[..., :L, :L], **kwargs)

    body.forward = deaf
    shared_then_plain = policy.logprobs(groups)
    assert not policy.shares_prompts
    assert "cannot share a prompt" in capsys.readouterr().err
    body.forward = forward
    policy.shares_prompts = True
    for a, b in zip(shared_then_plain, policy.logprobs(groups)):
        assert all(np.allclose(x, y, atol=1e-5) for x, y in zip(a, b))


def test_the_head_never_sees_a_prompt_or_many_rows_at_once(folder, monkeypatch):
    from miniact.backends.torch import head as torch_head

    monkeypatch.setattr(torch_head, "CHUNK", 4)
    policy = load(folder)
    expected = gradient(policy)
    rows: list[int] = []
    original = torch.Tensor.logsumexp

    def counting(self, *args):  # type: ignore[no-untyped-def]
        rows.append(len(self))
        return original(self, *args)

    monkeypatch.setattr(torch.Tensor, "logsumexp", counting)
    assert relative(gradient(policy), expected) == 0
    completion_tokens = sum(len(c.tokens) for g in GROUPS for c in g.completions)
    assert max(rows) <= 4 and sum(rows) == completion_tokens


def test_the_closed_form_of_a_frozen_head_is_the_gradient(folder):
    policy = load(folder)
    assert policy.head.closed_form
    fast = gradient(policy)
    policy.head.closed_form = False
    assert relative(fast, gradient(policy)) < 1e-5


def test_full_training_needs_no_adapter_and_saves_a_model(folder, tmp_path):
    policy = load(folder, adapter="full")
    assert set(policy.trainable) == {n for n, _ in policy.model.named_parameters()}
    policy.forward_backward(GROUPS, LOSS)
    policy.optim_step(1e-3, 1.0)
    policy.save_adapter(tmp_path / "model")
    again = load(tmp_path / "model", adapter="full")
    for a, b in zip(policy.logprobs(GROUPS), again.logprobs(GROUPS)):
        assert all(np.array_equal(x, y) for x, y in zip(a, b))


ANSWERS = (Completion((1, 2)), Completion((3, 2)))  # one of them hangs by a single token
PAIRS = [Group(tuple(range(first, first + 9)), ANSWERS) for first in (10, 40)]


@pytest.mark.parametrize("name", kernels.KERNELS)
@settings(max_examples=20)
@example(groups=PAIRS, kv_heads=2, most=99)
@given(
    groups=batches(4) | trees(),
    kv_heads=st.sampled_from([1, 2]),
    most=st.sampled_from([99, 1 << 25]),
)
def test_a_packed_row_attends_to_what_the_layout_lets_it_see(name, groups, kv_heads, most):
    """Against a softmax over everything under the layout's mask: the result and its gradients."""
    with (
        patch.object(kernels, "aten", ATEN),
        patch.object(kernels, "choose", lambda *_: name),
        patch.object(plain, "SCORES", most),
    ):
        _compare_row(groups, kv_heads)


def _compare_row(groups: list[Group], kv_heads: int) -> None:
    for layout in layouts(groups, 150):
        row = PackedRow(layout, torch.device("cpu"))
        assert row.token_1T.tolist() == layout.token_BL.tolist()
        T, H, D = row.token_1T.shape[1], 4, 8
        torch.manual_seed(T)
        inputs = [torch.randn(1, heads, T, D).requires_grad_() for heads in (H, kv_heads, kv_heads)]
        q, k, v = inputs
        out_1THD = row.attend(0, q, k, v, None)
        wide_k, wide_v = (x.repeat_interleave(H // kv_heads, 1) for x in (k, v))
        score = (q @ wide_k.transpose(2, 3)) / D**0.5
        score = score.masked_fill(~torch.from_numpy(visible_BLL(layout)), float("-inf"))
        expected = (score.softmax(-1) @ wide_v).transpose(1, 2)
        assert torch.allclose(out_1THD, expected, atol=1e-5)
        weight = torch.randn_like(expected)
        for ours, theirs in zip(
            torch.autograd.grad((out_1THD * weight).sum(), inputs),
            torch.autograd.grad((expected * weight).sum(), inputs),
        ):
            assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("fault", ["no kernel image", "wrong result", "wrong gradient"])
def test_a_kernel_that_is_not_right_here_is_given_up_with_a_note(monkeypatch, capsys, fault):
    name = "attention on the CPU"
    right = kernels.KERNELS[name]

    def attend(*inputs):  # type: ignore[no-untyped-def]
        if fault == "no kernel image":
            raise RuntimeError(fault)
        out, lse = right.attend(*inputs)
        return out, lse + 0.1 * (fault == "wrong result")

    def gradients(inputs, whole, *rest):  # type: ignore[no-untyped-def]
        """As if the normaliser were the part's own."""
        lse = whole[2] - 0.3 * (fault == "wrong gradient")
        return right.gradients(inputs, (*whole[:2], lse), *rest)

    monkeypatch.setitem(kernels.KERNELS, name, kernels.Looped(attend, gradients))
    kernels.choose.cache_clear()
    asked = (torch.device("cpu"), torch.float32, 4, 2, (16, 16))
    assert [kernels.choose(*asked) for _ in range(2)] == [kernels.PLAIN] * 2
    kernels.choose.cache_clear()
    note = capsys.readouterr().err
    assert note.count("note:") == 1 and f"{name} cannot be used on cpu (" in note
    assert fault in note or "it is off by" in note


PROMPTS = [tuple(range(5, 5 + n)) for n in (17, 3, 30, 9)]


@pytest.mark.parametrize("model", ["folder", "qwen"])
@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_shared_prompt_samples_what_a_widened_cache_samples(request, model, n, temperature):
    """Answers end at different times, so rows, then whole prompts, leave the batch on the way."""
    policy = load(request.getfixturevalue(model))
    policy.ends = tuple(range(0, 256, 9))
    shared = policy.sample(PROMPTS, n, 25, temperature, seed=3)
    assert policy.shares_prompts and policy._checked
    policy.shares_prompts = False
    widened = policy.sample(PROMPTS, n, 25, temperature, seed=3)
    lengths = set()
    for a, b in zip((s for g in shared for s in g), (s for g in widened for s in g)):
        assert a.tokens == b.tokens and a.stop == b.stop
        assert np.allclose(a.logps, b.logps, atol=1e-4)
        lengths.add(len(a.tokens))
    assert len(lengths) > 2 or n == 1


def test_a_model_that_cannot_share_samples_again_the_other_way(folder, capsys):
    policy, honest = load(folder), load(folder)
    honest.shares_prompts = False
    body = policy.causal_lm.get_decoder()
    forward = body.forward

    def deaf(*args, shared=None, **kwargs):  # type: ignore[no-untyped-def]
        if shared is not None:
            kwargs["attention_mask"] = None
            cache = getattr(shared, "own", None) is not None
            if cache and not shared.prompt:  # fill it with nonsense, as a foreign layer might
                k = torch.ones(len(shared.length_B), 2, kwargs["input_ids"].shape[1], 16)
                shared.prompt = [(k, k)] * 2
        return forward(*args, **kwargs)

    body.forward = deaf
    mine = policy.sample(PROMPTS[:2], 3, 6, 1.0, seed=1)
    assert not policy.shares_prompts and "cannot share a prompt" in capsys.readouterr().err
    body.forward = forward
    theirs = honest.sample(PROMPTS[:2], 3, 6, 1.0, seed=1)
    assert [s.tokens for g in mine for s in g] == [s.tokens for g in theirs for s in g]


def test_training_is_checked_too_after_sampling_was_found_right(folder, monkeypatch, capsys):
    """They are two ways to share a prompt: one of them may be wrong alone."""
    from miniact.backends.torch import policy as torch_policy

    policy = load(folder)
    policy.sample(PROMPTS, 2, 4, 1.0, seed=0)
    assert policy.shares_prompts
    right = torch_policy.PackedRow.attend

    def wrong(self, layer, q, k, v, scale):  # type: ignore[no-untyped-def]
        return 0.5 * right(self, layer, q, k, v, scale)

    monkeypatch.setattr(torch_policy.PackedRow, "attend", wrong)
    policy.forward_backward(GROUPS, LOSS)
    assert not policy.shares_prompts and "cannot share a prompt" in capsys.readouterr().err


def test_tokens_are_drawn_as_often_as_they_are_likely(folder):
    from miniact.backends.torch.sample import draw

    policy = load(folder)
    torch.manual_seed(2)
    hidden_1D = torch.randn(1, 64)
    with torch.no_grad():
        p_V = policy.head.logits(hidden_1D, 1.0).softmax(-1)[0].double().numpy()
        u_R = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
        token_R, logp_R = draw(policy.head, hidden_1D.expand(20_000, -1), 1.0, u_R)
    count_V = np.bincount(token_R.numpy(), minlength=len(p_V))
    error_V = (count_V - 20_000 * p_V) / np.sqrt(20_000 * p_V * (1 - p_V) + 1e-9)
    assert np.abs(error_V[p_V > 1e-3]).max() < 4.5
    assert count_V[p_V < 1e-9].sum() == 0
    assert np.allclose(np.exp(logp_R.numpy()), p_V[token_R.numpy()], rtol=1e-3)


def with_the_slow_layers(policy):  # type: ignore[no-untyped-def]
    for module in policy.model.modules():
        module.__dict__.pop("forward", None)
    return policy


BASES = [{}, {"adapter": "qlora"}, {"adapter": "qlora", "gradient_checkpointing": True}]


@pytest.mark.parametrize("options", BASES, ids=str)
def test_fast_layers_compute_what_the_slow_ones_do(wide, options):
    """LoRA and the gated MLP against PEFT's and transformers' own forwards, gradients included."""
    fast, slow = load(wide, **options), with_the_slow_layers(load(wide, **options))
    layers = [m for m in fast.model.modules() if hasattr(m, "lora_A")]
    assert len(layers) == 14 and all("forward" in m.__dict__ for m in layers)
    assert relative(gradient(fast), gradient(slow)) < 1e-5


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_in_bfloat16_the_fast_layers_are_no_further_from_the_truth(wide, adapter):
    options = {"adapter": adapter, "dtype": "bfloat16"}
    exact, fast = gradient(load(wide, adapter=adapter)), load(wide, **options)
    slow = gradient(with_the_slow_layers(load(wide, **options)))
    assert relative(gradient(fast), exact) < 1.1 * relative(slow, exact)
    fast.forward_backward(GROUPS, LOSS)
    for weight in fast.trainable.values():  # the master weights, and what AdamW makes of them
        assert weight.dtype == weight.grad.dtype == torch.float32


def test_beside_bfloat16_the_small_products_are_bfloat16_too(wide):
    """No copy of x or of the gradient in float32: a third of the launches of a decode step."""
    policy = load(wide, dtype="bfloat16")
    kept = []

    def pack(tensor):  # type: ignore[no-untyped-def]
        kept.append((tensor.dtype, tensor.shape[-1]))
        return tensor

    layer = next(m for m in policy.model.modules() if hasattr(m, "lora_A"))
    x = torch.randn(40, 64, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    rank4 = {(torch.float32, 64), (torch.float32, 4)}  # A and B
    assert set(kept) == {(torch.bfloat16, 64), (torch.bfloat16, 4)} | rank4
