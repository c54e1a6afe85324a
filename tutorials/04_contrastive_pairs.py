# %% [markdown]
# # 04 · Contrastive pairs
#
# **The question.** A critic learns from a better action beside a worse one. The expert supplies the
# better one. Where does the worse one come from, without a person who thinks of mistakes?
#
# **The answer in one line.** From the model itself, before any training: sample $K$ actions where the
# expert acted, and keep those that differ from the expert's and from each other. With $c$ the canonical
# form of an action:
#
# $$D=\{(s,a^+,a^-)\ :\ a^-\in\{a_1,\dots,a_K\}\sim\pi_{\theta_0}(\cdot\mid s),\ c(a^-)\ne c(a^+)\},\qquad
#   \mathbb E[\text{kept at }s]=\sum_{a\ne a^+}\Big[1-\big(1-\pi_{\theta_0}(a\mid s)\big)^K\Big]$$
#
# So a pair shows what this model would do where the expert does something else. This page samples and
# filters by hand, looks at which mistakes come out and whether they are mistakes at all, turns
# temperature and $K$, and asks about pairs in such an order that a critic who does not read scores
# what chance scores.

# %%
import tempfile
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from math import exp
from pathlib import Path

import numpy as np

from aside import pairs as aside
from miniact.backends.torch.policy import TorchPolicy
from miniact.config.sections import EvalConfig, ModelConfig, PairsConfig, PromptConfig
from miniact.envs import make_env
from miniact.evaluation.evaluate import judgement_accuracy
from miniact.method.pairs import (
    choose_states,
    draw_orders,
    filter_alternatives,
    gather,
    make_pairs,
    pair_row,
    positions,
    questions,
    read_pairs,
)
from miniact.method.prompts import Prompter
from miniact.method.rewards import canonical, choice_reward
from miniact.runs.files import write_jsonl

SEED = 0
WORK = Path(tempfile.mkdtemp())

# %% [markdown]
# ## 1 · States of the expert, actions of the model
#
# Tutorial 02 explains the world and its splits. Up to four states of each trajectory are enough here.

# %%
env = make_env("household")
file = aside.expert_play(env, WORK, SEED)
states = file.states("train")
policy = TorchPolicy(ModelConfig(path="builtin:tiny", rank=8, alpha=16), seed=SEED)
prompter = Prompter(policy.tokenizer, PromptConfig(form="plain", show_admissible=False, history=10))
CONFIG = PairsConfig(k=4, temperature=1.0, max_tokens=10, states_per_trajectory=4)


def ask(batch, temperature, k):
    """k actions of the initial policy at each state, None where a reply holds none."""
    prompts = [prompter.action(state).tokens for state, _ in batch]
    replies = policy.sample(prompts, k, CONFIG.max_tokens, temperature, SEED)
    return [[prompter.parse_action(sample.text) for sample in samples] for samples in replies]


batch = [states[i] for i in choose_states(states, CONFIG.states_per_trajectory, SEED)]
sampled = ask(batch, CONFIG.temperature, CONFIG.k)
state, expert_action = batch[2]
print(f"{len(batch)} of {len(states)} states; one of them:\n\n{state.task}\n{state.observation}")
print(f"the expert: {expert_action}\nthe model:  {', '.join(map(str, sampled[2]))}")

# %% [markdown]
# ## 2 · The filter, by hand
#
# Out goes what holds no action, what the expert did, and what came up before at this state; each is
# counted. Two actions are the same if their canonical forms are: case, spaces and punctuation at the end
# make no difference.

# %%
by_hand, reasons = [], Counter()
for (state, expert_action), actions in zip(batch, sampled):
    seen = set()
    for action in actions:
        if action is None or not canonical(action):
            reasons["unparseable"] += 1
        elif canonical(action) == canonical(expert_action):
            reasons["equal"] += 1
        elif canonical(action) in seen:
            reasons["duplicate"] += 1
        else:
            seen.add(canonical(action))
            reasons["kept"] += 1
            by_hand.append((state, expert_action, action.strip()))

# %% [markdown]
# The package's `make_pairs` does the same for all states, by `filter_alternatives` at each:

# %%
pairs, counts = gather(make_pairs(policy, prompter, states, CONFIG, SEED, {"seed": SEED}))
assert [(p.state, p.expert, p.alternative) for p in pairs] == by_hand and counts == reasons
print({reason: f"{n / counts.total():.0%}" for reason, n in counts.most_common()})

