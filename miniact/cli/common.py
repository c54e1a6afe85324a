"""What the commands share: one-line errors, finding a config, its options and overrides."""

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
    from miniact.config.sections import Config

# How long a waiting thread spins before it sleeps. OpenMP's default (300,000 rounds, milliseconds)
# is up to ten times slower where other work shares the cores; not to spin at all costs 15 %.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

DEFAULT_CONFIG = "household"


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


def find_config(name: str) -> Path:
    """A path, or the name of a config that ships with miniact."""
    if Path(name).is_file():
        return Path(name)
    for folder in (Path("tiny_configs"), Path(__file__).parents[2] / "tiny_configs"):
        file = folder / f"{name}.yaml"
        if file.is_file():
            return file
    stem = Path(name).name.removesuffix(".yaml")  # not Path.stem: names hold dots
    shipped = Path(__file__).parents[1] / "tiny_configs" / f"{stem}.yaml"
    if shipped.is_file():
        return shipped
    raise UserError(
        f"{name}: no such config file; expected a YAML file or the name of a shipped one"
    )


def config_options(command: Callable) -> Callable:
    """CONFIG, key=value overrides and the shorthands that most commands share."""
    options = [
        click.argument("arguments", nargs=-1, metavar="[CONFIG] [KEY=VALUE]..."),
        click.option("--seed", type=int, help="Shorthand for seed=…"),
        click.option(
            "--backend", type=click.Choice(["auto", "torch", "mlx"]), help="Who computes."
        ),
        click.option("--skip-bad-rows", is_flag=True, help="Count malformed rows and go on."),
    ]
    return functools.reduce(lambda f, option: option(f), reversed(options), command)


def read_config(
    arguments: tuple[str, ...],
    seed: int | None,
    backend: str | None,
    skip_bad_rows: bool,
    *more: str,
) -> Config:
    from miniact.config.sections import load_config

    names = [a for a in arguments if "=" not in a]
    if len(names) > 1:
        raise UserError(f"{names[1]!r}: expected one CONFIG, then key=value overrides")
    overrides = [a for a in arguments if "=" in a]
    overrides += [f"seed={seed}"] if seed is not None else []
    overrides += [f"model.backend={backend}"] if backend else []
    overrides += ["env.skip_bad_rows=true"] if skip_bad_rows else []
    return load_config(find_config(names[0] if names else DEFAULT_CONFIG), [*overrides, *more])


def fresh_folder(config: Config, name: str) -> Path:
    base = Path("runs") / f"{config.env.name}-{name}-seed{config.seed}"
    path, number = base, 1
    while (path / "results.json").exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path
