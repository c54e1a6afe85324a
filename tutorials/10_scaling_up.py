# %% [markdown]
# # 10 · Scaling up
#
# **The question.** The tiny model trains in a corner of any laptop. What does the same step need on
# Qwen3-8B, the paper's model, where does each gigabyte go, and what makes it fit a GPU of 24 GB?
#
# **The answer in one line.** Nearly all of it follows from the model's shape, so it can be added up
# before anything is downloaded:
#
# $$M = M_{\text{process}}+\underbrace{N\,b}_{\text{weights}}+\underbrace{8\,n}_{\text{adapter, gradients}}
#   +\underbrace{8\,n}_{\text{AdamW}}+\max\big(M_{\text{activations}}+M_{\text{logits}},\;M_{\text{KV cache}}\big)$$
#
# with $N$ frozen weights of $b$ bytes and $n$ trained ones, float32 with gradients and moments. Each
# part is worked out by hand below and asserted equal to what `miniact plan` says. The plan is then
# held against a measured peak of the tiny model on this CPU.
# **Nothing on this page has been measured on a GPU**: 24 GB is arithmetic so far.

# %%
import json
import os
import subprocess
import sys
from dataclasses import asdict, fields, replace
from fnmatch import fnmatch

import matplotlib.pyplot as plt
import numpy as np
from safetensors import safe_open

from miniact.backends.models import find_model
from miniact.config import load_config
from miniact.config.load import to_dict
from miniact.config.sections import ModelConfig
from miniact.tools.cost import NF4, Work, known_shape, read_shape, weight_bytes
from miniact.tools.devices import Device
from miniact.tools.plan import (
    CHUNK,
    GB,
    PROCESS,
    memory,
    prompt_bytes,
    stage_works,
    together,
    training_bytes,
)

# %% [markdown]
# ## 1 · Shapes
#
# Eight numbers describe a decoder. They stand in the `config.json` beside the weights; those of both
# Qwen3 models are also in `miniact.tools.cost`, so that planning for them downloads nothing. Every layer
# has $W_q$, $W_k$, $W_v$, $W_o$ and three matrices of a gated MLP:
#
# $$N = \underbrace{(1\text{ or }2)\,V h}_{\text{embedding, head}}+L\,\big(2\,h\,q+2\,h\,k+3\,h\,f\big)+(2L+1)\,h$$
#
# $L$ layers, $h$ channels, $q$ and $k$ the widths of queries and of keys (heads times their size),
# $f$ that of the MLP, $V$ words; one matrix serves as embedding and head where they are *tied*.
# (Qwen3's norms of queries and keys are left out: two vectors of a head's size in a layer.)

# %%
smollm2 = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
}
shapes = [
    known_shape("builtin:tiny"),  # read from its folder
    read_shape(smollm2, "SmolLM2-135M"),  # from what its config.json says
    known_shape("Qwen/Qwen3-0.6B"),
    known_shape("Qwen/Qwen3-8B"),
]


def count(s):
    q, k = s.heads * s.head_dim, s.kv_heads * s.head_dim
    layer = 2 * s.hidden * q + 2 * s.hidden * k + 3 * s.hidden * s.ff
    ends = s.vocab * s.hidden * (1 if s.tied else 2)
    return ends + s.layers * layer + (2 * s.layers + 1) * s.hidden


print("               layers   h       q      k      f       V  tied         N")
for s in shapes:
    q, k = s.heads * s.head_dim, s.kv_heads * s.head_dim
    print(
        f"{s.name:14} {s.layers:5} {s.hidden:5} {q:7} {k:6} {s.ff:6} {s.vocab:8} {s.tied!s:>5} {count(s) / 1e6:7.1f} M"
    )
    assert count(s) == s.parameters

with safe_open(f"{find_model('builtin:tiny').path}/model.safetensors", "np") as file:
    stored = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
assert stored == count(shapes[0])
print(f"\nthe tiny model's file holds {stored:,} numbers, as counted")

