"""One look for the tutorials' plots: panels, shares with their 95 % intervals, noisy curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

LOOK = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "savefig.dpi": 110,
    "figure.dpi": 110,
}


def panels(*titles: str, width: float = 4.2, height: float = 3.0) -> list[Axes]:
    """An axis for each title, side by side; sizes in inches, each panel `width` wide."""
    # no rc_context: at its end it takes back that a notebook shows figures, and only one is shown
    plt.rcParams.update(LOOK)
    size = (width * len(titles), height)
    _, axes = plt.subplots(1, len(titles), figsize=size, layout="constrained", squeeze=False)
    for axis, title in zip(axes[0], titles):
        axis.set_title(title)
    return list(axes[0])


def intervals(
    axis: Axes, rates: Sequence[dict[str, Any]], label: str | None = None, shift: float = 0.0
) -> None:
    """Rates (value, low, high) as points with error bars at 0, 1, 2 …, moved by `shift`."""
    value = np.array([rate["value"] for rate in rates])
    ends = np.array([(rate["low"], rate["high"]) for rate in rates]).T
    at = np.arange(len(rates)) + shift
    axis.errorbar(at, value, np.abs(ends - value), fmt="o", capsize=3, label=label)


def name_places(axis: Axes, names: Sequence[str]) -> None:
    """What stands at 0, 1, 2 … of an axis with shares; the y-axis goes from 0 to 1."""
    axis.set_xticks(range(len(names)), names)
    axis.set(xlim=(-0.5, len(names) - 0.5), ylim=(-0.03, 1.03), ylabel="share, 95 % interval")


def curve(
    axis: Axes, values: Sequence[float], label: str | None = None, colour: str = "C0", over: int = 5
) -> None:
    """A value a step, thin, and its running mean over `over` steps (an odd number), thick."""
    values = np.asarray(values, dtype=float)
    smooth = np.convolve(values, np.ones(over) / over, mode="valid")
    axis.plot(values, color=colour, alpha=0.3, linewidth=0.8)
    axis.plot(np.arange(len(smooth)) + over // 2, smooth, color=colour, label=label)
    axis.set_xlabel("step")


def guessing(axis: Axes, share: float) -> None:
    """A dotted line at what guessing scores."""
    axis.axhline(share, color="grey", linestyle=":", linewidth=0.8, label="guessing")
