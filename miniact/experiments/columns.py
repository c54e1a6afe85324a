"""A table of texts for the terminal, in as many parts as its width asks for: nothing is cut off."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

SPACE = 2  # between two columns


def print_columns(
    console: Console,
    head: str,
    labels: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    left: Collection[str] = (),
) -> None:
    """Print rows named by `labels`; a cell may hold several lines. left: columns set so."""
    named = max(map(len, (head, *labels)))
    widths = {
        name: SPACE + max(len(line) for cell in (name, *cells) for line in cell.split("\n"))
        for name, cells in columns.items()
    }
    parts: list[list[str]] = [[]]
    for name, width in widths.items():
        if parts[-1] and named + sum(widths[x] for x in parts[-1]) + width > console.width:
            parts.append([])
        parts[-1].append(name)
    for number, part in enumerate(parts):
        table = Table(box=None, pad_edge=False, padding=(0, SPACE, 0, 0), header_style="bold")
        table.add_column(Text(head), no_wrap=True)
        for name in part:
            justify = "left" if name in left else "right"
            table.add_column(Text(name), no_wrap=True, justify=justify)  # type: ignore[arg-type]
        for row, label in enumerate(labels):
            table.add_row(Text(label), *(Text(columns[name][row]) for name in part))
        if number:
            console.print()
        console.print(table)
