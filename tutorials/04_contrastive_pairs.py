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
import re
import tempfile
from collections import Counter
from dataclasses import replace
from itertools import chain, pairwise
from math import exp
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from miniact.backends.models import find_model
from miniact.backends.torch.policy import TorchPolicy
from miniact.config.sections import EvalConfig, ModelConfig, PairsConfig, PromptConfig
from miniact.data.trajectories import TrajectoryFile, collect, to_row
from miniact.envs import make_env
from miniact.evaluation.evaluate import implicit_judgements, judgement_accuracy
from miniact.evaluation.rates import rate
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
from miniact.types import Completion, Group

SEED = 0
WORK = Path(tempfile.mkdtemp())

# %% [markdown]
# ## 1 · States of the expert, actions of the model
#
# Tutorial 02 explains the world and its splits. Up to four states of each trajectory are enough here.

# %%
env = make_env("household")
played = chain(
    collect(env, "train", 60, SEED, "household expert"),
    collect(env, "id", 20, SEED, "household expert"),
)
write_jsonl(WORK / "trajectories.jsonl", map(to_row, played))
file = TrajectoryFile(WORK / "trajectories.jsonl")
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
print(
    f"{len(batch)} of {len(states)} states; one of them:\n\ntask: {state.task}\n{state.observation}"
)
print(f"the expert:  {expert_action}\nthe model:  ", "\n             ".join(map(str, sampled[2])))

# %% [markdown]
# ## 2 · The filter, by hand
#
# Out goes what holds no action, what the expert did, and what came up before at this state; each is
# counted. Two actions are the same if their canonical forms are: case, spaces and punctuation at the end
# make no difference. The package's `filter_alternatives` and `make_pairs` do this for all states:

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

provenance = {"model": policy.name, "seed": SEED, "temperature": CONFIG.temperature}
pairs, counts = gather(make_pairs(policy, prompter, states, CONFIG, SEED, provenance))
assert [(p.state, p.expert, p.alternative) for p in pairs] == by_hand
assert counts == reasons and sum(counts.values()) == CONFIG.k * len(batch)
for reason, n in counts.most_common():
    print(f"{reason:12}{n:5}  {n / sum(counts.values()):4.0%}")

odd = ["look", "Look.", None, " ", "go  to Shelf 1", "go to shelf 1!", "open drawer 1"]
print("\na harder case:", filter_alternatives("open drawer 1", odd, None))
assert filter_alternatives("open drawer 1", odd, None)[0] == ["look", "go  to Shelf 1"]

# %% [markdown]
# ## 3 · What kind of mistakes?
#
# Compare each alternative with the expert's action: is the verb the same? Is the thing that it is
# done to the same? And does it apply at all in this state?


# %%
KINDS = {  # (same verb, same thing) → its name
    (True, False): "right verb, wrong thing",
    (False, True): "wrong verb, right thing",
    (False, False): "wrong verb, wrong thing",
    (True, True): "only the rest is wrong",
}


def kind(pair):
    """How a⁻ differs from a⁺: "move mug 1 to shelf 2" has the verb "move" and the thing "mug 1"."""
    (verb_a, *things_a), (verb_b, *things_b) = (
        (action.split()[0], *re.findall(r"[a-z]+ \d+", action))
        for action in (pair.expert, pair.alternative)
    )
    return KINDS[verb_a == verb_b, things_a[:1] == things_b[:1]]


def applies(pair):
    return canonical(pair.alternative) in {canonical(a) for a in pair.state.admissible}


mistakes = Counter((kind(p), applies(p)) for p in pairs)
for name in KINDS.values():
    example = next((p for p in pairs if kind(p) == name), None)
    told = f"{example.alternative!r} for {example.expert!r}" if example else "none"
    print(f"{name}: {mistakes[name, True]:3} apply, {mistakes[name, False]:3} do not; {told}")
