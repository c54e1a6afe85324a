"""The command line. Imports inside the commands are lazy, so that --help answers at once."""

from __future__ import annotations

from pathlib import Path

import click

from miniact import UserError, __version__
from miniact.cli import tools as cli_tools
from miniact.cli.common import config_options, fresh_folder, friendly, read_config


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Agentic Critical Training: teach an agent to tell the better action, then let it act.

    CONFIG is a YAML file or the name of one in tiny_configs/ (default: household).
    KEY=VALUE overrides any field, for example stage.act.steps=50.
    """


@main.command()
@config_options
@click.option("--recipe", help="Stages in order, for example act,il,rl.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder (default: under runs/).")
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with this run folder.")
@click.option("--force", is_flag=True, help="Run even if the plan says that it cannot fit.")
@friendly
def run(  # type: ignore[no-untyped-def]  # noqa: PLR0913
    arguments, seed, backend, skip_bad_rows, recipe, out, resume, force
):
    """Train and evaluate a whole recipe (default: il,act,rl), after a plan of what it takes."""
    from rich.console import Console

    from miniact.experiments.pipeline import resume_run, start_run
    from miniact.tools.plan import check_fits

    if resume:
        if arguments or recipe or out or seed is not None:
            raise UserError("--resume takes its config from the folder; pass nothing else")
        resume_run(resume, Console())
        return
    more = [f"recipe={recipe}"] if recipe is not None else []
    config = read_config(arguments, seed, backend, skip_bad_rows, *more)
    out = out or fresh_folder(config, "-".join(config.recipe) or "base")
    check_fits(config, Console(), force)
    start_run(config, out, Console())


def _stage_command(name: str, doc: str) -> None:
    @main.command(name, help=doc)
    @config_options
    @click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder.")
    @click.option("--start", help="PEFT adapter folder to start from.")
    @click.option("--trajectories", help="Expert trajectories: .jsonl, .parquet or a dataset name.")
    @click.option("--pairs", help="An existing pairs.jsonl.")
    @friendly
    def command(  # type: ignore[no-untyped-def]  # noqa: PLR0913
        arguments, seed, backend, skip_bad_rows, out, start, trajectories, pairs
    ):
        from rich.console import Console

        from miniact.experiments.pipeline import start_run

        given = {"model.start": start, "env.trajectories": trajectories, "pairs.file": pairs}
        more = [f"{k}={v}" for k, v in given.items() if v]
        config = read_config(arguments, seed, backend, skip_bad_rows, f"recipe={name}", *more)
        start_run(config, out, Console())


_stage_command("il", "Imitation learning alone: cross-entropy on the expert's actions.")
_stage_command("act", "Critical training alone: GRPO on choices between two actions.")
_stage_command("rl", "RL on actions alone: GRPO on the expert's states.")
_stage_command("reflect", "Early Experience: imitate reflections on tried alternatives.")
_stage_command("choice_sft", "Control: cross-entropy on the right choice, same pairs as act.")
_stage_command("dpo", "Control: direct preference optimisation on the same pairs.")


@main.command()
@config_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write.")
@friendly
def collect(arguments, seed, backend, skip_bad_rows, out):  # type: ignore[no-untyped-def]
    """Write expert trajectories: played by the environment's expert, or imported."""
    from rich.console import Console

    from miniact.experiments.pipeline import collect_to

    collect_to(read_config(arguments, seed, backend, skip_bad_rows), out, Console())


