"""Live progress: a bar with rate, remaining time and metrics; plain lines without a terminal."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

SHOWN = ("loss", "reward", "correct", "valid", "zero_variance", "success")
LINE_EVERY = 15.0  # seconds between lines where there is no terminal


class Bar:
    """One task's progress, as a context manager."""

    def __init__(self, console: Console, name: str) -> None:
        self.console, self.name = console, name
        self._bar: Progress | None = None
        self._done = self._start = 0
        self._averages: dict[str, float] = {}

    def __enter__(self) -> Bar:
        return self

    def start(self, total: int, done: int = 0) -> None:
        self._total, self._done, self._start = total, done, done
        self._since = self._last_line = time.monotonic()
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description:>10}"),
                BarColumn(24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("[dim]{task.fields[info]}"),
                console=self.console,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self.name, total=total, completed=done, rate="", info=""
            )

    def advance(self, metrics: dict[str, float] | None = None) -> None:
        """One unit is done. The metrics shown are running means (over about 10 units)."""
        self._done += 1
        for name in SHOWN:
            if metrics and name in metrics:
                before = self._averages.get(name, metrics[name])
                self._averages[name] = 0.9 * before + 0.1 * metrics[name]
        info = "  ".join(f"{k} {v:.3g}" for k, v in self._averages.items())
        now = time.monotonic()
        rate = (self._done - self._start) / max(now - self._since, 1e-9)
        if self._bar is not None:
            shown = f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"
            self._bar.update(self._task, completed=self._done, rate=shown, info=info)
        elif now - self._last_line > LINE_EVERY or self._done == self._total:
            self._last_line = now
            left = (self._total - self._done) / rate
            self.console.print(
                f"{self.name}: {self._done}/{self._total}, {rate:.2f}/s, {left:.0f} s left  {info}",
                highlight=False,
                soft_wrap=True,
            )

    def note(self, text: str) -> None:
        self.console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)

    def __exit__(self, *exc: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
