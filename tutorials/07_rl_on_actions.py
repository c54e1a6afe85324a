# %% [markdown]
# # 07 · RL on actions, and why to compare at equal compute
#
# **The question.** The last stage rewards the action itself. When can it help, and how do you find out
# whether it did, rather than the extra computing that came with it?
#
# **The answer in one line.** At an expert state s sample G actions, and reward each that is the
# expert's:
#
# $$r_i=\mathbf 1\big[\operatorname{canonical}(a_i)=\operatorname{canonical}(a^+)\big]$$
#
# A group teaches only if its rewards differ, so something must be right sometimes: out of n samples of
# which c are right, the chance that k of them hold a right one is
#
# $$\text{pass@}k=1-\binom{n-c}{k}\Big/\binom{n}{k}$$
#
# This page asks what there is to reinforce, and trains IL → RL and IL → IL with the same number of
# tokens, over three seeds. What such a run shows, and what it cannot, comes last.

# %%
import tempfile
from dataclasses import replace
from functools import partial
from math import comb
from pathlib import Path

import numpy as np

from aside.drawings import draw_arms, draw_pass_at_k
from miniact.backends.protocol import load_policy
from miniact.config import load_config
from miniact.data.trajectories import TrajectoryFile, collect, to_row
from miniact.envs import make_env
from miniact.evaluation.evaluate import next_action_accuracy
from miniact.experiments.table import summary
from miniact.method import rl
from miniact.method.prompts import Prompter
from miniact.method.rewards import action_reward, canonical
from miniact.method.stage import Stage, imitate, reinforce
from miniact.runs.files import write_jsonl
from miniact.types import Completion, Group, Scored

WORK = Path(tempfile.mkdtemp())

# %% [markdown]
# ## 1 · The reward
#
# Two actions are the same if they differ only in what no environment cares about: capitals, spaces,
# punctuation at the end. (Of tool calls, which are JSON, also the order of keys: tutorial 08.)


# %%
def canonical_by_hand(action):
    return " ".join(action.strip().rstrip(".!?,;: ").lower().split())


expert = "go to shelf 1"
for action in ("go to shelf 1", " Go to  Shelf 1. ", "go to shelf 2", "shelf 1", ""):
    reward = float(canonical_by_hand(action) == canonical_by_hand(expert))
    assert reward == action_reward(action, expert)
    print(f"reward {reward:.0f}   {action!r}")

# %% [markdown]
# No environment is needed to train: the reward compares with the expert's action.
#
# ## 2 · States of an expert, trained on and held out

# %%
STAGES = "stage.il.steps=32 stage.rl.steps=8 stage.rl.lr=1e-3 stage.rl.warmup=2"
config = load_config("household-plain", STAGES.split())
env = make_env("household", **config.env.options)


def states_of(split, tasks):
    played = collect(env, split, tasks, seed=0, source="household expert")
    write_jsonl(WORK / f"{split}.jsonl", map(to_row, played))
    return TrajectoryFile(WORK / f"{split}.jsonl").states(split)


train, unseen = states_of("train", 400), states_of("id", 60)
order = np.random.default_rng(0).permutation(len(unseen))[:160]
heldout = [unseen[int(i)] for i in order]  # (state, the expert's action)
print(f"{len(train)} states to train on, {len(heldout)} held out")

# %% [markdown]
# The measure: at each held-out state, is the policy's likeliest action the expert's?

# %%
policy = load_policy(config.model)
prompter = Prompter(policy.tokenizer, config.prompt)
prompts = [prompter.action(state).tokens for state, _ in heldout]


def right_of(policy, n, temperature):
    """[held-out state, sample]: whether the action is the expert's."""
    answers = policy.sample(prompts, n, config.eval.max_tokens, temperature, seed=11)
    return np.array([
        [canonical(answer.text) == canonical(expert) for answer in of_state]
        for of_state, (_, expert) in zip(answers, heldout)
    ])  # fmt: skip


greedy = right_of(policy, n=1, temperature=0.0).mean()
measured = next_action_accuracy(policy, prompter, heldout, config.eval, 0)["accuracy"]
assert np.isclose(greedy, measured["value"])
print(f"initial policy: {greedy:.1%} [{measured['low']:.1%}, {measured['high']:.1%}]")

# %% [markdown]
# ## 3 · Two stages, and what they cost
#
# `imitate` and `reinforce` are one step each, of tutorials 03 and 05. A stage says only what they are
# shown. The unit of cost is a token that passes the model: imitation passes prompt and reply once,
# to train; RL passes prompt and G answers once to sample, and the live groups once more to train.


# %%
def il_stage(policy, steps, seed):
    """Imitation; returns the tokens that passed the model."""
    stage = Stage(policy, prompter, replace(config.stage.il, steps=steps), seed=seed)
    tokens = 0
    for step in stage.steps():
        batch = train.batch(step, stage.config.batch, seed)
        examples = [(prompter.action(s), prompter.reply_tokens(expert)) for s, expert in batch]
        tokens += imitate(stage, step, examples)["tokens"]
    return tokens


