# %% [markdown]
# # 09 · On a Mac with MLX
#
# **The question.** A Mac computes with MLX, most other machines with PyTorch. Does that take two
# implementations of one method, and how would you know that both do the same?
#
# **The answer in one line.** Prompts, pairs, rewards, advantages, losses and stages know no array
# library; a backend samples, scores and differentiates, and nothing else. So given one adapter and one
# batch, two backends must return the same numbers, but for rounding:
#
# $$\log\pi^{\text{mlx}}_\theta=\log\pi^{\text{torch}}_\theta,\qquad
#   \nabla_\theta L^{\text{mlx}}=\nabla_\theta L^{\text{torch}},\qquad
#   \theta:\ y=Wx+\tfrac{\alpha}{r}\,B\,A\,x$$
#
# This page runs on a Mac (Metal) and on Linux (`mlx[cpu]`, whose kernels are slow: hence the tiny
# model). It was only ever run on Linux; Metal itself has not been tested.

# %%
try:
    import mlx.core as mx
    import mlx_lm
    from mlx.optimizers import AdamW
    from mlx.utils import tree_flatten
except ImportError as error:
    reason = str(error).partition("\n")[0]
    raise SystemExit(f"MLX is missing: pip install 'miniact[mlx]' ({reason})") from None

import importlib.util
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import matplotlib.pyplot as plt
import numpy as np
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

import miniact
from miniact.backends.models import find_model, rope_at_top
from miniact.backends.protocol import Policy, load_policy
from miniact.config import load_config
from miniact.config.sections import ModelConfig, PromptConfig
from miniact.data.trajectories import collect
from miniact.envs import make_env
from miniact.method.grpo import advantages, make_group, weigh
from miniact.method.losses import GRPOLoss, cross_entropy
from miniact.method.prompts import Prompter
from miniact.method.rewards import choice_reward
from miniact.tools.export import export
from miniact.types import Completion, Group, Tokens

SEED = 4
WORK = Path(tempfile.mkdtemp())
BASE = Path(find_model("builtin:tiny").path)

# %% [markdown]
# ## 1 · One model, twice
#
# `model.backend` is the only line of a config that differs. Both are float32 here, so that rounding is
# all that can differ; on a GPU the default would be bfloat16.

# %%
MODEL = ModelConfig(path="builtin:tiny", rank=8, alpha=16, dtype="float32")
ours = {name: load_policy(replace(MODEL, backend=name), SEED) for name in ("torch", "mlx")}

asked = [name for name in vars(Policy) if not name.startswith("_")]
assert all(hasattr(policy, name) for policy in ours.values() for name in asked)
print("all that a stage may ask of a model:", ", ".join(asked))

lines = {f: len(f.read_text().splitlines()) for f in Path(miniact.__file__).parent.rglob("*.py")}
for name in ours:
    own = sum(n for f, n in lines.items() if f.name.startswith(f"{name}_"))
    print(f"of the package's lines, backends/{name}_*.py have {own / sum(lines.values()):.0%}")

# %% [markdown]
# Each backend draws its own random $A$, so give both one adapter: first a fresh one ($B=0$: it changes
# nothing), then one with noise in $A$ and $B$, because a $B$ of zeros would hide mistakes.

# %%
FILE = "adapter_model.safetensors"
ours["torch"].save_adapter(WORK / "fresh")
shutil.copytree(WORK / "fresh", WORK / "noisy")
rng = np.random.default_rng(SEED)
shapes = {name: w.shape for name, w in sorted(load_file(WORK / "fresh" / FILE).items())}
noise = {name: rng.normal(scale=0.05, size=s).astype(np.float32) for name, s in shapes.items()}
save_file(noise, WORK / "noisy" / FILE)
for policy in ours.values():
    policy.load_adapter(WORK / "noisy")
print(f"{len(shapes)} matrices, for example", *list(shapes.items())[:2], sep="\n  ")

# %% [markdown]
# ## 2 · LoRA in MLX, from scratch
#
# $y=Wx+\frac{\alpha}{r}BAx$ is one line. mlx-lm has a LoRA layer too, but it takes a raw scale where
# PEFT takes α and r, and it stores $A$ and $B$ transposed; miniact's own keeps PEFT's names and shapes.
# The gradient of $B$ is $\frac{\alpha}{r}\,\delta^\top (xA^\top)$, with $\delta=\partial L/\partial y$.

# %%
layer = ours["mlx"].model.layers[0].self_attn.q_proj
W, A, B = layer.base.weight, layer.lora_A, layer.lora_B


def lora(x, A, B):
    return x @ W.T + MODEL.alpha / MODEL.rank * (x @ A.T) @ B.T


