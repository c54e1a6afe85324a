"""What the commands share: one-line errors; from CONFIG, KEY=VALUE and options to one config."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miniact import Interrupted, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from miniact.config import Config

# How long a waiting thread spins before it sleeps. OpenMP's default (300,000 rounds, milliseconds)
# is up to ten times slower where other work shares the cores; not to spin at all costs 15 %.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Lengths change from batch to batch: segments that grow keep CUDA's memory from falling to pieces.
if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

DEFAULT_CONFIG = "household"


def terminal() -> Console:
    from rich.console import Console

    return Console()


def friendly(command: Callable) -> Callable:
    """Show a UserError as one line (exit code 2) and Ctrl-C as a saved stop (exit code 130)."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            click.echo(f"miniact: {error}", err=True)
            sys.exit(2)
        except OSError as error:
            if not error.filename:
                raise
            where = f"{error.filename}: {error.strerror}; mend it, or choose another place"
            click.echo(f"miniact: {where}", err=True)
            sys.exit(2)
        except (Interrupted, KeyboardInterrupt) as stop:
            how = "the same command goes on" if "recipes" in kwargs else str(stop)
            click.echo(f"\nminiact: stopped{'; ' if how else ''}{how}", err=True)
            sys.exit(130)

    return wrapped


SHORTHANDS = {  # option: the key that it writes, and what --help says of it
    "--seed": ("seed", "Every random choice follows from it"),
    "--backend": ("model.backend", "Who computes: auto, torch or mlx"),
    "--skip-bad-rows": ("env.skip_bad_rows", "Count malformed rows and go on"),
    "--recipe": ("recipe", "Stages in order, for example act,il,rl"),
    "--adapter": ("model.start", "PEFT adapter folder to start from"),
    "--trajectories": ("env.trajectories", "Expert trajectories: .jsonl, .parquet or a dataset"),
    "--pairs": ("pairs.file", "An existing pairs.jsonl"),
}
COMMON = ("--seed", "--backend", "--skip-bad-rows")


def takes_config(*shorthands: str, must: bool = False) -> Callable[[Callable], Callable]:
    """Hand a command one checked `config`: CONFIG, then KEY=VALUE, then options that write a key.

    must: without CONFIG the command lists what ships; else it takes the default. With --resume
    there is no config to read: the command gets None.
    """
    names = {flag: flag[2:].replace("-", "_") for flag in shorthands}

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def wrapped(arguments: tuple[str, ...], **options: Any) -> Any:
            given = {SHORTHANDS[flag][0]: options.pop(name) for flag, name in names.items()}
            settings = [
                f"{key}={v}" for key, v in given.items() if v is not None and v is not False
            ]
            if options.get("resume"):
                if arguments or settings or options["out"]:
                    raise UserError("--resume takes its config from the folder; pass nothing else")
                return command(config=None, **options)
            if must and all("=" in a for a in arguments):
                click.echo(list_configs())
                sys.exit(2)
            return command(config=_read_config(arguments, settings), **options)

        result = friendly(wrapped)
        for flag in reversed(shorthands):
            key, text = SHORTHANDS[flag]
            is_flag = flag == "--skip-bad-rows"
            result = click.option(flag, is_flag=is_flag, help=f"{text} ({key}).")(result)
        return click.argument("arguments", nargs=-1, metavar="[CONFIG] [KEY=VALUE]...")(result)

    return decorate


def _read_config(arguments: tuple[str, ...], settings: list[str]) -> Config:
    from miniact.config import load_config

    names = [a for a in arguments if "=" not in a]
    if len(names) > 1:
        raise UserError(f"{names[1]!r}: expected one CONFIG, then key=value overrides")
    overrides = [a for a in arguments if "=" in a]
    return load_config(names[0] if names else DEFAULT_CONFIG, [*overrides, *settings])


def fresh_folder(config: Config) -> Path:
    """A folder under runs/ for this config; a run of it that was interrupted goes on there."""
    from miniact.config.plugins import short
    from miniact.experiments.start import unchangeable

    stages = "-".join(map(short, config.recipe)) or "base"
    base = Path("runs") / f"{short(config.env.name)}-{stages}-seed{config.seed}"
    path, number = base, 1
    while (path / "results.json").exists() or unchangeable(config, path):
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


def list_configs() -> str:
    """What ships, a line each, for a command that got no CONFIG."""
    from miniact.config.load import shipped

    lines = [f"  {name:<22}{about}" for name, about in shipped().items()]
    return "\n".join([
        "Which CONFIG? A YAML file of yours, or one that ships:", "", *lines, "",
        f"To begin with: miniact run {DEFAULT_CONFIG}",
    ])  # fmt: skip
