"""`miniact compare --budget 30m`: the largest comparison that fits a time limit.

First the data and the base evaluation of the first seed are made, which the comparison needs
anyway, then a few steps of every stage. From the seconds of these follows, with a margin, what all
runs would take. It is an estimate: nothing is stopped when the time is over.

What does not fit is cut in a fixed order: steps to a half, seeds to three, rows from the end of the
list, steps again, seeds again. Evaluations are never cut: fewer seeds or steps show in the table, a
smaller evaluation would not.
"""

from __future__ import annotations

import re
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

from rich.console import Console

from miniact import UserError
from miniact.config.load import changed_keys, differing, to_dict, with_overrides
from miniact.config.plugins import section_of, short
from miniact.experiments.compare import Comparison, begin
from miniact.experiments.pipeline import run_recipe
from miniact.experiments.reading import read_metrics
from miniact.runs.files import read_json, write_json

PROBE_STEPS = 5  # of each stage; the first, which warms up, is not counted
MARGIN = 1.2  # trained policies play longer episodes than the base, other work slows a machine


def parse_budget(text: str) -> float:
    """Seconds in `90s`, `30m`, `1.5h`.

    >>> parse_budget("30m")
    1800.0
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not match or float(match[1]) == 0:
        raise UserError(f"--budget: {text!r}; expected a time such as 90s, 30m or 1.5h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


@dataclass(frozen=True)
class Size:
    """How much of a comparison is run. share: of every stage's steps."""

    rows: tuple[str, ...]  # names of recipes
    seeds: tuple[int, ...]
    share: float

    def of(self, whole: Comparison) -> Comparison:
        """The comparison at this size."""
        sections = map(section_of, whole.stages)
        steps = [f"stage.{s}.steps={getattr(whole.config.stage, s).steps}" for s in sections]
        rows = tuple(
            replace(recipe, overrides=tuple(map(self._scaled, recipe.overrides)))
            for recipe in whole.recipes
            if recipe.name in self.rows
        )
        config = with_overrides(whole.config, [*map(self._scaled, steps)])
        return replace(whole, config=config, recipes=rows, seeds=self.seeds)

    def _scaled(self, override: str) -> str:
        """Steps at this share, also those that a row sets by itself; one at least, unless 0."""
        steps = re.fullmatch(r"(stage\.\w+\.steps)=([1-9]\d*)", override)
        return f"{steps[1]}={max(1, round(self.share * int(steps[2])))}" if steps else override


@dataclass(frozen=True)
class Speed:
    """Measured seconds: making the data of a seed, one evaluation, one step of each stage."""

    data: float
    evaluation: float
    step: dict[str, float]

    def estimate(self, comparison: Comparison) -> float:
        """Seconds of all runs; what the runs of a seed have in common counts once."""
        total = self.data
        for config, n in comparison.common():
            total += self.evaluation if n < 0 else 0  # of the base model
            for name in config.recipe[max(0, n) :]:
                steps = getattr(config.stage, section_of(name)).steps
                total += steps * self.step[short(name)] + self.evaluation
        return len(comparison.seeds) * total


def measure(whole: Comparison, console: Console) -> Speed:
    """Time data and base evaluation, which stay for the comparison, and a few steps per stage."""
    seed = whole.seeds[0]

    def timed(name: str, *settings: str) -> tuple[Path, dict[str, float]]:
        config = with_overrides(whole.config, [f"seed={seed}", *settings])
        out = whole.folder / "budget" / name / f"seed{seed}"
        saved = out / "config.yaml"
        same = saved.is_file() and not changed_keys(saved, config)
        if not (same and (out / "results.json").is_file()):  # half a measurement tells no time
            shutil.rmtree(out, ignore_errors=True)
            begin(config, out, whole.folder)
            run_recipe(config, out, console)
        return out, read_json(out / "results.json")["seconds"]

    console.rule("how fast is it here? data and base of the first seed, which the comparison keeps")
    _, base = timed("base", "recipe=[]")
    console.rule(f"trial of {PROBE_STEPS} steps a stage, to time them: no part of the comparison")
    short = [f"stage.{section_of(name)}.steps={PROBE_STEPS}" for name in whole.stages]
    unmeasured = ["eval.episodes=0", "eval.states=0", "eval.pairs=0"]
    out, probe = timed("steps", f"recipe={','.join(whole.stages) or '[]'}", *short, *unmeasured)
    step = {}
    for key, rows in read_metrics(out).items():
        times = [row["time"] for row in rows]
        step[key.partition("-")[2]] = statistics.median(b - a for a, b in pairwise(times))
    data = sum(base.get(part, 0) for part in ("collect", "pairs")) + probe.get("reflections", 0)
    console.rule("end of the trial")
    return Speed(data, base.get("evaluate", 0.0), step)