# %% [markdown]
# ## 2 · The work: one step of ACT on Qwen3-8B
#
# The shipped config `qwen3-8b-qlora` asks for prompts of up to $P$ tokens and $G$ answers of up to $C$.
# A GPU of 24 GB is only a number here; speeds play no part in memory.

# %%
# answers of 512 tokens instead of 1,024: then one group fills one pass, and there is one case to follow
config = load_config("qwen3-8b-qlora", ["stage.act.max_tokens=512"])
model, qwen = config.model, shapes[-1]
work = next(w for w in stage_works(config) if w.name == "act")
P, G, C = work.prompt, work.group, work.completion
gpu = Device("cuda", "a GPU of 24 GB", "bfloat16", free=24 * GB, matmul=1, bandwidth=1)
plan = memory(qwen, model, work, gpu)
print(
    f"P = {P}, G = {G}, C = {C}; rank {model.rank}; at most {model.max_tokens_per_batch} tokens in one pass"
)

# %% [markdown]
# ## 3 · Weights
#
# bfloat16 takes 2 bytes. NF4 takes 4 bits, a scale of 8 bits for every 64 weights, and 32 bits for every
# 256 of those scales. QLoRA rounds the linear layers; embedding, head and norms stay as they are.

# %%
nf4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8
print(f"NF4: {nf4:.4f} bytes a weight; the plan takes {NF4}")
assert np.isclose(nf4, NF4, rtol=1e-3)

print("\nGB                 float32   bfloat16   NF4 linear layers")
for s in shapes:
    q, k = s.heads * s.head_dim, s.kv_heads * s.head_dim
    linear = s.layers * (2 * s.hidden * q + 2 * s.hidden * k + 3 * s.hidden * s.ff)
    by_hand = [s.parameters * 4, s.parameters * 2, linear * nf4 + (s.parameters - linear) * 2]
    planned = [
        weight_bytes(s, ModelConfig(adapter=a), dtype)
        for a, dtype in (("lora", "float32"), ("lora", "bfloat16"), ("qlora", "bfloat16"))
    ]
    assert np.allclose(by_hand, planned, rtol=1e-3)
    print(f"{s.name:14} {by_hand[0] / GB:11.3f} {by_hand[1] / GB:10.3f} {by_hand[2] / GB:10.3f}")

# %% [markdown]
# ## 4 · Adapter, gradients, optimizer
#
# LoRA adds $r\,(i+o)$ weights beside a layer with $i$ inputs and $o$ outputs. They are float32, and so
# are their gradients: 8 bytes each. AdamW keeps two moments: 8 bytes more. Training *all* weights would
# keep all of them in float32, with gradients and moments:

# %%
q, k, h, f = qwen.heads * qwen.head_dim, qwen.kv_heads * qwen.head_dim, qwen.hidden, qwen.ff
widths = [(h, q), (h, k), (h, k), (q, h), (h, f), (h, f), (f, h)]
n = qwen.layers * sum(model.rank * (i + o) for i, o in widths)
assert n == qwen.lora(model.rank)
assert (plan.adapter, plan.optimizer) == (8 * n, 8 * n)

full = memory(qwen, replace(model, adapter="full"), work, gpu)
N = qwen.parameters
assert (full.weights, full.adapter, full.optimizer) == (4 * N, 4 * N, 8 * N)
print(f"LoRA, rank {model.rank}: {n / 1e6:.1f} M trained weights, {n / N:.2%} of all")
print(f"  adapter and gradients {8 * n / GB:.2f} GB, moments {8 * n / GB:.2f} GB")
print(f"all weights: gradients {4 * N / GB:.1f} GB, moments {8 * N / GB:.1f} GB")

