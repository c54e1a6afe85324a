# %% [markdown]
# # 06 · Critical training, and how to read its curves
#
# **The question.** A critic is trained and its reward goes up. Has it learned to judge? Or only to
# answer in a readable form, or to say "2" more often than "1"? Which curve tells which?
#
# **The answer in one line.** An answer that cannot be read earns 0, so the reward is a product,
#
# $$\underbrace{P(\text{right})}_{\text{reward}}=
#   \underbrace{P(\text{valid})}_{\text{format}}\cdot\underbrace{P(\text{right}\mid\text{valid})}_{\text{judgement}}$$
#
# and with $v$ for valid and $j$ for judgement, before (0) and after (1), a rise splits exactly into a
# part by format and a part by judgement:
#
# $$\Delta(v\,j)=\bar\jmath\,\Delta v+\bar v\,\Delta j,\qquad \bar v=\tfrac12(v_0+v_1),\ \bar\jmath=\tfrac12(j_0+j_1)$$
#
# This page runs a short IL and then ACT through the package's pipeline, computes the metrics of one
# step again by hand from the samples on disk, splits the reward, and measures the critic on
# held-out pairs: asked freely, asked in both orders, and not asked at all (implicit judgement).

# %%
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

from miniact.backends.protocol import load_policy
from miniact.config import load_config
from miniact.evaluation.evaluate import judgement_accuracy
from miniact.evaluation.rates import wilson
from miniact.experiments.pipeline import start_run
from miniact.experiments.reading import read_metrics
from miniact.method.pairs import questions, read_pairs
from miniact.method.prompts import Prompter
from miniact.method.rewards import canonical
from miniact.types import Completion, Group, Sample

WORK = Path(tempfile.mkdtemp())
SEED = 0

# %% [markdown]
# ## 1 · The run
#
# The household world at a reduced size: the shipped config with fewer tasks and steps, and without
# playing episodes. IL comes first, so that ACT trains a model that already knows how to act.

# %%
config = load_config(
    "household",
    [
        f"seed={SEED}",
        "recipe=il,act",
        *("env.train_tasks=400", "env.heldout_tasks=60"),
        *("stage.il.steps=80", "stage.act.steps=36"),
        *("eval.episodes=0", "eval.states=0", "eval.pairs=110"),
    ],
)
RUN = WORK / "run"
start_run(config, RUN, Console(quiet=True))
print((RUN / "results.txt").read_text())

# %% [markdown]
# ## 2 · One step, computed again
#
# `samples/2-act.jsonl` keeps two groups of every tenth step, `metrics.jsonl` a line for every step.
# So let us ask for a step so small that all of it is kept: one ACT step on two questions, from IL's
# adapter, with the data of the run above.

# %%
small = load_config(
    RUN / "config.yaml",
    [
        "recipe=act",
        f"model.start={RUN / 'stages' / '1-il' / 'adapter'}",
        f"env.trajectories={RUN / 'trajectories.jsonl'}",
        f"pairs.file={RUN / 'pairs.jsonl'}",
        *("seed=1", "stage.act.steps=1", "stage.act.batch=2", "eval.pairs=2"),
    ],
)
start_run(small, WORK / "small", Console(quiet=True))
(logged,) = read_metrics(WORK / "small")["2-act"]  # numbered on from 1-il
groups = [json.loads(x) for x in (WORK / "small/samples/2-act.jsonl").read_text().splitlines()]
print(groups[0]["prompt"])
for answer in groups[0]["answers"]:
    print(
        f"  reward {answer['reward']:.0f}  advantage {answer['advantage']:+.2f}  {answer['reply']!r}"
    )

# %% [markdown]
# Which pair is it, and in which order? Write the prompts of all pairs, both ways, and look it up. An
# answer is right if it names the expert's action, by its number or by its text; it is valid if it
# names either action.

# %%
policy = load_policy(config.model, seed=SEED)
prompter = Prompter(policy.tokenizer, config.prompt)
pairs = read_pairs(RUN / "pairs.jsonl")
asked = {}
for pair in pairs:
    for actions in ((pair.expert, pair.alternative), (pair.alternative, pair.expert)):
        prompt = prompter.critic(pair.state, actions)
        asked[policy.tokenizer.decode(prompt.tokens)] = actions, pair.expert