@main.command()
@config_options
@click.option("--trajectories", help="Expert trajectories to make pairs from.")
@click.option("--start", help="PEFT adapter folder of the initial policy.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder.")
@friendly
def pairs(arguments, seed, backend, skip_bad_rows, trajectories, start, out):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Make contrastive pairs: sample what the model would have done instead of the expert."""
    from rich.console import Console

    from miniact.experiments.pipeline import only_pairs

    given = {"model.start": start, "env.trajectories": trajectories}
    more = [f"{k}={v}" for k, v in given.items() if v]
    config = read_config(arguments, seed, backend, skip_bad_rows, *more)
    only_pairs(config, out, Console())


@main.command("eval")
@config_options
@click.option("--adapter", type=click.Path(path_type=Path), help="PEFT adapter (default: none).")
@click.option("--trajectories", help="Held-out expert trajectories to measure on.")
@click.option("--pairs", help="Held-out pairs to measure on.")
@click.option(
    "--policy",
    type=click.Choice(["model", "expert"]),
    default="model",
    help="expert: how far the environment's expert gets, per split; no model is loaded.",
)
@click.option(
    "--intervene",
    type=click.Choice(["none", "remove", "wrong"]),
    help="The critic's reasoning: left alone, removed, or a wrong one put in its place.",
)
@click.option("--suite", help="General reasoning instead: math500,gpqa_diamond or a task's YAML.")
@click.option("--limit", type=int, help="Questions per --suite task, to try it out.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder.")
@friendly
def evaluate(  # type: ignore[no-untyped-def]  # noqa: PLR0913
    arguments,
    seed,
    backend,
    skip_bad_rows,
    adapter,
    trajectories,
    pairs,
    policy,
    intervene,
    suite,
    limit,
    out,
):
    """Measure a model or an adapter on held-out tasks, states and pairs."""
    from rich.console import Console

    given = {
        "model.start": adapter,
        "env.trajectories": trajectories,
        "pairs.file": pairs,
        "eval.intervene": intervene,
    }
    more = [f"{k}={v}" for k, v in given.items() if v]
    more += ["eval.judge_thinking=true"] if intervene in ("remove", "wrong") else []
    config = read_config(arguments, seed, backend, skip_bad_rows, "recipe=[]", *more)
    if policy == "expert":
        from miniact.evaluation.expert import evaluate_expert

        evaluate_expert(config, out, Console())
    elif suite:
        from miniact.evaluation.reasoning import ReasoningOptions, describe, evaluate_reasoning

        options = ReasoningOptions(adapter, limit=limit, seed=config.seed)
        click.echo(describe(evaluate_reasoning(config.model, suite.split(","), out, options)))
    else:
        from miniact.experiments.pipeline import start_run

        start_run(config, out, Console())


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("what", type=click.Choice(["pair", "group", "episode", "results"]))
@click.option("--stage", help="Which stage, for example 2-act (default: the last one).")
@click.option("--number", "-n", default=0, show_default=True, help="Which one, counted from 0.")
@friendly
def show(folder, what, stage, number):  # type: ignore[no-untyped-def]
    """Print a pair, a rollout group, an episode or the results of run FOLDER."""
    from rich.console import Console

    from miniact.tools.play import show_item

    show_item(folder, what, stage, number, Console())


@main.command()
@config_options
@click.option("--adapter", type=click.Path(path_type=Path), help="Watch this policy act instead.")
@click.option("--watch", is_flag=True, help="Watch the config's model act.")
@click.option("--split", default="train", show_default=True)
@click.option("--task", type=int, default=0, show_default=True, help="Which task of the split.")
@friendly
def play(arguments, seed, backend, skip_bad_rows, adapter, watch, split, task):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Act in a world yourself, or watch a policy act."""
    from rich.console import Console

    from miniact.tools.play import play_task

    config = read_config(arguments, seed, backend, skip_bad_rows)
    play_task(config, adapter, watch or adapter is not None, split, task, Console())


@main.command("export")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(["mlx", "merged"]), required=True, help="What to write.")
@click.option("--model", default="", help="The base model, if not the one the adapter names.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder to write.")
@friendly
def export_adapter(adapter, to, model, out):  # type: ignore[no-untyped-def]
    """Write an adapter in mlx-lm's format, or merged into a model of its own."""
    from miniact.tools.export import export

    export(adapter, to, out, model)
    click.echo(f"{to}: {out}")


@main.command("config")
@config_options
@friendly
def show_config(arguments, seed, backend, skip_bad_rows):  # type: ignore[no-untyped-def]
    """Print the resolved configuration, checked."""
    import yaml

    from miniact.config.sections import to_dict

    config = read_config(arguments, seed, backend, skip_bad_rows)
    click.echo(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), nl=False)


for _command in cli_tools.COMMANDS:
    main.add_command(_command)


if __name__ == "__main__":
    main()
