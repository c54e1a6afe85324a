"""`miniact compare`: recipes × seeds in one folder, and one table of all.

    compare.yaml                       the config that all runs share
    runs/<recipe>/seed<k>/             one ordinary run folder each
    comparison.json, comparison.md     the table

What runs of one seed have in common is made once. A new run begins with what a sibling has done:
trajectories, pairs, and the longest common prefix of the two recipes, evaluations included. A step
that is done is a file that exists, so the pipeline just goes on behind them, and ends with the same
bytes as a run that did everything itself. Going on after a kill is the same command.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from miniact import UserError
from miniact.config import Config, load_config
from miniact.config.load import changed_keys, to_dict, with_limits_of, with_overrides
from miniact.config.plugins import section_of, short
from miniact.experiments.pipeline import environment, run_recipe, steps, write_config
from miniact.experiments.recipes import Recipe, parse_recipes, parse_seeds
from miniact.experiments.settle import settled
from miniact.experiments.start import check_code, first_number
from miniact.experiments.table import build, print_comparison, write_comparison
from miniact.runs.files import keep_rows, read_json, whole_folder, write_json, write_text
from miniact.runs.folder import explain_full_disk, locked

DATA = ("seed", "model", "prompt", "env", "pairs")  # sections that trajectories and pairs depend on
DATA_FILES = ("trajectories.jsonl", "pairs.jsonl", "pairs.counts.json")
REFLECTION_FILES = ("reflections.jsonl", "reflections.counts.json")


def same_data(a: Config, b: Config) -> bool:
    """Whether two runs have the same trajectories and pairs."""
    alike = all(getattr(a, section) == getattr(b, section) for section in DATA)
    return alike and a.eval.splits == b.eval.splits


def common_stages(a: Config, b: Config) -> int:
    """How many stages two runs have in common, from the first on; −1: not even the base model.

    A stage depends on all stages before it and on its place in the recipe, which seeds it.
    """
    if not same_data(a, b) or a.eval != b.eval:
        return -1
    n = 0
    for mine, other in zip(a.recipe, b.recipe):
        section = section_of(mine)
        if mine != other or getattr(a.stage, section) != getattr(b.stage, section):
            break
        n += 1
    return n


def stage_keys(run: Path, config: Config) -> list[str]:
    """What the folders of the base model and of every stage of a run are called, in order."""
    return [f"{k}-{short(name)}" for k, name, _ in steps(config, first_number(config, run))]


def done_stages(run: Path, config: Config) -> int:
    """How many stages of a run are trained and evaluated; −1: the base model is not either."""
    stages = -1
    for key in stage_keys(run, config):
        folder, base = run / "stages" / key, key.startswith("0-")
        if not (folder / "eval.json").is_file() or not (base or (folder / "adapter").is_dir()):
            return stages
        stages += not base or stages < 0
    return stages


def _link(source: str | Path, target: str | Path) -> None:
    """One copy on the disk where links work. Run folders replace whole files, never parts."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _take(name: str, source: Path, target: Path) -> None:
    """Link the file or the folder `name` of one run into another, if it is there."""
    if (source / name).is_dir():
        shutil.copytree(source / name, target / name, copy_function=_link)
    elif (source / name).is_file():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        _link(source / name, target / name)


def begin(config: Config, out: Path, comparison: Path) -> str:
    """Begin run folder `out` with what other runs of its seed have done; returns what that was."""
    sharing: dict[str, Path] = {}  # file → the run that has it
    best, source = -1, None
    for sibling in siblings(comparison, config.seed):
        other = load_config(sibling / "config.yaml", saved=True)
        n = min(common_stages(config, other), done_stages(sibling, other))
        if n > best:
            best, source = n, sibling
        if same_data(config, other):
            files: tuple[str, ...] = DATA_FILES
            if config.stage.reflect == other.stage.reflect:
                files += REFLECTION_FILES
            sharing = {name: sibling for name in files if (sibling / name).is_file()} | sharing
    if not sharing:
        return ""
    with explain_full_disk(out), whole_folder(out) as part:
        for name, sibling in sharing.items():
            _take(name, sibling, part)
        if source:
            keys = stage_keys(source, config)
            _share_stages(keys[: len(keys) - len(config.recipe) + best], source, part)
        write_config(config, part)
    done = " → ".join(["base", *map(short, config.recipe[:best])]) if source else "data"
    return f"{done} of {(source or next(iter(sharing.values()))).parent.name}"


