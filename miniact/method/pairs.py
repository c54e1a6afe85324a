"""Contrastive pairs: stage 1 of ACT, and how a critic is asked about them.

At every expert state s_i sample K actions from the *initial policy* π_θ0 (or, as a control, draw K
of the admissible ones). What is left after the filters becomes a pair (s_i, a_i⁺, a_i⁻). Filters,
each counted:

    unparseable     the reply holds no single action
    equal           the alternative is the expert's action, after canonicalisation
    duplicate       the same alternative was already sampled at this state
    inadmissible    (optional) the environment lists its actions and this is none of them
    unlisted        (admissible actions only) a state that lists none: nothing can be drawn there
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from miniact import UserError
from miniact.backends.protocol import Policy
from miniact.config.sections import PairsConfig
from miniact.data.trajectories import ExpertStates, run_ends
from miniact.method.prompts import Prompter
from miniact.method.rewards import canonical, same_action
from miniact.runs.files import field, read_objects
from miniact.types import Question, Shown, State

SAMPLED_AT_ONCE = 256  # states per call of the sampler


def choose_states(states: ExpertStates, per_trajectory: int, seed: int) -> list[int]:
    """Indices of the states to make pairs at; 0 per trajectory means all of them."""
    if not per_trajectory:
        return list(range(len(states)))
    chosen: list[int] = []
    start = 0
    for member, length in enumerate(states.file.lengths[states.members]):
        rng = np.random.default_rng([seed, member])
        take = min(per_trajectory, int(length))
        chosen += sorted((start + rng.choice(int(length), take, replace=False)).tolist())
        start += int(length)
    return chosen


def neighbouring(asked: Sequence[Question], neighbours: int) -> tuple[int, ...]:
    """Where runs of so many questions about one trajectory end; 0: of all about it."""
    of = (question.state.id.rpartition("#")[0] for question in asked)
    return run_ends([len(list(same)) for _, same in groupby(of)], neighbours)


def filter_alternatives(
    expert: str,
    sampled: Sequence[str | None],
    admissible: Sequence[str] | None,
    rule: str = "words",
) -> tuple[list[str], Counter]:
    """Keep alternatives that differ from the expert's action and from each other; count the rest.

    admissible: the actions to accept, or None for no such filter. rule: how actions are compared.

    >>> filter_alternatives("look", ["Look.", "go east", None, "GO EAST"], None)
    (['go east'], Counter({'kept': 1, 'equal': 1, 'unparseable': 1, 'duplicate': 1}))
    """
    allowed = None if admissible is None else {canonical(a, rule) for a in admissible}
    kept: list[str] = []
    counts: Counter = Counter(kept=0)
    seen = {canonical(expert, rule)}
    for action in sampled:
        form = "" if action is None else canonical(action, rule)
        if action is None or not form:
            counts["unparseable"] += 1
        elif form == canonical(expert, rule):
            counts["equal"] += 1
        elif form in seen:
            counts["duplicate"] += 1
        elif allowed is not None and form not in allowed:
            counts["inadmissible"] += 1
        else:
            seen.add(form)
            kept.append(action.strip())
            counts["kept"] += 1
    return kept, counts


Filtered = tuple[list[Question], Counter]  # the pairs of one state, and what became of the rest


def make_pairs(
    policy: Policy,
    prompter: Prompter,
    states: ExpertStates,
    config: PairsConfig,
    seed: int,
    provenance: dict[str, Any] | None = None,
) -> Iterator[Filtered]:
    """Find K alternatives at each state and yield what survives the filters, state by state.

    `seed` fixes states and samples; `provenance` (of what the policy was) goes into every pair.
    """
    chosen = choose_states(states, config.states_per_trajectory, seed)
    for at in range(0, len(chosen), SAMPLED_AT_ONCE):
        batch = [states[i] for i in chosen[at : at + SAMPLED_AT_ONCE]]
        if config.source == "policy":
            proposed = propose(policy, prompter, batch, config, seed + at)
        else:
            proposed = draw_admissible(batch, config.k, seed + at)
        yield from pairs_at(batch, proposed, config, provenance)


def propose(
    policy: Policy,
    prompter: Prompter,
    batch: Sequence[tuple[State, str]],
    config: PairsConfig,
    seed: int,
) -> list[list[str | None]]:
    """K actions of the policy at each (state, expert action); None where a reply held none."""
    prompts = [prompter.action(state, config.thinking).tokens for state, _ in batch]
    replies = policy.sample(prompts, config.k, config.max_tokens, config.temperature, seed)
    return [[prompter.action_in(s) for s in samples] for samples in replies]


def draw_admissible(
    batch: Sequence[tuple[State, str]], k: int, seed: int
) -> list[list[str | None]]:
    """k admissible actions other than the expert's, drawn uniformly; all where there are fewer."""
    drawn: list[list[str | None]] = []
    for i, (state, expert) in enumerate(batch):
        others, _ = filter_alternatives(expert, state.admissible or (), None, state.compare)
        order = np.random.default_rng([seed, i]).permutation(len(others))
        drawn.append([others[int(j)] for j in order[:k]])
    return drawn


