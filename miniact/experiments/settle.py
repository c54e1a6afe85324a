"""Data against config, before anything is made.

A limit that the config leaves open (0) is taken from the data. What would fail hours later, or
teach nothing, stops now, in one line. The model's tokenizer measures; no weights are loaded.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console

from miniact import UserError
from miniact.backends.common import config_folder
from miniact.backends.models import ModelSource, find_model, load_tokenizer
from miniact.config import Config
from miniact.config.load import (
    THINKING,
    changed_keys,
    load_config,
    value_of,
    with_limits_of,
    with_overrides,
)
from miniact.config.sections import LIMITS, EnvConfig
from miniact.data.trajectories import TrajectoryFile, find_file, import_rows, is_held_out, to_row
from miniact.experiments.lengths import tell, too_long, unlimited, whole
from miniact.method import run_of
from miniact.method.calls import calls_of
from miniact.method.prompts import Prompter
from miniact.method.stage import needs_of
from miniact.runs.files import write_jsonl
from miniact.types import State

THOUGHT = 256  # tokens of room for reasoning
SAMPLE = 300  # states whose prompts and actions set the limits
MOST_UNKNOWN = 0.2  # share of tokens that a tokenizer may not know


def settled(config: Config, console: Console | None = None) -> Config:
    """The config with every limit set, checked against the data. UserError for what cannot work.

    Notes go to the console. Without a trajectory file there are no data yet.
    """
    if not config.env.trajectories:
        return _with_form(config, None) if config.prompt.form == "auto" else config
    prompter, context = open_prompter(config)
    with _indexed(config.env) as file:
        if config.prompt.form == "auto":
            config = _with_form(config, file)
            prompter = Prompter(prompter.tokenizer, config.prompt)
        data = Measured.of(prompter, config, file)
        notes = list(data.problems(config))
        if prompter.chat and not prompter.chat.own_calls:
            notes.append(
                f"the template of {config.model.path} writes no tool calls that can be read back: "
                "they stand in <tool_call> tags, and a system message holds the definitions"
            )
        config = _set(config, data.prompt, {"action": data.action, "choice": data.choice}, context)
        notes += data.short_limits(config)
        longest = config.prompt.max_tokens + max(value_of(config, key) for key in LIMITS)
        if context and longest > context:
            notes.append(
                f"a prompt and its answer may take {longest} tokens, and {config.model.path} was "
                f"made for {context} positions"
            )
        notes += tell(config, file, too_long(prompter, config, file))
    if console:
        for note in notes:
            console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    return config


def settled_for(config: Config, out: Path, console: Console | None = None) -> Config:
    """The same for run folder `out`: a run that goes on keeps its limits, whatever became of the
    source of its data."""
    saved = out / "config.yaml"
    if saved.is_file() and not changed_keys(saved, config):
        return with_limits_of(load_config(saved, saved=True), config)
    return settled(config, console)


def _thinks(config: Config, key: str) -> bool:
    """Whether answers begin with a thought; auto: if those of a stage do."""
    if (value := value_of(config, key)) is None:
        return config.thinks("act" if key == "eval.judge_thinking" else "")
    return bool(value)


def _with_form(config: Config, file: TrajectoryFile | None) -> Config:
    """What prompt.form: auto means for this model and these data."""
    prompter, _ = open_prompter(config)
    if not prompter.template.exists or not prompter.writes_tags:
        return with_overrides(config, ["prompt.form=plain", *(f"{key}=false" for key in THINKING)])
    first = map(file.read, range(min(len(file), 100))) if file else ()
    calls = any(t.tools or any(calls_of(step.action) for step in t.steps) for t in first)
    return with_overrides(config, [f"prompt.form={'chat' if calls else 'tags'}"])


def _set(
    config: Config, prompt: int, longest: dict[str, int], context: int | None = None
) -> Config:
    """Set what is 0, so that a prompt and its answer fit in one pass of the model.

    An answer takes a quarter of that at the most, a prompt what the longest answer leaves.
    """
    batch, known = config.model.max_tokens_per_batch, config.prompt.max_tokens
    most = min(batch, context or batch)
    room = max(8, batch - known if known else most // 4)
    limits = {
        key: value_of(config, key) or min(longest[holds] + THOUGHT * _thinks(config, thinks), room)
        for key, (holds, thinks) in LIMITS.items()
    }
    if not known:
        reflects = config.stage.reflect.max_tokens if "reflect" in config.recipe else 0
        left = most - max(*limits.values(), min(longest["action"], room), reflects)
        limits["prompt.max_tokens"] = max(16, min(prompt, left))
    return with_overrides(config, [f"{key}={n}" for key, n in limits.items()])


def open_prompter(config: Config) -> tuple[Prompter, int | None]:
    """A prompter with the model's tokenizer, and how many positions the model says it has."""
    folder, source = config_folder(config.model.path), find_model(config.model.path)
    model = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if source.is_local:  # a converted GGUF lies elsewhere
        source = ModelSource(str(folder), is_local=True)
    inner = model.get("text_config") or model
    prompter = Prompter(load_tokenizer(source), config.prompt)
    return prompter, inner.get("max_position_embeddings")


@contextmanager
def _indexed(env: EnvConfig) -> Iterator[TrajectoryFile]:
    """The source of trajectories as an indexed file: itself, or a copy in our format for now."""
    path, rows = (
        find_file(env.trajectories),
        import_rows(env.trajectories, env.columns, env.skip_bad_rows),
    )
    if path.suffix == ".jsonl" and path.is_file() and not env.columns:
        next(rows)  # says what to do with a log of another format
        yield TrajectoryFile(path, env.skip_bad_rows)
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "trajectories.jsonl"
        write_jsonl(copy, map(to_row, rows))
        yield TrajectoryFile(copy, env.skip_bad_rows)


