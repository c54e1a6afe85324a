# %% [markdown]
# # 02 · A text world and its expert
#
# **The question.** An agent is to be trained and then measured honestly. What does it need a world for,
# and what must that world be able to do?
#
# **The answer in one line.** A world sets tasks, answers actions with text, says when a task is solved,
# and has an expert whose play can be imitated. An agent is as good as the share of tasks that it solves
# among tasks that it was not trained on, and the share from $k$ solved of $n$ episodes
# is known only so well:
#
# $$\hat p=\frac kn,\qquad \text{95 \% interval (Wilson)}:\quad
#   \frac{\hat p+\frac{z^2}{2n}\ \pm\ z\sqrt{\frac{\hat p(1-\hat p)}{n}+\frac{z^2}{4n^2}}}{1+\frac{z^2}{n}},\qquad z=1.96$$
#
# This page plays an episode by hand, takes the splits of the built-in world apart, writes another world
# from scratch, keeps the expert's play as a file, and measures three agents: one that acts at random,
# the initial policy (the tiny model, which has read random play and nothing else), and the expert.

# %%
import random
import re
import tempfile
from math import sqrt
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from miniact import UserError
from miniact.backends.torch.policy import TorchPolicy
from miniact.config.sections import ModelConfig, PromptConfig
from miniact.data.trajectories import TrajectoryFile, collect, to_row
from miniact.envs import Turn, make_env
from miniact.evaluation.episodes import Episode, Move, PlayOptions, play_episodes
from miniact.evaluation.evaluate import evaluate_episodes
from miniact.evaluation.rates import wilson
from miniact.method.prompts import Prompter
from miniact.runs.files import write_jsonl
from miniact.types import State, Step, Trajectory

SEED = 0
LIMIT = 20  # actions in an episode, for everybody
WORK = Path(tempfile.mkdtemp())

# %% [markdown]
# ## 1 · An episode by hand
#
# The household world speaks the command language of ALFWorld. A task id says everything: it seeds the
# room, what lies where, and the goal. `reset` starts the episode, `step` takes an action as text.

# %%
env = make_env("household", max_steps=LIMIT)
task_id = env.tasks("train", 6, seed=SEED)[3]
task, turn = env.reset(task_id)
print("id:  ", task_id)
print("task:", task)
print(turn.observation)
print("\nwhat can be done now:", *env.admissible(), sep="\n  ")

# %% [markdown]
# Whatever an agent writes is data. What does not apply costs a turn, changes nothing, and is never an
# error: a language model will write anything.

# %%
BY_HAND = [
    "please warm up some food",
    "go to sinkbasin 1",
    "take potato 1 from sinkbasin 1",
    "go to microwave 1",
    "heat potato 1 with microwave 1",
    "go to garbagecan 1",
    "move potato 1 to garbagecan 1",
]
for action in BY_HAND:
    turn = env.step(action)
    mark = ">" if turn.applied else "✗"
    print(f"{mark} {action}\n    {turn.observation}")
assert turn.done and turn.success and turn.score == 1
print(f"\nsolved, {len(BY_HAND)} actions, one of them for nothing")

# %% [markdown]
# That was nearly the whole protocol. `Env` (in `miniact/envs/__init__.py`) has six methods and the names
# of its splits:
#
# | | |
# |---|---|
# | `tasks(split, n, seed)` | n task ids; splits never share one |
# | `reset(task_id)` | the task's text and the first observation; the id determines everything |
# | `step(action)` | a `Turn`: observation, done, success, score, applied |
# | `admissible()` | the actions that apply now, or None where a world cannot list them |
# | `expert_action()` | what the expert would do now, or None where it does not know |
# | `close()` | free everything |
#
# ## 2 · In distribution, out of distribution
#
# Split "train" is for learning, "id" and "ood" are for measuring. What differs? Let the expert play many
# tasks of each split, and compare what can be read on the way: rooms (the list of places in the first
# observation), goals (object, target), forms of the task sentence, words.

