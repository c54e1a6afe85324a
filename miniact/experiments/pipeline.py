"""`miniact run`: from a config to a results table, one plain file after the other.

    trajectories.jsonl → pairs.jsonl (→ reflections.jsonl) → base evaluation
                       → stage 1 → evaluation → stage 2 → evaluation → …

A file or folder that exists is a step that is done, so going on after a kill is running this again.
"""

from __future__ import annotations

import functools
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from miniact import UserError
from miniact.backends.protocol import Policy, load_policy, resolve_backend
from miniact.config import Config, load_config
from miniact.config.load import changed_keys, to_dict
from miniact.data.trajectories import TrajectoryFile, collect, hold_out, import_rows, to_row
from miniact.envs import Env, make_env
from miniact.envs.workers import WorkerEnv
from miniact.evaluation.episodes import Episode, Tally
from miniact.evaluation.evaluate import HeldOut, evaluate
from miniact.experiments.results import print_report, write_report
from miniact.method import STAGES
from miniact.method.controls.reflections import experiences, make_reflections, read_reflections
from miniact.method.controls.reflections import to_row as reflection_row
from miniact.method.pairs import make_pairs, questions, read_pairs
from miniact.method.pairs import to_row as pair_row
from miniact.method.prompts import Prompter
from miniact.method.stage import Stage, needs_of
from miniact.runs.files import read_json, write_json, write_jsonl, write_text
from miniact.runs.folder import RunFolder, explain_full_disk, versions
from miniact.runs.log import StageLog
from miniact.runs.progress import Bar
from miniact.types import Question, Reflection, State, Trajectory

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "mlx", "mlx-lm", "numpy", "miniact")


def derive_seed(seed: int, *salt: int | str) -> int:
    """An independent seed for one purpose: the same for the same arguments, on every machine."""
    words = [b for part in salt for b in str(part).encode()]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1)[0] >> 1)


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