x, delta = mx.random.normal((2, 5, W.shape[1]), key=mx.random.key(SEED))
by_hand = np.array(lora(x, A, B))
assert np.allclose(by_hand, np.array(layer(x)), atol=1e-5)

theirs = ours["torch"].causal_lm.model.layers[0].self_attn.q_proj
with torch.no_grad():
    assert np.allclose(by_hand, theirs(torch.tensor(np.array(x))).numpy(), atol=1e-4)

slope = mx.grad(lambda B: (lora(x, A, B) * delta).sum())(B)
formula = MODEL.alpha / MODEL.rank * delta.T @ (x @ A.T)
assert np.allclose(np.array(slope), np.array(formula), atol=1e-3)
print("largest difference of y: ", np.abs(by_hand - np.array(layer(x))).max())
print("largest difference of ∂B:", np.abs(np.array(slope - formula)).max())

# %% [markdown]
# ## 3 · One GRPO group for both
#
# A state of the household world, the expert's action beside another one, eight answers, their
# advantages: as in tutorial 01. The answers come from the fresh adapter and are scored by the noisy
# one. So the policy has moved since it sampled, ratios are not 1, and some tokens get clipped.

# %%
(trajectory,) = collect(make_env("household"), "train", 1, seed=SEED, source="household expert")
state, expert = trajectory.state(2), trajectory.steps[2].action
prompter = Prompter(ours["torch"].tokenizer, PromptConfig(form="plain", show_admissible=False))
shown = (expert, next(a for a in state.admissible if a != expert))
critic = prompter.critic(state, shown)

ours["torch"].load_adapter(WORK / "fresh")
(answers,) = ours["torch"].sample([critic.tokens], n=8, max_tokens=10, temperature=1.0, seed=SEED)
ours["torch"].load_adapter(WORK / "noisy")
rewards = np.array([choice_reward(prompter.parse_choice(a.text, shown), 0) for a in answers])
assert np.ptp(rewards) > 0, "this seed gives a group with something to learn; others may not"
batch = weigh([make_group(critic.tokens, answers, advantages(rewards))], "grpo", 10)
print("shown:", shown, "\nrewards:", rewards)

logps = {name: np.concatenate(policy.logprobs(batch)[0]) for name, policy in ours.items()}
print(f"{len(logps['mlx'])} tokens; log π of the first three: ", end="")
print("   ".join(f"{name} {logp[:3].round(5)}" for name, logp in logps.items()))
print("largest difference:", np.abs(logps["torch"] - logps["mlx"]).max())
assert np.allclose(logps["torch"], logps["mlx"], atol=1e-4)

# %% [markdown]
# ## 4 · The loss, written once
#
# numpy, torch and mlx.core share their operators and names such as `exp`, `clip` and `minimum`. So a
# loss takes the library as its argument, `xp`, and there is nothing to keep in step:


# %%
def clipped_loss(xp, logp, old, A, w):
    ratio = xp.exp(logp - old)
    return -(w * xp.minimum(ratio * A, xp.clip(ratio, 0.8, 1.2) * A)).sum()


(group,) = batch
lengths = [len(c.tokens) for c in group.completions]
arrays = {  # one number per token
    "old": np.concatenate([c.old_logps for c in group.completions]),
    "A": np.repeat([c.advantage for c in group.completions], lengths).astype(np.float32),
    "w": np.repeat([c.weight for c in group.completions], lengths).astype(np.float32),
}
logp = logps["torch"]
in_torch = {name: torch.tensor(a) for name, a in arrays.items()}
in_mlx = {name: mx.array(a) for name, a in arrays.items()}
leaf = torch.tensor(logp, requires_grad=True)
losses = {
    "numpy": clipped_loss(np, logp, **arrays),
    "torch": clipped_loss(torch, leaf, **in_torch),
    "mlx": clipped_loss(mx, mx.array(logp), **in_mlx),
}
losses["torch"].backward()
slopes = {
    "torch": leaf.grad.numpy(),
    "mlx": np.array(mx.grad(lambda logp: clipped_loss(mx, logp, **in_mlx))(mx.array(logp))),
}
losses = {name: value.item() for name, value in losses.items()}
print({name: round(value, 6) for name, value in losses.items()})
print("largest difference of ∂L/∂log π:", np.abs(slopes["torch"] - slopes["mlx"]).max())
assert np.allclose(slopes["torch"], slopes["mlx"], atol=1e-6)