# %% [markdown]
# ## 5 · Activations
#
# The backward pass needs what the forward pass computed. Per token a layer keeps about $9h$ numbers
# (inputs and norms, which compute in float32), $3f$ (the gated MLP) and $7r$ (LoRA's narrow products); attention keeps queries,
# keys, values and outputs. With the prompt shared, $P+GC$ tokens pass, not $G(P+C)$; each answer sees
# a copy of the prompt's keys and values.
#
# *Checkpointing* keeps only each layer's input, $h$ numbers a token, and computes a layer again when its
# turn comes: then one layer's worth exists at a time.

# %%
b, T, L = 2, P + G * C, qwen.layers
assert model.max_tokens_per_batch == T, "the config's budget is one whole group"
attention = 4 * q * P + 2 * q * G * C + 2 * k * G * (P + C)
layer = (T * (9 * h + 3 * f + 7 * model.rank) + attention) * b
kept = L * T * h * b
gradients_passing = 3 * T * f * b  # on their way through one MLP
logits = CHUNK * qwen.vocab * (2 + 4 + 4)  # see the next section
one_layer = max(layer + gradients_passing, logits)
assert training_bytes(qwen, model, work, "bfloat16") == kept + one_layer
print(
    f"one layer {layer / GB:.2f} GB; all {L}: {L * layer / GB:.1f} GB; with checkpointing {(kept + layer) / GB:.2f} GB"
)

no_checkpoints = replace(model, gradient_checkpointing=False)
by_hand = L * layer + max(gradients_passing, logits)
assert training_bytes(qwen, no_checkpoints, work, "bfloat16") == by_hand

# %% [markdown]
# ## 6 · Logits
#
# A vocabulary of 150,000 words is what surprises people: logits, their float32 copy and the
# probabilities take 2 + 4 + 4 bytes per word *and token*. Two habits keep them small: compute them at
# the answers' tokens only, and for 512 tokens at a time, with their gradient formed before the next
# 512. They and the gradients that pass an MLP do not exist together: the *largest buffer* below is
# the larger of the two.

# %%
for label, tokens in (
    ("every token of G rows of P + C", G * (P + C)),
    ("the answers' tokens", G * C),
    ("a chunk of them", CHUNK),
):
    print(f"logits of {label:31} {tokens:6} tokens  {tokens * qwen.vocab * 10 / GB:6.2f} GB")

# %% [markdown]
# ## 7 · The KV cache
#
# Sampling keeps the keys and values of every token in every layer: $2Lk$ numbers. The prompt's are
# kept once for all its answers. On top come the logits of one step. Sampling and training never happen
# together, and sampling takes as many prompts at once as the free memory holds
# (`model.sample_memory`): so training is what must fit, and sampling uses what is left.

# %%
per_token = 2 * L * k * b
shared, plain = (P + G * C) * per_token, G * (P + C) * per_token
assert prompt_bytes(qwen, work, gpu) == shared + G * qwen.vocab * 16
print(
    f"{per_token / 1000:.0f} kB a token; one group: {shared / GB:.2f} GB, with G copies of the prompt {plain / GB:.2f} GB"
)
at_once = together(qwen, model, work, gpu)
print(
    f"training takes {plan.training / GB:.2f} GB; {at_once:.0f} of {work.batch} prompts are sampled at once"
)
assert 1 < at_once <= work.batch

# %% [markdown]
# ## 8 · All together, and what each lever does
#
# First four models, each in bfloat16 with LoRA and without checkpointing. Then Qwen3-8B, starting
# from one row per answer with all logits at once, one lever pulled after the other. Then the shipped
# config with one lever taken away. One row per answer is the plan's own estimate for $G$ separate
# sequences; logits at once are added by hand.

# %%
PARTS = ("process", "weights", "adapter, gradients", "optimizer", "activations", "largest buffer")


def parts(s, model, work, whole_logits=0):
    """GB of each part of the peak. whole_logits: tokens whose logits exist at once."""
    m = memory(s, model, work, gpu)
    passing = 3 * min(work.tokens, model.max_tokens_per_batch) * s.ff * 2
    head = min(CHUNK, work.group * work.completion * work.batch) * s.vocab * 10
    kept = m.training - max(passing, head)
    head = max(passing, head, whole_logits * s.vocab * 10)
    return np.array([m.process, m.weights, m.adapter, m.optimizer, kept, head]) / GB


