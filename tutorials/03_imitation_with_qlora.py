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
from itertools import chain
from pathlib import Path
from statistics import NormalDist

try:
    import bitsandbytes.functional as bnb  # may say that a CPU kernel is missing: no matter
except ImportError as error:
    reason = str(error).partition("\n")[0]
    raise SystemExit(f"bitsandbytes is missing, and there is none for a Mac ({reason})") from None
import matplotlib.pyplot as plt
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from torch.nn.functional import linear, log_softmax
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from miniact.backends.models import find_model
from miniact.backends.torch.policy import TorchPolicy
from miniact.config.sections import EvalConfig, ILConfig, ModelConfig, PromptConfig
from miniact.data.trajectories import TrajectoryFile, collect, to_row
from miniact.envs import make_env
from miniact.evaluation.evaluate import next_action_accuracy
from miniact.method import il
from miniact.method.losses import cross_entropy
from miniact.method.prompts import Prompter
from miniact.method.stage import Stage
from miniact.runs.files import read_jsonl, write_jsonl
from miniact.runs.folder import RunFolder
from miniact.runs.log import StageLog
from miniact.runs.progress import Bar
from miniact.tools.cost import NF4, Work, known_shape, weight_bytes
from miniact.tools.devices import Device
from miniact.tools.plan import GB, memory
from miniact.types import Completion, Group, Tokens

SEED = 0
RANK, ALPHA = 8, 16
WORK = Path(tempfile.mkdtemp())
torch.manual_seed(SEED)

# %% [markdown]
# ## 1 · A LoRA layer by hand, and its gradients
#
# For $T$ tokens as rows, with $s=\alpha/r$ and the gradient $g=\partial L/\partial y$:
#
# $$y=xW^\top+s\,(xA^\top)B^\top,\qquad \partial x=gW+s\,(gB)A,\qquad \partial A=s\,(gB)^\top x,\qquad
#   \partial B=s\,g^\top(xA^\top)$$
#
# Suffixes name the dimensions: T tokens, I inputs, O outputs, R rank.

# %%
n_T, n_I, n_O, n_R, scale = 5, 12, 10, 3, 2.0
x_TI, W_OI, g_TO = torch.randn(n_T, n_I), torch.randn(n_O, n_I), torch.randn(n_T, n_O)
A_RI, B_OR = torch.randn(n_R, n_I), torch.randn(n_O, n_R)


def lora(x_TI, W_OI, A_RI, B_OR, scale):
    return x_TI @ W_OI.T + scale * (x_TI @ A_RI.T) @ B_OR.T


y_TO = lora(x_TI, W_OI, A_RI, B_OR, scale)
dx_TI = g_TO @ W_OI + scale * (g_TO @ B_OR) @ A_RI
dA_RI = scale * (g_TO @ B_OR).T @ x_TI
dB_OR = scale * g_TO.T @ (x_TI @ A_RI.T)

# PEFT's layer, with the same weights and torch's own gradients
toy = torch.nn.Sequential(torch.nn.Linear(n_I, n_O, bias=False))
toy[0].weight.data = W_OI.clone()
toy = get_peft_model(toy, LoraConfig(r=n_R, lora_alpha=scale * n_R, target_modules=["0"]))
layer = toy.base_model.model[0]
layer.lora_A["default"].weight.data = A_RI.clone()
layer.lora_B["default"].weight.data = B_OR.clone()
x = x_TI.clone().requires_grad_()
y = layer(x)
(g_TO * y).sum().backward()

assert torch.allclose(y, y_TO, atol=1e-5)
assert torch.allclose(x.grad, dx_TI, atol=1e-5)
assert torch.allclose(layer.lora_A["default"].weight.grad, dA_RI, atol=1e-5)
assert torch.allclose(layer.lora_B["default"].weight.grad, dB_OR, atol=1e-5)
assert layer.base_layer.weight.grad is None  # frozen
print("largest difference to PEFT:", f"{(y - y_TO).abs().max():.1e}")

# %% [markdown]
# ## 2 · Why B starts at 0, and A does not
#
# With $B=0$ the model starts as exactly what it was. Then $\partial A=s\,(gB)^\top x=0$ on the first
# step, but $\partial B\neq0$, and from the second step on both learn. Were $A$ zero as well, both
# gradients would be zero for ever.

