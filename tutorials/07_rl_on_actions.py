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
# This page builds the reward, asks what there is to reinforce, and trains IL → RL and IL → IL with the
# same number of tokens, over three seeds. What such a run shows, and what it cannot, comes last.

# %%
import json
import tempfile
from dataclasses import replace
from functools import partial
from math import comb
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

from miniact.backends.protocol import load_policy
from miniact.config import load_config
from miniact.data.trajectories import TrajectoryFile, collect, to_row
from miniact.envs import make_env
from miniact.evaluation.episodes import PlayOptions, play_episodes
from miniact.evaluation.evaluate import next_action_accuracy
from miniact.evaluation.rates import wilson
from miniact.method import rl
from miniact.method.grpo import grpo_step, weigh
from miniact.method.losses import cross_entropy
from miniact.method.prompts import Prompter
from miniact.method.rewards import action_reward, canonical
from miniact.method.stage import Stage, learning_rate
from miniact.runs.files import write_jsonl
from miniact.runs.folder import RunFolder
from miniact.runs.log import StageLog
from miniact.runs.progress import Bar
from miniact.tools.cost import forward_flops, known_shape, training_flops
from miniact.types import Completion, Group, Scored

WORK = Path(tempfile.mkdtemp())
SEEDS = (0, 1, 2)

# %% [markdown]
# ## 1 · The reward
#
# Two actions are the same if they differ only in what no environment cares about: capitals, spaces,
# punctuation at the end; and in a tool call the order of keys and the form of numbers. From scratch:


# %%
def number(text):
    value = float(text)
    return int(value) if value == int(value) else value


def canonical_by_hand(action):
    text = action.strip().rstrip(".!?,;: ")
    if text.startswith("{"):
        call = json.loads(text, parse_float=number)
        return json.dumps(call, sort_keys=True, separators=(",", ":"))
    return " ".join(text.lower().split())


expert = "go to shelf 1"
for action in ("go to shelf 1", " Go to  Shelf 1. ", "go to shelf 2", "shelf 1", ""):
    by_hand = float(canonical_by_hand(action) == canonical_by_hand(expert))
    assert canonical(action) == canonical_by_hand(action)
    assert action_reward(action, expert) == by_hand
    print(f"reward {by_hand:.0f}   {action!r}")

call = '{"tool": "go", "to": {"shelf": 1, "room": 2.5}}'
for action in (
    '{"to": {"room": 2.50, "shelf": 1.0}, "tool": "go"}',
    '{"tool": "go", "to": "shelf"}',
):
    by_hand = float(canonical_by_hand(action) == canonical_by_hand(call))
    assert canonical(action) == canonical_by_hand(action)
    assert action_reward(action, call) == by_hand
    print(f"reward {by_hand:.0f}   {action}")

# %% [markdown]
# ## 2 · States of an expert, trained on and held out
#
# The household world. No environment is needed to train: the reward compares with the expert's action.

# %%
config = load_config(
    "household",
    [
        *("stage.il.steps=32", "stage.rl.steps=8", "stage.rl.lr=1e-3"),
        *("stage.rl.warmup=2", "eval.states=160"),
    ],
)
env = make_env("household", **config.env.options)


def states_of(split, tasks):
    rows = map(to_row, collect(env, split, tasks, seed=0, source="household expert"))
    write_jsonl(WORK / f"{split}.jsonl", rows)
    return TrajectoryFile(WORK / f"{split}.jsonl").states(split)


train, unseen = states_of("train", 400), states_of("id", 60)
order = np.random.default_rng(0).permutation(len(unseen))[: config.eval.states]
heldout = [unseen[int(i)] for i in order]
print(f"{len(train)} states to train on, {len(heldout)} held out")

policy = load_policy(config.model, seed=0)
prompter = Prompter(policy.tokenizer, config.prompt)
prompts = [prompter.action(state).tokens for state, _ in heldout]


def greedy_hits(policy):
    """At each held-out state: whether the likeliest action is the expert's."""
    replies = policy.sample(prompts, 1, config.eval.max_tokens, 0.0, 0)
    return np.array([
        canonical(reply.text) == canonical(expert) for (reply,), (_, expert) in zip(replies, heldout)
    ])  # fmt: skip