one = replace(work, batch=1)  # one group in a pass
rows = Work("plain", 1, G, P, 1, C, False)  # the same as G separate rows
wide = replace(
    model, adapter="lora", gradient_checkpointing=False, max_tokens_per_batch=G * (P + C)
)
models = {s.name: parts(s, wide, one) for s in shapes}
levers = {
    "LoRA, a row per answer": parts(qwen, wide, rows, G * (P + C)),
    "+ shared prompt": parts(qwen, wide, one, T),
    "+ logits of answers,\nin chunks": parts(qwen, wide, one),
    "+ checkpointing": parts(qwen, replace(wide, gradient_checkpointing=True), one),
    "+ QLoRA": parts(qwen, replace(model, max_tokens_per_batch=T), one),
}
all_groups = replace(model, max_tokens_per_batch=work.tokens)
taken_away = {
    "all levers (the shipped config)": parts(qwen, model, work),
    "without the shared prompt": parts(
        qwen, replace(model, max_tokens_per_batch=G * (P + C)), rows
    ),
    "without chunked logits": parts(qwen, model, one, T),
    "without checkpointing": parts(qwen, no_checkpoints, one),
    "without QLoRA": parts(qwen, replace(model, adapter="lora"), one),
    "with all 16 groups in one pass": parts(qwen, all_groups, work),
    "with half the token budget": parts(qwen, replace(model, max_tokens_per_batch=T // 2), one),
}
needed = plan.process + plan.weights + plan.adapter + plan.optimizer + plan.training
assert work.batch == 16 and np.isclose(levers["+ QLoRA"].sum() * GB, needed)
assert np.isclose(taken_away["all levers (the shipped config)"].sum() * GB, needed)

for title, bars in (
    ("LoRA, no checkpointing", models),
    ("Qwen3-8B, one lever after the other", levers),
    ("Qwen3-8B, one lever taken away", taken_away),
):
    print(f"{title + ', GB':38}", *(f"{p.partition(',')[0]:>11}" for p in PARTS), f"{'all':>7}")
    for name, gb in bars.items():
        print(f"  {name.partition(chr(10))[0]:36}", *(f"{x:11.2f}" for x in gb), f"{gb.sum():7.1f}")
    print()

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), gridspec_kw={"width_ratios": [2, 3]})
for axis, bars in zip(axes, (models, levers)):
    bottom = np.zeros(len(bars))
    for i, part in enumerate(PARTS):
        sizes = np.array([gb[i] for gb in bars.values()])
        axis.bar(range(len(bars)), sizes, bottom=bottom, label=part, color=f"C{i}", width=0.65)
        bottom += sizes
    for x, total in enumerate(bottom):
        white = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        up = total + 0.02 * bottom.max()
        axis.text(x, up, f"{total:.1f}", ha="center", va="bottom", fontsize=8, bbox=white)
    axis.set_ylim(0, 1.12 * bottom.max())
    axis.axhline(24, color="black", linewidth=0.8, linestyle="--")
    axis.set_xticks(range(len(bars)), bars, rotation=30, ha="right", fontsize=8)
axes[0].set_ylabel("GB, planned")
axes[1].set_ylabel("GB, planned")
axes[0].set_title("LoRA, no checkpointing", fontsize=10)
axes[1].set_title("Qwen3-8B, one lever after the other", fontsize=10)
axes[0].text(-0.4, 24.5, "24 GB", va="bottom", fontsize=8)
axes[1].legend(fontsize=8)
figure.tight_layout()
too_much = {name for name, gb in taken_away.items() if gb.sum() > 24}
assert too_much == {"without checkpointing", "with all 16 groups in one pass"}
assert [gb.sum() > 24 for gb in levers.values()] == [True, True, True, False, False]

