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

SHARES = ("reward", "correct", "valid", "zero_variance", "success")  # of 1, two digits
SHOWN = (*SHARES[:4], "loss", "success")  # in this order; what does not fit is left out
LINE_EVERY = 15.0  # seconds between lines where there is no terminal


def shown(averages: dict[str, float]) -> list[str]:
    """What a bar says of the metrics, the most telling first.

    Right after sampling GRPO's loss is 0 however well it learns, so the reward stands for it; and
    `correct` is the reward, unless other things are rewarded too.

    >>> shown({"loss": 1e-9, "reward": 0.624, "correct": 0.624, "valid": 0.75})
    ['reward 0.62', 'valid 0.75']
    """
    left_out = {"loss"} if "reward" in averages else set()
    if abs(averages.get("correct", 0.0) - averages.get("reward", 9.0)) < 0.005:
        left_out.add("correct")
    names = [name for name in SHOWN if name in averages and name not in left_out]
    return [f"{name} {averages[name]:.{2 if name in SHARES else 3}f}" for name in names]


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
                BarColumn(16),
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

    def advance(self, metrics: dict[str, float] | None = None, units: int = 1) -> None:
        """Shown are running means (over about 10 units); success as it is."""
        self._done += units
        for name in SHOWN:
            if metrics and name in metrics:
                kept = 0.0 if name == "success" else 0.9
                before = self._averages.get(name, metrics[name])
                self._averages[name] = kept * before + (1 - kept) * metrics[name]
        said = shown(self._averages)
        now = time.monotonic()
        speed = (self._done - self._start) / max(now - self._since, 1e-9)
        rate = f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each"
        left = (self._total - self._done) / speed
        if self._bar is not None:
            info = self._fitting(said, rate, left)
            self._bar.update(self._task, completed=self._done, rate=rate, info=info)
        elif now - self._last_line > LINE_EVERY or self._done == self._total:
            self._last_line = now
            line = f"{self.name}: {self._done}/{self._total}, {rate}, {left:.0f} s left"
            self.console.print("  ".join([line, *said]), highlight=False, soft_wrap=True)

    def _fitting(self, said: list[str], rate: str, left: float) -> str:
        """As much as fits beside the rest, which always stays: name, bar, steps, rate, time."""
        clock = 5 if left < 3600 else 7
        widths = (max(10, len(self.name)), 16, 2 * len(str(self._total)) + 1, len(rate), clock)
        free = self.console.width - sum(widths) - len(widths)  # a space between two columns
        while said and len("  ".join(said)) > free:
            said = said[:-1]
        return "  ".join(said)

    def note(self, text: str) -> None:
        self.console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)

    def __exit__(self, *exc: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
