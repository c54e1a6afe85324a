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
# held-out pairs: asked, asked in both orders, and not asked at all.

# %%
import json
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console

from aside.drawings import draw_judgement, draw_training
from miniact.backends.protocol import load_policy
from miniact.config import load_config
from miniact.evaluation.evaluate import judgement_accuracy
from miniact.experiments.pipeline import start_run
from miniact.experiments.reading import read_metrics
from miniact.method.grpo import advantages
from miniact.method.pairs import questions, read_pairs
from miniact.method.prompts import Prompter
from miniact.method.rewards import canonical
from miniact.tools.thoughts import show_thoughts
from miniact.types import Completion, Group, Sample

RUN = Path(tempfile.mkdtemp()) / "run"

# %% [markdown]
# ## 1 · The run
#
# The household world at a reduced size, with the model that answers at once: `household-plain` with fewer
# tasks and steps, and without playing episodes. IL comes first, so that ACT trains a model that already knows how to act.

# %%
SIZES = "env.train_tasks=400 env.heldout_tasks=60 stage.il.steps=80 stage.act.steps=36"
EVAL = "eval.episodes=0 eval.states=0 eval.pairs=110"
config = load_config("household-plain", ["seed=0", "recipe=il,act", *SIZES.split(), *EVAL.split()])
start_run(config, RUN, Console(quiet=True))
print((RUN / "results.txt").read_text())

# %% [markdown]
# ## 2 · One step, computed again
#
# Every tenth step the run keeps two of its groups: the prompt, the two actions as they were shown, which
# of them is the expert's (`right`: 0 or 1), and all answers. These are the first and the last that ACT
# kept:

# %%
lines = (RUN / "samples" / "2-act.jsonl").read_text().splitlines()
groups = [json.loads(line) for line in lines]
print(groups[0]["prompt"], "\n")
for group in (groups[0], groups[-1]):
    print(
        f"step {group['step']}, shown {group['actions']}, right: {group['actions'][group['right']]}"
    )
    for answer in group["answers"]:
        print(f"  reward {answer['reward']:.0f}  advantage {answer['advantage']:+.2f}", end="  ")
        print(repr(answer["reply"]))

# %% [markdown]
# A reply chooses an action by its number or by its text; anything else is not valid. From that the
# reward follows, and from the group's rewards the advantages:


# %%
def choice_by_hand(reply, actions):
    """0 or 1, or None if the reply names neither action."""
    names = {"1": 0, "2": 1, canonical(actions[0]): 0, canonical(actions[1]): 1}
    return names.get(canonical(reply))


for group in groups:
    choices = [choice_by_hand(a["reply"], group["actions"]) for a in group["answers"]]
    reward_G = np.array([float(choice == group["right"]) for choice in choices])
    logged = group["answers"]
    assert [choice is not None for choice in choices] == [a["valid"] for a in logged]
    assert reward_G.tolist() == [a["reward"] for a in logged]
    assert np.allclose(advantages(reward_G), [a["advantage"] for a in logged])
print(f"{len(groups)} groups of {len(reward_G)} answers: the same choices, rewards and advantages")

# %% [markdown]
# The metrics of a step are means of just these numbers over all its groups:
#
# | metric | the share of … |
# |---|---|
# | `valid` | answers that name one of the two actions |
# | `correct` | answers that name the expert's (= `reward` here: there is no format term) |
# | `all_wrong`, `all_correct` | groups whose answers are all wrong, all right: dead groups |
# | `zero_variance` | groups that are dead, so the sum of the two |
# | `entropy` | not a share: how unsure the answers are, in nats a token |

# %%
rows = read_metrics(RUN)["2-act"]
curve = {name: np.array([row[name] for row in rows]) for name in rows[0] if name != "stage"}
assert np.allclose(curve["zero_variance"], curve["all_correct"] + curve["all_wrong"])
print("mean over 8 steps  first    last")
for name in ("reward", "valid", "all_wrong", "all_correct", "entropy"):
    print(f"{name:16} {curve[name][:8].mean():7.3f} {curve[name][-8:].mean():7.3f}")

