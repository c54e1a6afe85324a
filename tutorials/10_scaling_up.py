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
#   +\underbrace{8\,n}_{\text{AdamW}}+\max\big(M_{\text{training pass}},\;M_{\text{KV cache}}\big)$$
#
# with $N$ frozen weights of $b$ bytes and $n$ trained ones, float32 with gradients and moments. Each
# part is worked out by hand below and asserted equal to what `miniact plan` says. The plan is then
# held against a measured peak of the tiny model on this CPU.
# **Nothing on this page has been measured on a GPU**: 24 GB is arithmetic so far.

# %%
from dataclasses import fields, is_dataclass, replace

import numpy as np

from aside.drawings import draw_levers, draw_peaks
from aside.measure import peaks
from miniact.config import load_config
from miniact.config.sections import ModelConfig
from miniact.tools.cost import Work, known_shape, weight_bytes
from miniact.tools.devices import Device
from miniact.tools.plan import CHUNK, GB, memory, prompt_bytes, stage_works, training_bytes

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
shapes = [known_shape(name) for name in ("builtin:tiny", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B")]
print("             layers     h      q     k      f       V  tied          N")
for s in shapes:
    q, k = s.heads * s.head_dim, s.kv_heads * s.head_dim
    linear = s.layers * (2 * s.hidden * q + 2 * s.hidden * k + 3 * s.hidden * s.ff)
    norms, ends = (2 * s.layers + 1) * s.hidden, s.vocab * s.hidden * (1 if s.tied else 2)
    print(f"{s.name:14}{s.layers:5}{s.hidden:6}{q:7}{k:6}{s.ff:7}{s.vocab:8}{s.tied!s:>6}", end="")
    print(f"{(ends + linear + norms) / 1e6:9.1f} M")
    assert ends + linear + norms == s.parameters and linear == s.linear

# %% [markdown]
# ## 2 · The work: one step of ACT on Qwen3-8B
#
# The shipped config `qwen3-8b-qlora` asks for prompts of up to $P$ tokens and $G$ answers of up to $C$.
# (Here answers of 512 tokens instead of 1,024: then one group fills one pass, and there is one case to
# follow.) A GPU of 24 GB is only a number; speeds play no part in memory.

# %%
config = load_config("qwen3-8b-qlora", ["stage.act.max_tokens=512"])
model, qwen = config.model, shapes[-1]
work = next(w for w in stage_works(config) if w.name == "act")
gpu = Device("cuda", "a GPU of 24 GB", "bfloat16", free=24 * GB, matmul=1, bandwidth=1)
plan = memory(qwen, model, work, gpu)

P, G, C, r, b = work.prompt, work.group, work.completion, model.rank, 2  # b: bytes of bfloat16
L, h, f, N = qwen.layers, qwen.hidden, qwen.ff, qwen.parameters
q, k = qwen.heads * qwen.head_dim, qwen.kv_heads * qwen.head_dim
print(
    f"P = {P}, G = {G}, C = {C}; LoRA of rank r = {r}; {model.max_tokens_per_batch} tokens a pass"
)
assert model.max_tokens_per_batch == P + G * C, "one whole group"

# %% [markdown]
# ## 3 · Weights
#
# bfloat16 takes 2 bytes. NF4 takes 4 bits, a scale of 8 bits for every 64 weights, and 32 bits for every
# 256 of those scales. QLoRA rounds the linear layers; embedding, head and norms stay as they are.

# %%
nf4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # bytes a weight
print(f"NF4: {nf4:.3f} bytes a weight\n\nGB{'float32':>21}   bfloat16   NF4 linear layers")
for s in shapes:
    by_hand = [s.parameters * 4, s.parameters * 2, s.linear * nf4 + (s.parameters - s.linear) * 2]
    for size, (adapter, dtype) in zip(
        by_hand, (("lora", "float32"), ("lora", "bfloat16"), ("qlora", "bfloat16"))
    ):
        assert np.isclose(size, weight_bytes(s, ModelConfig(adapter=adapter), dtype), rtol=1e-3)
    print(f"{s.name:14} {by_hand[0] / GB:8.3f} {by_hand[1] / GB:10.3f} {by_hand[2] / GB:10.3f}")

# %% [markdown]
# ## 4 · Adapter, gradients, optimizer
#
# LoRA adds $r\,(i+o)$ weights beside a layer with $i$ inputs and $o$ outputs. They are float32, and so
# are their gradients: 8 bytes each. AdamW keeps two moments: 8 bytes more. Training *all* weights would
# keep all of them in float32, with gradients and moments: 16 bytes each.

# %%
widths = [(h, q), (h, k), (h, k), (q, h), (h, f), (h, f), (f, h)]
n = L * sum(r * (i + o) for i, o in widths)
assert (plan.adapter, plan.optimizer) == (8 * n, 8 * n)
full = memory(qwen, replace(model, adapter="full"), work, gpu)
assert full.weights + full.adapter + full.optimizer == 16 * N
print(f"LoRA: {n / 1e6:.1f} M trained weights, {n / N:.2%} of all: {16 * n / GB:.2f} GB")
print(f"all weights: {16 * N / GB:.0f} GB")

# %% [markdown]
# ## 5 · The training pass
#
# The backward pass needs what the forward pass computed. Per token a layer keeps about $9h$ numbers
# (inputs and norms, which compute in float32), $3f$ (the gated MLP) and $7r$ (LoRA's narrow products);
# attention keeps queries, keys, values and outputs. At the top come the logits: a vocabulary of 150,000
# words takes 2 + 4 + 4 bytes per word *and token* (logits, their float32 copy, the probabilities).
#
# *Checkpointing* keeps only each layer's input, $h$ numbers a token, and computes a layer again when its
# turn comes: then one layer's worth exists at a time. Logits and the gradients that pass an MLP do
# not exist together either; hence the two max.


# %%
def training_by_hand(tokens, with_logits, checkpointing):
    """Bytes. tokens: that pass the model; with_logits: whose logits exist at once."""
    layer = b * tokens * (9 * h + 3 * f + 7 * r + 2 * q + 2 * k)
    passing, logits = b * tokens * 3 * f, with_logits * qwen.vocab * (2 + 4 + 4)
    if checkpointing:
        return L * b * tokens * h + max(layer + passing, logits)
    return L * layer + max(passing, logits)


# %% [markdown]
# What passes the model? With the prompt shared, $P+GC$ tokens and not $G(P+C)$; all answers see the same
# keys and values. Logits are computed at the answers' tokens only, and for 512 tokens at a
# time, with their gradient formed before the next 512.

# %%
rows, shared = G * (P + C), P + G * C  # tokens: a row per answer, or the prompt once
for checkpointing in (False, True):
    by_hand = training_by_hand(shared, CHUNK, checkpointing)
    so = replace(model, gradient_checkpointing=checkpointing)
    assert by_hand == training_bytes(qwen, so, work, "bfloat16")
    print(f"{by_hand / GB:5.1f} GB with{'' if checkpointing else 'out'} checkpointing")

# %% [markdown]
# ## 6 · The KV cache
#
# Sampling keeps the keys and values of every token in every layer: $2Lk$ numbers. The prompt's are
# kept once for all its answers. On top come the logits of one step. Sampling and training never happen
# together, and sampling takes as many prompts at once as the free memory holds
# (`model.sample_memory`): so training is what must fit, and sampling uses what is left.

# %%
token = 2 * L * k * b
assert prompt_bytes(qwen, work, gpu) == (P + G * C) * token + G * qwen.vocab * 16
print(f"{token / 1000:.0f} kB a token; one group: {(P + G * C) * token / GB:.2f} GB;", end=" ")
print(f"with G copies of the prompt: {G * (P + C) * token / GB:.2f} GB")

# %% [markdown]
# ## 7 · All together, and what each lever does
#
# Qwen3-8B, starting from one row per answer with all logits at once, one lever pulled after the other:

# %%
levers = {  # (weights, training pass), bytes
    "LoRA, a row\nper answer": (2 * N, training_by_hand(rows, G * (P + C), False)),
    "+ shared\nprompt": (2 * N, training_by_hand(shared, P + G * C, False)),
    "+ logits of\nanswers, in chunks": (2 * N, training_by_hand(shared, CHUNK, False)),
    "+ check-\npointing": (2 * N, training_by_hand(shared, CHUNK, True)),
    "+ QLoRA": (plan.weights, training_by_hand(shared, CHUNK, True)),
}
rest = plan.process + 16 * n  # the libraries; adapter, gradients, moments
parts = {
    name: {"process, adapter, moments": rest / GB, "weights": w / GB, "training pass": t / GB}
    for name, (w, t) in levers.items()
}
total = [sum(of.values()) for of in parts.values()]
assert np.isclose(total[-1] * GB, rest + plan.weights + plan.training)
assert [gb > 24 for gb in total] == [True, True, True, False, False]

# %%
draw_levers(parts, limit=24)

# %% [markdown]
# **How to read it.** Sharing the prompt and checkpointing take the most away, both from the training pass.
# With them and the chunked logits the step fits under the line even in bfloat16, but barely; QLoRA
# halves what is left. Adapter, gradients and moments, the largest part of full fine-tuning, are a sliver.
#
# ## 8 · Is the plan true? A measurement
#
# What can be measured here: real training steps of the tiny model, in a process of its own, whose peak
# of resident memory the system counts. The libraries' own memory and the weights are there before and
# are taken off.

# %%
p, g, c, batches = 512, 8, 16, (4, 8, 16, 32)
cpu = Device("cpu", "this CPU", "float32", free=GB, matmul=1, bandwidth=1)
planned, measured = {}, {}
for on in (False, True):
    tiny = ModelConfig(backend="torch", device="cpu", dtype="float32", gradient_checkpointing=on)
    tiny = replace(tiny, path="builtin:tiny", max_tokens_per_batch=batches[-1] * (p + g * c))
    works = (Work("act", 1, batch, p, g, c, True) for batch in batches)
    each = [memory(shapes[0], tiny, w, cpu) for w in works]
    planned[on] = np.array([m.adapter + m.optimizer + m.training for m in each])
    measured[on] = peaks(tiny, (p, g, c), batches)
    if len(measured[on]):  # on Linux
        ratio = measured[on] / planned[on]
        print("measured / planned:", *(f"{x:.2f}" for x in ratio), f" checkpointing: {on}")
        assert abs(ratio[-1] - 1) < 0.2, "the largest batch, where fixed costs no longer matter"

# %%
draw_peaks(np.array(batches) * (p + g * c), planned, measured)

# %% [markdown]
# **What you should see.** Dots close to the planned lines. That is the evidence there is. For a GPU the same
# formulas stand unchecked, and they leave out what its allocator wastes between blocks: plan with room
# to spare.
#
# ## 9 · From the tiny config to the large one
#
# Scaling up is another config, not other code. Both are resolved, defaults included, and compared;
# stages that are not in the recipe are left out.


# %%
def flat(section, above=""):
    """{"stage.il.lr": value, …} of a config."""
    values = {}
    for field in fields(section):
        value, name = getattr(section, field.name), above + field.name
        values |= flat(value, name + ".") if is_dataclass(value) else {name: value}
    return values


small, large = flat(load_config("household-plain")), flat(config)
for name in small:
    unused = name.startswith("stage.") and name.split(".")[1] not in config.recipe
    if small[name] != large[name] and not unused:
        print(f"{name:30} {small[name]!s:>16} → {large[name]!s}")

# %% [markdown]
# | what differs | why |
# |---|---|
# | `model.path` | the only line that names the model |
# | `model.adapter`, `gradient_checkpointing`, `max_tokens_per_batch` | memory: sections 3, 5 and 7 |
# | `prompt.form`, `stage.*.thinking`, `format_weight` | a pretrained model reasons, then answers in tags, and earns a little for a readable answer; the tiny one has no words for it |
# | `max_tokens` of stages and evaluation, `eval.temperature` | room to reason in; and greedy thoughts repeat themselves without end |
# | `prompt.*`, `pairs.*` | longer prompts, more of the history, whole sentences as actions |
# | `stage.*.lr`, `schedule` | a large pretrained model needs smaller steps; GRPO smaller ones than imitation |
# | `steps`, `batch`, `env.*`, the sizes in `eval.*` | how much is played, trained and measured: the tiny run must end in minutes |
#
# ## Exercise
#
# You have 12 GB. How long can a prompt of Qwen3-8B be under this config, with answers of 512
# tokens, if one answer at a time goes through a training pass? The plan says what a prompt of P tokens
# needs; look for the longest, then explain the slope: how many bytes does one more token cost?
#
#     def peak(P):
#         tight = replace(model, max_tokens_per_batch=P + 512)
#         return memory(qwen, tight, Work("act", 1, 1, P, G, 512, True), gpu).peak

# %% [markdown]
# ## Solution
#
# Halve the interval in which the answer lies. One more token of prompt costs an input of $h$ numbers in each
# layer, and one layer in full: linear layers, attention, gradients on their way through the MLP.


# %%
def peak(P):
    tight = replace(model, max_tokens_per_batch=P + 512)
    return memory(qwen, tight, Work("act", 1, 1, P, G, 512, True), gpu).peak


low, high = 16, 100_000
while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if peak(middle) <= 12 * GB else (low, middle)

one_layer = (9 * h + 3 * f + 7 * r) + (2 * q + 2 * k) + 3 * f
slope = b * (L * h + one_layer)
assert np.isclose((peak(low) - peak(low - 1000)) / 1000, slope, rtol=0.01)
print(f"longest prompt: {low} tokens; {slope / 1000:.0f} kB for one more,", end=" ")
print(f"of which {b * L * h / slope:.0%} are the kept layer inputs")