# %%
def score(expert, answer):
    reward = action_reward(answer.text, expert)
    return Scored(reward, correct=reward == 1, valid=bool(answer.text))


def rl_stage(policy, steps, seed):
    """RL on actions; returns the tokens that passed the model."""
    stage = Stage(policy, prompter, replace(config.stage.rl, steps=steps), seed=seed)
    tokens = 0
    for step in stage.steps():
        batch = train.batch(step, stage.config.batch, seed)
        scorers = [partial(score, expert) for _, expert in batch]
        tokens += reinforce(stage, step, [prompter.action(s) for s, _ in batch], scorers)["tokens"]
    return tokens


# %% [markdown]
# The package's stage is the same loop. Two steps of both from the same weights, and the
# log-probabilities that come out of it:


# %%
def log_prob(policy):
    """Of the expert's action at the first held-out state, token by token."""
    reply = Completion(prompter.reply_tokens(heldout[0][1]))
    return policy.logprobs([Group(prompts[0], (reply,))])[0][0]


policy.save_adapter(WORK / "fresh")
untouched = log_prob(policy)
rl_stage(policy, steps=2, seed=7)
by_hand = log_prob(policy)
policy.load_adapter(WORK / "fresh")
rl.run(Stage(policy, prompter, replace(config.stage.rl, steps=2), train, seed=7))
assert np.allclose(by_hand, log_prob(policy), atol=1e-6) and not np.allclose(by_hand, untouched)
print("before", untouched.round(5), "\nafter ", by_hand.round(5))

# %% [markdown]
# ## 4 · IL → RL against IL → IL
#
# Three seeds. In each, IL trains a start; RL goes on from it, and so does more IL, for as many steps as
# it takes to spend RL's tokens. Data and held-out states are the same in all; adapters, batches and
# samples differ.

# %%
right = {"IL": [], "IL → RL": [], "IL → IL": []}  # of each seed, at each held-out state
samples = {}  # 16 at each state, of seed 0


def measure(name, policy, seed):
    right[name].append(right_of(policy, n=1, temperature=0.0)[:, 0])
    if seed == 0:
        samples[name] = right_of(policy, n=16, temperature=1.0)


for seed in range(3):
    policy = load_policy(config.model, seed)
    per_step = il_stage(policy, config.stage.il.steps, seed) / config.stage.il.steps
    measure("IL", policy, seed)
    policy.save_adapter(WORK / "start")

    budget = rl_stage(policy, config.stage.rl.steps, 100 + seed)
    measure("IL → RL", policy, seed)

    policy.load_adapter(WORK / "start")
    spent = il_stage(policy, round(budget / per_step), 200 + seed)
    measure("IL → IL", policy, seed)
    assert abs(spent / budget - 1) < 0.15
    print(f"seed {seed}: RL {budget:.0f} tokens, more IL {spent:.0f};", end=" ")
    print("next action right:", *(f"{name} {of[-1].mean():.1%}  " for name, of in right.items()))

# %% [markdown]
# The same number of tokens is not the same number of operations: many of RL's tokens are only sampled,
# all of IL's are trained, and above a frozen base a trained token costs about twice a sampled one. So
# this budget favours IL. Whatever unit is matched, state it.
#
# ## 5 · What was there to reinforce?
#
# A state at which no sample is right gives a dead group: RL has nothing to go by. pass@k is
# estimated without bias from c right ones among n = 16: of all ways to choose k of them, which share
# holds a right one?


# %%
def pass_at(k, right_SN):
    """right_SN: states, samples."""
    n = right_SN.shape[1]
    return np.mean([1 - comb(n - int(c), k) / comb(n, k) for c in right_SN.sum(1)])


def live_share(G, right_SN):
    """The share of groups of G whose rewards differ: neither all wrong nor all right."""
    return pass_at(G, right_SN) + pass_at(G, ~right_SN) - 1


print(f"{'seed 0':10} pass@1  pass@4 pass@16   live groups of 8")
for name, right_SN in samples.items():
    rates = "".join(f"{pass_at(k, right_SN):8.1%}" for k in (1, 4, 16))
    print(f"{name:9}{rates} {live_share(8, right_SN):10.1%}")
    assert np.isclose(pass_at(1, right_SN), right_SN.mean())

# %%
draw_pass_at_k({name: [pass_at(k, s) for k in range(1, 17)] for name, s in samples.items()})

# %% [markdown]
# **How to read it.** At k = 1 stands what RL was rewarded for. If a line is higher there than IL's and lower
# at the largest k, RL has made likely what was possible before, and has found nothing new: sampling is
# narrower, and where it is always wrong there is nothing left to reinforce.
#
# ## 6 · Did it make a difference?
#
# Compare within a seed: both arms began from the same weights and were asked the same questions, so
# what the start was worth cancels. With three differences Student's t has 2 degrees of freedom, and its
# 97.5 % quantile is 4.30, not 1.96.