def pairs_at(
    batch: Sequence[tuple[State, str]],
    proposed: Sequence[Sequence[str | None]],
    config: PairsConfig,
    provenance: dict[str, Any] | None = None,
) -> Iterator[Filtered]:
    """The pairs that survive the filters, state by state, each with its counts."""
    for (state, expert), actions in zip(batch, proposed, strict=True):
        check = state.admissible if config.drop_inadmissible else None
        kept, counts = filter_alternatives(expert, actions, check, state.compare)
        if config.source == "admissible":
            counts["unlisted"] += not state.admissible
        pairs = [Question(state, expert, (a,), provenance=provenance or {}) for a in kept]
        yield pairs, counts


def gather(by_state: Iterable[Filtered]) -> Filtered:
    """All pairs in one list, and what became of all proposals."""
    pairs: list[Question] = []
    counts: Counter = Counter()
    for kept, filtered in by_state:
        pairs += kept
        counts.update(filtered)
    return pairs, counts


# ---- presentation --------------------------------------------------------------------------


def by_state(pairs: Iterable[Question]) -> dict[tuple[State, str], list[str]]:
    """(state, expert action) → its distinct alternatives, in the order of the pairs."""
    others_at: dict[tuple[State, str], list[str]] = {}
    for pair in pairs:
        others = others_at.setdefault((pair.state, pair.expert), [])
        for alternative in pair.alternatives:
            if not any(same_action(alternative, other, pair.state.compare) for other in others):
                others.append(alternative)
    return others_at


def questions(pairs: Iterable[Question], choices: int = 2) -> list[Question]:
    """Pairs as questions with `choices` candidates each. No alternative is used twice.

    A state with m alternatives makes m // (choices − 1) questions; what is left over is not used.
    """
    size = choices - 1
    return [
        Question(state, expert, tuple(others[at : at + size]))
        for (state, expert), others in by_state(pairs).items()
        for at in range(0, len(others) - size + 1, size)
    ]


def positions(n: int, seed: Sequence[int], ways: int = 2) -> np.ndarray:
    """Where the expert's action stands in each of n presentations, shape [n].

    Every position comes up equally often (as nearly as n allows), in an order drawn from the seed:
    a critic that always answers "1" earns exactly chance.
    """
    rng = np.random.default_rng(list(seed))
    balanced_n = rng.permutation(n) % ways  # of 0..n-1, each remainder comes up n / ways times
    shift = rng.integers(ways)  # if ways does not divide n, chance says who gets the remainder
    return (balanced_n + shift) % ways


def draw_orders(asked: Sequence[Question], seed: Sequence[int]) -> list[Shown]:
    """Every question with its actions in a uniformly drawn order (see `positions`).

    Drawn anew for each presentation: a fixed order could be learned instead of the judgement.
    """
    ways = 1 + len(asked[0].alternatives)
    rng = np.random.default_rng([*seed, 1])
    shown = []
    for question, right in zip(asked, positions(len(asked), seed, ways)):
        mixed = tuple(question.alternatives[i] for i in rng.permutation(ways - 1))
        shown.append(replace(question, alternatives=mixed).present(int(right)))
    return shown


# ---- files ---------------------------------------------------------------------------------


def pair_row(pair: Question, history: int | None = None) -> dict[str, Any]:
    """One line of pairs.jsonl. The state keeps its last `history` turns; the rest is counted."""
    return {
        "state": state_row(pair.state, history),
        "expert": pair.expert,
        "alternative": pair.alternative,
        "split": pair.split,
        "provenance": pair.provenance,
    }


def state_row(state: State, history: int | None) -> dict[str, Any]:
    cut = 0 if history is None else max(len(state.history) - history, 0)
    row = asdict(replace(state, history=state.history[cut:], earlier=state.earlier + cut))
    usual = {"compare": "words", "marked": False, "tools": ()}  # left out, as they were before
    return {name: value for name, value in row.items() if usual.get(name, ...) != value}


def state_from(row: dict[str, Any]) -> State:
    """The inverse of `state_row`. ValueError naming the field for what is no state."""
    state = field(row, "state", "an object")
    admissible = field(state, "admissible", "a list of texts", None)
    return State(
        field(state, "id", "text"),
        field(state, "task", "text"),
        tuple(map(tuple, field(state, "history", "[[observation, action], …]"))),
        field(state, "observation", "text"),
        None if admissible is None else tuple(admissible),
        field(state, "earlier", "a count", 0),
        field(state, "compare", "text", "words"),
        state.get("marked") is True,
        tuple(field(state, "tools", "a list of objects", ())),
    )


def pair_from(row: dict[str, Any]) -> Question:
    """The inverse of `pair_row`. ValueError naming the field for what is no pair."""
    expert, alternative = field(row, "expert", "text"), field(row, "alternative", "text")
    state = state_from(row)
    if same_action(expert, alternative, state.compare):
        raise ValueError("expert and alternative are the same action")
    split = field(row, "split", "text", "train")
    provenance = field(row, "provenance", "an object", None) or {}
    return Question(state, expert, (alternative,), split, provenance)


def read_pairs(path: Path, skip_bad_rows: bool = False) -> list[Question]:
    """Read pairs.jsonl. Raises UserError naming the line and field of a damaged row."""
    pairs = read_objects(path, pair_from, skip_bad_rows)
    if not pairs:
        raise UserError(f"{path}: no pairs; see the counts of the filters, or raise pairs.k")
    return pairs
