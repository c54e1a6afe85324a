"""What can be wrong with a run, told in the first second: before torch is imported.

Nothing is made here. A folder in which a start failed is not lost: it takes another config as long
as nothing in it depends on what has changed.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from rich.console import Console

from miniact import UserError, method
from miniact.backends.common import check_scale, weight_file
from miniact.backends.models import find_model
from miniact.config import Config
from miniact.config.load import changed_keys
from miniact.config.plugins import named, resolve, short
from miniact.data.containers import ENDINGS
from miniact.envs import check_env
from miniact.method.wording import Wording
from miniact.runs.files import read_json
from miniact.runs.loggers import check_loggers

_PLAYED = ("seed", "env.", "eval.splits")
DEPENDS = {  # a file of a run → the keys that it depends on
    "trajectories.jsonl": _PLAYED,
    "pairs.jsonl": (*_PLAYED, "model.", "prompt.", "pairs."),
    "reflections.jsonl": (*_PLAYED, "model.", "prompt.", "pairs.", "stage.reflect."),
    "stages/*/*": ("",),  # what is trained or measured depends on everything
}

_WRITE_PROMPTS = ("prompts.py", "chat.py", "template.py", "quoting.py", "wording*")


def origin(config: Config) -> dict[str, str]:
    """Digests of what a run's figures depend on and its config does not tell.

    How prompts are written, and the weights of a base that ships with miniact.
    """
    room = Path(method.__file__).parent
    files = {"prompts": sorted(file for name in _WRITE_PROMPTS for file in room.glob(name))}
    if config.model.path.startswith("builtin:"):
        files["base"] = sorted(Path(find_model(config.model.path).path).glob("*.safetensors"))
    return {
        what: hashlib.sha256(b"".join(map(Path.read_bytes, parts))).hexdigest()[:12]
        for what, parts in files.items()
    }


def begun_otherwise(config: Config, out: Path) -> str:
    """A line on a half-done run that began with other prompts, else "".

    Raises UserError if it began with another base of the same name: its adapters fit no other.
    """
    begun = any((out / file).exists() for file in ("pairs.jsonl", "stages"))
    if not begun or (out / "results.json").is_file():
        return ""
    kept = out / "environment.json"
    then = read_json(kept).get("origin", {}) if kept.is_file() else {}
    now = origin(config)
    if then.get("base", now.get("base")) != now.get("base"):
        raise UserError(
            f"{out}: began with another {config.model.path} than this miniact ships; finish it "
            "with the version that began it, or choose another --out"
        )
    if then == now:
        return ""
    return (
        f"{out}: began with an earlier miniact, whose prompts or built-in models may differ: it "
        "goes on, but stages before and after now may not be comparable"
    )


def first_number(config: Config, out: Path) -> int:
    """The number of a recipe's first stage in run folder `out`: 1, or what follows the adapter's.

    The number seeds the stage, so one that goes on from stages/1-il/adapter of another run is what
    it would have been in that run. Runs of before this was so begin with 1 always.
    """
    trained = re.search(r"/stages/(\d+)-[^/]+/adapter$", Path(config.model.start).as_posix())
    older = any((out / "stages").glob("1-*"))
    return 1 if trained is None or older else int(trained[1]) + 1


def announce(config: Config, out: Path, console: Console) -> None:
    """Check a start, and say at once what will be done, and where."""
    check_start(config, out)
    what = " → ".join(map(short, config.recipe)) or "evaluation"
    line = f"{what}, seed {config.seed}; run folder: {out}"
    console.print(line, style="bold", highlight=False, markup=False, soft_wrap=True)


def check_start(config: Config, out: Path) -> None:
    """UserError for what cannot run, or not in folder `out`. Imports what the config names."""
    check_code(config)
    check_files(config, out)
    check_folder(config, out)


def check_code(config: Config) -> None:
    """Import what a config names, and nothing else; UserError for what cannot be used."""
    for where, name in named(config):
        resolve(where, name)
    check_loggers(config.log.to)
    if config.env.name != "none":
        plays = config.eval.episodes or not config.env.trajectories
        check_env(config.env.name, config.env.options, config.eval.splits if plays else ())


def check_files(config: Config, out: Path) -> None:
    """UserError for a file that the config names and that is not there, if it is still needed."""
    model, given, pairs = config.model, config.env.trajectories, config.pairs.file
    find_model(model.path)
    if model.start:
        weight_file(Path(model.start), model.adapter)
        if model.adapter != "full":
            check_scale(Path(model.start), model)
    is_file = given.endswith(ENDINGS) or given.startswith((".", "/", "~"))
    is_file &= not given.startswith("builtin:") and not (out / "trajectories.jsonl").is_file()
    if is_file and not Path(given).is_file():
        raise UserError(f"env.trajectories: no file {given!r}; expected trajectories or a dataset")
    if pairs and not (out / "pairs.jsonl").is_file() and not Path(pairs).is_file():
        raise UserError(f"pairs.file: no file {pairs!r}; expected a pairs.jsonl")


def check_folder(config: Config, out: Path) -> None:
    """UserError for a folder that cannot be written, or that holds something else."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        reason = "cannot be written" if there.is_dir() else "is no folder"
        raise UserError(f"{out}: {there} {reason}; choose another --out")
    if (out / "compare.yaml").is_file():
        raise UserError(f"{out}: holds a comparison, not a run; choose another --out")
    if changed := unchangeable(config, out):
        raise UserError(
            f"{out}: holds a run whose {changed[0]!r} differs; choose another --out, or go on "
            f"with miniact run --resume {out}"
        )
    if not (out / "config.yaml").is_file() or changed_keys(out / "config.yaml", config):
        Wording(config.prompt)


def unchangeable(config: Config, out: Path) -> list[str]:
    """The keys that differ from those of the run in `out`, and that its files depend on."""
    if not (out / "config.yaml").is_file():
        return []
    depends = tuple(key for file, keys in DEPENDS.items() if any(out.glob(file)) for key in keys)
    return [key for key in changed_keys(out / "config.yaml", config) if key.startswith(depends)]