@dataclass
class Measured:
    """What the rows are like. Lengths are in tokens, of a sample of the states."""

    source: str
    splits: Counter[str]  # rows by the split that they will have
    tasks: int  # different ones
    listed: bool  # some state lists what could have been done
    prompts: np.ndarray  # with as much history as the config shows
    actions: np.ndarray  # as replies, their end included
    choice: int
    unknown: float  # share of tokens that stand for words that the tokenizer does not know
    words: list[str]  # some of those words

    @classmethod
    def of(cls, prompter: Prompter, config: Config, file: TrajectoryFile) -> Measured:
        prompter = unlimited(prompter)
        share, splits = config.env.heldout_share, Counter[str]()
        tasks, listed = set[int](), False
        parted = share and set(file.splits) == {"train"}
        for i, split in enumerate(file.splits):
            trajectory = file.read(i)
            held = parted and is_held_out(trajectory.task, share)
            splits["heldout" if held else split] += 1
            tasks.add(hash(trajectory.task))
            listed = listed or any(step.admissible for step in trajectory.steps)
        states = file.states(*set(file.splits))
        chosen = np.random.default_rng(0).permutation(len(states))[:SAMPLE]
        sample = [states[int(i)] for i in sorted(chosen)]
        reply, ways = prompter.reply_tokens, range(config.pairs.choices)
        actions = np.array([len(reply(prompter.render_action(action))) for _, action in sample])
        choice = max(len(reply(prompter.render_choice(i))) for i in ways)
        if config.prompt.form == "plain":  # a bare critic may name an action by its own words
            choice = max(choice, int(actions.max()))
        prompts = np.array([whole(prompter, config, *known) for known in sample])
        unknown = _unknown(prompter.tokenizer, sample)
        source = config.env.trajectories
        return cls(
            source, splits, len(tasks), listed, prompts, actions, _round(choice, 8), *unknown
        )

    @property
    def action(self) -> int:
        """Room for 99 of 100 actions: a single text of a book's length sets no limit for all."""
        return _round(int(np.quantile(self.actions, 0.99, method="higher")), 8)

    @property
    def prompt(self) -> int:
        return _round(int(self.prompts.max()), 64)

    def problems(self, config: Config) -> Iterator[str]:
        """What to look at; UserError for what makes a run useless."""
        rows, why = self.splits.total(), ""
        if self.tasks == 1:
            why = " (all have the same task, and rows are held out by their task)"
        if not self.splits["train"]:
            raise UserError(f"{self.source}: none of {rows} rows is left to train on{why}; lower "
                            "env.heldout_share, or see their split fields")  # fmt: skip
        if self.splits["train"] == rows and (config.eval.states or config.eval.pairs):
            raise UserError(
                f"{self.source}: none of {rows} rows is held out, so nothing can be measured{why}; "
                "raise env.heldout_share, or train without measuring: eval.states=0 eval.pairs=0"
            )
        if config.pairs.source == "admissible" and not (config.pairs.file or self.listed):
            raise UserError(
                f"pairs.source: admissible, and {self.source} lists no actions; use policy"
            )
        words = ", ".join(map(repr, self.words))
        if self.unknown > MOST_UNKNOWN:
            raise UserError(
                f"model.path: {config.model.path} does not know {self.unknown:.0%} of the words of "
                f"{self.source} (such as {words}); name a model with a vocabulary for them"
            )
        if self.unknown > 0.01:
            yield f"{config.model.path} does not know {self.unknown:.0%} of the words ({words}, …)"

    def short_limits(self, config: Config) -> Iterator[str]:
        """Limits that cut off the expert's own actions: nobody could answer as the expert does."""
        for key in _used(config):
            limit = value_of(config, key)
            cut = float((self.actions > limit).mean())
            if cut > 0.5:
                raise UserError(
                    f"{key}: {limit}, and {cut:.0%} of the actions are longer (half of them than "
                    f"{int(np.median(self.actions))} tokens); leave the key out, and it follows "
                    "from the data"
                )
            if cut > 0.01:
                yield f"{cut:.0%} of the actions are longer than {key} {limit}"


def _used(config: Config) -> list[str]:
    """The limits under which actions are sampled."""
    needed = any("pairs" in needs_of(run_of(name)) for name in config.recipe) or config.eval.pairs
    samples = config.pairs.source == "policy" and not config.pairs.file
    keys = ["pairs.max_tokens"] if needed and samples else []
    keys += ["stage.rl.max_tokens"] if "rl" in config.recipe else []
    return keys + (["eval.max_tokens"] if config.eval.states else [])


def _unknown(tokenizer: Any, sample: Sequence[tuple[State, str]]) -> tuple[float, list[str]]:
    """(the share of tokens that stand for unknown words, some of those words)."""
    unknown, count, tokens = tokenizer.unk_token_id, 0, 0
    if unknown is None:
        return 0.0, []

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    words: dict[str, None] = {}
    for state, action in sample:
        text = f"{state.task}\n{state.observation}\n{action}"
        tokens, here = tokens + len(ids(text)), ids(text).count(unknown)
        count += here
        if here and len(words) < 3:
            words |= dict.fromkeys(word for word in text.split() if unknown in ids(word))
    return count / max(tokens, 1), list(words)[:3]


def _round(n: int, to: int) -> int:
    """The next multiple: a little more than what was seen."""
    return (n // to + 1) * to
