"""Commands beside training: cost and speed, logs, games, the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from miniact.cli.common import COMMON, friendly, takes_config, terminal

if TYPE_CHECKING:
    from miniact.config import Config


@click.command()
@takes_config(*COMMON)
@click.option("--gpu", metavar="CARD", help="For a card not here: 4090, a100-80, m3-16, 24GB.")
def plan(config: Config, gpu: str | None) -> None:
    """Estimate memory and time of a config before anything is loaded."""
    from miniact.experiments.settle import settled
    from miniact.tools.plan import make_plan, print_plan

    config = settled(config, terminal())
    print_plan(config, make_plan(config, gpu), terminal())


@click.command()
@takes_config("--backend")
@click.option("--json", "as_json", is_flag=True, help="For a bug report.")
def doctor(config: Config, as_json: bool) -> None:
    """Examine this machine: versions, what works on its device, how fast. Exit code 1: not all.

    The device is that of CONFIG; model.device=cuda:1 asks for another.
    """
    from miniact.tools.doctor import diagnose, print_report, to_json

    report = diagnose(config.model)
    if as_json:
        click.echo(to_json(report))
    else:
        print_report(report, terminal())
    if not report.ok:
        raise SystemExit(1)


@click.command("import")
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--format", "form", help="The kind of log (default: found; docs/logs.md has all).")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="trajectories.jsonl")
@click.option(
    "--success",
    metavar="FIELD[>X]",
    help="The field that tells success, dots for inner ones; none: no field does.",
)
@click.option(
    "--heldout-share",
    default=0.0,
    show_default=True,
    help="Share of the tasks to hold out; 0: as the log says, or all train.",
)
@click.option("--system-prompt", is_flag=True, help="Keep system messages, in front of the task.")
@click.option(
    "--keep-final-answer", is_flag=True, help="Texts after the last call are actions too."
)
@click.option("--opening", type=int, help="Leave out that many turns at the start of every row.")
@click.option("--code-block", is_flag=True, help="The one code block of a reply is its action.")
@click.option("--no-images", is_flag=True, help="Leave out rows with actions on images alone.")
@click.option(
    "--repeats",
    type=click.Choice(["longest", "once", "keep"]),
    default="longest",
    show_default=True,
    help="Rows that a longer row repeats: leave them out; equal ones too; keep all.",
)
@click.option("--skip-bad-rows", is_flag=True, help="Count malformed rows and go on.")
@friendly
def import_command(files, form, out, heldout_share, **options):  # type: ignore[no-untyped-def]
    """Convert logs of an agent, published or your own, to expert trajectories.

    FILES: JSON lines, documents, lists, .gz, .parquet, or folders of them. The format is found.
    """
    from miniact.data.importing import Options, convert

    report = convert(list(files), form, out, heldout_share, Options(**options))
    report.write(out)
    click.echo(f"{report.text()}\n{out}")


@click.command("alfworld-games")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of games.")
@click.option("--train", default=200, show_default=True, help="Games of split train.")
@click.option("--seen", default=40, show_default=True, help="Games of split valid_seen.")
@click.option("--unseen", default=40, show_default=True, help="Games of split valid_unseen.")
@click.option("--seed", default=0, show_default=True)
@friendly
def alfworld_games(out: Path, train: int, seen: int, unseen: int, seed: int) -> None:
    """Generate solvable ALFWorld games, in the package's own tree."""
    from miniact.envs.alfworld.games import generate

    wanted = {"train": train, "valid_seen": seen, "valid_unseen": unseen}
    written = generate(out, wanted, seed)
    click.echo(f"{', '.join(f'{k} {v}' for k, v in written.items())} written: {out}")


@click.command()
@takes_config("--backend", "--skip-bad-rows")
@click.option(
    "--recipes",
    default="default",
    show_default=True,
    help='For example "il; act,il,rl; long: il stage.il.steps=870"; default: the paper\'s rows.',
)
@click.option("--seeds", default="0-4", show_default=True, help="Ranges and numbers: 0-4, 0,2,7.")
@click.option(
    "--baseline", help="Row that the others are compared with (default: il, else the first)."
)
@click.option(
    "--budget", help="Cut steps, seeds and rows, the last first, until it fits: 90s, 30m, 2h."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Comparison folder.")
@click.option("--force", is_flag=True, help="Run even if the plan says that it cannot fit.")
def compare(  # noqa: PLR0913
    config: Config,
    recipes: str,
    seeds: str,
    baseline: str | None,
    budget: str | None,
    out: Path,
    force: bool,
) -> None:
    """Compare recipes over seeds: common parts are run once, the same command goes on after a kill.

    Ends with one table: mean ± std over seeds, 95 % intervals, differences to the baseline.
    """
    from miniact.experiments.budget import fit, parse_budget
    from miniact.experiments.compare import planned, run_comparison
    from miniact.tools.plan import check_fits

    asked = planned(config, out, recipes, seeds, baseline)
    limit, console = parse_budget(budget) if budget else None, terminal()
    (asked.check_rows if limit else asked.check)()
    console.print(asked.amount(), highlight=False, soft_wrap=True)
    check_fits(asked.longest_run(), console, force)
    run_comparison(fit(asked, limit, console) if limit else asked, console)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="File (default: FOLDER/report.html).")
@friendly
def report(folder: Path, out: Path | None) -> None:
    """Write one HTML page of a run or of a comparison: results, curves, samples, episodes."""
    from miniact.tools.report.page import write_html

    click.echo(write_html(folder, out))


COMMANDS = [plan, doctor, import_command, alfworld_games, compare, report]
