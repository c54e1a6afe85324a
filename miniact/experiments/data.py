"""What a run learns from: trajectories, pairs, reflections. Made once, then read back.

A file that exists is done: it appears whole or not at all, so after a kill it is made anew.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from miniact import UserError
from miniact.backends.protocol import Policy, load_policy
from miniact.config import Config
from miniact.data.trajectories import TrajectoryFile, collect, hold_out, import_rows, to_row
from miniact.envs import Env, make_env
from miniact.envs.workers import WorkerEnv
from miniact.experiments.lengths import leave_out_too_long
from miniact.method import run_of
from miniact.method.controls.reflections import (
    experiences,
    make_reflections,
    read_reflections,
    reflection_row,
)
from miniact.method.pairs import choose_states, make_pairs, pair_row, questions, read_pairs
from miniact.method.prompts import Prompter
from miniact.method.stage import needs_of
from miniact.runs.files import jsonl_writer, write_json, write_jsonl
from miniact.runs.folder import RunFolder, explain_full_disk
from miniact.runs.progress import Bar
from miniact.types import Question, Reflection


class Workshop:
    """A run's tools: its folder, and model and worlds, which are made when first needed."""

    def __init__(
        self, config: Config, run: RunFolder, console: Console, verbose: bool = False
    ) -> None:
        self.config, self.run, self.console, self.verbose = config, run, console, verbose
        self._envs: list[Env] = []
        self.timings: dict[str, float] = dict(run.shared_seconds())

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *exc: object) -> None:
        for env in self._envs:
            env.close()

    def envs(self, n: int) -> list[Env]:
        config = self.config.env
        if config.name == "none":
            return []
        while len(self._envs) < n:
            if config.workers:
                self._envs.append(WorkerEnv(config.name, config.options))
            else:
                self._envs.append(make_env(config.name, **config.options))
        return self._envs[:n]

    @functools.cached_property
    def policy(self) -> Policy:
        return load_policy(self.config.model, self.config.seed_for("lora"))

    @functools.cached_property
    def prompter(self) -> Prompter:
        config, kept = self.config.prompt, self.run.path / "wording.txt"
        if config.wording and kept.is_file():
            config = replace(config, wording=str(kept))
        prompter = Prompter(self.policy.tokenizer, config)
        prompter.check_tags()
        return prompter

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `timings[name]`, in seconds; nothing if it fails."""
        start = time.monotonic()
        yield
        self.timings[name] = self.timings.get(name, 0) + time.monotonic() - start

    @contextmanager
    def making(self, path: Path, part: str) -> Iterator[Callable[[Iterable[dict]], None]]:
        """Yield what writes rows to `path`, and stops between two calls if it was asked to."""
        with self.timed(part), explain_full_disk(self.run.path), jsonl_writer(path) as write:

            def write_or_stop(rows: Iterable[dict]) -> None:
                self.run.stopper.check()
                write(rows)

            yield write_or_stop

    def say_counts(self, what: str, counts: Counter, remedy: str) -> None:
        """Print what was kept and dropped; UserError with the remedy if nothing was kept."""
        shown = ", ".join(f"{k} {v}" for k, v in counts.items())
        self.console.print(f"{what}: {shown}", highlight=False)
        if remedy and not counts["kept"]:
            raise UserError(f"{what.split()[0]}: all were filtered out ({shown}); {remedy}")

    def provenance(self, seed: int, temperature: float) -> dict[str, Any]:
        """What the initial policy is, for the rows that it writes."""
        adapter = self.config.model.start or None
        about = {"model": self.policy.name, "adapter": adapter}
        return {**about, "seed": seed, "temperature": temperature}


@dataclass(frozen=True)
class Data:
    """What a run learns from and is measured on."""

    file: TrajectoryFile
    pairs: list[Question]  # of all splits
    reflections: Sequence[Reflection]

    def train_pairs(self) -> list[Question]:
        return [p for p in self.pairs if p.split == "train"]

    def questions(self, choices: int) -> list[Question]:
        """Held-out pairs, as they are put to the critic."""
        return questions((p for p in self.pairs if p.split != "train"), choices)


def heldout_splits(file: TrajectoryFile) -> list[str]:
    return sorted(set(file.splits) - {"train"})


def make_data(work: Workshop) -> Data:
    """Everything that is made before any training, and only what this recipe needs."""
    file = trajectories(work)
    leave_out_too_long(work.prompter, work.config, file)
    needed = {what for name in work.config.recipe for what in needs_of(run_of(name))}
    data = Data(file, [], ())
    if "pairs" in needed or work.config.eval.pairs:
        data = replace(data, pairs=pairs(work, file))
    if "reflections" in needed:
        data = replace(data, reflections=reflections(work, file, data.train_pairs()))
    return data


def trajectories(work: Workshop) -> TrajectoryFile:
    """Of the environment's expert, or of the file that the config names."""
    path, config = work.run.path / "trajectories.jsonl", work.config.env
    if not path.is_file():
        with work.making(path, "collect") as write:
            if config.trajectories:
                rows = import_rows(config.trajectories, config.columns, config.skip_bad_rows)
                if config.compare != "auto":
                    rows = (replace(t, compare=config.compare) for t in rows)
                write(map(to_row, rows))
            else:
                _play(work, write)
    file = TrajectoryFile(path, config.skip_bad_rows)
    if config.trajectories and config.heldout_share and set(file.splits) == {"train"}:
        parted = hold_out(map(file.read, range(len(file))), config.heldout_share)
        write_jsonl(path, map(to_row, parted))
        file = TrajectoryFile(path)
    if not len(file.states("train")):
        raise UserError(f"{path}: no trajectory of split train; see its split fields")
    if (rule := file.read(0).compare) != "words":
        work.console.print(f"note: actions are compared by the rule {rule!r} (env.compare)")
    if file.failed:
        work.console.print(f"note: {file.failed} failed trajectories are not imitated")
    return file