by_hand = {name: [] for name in ("correct", "valid", "all_correct", "all_wrong", "zero_variance")}
surprise = stopped = 0.0
for group in groups:
    actions, expert = asked[group["prompt"]]
    names = {"1": actions[0], "2": actions[1], **{canonical(a): a for a in actions}}
    choices = [names.get(canonical(answer["reply"])) for answer in group["answers"]]
    reward_G = np.array([float(choice == expert) for choice in choices])
    spread = reward_G.std(ddof=1)
    advantage_G = (reward_G - reward_G.mean()) / (spread + 1e-4) if spread else 0 * reward_G
    assert (reward_G == [answer["reward"] for answer in group["answers"]]).all()
    assert np.allclose(advantage_G, [answer["advantage"] for answer in group["answers"]])
    by_hand["correct"] += [*reward_G]
    by_hand["valid"] += [choice is not None for choice in choices]
    by_hand["all_correct"].append(reward_G.all())
    by_hand["all_wrong"].append(not reward_G.any())
    by_hand["zero_variance"].append(spread == 0)
    surprise -= sum(answer["logp"] for answer in group["answers"])
    stopped += sum(answer["stop"] == "length" for answer in group["answers"])

for name, values in by_hand.items():
    assert np.isclose(np.mean(values), logged[name]), name
    print(f"{name:14}{np.mean(values):.4f} by hand, {logged[name]:.4f} logged")
answers = len(by_hand["correct"])
assert np.isclose(logged["reward"], logged["correct"])  # no format term here
assert np.isclose(stopped / answers, logged["cut_off"])
assert np.isclose(surprise / (answers * logged["reply_tokens"]), logged["entropy"])
print(
    f"entropy       {logged['entropy']:.4f} nats a token = − mean log-probability of what was sampled"
)

# %% [markdown]
# ## 3 · Format and judgement in the training curve
#
# Back to the run. Judgement is not logged, but reward = valid × judgement gives it.


# %%
def parts(before, after):
    """How much of a rise in v·j comes from v (format) and from j (judgement); exact."""
    (v0, j0), (v1, j1) = before, after
    return (j0 + j1) / 2 * (v1 - v0), (v0 + v1) / 2 * (j1 - j0)


rows = read_metrics(RUN)["2-act"]
curve = {name: np.array([row[name] for row in rows]) for name in rows[0] if name != "stage"}
valid, judged = curve["valid"], curve["correct"] / curve["valid"]


def window(at):
    """(valid, right given valid) over some steps, all answers counted alike."""
    v, c = curve["valid"][at].mean(), curve["correct"][at].mean()
    return v, c / v


FEW = 8
before, after = window(slice(0, FEW)), window(slice(-FEW, None))
by_format, by_judgement = parts(before, after)
rise = curve["correct"][-FEW:].mean() - curve["correct"][:FEW].mean()
assert np.isclose(by_format + by_judgement, rise)
print(f"mean over {FEW} steps    first   last")
print(f"  reward           {np.prod(before):6.1%} {np.prod(after):6.1%}")
print(f"  valid            {before[0]:6.1%} {after[0]:6.1%}")
print(f"  right, if valid  {before[1]:6.1%} {after[1]:6.1%}")
print(
    f"the rise of {100 * rise:.1f} points: format {100 * by_format:.1f}, judgement {100 * by_judgement:.1f}"
)
assert rise > 0

# %% [markdown]
# Two more things the curve hides. The pairs come round again: a judgement that rises in training may
# be remembered. And a group whose answers are all right or all wrong teaches nothing; as the critic
# grows sure of itself, entropy falls, such groups become more, and learning slows down by itself.

# %%
shown = config.stage.act.steps * config.stage.act.batch
n_train = len(questions(p for p in pairs if p.split == "train"))
print(f"{n_train} questions, each shown {shown / n_train:.1f} times on average")
for name in ("zero_variance", "all_correct", "all_wrong", "entropy", "reply_tokens"):
    print(
        f"{name:14} first {FEW}: {curve[name][:FEW].mean():.2f}   last {FEW}: {curve[name][-FEW:].mean():.2f}"
    )
assert np.allclose(curve["zero_variance"], curve["all_correct"] + curve["all_wrong"])
assert curve["entropy"][-FEW:].mean() < curve["entropy"][:FEW].mean()

# %% [markdown]
# ## 4 · The judgement that counts: held-out pairs
#
# Pairs from tasks never trained on, greedily, each asked in both orders. By hand, for the critic after
# ACT:

