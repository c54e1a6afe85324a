"""The samples of a report: rollout groups, whole episodes and pairs, thinned to fit the page."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

from miniact.config.sections import PromptConfig
from miniact.evaluation.episodes import Move, failures_running
from miniact.experiments.reading import Run, read_rows
from miniact.method.prompts import Prompter, unescape
from miniact.runs.files import read_jsonl

TEXT = 4000  # characters of one text that are shown
SIZE = 5_000_000  # bytes of samples in a page; with more, fewer samples are kept
LEVELS = ((24, None), (12, None), (6, None), (3, None), (3, 1), (1, 1))  # samples per part, seeds


class _NoTokens:
    """Stands where Prompter wants a tokenizer: to parse replies, none is needed."""

    chat_template = None

    def get_added_vocab(self) -> dict[str, int]:
        return {}


def clip(value: Any) -> str:
    text = str(value)
    left = len(text) - TEXT
    return text if left <= 0 else f"{text[:TEXT]} … [{left} more characters are not shown]"


def spread(items: list[Any], n: int) -> list[Any]:
    """n of the items, evenly from the first to the last."""
    if len(items) <= n:
        return items
    return [items[round(i * (len(items) - 1) / max(n - 1, 1))] for i in range(n)]


def candidates(prompt: str) -> list[str]:
    """The numbered actions of a critic prompt, in the order shown; [] if it asks no question."""
    actions: list[str] = []
    for line in prompt.split("\n"):
        numbered = re.fullmatch(r"\s*(?:Action )?(\d+) ?: (.+)", line)
        if numbered and int(numbered[1]) == len(actions) + 1:
            actions.append(unescape(numbered[2].strip()))
        elif line.strip().lower().startswith("which") and len(actions) > 1:
            return actions
        elif line.strip():  # the list ended without its question: it was something else
            actions = []
    return []


def group_item(
    row: dict[str, Any], stage: str, prompter: Prompter, rule: str = "words"
) -> dict[str, Any]:
    """One rollout group. In a critic's group, `right` is the expert's candidate; else `expert` is.

    Rows of older runs say neither: then `right` is what a correct answer chose, if there is one;
    and which answers were correct: then those are that were rewarded.
    """
    critic = stage.partition("-")[2] == "act"
    stored = [str(action) for action in row.get("actions") or ()]
    actions = (stored or candidates(row["prompt"])) if critic else []
    answers, right = [], row["right"] if stored and critic else None
    for answer in row["answers"]:
        item = {k: answer.get(k) for k in ("stop", "reward", "valid", "advantage", "logp")}
        item["choice"] = prompter.parse_choice(answer["reply"], actions, rule) if actions else None
        if stored:
            pass  # the row says it itself
        elif item["choice"] is not None and answer.get("correct", answer["reward"] > 0.5):
            right = item["choice"]
        elif item["choice"] is not None and len(actions) == 2 and right is None:
            right = 1 - item["choice"]
        answers.append({"reply": clip(answer["reply"]), **item})
    return {
        "step": int(row["step"]),
        "prompt": clip(row["prompt"]),
        "actions": [clip(action) for action in actions],
        "expert": clip(stored[0]) if stored and not critic else None,
        "right": right,
        "answers": answers,
    }


def episode_item(row: dict[str, Any]) -> dict[str, Any]:
    """One episode. A move: [observation, reply, action, applied, times running that it failed]."""
    played = [Move(**move) for move in row["moves"]]
    moves = []
    for move, times in zip(played, failures_running(played)):
        reply = "" if move.reply.strip() == move.action.strip() else clip(move.reply)
        seen, done = clip(move.observation), clip(move.action)
        moves.append([seen, reply, done, bool(move.applied), times])
    return {
        "id": str(row["task_id"]),
        "task": clip(row["task"]),
        **{k: row[k] for k in ("success", "score", "stop")},
        "moves": moves,
        "last": clip(row.get("last", "")),
    }


def pair_item(row: dict[str, Any]) -> dict[str, Any]:
    state = row["state"]
    return {
        "id": str(state["id"]),
        "task": clip(state["task"]),
        "history": [[clip(seen), clip(done)] for seen, done in state["history"]],
        "earlier": state.get("earlier", 0),
        "observation": clip(state["observation"]),
        "admissible": [clip(a) for a in state.get("admissible") or ()],
        "expert": clip(row["expert"]),
        "alternative": clip(row["alternative"]),
        "split": str(row.get("split", "train")),
        "from": clip((row.get("provenance") or {}).get("model", "")),
    }


def compared_by(run: Run) -> str:
    """The rule by which this run compares actions: its data have one."""
    if not (run.path / "trajectories.jsonl").is_file():
        return "words"
    first = next(read_jsonl(run.path / "trajectories.jsonl", []), None)
    return str(first[2].get("compare", "words")) if first else "words"


class Samples:
    """Groups, episodes and pairs of all runs, thinned until they fit the page."""

    def __init__(self, runs: list[Run], notes: list[str]) -> None:
        self.notes = notes
        self.seeds = list(dict.fromkeys(run.seed for run in runs))
        self.parts: list[tuple[str, int, list[dict[str, Any]], int]] = []  # kind, seed, items, of
        for number, run in enumerate(runs):
            form = str((run.config.get("prompt") or {}).get("form"))
            # a dialogue's critic answers in tags, and only its choices are read here
            parses = PromptConfig(form="tags" if form == "chat" else form)
            prompter, rule = Prompter(_NoTokens(), parses), compared_by(run)
            for file in sorted((run.path / "samples").glob("*.jsonl")):
                make = functools.partial(group_item, stage=file.stem, prompter=prompter, rule=rule)
                self._add("groups", run, file, {"run": number, "stage": file.stem}, make)
            for file in sorted((run.path / "stages").glob("*/episodes.jsonl")):
                about = {"run": number, "stage": file.parent.name}
                self._add("episodes", run, file, about, episode_item)
            if run.seed not in {r.seed for r in runs[:number]}:  # recipes share a seed's pairs
                self._add("pairs", run, run.path / "pairs.jsonl", {"run": number}, pair_item)

    def _add(self, kind: str, run: Run, file: Path, about: dict[str, Any], make: Any) -> None:
        """Read a file, split by split: what is not of some split is one part."""
        parts: dict[str, list[dict[str, Any]]] = {}
        rows = read_rows(file, self.notes)
        own = [str(row.get("split", "")) for row in rows]
        splits = _splits_of_episodes(run, len(rows)) if kind == "episodes" else own
        for split, row in zip(splits, rows):
            parts.setdefault(split, []).append(row)
        bad = 0
        for split, chosen in parts.items():
            items = []
            for row in spread(chosen, LEVELS[0][0]):
                try:
                    items.append({**about, "split": split, **make(row)})
                except (LookupError, TypeError, ValueError, AttributeError):
                    bad += 1
            self.parts.append((kind, run.seed, items, len(chosen)))
        if bad:
            self.notes.append(f"{file}: {bad} entries left out: fields missing or of other types")

    def gather(self) -> dict[str, Any]:
        """kind → its items, with how many of how many; the first level that is small enough."""
        for most, seeds in LEVELS:
            kept: dict[str, Any] = {
                kind: {"items": [], "of": 0} for kind in ("pairs", "groups", "episodes")
            }
            for kind, seed, items, of in self.parts:
                kept[kind]["of"] += of
                if seed in self.seeds[:seeds]:
                    kept[kind]["items"] += spread(items, most)
            kept |= {"most": most, "seeds": self.seeds[:seeds]}
            if len(json.dumps(kept)) <= SIZE:
                break
        return kept


def _splits_of_episodes(run: Run, n: int) -> list[str]:
    """The split of each of n episodes: they are in the order of the evaluation's splits."""
    evaluated = next(iter(run.results.values())).get("splits", {})
    names = [name for name, result in evaluated.items() for _ in range(result["success"]["n"])]
    return names if len(names) == n else [""] * n