package = GRPOLoss(0.2, 0.2)
tokens = Tokens(arrays["w"], arrays["A"], arrays["old"], np.zeros_like(logp))
assert np.isclose(package(np, logp, tokens)[0], losses["numpy"])
assert np.allclose(list(losses.values()), losses["numpy"], atol=1e-6)

# %% [markdown]
# Now through the whole model, the prompt computed once for its eight answers on both sides: PyTorch
# with a packed row, MLX through its cache. The names of the weights are PEFT's in both, apart from
# what each library puts around them.

# %%
for name, policy in ours.items():
    found = policy.forward_backward(batch, package)
    assert np.isclose(found["loss"], losses["numpy"], atol=1e-4)
    print(f"{name}: loss {found['loss']:+.6f}, clipped share {found['clip_fraction']:.3f}")


def plain_name(name):
    return name.replace("base_model.model.", "").replace(".default", "").removesuffix(".weight")


gradients = {
    "torch": {plain_name(n): p.grad.numpy() for n, p in ours["torch"].trainable.items()},
    "mlx": {n: np.array(g) for n, g in tree_flatten(ours["mlx"].gradients)},
}
assert gradients["torch"].keys() == gradients["mlx"].keys()


def apart(a, b):
    """‖a − b‖ / ‖b‖ of the matrix where it is largest."""
    return max(np.linalg.norm(a[n] - b[n]) / np.linalg.norm(b[n]) for n in a)


print(
    f"{len(gradients['mlx'])} gradients, at most {apart(*gradients.values()):.1e} apart (relative)"
)
assert apart(*gradients.values()) < 1e-4

# %% [markdown]
# ## 5 · Many steps: do small differences grow?
#
# Twenty steps of imitation from the fresh adapter, on the same batches. Two defaults had to be pinned
# for this: MLX's AdamW leaves out the bias correction unless told otherwise (see the exercise), and
# gradients are clipped to a norm with PyTorch's formula on both sides.

# %%
STEPS, BATCH = 20, 4
trajectories = collect(make_env("household"), "train", 40, seed=SEED, source="household expert")
examples = []
for t in trajectories:
    prompt = prompter.action(t.state(1))
    reply = prompter.reply_tokens(prompter.render_action(t.steps[1].action))
    examples.append(Group(prompt.tokens, (Completion(reply),)))

curves = {}
for name, policy in ours.items():
    policy.load_adapter(WORK / "fresh")
    policy.optim_step(0.0, 1.0)  # drop the gradients of section 4
    policy.reset_optimizer()
    curves[name] = []
    for step in range(STEPS):
        some = [examples[(step * BATCH + i) % len(examples)] for i in range(BATCH)]
        curves[name].append(policy.forward_backward(weigh(some, "dapo", 0), cross_entropy)["loss"])
        policy.optim_step(lr=3e-3, max_grad_norm=1.0)
    policy.save_adapter(WORK / name)
curves = {name: np.array(curve) for name, curve in curves.items()}

trained = {name: load_file(WORK / name / FILE) for name in ours}
start = load_file(WORK / "fresh" / FILE)
moved = apart({n: w for n, w in start.items() if "lora_A" in n}, trained["torch"])
print(f"after {STEPS} steps the A that moved most has moved by {moved:.2f} of its length;")
print(f"the two backends' A and B are at most {apart(trained['mlx'], trained['torch']):.1e} apart")
assert apart(trained["mlx"], trained["torch"]) < 1e-2 < moved

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
left.plot(curves["torch"], color="C0", linewidth=5, alpha=0.35, label="PyTorch")
left.plot(curves["mlx"], color="C3", linewidth=1.2, label="MLX")
left.set_xlabel("step")
left.set_ylabel("loss, nats per token")
left.set_ylim(bottom=0)
left.legend()
difference = np.abs(curves["torch"] - curves["mlx"])
right.semilogy(np.maximum(difference, 1e-9), "o-", color="C7", markersize=4)
right.axhline(
    2**-23 * curves["torch"].max(), color="C1", linestyle="--", label="one rounding step of float32"
)
right.set_xlabel("step")
right.set_ylabel("difference of the losses, nats")
right.legend(fontsize=8)
figure.tight_layout()
print(f"largest difference of the losses: {difference.max():.1e}")
assert difference.max() < 1e-3

# %% [markdown]
# ## 6 · One adapter format
#
# Both write PEFT's two files. So what MLX trained opens in PyTorch, in PEFT itself without any of
# miniact, and the other way round.

# %%
print("MLX wrote:", sorted(f.name for f in (WORK / "mlx").iterdir()))


def logprobs(policy, adapter):
    policy.load_adapter(WORK / adapter)
    return np.concatenate(policy.logprobs(batch)[0])