# %% [markdown]
# ## 9 · Is the plan true? A measurement
#
# The one thing that can be measured here: real training steps of the tiny model, in a process of its
# own, whose peak of resident memory the system counts. Freed memory must go back at once, hence the
# two settings of malloc. The libraries' own memory and the weights are there before and are taken
# off.

# %%
CHILD = """
import json, sys
import numpy as np
from miniact.backends.torch.probe import Probe
from miniact.config.sections import ModelConfig
from miniact.method.grpo import advantages, weigh
from miniact.method.losses import GRPOLoss
from miniact.backends.protocol import load_policy
from miniact.types import Completion, Group

options, P, G, C, batches = json.loads(sys.argv[1])
probe, rng, found = Probe("cpu", "float32"), np.random.default_rng(0), []
policy = load_policy(ModelConfig(**options), 0)
probe.touch(policy.model)
base = probe.used()
tokens = lambda n: tuple(rng.integers(5, 150, n).tolist())
for batch in (1, *batches):  # the first only warms up
    groups = [Group(tokens(P), tuple(
        Completion(tokens(C), 1.0, float(a), np.full(C, -5.0, np.float32))
        for a in advantages(rng.random(G)))) for _ in range(batch)]
    probe.reset_peak()
    policy.forward_backward(weigh(groups, "grpo", C), GRPOLoss())
    policy.optim_step(1e-5, 1.0)
    found.append(probe.peak() - base)
print(json.dumps(found[1:]))
"""
tiny, cpu = shapes[0], Device("cpu", "this CPU", "float32", free=GB, matmul=1, bandwidth=1)
p, g, c, batches = 512, 8, 16, [4, 8, 16, 32]


def plan_and_measure(checkpointing):
    model = ModelConfig(
        path="builtin:tiny",
        backend="torch",
        device="cpu",
        dtype="float32",
        gradient_checkpointing=checkpointing,
        max_tokens_per_batch=batches[-1] * (p + g * c),
    )
    arguments = json.dumps([asdict(model), p, g, c, batches])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, arguments],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    planned = [memory(tiny, model, Work("act", 1, B, p, g, c, True), cpu) for B in batches]
    peaks = [m.adapter + m.optimizer + m.training for m in planned]
    return np.array(peaks), np.array(json.loads(done.stdout))


on_linux = os.path.exists("/proc/self/clear_refs")  # elsewhere no peak can be reset
results = {on: plan_and_measure(on) for on in (False, True)} if on_linux else {}
total = np.array(batches) * (p + g * c)
figure, axis = plt.subplots(figsize=(5.5, 3.2))
for on, (planned, measured) in results.items():
    label = "with checkpointing" if on else "without checkpointing"
    axis.plot(total, planned / 1e6, color=f"C{int(on)}", label=f"planned, {label}")
    axis.plot(total, measured / 1e6, "o", color=f"C{int(on)}", label=f"measured, {label}")
    ratio = measured / planned
    print(f"{label}: measured / planned", *(f"{x:.2f}" for x in ratio))
    assert abs(ratio[-1] - 1) < 0.2, "the largest batch, where fixed costs no longer matter"
axis.set_xlabel("tokens in the pass")
axis.set_ylabel("MB above weights")
axis.set_ylim(bottom=0)
axis.legend(fontsize=8)
figure.tight_layout()

# %% [markdown]
# ## 10 · From the tiny config to the large one, line by line
#
# Scaling up is another config, not other code. Both are resolved, defaults included, and compared;
# stages that are not in the recipe are left out. Every line that differs must match a reason below,
# or this cell fails.

