"""What tutorial 04 needs beside its lesson: kinds of mistakes, replays, prices, plots."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from aside.pictures import panels
from miniact.data.trajectories import TrajectoryFile, collect, to_row
from miniact.evaluation.rates import rate
from miniact.method.rewards import canonical
from miniact.runs.files import write_jsonl
from miniact.types import Completion, Group

KINDS = {  # (same verb, same thing) → its name
    (True, False): "right verb, wrong thing",
    (False, True): "wrong verb, right thing",
    (False, False): "wrong verb, wrong thing",
    (True, True): "only the rest is wrong",
}


def expert_play(env: Any, folder: Path, seed: int) -> TrajectoryFile:
    """60 train tasks and 20 of "id", as the expert plays them."""
    played = (collect(env, split, n, seed, "expert") for split, n in (("train", 60), ("id", 20)))
    write_jsonl(folder / "trajectories.jsonl", map(to_row, chain(*played)))
    return TrajectoryFile(folder / "trajectories.jsonl")


def kind(pair: Any) -> str:
    """How a⁻ differs from a⁺: "move mug 1 to shelf 2" has the verb "move", the thing "mug 1"."""
    (verb_a, *things_a), (verb_b, *things_b) = (
        (action.split()[0], *re.findall(r"[a-z]+ \d+", action))
        for action in (pair.expert, pair.alternative)
    )
    return KINDS[verb_a == verb_b, things_a[:1] == things_b[:1]]


def applies(pair: Any) -> bool:
    """Whether a⁻ can be done in this state."""
    return canonical(pair.alternative) in {canonical(a) for a in pair.state.admissible}


def extra_actions(env: Any, pair: Any, length: int) -> int:
    """Replay the episode up to the state, do a⁻, let the expert finish: actions beyond its own."""
    task_id, _, i = pair.state.id.rpartition("#")
    _, turn = env.reset(task_id)
    for _, action in pair.state.history:
        turn = env.step(action)
    assert turn.observation == pair.state.observation
    turn, n = env.step(pair.alternative), int(i) + 1
    while not turn.done:
        turn, n = env.step(env.expert_action()), n + 1
    return n - length


def told(hits: Sequence[bool]) -> str:
    r = rate(hits)
    return f"{r['value']:.0%} [{r['low']:.0%}, {r['high']:.0%}] n={r['n']}"


def expert_probability(policy: Any, prompter: Any, batch: list, temperature: float) -> np.ndarray:
    """π_T(a⁺|s) at each state."""
    groups = [
        Group(
            prompter.action(state).tokens,
            (Completion(prompter.reply_tokens(prompter.render_action(action))),),
        )
        for state, action in batch
    ]
    logps = policy.logprobs(groups, temperature=temperature)
    return np.exp([logp.sum() for (logp,) in logps])


def mistakes_picture(pairs: list, cost: np.ndarray) -> None:
    """Which kinds of alternatives there are, and how many actions each costs."""
    left, right = panels("what a⁻ gets wrong", "what a⁻ costs", width=4.8, height=2.8)
    possible = np.array([applies(p) for p in pairs])
    count = Counter((kind(p), applies(p)) for p in pairs)
    names, end = list(KINDS.values()), np.zeros(len(KINDS))
    for ok, label, colour in ((True, "can be done", "C0"), (False, "cannot", "lightgray")):
        share = np.array([count[name, ok] for name in names]) / len(pairs)
        left.barh(names, share, left=end, label=label, color=colour)
        end += share
    left.invert_yaxis()
    left.set_xlabel(f"share of {len(pairs)} pairs")
    left.legend(loc="lower right", frameon=False)
    bins = np.arange(cost.min(), cost.max() + 2) - 0.5
    colours = ("C0", "lightgray")
    right.hist([cost[possible], cost[~possible]], bins, stacked=True, color=colours)
    right.axvline(0.5, color="black", linestyle=":")
    right.text(0.4, 0.9 * right.get_ylim()[1], "not worse ", ha="right", fontsize=8)
    right.set(xlabel="extra actions, the expert finishing", ylabel="pairs")


def yield_picture(kept: dict[float, list[float]]) -> None:
    """Pairs of a state by K, a curve for each temperature."""
    (axis,) = panels("more samples, more pairs; hotter samples, more still", width=6)
    K = range(1, len(next(iter(kept.values()))) + 1)
    axis.plot(K, K, ":", color="gray", label="nothing dropped")
    for temperature, values in kept.items():
        axis.plot(K, values, "o-", markersize=4, label=f"T = {temperature}")
    axis.set(xlabel="K, samples at a state", ylabel="pairs per state (mean)")
    axis.legend()
