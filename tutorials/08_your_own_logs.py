# %% [markdown]
# # 08 · Your own logs
#
# **The question.** You have logs of an agent at work: support tickets, tool calls, a browser. You have
# no simulator of that work, so nothing can be played again. Can a critic be trained from logs alone,
# and how do you know that it helped?
#
# **The answer in one line.** A log is a list of expert states. Whatever needs only states works: pairs,
# ACT, IL, RL on the expert's action. What needs a world (success rates) cannot be measured; on tasks
# held out from training you can measure two things: how often the agent's next action is the log's,
# and how often it tells the log's action from one that the initial policy proposed:
#
# $$\text{next action}=\frac1n\sum_{(s,a^+)}\mathbf 1\big[c(\hat a)=c(a^+)\big],\qquad
#   \text{judgement}=\frac1{2m}\sum_{(s,a^+,a^-)}\ \sum_{\text{both orders}}\mathbf 1\big[\text{the choice is }a^+\big]$$
#
# over $n$ held-out states and $m$ held-out pairs; $\hat a$ is the policy's likeliest action at $s$,
# and $c$ the canonical form in which actions are compared.
#
# This page imports a log that ships with miniact, splits it by task, makes pairs, runs ACT → IL → RL
# and measures both before and after.

# %%
import json
import tempfile
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

import miniact
from miniact.backends.models import find_model, load_tokenizer
from miniact.config import load_config
from miniact.data.importing import describe, import_log, read_log
from miniact.data.trajectories import TrajectoryFile, hold_out
from miniact.evaluation.rates import wilson
from miniact.experiments.pipeline import start_run
from miniact.method.pairs import read_pairs
from miniact.method.rewards import same_action

LOGS = Path(miniact.__file__).parent / "data" / "samples"
WORK = Path(tempfile.mkdtemp())
SEED = 0

# %% [markdown]
# ## 1 · What a log is
#
# OpenAI's chat format, one conversation a line. This one was written by the household world's expert
# (`dev/make_logs.py` made it); one episode in twelve is a failure, as real logs have them.
# From here on no world is used: the file is all there is.

# %%
lines = (LOGS / "household-chat.jsonl").read_text().splitlines()
conversation = json.loads(lines[0])
print(f"{len(lines)} conversations; the first has success = {conversation['success']}\n")
for message in conversation["messages"][:6]:
    print(f"{message['role']:>9}: {message['content']}")

# %% [markdown]
# ## 2 · From turns to states
#
# The first user message is the task, what follows each later one is an observation, what the assistant
# says is an action. From scratch that is a short loop:

# %%
task, seen, by_hand = None, [], []
for message in conversation["messages"]:
    if message["role"] == "user":
        text = message["content"]
        if task is None:
            marked, _, text = text.partition("\n\n")
            task = marked.removeprefix("Your task is to: ")
        seen.append(text)
    elif message["role"] == "assistant":
        by_hand.append(("\n".join(seen), message["content"]))
        seen = []

counts = Counter()
trajectory = next(read_log(LOGS / "household-chat.jsonl", "chat", counts))
assert trajectory.task == task
assert [(s.observation, s.action) for s in trajectory.steps] == by_hand
print("task:", trajectory.task)
print("s_1: ", by_hand[1])

# %% [markdown]
# The package does the same for the whole file, and for the hard cases: thoughts before the action,
# turns marked as not to imitate, several tool calls at once, damaged lines. It says what it did:
#
#     miniact import --format chat LOG.jsonl --out mine.jsonl

# %%
counts = import_log(LOGS / "household-chat.jsonl", "chat", WORK / "mine.jsonl")
print(describe(counts))
file = TrajectoryFile(WORK / "mine.jsonl")
print(f"{file.failed} failed episodes are left out: an expert's mistakes are nothing to imitate")
assert len(file) + file.failed == counts["kept"] == len(lines)

# %% [markdown]
# ## 3 · Tool calls
#
# Most agents act by tool calls. Then the action is the call, as JSON, and two calls are the same action
# if they are the same *value*: the order of keys, spaces and 1 or 1.0 make no difference.

# %%
counts = import_log(LOGS / "household-toolcalls.jsonl", "toolcalls", WORK / "calls.jsonl")
print(describe(counts))
call = TrajectoryFile(WORK / "calls.jsonl").read(0).steps[0].action
print(call)
reordered = json.dumps(dict(reversed(json.loads(call).items())), separators=(",", ":"))
assert reordered != call and same_action(reordered, call)

# %% [markdown]
# Can the built-in tiny model act so? Ask its tokenizer, which knows whole words of one world and no
# brackets or quotes:

# %%
tokenizer = load_tokenizer(find_model("builtin:tiny"))