for writer, reader in (("mlx", "torch"), ("torch", "mlx")):
    told, fresh_logp = logprobs(ours[writer], writer), logprobs(ours[reader], "fresh")
    read = logprobs(ours[reader], writer)
    print(
        f"{writer} → {reader}: log π changes by up to {np.abs(read - fresh_logp).max():.2f} when the ",
        end="",
    )
    print(f"adapter is loaded, and is then {np.abs(read - told).max():.1e} from the writer's")
    assert np.abs(read - told).max() < 1e-4 < 0.1 < np.abs(read - fresh_logp).max()

peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), WORK / "mlx")
row = [list(critic.tokens)]
ours["mlx"].load_adapter(WORK / "mlx")
expected = np.array(ours["mlx"].model(mx.array(row)))
with torch.no_grad():
    assert np.allclose(peft(torch.tensor(row)).logits.numpy(), expected, atol=1e-3)
print("PEFT alone gives the same logits")

# %% [markdown]
# ## 7 · Into mlx-lm's own format
#
# mlx-lm keeps adapters in another form: transposed, and with α/r written out as one scale. A trap
# lies in the base: transformers 5 writes `rope_theta` inside `rope_parameters`, and mlx-lm looks for
# it at the top; where it finds none it assumes 10,000 and says nothing. That happens to be the tiny
# model's value; Qwen3's is a million. miniact puts it there for itself. For mlx-lm alone, put it
# there once (`--to merged` does):

# %%
shutil.copytree(BASE, WORK / "base")
described = json.loads((WORK / "base" / "config.json").read_text())
print("missing at the top:", rope_at_top(described))
(WORK / "base" / "config.json").write_text(json.dumps(described | rope_at_top(described)))

export(WORK / "mlx", "mlx", WORK / "for-mlx-lm", str(WORK / "base"))
for file in sorted((WORK / "for-mlx-lm").iterdir()):
    print(file.name)
settings = json.loads((WORK / "for-mlx-lm" / "adapter_config.json").read_text())["lora_parameters"]
assert settings["scale"] == MODEL.alpha / MODEL.rank
stored = load_file(WORK / "for-mlx-lm" / "adapters.safetensors")
name = "model.layers.0.self_attn.q_proj"
A = trained["mlx"][f"base_model.model.{name}.lora_A.weight"]
assert np.array_equal(A, stored[f"{name}.lora_a"].T)

model, _ = mlx_lm.load(str(WORK / "base"), adapter_path=str(WORK / "for-mlx-lm"))
difference = np.abs(np.array(model(mx.array(row))) - expected).max()
print(f"mlx-lm's logits are {difference:.1e} from ours")
assert difference < 1e-3

# %% [markdown]
# ## 8 · What differs: four bits
#
# QLoRA keeps the frozen $W$ in 4 bits, and there the two backends cannot agree, since each has its own
# 16 levels. MLX fits a scale and an offset to every 64 weights, $w\approx s\,q+b$ with $q=0\ldots15$:
# levels at equal distances. NF4 (bitsandbytes) divides every 64 weights by the largest and takes the
# nearest of 16 fixed levels, which lie closer together near 0, where a normal distribution has most of
# its weights. Both from scratch, on one matrix of the model:

# %%
name = "model.layers.0.mlp.down_proj.weight"
matrix = load_file(BASE / "model.safetensors")[name]
w = matrix.reshape(-1, 64)


def affine(w):
    low, high = w.min(1, keepdims=True), w.max(1, keepdims=True)
    step = (high - low) / 15
    return np.round((w - low) / step) * step + low


def quantiles(n):
    """n probabilities from the middle to the edge of a normal distribution, as z, the middle left out."""
    at = np.linspace(0.5, 0.9677083, n + 1)[1:]  # the last as in tutorial 03: at 1 it is infinite
    return np.array([NormalDist().inv_cdf(p) for p in at])


levels = np.concatenate([-quantiles(7)[::-1], [0.0], quantiles(8)])
levels = np.where(levels < 0, levels / quantiles(7).max(), levels / quantiles(8).max())


def nf4(w):
    largest = np.abs(w).max(1, keepdims=True)
    nearest = np.abs((w / largest)[..., None] - levels).argmin(-1)
    return levels[nearest] * largest


def error(rounded, w):
    return float(np.linalg.norm(rounded.reshape(w.shape) - w) / np.linalg.norm(w))


print("NF4's levels:", levels.round(3))

# %% [markdown]
# The libraries do the same. MLX packs eight 4-bit numbers into each 32-bit word, so its levels can be
# read by hand; its fit also puts 0 on a level exactly, so it differs a little from the plain one above.

