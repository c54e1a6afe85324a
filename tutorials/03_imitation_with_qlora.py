# %% [markdown]
# # 03 · Imitation with QLoRA
#
# **The question.** A model of eight billion weights, with a gradient and two moments for each of them,
# does not fit on a card that people own. How can it be trained there all the same?
#
# **The answer in one line.** Freeze the weights $W$, round them to 4 bits (QLoRA), and train two thin
# matrices beside every linear layer (LoRA). Imitation then is cross-entropy on the expert's action:
#
# $$y = Wx+\frac{\alpha}{r}\,BAx,\quad A\in\mathbb R^{r\times i},\ B\in\mathbb R^{o\times r},\ B=0\text{ at the start};
#   \qquad L=-\frac1N\sum_{t=1}^{N}\log\pi_\theta(y_t\mid x,y_{<t})$$
#
# In the layer, $x$ and $y$ are its $i$ inputs and $o$ outputs, $r$ is the rank and α a constant
# scale. In the loss, $x$ is the prompt, and $y$ the reply of $N$ tokens: the expert's action.
#
# This page writes a LoRA layer, 4-bit rounding and the loss by hand, asserts that PEFT, bitsandbytes and
# the package compute the same, then imitates the household world's expert on a full-precision and on a
# 4-bit base, and measures on held-out states.

# %%
import tempfile
from pathlib import Path
from statistics import NormalDist

try:
    import bitsandbytes.functional as bnb  # may say that a CPU kernel is missing: no matter
except ImportError as error:
    reason = str(error).partition("\n")[0]
    raise SystemExit(f"bitsandbytes is missing, and there is none for a Mac ({reason})") from None
import numpy as np
import torch
from torch.nn.functional import log_softmax

from aside import qlora
from miniact.backends.torch.policy import TorchPolicy
from miniact.config.sections import ILConfig, ModelConfig, PromptConfig
from miniact.method.losses import cross_entropy
from miniact.method.prompts import Prompter
from miniact.tools.cost import NF4, Work, known_shape
from miniact.tools.devices import Device
from miniact.tools.plan import GB, memory
from miniact.types import Completion, Group, Tokens

SEED = 0
RANK, ALPHA = 8, 16
WORK = Path(tempfile.mkdtemp())
torch.manual_seed(SEED)

# %% [markdown]
# ## 1 · A LoRA layer by hand
#
# For $T$ tokens as rows, with $s=\alpha/r$: $y=xW^\top+s\,(xA^\top)B^\top$. Suffixes name the dimensions:
# T tokens, I inputs, O outputs, R rank. PEFT's layer with the same weights gives the same:


# %%
def lora(x_TI, W_OI, A_RI, B_OR, scale):
    return x_TI @ W_OI.T + scale * (x_TI @ A_RI.T) @ B_OR.T


n_T, n_I, n_O, n_R, scale = 5, 12, 10, 3, 2.0
x_TI, W_OI = torch.randn(n_T, n_I, requires_grad=True), torch.randn(n_O, n_I)
A_RI, B_OR = torch.randn(n_R, n_I), torch.randn(n_O, n_R)
theirs = qlora.peft_layer(W_OI, A_RI, B_OR, scale)
y_TO = theirs(x_TI)
assert torch.allclose(y_TO, lora(x_TI, W_OI, A_RI, B_OR, scale), atol=1e-5)

# %% [markdown]
# ## 2 · Its gradients
#
# With $g=\partial L/\partial y$:
#
# $$\partial x=gW+s\,(gB)A,\qquad \partial A=s\,(gB)^\top x,\qquad \partial B=s\,g^\top(xA^\top)$$
#
# $W$ gets none: it is frozen.

# %%
g_TO = torch.randn(n_T, n_O)
y_TO.backward(g_TO)
dA_RI = scale * (g_TO @ B_OR).T @ x_TI
dB_OR = scale * g_TO.T @ (x_TI @ A_RI.T)
assert torch.allclose(x_TI.grad, g_TO @ W_OI + scale * (g_TO @ B_OR) @ A_RI, atol=1e-5)
assert torch.allclose(theirs.lora_A["default"].weight.grad, dA_RI, atol=1e-5)
assert torch.allclose(theirs.lora_B["default"].weight.grad, dB_OR, atol=1e-5)
assert theirs.base_layer.weight.grad is None

