"""The whole figures of tutorials 05 and 09, in the look of pictures.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from aside.pictures import guessing, panels


def name_lines(axis: Axes, **where: Any) -> None:
    axis.legend(**{"frameon": False, "fontsize": 8, **where})


def draw_groups(axis: Axes, wrong_N: np.ndarray, right_N: np.ndarray) -> None:
    """Shares of groups that are all wrong, live and all right at each of N steps, stacked."""
    names = ("all wrong: dead", "live", "all right: dead")
    shares = (wrong_N, 1 - wrong_N - right_N, right_N)
    colours = ("C3", "C0", "C2")
    axis.stackplot(range(len(wrong_N)), shares, labels=names, colors=colours, alpha=0.6)
    axis.set(xlabel="step", ylabel="share of groups", xlim=(0, len(wrong_N) - 1), ylim=(0, 1))
    handles, labels = axis.get_legend_handles_labels()
    where = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    name_lines(axis, handles=handles[::-1], labels=labels[::-1], **where)


def draw_grpo(reward_KNQG: Any, chance: float) -> None:
    """05: the reward of K seeds at N steps, and which groups of Q questions, G answers are live."""
    share_KNQ = np.asarray(reward_KNQG).mean(3)
    mean_KN = share_KNQ.mean(2)
    left, right = panels("the table learns", "only live groups teach", width=4.6)
    between = (range(mean_KN.shape[1]), mean_KN.min(0), mean_KN.max(0))
    left.fill_between(*between, alpha=0.2, label="lowest to highest seed")
    left.plot(mean_KN.mean(0), label=f"mean of {len(mean_KN)} seeds")
    guessing(left, chance)
    left.set(xlabel="step", ylabel="mean reward", ylim=(0, 1.02))
    name_lines(left, loc="lower right")
    draw_groups(right, (share_KNQ == 0).mean((0, 2)), (share_KNQ == 1).mean((0, 2)))


def draw_two_backends(by_torch: np.ndarray, by_mlx: np.ndarray) -> None:
    """09: the loss of either backend at each step, and their difference."""
    left, right = panels("the loss of 20 steps of imitation", "its difference", width=4.4)
    left.plot(by_torch, color="C0", linewidth=6, alpha=0.35, label="PyTorch")
    left.plot(by_mlx, color="C3", linewidth=1.2, label="MLX")
    left.set(xlabel="step", ylabel="nats a token")
    left.set_ylim(bottom=0)
    name_lines(left)
    right.semilogy(np.maximum(np.abs(by_torch - by_mlx), 1e-9), "o-", color="C7", markersize=4)
    for axis in (left, right):
        axis.set_xticks(range(0, len(by_mlx) + 1, 5))
    rounding = 2**-23 * by_torch.max()
    right.axhline(rounding, color="C1", linestyle="--", label="a rounding step of float32")
    right.set(xlabel="step", ylabel="nats a token, log scale", ylim=(1e-9, 1e-3))
    name_lines(right, loc="upper left")
