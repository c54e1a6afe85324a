"""The whole figures of tutorials 05 to 07, 09 and 10, in the look of pictures.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from aside.pictures import curve, guessing, intervals, name_places, panels


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


def draw_training(metrics: Mapping[str, np.ndarray]) -> None:
    """06: the reward and its two factors, the kinds of groups, the entropy, at each step of ACT."""
    left, middle, right = panels(
        "the reward and its two factors", "only live groups teach", "how unsure the answers are"
    )
    curve(left, metrics["valid"], "valid (format)", "C2")
    curve(left, metrics["correct"] / metrics["valid"], "right, if valid (judgement)", "C1")
    curve(left, metrics["correct"], "reward = their product", "C0")
    left.set(ylabel="share of answers", ylim=(0, 1.02))
    name_lines(left, loc="lower right")
    draw_groups(middle, metrics["all_wrong"], metrics["all_correct"])
    curve(right, metrics["entropy"], colour="C4")
    right.set(ylabel="entropy, nats a token")
    right.set_ylim(bottom=0)


def draw_judgement(judgement: Mapping[str, Mapping[str, Any]]) -> None:
    """06: how often the critic is right after each stage, by question and by place."""
    asked = {"accuracy": "asked", "given_valid": "asked, if valid", "implicit": "not asked"}
    placed = {"expert_first": "expert's action first", "expert_second": "expert's action second"}
    titles = ("is the better action known?", "does its place matter?")
    stages = [{"base": "base", "1-il": "after IL", "2-act": "after ACT"}[s] for s in judgement]
    for axis, labels in zip(panels(*titles, width=4.8), (asked, placed)):
        for k, (measure, label) in enumerate(labels.items()):
            rates = [of_stage[measure] for of_stage in judgement.values()]
            intervals(axis, rates, label, shift=0.12 * (k - (len(labels) - 1) / 2))
        name_places(axis, stages)
        guessing(axis, 0.5)
        name_lines(axis, loc="lower right", ncols=2)


def draw_pass_at_k(rates: Mapping[str, Sequence[float]]) -> None:
    """07: pass@k for k = 1, 2, … of each policy, its name at the end of its line."""
    (axis,) = panels("does one of k samples hit the expert's action?", width=5.6, height=3.2)
    for name, shares in rates.items():
        (line,) = axis.plot(range(1, len(shares) + 1), shares, label=name)
        at = (len(shares) + 0.2, shares[-1])
        axis.annotate(name, at, color=line.get_color(), va="center", annotation_clip=False)
    axis.set(xlabel="k, samples at a state", ylabel="pass@k, share of states", ylim=(0, 1.02))
    axis.set_xticks([1, 4, 8, 12, 16])


def draw_arms(
    right: Mapping[str, np.ndarray], by_seed: np.ndarray, halves: Mapping[str, float]
) -> None:
    """07: next-action accuracy of each arm and seed; the mean difference, with its intervals."""
    left, axis = panels("next action, a line per seed", "RL − IL at equal tokens", width=4.4)
    names = ("IL → IL", "IL", "IL → RL")
    share_AK = np.array([100 * right[name].mean(1) for name in names])
    left.plot(share_AK, "o-", color="C0", alpha=0.45, markersize=5, linewidth=1)
    left.plot(share_AK.mean(1), "k_", markersize=26, markeredgewidth=2, label="mean")
    left.set_xticks(range(3), ("IL → IL", "IL (start)", "IL → RL"))
    left.set(xlim=(-0.4, 2.4), ylabel="% of held-out states right")
    name_lines(left)
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.plot(np.linspace(-0.1, 0.1, len(by_seed)), 100 * by_seed, "o", color="C0", alpha=0.45)
    for x, half in enumerate(halves.values(), start=1):
        axis.errorbar(x, 100 * by_seed.mean(), 100 * half, fmt="ko", capsize=4)
    axis.set_xticks(range(1 + len(halves)), ["each seed", *(f"mean, 95 %\n{h}" for h in halves)])
    axis.set(xlim=(-0.5, len(halves) + 0.5), ylabel="difference, points")


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


def draw_levers(parts: Mapping[str, Mapping[str, float]], limit: float) -> None:
    """10: bars of GB, a bar for each state of the levers, a colour for each part; their sums."""
    (axis,) = panels("Qwen3-8B, one lever after the other", width=7.6, height=3.4)
    labels, bottom = list(next(iter(parts.values()))), np.zeros(len(parts))
    for label, colour in zip(labels, ("C7", "C1", "C0")):
        sizes = np.array([of[label] for of in parts.values()])
        axis.bar(range(len(parts)), sizes, 0.62, bottom, label=label, color=colour)
        bottom += sizes
    for x, total in enumerate(bottom):
        white = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axis.text(x, total + 4, f"{total:.1f}", ha="center", fontsize=9, bbox=white)
    axis.axhline(limit, color="black", linewidth=0.8, linestyle="--")
    axis.text(len(parts) - 0.45, limit + 2, f"{limit} GB", ha="right", fontsize=9)
    axis.set_xticks(range(len(parts)), parts)
    axis.set(ylabel="GB, planned", ylim=(0, 1.12 * bottom.max()))
    name_lines(axis, loc="upper right")


def draw_peaks(
    tokens: np.ndarray, planned: Mapping[bool, np.ndarray], measured: Mapping[bool, np.ndarray]
) -> None:
    """10: bytes that a step adds to the weights, against the tokens in its pass."""
    (axis,) = panels("one step of the tiny model on this CPU", width=5.4, height=3.2)
    for on, colour in ((False, "C0"), (True, "C1")):
        how = "with checkpointing" if on else "without checkpointing"
        axis.plot(tokens, planned[on] / 1e6, color=colour, label=f"planned, {how}")
        if len(measured[on]):
            axis.plot(tokens, measured[on] / 1e6, "o", color=colour, label=f"measured, {how}")
    axis.set(xlabel="tokens in the pass", ylabel="MB above weights")
    axis.set_ylim(bottom=0)
    name_lines(axis)