measured = next_action_accuracy(policy, prompter, heldout, config.eval, 0)["accuracy"]
assert np.isclose(greedy_hits(policy).mean(), measured["value"])
print(f"initial policy: {measured['value']:.1%} [{measured['low']:.1%}, {measured['high']:.1%}]")

# %% [markdown]
# ## 3 · Two stages, and what their steps cost
#
# Both loops are short. A token that passes the model is the unit of cost: imitation passes prompt and
# reply once, to train; RL passes prompt and G answers once to sample, and the live groups once more to
# train (answers that came out alike are trained once).

# %%
shape = known_shape(config.model.path)
RANK = config.model.rank


def imitate(policy, steps, seed):
    """IL. Yields (tokens, FLOPs) of each step."""
    stage = replace(config.stage.il, steps=steps)
    policy.reset_optimizer()
    for step in range(steps):
        groups = []
        for state, expert in train.batch(step, stage.batch, seed):
            reply = prompter.reply_tokens(prompter.render_action(expert))
            groups.append(Group(prompter.action(state).tokens, (Completion(reply),)))
        policy.forward_backward(weigh(groups, "dapo", 0), cross_entropy)
        policy.optim_step(learning_rate(stage, step), stage.max_grad_norm)
        sizes = [(len(g.prompt), 1, len(g.completions[0].tokens)) for g in groups]
        flops = sum(training_flops(shape, *size, RANK) for size in sizes)
        yield sum(P + G * C for P, G, C in sizes), flops


def score(expert, sample):
    reward = action_reward(prompter.parse_action(sample.text), expert)
    return Scored(reward, correct=reward == 1.0, valid=bool(sample.text.strip()))


def reinforce(policy, steps, seed):
    """RL on actions. Yields (tokens, FLOPs) of each step."""
    stage = replace(config.stage.rl, steps=steps)
    policy.reset_optimizer()
    for step in range(steps):
        batch = train.batch(step, stage.batch, seed)
        asked = [prompter.action(state).tokens for state, _ in batch]
        scorers = [partial(score, expert) for _, expert in batch]
        lr = learning_rate(stage, step)
        _, rollouts = grpo_step(policy, asked, scorers, stage, lr, seed + step)
        tokens = flops = 0
        for rollout in rollouts:
            P, answers = len(rollout.prompt), [s.tokens for s in rollout.samples]
            tokens += P + sum(map(len, answers))
            flops += forward_flops(shape, P, len(answers), np.mean([*map(len, answers)]))
            if rollout.advantages.any():
                distinct = set(answers)
                tokens += P + sum(map(len, distinct))
                C = np.mean([*map(len, distinct)])
                flops += training_flops(shape, P, len(distinct), C, RANK)
        yield tokens, flops


# %% [markdown]
# The package's stage is the same loop with a log and checkpoints around it. Two steps of both, from the
# same weights, and the log-probabilities that come out of it:


# %%
def log_prob(policy):
    """Of the expert's action at the first held-out state, token by token."""
    return policy.logprobs(
        [Group(prompts[0], (Completion(prompter.reply_tokens(heldout[0][1])),))]
    )[0][0]


policy.save_adapter(WORK / "fresh")
untouched = log_prob(policy)
for tokens, flops in reinforce(policy, 2, seed=7):
    print(f"an RL step: {tokens} tokens, {flops:.2e} operations")
by_hand = log_prob(policy)

policy.load_adapter(WORK / "fresh")
section = replace(config.stage.rl, steps=2)
with RunFolder(WORK / "run") as run, Bar(Console(quiet=True), "rl") as bar:
    rl.run(Stage(policy, prompter, section, train, [], StageLog(run, 1, "rl", bar), seed=7))
by_package = log_prob(policy)
assert np.allclose(by_hand, by_package, atol=1e-6)
assert not np.allclose(untouched, by_package, atol=1e-6)
print("by hand    ", by_hand.round(5))
print("by package ", by_package.round(5))

# %% [markdown]
# ## 4 · Is there anything to reinforce?
#
# Sample n actions at every held-out state and count the right ones. pass@k is estimated from that
# count without bias: of all ways to choose k of the n samples, which share holds a right one?

# %%
N = 16


