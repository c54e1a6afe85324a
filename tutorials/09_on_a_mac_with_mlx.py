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
except ImportError as error:
    reason = str(error).partition("\n")[0]
    raise SystemExit(f"MLX is missing: pip install 'miniact[mlx]' ({reason})") from None

import importlib.util
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

import miniact
from aside.drawings import draw_two_backends
from aside.weights import adapter, apart, gradients, write_noise
from miniact.backends.models import find_model, rope_at_top
from miniact.backends.protocol import Policy, load_policy
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
both = {name: load_policy(replace(MODEL, backend=name), SEED) for name in ("torch", "mlx")}

methods = [name for name in vars(Policy) if not name.startswith("_")]
assert all(hasattr(policy, name) for policy in both.values() for name in methods)
print("all that a stage may ask of a model:", ", ".join(methods))

# %% [markdown]
# How much code is that?

# %%
lines = {f: len(f.read_text().splitlines()) for f in Path(miniact.__file__).parent.rglob("*.py")}
for name in both:
    own = sum(n for f, n in lines.items() if f.parent.name == name)
    print(f"backends/{name}/ has {own / sum(lines.values()):.0%} of the package's lines")

# %% [markdown]
# Each backend draws its own random $A$, so give both one adapter: first a fresh one ($B=0$: it changes
# nothing), then one with noise in $A$ and $B$, because a $B$ of zeros would hide mistakes.

# %%
both["torch"].save_adapter(WORK / "fresh")
shutil.copytree(WORK / "fresh", WORK / "noisy")
write_noise(WORK / "noisy", SEED)
for policy in both.values():
    policy.load_adapter(WORK / "noisy")

# %% [markdown]
# ## 2 · LoRA in MLX, from scratch
#
# $y=Wx+\frac{\alpha}{r}BAx$ is one line. mlx-lm has a LoRA layer too, but it takes a raw scale where
# PEFT takes α and r, and it stores $A$ and $B$ transposed; miniact's own keeps PEFT's names and shapes.

# %%
layer = both["mlx"].model.layers[0].self_attn.q_proj
x = mx.random.normal((5, layer.base.weight.shape[1]), key=mx.random.key(SEED))
A, B = layer.lora_A, layer.lora_B
by_hand = np.array(x @ layer.base.weight.T + MODEL.alpha / MODEL.rank * (x @ A.T) @ B.T)
same_layer = both["torch"].causal_lm.model.layers[0].self_attn.q_proj
with torch.no_grad():
    in_torch = same_layer(torch.tensor(np.array(x))).numpy()
assert np.allclose(by_hand, np.array(layer(x)), atol=1e-5)
assert np.allclose(by_hand, in_torch, atol=1e-4)
print(f"largest difference to PEFT's layer in PyTorch: {np.abs(by_hand - in_torch).max():.0e}")

# %% [markdown]
# ## 3 · One GRPO group for both
#
# A question to the critic and eight answers with their advantages, as in tutorial 01. The answers come from
# the fresh adapter and are scored by the noisy one. So the policy has moved since it sampled, ratios
# are not 1, and some tokens get clipped.

# %%
(trajectory,) = collect(make_env("household"), "train", 1, seed=SEED, source="household expert")
state, expert = trajectory.state(2), trajectory.steps[2].action
prompter = Prompter(both["torch"].tokenizer, PromptConfig(form="plain", show_admissible=False))
shown = (expert, next(a for a in state.admissible if a != expert))
critic = prompter.critic(state, shown).tokens

both["torch"].load_adapter(WORK / "fresh")
(answers,) = both["torch"].sample([critic], n=8, max_tokens=10, temperature=1.0, seed=SEED)
both["torch"].load_adapter(WORK / "noisy")
rewards = np.array([choice_reward(prompter.parse_choice(a.text, shown), 0) for a in answers])
assert np.ptp(rewards) > 0, "this seed gives a group with something to learn; others may not"
batch = weigh([make_group(critic, answers, advantages(rewards))], "grpo", 10)
print(f"shown {shown}, rewards {rewards}")

# %% [markdown]
# What does each backend say of the answers' tokens?

# %%
logps = {name: np.concatenate(policy.logprobs(batch)[0]) for name, policy in both.items()}
for name, logp in logps.items():
    print(f"log π of the first three of {len(logp)} tokens by {name}: {logp[:3].round(5)}")
assert np.allclose(logps["torch"], logps["mlx"], atol=1e-4)

# %% [markdown]
# ## 4 · The loss, written once
#
# numpy, torch and mlx.core share their operators and names such as `exp`, `clip` and `minimum`. So a
# loss takes the library as its argument, and there is nothing to keep in step. The same function three times:

