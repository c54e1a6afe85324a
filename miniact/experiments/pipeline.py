"""`miniact run`: from a config to a results table, one plain file after the other.

    trajectories.jsonl → pairs.jsonl (→ reflections.jsonl) → base evaluation
                       → stage 1 → evaluation → stage 2 → evaluation → …

A file or folder that exists is a step that is done, so going on after a kill is running this again.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from rich.console import Console

from miniact import Interrupted, UserError
from miniact.backends.launch import processes
from miniact.backends.protocol import resolve_backend
from miniact.config import Config, load_config
from miniact.config.load import changed_keys, to_dict
from miniact.config.plugins import named, section_of, short
from miniact.evaluation.episodes import Episode, Tally, Verdict
from miniact.evaluation.evaluate import HeldOut, evaluate
from miniact.experiments.data import (
    Data,
    Workshop,
    heldout_splits,
    make_data,
    pairs,
    trajectories,
)
from miniact.experiments.metrics import numbers
from miniact.experiments.results import print_report, write_report
from miniact.experiments.settle import settled_for
from miniact.experiments.start import (
    announce,
    begun_otherwise,
    check_start,
    first_number,
    origin,
)
from miniact.method import run_of
from miniact.method.stage import Stage, needs_of
from miniact.method.wording import Wording
from miniact.runs.files import read_json, write_json, write_jsonl, write_text
from miniact.runs.folder import RunFolder, explain_full_disk, versions
from miniact.runs.log import StageLog
from miniact.runs.loggers import logging
from miniact.runs.progress import Bar

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "mlx", "mlx-lm", "numpy", "miniact")


def measure(
    work: Workshop, name: str, folder: Path, data: Data, thinking: bool = False
) -> dict[str, Any]:
    """Evaluate the policy as it is now, or read back the evaluation that is already there."""
    path = folder / "eval.json"
    if path.is_file():
        return read_json(path)
    config, seed = work.config.measuring(thinking), work.config.seed_for("eval")
    states = data.file.states(*heldout_splits(data.file))
    asked = data.questions(work.config.pairs.choices)
    at_once = work.config.env.workers or work.config.env.parallel
    with work.timed("evaluate"), Bar(work.console, f"eval {name}") as bar:
        envs = work.envs(min(at_once, config.episodes or 1))
        held_out = HeldOut.draw(envs, states, asked, config, seed)
        bar.start(held_out.amount(config))

        def on_done(episode: Episode) -> None:
            bar.advance({"success": tally.solved / tally.episodes})
            work.run.stopper.check()

        def on_answers(answers: int) -> None:
            bar.advance(units=answers)
            work.run.stopper.check()

        tally = Tally(on_done, on_answers)
        results, episodes = evaluate(work.policy, work.prompter, config, seed, held_out, tally)
    if tally.lost or (work.verbose and tally.episodes):
        work.console.print(f"eval {name}: {tally}", highlight=False, soft_wrap=True)
    if tally.episodes:
        for part, seconds in tally.seconds.items():
            key = f"evaluate/{part}"
            work.timings[key] = work.timings.get(key, 0) + seconds
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "episodes.jsonl", map(asdict, episodes))
    write_jsonl(folder / "judgements.jsonl", map(judgement_row, tally.verdicts))
    write_json(path, results)
    return results


def judgement_row(verdict: Verdict) -> dict[str, Any]:
    """One line of judgements.jsonl: a held-out question, and what the critic answered."""
    shown = verdict.shown
    return {
        "state": shown.state.id,
        "task": shown.state.task,
        "observation": shown.state.observation,
        "actions": shown.actions,
        "right": shown.right,
        "reply": verdict.reply,
        "choice": verdict.choice,
    }


def steps(config: Config, first: int = 1) -> Iterator[tuple[int, str, bool]]:
    """What is measured, in order: number, name, and whether the model thinks before it acts.

    First the base model, twice where some stage lets it think: without thoughts and with them.
    """
    yield 0, "base", False
    if config.thinks() and config.eval.thinking is None:
        yield 0, "base-thinking", True
    for number, name in enumerate(config.recipe, start=first):
        yield number, name, config.thinks(name)


def run_stages(work: Workshop) -> dict[str, Any]:
    """Run everything that is not done yet. Returns what results.json holds."""
    data, results = make_data(work), {}
    first = first_number(work.config, work.run.path)
    for number, name, thinking in steps(work.config, first):
        folder = work.run.stage(number, short(name))
        key = folder.name if number else name
        if (folder / "adapter").is_dir():
            work.policy.load_adapter(folder / "adapter")
        elif number:
            with work.timed(key), Bar(work.console, key) as bar:
                train(work, number, name, data, bar)
        results[key] = measure(work, key, folder, data, thinking)
        log_evaluation(work.run, key, number, numbers(results[key]))
    return {"results": results, "seconds": {k: round(v, 1) for k, v in work.timings.items()}}


def log_evaluation(run: RunFolder, key: str, number: int, figures: dict[str, float]) -> None:
    """Log an evaluation once, also one that another run of a comparison has made.

    What was logged is remembered: not every logger replaces a step that comes again.
    """
    file = run.path / "logged.json"
    logged = read_json(file).get("evaluations", []) if file.is_file() else []
    if key in logged:
        return
    with logging(run.log_to, run.path, "evaluations", number) as log:
        log(figures, number)
    write_json(file, {"evaluations": [*logged, key]})


def train(work: Workshop, number: int, name: str, data: Data, bar: Bar) -> None:
    """Run one stage from its last checkpoint on; it ends with an adapter in its folder."""
    run, learned_from = run_of(name), data.train_pairs()
    if "pairs" in needs_of(run) and not learned_from:
        raise UserError(f"stage.{name}: there are no train pairs; see pairs.counts.json")
    stage = Stage(
        work.policy,
        work.prompter,
        getattr(work.config.stage, section_of(name)),
        data.file.states("train"),
        learned_from,
        StageLog(work.run, number, short(name), bar),
        work.config.seed_for("stage", number, name),
        work.config.pairs,
        data.reflections,
    )
    run(stage)


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
        "processes": processes(),
        "origin": origin(config),
        "seed": config.seed,
        "command": sys.argv[1:],
    }


def write_config(config: Config, out: Path) -> None:
    if config.prompt.wording:  # the run goes on with the words that it began with
        write_text(out / "wording.txt", Wording(config.prompt).text)
    write_json(out / "environment.json", environment(config))
    write_text(  # the last: where it is, the others are
        out / "config.yaml",
        yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True),
    )


@contextmanager
def opened(
    config: Config, out: Path, console: Console, verbose: bool = False
) -> Iterator[Workshop]:
    """The workshop of a new run folder, or of one that holds the same config."""
    check_start(config, out)
    config = settled_for(config, out, console)
    if note := begun_otherwise(config, out):
        console.print(note, style="yellow", highlight=False, markup=False, soft_wrap=True)
    with RunFolder(out, config.log.to) as run, Workshop(config, run, console, verbose) as work:
        saved = out / "config.yaml"
        if not saved.is_file() or changed_keys(saved, config):
            write_config(config, out)
        yield work


def run_recipe(
    config: Config, out: str | Path, console: Console | None = None, verbose: bool = False
) -> dict[str, Any]:
    """Run a config's recipe in a new folder, or go on with it; returns what results.json holds.

    verbose: also say where the time goes.
    """
    out, console = Path(out), console or Console()
    with opened(config, out, console, verbose) as work:
        results = run_stages(work)
        with explain_full_disk(out):
            write_report(out, results)
        return results


def start_run(config: Config, out: Path, console: Console, verbose: bool = False) -> dict[str, Any]:
    """The same for people: ends with the table of results, and what it says."""
    try:
        results = run_recipe(config, out, console, verbose)
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(f"go on with: miniact run --resume {out}") from None
    print_report(out, console, verbose)
    return results


def only_pairs(config: Config, out: Path, console: Console) -> None:
    """Collect trajectories and make pairs, nothing else."""
    with opened(config, out, console) as work:
        pairs(work, trajectories(work))
        console.print(f"pairs: {out / 'pairs.jsonl'}", highlight=False)


def resume_run(out: Path, console: Console, verbose: bool = False) -> dict[str, Any]:
    if not (out / "config.yaml").is_file():
        raise UserError(f"{out}: no config.yaml; expected the folder of a miniact run")
    config = load_config(out / "config.yaml", saved=True)
    for where, name in named(config):
        console.print(f"{out} imports {name} ({where})", highlight=False, soft_wrap=True)
    announce(config, out, console)
    return start_run(config, out, console, verbose)


def collect_to(config: Config, out: Path, console: Console) -> None:
    """Write expert trajectories to a file of the user's choice."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(dir=out.parent) as folder,
        RunFolder(Path(folder)) as run,
        Workshop(config, run, console) as work,
    ):
        file = trajectories(work)
        file.path.replace(out)
    console.print(f"{len(file)} trajectories: {out}", highlight=False)