# %% [markdown]
# ## 3 · Format or judgement?
#
# Judgement is not logged, but it is reward / valid. The split of the equation at the top:


# %%
def split(before, after):
    """How much of a rise in v·j comes from v (format) and from j (judgement); exact."""
    (v0, j0), (v1, j1) = before, after
    return (j0 + j1) / 2 * (v1 - v0), (v0 + v1) / 2 * (j1 - j0)


def valid_and_judgement(steps):
    v, right = curve["valid"][steps].mean(), curve["correct"][steps].mean()
    return v, right / v


before, after = valid_and_judgement(slice(0, 8)), valid_and_judgement(slice(-8, None))
by_format, by_judgement = split(before, after)
rise = np.prod(after) - np.prod(before)
assert np.isclose(by_format + by_judgement, rise) and rise > 0
print(f"valid {before[0]:.1%} → {after[0]:.1%}, right if valid {before[1]:.1%} → {after[1]:.1%}")
print(f"the reward rose by {100 * rise:.1f} points: {100 * by_format:.1f} by format,", end=" ")
print(f"{100 * by_judgement:.1f} by judgement")

# %%
draw_training(curve)

# %% [markdown]
# **How to read it.** On the left, watch which of the two upper lines carries the reward upwards. In the
# middle, the green area: as the critic grows sure of itself, more groups are all right and teach nothing.
# On the right entropy, the same fact seen from the answers: what the model says becomes certain, whether
# right or wrong. Where entropy is near 0, there is nothing left to compare, and training stands still.
#
# And one thing that no training curve can tell: the questions come round again (each about three times
# here). What rises may be memory.
#
# ## 4 · The judgement that counts: held-out pairs
#
# Questions from tasks never trained on, answered greedily, each asked in both orders. By hand:

# %%
policy = load_policy(config.model)
policy.load_adapter(RUN / "stages" / "2-act" / "adapter")
prompter = Prompter(policy.tokenizer, config.prompt)
asked = questions(pair for pair in read_pairs(RUN / "pairs.jsonl") if pair.split != "train")

shown = [question.present(right) for question in asked for right in (0, 1)]
prompts = [prompter.critic(s.state, s.actions).tokens for s in shown]
replies = policy.sample(prompts, n=1, max_tokens=10, temperature=0.0, seed=0)
choices = [choice_by_hand(reply.text, s.actions) for (reply,), s in zip(replies, shown)]
valid_QP = np.array([choice is not None for choice in choices]).reshape(-1, 2)
right_QP = np.array([choice == s.right for choice, s in zip(choices, shown)]).reshape(-1, 2)

# %% [markdown]
# P is the place of the expert's action: first, second. A critic that only says "2" is right in one column
# and wrong in the other.
#
# The *implicit* judgement asks nothing at all: does acting itself prefer the expert's action,
# $\log\pi(a^+\mid s)>\log\pi(a^-\mid s)$?

# %%
groups = []
for question in asked:
    replies = [prompter.reply_tokens(a) for a in (question.expert, question.alternative)]
    groups.append(Group(prompter.action(question.state).tokens, tuple(map(Completion, replies))))
logp_Q2 = np.array([[logp.sum() for logp in pair] for pair in policy.logprobs(groups)])

# %% [markdown]
# The package measures the same:

# %%
by_hand = {
    "accuracy": right_QP.mean(),
    "valid": valid_QP.mean(),
    "given_valid": right_QP[valid_QP].mean(),
    "expert_first": right_QP[:, 0].mean(),
    "expert_second": right_QP[:, 1].mean(),
    "implicit": (logp_Q2[:, 0] > logp_Q2[:, 1]).mean(),
}
measured = judgement_accuracy(policy, prompter, asked, config.eval, seed=0)
for name, share in by_hand.items():
    rate = measured[name]
    assert np.isclose(share, rate["value"])
    print(f"{name:14}{share:6.1%}  [{rate['low']:.1%}, {rate['high']:.1%}]  n = {rate['n']}")

# %% [markdown]
# On these intervals: *n* counts questions, not answers. Both orders of a question are about one state
# and one choice, so they are no separate draws.
#
# ## 5 · Before and after
#
# The run has kept the same measures of the base model and of the model after IL.