assert sum(mistakes.values()) == len(pairs)
possible = rate([applies(p) for p in pairs])
print(
    f"can be done: {possible['value']:.0%} [{possible['low']:.0%}, {possible['high']:.0%}] n={possible['n']}"
)

# %% [markdown]
# **Are they worse at all?** "Not what the expert did" is the label; nobody checked that it is worse.
# In this world one can: replay the episode up to the state, do $a^-$ instead, let the expert finish
# from there, and count the actions that it took beyond the expert's own.


# %%
def extra_actions(pair):
    task_id, _, i = pair.state.id.rpartition("#")
    _, turn = env.reset(task_id)
    for _, action in pair.state.history:
        turn = env.step(action)
    assert turn.observation == pair.state.observation
    turn, n = env.step(pair.alternative), int(i) + 1
    while not turn.done:
        turn, n = env.step(env.expert_action()), n + 1
    return n - lengths[task_id]


lengths = {t.id: len(t.steps) for t in map(file.read, range(len(file)))}
cost = np.array([extra_actions(p) for p in pairs])
not_worse = rate(list(cost <= 0))
print(
    f"extra actions: {cost.mean():.2f} on average, from {cost.min()} to {cost.max()}\n"
    f"not worse than the expert's: {not_worse['value']:.0%} "
    f"[{not_worse['low']:.0%}, {not_worse['high']:.0%}] n={not_worse['n']}"
)
impossible = np.array([not applies(p) for p in pairs])
assert (cost[impossible] == 1).all()  # what does not apply costs its turn and nothing else
assert not_worse["high"] < 0.2

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.2))
names, end = list(KINDS.values()), np.zeros(len(KINDS))
for ok, label, color in ((True, "can be done", "tab:blue"), (False, "cannot be done", "lightgray")):
    share = np.array([mistakes[name, ok] for name in names]) / len(pairs)
    left.barh(names, share, left=end, label=label, color=color)
    end += share
rates = [rate([kind(p) == name for p in pairs]) for name in names]
spread = np.abs(np.array([[r["low"], r["high"]] for r in rates]).T - end)
left.errorbar(end, names, xerr=spread, fmt="none", ecolor="black", capsize=3)
left.invert_yaxis()
left.set_xlabel(f"share of {len(pairs)} pairs, 95 % interval")
left.legend(fontsize=8)
bins = np.arange(cost.min(), cost.max() + 2) - 0.5
colors = ("tab:blue", "lightgray")
right.hist([cost[~impossible], cost[impossible]], bins, stacked=True, color=colors)
right.axvline(0.5, color="black", linestyle=":")
right.text(0.4, 0.9 * right.get_ylim()[1], "not worse ", ha="right", fontsize=8)
right.set_xlabel("extra actions after a⁻, the expert finishing")
right.set_ylabel(f"pairs (n={len(pairs)})")
figure.tight_layout()

# %% [markdown]
# Most alternatives cost something, and a few do not: of two drawers not yet seen, the expert opens
# one, and luck may favour the other. There the label is right by name only, so not every "wrong"
# judgement is wrong. (Several pairs come from one state and are not independent: read these intervals
# as a little too narrow.)
#
# ## 4 · Temperature and K
#
# A higher temperature makes rarer actions come up: fewer duplicates and fewer hits on the expert's own
# action, but more that cannot be done. One number can be had in advance: the share of samples that equal
# the expert's action must be $\pi_T(a^+\mid s)$, the policy's probability at temperature $T$, averaged
# over the states.

# %%
TEMPERATURES, K = (0.3, 0.7, 1.0, 1.5), 8
proposed = {T: ask(batch, T, K) for T in TEMPERATURES}
groups = [
    Group(
        prompter.action(s).tokens, (Completion(prompter.reply_tokens(prompter.render_action(a))),)
    )
    for s, a in batch
]


def keep(T, k):
    """(kept, counts) of the first k samples at each state."""
    return [filter_alternatives(a, some[:k], None) for (_, a), some in zip(batch, proposed[T])]