# %%
right_of_arm = {name: np.array(of, float) for name, of in right.items()}  # [seed, state]
difference_KS = right_of_arm["IL → RL"] - right_of_arm["IL → IL"]  # K seeds, S states
by_seed = difference_KS.mean(1)
half = 4.303 * by_seed.std(ddof=1) / np.sqrt(3)
package = summary(by_seed.tolist())
assert np.allclose(
    [by_seed.mean() - half, by_seed.mean() + half], [package["low"], package["high"]], atol=1e-4
)
print("RL − IL, points, by seed:", *(f"{100 * d:+.1f}" for d in by_seed))
print(f"mean {100 * by_seed.mean():+.1f} ± {100 * half:.1f} over seeds")

# %% [markdown]
# This interval says how much training varies, on these states. Other held-out states would vary it too:
# per state, take the mean over seeds, and see how that spreads.

# %%
by_state = difference_KS.mean(0)
half_states = 1.96 * by_state.std(ddof=1) / np.sqrt(len(by_state))
print(f"mean {100 * by_state.mean():+.1f} ± {100 * half_states:.1f} over states")

# %%
draw_arms(right_of_arm, by_seed, {"over seeds": half, "over states": half_states})

# %% [markdown]
# **What you should see.** RL raises next-action accuracy over its start or not: read it beside the other
# arm. Against its own start, RL is credited with whatever more training of any kind would have brought;
# at equal tokens, only with the difference. If either interval of the difference holds 0, this run
# cannot tell the arms apart; that is no proof that they are equal. Three seeds that happen to agree
# make the first interval small; the second does not forget how few states were asked.
#
# A model of this size says nothing about which recipe is best for a pretrained one; even here another
# length of the first IL may give another answer: try `stage.il.steps=16`. What carries over is the way
# to ask: the same start, equal compute in a stated unit, several seeds, paired differences.
#
# ## 7 · How many episodes tell five points apart?
#
# Next-action accuracy is asked at the expert's states, and an agent that acts by itself soon leaves
# those. In the end success counts, and episodes are dear. To see a true difference of two success
# rates p and q in 80 % of experiments, with a two-sided test at 5 %, each arm needs about
#
# $$n=\frac{\big(1.96\sqrt{2\bar p(1-\bar p)}+0.84\sqrt{p(1-p)+q(1-q)}\big)^2}{(p-q)^2}$$
#
# episodes. $\bar p$ is the mean of p and q; 1.96 and 0.84 are the normal quantiles of 97.5 % and 80 %.


# %%
def episodes_needed(p, q):
    m = (p + q) / 2
    top = 1.96 * np.sqrt(2 * m * (1 - m)) + 0.8416 * np.sqrt(p * (1 - p) + q * (1 - q))
    return int(np.ceil((top / (p - q)) ** 2))


def power(p, q, n, trials=4000):
    """The share of simulated experiments in which the test sees the difference."""
    rng = np.random.default_rng(0)
    a, b = rng.binomial(n, p, trials) / n, rng.binomial(n, q, trials) / n
    m = (a + b) / 2
    return np.mean(np.abs(a - b) > 1.96 * np.sqrt(2 * m * (1 - m) / n))


for p in (0.05, 0.30, 0.60):
    n = episodes_needed(p, p + 0.05)
    assert abs(power(p, p + 0.05, n) - 0.80) < 0.04
    print(f"{p:.0%} against {p + 0.05:.0%}: {n:5} episodes an arm; with 64 the difference", end=" ")
    print(f"is seen in {power(p, p + 0.05, 64):.0%} of experiments")

# %% [markdown]
# ## Exercise
#
# How many answers should a group have? A larger G makes more groups live and costs more tokens. With
# the samples after IL (`samples["IL"]`, `live_share`), which G from 2 to 16 gives the most live groups per
# token sampled if a prompt is computed once, P + G·C, and which if it is computed for every answer,
# G·(P + C)? Which of the two can never be the smaller, and why?

# %% [markdown]
# ## Solution
#
# The two prices differ by the factor G·(P + C) / (P + G·C), which grows with G. So going from the second
# price to the first can only move the best G up.

# %%
P = np.mean([len(prompt) for prompt in prompts])
C = np.mean([len(prompter.reply_tokens(expert)) for _, expert in heldout])
G = np.arange(2, 17)
live = np.array([live_share(int(g), samples["IL"]) for g in G])
best = {}
for name, price in (("once", P + G * C), ("for every answer", G * (P + C))):
    best[name] = G[np.argmax(live / price)]
    most = 1000 * (live / price).max()
    print(f"prompt computed {name}: best G = {best[name]}, {most:.1f} live groups per 1000 tokens")
assert best["once"] >= best["for every answer"]