# %%
results = json.loads((RUN / "results.json").read_text())["results"]
judgement = {stage: result["judgement"] for stage, result in results.items()}
draw_judgement(judgement)

# %% [markdown]
# And the split again, of ACT's rise on held-out questions:


# %%
def rates_of(stage):
    return [judgement[stage][name]["value"] for name in ("valid", "given_valid")]


by_format, by_judgement = split(rates_of("1-il"), rates_of("2-act"))
rise = np.prod(rates_of("2-act")) - np.prod(rates_of("1-il"))
assert np.isclose(by_format + by_judgement, rise) and rise > 0
print(f"ACT, held out: {100 * rise:+.1f} points: {100 * by_format:+.1f} by format,", end=" ")
print(f"{100 * by_judgement:+.1f} by judgement")

# %% [markdown]
# **What you should see.** The share of right answers rises, in training and on held-out questions. The two
# printed splits say how much of that is format alone; do not call that judgement. (Some of it may only
# win back what IL, which trains the same few weights on acting, has spoilt of the critic's answers:
# compare "valid answers" of base and IL in section 1.) Whether the rest is more than noise, the
# intervals of "asked, if valid" tell: where those after IL and after ACT overlap, there are more right
# answers, but no proof of better judgement. And one seed is one seed.
#
# In the right picture a gap between the two marks would be a habit ("the second one"), not a judgement.
#
# The implicit judgement came with IL: to prefer the expert's action is just what imitation trains. ACT
# trains the same few weights, and may cost some of it.
#
# ## 6 · What a critic thinks
#
# This critic answers at once. One that thinks before it chooses can be right for a wrong reason, so two
# more questions arise: is what it thinks true, and does its choice follow from it? `builtin:thinker`, the
# other model that ships, reasons in sentences about the household world, whose rules are known, so each
# sentence can be checked against what the agent has been shown. A short ACT of it:

# %%
THINKING = RUN.with_name("thinking")
SIZES = "env.train_tasks=40 env.heldout_tasks=20 pairs.states_per_trajectory=4 stage.act.steps=12"
EVAL = "eval.episodes=0 eval.states=0 eval.pairs=60 stage.act.lr=6e-4"
config = load_config("household", ["recipe=act", *SIZES.split(), *EVAL.split()])
start_run(config, THINKING, Console(quiet=True))
show_thoughts(THINKING, None, Console(width=96))

# %% [markdown]
# **How to read it.** Each row is a kind of sentence: "i hold nothing" (hand), "desk 2 not searched" (left),
# "i saw apple 1 on desk 2" (seen), "light needs desklamp 1" (tool). First its share of all sentences, then
# how much of it is true. ACT looks at no sentence, only at the choice, and yet what is thought may shift:
# sentences that go before right choices become more frequent, whether they are true or not. *Answer
# follows* is the share of choices that are about a thing which the thought mentions. Under the table the
# same held-out question, before and after. `miniact show RUN thoughts -n 3` prints another.
#
# ## Exercise
#
# A critic answers "1" to everything. What are its `accuracy`, `valid`, `given_valid`, `expert_first`,
# `expert_second` and `consistent` (the share of questions where it chooses the same action in both
# orders)? Which of them expose it? Write the six numbers down before you read on.

# %% [markdown]
# ## Solution
#
# It is right exactly when the expert's action stands first, and it never chooses the same action twice.
# Ask the package:


# %%
class AlwaysFirst:
    def sample(self, prompts, n, max_tokens, temperature, seed):
        return [[Sample((), (), "1", "end")] * n for _ in prompts]

    def logprobs(self, groups, temperature=1.0, reference=False):
        return [[np.zeros(1) for _ in group.completions] for group in groups]


fooled = judgement_accuracy(AlwaysFirst(), prompter, asked, config.eval, seed=0)
names = ("accuracy", "valid", "given_valid", "expert_first", "expert_second", "consistent")
assert [fooled[name]["value"] for name in names] == [0.5, 1.0, 0.5, 1.0, 0.0, 0.0]
print("accuracy cannot tell it from guessing; expert first and second, or consistent, can")