def _play(work: Workshop, write: Callable[[Iterable[dict]], None]) -> None:
    """Let the environment's expert play the tasks of every split."""
    config, seed = work.config.env, work.config.seed_for("collect")
    splits = {"train": config.train_tasks}
    splits |= dict.fromkeys(work.config.eval.splits, config.heldout_tasks)
    (env,) = work.envs(1)
    with Bar(work.console, "collect") as bar:
        bar.start(sum(splits.values()))
        for split, n in splits.items():
            for trajectory in collect(env, split, n, seed, f"{config.name} expert"):
                bar.advance()
                write([to_row(trajectory)])


def pairs(work: Workshop, file: TrajectoryFile) -> list[Question]:
    """Train and held-out pairs by the initial policy, made before anything is trained."""
    path, config = work.run.path / "pairs.jsonl", work.config.pairs
    if not path.is_file():
        with work.making(path, "pairs") as write:
            if config.file:
                theirs = Path(config.file)
                write(map(pair_row, read_pairs(theirs, work.config.env.skip_bad_rows)))
            else:
                _warn_of_adapter(work)
                counts = {
                    split: _pairs_of_split(work, file, split, write)
                    for split in ("train", *heldout_splits(file))
                }
                write_json(path.with_suffix(".counts.json"), counts)
    return read_pairs(path)


def _warn_of_adapter(work: Workshop) -> None:
    """Alternatives of a trained adapter are other questions than those that a run asks."""
    if (start := work.config.model.start) and work.config.pairs.source == "policy":
        work.console.print(
            f"warning: {start} proposes the alternatives of these pairs, not the initial policy: "
            "judgement on them cannot be compared with a run's; take its pairs by --pairs",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def _pairs_of_split(
    work: Workshop, file: TrajectoryFile, split: str, write: Callable[[Iterable[dict]], None]
) -> Counter:
    """Write the pairs of one split; returns what became of all proposals."""
    config, seed = work.config.pairs, work.config.seed_for("pairs", split)
    if config.source == "admissible":
        provenance = {"source": "admissible", "seed": seed}
    else:
        provenance = work.provenance(seed, config.temperature)
    states, counts = file.states(split), Counter[str]()
    by_state = make_pairs(work.policy, work.prompter, states, config, seed, provenance)
    with Bar(work.console, f"pairs, {split}") as bar:
        bar.start(len(choose_states(states, config.states_per_trajectory, seed)))
        for kept, filtered in by_state:
            bar.advance()
            counts.update(filtered)
            history = work.config.prompt.history
            write(pair_row(replace(pair, split=split), history) for pair in kept)
    remedy = "raise pairs.k or pairs.temperature, or check prompt.form against what the model says"
    work.say_counts(f"pairs ({split})", counts, remedy if split == "train" else "")
    return counts


def reflections(
    work: Workshop, file: TrajectoryFile, train_pairs: list[Question]
) -> Sequence[Reflection]:
    """Reflections on the train pairs by the initial policy."""
    path, config = work.run.path / "reflections.jsonl", work.config.stage.reflect
    if not path.is_file():
        seed, counts = work.config.seed_for("reflections", "train"), Counter(kept=0)
        (env,) = work.envs(1)
        with work.making(path, "reflections") as write:
            for reflection, verdict in make_reflections(
                work.policy,
                work.prompter,
                experiences(env, file, train_pairs),
                config,
                seed,
                work.provenance(seed, config.temperature),
            ):
                counts[verdict] += 1
                if reflection:
                    write([reflection_row(reflection, work.config.prompt.history)])
            remedy = "raise stage.reflect.max_tokens, or use a model that can reason"
            work.say_counts("reflections", counts, remedy)
            write_json(path.with_suffix(".counts.json"), counts)
    return read_reflections(path)