# %%
B_zero_OR, A_zero_RI = torch.zeros(n_O, n_R), torch.zeros(n_R, n_I)
assert torch.equal(lora(x_TI, W_OI, A_RI, B_zero_OR, scale), x_TI @ W_OI.T)
for name, A in (("A random, B = 0", A_RI), ("A = 0,      B = 0", A_zero_RI)):
    to_A, to_B = scale * (g_TO @ B_zero_OR).T @ x_TI, scale * g_TO.T @ (x_TI @ A.T)
    print(f"{name}:  |∂A| = {to_A.norm():.2f}  |∂B| = {to_B.norm():.2f}")
    assert to_A.norm() == 0
    assert (to_B.norm() > 0) == (name == "A random, B = 0")

# %% [markdown]
# The same in the tiny model. Its policy puts LoRA beside every linear layer, and computes it with fewer
# passes over memory than PEFT (`backends/torch/fast.py`), to the same result:

# %%
policy = TorchPolicy(ModelConfig(path="builtin:tiny", rank=RANK, alpha=ALPHA), seed=SEED)
layer = policy.causal_lm.model.layers[0].mlp.gate_proj
W_OI, A_RI, B_OR = (
    m.weight for m in (layer.base_layer, layer.lora_A["default"], layer.lora_B["default"])
)
x_TI = torch.randn(n_T, W_OI.shape[1])
with torch.no_grad():
    assert (B_OR == 0).all() and torch.allclose(layer(x_TI), x_TI @ W_OI.T, atol=1e-5)
    B_OR.normal_()
    by_hand_TO = lora(x_TI, W_OI, A_RI, B_OR, ALPHA / RANK)
    assert torch.allclose(layer(x_TI), by_hand_TO, atol=1e-4)
    B_OR.zero_()

# %% [markdown]
# ## 3 · What the scale α/r does
#
# The weights that LoRA stands for are $W+s\,BA$. AdamW moves every entry of $B$ by about the learning
# rate, however large the gradient is, so scaling the gradient by $s$ changes nothing there; but what $B$
# does to the model is multiplied by $s$. Doubling α doubles the step, like a learning rate:

# %%
moved = {}
for alpha in (8, 16, 32):
    s = alpha / RANK
    B = torch.zeros(len(W_OI), RANK, requires_grad=True)
    optimizer = torch.optim.AdamW([B], lr=1e-3, weight_decay=0.0)
    lora(x_TI, W_OI, A_RI.detach(), B, s).square().sum().backward()
    optimizer.step()
    moved[alpha] = (s * B.detach() @ A_RI.detach()).norm().item()
    print(f"r = {RANK}, α = {alpha:2}: s = {s:.0f}, one step moves W by {moved[alpha]:.4f}")
assert np.isclose(moved[16] / moved[8], 2, rtol=1e-3)
assert np.isclose(moved[32] / moved[8], 4, rtol=1e-3)

# %% [markdown]
# ## 4 · How many weights are trained?
#
# A layer from $i$ to $o$ has $i\cdot o$ weights; LoRA adds $r\,(i+o)$.

# %%
by_hand = sum(
    RANK * (m.base_layer.in_features + m.base_layer.out_features)
    for m in policy.model.modules()
    if hasattr(m, "lora_A")
)
trained = sum(p.numel() for p in policy.trainable.values())
tiny, big = known_shape("builtin:tiny"), known_shape("Qwen/Qwen3-8B")
assert by_hand == trained == tiny.lora(RANK)
for shape, r in ((tiny, RANK), (big, 16)):
    part = shape.lora(r) / shape.parameters
    print(
        f"{shape.name:9} {shape.parameters:13,} weights; rank {r:2} trains {shape.lora(r):11,} = {part:.1%}"
    )

# %% [markdown]
# The thin matrices are a large share of a tiny model and a small one of a large model. The large model's
# problem is what is frozen.
#
# ## 5 · Four bits: NF4 by hand
#
# Four bits name 16 levels. Trained weights are roughly normal, so NF4 puts the levels where a normal
# distribution has equal shares of its mass: dense around 0, sparse outside, 0 itself among them, scaled
# to $[-1,1]$.

# %%
quantile = NormalDist().inv_cdf
outermost = 1 - (1 / 30 + 1 / 32) / 2  # half a share from the end: at 1 the level is infinite
above = [quantile(p) for p in np.linspace(outermost, 0.5, 9)[:-1]]  # eight levels over 0
below = [-quantile(p) for p in np.linspace(outermost, 0.5, 8)[:-1]]  # seven under it
level_16 = torch.tensor(sorted([*below, 0.0, *above])) / max(above)

theirs_16 = bnb.get_4bit_type("nf4", device="cpu")
assert torch.allclose(level_16, theirs_16, atol=1e-6)
print("levels:", " ".join(f"{level:.2f}" for level in level_16.tolist()))

