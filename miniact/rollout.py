"""Episodes: policy × environment, many at once; a tick samples one action for each live one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from miniact.envs import Env, Turn
from miniact.policy import Policy
from miniact.prompts import Prompter
from miniact.rewards import canonical
from miniact.types import State


@dataclass(slots=True)
class Move:
    """One action of an episode: what the agent saw, replied and did, and whether it applied."""

    observation: str
    reply: str
    action: str  # "" when the reply could not be parsed
    applied: bool


@dataclass(slots=True)
class Episode:
    """A finished episode. `stop`: solved | ended | unparseable (three such replies running)."""

    task_id: str
    task: str
    moves: list[Move] = field(default_factory=list)
    success: bool = False
    score: float = 0.0
    stop: str = "ended"
    dropped_turns: int = 0  # history turns that did not fit some prompt

    def repeats_a_failure(self, times: int = 3) -> bool:
        """Whether the same action failed `times` times running: the paper's stuck agent."""
        run, last = 0, None
        for move in self.moves:
            action = canonical(move.action)
            run = 0 if move.applied else (run + 1 if action == last else 1)
            last = action
            if run >= times:
                return True
        return False


@dataclass(slots=True)
class _Live:
    env: Env
    episode: Episode
    turn: Turn
    unread: int = 0

    def state(self, show_admissible: bool) -> State:
        moves = self.episode.moves
        return State(
            f"{self.episode.task_id}#{len(moves)}",
            self.episode.task,
            tuple((m.observation, m.action or m.reply) for m in moves),
            self.turn.observation,
            self.env.admissible() if show_admissible else None,
        )

    def act(self, reply: str, action: str | None) -> None:
        """Apply a reply. One that holds no action costs a turn: data, not a crash."""
        seen = self.turn.observation
        self.turn = self.env.step((action or "").strip())
        self.episode.moves.append(Move(seen, reply, action or "", self.turn.applied))
        self.unread = 0 if action is not None else self.unread + 1

    def finished(self) -> bool:
        if self.turn.done:
            self.episode.stop = "solved" if self.turn.success else "ended"
        elif self.unread >= 3:
            self.episode.stop = "unparseable"
        else:
            return False
        self.episode.success, self.episode.score = self.turn.success, self.turn.score
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
    on_done: Callable[[Episode], None] = lambda episode: None,
) -> list[Episode]:
    """Play every task once; an environment takes the next task as soon as its episode ends.

    Returns the episodes in the order of task_ids. Same arguments, same episodes.
    """
    waiting = iter(task_ids)
    live = [one for env in envs if (one := _start(env, waiting)) is not None]
    done: dict[str, Episode] = {}
    tick = 0
    while live:
        asked = [
            prompter.action(one.state(prompter.config.show_admissible), options.thinking)
            for one in live
        ]
        replies = policy.sample(
            [p.tokens for p in asked],
            1,
            options.max_tokens,
            options.temperature,
            options.seed + tick,
        )
        following = []
        for one, prompt, (sample,) in zip(live, asked, replies):
            one.episode.dropped_turns += prompt.dropped
            one.act(sample.text, prompter.parse_action(sample.text))
            if not one.finished():
                following.append(one)
                continue
            done[one.episode.task_id] = one.episode
            on_done(one.episode)
            if (fresh := _start(one.env, waiting)) is not None:
                following.append(fresh)
        live = following
        tick += 1
    return [done[task_id] for task_id in task_ids]


def _start(env: Env, waiting: Iterator[str]) -> _Live | None:
    for task_id in waiting:
        task, turn = env.reset(task_id)
        return _Live(env, Episode(task_id, task), turn)
    return None