class Pipeline:
    """A run in progress. Everything expensive (model, environments) is made when first needed."""

    def __init__(self, config: Config, run: RunFolder, console: Console) -> None:
        self.config, self.run, self.console = config, run, console
        self._envs: list[Env] = []
        self.timings: dict[str, float] = dict(run.shared_seconds())

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exc: object) -> None:
        for env in self._envs:
            env.close()

    # ---- what is made when needed --------------------------------------------------------------

    def envs(self, n: int) -> list[Env]:
        if self.config.env.name == "none":
            return []
        while len(self._envs) < n:
            self._envs.append(self._make_env())
        return self._envs[:n]

    def _make_env(self) -> Env:
        config = self.config.env
        if config.workers:
            return WorkerEnv(config.name, config.options)
        return make_env(config.name, **config.options)

    @functools.cached_property
    def policy(self) -> Policy:
        return load_policy(self.config.model, derive_seed(self.config.seed, "lora"))

    @functools.cached_property
    def prompter(self) -> Prompter:
        return Prompter(self.policy.tokenizer, self.config.prompt)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `timings[name]`, in seconds; nothing if it fails."""
        start = time.monotonic()
        yield
        self.timings[name] = self.timings.get(name, 0) + time.monotonic() - start

    # ---- data ----------------------------------------------------------------------------------

    def heldout_splits(self, file: TrajectoryFile) -> list[str]:
        return sorted(set(file.splits) - {"train"})

    def trajectories(self) -> TrajectoryFile:
        path = self.run.path / "trajectories.jsonl"
        if not path.is_file():
            with (
                self.timed("collect"),
                explain_full_disk(self.run.path),
                Bar(self.console, "collect") as bar,
            ):
                write_jsonl(path, self._trajectory_rows(bar))
        file = TrajectoryFile(path, self.config.env.skip_bad_rows)
        share = self.config.env.heldout_share
        if self.config.env.trajectories and share and set(file.splits) == {"train"}:
            write_jsonl(path, map(to_row, hold_out(map(file.read, range(len(file))), share)))
            file = TrajectoryFile(path)
        if not len(file.states("train")):
            raise UserError(f"{path}: no trajectory of split train; see its split fields")
        if file.failed:
            self.console.print(f"note: {file.failed} failed trajectories are not imitated")
        return file

    def _trajectory_rows(self, bar: Bar) -> Iterator[dict]:
        config, seed = self.config.env, derive_seed(self.config.seed, "collect")
        if config.trajectories:
            rows = import_rows(config.trajectories, config.columns, config.skip_bad_rows)
            return map(to_row, rows)
        splits = {"train": config.train_tasks}
        splits |= dict.fromkeys(self.config.eval.splits, config.heldout_tasks)
        bar.start(sum(splits.values()))

        def played() -> Iterator[Trajectory]:
            (env,) = self.envs(1)
            for split, n in splits.items():
                for trajectory in collect(env, split, n, seed, f"{config.name} expert"):
                    bar.advance()
                    self.run.stopper.check()
                    yield trajectory

        return map(to_row, played())

    def pairs(self, file: TrajectoryFile) -> list[Question]:
        """Train and held-out pairs by the initial policy; made once, before anything is trained."""
        path = self.run.path / "pairs.jsonl"
        if not path.is_file():
            given = self.config.pairs.file
            with self.timed("pairs"), explain_full_disk(self.run.path):
                if given:
                    rows = read_pairs(Path(given), self.config.env.skip_bad_rows)
                    write_jsonl(path, (pair_row(p, 10**9) for p in rows))
                else:
                    counts: dict[str, Counter] = {}
                    write_jsonl(path, self._pair_rows(file, counts))
                    write_json(self.run.path / "pairs.counts.json", counts)
        return read_pairs(path)

    def _pair_rows(self, file: TrajectoryFile, counts: dict[str, Counter]) -> Iterator[dict]:
        for split in ("train", *self.heldout_splits(file)):
            states = file.states(split)
            provenance = self._provenance("pairs", split, self.config.pairs.temperature)
            if self.config.pairs.source == "admissible":
                provenance = {"source": "admissible", "seed": provenance["seed"]}
            counts[split] = Counter()
            seed = provenance["seed"]
            made = make_pairs(
                self.policy, self.prompter, states, self.config.pairs, seed, provenance
            )
            for kept, filtered in made:
                self.run.stopper.check()
                counts[split].update(filtered)
                for pair in kept:
                    yield pair_row(replace(pair, split=split), self.config.prompt.history)
            shown = ", ".join(f"{k} {v}" for k, v in counts[split].items())
            self.console.print(f"pairs ({split}): {shown}", highlight=False)
            if split == "train" and not counts[split]["kept"]:
                raise UserError(
                    f"pairs: all alternatives were filtered out ({shown}); raise pairs.k or "
                    "pairs.temperature, or check prompt.form against what the model replies"
                )

    def _provenance(self, purpose: str, split: str, temperature: float) -> dict[str, Any]:
        """What the initial policy was, for the rows that it writes."""
        return {
            "model": self.policy.name,
            "adapter": self.config.model.start or None,
            "seed": derive_seed(self.config.seed, purpose, split),
            "temperature": temperature,
        }

    def reflections(self, file: TrajectoryFile, pairs: list[Question]) -> Sequence[Reflection]:
        """Reflections on the train pairs by the initial policy; made once, like the pairs."""
        path = self.run.path / "reflections.jsonl"
        if not path.is_file():
            counts: Counter = Counter()
            with self.timed("reflections"), explain_full_disk(self.run.path):
                write_jsonl(path, self._reflection_rows(file, pairs, counts))
                write_json(self.run.path / "reflections.counts.json", counts)
        return read_reflections(path)

    def _reflection_rows(
        self, file: TrajectoryFile, pairs: list[Question], counts: Counter
    ) -> Iterator[dict]:
        config = self.config.stage.reflect
        (env,) = self.envs(1)
        made = make_reflections(
            self.policy,
            self.prompter,
            experiences(env, file, pairs, counts),
            config,
            self._provenance("reflections", "train", config.temperature),
            counts,
        )
        for reflection in made:
            self.run.stopper.check()
            yield reflection_row(reflection, self.config.prompt.history)
        shown = ", ".join(f"{k} {v}" for k, v in counts.items())
        self.console.print(f"reflections: {shown}", highlight=False)
        if not counts["kept"]:
            raise UserError(
                f"reflections: all were filtered out ({shown}); raise stage.reflect.max_tokens, or "
                "use a model that can reason"
            )

    # ---- measuring -----------------------------------------------------------------------------

    def evaluate(self, name: str, folder: Path, data: Data) -> dict[str, Any]:
        """Evaluate the policy as it is now, or read back the evaluation that is already there."""
        path = folder / "eval.json"
        if path.is_file():
            return read_json(path)
        config, seed = self.config.eval, derive_seed(self.config.seed, "eval")
        heldout = self.heldout_splits(data.file)
        asked = data.questions(self.config.pairs.choices)
        at_once = self.config.env.workers or self.config.env.parallel
        with self.timed("evaluate"), Bar(self.console, f"eval {name}") as bar:
            envs = self.envs(min(at_once, config.episodes or 1))
            bar.start(len(config.splits) * config.episodes if envs else 0)

            def on_done(episode: Episode) -> None:
                bar.advance({"success": tally.solved / tally.episodes})
                self.run.stopper.check()

            tally = Tally(on_done)
            results, episodes = evaluate(
                self.policy,
                self.prompter,
                config,
                seed,
                HeldOut(
                    envs,
                    _sample_states(data.file, heldout, config.states, seed),
                    _sample_questions(asked, config.pairs, seed),
                ),
                tally,
            )
        if tally.episodes:
            self.console.print(f"eval {name}: {tally}", highlight=False, soft_wrap=True)
            for part, seconds in tally.seconds.items():
                key = f"evaluate/{part}"
                self.timings[key] = self.timings.get(key, 0) + seconds
        folder.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / "episodes.jsonl", map(asdict, episodes))
        write_json(path, results)
        return results

    # ---- the recipe ----------------------------------------------------------------------------

    def data(self) -> Data:
        """Everything that is made before any training, and only what this recipe needs."""
        file = self.trajectories()
        needed = {what for name in self.config.recipe for what in needs_of(STAGES[name])}
        pairs = self.pairs(file) if "pairs" in needed or self.config.eval.pairs else []
        data = Data(file, pairs, ())
        if "reflections" in needed:
            data = replace(data, reflections=self.reflections(file, data.train_pairs()))
        return data

    def recipe(self) -> dict[str, Any]:
        """Run everything that is not done yet. Returns what results.json holds."""
        data = self.data()
        results = {"base": self.evaluate("base", self.run.path / "stages" / "0-base", data)}
        for number, name in enumerate(self.config.recipe, start=1):
            key, folder = f"{number}-{name}", self.run.stage(number, name)
            if (folder / "adapter").is_dir():
                self.policy.load_adapter(folder / "adapter")
            else:
                with self.timed(key), Bar(self.console, key) as bar:
                    self._train(number, name, data, bar)
            results[key] = self.evaluate(key, folder, data)
        return {"results": results, "seconds": {k: round(v, 1) for k, v in self.timings.items()}}

    def _train(self, number: int, name: str, data: Data, bar: Bar) -> None:
        pairs = data.train_pairs()
        run = STAGES[name]
        if "pairs" in needs_of(run) and not pairs:
            raise UserError(f"stage.{name}: there are no train pairs; see pairs.counts.json")
        stage = Stage(
            self.policy,
            self.prompter,
            getattr(self.config.stage, name),
            data.file.states("train"),
            pairs,
            StageLog(self.run, number, name, bar),
            derive_seed(self.config.seed, "stage", number, name),
            self.config.pairs,
            data.reflections,
        )
        run(stage)


def _sample_states(
    file: TrajectoryFile, splits: list[str], n: int, seed: int
) -> list[tuple[State, str]]:
    states = file.states(*splits)
    chosen = np.random.default_rng([seed, 1]).permutation(len(states))[:n]
    return [states[int(i)] for i in sorted(chosen)]


def _sample_questions(asked: list[Question], n: int, seed: int) -> list[Question]:
    chosen = np.random.default_rng([seed, 2]).permutation(len(asked))[:n]
    return [asked[int(i)] for i in sorted(chosen)]


def environment(config: Config) -> dict[str, Any]:
    """Versions, machine and command: what is needed to repeat a run."""
    return {
        "versions": versions(PACKAGES),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),  # sums round by their number
        "backend": resolve_backend(config.model.backend),
        "seed": config.seed,
        "command": sys.argv[1:],
    }


def write_config(config: Config, out: Path) -> None:
    write_text(
        out / "config.yaml",
        yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True),
    )
    write_json(out / "environment.json", environment(config))


@contextmanager
def opened(config: Config, out: Path, console: Console) -> Iterator[Pipeline]:
    """The pipeline of a new run folder, or of one that holds the same config."""
    saved = out / "config.yaml"
    if saved.is_file():
        changed = changed_keys(saved, config)
        if changed:
            raise UserError(
                f"{out}: holds a run whose {changed[0]!r} differs; choose another --out, or go on "
                f"with miniact run --resume {out}"
            )
    with RunFolder(out) as run, Pipeline(config, run, console) as pipeline:
        if not saved.is_file():
            write_config(config, out)
        yield pipeline


def run_recipe(config: Config, out: Path, console: Console) -> dict[str, Any]:
    """Run a config's recipe in a new folder, or go on with it; returns what results.json holds."""
    with opened(config, out, console) as pipeline:
        results = pipeline.recipe()
        with explain_full_disk(out):
            write_report(out, results)
        return results


def start_run(config: Config, out: Path, console: Console) -> dict[str, Any]:
    """The same for people: ends with the table of results."""
    results = run_recipe(config, out, console)
    print_report(out, console)
    return results


def only_pairs(config: Config, out: Path, console: Console) -> None:
    """Collect trajectories and make pairs, nothing else."""
    with opened(config, out, console) as pipeline:
        pipeline.pairs(pipeline.trajectories())
        console.print(f"pairs: {out / 'pairs.jsonl'}", highlight=False)


def resume_run(out: Path, console: Console) -> dict[str, Any]:
    if not (out / "config.yaml").is_file():
        raise UserError(f"{out}: no config.yaml; expected the folder of a miniact run")
    return start_run(load_config(out / "config.yaml", saved=True), out, console)


def collect_to(config: Config, out: Path, console: Console) -> None:
    """Write expert trajectories to a file of the user's choice."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(dir=out.parent) as folder,
        RunFolder(Path(folder)) as run,
        Pipeline(config, run, console) as pipeline,
    ):
        file = pipeline.trajectories()
        file.path.replace(out)
    console.print(f"{len(file)} trajectories: {out}", highlight=False)