# %% [markdown]
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
codes, absmax = quantise(W, theirs_16)
packed, state = bnb.quantize_4bit(W, blocksize=64, quant_type="nf4", compress_statistics=False)
unpacked = torch.stack([packed >> 4, packed & 15], -1).reshape(codes.shape)
assert torch.equal(unpacked, codes.to(torch.uint8))
assert torch.equal(state.absmax, absmax)
restored = dequantise(codes, absmax, theirs_16, W.shape)
assert torch.allclose(bnb.dequantize_4bit(packed, state), restored, atol=1e-6)
print(
    f"{W.numel()} weights: every code is bitsandbytes'; {packed.numel()} bytes, {W.numel() * 4} before"
)


def error(W, levels):
    """Root mean square of the rounding error, relative to that of the weights."""
    return ((dequantise(*quantise(W, levels), levels, W.shape) - W).norm() / W.norm()).item()


even_16 = torch.linspace(-1, 1, 16)
for name, weights in (("normal weights", W), ("a layer of the tiny model", W_OI.detach())):
    nf4, even = error(weights, theirs_16), error(weights, even_16)
    print(f"{name:26} error {nf4:.1%} with NF4, {even:.1%} with 16 even levels")
    assert nf4 < even

# %% [markdown]
# **Double quantisation.** One float32 per 64 weights costs another half bit a weight. So the absmax
# values are themselves stored in 8 bits: their mean is subtracted, blocks of 256 are divided by their
# largest magnitude, and each becomes the nearest of 256 levels (denser around 0, a table of
# bitsandbytes).

# %%
packed, state = bnb.quantize_4bit(W, blocksize=64, quant_type="nf4", compress_statistics=True)
level_256, offset = state.state2.code, absmax.mean()
restored_absmax = []
for part in torch.split(absmax - offset, 256):
    largest = part.abs().max()
    eight_bit = ((part / largest)[:, None] - level_256).abs().argmin(-1)
    restored_absmax.append(level_256[eight_bit] * largest + offset)
doubly = dequantise(codes, torch.cat(restored_absmax), theirs_16, W.shape)
assert torch.allclose(bnb.dequantize_4bit(packed, state), doubly, atol=1e-6)

once, twice = 4 + 32 / 64, 4 + 8 / 64 + 32 / (64 * 256)
assert np.isclose(twice, 8 * NF4, rtol=1e-3)  # what `miniact plan` counts with
print(f"bits a weight: {once:.2f}, doubly quantised {twice:.2f}")
print(
    f"error {((restored - W).norm() / W.norm()):.2%}, doubly quantised {((doubly - W).norm() / W.norm()):.2%}"
)

# %% [markdown]
# ## 6 · The package's 4-bit base
#
# Blocks of 64 fill the rows of a weight matrix evenly where its width is a multiple of 64, as it is
# in the models that people quantise. The tiny model's width is not, so that blocks run from one row
# into the next; and bitsandbytes' kernel for the CPU may then take the wrong absmax:

# %%
for width in (tiny.hidden, 128):
    V = torch.randn(256, width)
    theirs = bnb.dequantize_4bit(*bnb.quantize_4bit(V, blocksize=64, quant_type="nf4"))
    print(
        f"rows of {width:3}: error {(theirs - V).norm() / V.norm():.1%}, by hand {error(V, theirs_16):.1%}"
    )
assert np.isclose((theirs - V).norm() / V.norm(), error(V, theirs_16), rtol=1e-3)  # rows of 128

# %% [markdown]
# So let us make the tiny model wider with zeros: more channels and more heads, in which nothing
# happens. It computes the same function. (RMSNorm averages over all channels, so its weights make up
# for the zeros.)

# %%
source = find_model("builtin:tiny").path
narrow = AutoModelForCausalLM.from_pretrained(source)
share = narrow.config.hidden_size / 128
sizes = {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 8}
sizes |= {"head_dim": 24, "rms_norm_eps": narrow.config.rms_norm_eps * share}
wide = LlamaForCausalLM(LlamaConfig(**(narrow.config.to_dict() | sizes)))
weights = wide.state_dict()
for name, weight in narrow.state_dict().items():
    weights[name].zero_()
    corner = tuple(slice(n) for n in weight.shape)
    weights[name][corner] = weight * (share**0.5 if "norm" in name else 1)
wide.load_state_dict(weights)
some_tokens = torch.arange(5, 45)[None]
assert torch.allclose(wide(some_tokens).logits, narrow(some_tokens).logits, atol=1e-4)
wide.save_pretrained(WORK / "wide")
policy.tokenizer.save_pretrained(WORK / "wide")

