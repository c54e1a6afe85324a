"""What `bench.py` makes of its measurements: medians and spreads, the table, the plots."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table
from work import Work

from miniact.tools.cost import Shape, forward_flops, training_flops

GB = 1e9


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def _total(step: dict[str, float]) -> float:
    return step["sampling"] + step["training"]


def ratio(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, Any]:
    """Their seconds / ours, step by step: of the whole and of its parts."""
    pairs = list(zip(theirs, ours))
    parts = {
        part: spread([t[part] / o[part] for t, o in pairs])
        for part in ("sampling", "training")
        if ours[0][part] > 0
    }
    whole = spread([_total(t) / _total(o) for t, o in pairs])
    memory = max(t["peak"] for t in theirs) / max(o["peak"] for o in ours)
    return {**whole, **parts, "peak_memory": memory, "n": len(pairs)}


def summary(steps: list[dict[str, Any]], work: Work, shape: Shape) -> dict[str, Any]:
    """The figures of one side. Of one prompt also the speeds, beside the machine's in products."""
    G, C = work.group_size, work.completion_tokens
    figures: dict[str, Any] = {
        "sampling_s": spread([s["sampling"] for s in steps]),
        "training_s": spread([s["training"] for s in steps]),
        "step_s": spread([_total(s) for s in steps]),
        "peak_above_weights_bytes": max(s["peak"] for s in steps),
        "n": len(steps),
    }
    if work.replies:
        return figures
    answers = len(work.prompts) * G * C
    figures["sampled_tokens_per_s"] = spread([answers / s["sampling"] for s in steps])
    if len(work.prompts) == 1:
        P = len(work.prompts[0])
        flops = {
            "training": training_flops(shape, P, G, C, work.rank, work.adapter == "full"),
            "sampling": forward_flops(shape, P, G, C),
        }
        figures["trained_tokens_per_s"] = spread([(P + G * C) / s["training"] for s in steps])
        if not steps[0]["matmul"]:
            return figures
        figures["matmul_flops_per_s"] = spread([s["matmul"] for s in steps])
        for part, n in flops.items():
            share = [n / s[part] / s["matmul"] for s in steps]
            figures[f"{part}_share_of_matmul"] = spread(share)
    return figures


def _ratio_of(result: dict[str, Any], name: str) -> dict[str, Any] | None:
    return result.get("ratio" if name == "trl" else f"ratio_{name}")


def table(results: list[dict[str, Any]]) -> Table:
    """A row per piece of work and side."""
    of_trajectory = "trajectory" in results[0]["work"]
    if of_trajectory:
        keys = {"stage": "stage", "T": "states", "prompts": "prompt_tokens", "tree": "tree_tokens"}
    else:
        keys = {"P": "longest_prompt", "G": "group_size", "C": "completion_tokens"}
    out = Table(box=None, pad_edge=False, header_style="bold")
    for column in (*keys, "side", "sampling s", "training s", "step s", "× ours"):
        out.add_column(column, justify="left" if column in ("side", "stage") else "right")
    for column in ("peak GB", "gradient", "tokens/s sampled", "% of matmul"):
        out.add_column(column, justify="right")
    for result in results:
        for name, side in result["sides"].items():
            out.add_row(
                *(str(result["work"][key]) for key in keys.values()),
                name,
                *(f"{side[k]['median']:.2f}" for k in ("sampling_s", "training_s", "step_s")),
                *_compared(_ratio_of(result, name), side),
                *_speeds(side if name == "miniact" else {}, side),
            )
    return out


def _compared(found: dict[str, Any] | None, side: dict[str, Any]) -> list[str]:
    peak = f"{side['peak_above_weights_bytes'] / GB:.2f}"
    if found is None:
        return ["1", peak, "–"]
    gap = found["gradient_gap"]
    times = f"{found['median']:.2f} [{found['min']:.2f}–{found['max']:.2f}]"
    return [times, peak, "–" if gap is None else f"{gap:.0e}"]


def _speeds(ours: dict[str, Any], side: dict[str, Any]) -> list[str]:
    sampled, share = side.get("sampled_tokens_per_s"), ours.get("training_share_of_matmul")
    return [
        f"{sampled['median']:.0f}" if sampled else "–",
        f"{100 * share['median']:.0f}" if share else "–",
    ]


# ---- plots ---------------------------------------------------------------------------------------


def draw_prompts(results: list[dict[str, Any]], file: Path) -> None:
    """Seconds per step over the tokens that pass the model, P + G·C, one line per G."""
    figure, axes = _axes(2)
    for axis, part in zip(axes, ("training", "sampling")):
        for G in sorted({r["work"]["group_size"] for r in results}):
            mine = [r for r in results if r["work"]["group_size"] == G]
            C = mine[0]["work"]["completion_tokens"]
            xs = [r["work"]["longest_prompt"] + G * C for r in mine]
            _line(axis, xs, [r["sides"]["miniact"][f"{part}_s"] for r in mine], f"G = {G}")
        _finish(axis, f"{part}, C = {C}", "P + G·C, tokens")
    _save(figure, file)


def draw_states(results: list[dict[str, Any]], file: Path) -> None:
    """Seconds per step over the tokens of all prompts, shared ones once: one line per side."""
    panels = {"imitation": ("il", "training"), "ACT, training": ("act", "training")}
    panels["ACT, sampling"] = ("act", "sampling")
    stages = {r["work"]["stage"] for r in results}
    chosen = {title: panel for title, panel in panels.items() if panel[0] in stages}
    figure, axes = _axes(len(chosen))
    for axis, (title, (stage, part)) in zip(axes, chosen.items()):
        mine = [r for r in results if r["work"]["stage"] == stage]
        xs = [r["work"]["tree_tokens"] for r in mine]
        for name in mine[0]["sides"]:
            _line(axis, xs, [r["sides"][name][f"{part}_s"] for r in mine], name)
        _finish(axis, title, "tokens of all prompts, shared ones once")
        above = axis.secondary_xaxis("top")
        above.set_xticks(xs, [str(r["work"]["states"]) for r in mine])
        above.set_xlabel("states T", fontsize=8)
        above.tick_params(labelsize=8)
    _save(figure, file)


def _axes(n: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * n, 3.6), layout="constrained")
    return figure, list(figure.subplots(1, n, squeeze=False)[0])


def _line(axis: Any, xs: list[int], ys: list[dict[str, float]], label: str) -> None:
    middle = [y["median"] for y in ys]
    bars = [[y["median"] - y["min"] for y in ys], [y["max"] - y["median"] for y in ys]]
    axis.errorbar(xs, middle, bars, marker="o", markersize=4, capsize=2, label=label)


def _finish(axis: Any, title: str, below: str) -> None:
    axis.set_title(title)
    axis.set_xlabel(below)
    axis.set_ylabel("seconds per step (median, min–max)")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.2)
    axis.legend(frameon=False, fontsize=8)


def _save(figure: Any, file: Path) -> None:
    part = file.with_name(file.stem + ".part.png")
    figure.savefig(part, dpi=130)
    part.replace(file)