# %%
policy.load_adapter(RUN / "stages" / "2-act" / "adapter")
heldout = questions(p for p in pairs if p.split != "train")
orders = [
    order
    for q in heldout
    for order in ((q.expert, q.alternatives[0]), (q.alternatives[0], q.expert))
]
states = [q.state for q in heldout for _ in range(2)]
prompts = [prompter.critic(state, order).tokens for state, order in zip(states, orders)]
replies = policy.sample(prompts, 1, config.eval.judge_max_tokens, 0.0, SEED)
chosen = []
for (first, second), (reply,) in zip(orders, replies):
    names = {"1": first, "2": second, canonical(first): first, canonical(second): second}
    chosen.append(names.get(canonical(reply.text)))
picked_Q2 = np.array(chosen, dtype=object).reshape(-1, 2)  # with the expert first, and second
valid_Q2 = np.array([choice is not None for choice in chosen]).reshape(-1, 2)
right_Q2 = picked_Q2 == np.array([[q.expert] for q in heldout], dtype=object)

# %% [markdown]
# The implicit judgement asks nothing: does acting itself prefer the expert's action,
# $\log\pi(a^+\mid s)>\log\pi(a^-\mid s)$?

# %%
groups = []
for q in heldout:
    replies = [prompter.reply_tokens(a) for a in (q.expert, q.alternatives[0])]
    groups.append(Group(prompter.action(q.state).tokens, tuple(map(Completion, replies))))
logp_Q2 = np.array([[logp.sum() for logp in logps] for logps in policy.logprobs(groups)])
implicit = logp_Q2[:, 0] > logp_Q2[:, 1]

measured = judgement_accuracy(policy, prompter, heldout, config.eval, SEED)
by_hand = {
    "accuracy": right_Q2,
    "valid": valid_Q2,
    "given_valid": right_Q2[valid_Q2],
    "expert_first": right_Q2[:, 0],
    "expert_second": right_Q2[:, 1],
    "consistent": valid_Q2.all(1) & (picked_Q2[:, 0] == picked_Q2[:, 1]),
    "implicit": implicit,
}
for name, hits in by_hand.items():
    ours = measured[name]
    assert np.isclose(hits.mean(), ours["value"]), name
    assert np.allclose(wilson(hits.mean() * ours["n"], ours["n"]), (ours["low"], ours["high"]))
    print(
        f"{name:14}{ours['value']:6.1%}  [{ours['low']:.1%}, {ours['high']:.1%}]  n = {ours['n']}"
    )

# %% [markdown]
# A word on these intervals: *n* counts questions, not answers. Both orders of a question are about one
# state and one choice, so they are no separate draws. A question can be half right, so the interval of the
# accuracy can also be had from the spread over questions:

# %%
per_question = right_Q2.mean(1)
half = 1.96 * per_question.std(ddof=1) / np.sqrt(len(per_question))
low, high = measured["accuracy"]["low"], measured["accuracy"]["high"]
print(f"accuracy ± {100 * half:.1f} points by their spread, ± {50 * (high - low):.1f} by Wilson")

# %% [markdown]
# ## 5 · Before and after
#
# The same measures of the base model and after IL, as the pipeline has kept them, and the split of the
# rise by ACT, this time on held-out pairs:

# %%
results = json.loads((RUN / "results.json").read_text())["results"]
names = list(results)
judgement = {name: result["judgement"] for name, result in results.items()}
print(f"{'':14}" + "".join(f"{name:>9}" for name in names))
for measure in by_hand:
    print(f"{measure:14}" + "".join(f"{judgement[n][measure]['value']:9.1%}" for n in names))


def value(stage, measure):
    return judgement[stage][measure]["value"]


before, after = [(value(n, "valid"), value(n, "given_valid")) for n in ("1-il", "2-act")]
by_format, by_judgement = parts(before, after)
rise = value("2-act", "accuracy") - value("1-il", "accuracy")
assert np.isclose(by_format + by_judgement, rise) and rise > 0
print(f"\nACT, held out: {100 * rise:+.1f} points: format {100 * by_format:+.1f},", end=" ")
print(f"judgement {100 * by_judgement:+.1f}")
assert value("1-il", "implicit") > max(value("base", "implicit"), value("1-il", "accuracy"))
for name in names:
    bias = value(name, "expert_second") - value(name, "expert_first")
    print(
        f"{name:6} right more often with the expert second than first by {100 * bias:+.1f} points"
    )

# %% [markdown]
# ## 6 · The curves, as a reader wants them

# %%
figure, axes = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained")
steps = curve["step"]


def line(axis, values, label, colour):
    """The values thin, and their mean over five steps."""
    smooth = np.convolve(values, np.ones(5) / 5, mode="valid")
    axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axis.plot(steps[2:-2], smooth, color=colour, label=label)