# %% [markdown]
# With `adapter: qlora` the package stores every linear layer in NF4, doubly quantised; LoRA beside it
# stays in full precision: $y=\operatorname{dequantise}(W)\,x+s\,BAx$.

# %%
policies = {
    name: TorchPolicy(
        ModelConfig(path=str(WORK / "wide"), adapter=name.lower(), rank=RANK, alpha=ALPHA),
        seed=SEED,
    )
    for name in ("LoRA", "QLoRA")
}
full, four = (one.causal_lm.model.layers[0].mlp.gate_proj for one in policies.values())
W, A_RI, B_OR = (
    m.weight for m in (full.base_layer, four.lora_A["default"], four.lora_B["default"])
)
restored = dequantise(*quantise(W, theirs_16), theirs_16, W.shape)
x_TI = torch.randn(n_T, W.shape[1])
with torch.no_grad():
    stored = bnb.dequantize_4bit(four.base_layer.weight.data, four.base_layer.weight.quant_state)
    print(
        f"stored and by hand: {(stored - restored).norm() / W.norm():.2%} apart (double quantisation)"
    )
    assert (stored - restored).norm() < 0.02 * W.norm()
    B_OR.normal_()
    by_hand_TO = linear(x_TI, stored) + ALPHA / RANK * x_TI @ A_RI.T @ B_OR.T
    assert torch.allclose(four(x_TI), by_hand_TO, atol=1e-4)
    B_OR.zero_()

# %% [markdown]
# ## 7 · What is trained: the reply and nothing else
#
# The expert's play gives states and actions; "id" tasks are held out (tutorial 02). The prompt is the
# state, the reply is the action and the end token, so that stopping is learned too.

# %%
env = make_env("household", max_steps=20)
train = collect(env, "train", 300, SEED, "household expert")
held = collect(env, "id", 60, SEED, "household expert")
write_jsonl(WORK / "trajectories.jsonl", map(to_row, chain(train, held)))
file = TrajectoryFile(WORK / "trajectories.jsonl")
states, held_out = file.states("train"), file.states("id")
chosen = np.random.default_rng(SEED).permutation(len(held_out))[:200]
held_out = [held_out[int(i)] for i in chosen]
print(f"{len(states)} states to imitate, {len(held_out)} held out")

prompter = Prompter(
    policy.tokenizer,
    PromptConfig(form="plain", show_admissible=False, history=10, max_tokens=512),
)
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
# From scratch: run the whole text through the model, take the log-probability of each reply token
# where it is predicted (one position before it stands), sum, divide by the number of reply tokens of
# the batch.

# %%
N = sum(len(reply) for _, reply in examples)
loss_by_hand = 0.0
for prompt, reply in examples:
    logits_LV = policies["LoRA"].causal_lm(torch.tensor([[*prompt, *reply]])).logits[0]
    logp_LV = log_softmax(logits_LV, -1)
    first = len(prompt) - 1
    loss = -sum(logp_LV[first + t, token] for t, token in enumerate(reply)) / N
    (gradient_LV,) = torch.autograd.grad(loss, logits_LV)
    touched = gradient_LV.abs().sum(-1).nonzero().flatten().tolist()
    assert touched == list(range(first, first + len(reply)))  # no other position has a gradient
    loss_by_hand += loss.item()

groups = [Group(prompt, (Completion(reply),)) for prompt, reply in examples]
logp_N = np.concatenate([logp for (logp,) in policies["LoRA"].logprobs(groups)])
zero_N = np.zeros(N)
loss, _ = cross_entropy(np, logp_N, Tokens(np.full(N, 1 / N), zero_N, zero_N, zero_N))
assert np.isclose(loss, loss_by_hand, atol=1e-5)
total = sum(len(prompt) + len(reply) for prompt, reply in examples)
print(f"loss {loss:.4f} by the package, {loss_by_hand:.4f} by hand; {N} of {total} tokens carry it")

# %% [markdown]
# ## 8 · Imitation, on both bases
#
# The stage `il` is a short loop over exactly this loss. It runs here twice, on the same batches:
# LoRA on the full-precision base, and QLoRA on the 4-bit one.


# %%
def imitate(policy, name):
    """Train by the package's own stage. Returns its log, one row for each step."""
    with RunFolder(WORK / name) as run, Bar(Console(quiet=True), name) as bar:
        log = StageLog(run, 1, "il", bar)
        il.run(Stage(policy, prompter, CONFIG, states, pairs=[], log=log, seed=SEED))
    return [row for _, _, row in read_jsonl(WORK / name / "metrics.jsonl")]