def right_counts(policy):
    """How many of N sampled actions are the expert's, at each held-out state."""
    replies = policy.sample(prompts, N, config.eval.max_tokens, 1.0, 11)
    return np.array([
        sum(canonical(sample.text) == canonical(expert) for sample in samples)
        for samples, (_, expert) in zip(replies, heldout)
    ])  # fmt: skip


def pass_at(k, counts):
    return np.mean([1 - comb(N - c, k) / comb(N, k) for c in counts.tolist()])


def live_share(G, counts):
    """The share of groups of G whose rewards differ: neither all wrong nor all right."""
    dead = [(comb(N - c, G) + comb(c, G)) / comb(N, G) for c in counts.tolist()]
    return 1 - np.mean(dead)


policy.load_adapter(WORK / "fresh")
counts = {"initial policy": right_counts(policy)}
greedy = {"initial policy": greedy_hits(policy)}
assert np.isclose(pass_at(1, counts["initial policy"]), counts["initial policy"].mean() / N)
few = np.random.default_rng(0).permuted(np.arange(N) < 3)  # a check: 3 of 16 are right
drawn = [few[np.random.default_rng(i).choice(N, 4, replace=False)].any() for i in range(4000)]
assert abs(np.mean(drawn) - pass_at(4, np.array([3]))) < 0.03

# %% [markdown]
# ## 5 · IL → RL against IL → IL
#
# Three seeds. In each, IL trains a start; RL goes on from it, and so does more IL, for as many steps
# as it takes to spend RL's tokens. Data and held-out states are the same in all; adapters, batches
# and samples differ.