kept_per_state, sensible = {}, {}
print("   T   equal to a⁺ (predicted)   duplicate   kept   of these can be done")
for T in TEMPERATURES:
    filtered = keep(T, K)
    total = sum((counts for _, counts in filtered), Counter())
    share = {reason: n / (K * len(batch)) for reason, n in total.items()}
    expert_p = np.array([exp(logp.sum()) for (logp,) in policy.logprobs(groups, temperature=T)])
    noise = np.sqrt((expert_p * (1 - expert_p)).sum() / K) / len(batch)
    assert abs(share["equal"] - expert_p.mean()) < 4 * noise
    can_be_done = [
        canonical(a) in state.admissible
        for (state, _), (kept, _) in zip(batch, filtered)
        for a in kept
    ]
    sensible[T] = np.mean(can_be_done)
    kept_per_state[T] = [np.mean([len(kept) for kept, _ in keep(T, k)]) for k in range(1, K + 1)]
    print(
        f"{T:5.1f}{share['equal']:10.1%}{expert_p.mean():13.1%}{share['duplicate']:17.1%}"
        f"{share['kept']:8.1%}{sensible[T]:14.0%}"
    )
for cold, hot in pairwise(TEMPERATURES):
    assert kept_per_state[cold][-1] < kept_per_state[hot][-1] and sensible[cold] > sensible[hot]

# %%
figure, axes = plt.subplots(figsize=(6, 3.2))
axes.plot(range(1, K + 1), range(1, K + 1), ":", color="gray", label="nothing dropped")
for T, values in kept_per_state.items():
    axes.plot(
        range(1, K + 1), values, "o-", markersize=4, label=f"T = {T}: {sensible[T]:.0%} can be done"
    )
axes.set_xlabel("K, samples at a state")
axes.set_ylabel(f"pairs per state (mean of {len(batch)})")
axes.legend(fontsize=8)
figure.tight_layout()

# %% [markdown]
# The paper's version 2 samples one alternative per state; `pairs.k` and `pairs.temperature` are yours
# to set, and their defaults are miniact's choice. A trap: more pairs are not better pairs. An
# alternative that cannot be done teaches what the world allows, not what the task wants.
# (`pairs.drop_inadmissible` drops those.)
#
# ## 5 · Which action stands first?
#
# A pair has no order. Were the expert's action always shown first, then answering "1" without reading
# would earn full reward. So the position is drawn anew for each presentation, each position equally
# often:

# %%
asked = questions(pairs)
assert len(asked) == len(pairs)  # with two candidates, a question is a pair


def score_of_always_first(shown):
    rewards = [choice_reward(prompter.parse_choice("1", s.actions), s.right) for s in shown]
    return np.mean(rewards)


def positions_by_hand(n, ways, rng):
    """Every position equally often, in a drawn order."""
    where = [i % ways for i in range(n)]
    rng.shuffle(where)
    return where


