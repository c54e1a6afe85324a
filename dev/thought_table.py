"""What is thought after every stage, over the seeds of one recipe, as a table in Markdown.

    python dev/thought_table.py runs/cmp/runs/act-il-rl/seed*
    python dev/thought_table.py runs/cmp/runs/act-il-rl/seed* --before act

For each kind of sentence (envs/household_facts.py) its share of all, and behind the dot how many of
that kind are true: means over the runs, in percent, ± the standard deviation of the share.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import click
from interventions import cell

from miniact import UserError
from miniact.cli.common import friendly
from miniact.evaluation.rates import percent
from miniact.runs.files import read_json
from miniact.runs.folder import number_of

LEAST = 0.01  # a kind that is rarer everywhere gets no row
Thoughts = dict[str, Any]


def read(run: Path, before: str) -> dict[str, Thoughts]:
    """Stage → its thoughts in eval.json; of the two measurements of the base that which thinks."""
    stages = sorted(run.glob("stages/*/eval.json"), key=lambda f: number_of(f.parent.name))
    thoughts = {file.parent.name: read_json(file).get("thoughts", {}) for file in stages}
    if "0-base-thinking" in thoughts:
        thoughts.pop("0-base", None)
    return {stage: measured[before] for stage, measured in thoughts.items() if before in measured}


def kind_cell(of_stage: list[Thoughts], kind: str) -> str:
    """Its share of the sentences in all runs, 0 where it never occurs, and how many are true."""
    shares = [thoughts["kinds"].get(kind, {}).get("share", 0.0) for thoughts in of_stage]
    known = [thoughts["kinds"][kind] for thoughts in of_stage if kind in thoughts["kinds"]]
    true = [entry["true"]["value"] for entry in known if entry["true"]["value"] is not None]
    of_these = f" · {percent(statistics.fmean(true), digits=0)}" if true else ""
    return cell(shares) + of_these


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--before", type=click.Choice(["judge", "act"]), default="judge", show_default=True)
@friendly
def main(runs, before):  # type: ignore[no-untyped-def]
    """Print the table of what is thought in finished RUNS, before a choice or an action."""
    measured = [read(run, before) for run in runs]
    stages = [stage for stage in measured[0] if all(stage in of_run for of_run in measured)]
    if not stages:
        raise UserError(f"{runs[0]}: no thoughts were measured there; expected a model that thinks")
    columns = {stage: [of_run[stage] for of_run in measured] for stage in stages}
    kinds = dict.fromkeys(k for group in columns.values() for t in group for k in t["kinds"])
    print(f"| | {' | '.join(stages)} |\n|---|{'---:|' * len(stages)}")
    for label, key in (("true", "true"), ("the answer follows", "follows")):
        cells = [cell([t[key]["value"] for t in group]) for group in columns.values()]
        print(f"| {label} | {' | '.join(cells)} |")
    for kind in kinds:
        if any(
            t["kinds"].get(kind, {}).get("share", 0) >= LEAST for g in columns.values() for t in g
        ):
            cells = [kind_cell(group, kind) for group in columns.values()]
            print(f"| {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