# %%
N_TRAIN, N_HELD = 1500, 300
played = {
    split: list(collect(env, split, N_TRAIN if split == "train" else N_HELD, SEED, "expert"))
    for split in env.splits
}
assert env.splits == ("train", "id", "ood")
KINDS = {  # every kind of thing that has a number somewhere: "apple", "shelf", …
    kind
    for trajectories in played.values()
    for t in trajectories
    for step in t.steps
    for kind in re.findall(r"([a-z]+) \d", step.observation)
}


def features(t):
    """What one episode consists of: (aspect, value) for each thing worth comparing."""
    words = re.findall("[a-z]+", " ".join([t.task, *(s.observation for s in t.steps)]))
    goal = tuple(word for word in re.findall("[a-z]+", t.task) if word in KINDS)
    form = " ".join("…" if word in KINDS else word for word in re.findall("[a-z]+", t.task))
    yield "room", t.steps[0].observation
    yield "goal", goal
    yield "form of the task", form
    yield from (("word", word) for word in words)


found = {split: {f for t in played[split] for f in features(t)} for split in env.splits}
print("                    train     id  (new)    ood  (new)")
for aspect in ("room", "goal", "form of the task", "word"):
    n = {split: {v for a, v in found[split] if a == aspect} for split in env.splits}
    new = [len(n[split] - n["train"]) for split in ("id", "ood")]
    print(f"{aspect:18}{len(n['train']):7}{len(n['id']):7}{new[0]:7}{len(n['ood']):7}{new[1]:7}")
    in_common = len(n["ood"] & n["train"])
    assert new[0] == 0  # id: nothing new
    assert in_common == 0 if aspect in ("room", "goal") else new[1] == 0
(example, *_) = sorted(v for a, v in found["ood"] if a == "goal")
print(f"\na goal that only ood has: {' → '.join(example)}")

# %% [markdown]
# So "id" has rooms and goals that "train" has too, with the things lying elsewhere. "ood" has only
# rooms and goals that "train" never has, yet no word and no form of sentence that "train" lacks: what
# fails there is not the vocabulary. And no task, of course, is in two splits:

# %%
ids = {split: {t.id for t in played[split]} for split in env.splits}
assert not ids["train"] & ids["id"] and not ids["id"] & ids["ood"] and not ids["train"] & ids["ood"]

# %% [markdown]
# ## 3 · A world from scratch
#
# Three drawers, a book in one of them. That makes a world:


# %%
class Drawers:
    """Find the book. A task id is a split and a number: "train/7"."""

    splits = ("train", "id")

    def __init__(self):
        self._last = Turn("", done=True)  # until the first reset

    def tasks(self, split, n, seed):
        if split not in self.splits:
            raise UserError(f"drawers: unknown split {split!r}, expected one of {self.splits}")
        numbers = random.Random(f"{split}/{seed}").sample(range(1000), min(n, 1000))
        return [f"{split}/{number}" for number in numbers]

    def reset(self, task_id):
        split, _, number = task_id.partition("/")
        if split not in self.splits or not number.isdecimal():
            raise UserError(f"drawers: unknown task id {task_id!r}, expected one like 'train/7'")
        self._book = random.Random(task_id).randint(1, 3)
        self._open, self._steps = set(), 0
        self._last = Turn("You see a drawer 1, a drawer 2, and a drawer 3.")
        return "take the book.", self._last

    def admissible(self):
        if self._last.done:
            return ()
        opens = [f"open drawer {i}" for i in (1, 2, 3) if i not in self._open]
        return tuple(opens + [f"take book 1 from drawer {i}" for i in self._open & {self._book}])

    def step(self, action):
        applied, taken, text = action in self.admissible(), False, "Nothing happens."
        if applied:
            verb, place = action.split()[0], int(action[-1])
            taken = verb == "take"
            self._open.add(place)
            inside = "a book 1" if place == self._book else "nothing"
            text = "You take the book." if taken else f"In the drawer {place}, you see {inside}."
        self._steps += 1
        done = self._last.done or taken or self._steps >= 6
        success = taken or self._last.success
        self._last = Turn(text, done, success, float(success), applied)
        return self._last

    def expert_action(self):
        listed = self.admissible()
        return listed[-1] if listed and listed[-1].startswith("take") else next(iter(listed), None)

    def close(self):
        self._last = Turn("", done=True)