def errorbars(axis, measures):
    for k, (measure, label) in enumerate(measures.items()):
        rates = [judgement[name][measure] for name in names]
        values = np.array([rate["value"] for rate in rates])
        ends = np.array([(rate["low"], rate["high"]) for rate in rates]).T
        place = np.arange(len(names)) + 0.07 * (k - (len(measures) - 1) / 2)
        axis.errorbar(place, values, np.abs(ends - values), fmt="o-", capsize=3, label=label)
    axis.set_xticks(range(len(names)), ["base", "after IL", "after ACT"])
    axis.set(ylim=(0, 1.02), ylabel="share, 95 % interval")


line(axes[0, 0], curve["correct"], "right = reward", "C0")
line(axes[0, 0], valid, "valid", "C2")
line(axes[0, 0], judged, "right, given valid", "C1")
axes[0, 0].set(
    title="ACT: reward, and what it is made of", ylim=(0, 1.02), ylabel="share of answers"
)

kinds = {
    "all wrong": curve["all_wrong"],
    "live": 1 - curve["zero_variance"],
    "all right": curve["all_correct"],
}
colours = ["C3", "C0", "C2"]
axes[0, 1].stackplot(steps, list(kinds.values()), labels=list(kinds), colors=colours, alpha=0.6)
axes[0, 1].set(title="ACT: which groups teach", ylim=(0, 1), ylabel="share of groups")

line(axes[0, 2], curve["entropy"], None, "C4")
axes[0, 2].set(title="ACT: entropy", ylim=(0, None), ylabel="nats a token")
line(axes[1, 0], curve["reply_tokens"], None, "C5")
axes[1, 0].set(title="ACT: length of an answer", ylim=(0, None), ylabel="tokens")
for axis in (*axes[0], axes[1, 0]):
    axis.set_xlabel("step")

free = {"accuracy": "asked: right", "given_valid": "asked: right, given valid"}
errorbars(axes[1, 1], free | {"implicit": "not asked: implicit"})
axes[1, 1].set_title(f"held out: judgement (n = {len(heldout)} questions)")
errorbars(
    axes[1, 2], {"expert_first": "expert's action first", "expert_second": "expert's action second"}
)
axes[1, 2].set_title(f"held out: position bias (n = {len(heldout)})")
for axis in (axes[1, 1], axes[1, 2]):
    axis.axhline(0.5, color="grey", linestyle=":", linewidth=0.8, label="guessing")
for axis in (axes[0, 0], axes[0, 1], axes[1, 1], axes[1, 2]):
    axis.legend(fontsize=8, loc="upper right" if axis is axes[0, 1] else "lower right")

# %% [markdown]
# **What you should see.** The reward rises. The printed splits say how much of that is format alone;
# do not call that judgement. Compare the valid answers of base, IL and ACT in the table: what IL has
# spoilt of the critic's format, by training the same few weights on acting only, ACT must first win
# back. What is left is judgement; whether that part is more than noise, the intervals of
# "given_valid" on held-out pairs tell. In the run that is stored with this page those after IL and
# after ACT overlap: more right answers, then, but no proof of better judgement; and one seed is one
# seed. A gap between expert first and second is a habit, not a judgement. Implicit judgement came
# with IL: to prefer the expert's action is what imitation trains, and after IL it is far better than
# the judgement that the model can put into an answer. ACT trains the same few weights, and may cost
# some of it.
#
# There is no reasoning in these answers: this model has none. With a pretrained model that thinks
# before it chooses, watch the length too: it is the first sign of reasoning, or of rambling.
#
# ## Exercise
#
# A critic answers "1" to everything. What are its accuracy, valid, right given valid, expert first,
# expert second, consistent? Which of these would have exposed it? Write them down, then ask the package.


# %%
class AlwaysFirst:
    def sample(self, prompts, n, max_tokens, temperature, seed):
        return [[Sample((), (), "1", "end")] * n for _ in prompts]

    def logprobs(self, groups, temperature=1.0, reference=False):
        return [[np.zeros(1) for _ in group.completions] for group in groups]


fooled = judgement_accuracy(AlwaysFirst(), prompter, heldout, config.eval, SEED)

# %% [markdown]
# ## Solution
#
# Right exactly when the expert's action stands first.

# %%
expected = {
    "accuracy": 0.5,
    "valid": 1.0,
    "given_valid": 0.5,
    "expert_first": 1.0,
    "expert_second": 0.0,
    "consistent": 0.0,
}
for name, answer in expected.items():
    assert fooled[name]["value"] == answer, name
print("accuracy alone cannot tell it from guessing; expert first and second, or consistent, can")
