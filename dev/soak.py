"""Kill small runs at random moments, resume them, and compare what is left with one never killed.

    python dev/soak.py --kills 200 --threads 2 --out soak.json     # the same command goes on

A trial is one run: SIGKILL, resume, perhaps SIGKILL again, until it is done. The moments are drawn
from --seed and the trial's number, in three ways of equal weight: at any time; up to 3 ms after a
file event (a file opened for writing, a rename, a new or removed folder) of a drawn activity; just
before such an event. So what takes a millisecond is hit as often as what takes a second.

The run never killed is a process of its own with its own hash seed. The others are forks of this
one, which has imported everything. Left out, as they hold the time: environment.json, tensorboard/,
`time` in metrics.jsonl, `seconds` in results.json. The folder of a trial that differs is kept.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from miniact import UserError
from miniact.cli.common import friendly
from miniact.config import load_config
from miniact.runs.files import read_json, write_json

SMALL = (
    *("stage.il.steps=3", "stage.act.steps=2", "stage.rl.steps=3"),
    *("stage.il.batch=4", "stage.act.batch=24", "stage.rl.batch=6"),
    *("stage.il.checkpoint_every=1", "stage.act.checkpoint_every=1", "stage.rl.checkpoint_every=2"),
    *("stage.act.beta=0.05", "stage.rl.updates=2", "stage.act.refresh_pairs=1"),
    *("model.rank=4", "model.alpha=8", "env.train_tasks=30", "env.heldout_tasks=4"),
    *("env.options={max_steps: 9}", "eval.splits=[id]"),
    *("eval.episodes=2", "eval.states=4", "eval.pairs=4"),
)
NOT_COMPARED = re.compile(r"environment\.json|tensorboard/.*|\.lock")
CHANCES = (1, 1 / 3, 1 / 3, 0)  # of a first, second and third kill
LIMIT_S = 900  # a run that takes longer hangs

STARTING, TRAINING = "starting", "training"
ACTIVITIES = (  # what the last file event of a run says it was doing, the first that fits
    (r"rename stages/\S+/adapter", "evaluating"),
    (r"rename stages/\S+/checkpoint|rename stages/\S+/pairs", TRAINING),
    (r"rename stages/\S+/eval", TRAINING),
    (r"rename trajectories", "sampling pairs"),
    (r"rename pairs.jsonl", "evaluating"),
    (r"\S+ trajectories", "collecting"),
    (r"\S+ (stages/\S+/)?pairs", "sampling pairs"),
    (r"\S+ stages/\S+/checkpoint", "writing a checkpoint"),
    (r"\S+ stages/\S+/adapter", "writing an adapter"),
    (r"\S+ stages/\S+/(episodes|eval)", "writing an evaluation"),
    (r"\S+ (metrics|tensorboard|samples|stages)", TRAINING),
    (r"\S+ (results|curves)", "writing the report"),
)


def activity(event: str) -> str:
    return next((name for pattern, name in ACTIVITIES if re.match(pattern, event)), STARTING)


@dataclass(frozen=True)
class Moment:
    """When to kill: after seconds, or at the nth event of an activity (by itself, or later)."""

    after_s: float = 0.0
    activity: str = ""
    nth: int = 0
    itself: bool = False


NEVER = Moment(LIMIT_S)


def draw_moment(rng: random.Random, whole: Played) -> Moment:
    way = rng.choice(("time", "after", "before"))
    if way == "time":
        return Moment(rng.uniform(0, whole.seconds))
    counts = Counter(map(activity, whole.events))
    chosen = rng.choice(sorted(counts))
    after_s = rng.uniform(0, 0.003) if way == "after" else 0.0
    return Moment(after_s, chosen, rng.randrange(counts[chosen]), way == "before")


# ---- one process ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Played:
    """One process: its exit code (negative: the signal), seconds, and file events in order."""

    code: int
    seconds: float
    events: list[str]


def tell_file_events(folder: Path, pipe: int, kill: Moment) -> None:
    """Write every file event under `folder` to the pipe before it happens; die at the drawn one."""
    seen: Counter[str] = Counter()
    names = {"open": "open", "os.rename": "rename", "os.mkdir": "mkdir", "shutil.rmtree": "rmtree"}
    start = f"{folder}/"

    def hook(event: str, arguments: tuple) -> None:
        if event not in names or not str(arguments[0]).startswith(start):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        line = f"{names[event]} {str(arguments[0])[len(start) :]}"
        os.write(pipe, f"{line}\n".encode())
        doing = activity(line)
        if kill.itself and doing == kill.activity and seen[doing] == kill.nth:
            os.kill(os.getpid(), signal.SIGKILL)
        seen[doing] += 1

    sys.addaudithook(hook)


def run_in_fork(out: Path, kill: Moment) -> Played:
    """`miniact run` (or `--resume`, where there is something) in a fork that is killed on time."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        log = os.open(out.with_name(f"{out.name}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        code = 1
        try:
            tell_file_events(out, write, kill)
            main_of_fork(out)
            code = 0
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    os.close(write)
    started = time.monotonic()
    events = listen(read, pid, kill, started)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if kill.itself and code == -signal.SIGKILL:
        events.pop()  # it was told, and never happened
    return Played(code, time.monotonic() - started, events)


def main_of_fork(out: Path) -> None:
    try:
        from miniact.experiments.pipeline import resume_run, start_run

        if (out / "config.yaml").is_file():
            resume_run(out, Console())
        else:
            start_run(load_config("household-plain", SMALL), out, Console())
    except BaseException:
        traceback.print_exc()
        raise