# %%
def train_and_watch(loop, total):
    """Run a loop; tokens so far and hits in the middle and at the end, and its operations."""
    spent, operations, seen = 0, 0.0, []
    for step, (tokens, flops) in enumerate(loop, start=1):
        spent, operations = spent + tokens, operations + flops
        if step in (total // 2, total):
            seen.append((spent, greedy_hits(policy)))
    return seen, operations


def keep(name, seed):
    """Save the adapter; of the first seed also what it samples."""
    policy.save_adapter(WORK / f"{name}-{seed}")
    if seed == 0:
        counts[name], greedy[name] = right_counts(policy), greedy_hits(policy)


runs = {"IL → RL": [], "IL → IL": []}
starts = []
for seed in SEEDS:
    policy = load_policy(config.model, seed)
    il_tokens = [tokens for tokens, _ in imitate(policy, config.stage.il.steps, seed)]
    starts.append(greedy_hits(policy))
    keep("IL", seed)

    steps = config.stage.rl.steps
    runs["IL → RL"].append(train_and_watch(reinforce(policy, steps, 100 + seed), steps))
    keep("IL → RL", seed)

    policy.load_adapter(WORK / f"IL-{seed}")
    budget = runs["IL → RL"][-1][0][-1][0]
    steps = round(budget / np.mean(il_tokens))
    runs["IL → IL"].append(train_and_watch(imitate(policy, steps, 200 + seed), steps))
    keep("IL → IL", seed)

    for name, done in runs.items():
        seen, operations = done[-1]
        assert abs(seen[-1][0] / budget - 1) < 0.15  # as many tokens
        assert operations >= runs["IL → RL"][-1][1]
        print(f"seed {seed}  {name}  {seen[-1][0]:6} tokens  {operations:.2e} operations", end="  ")
        print(f"next action {starts[-1].mean():.1%} → {seen[-1][1].mean():.1%}")

# %% [markdown]
# The same number of tokens is not the same number of operations: many of RL's tokens are only sampled,
# all of IL's are trained, which costs more. So here the budget favours IL; the numbers above say by how
# much. Whatever unit is matched, state it.
#
# What there was to reinforce, and what came of it, for seed 0:

# %%
print(f"{'':14}  greedy  pass@1  pass@4 pass@16   live groups of 8")
for name, c in counts.items():
    rates = "".join(f"{pass_at(k, c):8.1%}" for k in (1, 4, 16))
    print(f"{name:14}{greedy[name].mean():8.1%}{rates}  {live_share(8, c):8.1%}")
    passes = [pass_at(k, c) for k in range(1, N + 1)]
    assert (np.diff(passes) >= -1e-12).all()  # more tries never hurt
assert pass_at(8, counts["IL"]) > pass_at(8, counts["initial policy"])

# %% [markdown]
# ## 6 · Did it make a difference?
#
# Compare within a seed: both arms began from the same weights and were asked the same questions, so
# what the start was worth cancels. With three differences the t distribution has 2 degrees of freedom;
# its 97.5 % quantile has a closed form.

# %%
final = {name: np.array([seen[-1][1].mean() for seen, _ in done]) for name, done in runs.items()}
difference = final["IL → RL"] - final["IL → IL"]
p = 0.975
t = (2 * p - 1) / np.sqrt(2 * p * (1 - p))
simulated = np.quantile(np.abs(np.random.default_rng(0).standard_t(2, 400_000)), 0.95)
assert len(SEEDS) == 3 and np.isclose(t, simulated, rtol=0.02)
half = t * difference.std(ddof=1) / np.sqrt(len(difference))
mean = difference.mean()
began = np.mean([hits.mean() for hits in starts])
for name, rates in final.items():
    print(f"{name}: {100 * (rates.mean() - began):+.1f} points over its start, mean over seeds")
print("RL − IL, points, by seed:", *(f"{100 * d:+.1f}" for d in difference))
print(
    f"mean {100 * mean:+.1f}, 95 % interval [{100 * (mean - half):+.1f}, {100 * (mean + half):+.1f}]"
)
print(f"(t = {t:.2f}; with very many seeds it would be 1.96)")

# %% [markdown]
# This interval says how much training varies, on these states. Other held-out states would vary it too:
# per state, take the mean over seeds of what RL gets right and IL does not, and see how that spreads.

# %%
rl_hits, il_hits = (
    np.array([seen[-1][1] for seen, _ in runs[name]], float) for name in ("IL → RL", "IL → IL")
)
per_state = (rl_hits - il_hits).mean(0)
assert np.isclose(per_state.mean(), mean)
half_states = 1.96 * per_state.std(ddof=1) / np.sqrt(len(per_state))
print(f"over seeds: ± {100 * half:.1f} points, over states: ± {100 * half_states:.1f}")
only_rl, only_il = ((rl_hits > il_hits).sum(1), (il_hits > rl_hits).sum(1))
print("states that only RL gets right, by seed:", only_rl, "  only IL:", only_il)

# %% [markdown]
# Next-action accuracy is asked at the expert's states, and an agent that acts by itself soon leaves
# those. So let it play, for seed 0:

# %%
EPISODES = 40
envs = [make_env("household", **config.env.options) for _ in range(EPISODES)]
tasks = envs[0].tasks("id", EPISODES, seed=1)
for name in ("IL", "IL → RL", "IL → IL"):
    policy.load_adapter(WORK / f"{name}-0")
    options = PlayOptions(max_tokens=config.eval.max_tokens)
    solved = sum(e.success for e in play_episodes(policy, prompter, envs, tasks, options))
    low, high = wilson(solved, EPISODES)
    print(f"{name:8} success {solved / EPISODES:6.1%}  [{low:.1%}, {high:.1%}]  n = {EPISODES}")

# %% [markdown]
# ## 7 · How many episodes tell five points apart?
#
# The smaller a difference, the more episodes it takes to stand out from chance. To see a true
# difference of two success rates p and q in 80 % of experiments, with a two-sided test at 5 %, each
# arm needs about
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
    return float(np.mean(np.abs(a - b) > 1.96 * np.sqrt(2 * m * (1 - m) / n)))


for p in (0.05, 0.30, 0.60):
    n = episodes_needed(p, p + 0.05)
    assert abs(power(p, p + 0.05, n) - 0.80) < 0.04
    print(f"{p:.0%} against {p + 0.05:.0%}: {n:5} episodes an arm;", end=" ")
    print(f"with {EPISODES} it is seen in {power(p, p + 0.05, EPISODES):.0%} of experiments")

# %% [markdown]
# ## 8 · The picture

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
colours = {"initial policy": "grey", "IL": "C2", "IL → RL": "C0", "IL → IL": "C1"}
for name, done in runs.items():
    spent = np.array([[0, *(at for at, _ in seen)] for seen, _ in done]) / 1000
    rates = np.array([
        [start.mean(), *(hits.mean() for _, hits in seen)]
        for start, (seen, _) in zip(starts, done)
    ])  # fmt: skip
    axes[0].plot(spent.T, rates.T, color=colours[name], alpha=0.3, linewidth=1)
    mean_of = f"{name}, mean of {len(SEEDS)} seeds"
    axes[0].plot(spent.mean(0), rates.mean(0), "o-", color=colours[name], label=mean_of)
low, high = wilson(starts[0].sum(), len(heldout))
axes[0].errorbar(0, (low + high) / 2, (high - low) / 2, fmt="none", color="grey", capsize=4)
axes[0].plot([], color="grey", label=f"95 % interval of one run, n = {len(heldout)}")
axes[0].set(title="next action, held out", xlabel="thousand tokens after IL", ylabel="share right")
for name, c in counts.items():
    k = np.arange(1, N + 1)
    axes[1].plot(k, [pass_at(int(j), c) for j in k], color=colours[name], label=name)
    axes[1].plot(1, greedy[name].mean(), "x", color=colours[name])
axes[1].set(title="pass@k of samples; × greedy (seed 0)", xlabel="k", ylim=(0, 1.02))
axes[1].set_ylabel(f"share of {len(heldout)} states with a right one")
axes[1].set_xticks([1, 4, 8, 12, 16])
axes[2].axhline(0, color="grey", linewidth=0.8)
axes[2].plot(np.linspace(-0.05, 0.05, len(SEEDS)), 100 * difference, "o", color="C0", alpha=0.5)
axes[2].errorbar(0.3, 100 * mean, 100 * half, fmt="ko", capsize=4)
axes[2].errorbar(0.6, 100 * mean, 100 * half_states, fmt="ko", capsize=4)
axes[2].set_xticks(
    [0, 0.3, 0.6], ["each seed", "mean, 95 %\nover seeds", "mean, 95 %\nover states"]
)
axes[2].set(title="RL − IL at equal tokens", ylabel="points", xlim=(-0.2, 0.8))
for axis in axes[:2]:
    axis.legend(fontsize=8, loc="lower right")

# %% [markdown]
# **What you should see.** RL raises next-action accuracy or not: read the numbers, and read them
# beside the other arm. Against its own start, RL is credited with whatever more training of any kind
# would have brought; at equal tokens, only with the difference. If either interval of the difference
# holds 0, this run cannot tell the arms apart; that is no proof that they are equal. (In the run that
# is stored with this page neither holds 0, and more imitation did better than RL, with the same
# tokens and more operations.) Three seeds that happen to agree make the first interval small; the
# second does not forget how few states were asked. The success rates are further still from telling
# anything: section 7 says how many episodes that takes.
#
# Read pass@k from both ends. At k = 1 it is what RL was rewarded for. If it rises there and not at the
# largest k, RL has made likely what was possible before, and has found nothing new. A state at which no
# sample is right gives a dead group: there RL has nothing to go by, and after IL there are fewer of
# those.
#
# A model of this size says nothing about which recipe is best for a pretrained one; even here another
# length of the first IL may give another answer: try stage.il.steps=40. What carries over is the way
# to ask: the same start, equal compute in a stated unit, several seeds, paired differences.
#
# ## Exercise
#
# How many answers should a group have? A larger G makes more groups live and costs more tokens. With
# the counts after IL above, which G from 2 to 16 gives the most live groups per token sampled if a
# prompt is computed once, P + G·C, and which if it is computed for every answer, G·(P + C)? Which of
# the two can never be the smaller, and why?

# %% [markdown]
# ## Solution
#
# The two prices differ by the factor G·(P + C) / (P + G·C), which grows with G, so going from the
# second price to the first can only move the best G up.

# %%
P = np.mean([len(prompt) for prompt in prompts])
C = np.mean([len(prompter.reply_tokens(expert)) for _, expert in heldout])
G = np.arange(2, N + 1)
live = np.array([live_share(int(g), counts["IL"]) for g in G])
assert (np.diff(live) >= -1e-12).all() and (np.diff(G * (P + C) / (P + G * C)) > 0).all()
best_shared = G[np.argmax(live / (P + G * C))]
best_plain = G[np.argmax(live / (G * (P + C)))]
assert best_shared >= best_plain
for name, best, price in (("once", best_shared, P + G * C), ("each time", best_plain, G * (P + C))):
    most = 1000 * (live / price).max()
    print(f"prompt computed {name:9}: best G = {best:2}, {most:.1f} live groups per 1000 tokens")