# %% [markdown]
# ## 3 · Why B starts at 0, and A does not
#
# With $B=0$ the model starts as exactly what it was. Then $\partial A=s\,(gB)^\top x=0$ on the first
# step, but $\partial B\neq0$, and from the second step on both learn. Were $A$ zero as well, both
# gradients would be zero for ever.

# %%
B_zero_OR = torch.zeros(n_O, n_R)
for name, A in (("A random", A_RI), ("A = 0   ", torch.zeros(n_R, n_I))):
    to_A, to_B = scale * (g_TO @ B_zero_OR).T @ x_TI, scale * g_TO.T @ (x_TI @ A.T)
    print(f"B = 0, {name}:  |∂A| = {to_A.norm():.2f}  |∂B| = {to_B.norm():.2f}")
    assert to_A.norm() == 0 and bool(to_B.norm()) == (name == "A random")

# %% [markdown]
# ## 4 · What the scale α/r does
#
# The weights that LoRA stands for are $W+s\,BA$. AdamW moves every entry of $B$ by about the learning
# rate, however large the gradient is, so scaling the gradient by $s$ changes nothing there; but what $B$
# does to the model is multiplied by $s$. Doubling α doubles the step, like a learning rate:

# %%
moved = {}
for alpha in (8, 16, 32):
    B = torch.zeros(n_O, n_R, requires_grad=True)
    lora(x_TI, W_OI, A_RI, B, alpha / RANK).square().sum().backward()
    torch.optim.AdamW([B], lr=1e-3, weight_decay=0.0).step()
    moved[alpha] = (alpha / RANK * B.detach() @ A_RI).norm().item()
    print(f"r = {RANK}, α = {alpha:2}: one step moves W by {moved[alpha]:.4f}")
assert np.allclose([moved[16] / moved[8], moved[32] / moved[8]], [2, 4], rtol=1e-3)

# %% [markdown]
# ## 5 · How many weights are trained?
#
# A layer from $i$ to $o$ has $i\cdot o$ weights; LoRA adds $r\,(i+o)$. The package puts it beside every
# linear layer.

# %%
policy = TorchPolicy(ModelConfig(path="builtin:tiny", rank=RANK, alpha=ALPHA), seed=SEED)
layers = [m.base_layer for m in policy.model.modules() if hasattr(m, "lora_A")]
tiny, big = known_shape("builtin:tiny"), known_shape("Qwen/Qwen3-8B")
assert tiny.lora(RANK) == sum(RANK * (m.in_features + m.out_features) for m in layers)
for shape, r in ((tiny, RANK), (big, 16)):
    trained = shape.lora(r)
    print(f"{shape.name}: {shape.parameters:,} weights; rank {r} trains {trained:,}", end=" ")
    print(f"= {trained / shape.parameters:.1%}")

# %% [markdown]
# The thin matrices are a large share of a tiny model and a small one of a large model. The large model's
# problem is what is frozen.
#
# ## 6 · Four bits: NF4 by hand
#
# Four bits name 16 levels. Trained weights are roughly normal, so NF4 puts the levels where a normal
# distribution has equal shares of its mass: dense around 0, sparse outside, 0 itself among them, scaled
# to $[-1,1]$.

# %%
quantile = NormalDist().inv_cdf
outermost = 1 - (1 / 30 + 1 / 32) / 2  # half a share from the end: at 1 the level is infinite
above = [quantile(p) for p in np.linspace(outermost, 0.5, 9)[:-1]]  # eight levels over 0
below = [-quantile(p) for p in np.linspace(outermost, 0.5, 8)[:-1]]  # seven under it
by_hand_16 = torch.tensor(sorted([*below, 0.0, *above])) / max(above)

level_16 = bnb.get_4bit_type("nf4", device="cpu")
assert torch.allclose(by_hand_16, level_16, atol=1e-6)
W_OI, _, _ = qlora.weights(policy.causal_lm.model.layers[0].mlp.gate_proj)
qlora.levels_picture(W_OI, level_16)

# %% [markdown]
# ## 7 · Rounding, block by block
#
# A block of 64 neighbouring weights is divided by its largest magnitude (*absmax*), and each weight
# becomes the number of its nearest level. Two such numbers make a byte.


