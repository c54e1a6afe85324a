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
        except (Interrupted, KeyboardInterrupt):
            out = kwargs.get("out") or kwargs.get("resume")
            same = "; the same command goes on" if "recipes" in kwargs else ""
            where = same or (f"; go on with: miniact run --resume {out}" if out else "")
            click.echo(f"\nminiact: stopped{where}", err=True)
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


def takes_config(*shorthands: str) -> Callable[[Callable], Callable]:
    """Hand a command one checked `config`: CONFIG, then KEY=VALUE, then options that write a key.

    With --resume there is no config to read: the command gets None.
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


def fresh_folder(config: Config, name: str) -> Path:
    from miniact.config.plugins import short

    base = Path("runs") / f"{short(config.env.name)}-{name}-seed{config.seed}"
    path, number = base, 1
    while (path / "results.json").exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path