n = len(asked) // 2 * 2
drawn, own = positions(n, (SEED, 0)), positions_by_hand(n, 2, np.random.default_rng(SEED))
assert Counter(drawn.tolist()) == Counter(own) == {0: n // 2, 1: n // 2}

shown = draw_orders(asked[:n], (SEED, 0))
fixed = [replace(s, actions=(q.expert, *q.alternatives), right=0) for s, q in zip(shown, asked)]
print(f"always '1', expert first: {score_of_always_first(fixed):.0%}")
print(f"always '1', drawn order:  {score_of_always_first(shown):.0%}")
assert score_of_always_first(fixed) == 1.0 and score_of_always_first(shown) == 0.5

steps = [draw_orders(asked[:n], (SEED, step))[0].right for step in range(20)]
print("one pair in 20 steps, the expert's action at:", *(right + 1 for right in steps))
assert 0 < sum(steps) < 20

# %% [markdown]
# **More than two.** With `pairs.choices: 3` a critic chooses among the expert's action and two others
# of the same state; chance is a third, and the answer says more. (The tiny model's vocabulary has no
# word for 3, so it reads `<unk>`; it can still answer by naming the action. Real models have all
# numbers.)

# %%
threes = questions(pairs, choices=3)
threes = threes[: len(threes) // 3 * 3]
shown = draw_orders(threes, (SEED, 0))
print(policy.tokenizer.decode(prompter.critic(shown[0].state, shown[0].actions).tokens))
print(f"\n{len(threes)} such questions; always '1' scores {score_of_always_first(shown):.1%}")
assert np.isclose(score_of_always_first(shown), 1 / 3)
assert all(q.expert == s.actions[s.right] for q, s in zip(threes, shown))

# %% [markdown]
# ## 6 · Held-out pairs
#
# Judgement is measured on pairs of tasks that are never trained on. They are made the same way, from the
# states of another split, and carry its name; the stages see the pairs of split "train" only.

# %%
held_out, _ = gather(make_pairs(policy, prompter, file.states("id"), CONFIG, SEED, provenance))
held_out = [replace(pair, split="id") for pair in held_out]
everything = [*pairs, *held_out]
trained = [p for p in everything if p.split == "train"]
tasks = [{p.state.id.rpartition("#")[0] for p in some} for some in (trained, held_out)]
assert trained == pairs and not tasks[0] & tasks[1]
print(f"{len(trained)} pairs to train on, {len(held_out)} held out, of other tasks")

# %% [markdown]
# How well does the initial policy judge? Each held-out pair is asked in both orders, so that a liking
# for one position cannot help. An answer that cannot be read counts as wrong.


# %%
judged = judgement_accuracy(
    policy, prompter, questions(held_out)[:150], EvalConfig(judge_max_tokens=10), SEED
)
for name in ("accuracy", "valid", "given_valid", "expert_first", "expert_second", "consistent"):
    r = judged[name]
    print(f"{name:14}{r['value']:5.0%}  [{r['low']:.0%}, {r['high']:.0%}]  n={r['n']}")
first, second = (judged[f"expert_{where}"]["value"] for where in ("first", "second"))
assert np.isclose(judged["accuracy"]["value"], (first + second) / 2)
assert judged["given_valid"]["value"] < 0.75

# %% [markdown]
# ## 7 · Another source: what the world allows
#
# As a control, alternatives can be drawn from the admissible actions (`pairs.source: admissible`).
# Those can always be done, but they are nobody's mistakes: a model might never have thought of them.
# How likely is each to this one?

# %%
drawing = replace(CONFIG, source="admissible")
uniform, _ = gather(make_pairs(policy, prompter, states, drawing, SEED))
assert all(p.alternative in p.state.admissible and p.alternative != p.expert for p in uniform)


def log_probability(some):
    """log π(a⁻|s) for each pair, nats."""
    replies = [prompter.reply_tokens(prompter.render_action(p.alternative)) for p in some]
    prompts = [prompter.action(p.state).tokens for p in some]
    asked = [Group(x, (Completion(y),)) for x, y in zip(prompts, replies)]
    return np.array([logp.sum() for (logp,) in policy.logprobs(asked)])


print("source      pairs  can be done  right verb  extra actions  π(a⁻|s) < 1 %")
for name, some in (("policy", pairs), ("admissible", uniform)):
    print(
        f"{name:10}{len(some):7}{np.mean([applies(p) for p in some]):13.0%}"
        f"{np.mean([kind(p).startswith('right verb') for p in some]):12.0%}"
        f"{np.mean([extra_actions(p) for p in some]):15.2f}"
        f"{(log_probability(some) < np.log(0.01)).mean():15.0%}"
    )

# %% [markdown]
# Apart from what cannot be done, the two sources hardly differ here, and the model's own samples even
# hold the larger share of actions that it finds unlikely: the tiny model has read random play, so what it
# proposes is nearly what a random draw proposes. A model with habits would propose its habits.
#
# ## 8 · Pairs are a file
#
# A pair is text: no tokens, no order, no wording of a prompt. So pairs made with one model train
# another; the paper trains a 4B model on pairs of an 8B one. Written and read back they are equal,
# and `miniact run CONFIG pairs.file=pairs.jsonl` uses them instead of sampling.

# %%
write_jsonl(WORK / "pairs.jsonl", (pair_row(p, history=50) for p in everything))
again = read_pairs(WORK / "pairs.jsonl")
assert again == everything
print("fields:", *pair_row(everything[0], history=50))
print("made by:", again[0].provenance)

# another model: as large, same words, random weights
torch.manual_seed(SEED)
shape = AutoConfig.from_pretrained(find_model("builtin:tiny").path)
AutoModelForCausalLM.from_config(shape).save_pretrained(WORK / "other")
policy.tokenizer.save_pretrained(WORK / "other")
other = TorchPolicy(ModelConfig(path=str(WORK / "other"), rank=8, alpha=16), seed=SEED)
some = [p for p in again if p.split == "id"][:100]
prefers = {}
for name, one in (("who made them", policy), ("another model", other)):
    prefers[name] = implicit_judgements(one, prompter, some)
    r = rate(prefers[name])
    told = f"{r['value']:.0%} [{r['low']:.0%}, {r['high']:.0%}] n={r['n']}"
    print(f"{name}: log π(a⁺) > log π(a⁻) in {told}")
longer = [
    len(prompter.reply_tokens(p.alternative)) - len(prompter.reply_tokens(p.expert)) for p in some
]
short = [right == (more > 0) for right, more in zip(prefers["another model"], longer) if more]
print(f"random weights prefer the shorter action in {np.mean(short):.0%} (n={len(short)})")
assert np.mean(short) > 0.9

# %% [markdown]
# **What you should see.** Most samples survive the filter, most alternatives can be done, and nearly
# all of them cost extra actions; but the label is the expert's choice, not the truth. A higher
# temperature yields more pairs and worse ones. In a drawn order, a critic that does not read scores
# chance. The initial policy does a little better than that when asked: judging is what ACT has yet to
# teach it. Random weights prefer the shorter action, since log π is a sum over tokens: the implicit
# judgement is not free of length.
#
# ## Exercise
#
# How many pairs does a state yield on average with K samples? Predict it for one state from the
# model's probabilities, by the formula at the top, then measure it. (Each sample carries its own
# log-probability.)

# %% [markdown]
# ## Solution
#
# Sum over the actions that come up in many samples; those that never came up have a small rest.

# %%
state, expert_action = batch[2]
(many,) = policy.sample(
    [prompter.action(state).tokens], n=1024, max_tokens=CONFIG.max_tokens, temperature=1.0, seed=7
)
probability = {canonical(sample.text): exp(sum(sample.logps)) for sample in many}
rest = 1 - sum(probability.values())
others = np.array([p for a, p in probability.items() if a not in ("", canonical(expert_action))])
print(
    f"{len(probability)} different actions in {len(many)} samples; never seen: {rest:.0%} of the mass"
)
for K in (1, 2, 4, 8):
    low = (1 - (1 - others) ** K).sum()
    high = low + K * rest  # if all of the rest were actions that never come up twice
    texts = [sample.text for sample in many]
    draws = [texts[at : at + K] for at in range(0, len(texts), K)]
    yields = [len(filter_alternatives(expert_action, draw, None)[0]) for draw in draws]
    error = 4 * np.std(yields) / np.sqrt(len(yields))
    print(
        f"K = {K}: predicted {low:.2f} to {high:.2f}, measured {np.mean(yields):.2f} (n={len(draws)})"
    )
    assert low - error < np.mean(yields) < high + error