def unknown_share(text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return np.mean([i == tokenizer.unk_token_id for i in ids])


as_text = trajectory.steps[0].action
print(f"{unknown_share(call):.0%} of {call!r} are unknown words")
print(f"{unknown_share(as_text):.0%} of {as_text!r}")
assert unknown_share(as_text) == 0 < unknown_share(call)

# %% [markdown]
# So on this page the tiny model learns from the log with plain commands. For tool calls, or any log of
# your own, name a real model: everything else stays the same.
#
#     miniact run own-logs env.trajectories=mine.jsonl model.path=Qwen/Qwen3-0.6B prompt.form=tags
#
# ## 4 · Hold out tasks, not rows
#
# A log repeats itself: the same request on Monday and on Tuesday. Were rows held out at random, some
# held-out tasks would have been trained on. So the hash of the task decides.

# %%
SHARE = 0.25
trajectories = [file.read(i) for i in range(len(file))]
split = list(hold_out(trajectories, SHARE))
trained = {t.task for t in split if t.split == "train"}
held = [t for t in split if t.split == "heldout"]
assert held and not any(t.task in trained for t in held)

rng = np.random.default_rng(SEED)
rows = rng.permutation(len(trajectories))[: len(held)]
others = {t.task for i, t in enumerate(trajectories) if i not in rows}
leaked = sum(trajectories[i].task in others for i in rows)
assert leaked > 0
print(f"{len({t.task for t in trajectories})} tasks in {len(trajectories)} episodes")
print(f"held out by task: {len(held)} episodes, 0 of them with a task that is trained on")
print(f"held out by row:  {len(rows)} episodes, {leaked} of them with a task that is trained on")

# %% [markdown]
# ## 5 · Pairs, ACT → IL → RL, and both measures before and after
#
# One call (`miniact run own-logs`) does the rest: the initial policy proposes its own action at
# expert states, those that differ from the log's become pairs, then each stage goes on from the one
# before, and every stage is measured on the held-out tasks.

# %%
config = load_config(
    "own-logs",
    [
        f"env.trajectories={WORK / 'mine.jsonl'}",
        f"env.heldout_share={SHARE}",
        *("stage.act.steps=12", "stage.il.steps=80", "stage.rl.steps=10"),
        *("stage.act.batch=24", "stage.rl.batch=24"),
    ],
)
assert config.env.name == "none"
run = WORK / "run"
start_run(config, run, Console(quiet=True))
pair = read_pairs(run / "pairs.jsonl")[0]
print(f"task: {pair.state.task}\nseen: {pair.state.observation}")
print(f"the log's action a⁺ = {pair.expert!r}, the model's own a⁻ = {pair.alternative!r}")

# %%
results = json.loads((run / "results.json").read_text())["results"]
stages = list(results)
measures = {
    "next action = the log's": [r["next_action"]["accuracy"] for r in results.values()],
    "judges for the log's action": [r["judgement"]["accuracy"] for r in results.values()],
    "implicit: log π(a⁺) > log π(a⁻)": [r["judgement"]["implicit"] for r in results.values()],
}
figure, axes = plt.subplots(figsize=(7, 3.2))
for k, (name, rates) in enumerate(measures.items()):
    values = np.array([r["value"] for r in rates])
    spread = np.array([[v - r["low"], r["high"] - v] for v, r in zip(values, rates)]).T
    place = np.arange(len(stages)) + 0.08 * (k - 1)
    axes.errorbar(place, values, spread, fmt="o-", capsize=3, label=f"{name} (n={rates[0]['n']})")
    cells = "  ".join(f"{s} {100 * v:.0f}" for s, v in zip(stages, values))
    print(f"{name:33} {cells} %   (n={rates[0]['n']})")
axes.set_xticks(range(len(stages)), stages)
axes.set_ylim(0, 1.3)
axes.set_yticks(np.arange(0, 1.01, 0.2))
axes.set_ylabel("share, 95 % interval")
axes.legend(fontsize=8, loc="upper left")
figure.tight_layout()

before, after = (results[s]["next_action"]["accuracy"] for s in (stages[0], stages[-1]))
assert after["low"] > before["high"]

# %% [markdown]
# **What you should see.** The next action agrees with the log far more often than before, and IL adds
# the most. Explicit judgement rises during ACT, the stage that trains it, and may fall again when IL
# trains the same few weights on acting only; the judgement that acting implies rises with IL. Most
# intervals of neighbouring stages overlap: this log is small. And agreement is not success: where two
# actions are equally good, a log shows only one, and the other counts as wrong. Whether the agent now
# solves more tickets, only a test in its real surroundings tells.
#
# ## Exercise
#
# How many held-out states does it take until a next-action accuracy of one half is known to within
# five percentage points either way? Work it out with the Wilson interval, then compare with the n above.
# (Tutorial 02 has it in full; for large n its half-width is about $1.96\sqrt{\hat p(1-\hat p)/n}$, where
# $\hat p$ is the share measured.)

# %% [markdown]
# ## Solution
#
# The half-width of the interval falls like 1/√n; look for the first n.

# %%
n = next(n for n in range(2, 2000, 2) if np.ptp(wilson(n / 2, n)) / 2 <= 0.05)
assert np.isclose(n, 0.25 * (1.96 / 0.05) ** 2, rtol=0.02)
print(f"n = {n}; this page had {after['n']}")