def measure(policy):
    """Next-action accuracy on held-out states, greedily."""
    return next_action_accuracy(policy, prompter, held_out, EvalConfig(max_tokens=10), SEED)[
        "accuracy"
    ]


losses, accuracy = {}, {}
for name, one in policies.items():
    before = measure(one)
    rows = imitate(one, name)
    losses[name], accuracy[name] = [row["loss"] for row in rows], (before, measure(one))
    for when, a in zip(("before", "after"), accuracy[name]):
        print(f"{name:5} {when:6} {a['value']:4.0%}  [{a['low']:.0%}, {a['high']:.0%}]  n={a['n']}")
assert np.isclose(losses["LoRA"][0], loss_by_hand, atol=1e-5)  # the first batch is the one above

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
blocks = W_OI.detach().reshape(-1, 64)
scaled = (blocks / blocks.abs().amax(1, keepdim=True)).flatten().numpy()
left.hist(scaled, bins=81, color="lightgray", label=f"{len(scaled):,} weights / absmax")
for k, level in enumerate(theirs_16.tolist()):
    left.axvline(level, linewidth=0.8, label="the 16 levels of NF4" if k == 0 else None)
left.set_ylim(0, 1.45 * left.get_ylim()[1])
left.set_xlabel("weight, in units of its block's absmax")
left.set_ylabel("weights")
left.legend(fontsize=8, loc="upper left", framealpha=1)
for (name, values), style in zip(
    losses.items(), ({"linewidth": 4, "alpha": 0.4}, {"color": "black"})
):
    b, a = accuracy[name]
    label = (
        f"{name}: next action {b['value']:.0%} → {a['value']:.0%} [{a['low']:.0%}, {a['high']:.0%}]"
    )
    right.plot(values, label=label, **style)
right.set_xlabel("step")
right.set_ylabel("loss, nats per reply token")
right.set_ylim(0, 1.45 * max(map(max, losses.values())))
right.legend(fontsize=8, title=f"held out, 95 % interval, n={a['n']}", title_fontsize=8)
figure.tight_layout()

for name in losses:
    before, after = accuracy[name]
    assert after["low"] > before["high"]
gap = np.array(losses["QLoRA"]) - np.array(losses["LoRA"])
print(
    f"QLoRA's loss minus LoRA's: {gap[0]:+.3f} at first, {gap[-10:].mean():+.3f} over the last ten steps"
)
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
# and how much with QLoRA at rank 16? (What is trained is float32, with its gradient and both moments:
# a small step would be lost in the rounding of bfloat16. QLoRA's embedding and head are not trained
# and stay bfloat16.) Work it out; `miniact plan` must agree. Then:
# which part of the QLoRA sum is the largest, and would rank 64 still fit under 24 GB?

# %% [markdown]
# ## Solution
#
# Full training: 4 bytes a weight, 4 for its gradient, 4 for each of two moments.

# %%
full_by_hand = big.parameters * (4 + 4 + 2 * 4)


def qlora_by_hand(r):
    """Frozen weights; then 4 bytes each for a trained weight, its gradient and two moments."""
    frozen = (
        big.linear * NF4 + (big.parameters - big.linear) * 2
    )  # embedding and head stay bfloat16
    return frozen + big.lora(r) * (4 + 4 + 2 * 4)


card = Device("cuda", "a card with 24 GB", "bfloat16", free=24 * GB, matmul=1e14, bandwidth=1e12)
work = Work("il", steps=100, batch=1, prompt=2048, group=1, completion=24, samples=False)


def planned(adapter, r):
    m = memory(big, ModelConfig(adapter=adapter, rank=r, alpha=2 * r), work, card)
    return m.weights + m.adapter + m.optimizer


assert np.isclose(planned("full", 16), full_by_hand)
assert all(np.isclose(planned("qlora", r), qlora_by_hand(r)) for r in (16, 64))
in_bf16 = weight_bytes(big, ModelConfig(adapter="lora"), "bfloat16")
in_nf4 = weight_bytes(big, ModelConfig(adapter="qlora"), "bfloat16")
print(f"weights alone: {in_bf16 / GB:.1f} GB in bfloat16, {in_nf4 / GB:.1f} GB in NF4")
print(f"full training: {full_by_hand / GB:.0f} GB")
for r in (16, 64):
    adapter = qlora_by_hand(r) - in_nf4
    print(
        f"QLoRA, rank {r}: {qlora_by_hand(r) / GB:.1f} GB, of which the adapter {adapter / GB:.1f} GB"
    )
    assert adapter < in_nf4 and qlora_by_hand(r) < card.free < full_by_hand
print("the frozen weights are the largest part; activations come on top (miniact plan)")
