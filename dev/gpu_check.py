"""A kit for the first real card: what miniact takes there, beside what the plan says.

    python dev/gpu_check.py --out gpu-check            every piece; the same command goes on
    python dev/gpu_check.py --out gpu-check 8b bench   these

Each piece runs in a process of its own, for nine minutes at most, and downloads nothing. It leaves
OUT/PIECE.json when it is done, and is not run again; of one that fails, OUT/PIECE.failed.txt.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from miniact import UserError
from miniact.cli.common import friendly
from miniact.config.load import load_config
from miniact.config.sections import ModelConfig
from miniact.runs.files import read_json, write_json
from miniact.tools import times
from miniact.tools.cost import KNOWN, Shape, Work
from miniact.tools.devices import Device, detect
from miniact.tools.plan import memory

LIMIT_S = 540.0
TINY = Shape("tiny", 2, 64, 4, 2, 16, 128, 200, tied=False)
PROMPTS = 8  # sampled at once: with 8 answers each, 64 rows


def check_device(out: Path, tiny: bool) -> dict[str, Any]:
    from miniact.tools.doctor import diagnose, to_json

    return json.loads(to_json(diagnose(ModelConfig())))


# ---- a model of random weights: memory and speed beside the plan ---------------------------------


def check_8b(out: Path, tiny: bool) -> dict[str, Any]:
    """QLoRA at the size of the shipped config: one group of 6,144 tokens is a training pass."""
    from miniact.backends.torch.device import pick_device

    has_nf4 = importlib.util.find_spec("bitsandbytes") and pick_device("auto").type != "mps"
    adapter = "qlora" if has_nf4 else "lora"
    sizes = (40, 2, 6) if tiny else (2048, 8, 512)
    return check_size(out, TINY if tiny else KNOWN["Qwen/Qwen3-8B"], adapter, sizes)


def check_small(out: Path, tiny: bool) -> dict[str, Any]:
    sizes = (40, 2, 6) if tiny else (690, 8, 256)
    return check_size(out, TINY if tiny else KNOWN["Qwen/Qwen3-0.6B"], "lora", sizes)


def check_size(
    out: Path, shape: Shape, adapter: str, sizes: tuple[int, int, int]
) -> dict[str, Any]:
    """Load, sample 8 and 64 rows, train. Bytes above the empty process; seconds; tokens/s."""
    from random_model import random_weights, write_shape

    from miniact.backends.protocol import load_policy
    from miniact.backends.torch.probe import Probe

    P, G, C = sizes
    folder = write_shape(out / "shapes" / shape.name, shape)
    model = ModelConfig(
        path=str(folder),
        backend="torch",
        adapter=adapter,
        gradient_checkpointing=True,
        max_tokens_per_batch=P + G * C,
    )
    device, probe = detect(model), Probe(model.device, model.precision)
    empty, start = probe.used(), time.perf_counter()
    with random_weights():
        policy: Any = load_policy(model, 0)
    policy.ends = ()  # answers of exactly C tokens
    probe.wait()
    seen: dict[str, Any] = {"loading_s": time.perf_counter() - start}
    seen["weights_bytes"] = probe.used() - empty
    train(policy, sample(policy, 2, (16, 2, 4)))  # warms up, and compares the ways to share
    for rows, prompts in ((G, 1), (PROMPTS * G, PROMPTS)):
        ask = partial(sample, policy, prompts, sizes)
        seen[f"sampling_{rows}_rows"] = timed(probe, empty, rows * C, ask)
    groups = sample(policy, 1, sizes)
    seen["training"] = timed(probe, empty, P + G * C, partial(train, policy, groups))
    work = Work("act", 1, 1, P, G, C, True)
    planned = plan_of(shape, model, work, device)
    return {"device": device.name, "sizes": [P, G, C], "seen": seen, "planned": planned}


def timed(probe: Any, empty: int, tokens: int, run: Callable[[], Any]) -> dict[str, float]:
    """The better of two; the peak of both."""
    probe.reset_peak()
    seconds = []
    for _ in range(2):
        probe.wait()
        start = time.perf_counter()
        run()
        probe.wait()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": min(seconds),
        "tokens_per_s": tokens / min(seconds),
        "peak_bytes": probe.peak() - empty,
    }


def sample(policy: Any, prompts: int, sizes: tuple[int, int, int]) -> list[Any]:
    """Answers to random prompts, as groups to train on; half of them are right."""
    from miniact.method.grpo import advantages, make_group, weigh

    P, G, C = sizes
    rng = np.random.default_rng(P)
    asked = [tuple(rng.integers(5, 100, P).tolist()) for _ in range(prompts)]
    answers = policy.sample(asked, G, C, 1.0, 0)
    advantage_G = advantages(np.arange(G) % 2)
    return weigh([make_group(p, a, advantage_G) for p, a in zip(asked, answers)], "grpo", C)


def train(policy: Any, groups: list[Any]) -> None:
    from miniact.method.losses import GRPOLoss

    policy.forward_backward(groups, GRPOLoss())
    policy.optim_step(1e-6, 1.0)


def plan_of(shape: Shape, model: ModelConfig, work: Work, device: Device) -> dict[str, float]:
    """The same figures, planned with the speeds that this device has at this moment."""
    m, wide = memory(shape, model, work, device), replace(work, batch=PROMPTS)
    lora = m.adapter / 2
    fixed, moments = m.weights + lora, m.optimizer
    sampling = memory(shape, model, wide, device).sampling
    prefill = times.prefill(shape, device, wide, model)
    return {
        "weights_bytes": fixed,
        "training_peak_bytes": fixed + lora + moments + m.training,
        "sampling_peak_bytes": fixed + moments + sampling,
        "training_s": times.training(shape, device, work, model),
        "sampling_s": prefill
        + work.completion * times.decode(shape, device, wide, model, PROMPTS).seconds,
    }


# ---- the whole, and TRL beside it ----------------------------------------------------------------


def check_household(out: Path, tiny: bool) -> dict[str, Any]:
    """The README's recipe at a tenth of its steps; goes on where it was stopped."""
    from miniact.experiments.pipeline import run_recipe

    steps = (2, 1, 1) if tiny else (30, 5, 7)
    names = ("il", "act", "rl")
    settings = [f"stage.{name}.steps={n}" for name, n in zip(names, steps)]
    if tiny:
        settings += ["env.train_tasks=8", "env.heldout_tasks=2", "eval.episodes=2"]
        settings += ["eval.states=4", "eval.pairs=4"]
    start = time.perf_counter()
    results = run_recipe(load_config("household-plain", settings), out / "household", Console())
    return {"whole_s": time.perf_counter() - start, **results}