# %%
(group,) = batch
lengths = [len(c.tokens) for c in group.completions]
old = np.concatenate([c.old_logps for c in group.completions])
advantage = np.repeat([c.advantage for c in group.completions], lengths).astype(np.float32)
weight = np.repeat([c.weight for c in group.completions], lengths).astype(np.float32)
tokens, loss = Tokens(weight, advantage, old, old), GRPOLoss()
values = {
    "numpy": loss(np, logps["torch"], tokens)[0],
    "torch": loss(torch, torch.tensor(logps["torch"]), tokens.map(torch.tensor))[0],
    "mlx": loss(mx, mx.array(logps["mlx"]), tokens.map(mx.array))[0],
}
print(*(f"{name} {float(value):+.6f}" for name, value in values.items()), sep="   ")
assert np.allclose([float(value) for value in values.values()], values["numpy"], atol=1e-5)

# %% [markdown]
# Now through the whole model, the prompt computed once for its eight answers on both sides: PyTorch
# with a packed row, MLX through its cache.

# %%
for name, policy in both.items():
    metrics = policy.forward_backward(batch, loss)
    print(f"{name:5} loss {metrics['loss']:+.6f}, clipped share {metrics['clip_fraction']:.3f}")
    assert np.isclose(metrics["loss"], values["numpy"], atol=1e-4)
found = {name: gradients(policy) for name, policy in both.items()}
distance = apart(found["mlx"], found["torch"])
print(f"{len(found['mlx'])} gradients, at most {distance:.0e} apart (relative)")
assert distance < 1e-4

# %% [markdown]
# ## 5 · Many steps: do small differences grow?
#
# Twenty steps of imitation from the fresh adapter, on the same batches. Two defaults had to be pinned
# for this: MLX's AdamW leaves out the bias correction unless told otherwise (see the exercise), and
# gradients are clipped to a norm with PyTorch's formula on both sides.

# %%
examples = []
for t in collect(make_env("household"), "train", 40, seed=SEED, source="household expert"):
    reply = Completion(prompter.reply_tokens(t.steps[1].action))
    examples.append(Group(prompter.action(t.state(1)).tokens, (reply,)))
batches = [weigh(examples[at : at + 4], "dapo", 0) for at in range(0, 40, 4)] * 2

curves = {}
for name, policy in both.items():
    policy.optim_step(0.0, 1.0)  # drops the gradients of section 4
    policy.load_adapter(WORK / "fresh")
    policy.reset_optimizer()
    losses = []
    for some in batches:
        losses.append(policy.forward_backward(some, cross_entropy)["loss"])
        policy.optim_step(lr=3e-3, max_grad_norm=1.0)
    curves[name] = np.array(losses)
    policy.save_adapter(WORK / name)

# %% [markdown]
# How far apart did the two end?

# %%
distance = apart(adapter(WORK / "mlx"), adapter(WORK / "torch"))
print(f"A and B are at most {distance:.0e} apart (relative)")
assert distance < 1e-2
assert np.abs(curves["torch"] - curves["mlx"]).max() < 1e-3

# %%
draw_two_backends(curves["torch"], curves["mlx"])

# %% [markdown]
# **What you should see.** Two loss curves that cannot be told apart. Their difference is rounding: near
# one step of float32 at first, then more, since every step feeds on the one before, but it does not
# run away. Sampling is the exception to all this: each library has its own random numbers, so ACT and RL
# draw other answers from the same seed, and two runs are then alike in distribution only. And a stage
# resumes only on the backend where it began, because the optimizers' states are stored differently.
#
# ## 6 · One adapter format
#
# Both write PEFT's two files. So what MLX trained opens in PyTorch, and the other way round:


# %%
def log_prob(policy, name):
    policy.load_adapter(WORK / name)
    return np.concatenate(policy.logprobs(batch)[0])


for writer, reader in (("mlx", "torch"), ("torch", "mlx")):
    written, read = log_prob(both[writer], writer), log_prob(both[reader], writer)
    changed = np.abs(read - log_prob(both[reader], "fresh")).max()
    difference = np.abs(read - written).max()
    print(f"{writer} → {reader}: the adapter changes log π by up to {changed:.2f};", end=" ")
    print(f"then reader and writer are {difference:.0e} apart")
    assert difference < 1e-4 < 0.1 < changed

# %% [markdown]
# PEFT itself, without any of miniact, reads it too:

# %%
both["mlx"].load_adapter(WORK / "mlx")
expected = np.array(both["mlx"].model(mx.array([critic])))
peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), WORK / "mlx")
with torch.no_grad():
    logits = peft(torch.tensor([critic])).logits.numpy()
assert np.allclose(logits, expected, atol=1e-3)
print(f"PEFT's logits are {np.abs(logits - expected).max():.0e} from ours")

# %% [markdown]
# ## 7 · Into mlx-lm's own format
#
# mlx-lm keeps adapters in another form: transposed, and with α/r written out as one scale. `miniact export
# --to mlx` writes it. A trap lies in the base: transformers 5 writes `rope_theta` inside
# `rope_parameters`, and mlx-lm looks for it at the top; where it finds none it assumes 10,000 and says
# nothing. That happens to be the tiny model's value; Qwen3's is a million. miniact's own loader puts it
# there; for mlx-lm alone, put it there once (`--to merged` does):

