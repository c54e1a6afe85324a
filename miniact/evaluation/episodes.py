"""Episodes: policy × environment, many at once; a tick samples one action for each live one.

    tick:   every environment shows its state  →  the policy answers them all  →  every one acts

Environments that wait for another process are called all at once, so that a tick takes as long as
the slowest of them, not as all together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from miniact.backends.protocol import Policy
from miniact.envs import Env, Turn
from miniact.method.prompts import Prompter
from miniact.method.rewards import canonical
from miniact.types import Sample, Shown, State

PIECE = 64  # prompts that are answered between two looks at the progress


@dataclass(slots=True)
class Move:
    """One action of an episode: what the agent saw, replied and did, and whether it applied."""

    observation: str
    reply: str
    action: str  # "" when the reply could not be parsed
    applied: bool
    cut_off: bool = False  # the reply reached the token limit


@dataclass(slots=True)
class Episode:
    """A finished episode.

    `stop`: solved | ended | unparseable (three such replies running) | lost (the simulator died or
    hung). All but the first are failures.
    """

    task_id: str
    task: str = ""
    moves: list[Move] = field(default_factory=list)
    success: bool = False
    score: float = 0.0
    stop: str = "ended"
    last: str = ""  # the final observation; of a lost episode: why
    dropped_turns: int = 0  # history turns that did not fit some prompt

    def repeats_a_failure(self) -> bool:
        """Whether the same action failed three times running: the paper's stuck agent."""
        return max(failures_running(self.moves), default=0) >= 3


def failures_running(moves: Iterable[Move]) -> Iterator[int]:
    """For each move: how often running its action has failed, this time included."""
    times, last = 0, None
    for move in moves:
        action = canonical(move.action)
        times = 0 if move.applied else (times + 1 if action == last else 1)
        last = action
        yield times


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a critic said to one question: all of its reply, and the index that it chose."""

    shown: Shown
    reply: str
    choice: int | None
    cut_off: bool = False  # the reply reached the token limit

    @property
    def chosen(self) -> str | None:
        """The action that it chose; None: no choice could be read."""
        return None if self.choice is None else self.shown.actions[self.choice]


@dataclass(slots=True)
class Tally:
    """What has been played so far, where the time went, and whom to tell of each episode."""

    on_done: Callable[[Episode], None] = lambda episode: None
    on_answers: Callable[[int], None] = lambda answers: None  # so many more, outside episodes
    episodes: int = 0
    solved: int = 0
    lost: int = 0
    verdicts: list[Verdict] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"environment": 0.0, "model": 0.0})

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[part] += time.monotonic() - start

    def add(self, episode: Episode) -> None:
        self.episodes += 1
        self.solved += episode.success
        self.lost += episode.stop == "lost"
        self.on_done(episode)

    def __str__(self) -> str:
        speed = 60 * self.episodes / max(sum(self.seconds.values()), 1e-9)
        lost = f", {self.lost} lost (failed: the simulator hung or died)" if self.lost else ""
        parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in self.seconds.items())
        return f"{self.episodes} episodes{lost}, {speed:.0f} a minute ({parts})"


@dataclass(slots=True)
class _Live:
    """An environment and the episode that it plays; `look` starts it."""

    env: Env
    episode: Episode
    turn: Turn | None = None
    unread: int = 0

    def look(self, show_admissible: bool) -> State:
        if self.turn is None:
            self.episode.task, self.turn = self.env.reset(self.episode.task_id)
        moves = self.episode.moves
        return State(
            f"{self.episode.task_id}#{len(moves)}",
            self.episode.task,
            tuple((m.observation, m.action or m.reply) for m in moves),
            self.turn.observation,
            self.env.admissible() if show_admissible else None,
        )

    def act(self, answer: Sample, action: str | None) -> None:
        """Apply a reply. One that holds no action costs a turn: data, not a crash."""
        assert self.turn is not None
        if self.turn.done:  # it could not even start
            return
        seen = self.turn.observation
        self.turn = self.env.step((action or "").strip())
        self.episode.moves.append(
            Move(seen, answer.text, action or "", self.turn.applied, answer.stop == "length")
        )
        self.unread = 0 if action is not None else self.unread + 1

    def finished(self) -> bool:
        turn, episode = self.turn, self.episode
        assert turn is not None
        if turn.done:
            episode.stop = "lost" if turn.lost else "solved" if turn.success else "ended"
        elif self.unread >= 3:
            episode.stop = "unparseable"
        else:
            return False
        episode.success, episode.score, episode.last = turn.success, turn.score, turn.observation
        return True


@dataclass(frozen=True)
class PlayOptions:
    temperature: float = 0.0
    max_tokens: int = 24
    thinking: bool = False
    seed: int = 0


def play_episodes(
    policy: Policy,
    prompter: Prompter,
    envs: Sequence[Env],
    task_ids: Sequence[str],
    options: PlayOptions,
    tally: Tally | None = None,
) -> list[Episode]:
    """Play every task once; an environment takes the next task as soon as its episode ends.

    Returns the episodes in the order of task_ids. Same arguments, same episodes.
    """
    tally = tally or Tally()
    waiting = iter(task_ids)
    live = [_Live(env, Episode(task_id)) for env, task_id in zip(envs, waiting)]
    done: dict[str, Episode] = {}
    tick = 0
    with _calling(envs) as each:
        while live:
            with tally.timing("environment"):
                states = list(
                    each(lambda player: player.look(prompter.config.show_admissible), live)
                )
            with tally.timing("model"):
                asked = [prompter.action(state, options.thinking) for state in states]
                tokens, seed = [prompt.tokens for prompt in asked], options.seed + tick
                answers = ask(policy, tokens, options.max_tokens, options.temperature, seed)
                actions = [prompter.action_in(answer) for answer in answers]
            with tally.timing("environment"):
                list(each(_Live.act, live, answers, actions))
            following = []
            for player, prompt in zip(live, asked):
                episode = player.episode
                episode.dropped_turns += prompt.dropped
                if not player.finished():
                    following.append(player)
                    continue
                done[episode.task_id] = episode
                tally.add(episode)
                if (task_id := next(waiting, None)) is not None:
                    following.append(_Live(player.env, Episode(task_id)))
            live = following
            tick += 1
    return [done[task_id] for task_id in task_ids]


def ask(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    temperature: float,
    seed: int,
    on_answers: Callable[[int], None] | None = None,
) -> list[Sample]:
    """One answer to each prompt; in pieces, if somebody is to hear of each."""
    size = PIECE if on_answers else max(1, len(prompts))
    answers: list[Sample] = []
    for at in range(0, len(prompts), size):
        piece = prompts[at : at + size]
        sampled = policy.sample(piece, 1, max_tokens, temperature, seed + at)
        answers += [sample for (sample,) in sampled]
        if on_answers:
            on_answers(len(piece))
    return answers


@contextmanager
def _calling(envs: Sequence[Env]) -> Iterator[Callable[..., Any]]:
    """`map`; for environments that wait, one that lets them wait all at once."""
    if not any(getattr(env, "waits", False) for env in envs):
        yield map
        return
    pool = ThreadPoolExecutor(len(envs))
    try:
        yield pool.map
    finally:  # without waiting: after an error or Ctrl-C, closing a hung environment ends its call
        pool.shutdown(wait=False, cancel_futures=True)
