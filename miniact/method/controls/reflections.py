"""Early Experience (arXiv 2510.08558): reflections on what each action really leads to.

At every train state that has pairs, replay the expert's actions from the start of the episode,
then execute the expert's action and each alternative, and let the *initial policy* write why the
expert's is better, with the observed outcomes before it. What is left after the filters is imitated
by `method/controls/reflect.py`. Every state is counted once:

    not_replayed    the environment did not show the stored observations again, or was lost
    unparseable     the reply ends in no single action
    too_long        the reply was cut off at the token limit
    disagrees       it ends in another action than the expert's
    empty           it gives no reason
    labelled        it speaks of the expert, or of actions by number: words of the prompt's author
    duplicate       another state has the same reflection

Ours: one reflection a state, on all its alternatives; outcomes are cut at OUTCOME_CHARACTERS.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from miniact import UserError
from miniact.backends.protocol import Policy
from miniact.config.sections import ReflectConfig
from miniact.data.trajectories import TrajectoryFile
from miniact.envs import Env
from miniact.method.pairs import SAMPLED_AT_ONCE, by_state, state_from, state_row
from miniact.method.prompts import Prompter
from miniact.method.rewards import canonical, same_action
from miniact.runs.files import field, read_objects
from miniact.types import Question, Reflection, Sample, State, Trajectory

OUTCOME_CHARACTERS = 600  # of an outcome, at most: some worlds answer with pages
_LABEL = re.compile(
    r"\bexperts?\b|\bdemonstrat"
    r"|\b(?:action|alternative|candidate|option|choice)s? (?:no\.? ?|number |#)?"
    r"(?:\d+|(?-i:[A-D]\b))"
    r"|\b(?:alternative|candidate|listed|given|provided) (?:action|option)s?\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Experience:
    """A state, and (action, what it led to) for the expert's action and for each alternative."""

    state: State
    taken: tuple[str, str]
    others: tuple[tuple[str, str], ...]


# ---- acting --------------------------------------------------------------------------------


def replay(env: Env, trajectory: Trajectory, steps: int) -> bool:
    """Bring `env` to the state before step `steps`; whether it showed what the trajectory holds."""
    try:
        task, turn = env.reset(trajectory.id)
    except UserError:  # an imported trajectory, whose id is no task of this environment
        return False
    if task != trajectory.task:
        return False
    for stored in trajectory.steps[:steps]:
        if turn.observation != stored.observation or turn.done:
            return False
        turn = env.step(stored.action)
    return turn.observation == trajectory.steps[steps].observation and not turn.done


def experiences(
    env: Env, file: TrajectoryFile, pairs: Iterable[Question]
) -> Iterator[Experience | None]:
    """Execute every action of every state with pairs; None where a state cannot be reached."""
    by_id = {file.read(i).id: i for i, split in enumerate(file.splits) if split == "train"}
    for (state, expert), alternatives in by_state(pairs).items():
        name, _, step = state.id.rpartition("#")
        outcomes = []
        if name in by_id and step.isdigit():
            trajectory, actions = file.read(by_id[name]), (expert, *alternatives)
            outcomes = _outcomes(env, trajectory, int(step), state, actions)
        yield Experience(state, outcomes[0], tuple(outcomes[1:])) if outcomes else None


def _outcomes(
    env: Env, trajectory: Trajectory, step: int, state: State, actions: Iterable[str]
) -> list[tuple[str, str]]:
    """(action, what it leads to in `state`) of each; [] where `state` cannot be reached."""
    if step >= len(trajectory.steps) or trajectory.steps[step].observation != state.observation:
        return []
    outcomes = []
    for action in actions:
        if not replay(env, trajectory, step) or (turn := env.step(action)).lost:
            return []
        shown = turn.observation[:OUTCOME_CHARACTERS]
        cut = "…" if len(turn.observation) > OUTCOME_CHARACTERS else ""
        solved = " The task is solved." if turn.success else ""
        outcomes.append((action, f"{shown}{cut}{solved}"))
    return outcomes


# ---- reflecting ----------------------------------------------------------------------------


def make_reflections(
    policy: Policy,
    prompter: Prompter,
    lived: Iterable[Experience | None],
    config: ReflectConfig,
    seed: int,
    provenance: dict[str, Any] | None = None,
) -> Iterator[tuple[Reflection | None, str]]:
    """Let the policy reflect on each experience; yields (reflection, "kept") or (None, why not).

    `seed` fixes the samples; `provenance` (of what the policy was) goes into every reflection.
    """
    waiting, at = iter(lived), 0
    seen: set[str] = set()
    while states := list(itertools.islice(waiting, SAMPLED_AT_ONCE)):
        batch = [experience for experience in states if experience]
        yield from [(None, "not_replayed")] * (len(states) - len(batch))
        prompts = [prompter.reflection(e.state, e.taken, e.others).tokens for e in batch]
        replies = policy.sample(prompts, 1, config.max_tokens, config.temperature, seed + at)
        for experience, (sample,) in zip(batch, replies):
            expert = experience.taken[0]
            text, verdict = judge_reflection(prompter, sample, expert, experience.state.compare)
            if verdict == "kept" and canonical(text) in seen:
                verdict = "duplicate"
            if verdict != "kept":
                yield None, verdict
                continue
            seen.add(canonical(text))
            outcomes = (experience.taken, *experience.others)
            yield Reflection(experience.state, expert, text, outcomes, provenance or {}), verdict
        at += len(batch)


def judge_reflection(
    prompter: Prompter, sample: Sample, expert: str, rule: str = "words"
) -> tuple[str, str]:
    """(reflection, "kept") or ("", the reason to drop it)."""
    parsed = prompter.parse_reflection(sample.text)
    if sample.stop == "length":
        return "", "too_long"
    if parsed is None:
        return "", "unparseable"
    text, action = parsed
    if not same_action(action, expert, rule):
        return "", "disagrees"
    if not any(map(str.isalnum, text)):
        return "", "empty"
    return ("", "labelled") if _LABEL.search(text) else (text, "kept")


# ---- files ---------------------------------------------------------------------------------


def reflection_row(reflection: Reflection, history: int) -> dict[str, Any]:
    """One line of reflections.jsonl. The state keeps its last `history` turns."""
    return {**asdict(reflection), "state": state_row(reflection.state, history)}


def reflection_from(row: dict[str, Any]) -> Reflection:
    """The inverse of `reflection_row`. ValueError naming the field for what is no reflection."""
    outcomes = tuple(map(tuple, field(row, "outcomes", "[[action, outcome], …]")))
    provenance = field(row, "provenance", "an object", None) or {}
    expert, text = field(row, "expert", "text"), field(row, "text", "text")
    return Reflection(state_from(row), expert, text, outcomes, provenance)


def read_reflections(path: Path) -> Sequence[Reflection]:
    """Read reflections.jsonl. Raises UserError naming the line and field of a damaged row."""
    return read_objects(path, reflection_from)