def check_bench(out: Path, tiny: bool) -> dict[str, Any]:
    """GRPO steps of 0.6B's shape, or less, with weights on the disk, for TRL must load them."""
    if importlib.util.find_spec("trl") is None:
        return {"skipped": "TRL is not installed"}
    import torch
    from random_model import random_base, write_shape

    shape = TINY if tiny else KNOWN["Qwen/Qwen3-0.6B"]
    folder = write_shape(out / "bench" / shape.name, shape)
    random_base(folder, "lora", torch.device("cpu"), torch.float32).save_pretrained(folder)
    P, G, C, steps = ("16", "2", "4", "1") if tiny else ("512", "8", "64", "3")
    file = out / "bench" / "steps.json"
    command = [str(Path(__file__).parents[1] / "dev/bench/bench.py"), "--model", str(folder)]
    command += ["-p", P, "-g", G, "-c", C, "--steps", steps, "--json", str(file)]
    subprocess.run([sys.executable, *command, "--against", "trl"], check=True)
    return read_json(file)


PIECES: dict[str, Callable[[Path, bool], dict[str, Any]]] = {
    "doctor": check_device,
    "8b": check_8b,
    "0.6b": check_small,
    "household": check_household,
    "bench": check_bench,
}


# ---- one after the other -------------------------------------------------------------------------


def run_piece(name: str, out: Path, tiny: bool) -> bool:
    """In a process of its own: what it took goes back whole, and what it breaks is broken there."""
    file, failed = out / f"{name}.json", out / f"{name}.failed.txt"
    if file.is_file():
        return True
    command = [sys.executable, __file__, "--out", str(out), "--piece", name]
    try:
        done = subprocess.run(
            [*command, *(["--tiny"] if tiny else [])],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        told = done.stderr
    except subprocess.TimeoutExpired as stopped:
        told = f"{stopped.stderr!s}\nstopped after {LIMIT_S:.0f} s"
    if file.is_file():
        failed.unlink(missing_ok=True)
        return True
    failed.write_text(told, encoding="utf-8")
    return False


def table(out: Path, names: list[str]) -> Table:
    """Of every piece that is done: what was seen, and beside a model's figures the planned ones."""
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("piece", "figure", "seen", "planned"):
        rows.add_column(column, justify="right" if column in ("seen", "planned") else "left")
    for name in names:
        if not (out / f"{name}.json").is_file():
            rows.add_row(name, "failed", "", f"see {name}.failed.txt")
            continue
        found = read_json(out / f"{name}.json")
        if "planned" not in found:
            brief = found.get("skipped") or ("all is well" if found.get("ok", True) else "not well")
            rows.add_row(name, brief)
            continue
        seen, planned = found["seen"], found["planned"]
        wide = seen[f"sampling_{PROMPTS * found['sizes'][1]}_rows"]
        for figure, mine, theirs, unit in (
            ("weights, GB", seen["weights_bytes"], planned["weights_bytes"], 1e9),
            ("training, GB", seen["training"]["peak_bytes"], planned["training_peak_bytes"], 1e9),
            ("sampling, GB", wide["peak_bytes"], planned["sampling_peak_bytes"], 1e9),
            ("training, s", seen["training"]["seconds"], planned["training_s"], 1),
            ("sampling, s", wide["seconds"], planned["sampling_s"], 1),
        ):
            rows.add_row(name, figure, f"{mine / unit:.2f}", f"{theirs / unit:.2f}")
    return rows


@click.command()
@click.argument("pieces", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--tiny", is_flag=True, help="Tiny shapes: does the kit itself work?")
@click.option("--piece", hidden=True, help="Run this one here; what --out's own processes do.")
@friendly
def main(pieces: tuple[str, ...], out: Path, tiny: bool, piece: str | None) -> None:
    """Run PIECES (default: all): doctor, 8b, 0.6b, household, bench."""
    names = list(pieces) or list(PIECES)
    for name in names:
        if name not in PIECES:
            raise UserError(f"{name!r} is no piece; expected some of {', '.join(PIECES)}")
    out.mkdir(parents=True, exist_ok=True)
    if piece:
        write_json(out / f"{piece}.json", PIECES[piece](out, tiny))
        return
    done = []
    for name in names:
        click.echo(f"{name} …")
        done.append(run_piece(name, out, tiny))
    Console().print(table(out, names))
    if not all(done):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
