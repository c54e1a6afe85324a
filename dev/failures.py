"""States in which an action has just failed, played in the world; no expert's log holds one.

    python dev/failures.py RUN --out FILE

writes the pairs of a run and, for every state of a train pair, a question asked after an action
failed there, with that action as the alternative. It is a file for `pairs.file`. `dev/stuck.py`
measures in such states.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from miniact.backends.protocol import Policy
from miniact.cli.common import friendly
from miniact.config import Config, load_config
from miniact.data.trajectories import TrajectoryFile
from miniact.envs import Env, make_env
from miniact.evaluation.episodes import Episode
from miniact.method.pairs import pair_row, propose, read_pairs
from miniact.method.prompts import Prompter
from miniact.runs.files import write_jsonl
from miniact.types import Question, State

TRIES = 4  # actions that the base proposes in a state, until one does nothing


@dataclass(frozen=True)
class Trial:
    """A state, an action that does nothing there, and what the world shows after it."""

    before: State
    action: str
    expert: str  # what the expert would do, before and after: a failure changes nothing
    after: State  # the action failed
    beside: State  # another action failed in its place


def play_to(env: Env, state: State) -> None:
    """Bring the world to a state, move by move."""
    env.reset(task_of(state))
    for _, action in state.history:
        env.step(action.strip())


def task_of(state: State) -> str:
    return state.id.rpartition("#")[0]


def after_failure(env: Env, state: State, action: str) -> State | None:
    """The state after `action`, played in the world; None if it applies there."""
    play_to(env, state)
    turn = env.step(action.strip())
    past = (*state.history, (state.observation, action))
    return None if turn.applied else replace(state, history=past, observation=turn.observation)


def fails_here(env: Env, state: State, words: set[str]) -> str | None:
    """One of `words` that does nothing in a state, drawn by the state's name."""
    play_to(env, state)
    failing = sorted(words - set(env.admissible() or ()))
    draw = np.random.default_rng([*state.id.encode()])
    return failing[int(draw.integers(len(failing)))] if failing else None


def build_trial(env: Env, state: State, action: str, words: set[str]) -> Trial | None:
    """None if the action applies. The other one is of `words`."""
    after = after_failure(env, state, action)
    other = fails_here(env, state, words - {action.strip()})
    play_to(env, state)
    expert = env.expert_action()
    beside = after_failure(env, state, other) if other else None
    return Trial(state, action, expert, after, beside) if after and beside and expert else None


def actions_in(env: Env, task_id: str, actions: Iterable[str]) -> set[str]:
    """Every action that applies somewhere on the way."""
    env.reset(task_id)
    words = set(env.admissible() or ())
    for action in actions:
        env.step(action.strip())
        words |= set(env.admissible() or ())
    return words


def proposed_trials(
    env: Env, policy: Policy, prompter: Prompter, config: Config, file: TrajectoryFile, most: int
) -> list[Trial]:
    """In held-out states of the expert's, drawn by the run's seed; the policy must be the base."""
    seed = config.seed_for("eval")
    played = [file.read(i) for i, split in enumerate(file.splits) if split != "train"]
    words = {t.id: actions_in(env, t.id, (step.action for step in t.steps)) for t in played}
    places = [(trajectory, i) for trajectory in played for i in range(len(trajectory.steps))]
    order = np.random.default_rng(seed).permutation(len(places))[:most]
    batch = [(places[i][0].state(places[i][1]), "") for i in order]
    tries = propose(policy, prompter, batch, replace(config.pairs, k=TRIES), seed)
    trials = []
    for (state, _), actions in zip(batch, tries):
        tasks_words = words[task_of(state)]
        built = (build_trial(env, state, a, tasks_words) for a in actions if a)
        trials += [trial for trial in built if trial][:1]
    return trials


def own_trials(env: Env, episodes: Sequence[Episode]) -> Iterator[Trial]:
    """The first failure of each episode."""
    for episode in episodes:
        moves = episode.moves
        first = next((i for i, m in enumerate(moves) if m.action and not m.applied), None)
        if first is not None:
            past = tuple((m.observation, m.action or m.reply) for m in moves[:first])
            id_, move = f"{episode.task_id}#{first}", moves[first]
            state = State(id_, episode.task, past, move.observation)
            words = actions_in(env, episode.task_id, (m.action for m in moves))
            if trial := build_trial(env, state, move.action, words):
                yield trial


def with_repeats(env: Env, pairs: Sequence[Question], file: TrajectoryFile) -> Iterator[Question]:
    """The pairs; and behind each of the train split a question asked after a failure.

    There the alternative has just failed, or if it applies, another action, which then is the
    alternative. A state that was stored without its oldest turns cannot be played again.
    """
    played = map(file.read, range(len(file)))
    steps = {t.id: [step.action for step in t.steps] for t in played}
    for pair in pairs:
        yield pair
        if pair.split == "train" and not pair.state.earlier:
            state, failed = pair.state, pair.alternative
            after = after_failure(env, state, failed)
            if after is None:
                words = actions_in(env, task_of(state), steps[task_of(state)])
                failed = fails_here(env, state, words) or ""
                after = after_failure(env, state, failed) if failed else None
            if after:
                yield replace(pair, state=after, alternatives=(failed,))


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A file of pairs.")
@friendly
def main(run, out):  # type: ignore[no-untyped-def]
    """Write the pairs of a finished RUN and as many again, asked after a failure."""
    config = load_config(run / "config.yaml", saved=True)
    env = make_env(config.env.name, **config.env.options)
    file = TrajectoryFile(run / "trajectories.jsonl")
    write_jsonl(out, map(pair_row, with_repeats(env, read_pairs(run / "pairs.jsonl"), file)))


if __name__ == "__main__":
    main()
