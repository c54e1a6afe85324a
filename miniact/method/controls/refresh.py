"""Alternatives of the current policy instead of π_θ0's, which grow too easy: ours, off by default.

Every `stage.act.refresh_pairs` steps they are sampled anew at states that have pairs.
"""

from __future__ import annotations

import functools
from pathlib import Path

from miniact.data.trajectories import shuffled
from miniact.method.pairs import (
    by_state,
    gather,
    pair_row,
    pairs_at,
    propose,
    questions,
    read_pairs,
)
from miniact.method.stage import Stage
from miniact.runs.files import write_json, write_jsonl
from miniact.types import Question


def questions_at(stage: Stage, step: int) -> list[Question]:
    """What act asks at `step`: the run's own questions, until the first refresh."""
    every = stage.config.refresh_pairs
    latest = step - step % every if every else 0
    refreshed = pairs_of(stage, latest) if latest else []
    return questions(refreshed, stage.alternatives.choices) or stage.questions


def pairs_of(stage: Stage, step: int) -> list[Question]:
    """Pairs with alternatives of the policy as it is at `step`; none if all were filtered out.

    They are written to the stage's folder: a run that is resumed later no longer has that policy.
    """
    config, seed = stage.config, stage.seed + step
    file = stage.log.folder / f"pairs-{step:07d}.jsonl"
    if not file.is_file():
        states = list(by_state(stage.pairs))
        enough = min(len(states), config.refresh_pairs * config.batch)  # until the next refresh
        batch = [states[i] for i in shuffled(len(states), 0, enough, seed)]
        proposed = propose(stage.policy, stage.prompter, batch, stage.alternatives, seed)
        provenance = {"stage": stage.log.key, "step": step, "seed": seed}
        pairs, counts = gather(pairs_at(batch, proposed, stage.alternatives, provenance))
        write_json(file.with_suffix(".counts.json"), counts)
        write_jsonl(file, map(pair_row, pairs))
    return _written(file)


@functools.lru_cache(maxsize=1)  # it is asked for at every step until the next refresh
def _written(file: Path) -> list[Question]:
    return read_pairs(file) if file.stat().st_size else []