drawers = Drawers()
(one,) = collect(drawers, "train", 1, seed=1, source="drawers")
print("task:", one.task)
for step in one.steps:
    print(step.observation, "\n >", step.action)

# %% [markdown]
# Its expert opens drawers in order until it sees the book. It does not peek at `_book`: an expert that
# knows more than the agent was shown cannot be imitated, because nothing in the state says what it does.
#
# Is it a world as the package wants it? `tests/envs/test_env_contract.py` asks every environment the same
# questions. The heart of them:


# %%
def check_contract(make, n=12):
    """AssertionError where a world breaks a promise that training and measuring rely on."""
    env, other = make(), make()
    assert env.splits[0] == "train"
    lists = [env.tasks(split, n, seed=0) for split in env.splits]
    assert lists == [env.tasks(split, n, seed=0) for split in env.splits], "not deterministic"
    flat = [task_id for ids in lists for task_id in ids]
    assert len(set(flat)) == len(flat), "splits share a task"
    for task_id in flat:
        rng, (task, turn) = random.Random(task_id), env.reset(task_id)
        assert other.reset(task_id) == (task, turn), "the id does not determine the start"
        before = env.admissible(), env.expert_action()
        wrong = env.step("open the pod bay doors")
        assert not wrong.applied and not wrong.success, "an illegal action did something"
        assert (env.admissible(), env.expert_action()) == before, "an illegal action left a trace"
        assert other.step("open the pod bay doors") == wrong
        while not turn.done:  # the expert, led astray one time in four
            listed, expert = env.admissible(), env.expert_action()
            assert listed == tuple(sorted(set(listed))) == other.admissible()
            assert expert in listed, "the expert does what cannot be done"
            action = rng.choice(listed) if rng.random() < 0.25 else expert
            turn = env.step(action)
            assert turn.applied, "an admissible action does not apply"
            assert turn == other.step(action), "the id does not determine what follows"
            assert turn.done or not turn.success
        _, turn = env.reset(task_id)
        while not turn.done:
            turn = env.step(env.expert_action())
        assert turn.success and turn.score == 1, "the expert fails"
    for call in (lambda: env.tasks("nosuchsplit", 1, seed=0), lambda: env.reset("nonsense")):
        try:
            call()
        except UserError as error:
            assert "\n" not in str(error)
        else:
            raise AssertionError("nonsense was accepted")
    env.close()
    env.close()


check_contract(Drawers)
check_contract(lambda: make_env("household", max_steps=LIMIT + 10))


class Leaky(Drawers):
    """Hands out train tasks, whatever the split: what is measured would have been trained on."""

    def tasks(self, split, n, seed):
        return super().tasks("train", n, seed)


try:
    check_contract(Leaky)
except AssertionError as error:
    caught = str(error)
assert caught == "splits share a task"
print("Drawers and household keep the contract; Leaky does not:", caught)

# %% [markdown]
# ## 4 · The expert's play as a file
#
# Imitation needs pairs (state, expert action). From scratch, that is a loop:


# %%
def play_expert(env, task_id, split):
    task, turn = env.reset(task_id)
    steps = []
    while not turn.done:
        steps.append(Step(turn.observation, env.expert_action(), env.admissible()))
        turn = env.step(steps[-1].action)
    return Trajectory(task_id, task, tuple(steps), turn.success, split, "expert")


by_hand = [play_expert(env, t.id, "train") for t in played["train"][:50]]
assert by_hand == played["train"][:50]  # what `collect` made above

# %% [markdown]
# On disk a trajectory is a line of JSON. `TrajectoryFile` indexes such a file and hands out single
# expert states, without ever holding it whole in memory.

