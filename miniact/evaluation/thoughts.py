"""What a model thinks: kinds of sentences, how many are true, and whether it does what it says.

Only where a world can tell: an environment with `check_thought(state, thought)`, which names the
kind of each sentence and says whether it is true in that state, and `things(text)`, the things that
a text is about. The household world has both (envs/household_facts.py). Nothing here is rewarded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from miniact.envs import Env
from miniact.evaluation.episodes import Episode
from miniact.evaluation.rates import rate
from miniact.method.prompts import Prompter
from miniact.types import State


@dataclass(frozen=True, slots=True)
class Said:
    """A thought, and the answer after it: an action, or one of `candidates`; None: no answer."""

    state: State
    thought: str
    answer: str | None
    candidates: tuple[str, ...] = ()


def thoughts_of(envs: Sequence[Env], **said: Sequence[Said]) -> dict[str, Any]:
    """`measure_thoughts` of all that thought (act=…, judge=…), where the world can tell."""
    if not envs or not hasattr(envs[0], "check_thought"):
        return {}
    return {who: measure_thoughts(envs[0], thought) for who, thought in said.items() if thought}


def measure_thoughts(env: Any, said: Sequence[Said]) -> dict[str, Any]:
    """Figures on what was thought.

    true: sentences that are. follows: answers that are about what was thought; see `follows`.
    sentences: their mean number in a thought. kinds: of each its share of all sentences, and how
    many of it are true.
    """
    checked = [pair for s in said for pair in env.check_thought(s.state, s.thought)]
    count, right = Counter(kind for kind, _ in checked), Counter(k for k, true in checked if true)
    verdicts = [follows(env, s) for s in said]
    return {
        "true": rate([true for _, true in checked]),
        "follows": rate([verdict for verdict in verdicts if verdict is not None]),
        "sentences": len(checked) / len(said),
        "kinds": {
            kind: {"share": n / len(checked), "true": rate([i < right[kind] for i in range(n)])}
            for kind, n in count.most_common()
        },
    }


def follows(env: Any, said: Said) -> bool | None:
    """Whether the answer is about a thing in the thought; None where that cannot be told.

    Of candidates: whether it is the one that has most of the thought's things, if one has.
    """
    mentioned = env.things(said.thought)
    if said.answer is None or not mentioned:
        return None
    if not said.candidates:
        about = env.things(said.answer)
        return bool(about & mentioned) if about else None
    shared = [len(env.things(candidate) & mentioned) for candidate in said.candidates]
    if shared.count(max(shared)) > 1:
        return None
    return said.answer == said.candidates[shared.index(max(shared))]


def said_in(prompter: Prompter, episodes: Iterable[Episode]) -> list[Said]:
    """Every thought of some episodes that came to an end, with its action."""
    said: list[Said] = []
    for episode in episodes:
        history: list[tuple[str, str]] = []
        for move in episode.moves:
            thought = prompter.parse_thought(move.reply)
            if thought:
                state = State(episode.task_id, episode.task, tuple(history), move.observation)
                said.append(Said(state, thought, move.action or None))
            history.append((move.observation, move.action or move.reply))
    return said