odd = ["look", "Look.", None, " ", "go  to Shelf 1", "go to shelf 1!", "open drawer 1"]
assert filter_alternatives("open drawer 1", odd, None)[0] == ["look", "go  to Shelf 1"]

# %% [markdown]
# ## 3 · What kind of mistakes?
#
# Compare each alternative with the expert's action: is the verb the same? Is the thing that it is
# done to the same? And does it apply at all in this state?

# %%
for name in aside.KINDS.values():
    some = [p for p in pairs if aside.kind(p) == name]
    if some:
        print(f"{name} ({len(some)}): {some[0].alternative!r} for {some[0].expert!r}")
print("can be done:", aside.told([aside.applies(p) for p in pairs]))

# %% [markdown]
# ## 4 · Are they worse at all?
#
# "Not what the expert did" is the label; nobody checked that it is worse. In this world one can: replay the
# episode up to the state, do $a^-$ instead, let the expert finish from there, and count the actions that it
# took beyond the expert's own.

# %%
lengths = {t.id: len(t.steps) for t in map(file.read, range(len(file)))}


def cost_of(pair):
    return aside.extra_actions(env, pair, lengths[pair.state.id.rpartition("#")[0]])


cost = np.array([cost_of(p) for p in pairs])
print(f"extra actions: {cost.mean():.2f} on average, from {cost.min()} to {cost.max()}")
print("not worse than the expert's:", aside.told(cost <= 0))
impossible = np.array([not aside.applies(p) for p in pairs])
assert (cost[impossible] == 1).all()  # what does not apply costs its turn and nothing else

# %%
aside.mistakes_picture(pairs, cost)

# %% [markdown]
# Most alternatives cost something, and a few do not: of two drawers not yet seen, the expert opens
# one, and luck may favour the other. There the label is right by name only, so not every "wrong"
# judgement is wrong. (Several pairs come from one state and are not independent: read these intervals
# as a little too narrow.)
#
# ## 5 · Temperature and K
#
# A higher temperature makes rarer actions come up: fewer duplicates and fewer hits on the expert's own
# action, but more that cannot be done. One number can be had in advance: the share of samples that equal
# the expert's action must be $\pi_T(a^+\mid s)$, the policy's probability at temperature $T$, averaged
# over the states.

# %%
TEMPERATURES, K = (0.3, 0.7, 1.0, 1.5), 8
yields, sensible = {}, {}
for T in TEMPERATURES:
    proposed = ask(batch, T, K)
    filtered = [
        [filter_alternatives(a, some[:k], None) for (_, a), some in zip(batch, proposed)]
        for k in range(1, K + 1)
    ]
    yields[T] = [np.mean([len(kept) for kept, _ in at_k]) for at_k in filtered]
    equal = sum(counts["equal"] for _, counts in filtered[-1]) / (K * len(batch))
    predicted = aside.expert_probability(policy, prompter, batch, T)
    sensible[T] = np.mean([
        canonical(a) in state.admissible
        for (state, _), (kept, _) in zip(batch, filtered[-1])
        for a in kept
    ])  # fmt: skip
    print(f"T = {T}: equal to a⁺ {equal:.1%}, predicted {predicted.mean():.1%};", end=" ")
    print(f"{yields[T][-1]:.1f} pairs a state, {sensible[T]:.0%} of them can be done")
    noise = np.sqrt((predicted * (1 - predicted)).sum() / K) / len(batch)
    assert abs(equal - predicted.mean()) < 4 * noise
for cold, hot in pairwise(TEMPERATURES):
    assert yields[cold][-1] < yields[hot][-1] and sensible[cold] > sensible[hot]

# %%
aside.yield_picture(yields)

# %% [markdown]
# The paper's version 2 samples one alternative per state; `pairs.k` and `pairs.temperature` are yours
# to set, and their defaults are miniact's choice. A trap: more pairs are not better pairs. An
# alternative that cannot be done teaches what the world allows, not what the task wants.
# (`pairs.drop_inadmissible` drops those, `pairs.source: admissible` draws from what can be done.)
#
# ## 6 · Which action stands first?
#
# A pair has no order. Were the expert's action always shown first, then answering "1" without reading
# would earn full reward. So the position is drawn anew for each presentation, each position equally
# often. By hand that is a shuffled deck:

