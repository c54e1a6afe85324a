"""The tiny base model: made from random play, never from an expert.

`python dev/make_tiny.py --out FOLDER` plays the household world's train tasks at random, writes
each visited state as the prompt that the stages will use, and trains a small Llama on the whole
text:

    action example   state → the admissible action that random play took
    critic example   state and two admissible actions → one of the two, drawn at random

Often the task is told in hindsight: as the thing that random play then happened to do. So the base
knows the words, the form of an answer, what tends to happen next and that tasks have to do with
actions. It knows nothing of which action is better: that is up to the recipe.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterator
from pathlib import Path

import click
import tiny_llama
from rich.console import Console
from tiny_llama import build_tokenizer, options, random_action, replace
from tokenizers import normalizers

from miniact.cli.common import friendly
from miniact.config.sections import PromptConfig
from miniact.envs import Env, make_env
from miniact.method.prompts import Prompter
from miniact.types import Completion, Group, State

CHAT_TEMPLATE = (
    "<start>{% for message in messages %}{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<reply>{% endif %}"
)
WORDS = r"[a-z]+ \d+|[a-z']+|\d+|\n|[^\sa-z0-9]"  # "shelf 1" is one word: one thing
FILLERS = r"[.,]|\b(a|an|the|and|you|is|are|it|middle of|looking quickly around)\b"  # left out


NORMAL = [normalizers.Lowercase(), replace(FILLERS)]
SIZES = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3}  # 0.33M parameters
PLAIN = PromptConfig(form="plain", show_admissible=False, history=10, max_tokens=512)


Visit = tuple[State, tuple[str, ...], str]  # a state, its admissible actions, the random one taken


def random_play(env: Env, rng: random.Random) -> Iterator[list[Visit]]:
    """Endless random episodes on train tasks."""
    seed = 0
    while True:
        seed += 1
        for task_id in env.tasks("train", 60, 10_000 + seed):
            task, turn = env.reset(task_id)
            history: list[tuple[str, str]] = []
            visits: list[Visit] = []
            while not turn.done:
                actions = env.admissible() or ()
                taken = random_action(actions, rng)
                state = State(task_id, task, tuple(history), turn.observation)
                visits.append((state, actions, taken))
                history.append((turn.observation, taken))
                turn = env.step(taken)
            yield visits


_MOVE = re.compile(r"move ([a-z]+) \d+ to ([a-z]+) \d+")
_TREATED = {"clean": "clean", "heat": "hot", "cool": "cool"}


def in_hindsight(visits: list[Visit], rng: random.Random) -> list[Visit]:
    """Random play, told as if what it happened to do had been the task (hindsight relabelling).

    So the base learns that a task sentence has to do with what is done. The play stays random: most
    of it leads nowhere near the new task. Episodes that moved nothing keep their own task.
    """
    moves = [(i, m) for i, (_, _, taken) in enumerate(visits) if (m := _MOVE.match(taken))]
    if not moves:
        return visits
    end, move = rng.choice(moves)
    how = ""
    for _, _, taken in visits[:end]:
        verb, _, rest = taken.partition(" ")
        if verb in _TREATED and rest.startswith(move[1] + " "):
            how = _TREATED[verb] + " "
    task = f"put a {how}{move[1]} in {move[2]}."
    return [
        (dataclasses.replace(state, task=task), actions, taken)
        for state, actions, taken in visits[: end + 1]
    ]


def example(prompter: Prompter, visit: Visit, rng: random.Random) -> Group:
    """One training text: everything after the first token counts, prompt and reply alike."""
    state, actions, taken = visit
    if len(actions) >= 2 and rng.random() < 0.4:
        shown = rng.sample(list(actions), 2)
        if rng.random() < 0.5:  # of the kinds that a policy would propose
            shown = [random_action(actions, rng) for _ in range(2)]
        prompt, reply = prompter.critic(state, shown).tokens, rng.choice(shown)
    else:
        prompt, reply = prompter.action(state).tokens, taken
    tokens = (*prompt, *prompter.reply_tokens(reply))
    return Group(tokens[:1], (Completion(tokens[1:]),))


def texts(prompter: Prompter, env: Env, rng: random.Random) -> Iterator[Group]:
    """Endless training texts: a few states of each random episode, since neighbours look alike."""
    for visits in random_play(env, rng):
        if rng.random() < 0.7:
            visits = in_hindsight(visits, rng)
        for visit in rng.sample(visits, min(4, len(visits))):
            yield example(prompter, visit, rng)


def pretrain(out: Path, seed: int, steps: int, batch: int, console: Console) -> None:
    """Make the tiny base model in folder `out` (Hugging Face format). Same seed, same bytes."""
    env = make_env("household")
    play = random_play(env, random.Random(seed))
    seen = [visit for _ in range(700) for visit in next(play)]
    lines = [f"{s.task}\n{s.observation}\n> {' '.join(a)}\n1: 2: … which ?" for s, a, _ in seen]
    tokenizer = build_tokenizer(lines, WORDS, NORMAL, CHAT_TEMPLATE)
    stream = texts(Prompter(tokenizer, PLAIN), env, random.Random(seed + 1))
    how = (seed, steps, batch)
    tiny_llama.pretrain(out, tokenizer, stream, how, console, **SIZES)
    env.close()


@click.command()
@options(steps=1400, batch=24, unit="Texts")
@friendly
def main(out, seed, steps, batch):  # type: ignore[no-untyped-def]
    """Make the tiny base model from random play (this is how the shipped one was made)."""
    pretrain(out, seed, steps, batch, Console())


if __name__ == "__main__":
    main()
