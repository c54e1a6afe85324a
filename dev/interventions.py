"""Does a critic's choice follow from its reasoning? The paper's analysis, for every stage of runs.

    python dev/interventions.py runs/cmp/runs/act-il-rl/seed* --questions 200

For the base model and after every stage: judgement on held-out pairs with free reasoning, with it
removed, and with a wrong one put into the critic's mouth (evaluation/intervene.py). Prints a table
in Markdown: mean ± standard deviation over the runs, in percent.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from miniact.backends.protocol import load_policy
from miniact.cli.common import friendly
from miniact.config import load_config
from miniact.evaluation.evaluate import HeldOut, judgement_accuracy
from miniact.evaluation.rates import percent
from miniact.method.pairs import questions, read_pairs
from miniact.method.prompts import Prompter
from miniact.runs.folder import number_of
from miniact.runs.progress import Bar

KINDS = {"none": "free", "remove": "removed", "wrong": "wrong"}


def measured(run: Path, asked_most: int, console: Console) -> dict[str, dict[str, float]]:
    """Stage → {kind of intervention: judgement accuracy, "followed": wrong rationale followed}."""
    config = load_config(run / "config.yaml", saved=True)
    policy = load_policy(config.model, config.seed_for("lora"))
    prompter = Prompter(policy.tokenizer, config.prompt)
    pairs = [pair for pair in read_pairs(run / "pairs.jsonl") if pair.split != "train"]
    evaluation = replace(config.eval, judge_thinking=True, pairs=asked_most)
    seed = config.seed_for("eval")
    asked = HeldOut.draw((), (), questions(pairs, config.pairs.choices), evaluation, seed).questions
    adapters = sorted(run.glob("stages/*/adapter"), key=lambda p: number_of(p.parent.name))
    results: dict[str, dict[str, float]] = {}
    with Bar(console, str(run)) as bar:
        bar.start((1 + len(adapters)) * len(KINDS))
        for adapter in [None, *adapters]:
            if adapter:
                policy.load_adapter(adapter)
            row = results.setdefault(adapter.parent.name if adapter else "base", {})
            for kind in KINDS:
                how = replace(evaluation, intervene=kind)
                judged = judgement_accuracy(policy, prompter, asked, how, seed)
                row[kind] = judged["accuracy"]["value"]
                if kind == "wrong":
                    row["followed"] = judged["followed"]["value"]
                bar.advance()
    return results


def cell(values: list[float]) -> str:
    spread = f" ± {percent(statistics.stdev(values), digits=0)}" if len(values) > 1 else ""
    return f"{percent(statistics.mean(values), digits=0)}{spread}"


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--questions", "most", default=200, show_default=True, help="Held-out pairs asked.")
@friendly
def main(runs, most):  # type: ignore[no-untyped-def]
    """Print the table of interventions for finished RUNS of one recipe."""
    console = Console(stderr=True)
    results = [measured(run, most, console) for run in runs]
    print("| after | free | removed | wrong | wrong one followed |\n|---|---:|---:|---:|---:|")
    for stage in results[0]:
        cells = [cell([r[stage][kind] for r in results]) for kind in (*KINDS, "followed")]
        print(f"| {stage} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