# %%
shutil.copytree(BASE, WORK / "base")
described = json.loads((WORK / "base" / "config.json").read_text())
print("missing at the top:", rope_at_top(described))
(WORK / "base" / "config.json").write_text(json.dumps(described | rope_at_top(described)))

export(WORK / "mlx", "mlx", WORK / "for-mlx-lm", str(WORK / "base"))
model, _ = mlx_lm.load(str(WORK / "base"), adapter_path=str(WORK / "for-mlx-lm"))
difference = np.abs(np.array(model(mx.array([critic]))) - expected).max()
print(f"mlx-lm's logits are {difference:.0e} from ours")
assert difference < 1e-3

# %% [markdown]
# ## 8 · What differs: four bits
#
# QLoRA keeps the frozen $W$ in 4 bits, and there the two backends cannot agree, since each has its own
# 16 levels. MLX fits a scale and an offset to every group of weights, $w\approx s\,q+b$ with
# $q=0\ldots15$: levels at equal distances. NF4 (PyTorch, tutorial 03) divides every 64 weights by the largest
# and takes the nearest of 16 fixed levels, which lie closer together near 0, where most weights are.

# %%
matrix = load_file(BASE / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]


def affine(w, size):
    return np.array(mx.dequantize(*mx.quantize(mx.array(w), size, 4), size, 4))


def nf4(w, size):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    return dequantize_4bit(
        *quantize_4bit(torch.tensor(w), blocksize=size, quant_type="nf4")
    ).numpy()


# %% [markdown]
# Which is better? Count the bits too: beside the 4 of every weight stand the group's scale and offset (16
# bits each on a Mac), or NF4's scale (8 bits, and 32 for every 256 of them). The second column has random
# numbers from a normal distribution, for which NF4 was made.

# %%
drawn = np.random.default_rng(SEED).normal(size=(256, 256)).astype(np.float32)
schemes = [(f"MLX's, groups of {size}", affine, size, 4 + 32 / size) for size in (64, 128)]
if importlib.util.find_spec("bitsandbytes"):  # not on a Mac
    schemes.append(("NF4, blocks of 64", nf4, 64, 4 + 8 / 64 + 32 / (64 * 256)))
print(f"{'relative error on':22}this matrix  normal numbers  bits a weight")
for label, rounded, size, bits in schemes:
    errors = [np.linalg.norm(rounded(w, size) - w) / np.linalg.norm(w) for w in (matrix, drawn)]
    print(f"{label:22}{errors[0]:11.4f}{errors[1]:16.4f}{bits:15.2f}")
    assert min(errors) > 0.08 and max(errors) < 0.12

# %% [markdown]
# So neither is simply better: on normal numbers MLX's groups of 64 come a little closer than NF4 and cost
# more bits; its groups of 128, which cost about as many, come less close. A QLoRA adapter still moves between the backends, for $A$ and $B$ are
# never rounded; but it then sits beside a base that is rounded differently, so outputs are close and
# not equal.
#
# ## 9 · What you type on a Mac
#
#     pip install -e ".[mlx]"
#     miniact run household            # on Apple silicon MLX is the default; elsewhere --backend mlx
#     miniact run qwen3-0.6b model.adapter=qlora --out runs/mac
#     miniact export runs/mac/stages/3-rl/adapter --to mlx --out for-mlx-lm
#     miniact export runs/mac/stages/3-rl/adapter --to merged --out merged
#     mlx_lm.generate --model merged --prompt "You are in the kitchen. ..."
#
# docs/mac.md says what fits a Mac of 16 GB.
#
# ## Exercise
#
# MLX's AdamW has `bias_correction=False` by default. How much further does the very first step go
# without it? Work it out from $m=(1-\beta_1)g$ and $v=(1-\beta_2)g^2$ with $\beta_1=0.9$ and
# $\beta_2=0.999$, then check with one weight:
#
#     AdamW(learning_rate=1e-3, bias_correction=False).apply_gradients({"w": …}, {"w": …})

# %% [markdown]
# ## Solution
#
# With the correction $\hat m/\sqrt{\hat v}=\pm1$, so the first step is the learning rate; without it
# it is $(1-\beta_1)/\sqrt{1-\beta_2}$ times that.


# %%
def first_step(bias_correction):
    optimizer = AdamW(learning_rate=1e-3, weight_decay=0.0, bias_correction=bias_correction)
    after = optimizer.apply_gradients({"w": mx.array([0.5])}, {"w": mx.array([0.0])})
    return abs(after["w"].item())


factor = first_step(False) / first_step(True)
assert np.isclose(factor, (1 - 0.9) / np.sqrt(1 - 0.999), rtol=1e-3)
print(f"{factor:.2f} times as far, in the first step of every stage")
