# %% [markdown]
# # 00 · Run it, and look
#
# **The question.** What happens when an agent is trained, and what is there to see afterwards?
#
# **The answer in one line.** A small language model first imitates an expert (IL), then learns to tell the
# expert's action $a^+$ from one of its own, $a^-$ (ACT), then is rewarded for acting like the expert (RL).
# After every stage the same three things are measured. This page runs all of it in a small household
# world, and looks at what came out. Nothing is explained in full: tutorials 01 to 07 do that.

# %%
import tempfile
from pathlib import Path

import miniact
from aside.look import say, show, stages_picture
from miniact.envs.household_facts import check
from miniact.method.pairs import read_pairs

# %% [markdown]
# ## 1 · Run
#
# `household` is a config that ships; the other lines make it smaller, so that it takes about a minute. In a
# terminal this is `miniact run household stage.il.steps=60 …`. Its model has 0.7 million parameters, and it
# thinks: before it acts or judges it writes a few short sentences.

# %%
SMALLER = [
    *("env.train_tasks=40", "env.heldout_tasks=24"),
    *("stage.il.steps=60", "stage.act.steps=20", "stage.rl.steps=6"),
    *("eval.episodes=12", "eval.states=30", "eval.pairs=30"),
]
RUN = Path(tempfile.mkdtemp()) / "run"
results = miniact.run(miniact.load_config("household", SMALLER), RUN)["results"]

# %% [markdown]
# ## 2 · What changed?
#
# Five measurements: of the untrained model, without thoughts (`base`) and with them, and after each stage.
# All are of tasks that were never trained on.

# %%
stages_picture(results)

# %%
say(results)

# %% [markdown]
# ## 3 · An episode
#
# The trained agent on a task that it had never seen. Lines with `>` are what it wrote; the rest is the
# world's answer. This is one that it solved, if it solved any.

# %%
show(RUN, "episode")

# %% [markdown]
# ## 4 · A question for the critic
#
# The same model is also a critic. Here is a situation, and two actions. Which is the better one? Choose
# before you read on.

# %%
pairs = read_pairs(RUN / "pairs.jsonl")
held_out = [pair for pair in pairs if pair.split != "train"]
question = held_out[13]  # one of those on which IL and ACT disagree
print("task:", question.state.task)
for observation, action in question.state.history:
    print(observation, "\n >", action)
print(question.state.observation)

two = question.present(right=1).actions  # shown second; a critic that always says 1 is wrong
print("\n1:", two[0], "\n2:", two[1])

# %% [markdown]
# And the model, before ACT and after it:

# %%
for stage in ("1-il", "2-act"):
    agent = miniact.load_agent(RUN / "stages" / stage / "adapter")
    judged = agent.judge(question.state, two)
    chosen = "neither" if judged.choice is None else two[judged.choice]
    print(f"{stage:6} writes {judged.reply!r}, chooses {chosen!r}")
print(f"the expert did {question.expert!r}")

# %% [markdown]
# ## 5 · A thought
#
# Before the choice stands what the critic thought. ACT rewards the choice and never looks at the thought,
# so whatever thought leads to right choices is reinforced. In this world it can be told which sentences
# are true:

# %%
for sentence in judged.reasoning.split(". "):
    ((kind, true),) = check(question.state, sentence)
    print(f"{sentence:40} {'true' if true else 'false':6} {kind}")
assert judged.reasoning != ""

# %% [markdown]
# The same table over all held-out questions, before and after ACT, is `miniact show RUN thoughts`
# ([tutorial 06](06_critical_training.py) reads it).
#
# **What you should see.** Thinking alone makes an untrained model act better: compare `base` with
# `base-thinking`. After that the intervals of so small a run overlap; what the stages do can be told from
# many seeds only, and the README shows such a table. Where is everything? In the run's folder;
# `miniact report RUN` makes one page of it.
#
# ## Exercise
#
# Does the critic judge the actions, or does it like one place? Ask each held-out question in both orders.
# How often does it choose the same *action* both times? Guess first; a critic that always says "1" never does.

# %% [markdown]
# ## Solution
#
# The run has measured it too, on 30 questions drawn from all: `consistent`. Here is the same by hand on the
# first 30, with the critic that ACT has trained.

# %%
stays = []
for q in held_out[:30]:
    one, other = (agent.judge(q.state, q.present(right).actions) for right in (0, 1))
    stays.append(None not in (one.choice, other.choice) and one.choice != other.choice)
measured = results["2-act"]["judgement"]["consistent"]["value"]
print(
    f"the same action in both orders: {sum(stays) / len(stays):.0%} here, {measured:.0%} in the run"
)
assert abs(sum(stays) / len(stays) - measured) < 0.3  # other questions, the same critic