# %%
rows = [to_row(t) for split in env.splits for t in played[split]]
write_jsonl(WORK / "trajectories.jsonl", rows)
file = TrajectoryFile(WORK / "trajectories.jsonl")
states = file.states("train")
assert len(states) == sum(len(t.steps) for t in played["train"])
assert states[0] == (by_hand[0].state(0), by_hand[0].steps[0].action)
assert [file.read(i) for i in range(50)] == by_hand  # nothing is lost on the way
print(
    f"{len(file)} trajectories; {len(states)} expert states to learn from, and held out:", end=" "
)
print(", ".join(f"{len(file.states(split))} {split}" for split in ("id", "ood")))
size = (WORK / "trajectories.jsonl").stat().st_size
print(f"{size / 1e6:.1f} MB on disk; in memory only an index of {len(file)} trajectories")

# %% [markdown]
# ## 5 · A language model plays
#
# A rollout is a loop, too: state → prompt → reply → action → next state. Here it is by hand, for the
# initial policy, always taking the likeliest token (temperature 0); `play_episodes` does the same
# for many worlds at once, so that they share the model's batches. It is given worlds, not names, so a
# world needs to be registered nowhere.

# %%
policy = TorchPolicy(ModelConfig(path="builtin:tiny", rank=8, alpha=16), seed=SEED)
prompter = Prompter(policy.tokenizer, PromptConfig(form="plain", show_admissible=False, history=10))
GREEDY = PlayOptions(temperature=0.0, max_tokens=24)


def play_by_hand(env, task_id):
    task, turn = env.reset(task_id)
    history = []
    while not turn.done:
        state = State(f"{task_id}#{len(history)}", task, tuple(history), turn.observation)
        prompt = prompter.action(state).tokens
        ((sample,),) = policy.sample([prompt], 1, max_tokens=24, temperature=0.0, seed=0)
        action = prompter.action_in(sample) or ""
        history.append((turn.observation, action or sample.text))  # it reads what it said
        turn = env.step(action.strip())
    return history, turn.success


for world, split in ((env, "ood"), (drawers, "id")):
    (task_id,) = world.tasks(split, 1, seed=SEED)
    history, success = play_by_hand(world, task_id)
    (episode,) = play_episodes(policy, prompter, [world], [task_id], GREEDY)
    assert [(m.observation, m.action or m.reply) for m in episode.moves] == history
    assert episode.success == success
    print(f"{episode.task} ({episode.stop})")
    for move in episode.moves[:4]:
        print("  >" if move.applied else "  ✗", move.action)

# %% [markdown]
# ## 6 · Three agents, with intervals
#
# The random agent draws from the admissible actions. First the interval, from scratch and by the
# package:


# %%
def wilson_by_hand(k, n, z=1.959964):
    p = k / n
    centre, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


assert all(np.allclose(wilson(k, 40), wilson_by_hand(k, 40)) for k in range(41))
print(f"0 of 40 solved: at most {wilson(0, 40)[1]:.1%}, and not 0 %")


# %%
def play(env, task_id, choose):
    """An episode of an agent that is no language model: `choose` picks the action."""
    task, turn = env.reset(task_id)
    episode = Episode(task_id, task)
    while not turn.done:
        seen, action = turn.observation, choose(env)
        turn = env.step(action)
        episode.moves.append(Move(seen, action, action, turn.applied))
    episode.success = turn.success
    return episode


rng = random.Random(SEED)
AGENTS = {
    "random": lambda env: rng.choice(env.admissible()),
    "expert": lambda env: env.expert_action(),
}
N, N_MODEL = 300, 20
episodes = {
    (agent, split): [play(env, task_id, choose) for task_id in env.tasks(split, N, seed=1)]
    for agent, choose in AGENTS.items()
    for split in env.splits
}
envs = [make_env("household", max_steps=LIMIT) for _ in range(N_MODEL)]
for split in env.splits:
    tasks = env.tasks(split, N_MODEL, seed=1)
    episodes["initial policy", split] = play_episodes(policy, prompter, envs, tasks, GREEDY)