# %%
WHY = {
    "model.path": "the only line that names the model",
    "model.adapter": "weights in 4 bits: section 3",
    "model.gradient_checkpointing": "activations: section 5",
    "model.max_tokens_per_batch": "one whole group, P + G·C, in a pass",
    "prompt.form": "a pretrained model reasons, then answers in tags; the tiny one has no words for it",
    "prompt.*": "longer prompts: more history and the list of admissible actions",
    "env.*": "how much is played and collected; the tiny run must end in minutes",
    "pairs.*": "alternatives are whole sentences, and more states of each trajectory are used",
    "stage.*.lr": "a large pretrained model needs smaller steps; GRPO smaller ones than imitation",
    "stage.*.thinking": "there is reasoning to train",
    "stage.*.max_tokens": "room for it; this is C",
    "stage.*.format_weight": "a little reward for a readable answer, never more than for a right one",
    "stage.*": "how long, how many prompts a step, and how the learning rate goes",
    "eval.*thinking": "asked the way it was trained",
    "eval.*": "more episodes: narrower intervals; longer answers",
}


def flat(section, above=""):
    """{"stage.il.lr": (value, meaning), …} of a config."""
    found = {}
    for field in fields(section):
        value, name = getattr(section, field.name), above + field.name
        if hasattr(value, "__dataclass_fields__"):
            found |= flat(value, name + ".")
        else:
            found[name] = (value, field.metadata["doc"])
    return found


small = load_config("household")
a, z = flat(small), flat(config)
assert to_dict(small)["model"]["path"] == a["model.path"][0]
differs = [name for name in a if a[name][0] != z[name][0]]
trained = [n for n in differs if not n.startswith("stage.") or n.split(".")[1] in config.recipe]
reason = {n: next(why for pattern, why in WHY.items() if fnmatch(n, pattern)) for n in trained}
for why in WHY.values():
    names = [name for name in trained if reason[name] == why]
    if names:
        print(why)
    for name in names:
        print(f"    {name:30} {a[name][0]!s:>16} → {z[name][0]!s}")
print(f"\n{len(trained)} of {len(a)} values differ")

# %% [markdown]
# **What you should see.** In the bars on the left only Qwen3-8B passes 24 GB, and the tiny model's is
# hardly more than the process itself. On the right, sharing the prompt and checkpointing take the
# most away, mostly from the activations; with them and the chunked logits the step fits under the
# line even in bfloat16, but barely, and QLoRA halves what is left. Taken away one at a time,
# checkpointing and the token budget are the two that cannot be missed. The measured dots lie on the
# planned lines, some megabytes above them in the small batches. That is the evidence there is. For a
# GPU the same formulas stand unchecked, and they leave out what its allocator wastes between blocks:
# plan with room to spare.
#
# ## Exercise
#
# You have 12 GB. How long can a prompt of Qwen3-8B be under the shipped config, with answers of 512
# tokens, if one answer at a time goes through a training pass? Look for the longest $P$, then explain
# the slope: how many bytes does one more token of prompt cost?


# %%
def peak(P, C=512):
    tight = replace(model, max_tokens_per_batch=P + C)
    return memory(qwen, tight, Work("act", 1, 1, P, G, C, True), gpu).peak


# %% [markdown]
# ## Solution
#
# Halve the interval in which the answer lies, then take the slope apart.

# %%
low, high = 16, 100_000
while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if peak(middle) <= 12 * GB else (low, middle)
assert peak(low) <= 12 * GB < peak(low + 1)

layer_slope = 9 * h + 3 * f + 7 * model.rank + 4 * q + 2 * k  # one layer, in full
layer_slope += 3 * f  # and the gradients that pass its MLP
slope = b * (L * h + layer_slope)
measured = (peak(low) - peak(low - 1000)) / 1000
print(
    f"longest prompt {low} tokens; {slope / 1000:.0f} kB a token by hand, {measured / 1000:.0f} kB by the plan"
)
print(f"of which the kept layer inputs are {b * L * h / slope:.0%}")
print(
    f"not part of it: {PROCESS['cuda'] / GB:.1f} GB of process and {plan.weights / GB:.1f} GB of weights"
)
assert np.isclose(measured, slope, rtol=0.01)