# %%
def quantise(W, levels, block=64):
    """W → (the number of a level for each weight, absmax of each block)."""
    blocks = W.reshape(-1, block)
    absmax = blocks.abs().amax(1)
    distance = ((blocks / absmax[:, None])[..., None] - levels).abs()
    return distance.argmin(-1), absmax


def dequantise(codes, absmax, levels, shape):
    return (levels[codes] * absmax[:, None]).reshape(shape)


W = torch.randn(256, 128) / 20
codes, absmax = quantise(W, level_16)
packed, state = bnb.quantize_4bit(W, blocksize=64, quant_type="nf4", compress_statistics=False)
assert torch.equal(torch.stack([packed >> 4, packed & 15], -1).reshape(codes.shape), codes.byte())
assert torch.equal(state.absmax, absmax)
print(
    f"{W.numel()} weights: {W.numel() * 4} bytes before, {packed.numel()} after, bitsandbytes' own"
)

# %% [markdown]
# Is it better than 16 levels at even distances? Measured by the root mean square of the rounding error,
# relative to that of the weights:

# %%
for name, levels in (("NF4", level_16), ("even", torch.linspace(-1, 1, 16))):
    restored = dequantise(*quantise(W, levels), levels, W.shape)
    print(f"{name:5} error {(restored - W).norm() / W.norm():.1%}")

# %% [markdown]
# One float32 absmax for 64 weights costs another half bit a weight. *Double quantisation* stores those in 8
# bits too, in blocks of 256: $4+\frac{8}{64}+\frac{32}{64\cdot256}=4.13$ bits instead of 4.5. That is what
# `miniact plan` counts with.

# %%
assert np.isclose(4 + 8 / 64 + 32 / (64 * 256), 8 * NF4, rtol=1e-3)

# %% [markdown]
# ## 8 · A 4-bit base with an adapter
#
# With `adapter: qlora` the package stores every linear layer in NF4, doubly quantised; LoRA beside it
# stays in full precision: $y=\operatorname{dequantise}(W)\,x+s\,BAx$. (The tiny model's rows are not a
# multiple of 64 weights long, which bitsandbytes' CPU kernel restores wrongly; so it is made wider with zeros
# first. It computes the same.)

# %%
wide = str(qlora.widened(WORK / "wide"))
policies = {
    name: TorchPolicy(ModelConfig(path=wide, adapter=name.lower(), rank=RANK, alpha=ALPHA), SEED)
    for name in ("LoRA", "QLoRA")
}
full, four = (p.causal_lm.model.layers[0].mlp.gate_proj for p in policies.values())
W_OI, (packed, A_RI, B_OR) = qlora.weights(full)[0], qlora.weights(four)
x_TI = torch.randn(n_T, W_OI.shape[1])
with torch.no_grad():
    restored = bnb.dequantize_4bit(packed.data, packed.quant_state)
    by_hand = dequantise(*quantise(W_OI, level_16), level_16, W_OI.shape)
    assert (restored - by_hand).norm() < 0.02 * W_OI.norm()  # apart by the double quantisation
    assert torch.allclose(four(x_TI), lora(x_TI, restored, A_RI, B_OR, ALPHA / RANK), atol=1e-4)

# %% [markdown]
# ## 9 · What is trained: the reply and nothing else
#
# The expert's play gives states and actions. The prompt is the state, the reply is the action and the end
# token, so that stopping is learned too.

# %%
states, held_out = qlora.expert_play(WORK, SEED)
print(f"{len(states)} states to imitate, {len(held_out)} held out")
prompter = Prompter(policy.tokenizer, PromptConfig(form="plain", show_admissible=False, history=10))
CONFIG = ILConfig(steps=40, batch=16, lr=5e-3, schedule="linear")
batch = states.batch(0, CONFIG.batch, SEED)  # what the stage will train on first
examples = [
    (prompter.action(state).tokens, prompter.reply_tokens(prompter.render_action(action)))
    for state, action in batch
]
prompt, reply = min(examples, key=lambda example: len(example[0]))
for name, tokens in (("prompt, no loss", prompt), ("reply, loss", reply)):
    print(f"{name:16}", " · ".join(map(repr, policy.tokenizer.convert_ids_to_tokens(tokens))))

# %% [markdown]
# ## 10 · The loss
#
# From scratch: run the whole text through the model, take the log-probability of each reply token
# where it is predicted (one position before it stands), sum, divide by the number of reply tokens of
# the batch.

