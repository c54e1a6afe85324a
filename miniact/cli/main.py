"""The command line. Imports inside the commands are lazy, so that --help answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miniact import __version__
from miniact.backends.launch import processes
from miniact.cli import tools as cli_tools
from miniact.cli.common import COMMON, fresh_folder, friendly, takes_config, terminal

if TYPE_CHECKING:
    from miniact.config import Config

GONE = {  # commands of before, and what does their work
    "bench": "use python dev/bench/bench.py",
    "choice_sft": "use miniact run --recipe choice_sft",
    "dpo": "use miniact run --recipe dpo",
    "pretrain": "use python dev/make_tiny.py",
    "reference": "read docs/reference.md",
    "reflect": "use miniact run --recipe reflect",
}


PATH = click.Path(path_type=Path)
RUN_FOLDER = click.option("--out", type=PATH, required=True, help="Run folder.")
VERBOSE = click.option("--verbose", is_flag=True, help="Also say where the time goes.")


class Commands(click.Group):
    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args and args[0] in GONE:
            click.echo(f"miniact: {args[0]} is no command any more; {GONE[args[0]]}", err=True)
            ctx.exit(2)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@friendly
def main() -> None:
    """Agentic Critical Training: teach an agent to tell the better action, then let it act.

    CONFIG is a YAML file or the name of one that ships; miniact run lists them (default of the
    other commands: household). KEY=VALUE overrides any field, for example stage.act.steps=50.
    """
    if processes() > 1:
        from miniact.backends.protocol import join_others

        join_others()  # only the first process comes back


@main.command()
@takes_config(*COMMON, "--recipe", must=True)
@click.option("--out", type=PATH, help="Run folder (default: under runs/).")
@click.option("--resume", type=PATH, help="Go on with this run folder.")
@click.option("--force", is_flag=True, help="Run even if the plan says that it cannot fit.")
@VERBOSE
def run(config: Config, out: Path | None, resume: Path | None, force: bool, verbose: bool) -> None:
    """Train and evaluate a whole recipe (default: il,act,rl), after a plan of what it takes."""
    from miniact.experiments.pipeline import resume_run, start_run
    from miniact.experiments.settle import settled_for
    from miniact.experiments.start import announce
    from miniact.tools.plan import check_fits

    console = terminal()
    if resume:
        resume_run(resume, console, verbose)
        return
    out = out or fresh_folder(config)
    announce(config, out, console)
    config = settled_for(config, out)
    check_fits(config, console, force)
    start_run(config, out, console, verbose)


def _stage_command(name: str, doc: str) -> None:
    @main.command(name, help=doc)
    @takes_config(*COMMON, "--adapter", "--trajectories", "--pairs")
    @RUN_FOLDER
    @VERBOSE
    def command(config: Config, out: Path, verbose: bool) -> None:
        from miniact.config.load import with_overrides
        from miniact.experiments.pipeline import start_run
        from miniact.experiments.start import announce

        config, console = with_overrides(config, [f"recipe={name}"]), terminal()
        announce(config, out, console)
        start_run(config, out, console, verbose)


_stage_command("il", "Imitation learning alone: cross-entropy on the expert's actions.")
_stage_command("act", "Critical training alone: GRPO on choices between two actions.")
_stage_command("rl", "RL on actions alone: GRPO on the expert's states.")


@main.command()
@takes_config(*COMMON)
@click.option("--out", type=PATH, required=True, help="File to write.")
def collect(config: Config, out: Path) -> None:
    """Write expert trajectories: played by the environment's expert, or imported."""
    from miniact.experiments.pipeline import collect_to

    collect_to(config, out, terminal())


@main.command()
@takes_config(*COMMON, "--adapter", "--trajectories")
@RUN_FOLDER
def pairs(config: Config, out: Path) -> None:
    """Make contrastive pairs: sample what the model would have done instead of the expert."""
    from miniact.experiments.pipeline import only_pairs

    only_pairs(config, out, terminal())