def _share_stages(keys: list[str], source: Path, target: Path) -> None:
    """Link the base evaluation and the first stages, and copy what was logged of them."""
    for key in keys:
        for name in (f"stages/{key}", f"tensorboard/{key}", f"samples/{key}.jsonl"):
            _take(name, source, target)
    _take("metrics.jsonl", source, target)
    keep_rows(target / "metrics.jsonl", lambda row: row["stage"] in keys)  # a file of its own again
    seconds: dict[str, float] = {}
    for file in (source / "shared.json", source / "results.json"):
        if file.is_file():
            seconds |= read_json(file).get("seconds", {})
    seconds = {part: s for part, s in seconds.items() if part in ("collect", "pairs", *keys)}
    trained = [key for key in keys if not key.startswith("0-")]
    shared = {"run": source.parent.name, "stages": trained, "seconds": seconds}
    write_json(target / "shared.json", shared)


def siblings(folder: Path, seed: int) -> list[Path]:
    """All runs of a seed in a comparison's folder, those that measured its speed included."""
    patterns = (f"{part}/*/seed{seed}/config.yaml" for part in ("runs", "budget"))
    return sorted(file.parent for pattern in patterns for file in folder.glob(pattern))


@dataclass(frozen=True)
class Comparison:
    """Recipes × seeds over one config, in one folder. `baseline`: the name of a recipe."""

    folder: Path
    config: Config
    recipes: tuple[Recipe, ...]
    seeds: tuple[int, ...]
    baseline: str

    @property
    def stages(self) -> list[str]:
        """Every stage that occurs, once."""
        return list(dict.fromkeys(s for recipe in self.recipes for s in recipe.stages))

    def configs(self, seed: int) -> dict[str, Config]:
        """Recipe name → the config of its run."""
        configs = {}
        for recipe in self.recipes:
            try:
                settings = [*recipe.settings, f"seed={seed}"]
                configs[recipe.name] = with_overrides(self.config, settings)
            except UserError as error:
                raise UserError(f"--recipes: {recipe.name}: {error}") from None
        return configs

    def common(self) -> Iterator[tuple[Config, int]]:
        """Each row's config, and how many stages it has in common with some row before it."""
        before: list[Config] = []
        for config in self.configs(self.seeds[0]).values():
            yield config, max([-1, *(common_stages(config, other) for other in before)])
            before.append(config)

    def check_rows(self) -> None:
        """UserError for a row that is no recipe, and for a folder that is no comparison's."""
        if (self.folder / "config.yaml").is_file():
            raise UserError(f"{self.folder}: holds a run, not a comparison; choose another --out")
        self.configs(self.seeds[0])

    def check(self) -> None:
        """Everything that can be wrong, before hours of work. Changes nothing.

        Raises UserError as `check_rows`, and where results in the folder cannot stand in one table
        with these, naming the key that differs.
        """
        self.check_rows()
        whole = self.folder / "compare.yaml"
        if whole.is_file() and (changed := changed_keys(whole, self.shared())):
            raise UserError(
                f"{self.folder}: holds a comparison whose {changed[0]!r} differs; its runs cannot "
                "stand in one table with these: choose another --out"
            )
        for seed in self.seeds:
            for name, config in self.configs(seed).items():
                out = self.path(name, seed)
                saved = out / "config.yaml"
                if not (out / "results.json").is_file():
                    check_code(config)
                if saved.is_file() and (changed := changed_keys(saved, config)):
                    raise UserError(
                        f"{out}: was run with another {changed[0]!r} than this row asks for; give "
                        "the row another name, or choose another --out"
                    )

    def shared(self) -> Config:
        """What all runs share."""
        return replace(self.config, seed=0, recipe=[])

    def longest_run(self) -> Config:
        """One run that has every stage that occurs: what fits it fits all."""
        return replace(self.config, recipe=self.stages)

    def amount(self) -> str:
        """How much there is to do, in words."""
        seeds = len(self.seeds)
        stages = seeds * sum(len(config.recipe) - max(0, n) for config, n in self.common())
        return (
            f"{seeds * len(self.recipes)} runs; {stages} stages to train, common ones once; the "
            "plan of one run that has them all:"
        )

    def path(self, name: str, seed: int) -> Path:
        return self.folder / "runs" / name / f"seed{seed}"

    def run(self, console: Console) -> list[tuple[str, int, str]]:
        """Run whatever is not done. Returns (recipe, seed, why) of what failed; the rest goes on.

        Other processes may work on other seeds in the same folder meanwhile.
        """
        failed = []
        for seed in self.seeds:
            with self.alone_with(seed):
                for recipe, config in zip(self.recipes, self.configs(seed).values()):
                    try:
                        self._run_one(recipe, config, console)
                    except (UserError, RuntimeError, OSError) as error:  # also: out of memory
                        reason = " ".join((str(error) or repr(error)).split())[:300]
                        failed.append((recipe.name, seed, reason))
                        console.print(f"failed: {reason}", highlight=False, markup=False)
        return failed

    def alone_with(self, seed: int) -> AbstractContextManager[None]:
        """Keep other processes from this seed; UserError if one is at work on it."""
        return locked(
            self.folder / f".seed{seed}.lock",
            f"{self.folder}: another miniact compares seed {seed} in this folder; wait for it, or "
            "take other --seeds",
        )

    def _run_one(self, recipe: Recipe, config: Config, console: Console) -> None:
        out = self.path(recipe.name, config.seed)
        if (out / "results.json").is_file():
            return
        taken = "" if out.exists() else begin(config, out, self.folder)
        number = 1 + self.seeds.index(config.seed) * len(self.recipes) + self.recipes.index(recipe)
        shown = f"; begins with {taken}" if taken else ""
        total = len(self.seeds) * len(self.recipes)
        console.rule(f"{number}/{total}: {recipe.label}, seed {config.seed}{shown}")
        run_recipe(config, out, console)


