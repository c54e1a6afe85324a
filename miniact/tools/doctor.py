"""`miniact doctor`: does everything that miniact needs work on this device? In under a minute.

The shipped model is loaded as a config would load one, and asked what training asks: the same
log-probabilities with a prompt shared and with it repeated, the same answers together and alone, a
loss that falls, the same next step after a checkpoint. And how long a token takes.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from miniact import __version__
from miniact.backends.checks import Check, tried, version
from miniact.backends.models import cache_root
from miniact.backends.protocol import load_policy, resolve_backend
from miniact.config.sections import ModelConfig
from miniact.method.grpo import weigh
from miniact.method.losses import cross_entropy
from miniact.types import Completion, Group

LOWEST = 5  # token ids below are the tokenizer's own
REPORT = "a bug: please report it with the output of miniact doctor --json"
EXACT, ROUNDED = 1e-3, 0.2  # nats a token, on average: in float32, and in 16 bits or 4
WORLDS = {"scienceworld": "scienceworld", "alfworld": "textworld", "webshop": "bm25s"}


@dataclass(frozen=True)
class Report:
    facts: dict[str, str]
    checks: list[Check]

    @property
    def ok(self) -> bool:
        return all(check.ok is not False for check in self.checks)


def diagnose(model: ModelConfig) -> Report:
    """Examine this machine, and the device that `model` names, with the model that ships."""
    tiny = replace(model, path="builtin:tiny", start="", rank=8, adapter="lora")
    about = {
        "miniact": __version__,
        "Python": f"{platform.python_version()} on {platform.platform(terse=True)}",
        "cores": str(os.cpu_count()),
        "backend": resolve_backend(model.backend),
    }
    facts, checks = examine(tiny)
    checks += policy_checks(tiny)
    on_cpu = facts["device"].startswith("cpu")  # where NF4 wants rows of 64, which tiny has not
    if not on_cpu and all(c.ok for c in checks if "qlora" in c.name):
        checks += policy_checks(replace(tiny, adapter="qlora"))
    return Report(about | facts, [*checks, *surroundings()])


def examine(model: ModelConfig) -> tuple[dict[str, str], list[Check]]:
    """Facts about the device of this config, and whether what miniact needs of it works."""
    if resolve_backend(model.backend) == "mlx":
        from miniact.backends.mlx import checks
    else:
        from miniact.backends.torch import checks  # type: ignore[no-redef]
    module: Any = checks
    return module.facts(model), module.device_checks(model)


# ---- the policy ----------------------------------------------------------------------------------


def policy_checks(model: ModelConfig) -> list[Check]:
    """What training asks of a model; when it does not load, that alone."""
    name = f"{model.adapter}: "
    loaded: list[Any] = []

    def load() -> tuple[bool, str]:
        loaded.append(load_policy(model, 0))
        loaded[0].ends = ()
        return True, "the model that ships"

    checks = [tried(f"{name}load", "see the line above on what does not work", load)]
    if not loaded:
        return checks
    policy = loaded[0]
    exact = EXACT if model.adapter == "lora" and _is_float32(policy) else ROUNDED
    for part, look in (
        ("shared prompt = plain", lambda: _shared(policy, exact)),
        ("together = alone", lambda: _alone(policy, exact)),
        ("a token of 8 and 64 rows", lambda: _decoding(policy)),
        ("training", lambda: _training(policy)),
        ("checkpoint and resume", lambda: _resume(policy, model, exact)),
    ):
        checks.append(tried(name + part, REPORT, look))
    return checks


def _is_float32(policy: Any) -> bool:
    dtype = getattr(policy, "dtype", None) or policy.head.layer.weight.dtype
    return "float32" in str(dtype)


def _groups(prompts: int, answers: int, length: int = 12) -> list[Group]:
    rng = np.random.default_rng(0)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(rng.integers(LOWEST, 100, n).tolist())

    return weigh(
        [
            Group(tokens(20 + 7 * i), tuple(Completion(tokens(length - j)) for j in range(answers)))
            for i in range(prompts)
        ],
        *("dapo", length),
    )


def _logps(policy: Any, groups: list[Group]) -> np.ndarray:
    return np.concatenate([logp for group in policy.logprobs(groups) for logp in group])


def _gap(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> tuple[bool, str]:
    """NaN is no small difference."""
    mean, most = (float(f(np.abs(ours - theirs))) for f in (np.mean, np.max))
    return mean <= tolerance, f"log-probs differ by {mean:.1e}, at most {most:.1e}"


def _shared(policy: Any, tolerance: float) -> tuple[bool, str]:
    groups = _groups(3, 4)
    single = [replace(g, completions=(c,)) for g in groups for c in g.completions]
    ok, seen = _gap(_logps(policy, groups), _logps(policy, single), tolerance)
    if not getattr(policy, "shares_prompts", True):
        return False, "they differ, so that prompts are computed once for each answer"
    return ok, seen


def _alone(policy: Any, tolerance: float) -> tuple[bool, str]:
    """Greedy answers of one batch, each again by itself; and what the scorer makes of them."""
    prompts = [g.prompt for g in _groups(4, 1)]
    together = policy.sample(prompts, 1, 8, 0.0, 0)
    alone = [policy.sample([prompt], 1, 8, 0.0, 0)[0] for prompt in prompts]
    equal = np.mean([a[0].tokens == b[0].tokens for a, b in zip(together, alone)])
    groups = [Group(p, (Completion(s[0].tokens),)) for p, s in zip(prompts, together)]
    sampled = np.concatenate([np.asarray(s[0].logps) for s in together])
    ok, seen = _gap(sampled, _logps(policy, groups), tolerance)
    return ok and (equal == 1 or tolerance > EXACT), f"{equal:.0%} of answers equal; {seen}"


def _decoding(policy: Any) -> tuple[bool, str]:
    """Milliseconds of one more token; those of the prompt are in both and fall out."""
    spent = []
    for answers in (1, 8):
        prompts, seconds = [g.prompt for g in _groups(8, 1)], []
        for length in (2, 8, 40):  # the first warms up
            start = time.perf_counter()
            policy.sample(prompts, answers, length, 1.0, 0)
            seconds.append(time.perf_counter() - start)
        spent.append(1000 * (seconds[2] - seconds[1]) / 32)
    return True, f"{spent[0]:.1f} and {spent[1]:.1f} ms"


def _training(policy: Any) -> tuple[bool, str]:
    groups, losses, seconds = _groups(8, 4), [], []
    for _ in range(4):
        start = time.perf_counter()
        losses.append(policy.forward_backward(groups, cross_entropy)["loss"])
        norm = policy.optim_step(3e-3, 1.0)
        seconds.append(time.perf_counter() - start)
    falls = losses[-1] < losses[0] and bool(np.isfinite(norm) and norm > 0)
    tokens = sum(g.size for g in groups) / min(seconds)
    return falls, f"loss {losses[0]:.2f} → {losses[-1]:.2f}; {tokens:,.0f} tokens/s"


def _resume(policy: Any, model: ModelConfig, tolerance: float) -> tuple[bool, str]:
    """A step from what was written and read back equals the step from what was kept."""
    groups = _groups(2, 2)

    def step(one: Any) -> np.ndarray:
        one.forward_backward(groups, cross_entropy)
        one.optim_step(1e-3, 1.0)
        return _logps(one, groups)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkpoint"
        folder.mkdir()
        policy.save_adapter(folder)
        policy.save_optimizer(folder / "optimizer.safetensors")
        again = load_policy(model, 1)
        again.load_adapter(folder)
        again.load_optimizer(folder / "optimizer.safetensors")
        return _gap(step(policy), step(again), tolerance)


# ---- what stands around it -----------------------------------------------------------------------


def surroundings() -> Iterator[Check]:
    """The other backend, worlds, and room on the disk. What is missing is told, and no fault."""
    mlx = find_spec("mlx_lm") is not None
    yield Check("MLX", mlx or None, version("mlx-lm"), "" if mlx else "pip install 'miniact[mlx]'")
    for world, module in WORLDS.items():
        there = find_spec(module) is not None
        remedy = "" if there else f"pip install 'miniact[{world}]'"
        yield Check(world, there or None, "installed" if there else "not installed", remedy)
    java = shutil.which("java")
    needed = find_spec("scienceworld") is not None
    remedy = "" if java else "ScienceWorld needs Java: default-jre-headless, or openjdk"
    yield Check("Java", True if java else (False if needed else None), java or "none", remedy)
    yield tried("disk", "set MINIACT_CACHE to a folder with room", _disk)


def _disk() -> tuple[bool, str]:
    root = cache_root()
    while not root.exists():
        root = root.parent
    free = shutil.disk_usage(root).free / 1e9
    return free > 1, f"{free:.0f} GB free for models"


# ---- what is printed -----------------------------------------------------------------------------


def print_report(report: Report, console: Console) -> None:
    facts = Table(box=None, pad_edge=False, show_header=False)
    for name, value in report.facts.items():
        facts.add_row(name, value)
    console.print(facts)
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in report.checks:
        mark = {True: "[green]✓[/]", False: "[bold red]✗[/]", None: "–"}[check.ok]
        table.add_row(mark, check.name, f"{check.seen}{'; ' if check.remedy else ''}{check.remedy}")
    console.print(table)
    failed = [check.name for check in report.checks if check.ok is False]
    console.print(f"does not work: {', '.join(failed)}" if failed else "all is well", style="bold")


def to_json(report: Report) -> str:
    checks = [asdict(check) for check in report.checks]
    return json.dumps({"ok": report.ok, "facts": report.facts, "checks": checks}, indent=2)