def sizes(whole: Comparison) -> Iterator[Size]:
    """From everything to the least that is still a comparison, in the order of cutting."""
    rows, seeds = [recipe.name for recipe in whole.recipes], list(whole.seeds)
    for share in (1, 3 / 4, 1 / 2):
        yield Size(tuple(rows), tuple(seeds), share)
    while len(seeds) > 3:
        seeds.pop()
        yield Size(tuple(rows), tuple(seeds), share)
    while len(rows) > 2:
        rows.remove([name for name in rows if name != whole.baseline][-1])
        yield Size(tuple(rows), tuple(seeds), share)
    for share in (1 / 4, 1 / 8):
        yield Size(tuple(rows), tuple(seeds), share)
    while len(seeds) > 1:
        seeds.pop()
        yield Size(tuple(rows), tuple(seeds), share)


def choose(whole: Comparison, speed: Speed, seconds: float) -> tuple[Size, float]:
    """The first size that fits, and the seconds that it will take."""
    for size in sizes(whole):
        need = MARGIN * speed.estimate(size.of(whole))
        if need <= seconds:
            return size, need
    raise UserError(
        f"--budget: even {len(size.rows)} rows, one seed and {size.share:.0%} of the steps take "
        f"about {need / 60:.1f} more minutes; give more time, or lower eval.episodes"
    )


def describe_cuts(whole: Comparison, size: Size) -> str:
    cuts = [f"steps to {size.share:.0%}"] if size.share < 1 else []
    if size.seeds != whole.seeds:
        cuts.append(f"seeds to {', '.join(map(str, size.seeds))}")
    dropped = [recipe.label for recipe in whole.recipes if recipe.name not in size.rows]
    if dropped:
        cuts.append(f"the rows {'; '.join(dropped)}")
    return "cut: " + ", ".join(cuts) if cuts else "nothing is cut"


def fit(whole: Comparison, seconds: float, console: Console) -> Comparison:
    """The largest comparison that fits; decided once per folder, so that it can go on."""
    saved, start = whole.folder / "budget.json", time.monotonic()
    asked = {
        "seconds": seconds,
        "recipes": [[r.name, *r.settings] for r in whole.recipes],
        "seeds": list(whole.seeds),
        "config": to_dict(whole.shared()),
    }
    if saved.is_file():
        known = read_json(saved)
        if changed := differing(known.get("asked", {}), asked):
            raise UserError(
                f"{whole.folder}: was sized for another {changed[0]!r}; choose another --out"
            )
        chosen = known["given"]
        size = Size(tuple(chosen["rows"]), tuple(chosen["seeds"]), chosen["share"])
        shown = "as before"
    elif (whole.folder / "compare.yaml").is_file():
        raise UserError(
            f"{whole.folder}: holds a comparison that was not sized by --budget; leave it out, or "
            "choose another --out"
        )
    else:
        with whole.alone_with(whole.seeds[0]):
            speed = measure(whole, console)
        size, need = choose(whole, speed, seconds - (time.monotonic() - start))
        shown = f"about {need / 60:.1f} minutes"
        write_json(saved, {"asked": asked, "given": asdict(size), "measured": asdict(speed)})
    console.print(f"budget: {shown}; {describe_cuts(whole, size)}", style="bold", highlight=False,
                  soft_wrap=True)  # fmt: skip
    return size.of(whole)