results = {key: evaluate_episodes(some) for key, some in episodes.items()}
for (agent, split), result in results.items():
    s = result["success"]
    print(
        f"{agent:16}{split:6} {s['value']:6.1%}  [{s['low']:.1%}, {s['high']:.1%}]  n={s['n']:<4}"
        f" {result['steps']:4.1f} actions, {result['failed_actions']['value']:.0%} of them failed"
    )

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
for k, agent in enumerate(("random", "initial policy", "expert")):
    rates = [results[agent, split]["success"] for split in env.splits]
    values = np.array([r["value"] for r in rates])
    spread = np.abs(np.array([[r["low"], r["high"]] for r in rates]).T - values)
    place = np.arange(len(env.splits)) + 0.15 * (k - 1)
    label = f"{agent} (n={rates[0]['n']})"
    left.errorbar(place, values, spread, fmt="o", capsize=3, label=label)
left.set_xticks(range(len(env.splits)), env.splits)
left.set_xlim(-0.5, len(env.splits) - 0.5)
left.set_ylim(-0.03, 1.03)
left.set_ylabel("tasks solved, 95 % interval")
left.legend(fontsize=8, loc="center right")
lengths = {split: [len(e.moves) for e in episodes["expert", split]] for split in env.splits}
for split, values in lengths.items():
    right.hist(
        values, np.arange(0.5, LIMIT + 1), histtype="step", label=f"{split} (n={len(values)})"
    )
right.axvline(LIMIT, color="gray", linestyle=":")
right.text(LIMIT - 0.3, right.get_ylim()[1] * 0.5, "limit", rotation=90, ha="right", va="center")
right.set_xticks(range(0, LIMIT + 1, 4))
right.set_xlabel("actions that the expert needs")
right.set_ylabel("episodes")
right.legend(fontsize=8)
figure.tight_layout()

for split in env.splits:
    assert results["expert", split]["success"]["value"] == 1
    assert max(lengths[split]) < LIMIT
    for agent in ("random", "initial policy"):
        assert results[agent, split]["success"]["high"] < results["expert", split]["success"]["low"]
    assert results["random", split]["success"]["high"] < 0.1
    assert results["random", split]["failed_actions"]["value"] == 0
    assert results["initial policy", split]["failed_actions"]["value"] > 0

# %% [markdown]
# **What you should see.** The expert solves everything within the limit, on every split alike. Random
# play solves next to nothing although all its actions are possible, and so does the initial policy,
# some of whose actions are not: what a trained agent solves beyond these intervals, it has learned.
# Fewer episodes give a wider interval, also around zero.
#
# ## Exercise
#
# Write an agent that solves every task it was trained on and has learned nothing. What does its success
# on "train" say, and what do "id" and "ood"?

# %% [markdown]
# ## Solution
#
# A table of everything the expert did; where the table has no entry, look around.

# %%
memory = {
    (t.task, t.state(i).history, step.observation): step.action
    for t in played["train"]
    for i, step in enumerate(t.steps)
}


def solve_from_memory(env, task_id):
    task, turn = env.reset(task_id)
    history = ()
    while not turn.done:
        seen, action = turn.observation, memory.get((task, history, turn.observation), "look")
        turn, history = env.step(action), (*history, (seen, action))
    return turn.success


remembered = {}
for split in env.splits:
    tasks = [t.id for t in played[split]][:N_HELD]
    solved = sum(solve_from_memory(env, task_id) for task_id in tasks)
    remembered[split] = wilson(solved, len(tasks))
    low, high = remembered[split]
    print(f"memory, {split:6} {solved / len(tasks):4.0%}  [{low:.0%}, {high:.0%}]  n={len(tasks)}")
assert remembered["train"][1] == 1.0
assert max(remembered["id"][1], remembered["ood"][1]) < 0.05 < 0.95 < remembered["train"][0]
print("only tasks that were never trained on tell an agent from a table")