def choose_baseline(name: str | None, recipes: Sequence[Recipe]) -> str:
    names = [recipe.name for recipe in recipes]
    if name is None:
        return "il" if "il" in names else names[0]
    if name not in names:
        raise UserError(f"--baseline: {name!r} is not one of the recipes: {', '.join(names)}")
    return name


def planned(
    config: Config, out: str | Path, recipes: str, seeds: str, baseline: str | None
) -> Comparison:
    """A comparison from words: recipes as in --recipes, seeds as in --seeds. Runs nothing."""
    known = Path(out) / "compare.yaml"
    config = with_limits_of(load_config(known, saved=True), config) if known.is_file() else config
    config = settled(config)
    rows = parse_recipes(recipes, config)
    chosen = choose_baseline(baseline, rows)
    return Comparison(Path(out), config, tuple(rows), tuple(parse_seeds(seeds)), chosen)


def compare(
    config: Config,
    out: str | Path,
    recipes: str = "default",
    seeds: str = "0-4",
    baseline: str | None = None,
) -> dict[str, Any]:
    """What `miniact compare` does, in one call; returns what comparison.json holds."""
    run_comparison(planned(config, out, recipes, seeds, baseline), Console())
    return read_json(Path(out) / "comparison.json")


def run_comparison(comparison: Comparison, console: Console) -> None:
    """Run what is missing, then write and print the table.

    Raises UserError when runs failed, after the table of the others was written.
    """
    folder = comparison.folder
    comparison.check()
    if not (folder / "compare.yaml").is_file():
        shared = yaml.safe_dump(to_dict(comparison.shared()), sort_keys=False, allow_unicode=True)
        write_text(folder / "compare.yaml", shared)
        write_json(folder / "environment.json", environment(comparison.config))
    failed = comparison.run(console)
    incomplete = {name for name, _, _ in failed}
    labels = {r.name: r.label for r in comparison.recipes if r.name not in incomplete}
    if labels:
        table = build(folder, labels, comparison.seeds, comparison.baseline)
        write_comparison(folder, table)
        print_comparison(table, console)
        console.print(f"\n{folder}: comparison.json, comparison.md")
        console.print(f"as one page: miniact report {folder}", highlight=False, soft_wrap=True)
    if failed:
        name, seed, reason = failed[0]
        raise UserError(
            f"{len(failed)} runs failed, so their rows are missing; the first is {name}, seed "
            f"{seed}: {reason}"
        )