# %%
packed, scales, offsets = mx.quantize(mx.array(matrix), group_size=64, bits=4)
words = np.array(packed)[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15
unpacked = words.reshape(-1, 64) * np.array(scales).reshape(-1, 1) + np.array(offsets).reshape(
    -1, 1
)
by_mlx = np.array(mx.dequantize(packed, scales, offsets, group_size=64, bits=4))
assert np.allclose(unpacked, by_mlx.reshape(-1, 64), atol=1e-6)
print(f"relative error {error(by_mlx, w):.4f} by MLX, {error(affine(w), w):.4f} by hand")
assert np.isclose(error(by_mlx, w), error(affine(w), w), rtol=0.1)

if importlib.util.find_spec("bitsandbytes"):  # not on a Mac
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, how = quantize_4bit(
        torch.tensor(matrix), blocksize=64, quant_type="nf4", compress_statistics=False
    )
    assert np.allclose(nf4(w), dequantize_4bit(codes, how).numpy().reshape(w.shape), atol=1e-5)

# %% [markdown]
# Which is better? Count the bits too: next to the 4 of every weight stand the group's scale and
# offset (16 bits each on a Mac), or NF4's scale (8 bits, after a second quantisation with a float32
# for every 256 of them).

# %%
drawn = np.random.default_rng(SEED).normal(size=matrix.size)
schemes = {
    "affine, groups of 64": (affine, 64, 4 + (16 + 16) / 64),
    "affine, groups of 128": (affine, 128, 4 + (16 + 16) / 128),
    "NF4, blocks of 64": (nf4, 64, 4 + 8 / 64 + 32 / (64 * 256)),
}
errors = {}
print("relative error on               this matrix   normal numbers   bits per weight")
for label, (method, size, bits) in schemes.items():
    errors[label] = [
        error(method(v), v) for v in (matrix.reshape(-1, size), drawn.reshape(-1, size))
    ]
    print(f"{label:32} {errors[label][0]:11.4f} {errors[label][1]:16.4f} {bits:17.2f}")
wide, narrow, normal = (
    errors[label][1]
    for label in ("affine, groups of 128", "affine, groups of 64", "NF4, blocks of 64")
)
assert narrow < normal < wide

# %% [markdown]
# So neither is simply better: MLX's groups of 64 come a little closer and cost more bits; at about
# equal bits NF4 comes closer.
#
# A QLoRA adapter still moves between the backends, for $A$ and $B$ are never rounded; but it then sits
# beside a base that is rounded differently, so outputs are close and not equal.
#
# ## 9 · What you type on a Mac

# %%
print("""\
pip install -e ".[mlx]"
miniact run household --backend mlx   # on Apple silicon the default, auto, means MLX too
miniact run qwen3-0.6b --backend mlx model.adapter=qlora --out runs/mac
miniact export runs/mac/stages/3-rl/adapter --to mlx --out for-mlx-lm
miniact export runs/mac/stages/3-rl/adapter --to merged --out merged
mlx_lm.generate --model merged --prompt "You are in the kitchen. ..."
""")
config = load_config("qwen3-0.6b", ["model.backend=mlx", "model.adapter=qlora"])
assert config.recipe[2] == "rl" and config.model.backend == "mlx"

# %% [markdown]
# **What you should see.** Two loss curves that cannot be told apart. Their difference is rounding:
# near one step of float32 at first, then more, since every step feeds on the one before, but it does
# not run away. Log-probs, gradients and adapters agree to about five digits. Sampling is the
# exception: each library has its own random numbers, so ACT and RL draw other answers from the same
# seed, and two runs are then alike in distribution only. And a stage resumes only on the backend
# where it began, because the optimizers' states are stored differently.
#
# ## Exercise
#
# MLX's AdamW has `bias_correction=False` by default. How much further does the very first step go
# without it? Work it out from $m=(1-\beta_1)g$ and $v=(1-\beta_2)g^2$, then check:


# %%
def first_step(bias_correction):
    optimizer = AdamW(learning_rate=1e-3, weight_decay=0.0, bias_correction=bias_correction)
    after = optimizer.apply_gradients({"w": mx.array([0.5])}, {"w": mx.array([0.0])})
    return abs(after["w"].item())


# %% [markdown]
# ## Solution
#
# With it m̂/√v̂ = ±1, so the step is the learning rate; without it (1 − β₁)/√(1 − β₂) of it.

# %%
factor = first_step(False) / first_step(True)
assert np.isclose(factor, (1 - 0.9) / np.sqrt(1 - 0.999), rtol=1e-3)
print(f"{factor:.2f} times as far, in the first step of every stage")