def listen(read: int, pid: int, kill: Moment, started: float) -> list[str]:
    """The events of a process until it ends, which this sees to at the drawn moment."""
    told, deadline = b"", started + (LIMIT_S if kill.activity else kill.after_s)
    awaited = kill.activity and not kill.itself
    while True:
        wait = max(0.0, deadline - time.monotonic())
        if not select.select([read], [], [], wait)[0]:
            os.kill(pid, signal.SIGKILL)
            deadline += LIMIT_S  # what it told before it died is still in the pipe
        elif part := os.read(read, 65536):
            told += part
            doing = [activity(line) for line in told.decode().splitlines()]
            if awaited and doing.count(kill.activity) > kill.nth:
                awaited, deadline = False, time.monotonic() + kill.after_s
        else:
            os.close(read)
            return told.decode().splitlines()


# ---- what a run leaves ---------------------------------------------------------------------------


def content(file: Path) -> bytes:
    """A file's bytes, without the time."""
    if file.name == "metrics.jsonl":
        rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        return json.dumps([{k: v for k, v in row.items() if k != "time"} for row in rows]).encode()
    if file.name == "results.json":
        results = read_json(file)
        return json.dumps({k: v for k, v in results.items() if k != "seconds"}).encode()
    return file.read_bytes()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that is compared; of folders, that they are there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not NOT_COMPARED.fullmatch(name):
            found[name] = hashlib.sha256(content(path)).hexdigest() if path.is_file() else "folder"
    return found


def compare(folder: Path, whole: Path) -> dict[str, list[str]]:
    """Names of what differs or is missing, and of what should not be there."""
    here, there = digests(folder), digests(whole)
    return {
        "different": [name for name in there if here.get(name) != there[name]],
        "leftovers": [name for name in here if name not in there],
    }


# ---- trials --------------------------------------------------------------------------------------


def trial(number: int, seed: int, folder: Path, whole: Played) -> dict[str, Any]:
    """One run, killed one to three times and resumed until it is done."""
    rng = random.Random(f"{seed}/{number}")
    out = folder / f"trial-{number:04d}"
    shutil.rmtree(out, ignore_errors=True)
    out.with_name(f"{out.name}.log").unlink(missing_ok=True)
    kills: list[str] = []
    moments: list[dict[str, Any]] = []
    started = time.monotonic()
    for chance in CHANCES:
        kill = draw_moment(rng, whole) if rng.random() < chance else NEVER
        moments.append(asdict(kill))
        played = run_in_fork(out, kill)
        if played.code != -signal.SIGKILL:
            break
        kills.append(activity(played.events[-1]) if played.events else STARTING)
    result = compare(out, folder / "whole") if out.is_dir() else {}
    fine = not played.code and not any(result.values())
    if fine:
        shutil.rmtree(out)
        out.with_name(f"{out.name}.log").unlink()
    return {
        "trial": number,
        "kills": kills,
        "moments": moments,
        "exit code": played.code,
        **result,
        "load": round(os.getloadavg()[0], 1),
        "seconds": round(time.monotonic() - started, 1),
    }


def prepare(folder: Path) -> Played:
    """The run never killed; then the same as a fork, for its length and its file events."""
    for module in ("matplotlib.pyplot", "tensorboardX", "miniact.backends.torch.policy"):
        importlib.import_module(module)  # a fork need not
    if not (folder / "whole" / "results.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = [sys.executable, "-m", "miniact.cli", "run", "household-plain", *SMALL]
        subprocess.run([*command, "--out", folder / "whole"], check=True, capture_output=True)
    fork = folder / "fork"
    shutil.rmtree(fork, ignore_errors=True)
    played = run_in_fork(fork, NEVER)
    difference = compare(fork, folder / "whole")
    if played.code or any(difference.values()):
        raise UserError(f"two runs that nobody killed differ: {difference}; see {fork}.log")
    return played


def summary(state: dict[str, Any]) -> str:
    trials = state["trials"]
    kills = Counter(kill for t in trials for kill in t["kills"])
    bad = [t for t in trials if t["exit code"] or t.get("different") or t.get("leftovers")]
    lines = [f"{sum(kills.values())} kills in {len(trials)} runs, {len(bad)} of them differ"]
    lines += [f"  {count:4d} {name}" for name, count in kills.most_common()]
    for t in bad:
        lines += [f"run {t['trial']}: {t}"]
    loads = sorted(t["load"] for t in trials) or [0.0]
    lines += [f"load average {loads[0]} to {loads[-1]}, median {loads[len(loads) // 2]}"]
    return "\n".join(lines)


@click.command()
@click.option("--kills", default=200, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
@friendly
def main(kills: int, threads: int, seed: int, out: Path) -> None:
    """Kill, resume, compare; what was seen goes to OUT (JSON), run folders beside it."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported
    machine = {"platform": platform.platform(), "cpus": os.cpu_count()}
    setup = {"threads": threads, "seed": seed, "overrides": list(SMALL), **machine}
    state: dict[str, Any] = read_json(out) if out.is_file() else {"setup": setup, "trials": []}
    if state["setup"] != setup:
        raise UserError(f"{out}: made by {state['setup']}, not {setup}; choose another --out")
    folder = out.resolve().with_suffix("")
    whole = prepare(folder)
    while sum(len(t["kills"]) for t in state["trials"]) < kills:
        state["trials"].append(trial(len(state["trials"]), seed, folder, whole))
        write_json(out, state)
        print(f"{len(state['trials'])}: {state['trials'][-1]}", flush=True)
    print(summary(state))


if __name__ == "__main__":
    main()