# %%
N = sum(len(reply) for _, reply in examples)
loss_by_hand = 0.0
for prompt, reply in examples:
    with torch.no_grad():
        logits_LV = policies["LoRA"].causal_lm(torch.tensor([[*prompt, *reply]])).logits[0]
    logp_LV = log_softmax(logits_LV, -1)
    first = len(prompt) - 1
    loss_by_hand -= sum(logp_LV[first + t, token].item() for t, token in enumerate(reply)) / N

groups = [Group(prompt, (Completion(reply),)) for prompt, reply in examples]
logp_N = np.concatenate([logp for (logp,) in policies["LoRA"].logprobs(groups)])
zero_N = np.zeros(N)
loss, _ = cross_entropy(np, logp_N, Tokens(np.full(N, 1 / N), zero_N, zero_N, zero_N))
assert np.isclose(loss, loss_by_hand, atol=1e-5)
print(f"loss {loss:.4f} by the package, {loss_by_hand:.4f} by hand")

# %% [markdown]
# ## 11 · Imitation, on both bases
#
# The stage `il` is a short loop over exactly this loss. It runs here twice, on the same batches: LoRA on the
# full-precision base, and QLoRA on the 4-bit one.

# %%
losses, after = {}, {}
for name, trained in policies.items():
    before = qlora.next_action(trained, prompter, held_out)
    losses[name] = qlora.imitate(trained, prompter, CONFIG, states, WORK / name)
    after[name] = qlora.next_action(trained, prompter, held_out)
    print(f"{name:5} next action {qlora.told(before)} → {qlora.told(after[name])}")
    assert after[name]["low"] > before["high"]
assert np.isclose(losses["LoRA"][0], loss_by_hand, atol=1e-5)  # the first batch is the one above

# %%
qlora.learning_picture(losses, after)
gap = np.array(losses["QLoRA"]) - np.array(losses["LoRA"])
print(f"QLoRA's loss minus LoRA's: {gap[0]:+.3f} at first, {gap[-10:].mean():+.3f} at the end")
assert gap[0] > 0 and abs(gap[-10:].mean()) < 0.02

# %% [markdown]
# **What you should see.** Some dozens of steps lift the next-action accuracy on held-out states: on
# either base the intervals before and after do not meet. Rounding to 4 bits costs little, at first
# and at the end (the printed differences): the adapter is trained on top of the rounded weights, and
# the two curves lie on each other, batch by batch. They even share their noise, which is that of the
# batches, and both runs see the same ones. What the 4 bits save is memory, and only a large model
# needs it.
#
# ## Exercise
#
# How much memory do the weights, gradients and AdamW's two moments of Qwen3-8B take in full training,
# and how much with QLoRA at rank 16? What is trained is float32, with its gradient and both moments:
# a small step would be lost in the rounding of bfloat16. QLoRA's embedding and head are not trained
# and stay bfloat16. Use `big.parameters`, `big.linear`, `big.lora(r)` and `NF4` (bytes a weight). Which
# part of the QLoRA sum is the largest, and would rank 64 still fit under 24 GB? Here is what
# `miniact plan` says, as a function, for you to check against:


# %%
def planned(adapter, r):
    card = Device("cuda", "24 GB", "bfloat16", free=24 * GB, matmul=1e14, bandwidth=1e12)
    work = Work("il", steps=100, batch=1, prompt=2048, group=1, completion=24, samples=False)
    m = memory(big, ModelConfig(adapter=adapter, rank=r, alpha=2 * r), work, card)
    return m.weights + m.adapter + m.optimizer


# %% [markdown]
# ## Solution
#
# Full training: 4 bytes a weight, 4 for its gradient, 4 for each of two moments. With QLoRA only the adapter
# takes those 16 bytes; the frozen weights are the largest part. Activations come on top (`miniact plan`).

# %%
assert np.isclose(planned("full", 16), big.parameters * 16)
print(f"full training: {big.parameters * 16 / GB:.0f} GB")
for r in (16, 64):
    frozen = big.linear * NF4 + (big.parameters - big.linear) * 2
    adapter = big.lora(r) * 16
    assert np.isclose(planned("qlora", r), frozen + adapter)
    assert adapter < frozen and frozen + adapter < 24 * GB
    print(f"QLoRA, rank {r}: {frozen / GB:.1f} GB frozen, {adapter / GB:.1f} GB for the adapter")