@main.command("eval")
@takes_config(*COMMON, "--adapter", "--trajectories", "--pairs")
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
@RUN_FOLDER
@VERBOSE
def evaluate(  # noqa: PLR0913
    config: Config,
    policy: str,
    intervene: str | None,
    suite: str | None,
    limit: int | None,
    out: Path,
    verbose: bool,
) -> None:
    """Measure a model or an adapter on held-out tasks, states and pairs."""
    from miniact.config.load import with_overrides

    thinks = bool(config.recipe) and config.thinks(config.recipe[-1])  # as its last stage left it
    more = [f"eval.thinking={config.measuring(thinks).thinking}", "recipe=[]"]
    more += [f"eval.intervene={intervene}"] if intervene else []
    more += ["eval.judge_thinking=true"] if intervene in ("remove", "wrong") else []
    config = with_overrides(config, more)
    if policy == "expert":
        from miniact.evaluation.expert import evaluate_expert

        evaluate_expert(config, out, terminal())
    elif suite:
        from miniact.evaluation.reasoning import ReasoningOptions, evaluate_reasoning, result_lines

        options = ReasoningOptions(limit=limit, seed=config.seed)
        click.echo(result_lines(evaluate_reasoning(config.model, suite.split(","), out, options)))
    else:
        from miniact.experiments.pipeline import start_run
        from miniact.experiments.start import announce

        console = terminal()
        announce(config, out, console)
        start_run(config, out, console, verbose)


@main.command()
@click.argument("folder", type=PATH)
@click.argument("what", type=click.Choice(["pair", "group", "episode", "thoughts", "results"]))
@click.option("--stage", help="Which stage, for example 2-act (default: the last one).")
@click.option(
    "--number", "-n", type=int, help="Which one, from 0 (default: the first that tells something)."
)
@friendly
def show(folder: Path, what: str, stage: str | None, number: int | None) -> None:
    """Print a pair, a group, an episode, thoughts or the results of FOLDER, a run or comparison."""
    from miniact.tools.play import show_item

    show_item(folder, what, stage, number, terminal())


@main.command()
@takes_config(*COMMON, "--adapter")
@click.option("--watch", is_flag=True, help="Watch the config's model act; with --adapter, that.")
@click.option("--split", default="train", show_default=True)
@click.option("--task", type=int, default=0, show_default=True, help="Which task of the split.")
def play(config: Config, watch: bool, split: str, task: int) -> None:
    """Act in a world yourself, or watch a policy act."""
    from miniact.tools.play import play_task

    play_task(config, watch or bool(config.model.start), split, task, terminal())


@main.command()
@click.argument("where", type=PATH)
@click.argument("file", type=PATH, required=False)
@click.option("--task", help="What is to be done; instead of FILE, with --observation.")
@click.option("--observation", default="", help="What is seen now.")
@click.option("--judge", is_flag=True, help="Which action is better: the given ones, or its own.")
@click.option("--candidate", multiple=True, help="An action to judge; may stand there twice.")
@click.option("--temperature", default=0.0, show_default=True, help="0: greedy.")
@click.option("--show-prompt", is_flag=True, help="What a server must be sent; asks nobody.")
@click.option("--model", default="", help="The base model, if it lies elsewhere now.")
@friendly
def ask(where: Path, file: Path | None, **options: Any) -> None:
    """Ask a trained model for the next action.

    WHERE: a run folder, an adapter in one, or an exported model. FILE: states or running dialogues
    as JSON or JSON lines; - or nothing reads them from the standard input.
    """
    from miniact.tools.ask import Asked, ask_all

    for line in ask_all(where, file, Asked(**options)):
        click.echo(line)


@main.command("export")
@click.argument("adapter", type=PATH)
@click.option("--to", type=click.Choice(["mlx", "merged"]), required=True, help="What to write.")
@click.option("--model", default="", help="The base model, if not the one the adapter names.")
@click.option("--out", type=PATH, required=True, help="New folder to write.")
@friendly
def export_adapter(adapter: Path, to: str, model: str, out: Path) -> None:
    """Write an adapter in mlx-lm's format, or merged into a model of its own."""
    from miniact.tools.export import export

    base = export(adapter, to, out, model)
    use = f'mlx_lm.load("{base}", adapter_path="{out}")' if to == "mlx" else ""
    click.echo(f"{to}: {out}\n{use}".rstrip())


@main.command("config")
@takes_config(*COMMON)
def show_config(config: Config) -> None:
    """Print the resolved configuration, checked."""
    import yaml

    from miniact.config.load import to_dict

    click.echo(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), nl=False)


for _command in cli_tools.COMMANDS:
    main.add_command(_command)


if __name__ == "__main__":
    main()