# %%
asked = questions(pairs)
n = len(asked) // 2 * 2
deck = [i % 2 for i in range(n)]
np.random.default_rng(SEED).shuffle(deck)
assert Counter(positions(n, (SEED, 0)).tolist()) == Counter(deck) == {0: n // 2, 1: n // 2}


def score_of_always_first(shown):
    rewards = [choice_reward(prompter.parse_choice("1", s.actions), s.right) for s in shown]
    return np.mean(rewards)


shown = draw_orders(asked[:n], (SEED, 0))
fixed = [replace(s, actions=(q.expert, *q.alternatives), right=0) for s, q in zip(shown, asked)]
print(f"always '1', expert first: {score_of_always_first(fixed):.0%}")
print(f"always '1', drawn order:  {score_of_always_first(shown):.0%}")
assert score_of_always_first(fixed) == 1.0 and score_of_always_first(shown) == 0.5

# %% [markdown]
# With `pairs.choices: 3` a critic chooses among the expert's action and two others of the same state:
# chance is a third, and the answer says more.

# %%
threes = questions(pairs, choices=3)
threes = threes[: len(threes) // 3 * 3]
assert np.isclose(score_of_always_first(draw_orders(threes, (SEED, 0))), 1 / 3)

# %% [markdown]
# ## 7 · Held-out pairs
#
# Judgement is measured on pairs of tasks that are never trained on. They are made the same way, from the
# states of another split. How well does the initial policy judge? Each is asked in both orders, so that a
# liking for one position cannot help. An answer that cannot be read counts as wrong.

# %%
held_out, _ = gather(make_pairs(policy, prompter, file.states("id"), CONFIG, SEED))
held_out = [replace(pair, split="id") for pair in held_out]
tasks = [{p.state.id.rpartition("#")[0] for p in some} for some in (pairs, held_out)]
assert not tasks[0] & tasks[1]
judged = judgement_accuracy(
    policy, prompter, questions(held_out)[:150], EvalConfig(judge_max_tokens=10), SEED
)
for name in ("accuracy", "valid", "given_valid", "expert_first", "expert_second"):
    r = judged[name]
    print(f"{name:14}{r['value']:5.0%}  [{r['low']:.0%}, {r['high']:.0%}]  n={r['n']}")
assert judged["given_valid"]["value"] < 0.75

# %% [markdown]
# ## 8 · Pairs are a file
#
# A pair is text: no tokens, no order, no wording of a prompt. So pairs made with one model train
# another; the paper trains a 4B model on pairs of an 8B one. Written and read back they are equal,
# and `miniact run CONFIG pairs.file=pairs.jsonl` uses them instead of sampling.

# %%
everything = [*pairs, *held_out]
write_jsonl(WORK / "pairs.jsonl", (pair_row(p, history=50) for p in everything))
assert read_pairs(WORK / "pairs.jsonl") == everything
print("fields:", *pair_row(everything[0], history=50))

# %% [markdown]
# **What you should see.** Most samples survive the filter, most alternatives can be done, and nearly
# all of them cost extra actions; but the label is the expert's choice, not the truth. A higher
# temperature yields more pairs and worse ones. In a drawn order, a critic that does not read scores
# chance. The initial policy does a little better than that when asked: judging is what ACT has yet to
# teach it.
#
# ## Exercise
#
# How many pairs does a state yield on average with K samples? Predict it for one state from the
# model's probabilities, by the formula at the top, then measure it. Here are many samples of one state;
# each carries its own log-probability (`sample.logps`).

# %%
state, expert_action = batch[2]
(many,) = policy.sample(
    [prompter.action(state).tokens], n=1024, max_tokens=CONFIG.max_tokens, temperature=1.0, seed=7
)

# %% [markdown]
# ## Solution
#
# Sum over the actions that come up in many samples; those that never came up have a small rest.

# %%
texts = [sample.text for sample in many]
probability = {canonical(sample.text): exp(sum(sample.logps)) for sample in many}
rest = 1 - sum(probability.values())
others = np.array([p for a, p in probability.items() if a not in ("", canonical(expert_action))])
for K in (1, 2, 4, 8):
    low = (1 - (1 - others) ** K).sum()
    high = low + K * rest  # if all of the rest were actions that never come up twice
    draws = [texts[at : at + K] for at in range(0, len(texts), K)]
    got = [len(filter_alternatives(expert_action, draw, None)[0]) for draw in draws]
    print(f"K = {K}: predicted {low:.2f} to {high:.2f}, measured {np.mean(got):.2f}")
    error = 4 * np.std(got) / np.sqrt(len(got))
    assert low - error < np.mean(got) < high + error
