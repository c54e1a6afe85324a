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
from miniact.method.pairs import read_pairs

# %% [markdown]
# ## 1 · Run
#
# `household` is a config that ships; the other lines make it smaller, so that it takes half a minute. In a
# terminal this is `miniact run household stage.il.steps=90 …`.

# %%
SMALLER = [
    *("env.train_tasks=300", "env.heldout_tasks=24"),
    *("stage.il.steps=90", "stage.act.steps=16", "stage.rl.steps=4"),
    *("eval.episodes=24", "eval.states=60", "eval.pairs=48"),
]
RUN = Path(tempfile.mkdtemp()) / "run"
results = miniact.run(miniact.load_config("household", SMALLER), RUN)["results"]

# %% [markdown]
# ## 2 · What changed?
#
# Four measurements: of the untrained model (`base`), and after each stage. All are of tasks that were
# never trained on.

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
question = held_out[3]
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
    print(f"{stage:6} writes {judged.reply!r}, chooses {judged.choice and two[judged.choice]!r}")
print(f"the expert did {question.expert!r}")

# %% [markdown]
# ## 5 · A thought
#
# ACT rewards the choice, so whatever thought leads to right choices is reinforced. What did this
# critic think before it chose?

# %%
print("its reasoning:", repr(judged.reasoning))
assert judged.reasoning == ""

# %% [markdown]
# Nothing. A model of 0.3 million parameters that has only ever read household games cannot think, and
# its prompts leave no room for it. A larger model writes its reasons first, and they stand in
# `reasoning`.
#
# **What you should see.** IL does most of the acting: it lifts the share of the expert's next actions. The right
# choices of the critic fall a little in IL and rise in ACT, by less than intervals this wide can show. The whole
# `miniact run household`, a minute on an idle machine, shows it: there judgement went from 41 to 84 % in ACT. Few
# tasks are solved at this size. Where is everything? In the run's folder; `miniact report RUN` makes one page of it.
#
# ## Exercise
#
# Does the critic judge the actions, or does it like one place? Ask each held-out question in both orders.
# How often does it choose the same *action* both times? Guess first; a critic that always says "1" never does.

# %% [markdown]
# ## Solution
#
# The run has measured it too: `consistent`. Here is the same by hand, with the critic that ACT has trained.

# %%
stays = []
for q in held_out:
    one, other = (agent.judge(q.state, q.present(right).actions) for right in (0, 1))
    stays.append(None not in (one.choice, other.choice) and one.choice != other.choice)
share = sum(stays) / len(stays)
print(f"the same action in both orders: {share:.0%} of {len(stays)} questions")
assert abs(share - results["2-act"]["judgement"]["consistent"]["value"]) < 1e-9
