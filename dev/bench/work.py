"""What `bench.py` measures: pieces of work, as tokens, the same for every side.

Either one prompt of P random words, or every state of an expert's trajectory, asked as ACT asks
(which of two actions is better?) or as imitation does (what next?).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from miniact import UserError
from miniact.backends.common import model_folder
from miniact.backends.models import ModelSource, load_tokenizer
from miniact.config.sections import PromptConfig
from miniact.data.trajectories import collect
from miniact.envs import make_env
from miniact.method.prompts import Prompter
from miniact.types import Trajectory

PLAYS = 200  # tasks of the expert that are looked through for trajectories that fit
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Work:
    """Prompts that are answered and learned from in one step; `replies`: that are imitated."""

    model: str
    layers: int  # the first so many of the model's; 0: all
    path: str  # where the model lies that is loaded: the same, or what was cut from it
    backend: str
    adapter: str
    group_size: int
    completion_tokens: int
    steps: int  # counted ones; a little of the same goes before them
    seed: int
    rank: int
    max_tokens: int  # model.max_tokens_per_batch
    trl_rows: int  # rows of a micro-batch of TRL
    trl_alone: bool  # TRL samples for one prompt at a time
    cpu: bool  # seconds of the processor, not of the clock
    prompts: tuple[Tokens, ...]
    replies: tuple[Tokens, ...] = ()  # the expert's, one to a prompt: imitation. Else GRPO
    about: dict[str, Any] = field(default_factory=dict)  # which trajectory

    def row(self) -> dict[str, Any]:
        """The work as it is reported: how much, not which tokens."""
        row = {name: value for name, value in asdict(self).items() if name not in PARTS}
        lengths = [len(p) for p in self.prompts]
        counted = {"longest_prompt": max(lengths), "prompt_tokens": sum(lengths)}
        return {**row, **self.about, **counted, "stage": "il" if self.replies else "act"}


PARTS = ("path", "prompts", "replies", "about")


def read_work(row: dict[str, Any]) -> Work:
    """The inverse of `asdict`, through JSON."""
    return Work(**row | {name: tuple(map(tuple, row[name])) for name in ("prompts", "replies")})


def tokenizer_of(path: str) -> Any:
    return load_tokenizer(ModelSource(str(model_folder(path)), is_local=True))


# ---- one prompt ----------------------------------------------------------------------------------


def single_prompts(Ps: str, Gs: str, path: str, seed: int, **options: Any) -> list[Work]:
    """One piece of work for every P and G of the comma-separated lists."""
    tokenizer, prompts = tokenizer_of(path), {}
    for P in numbers(Ps, "--prompt-tokens"):
        prompts[P] = tuple(tokenizer(random_text(tokenizer, P, seed))["input_ids"])
    return [
        Work(path=path, seed=seed, group_size=G, prompts=(prompt,), **options)
        for prompt in prompts.values()
        for G in numbers(Gs, "--group-size", least=2)
    ]


def numbers(listed: str, option: str, least: int = 1) -> list[int]:
    try:
        values = [int(value) for value in listed.split(",")]
    except ValueError:
        raise UserError(f"bench: {option}: expected 512 or 64,512") from None
    if min(values) < least:
        why = " (an advantage needs at least 2 answers)" if least == 2 else ""
        raise UserError(f"bench: {option}: expected at least {least}{why}")
    return values


def random_text(tokenizer: Any, length: int, seed: int) -> str:
    """A text of exactly `length` tokens: random words that are one token each."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    plain = [t[1:] for t, _ in vocabulary if t[:1] in "Ġ▁" and t[1:].isascii() and t[1:].isalpha()]
    words = plain or [t for t, _ in vocabulary if t.isascii() and t.isalpha()]
    chosen = np.random.default_rng(seed).integers(0, len(words), length)
    texts = (_fit(tokenizer, [words[i] for i in chosen], between, length) for between in (" ", ""))
    for text in filter(None, texts):
        return text
    raise UserError(
        f"bench: found no text of {length} tokens of this model; try another --prompt-tokens"
    )


def _fit(tokenizer: Any, words: list[str], between: str, length: int) -> str:
    """As many of the words as make `length` tokens; "" if that is not to be had."""
    for _ in range(50):  # the first word has no space before it, and may be several tokens
        excess = len(tokenizer(between.join(words))["input_ids"]) - length
        if excess == 0:
            return between.join(words)
        words = words[: -min(excess, len(words) - 1)] if excess > 0 else [*words, words[0]]
    return ""


# ---- the states of a trajectory ------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """Which trajectories, and what of them."""

    env: str
    count: int = 1
    longest: int = 8192  # most tokens in a prompt
    states: tuple[int, ...] = ()  # the first so many states of each; (): all
    stages: tuple[str, ...] = ("act",)
    shortest: int = 2  # fewest states


def trajectories(wanted: Wanted, path: str, seed: int, **options: Any) -> list[Work]:
    """One piece of work for every trajectory, stage and number of states."""
    config = PromptConfig(max_tokens=10**6, history=10**6, show_admissible=False)
    prompter = Prompter(tokenizer_of(path), config)
    works = []
    for trajectory in _chosen(wanted, prompter, seed):
        T = len(trajectory.steps)
        for stage in wanted.stages:
            prompts = _prompts(prompter, trajectory, stage)
            replies = [prompter.render_action(step.action) for step in trajectory.steps]
            learned = [prompter.reply_tokens(reply) for reply in replies] if stage == "il" else []
            for n in wanted.states or (T,):
                shown = tuple(prompts[:n])
                about: dict[str, Any] = {
                    "trajectory": trajectory.id,
                    "states": n,
                    "tree_tokens": tree(shown),
                }
                parts: dict[str, Any] = {"prompts": shown, "replies": tuple(learned[:n])}
                works.append(Work(path=path, seed=seed, about=about, **options, **parts))
    return works


def _chosen(wanted: Wanted, prompter: Prompter, seed: int) -> Iterator[Trajectory]:
    """Plays of the expert that fit what is wanted, in the order in which it plays."""
    env, n = make_env(wanted.env), 0
    least = max(wanted.shortest, *wanted.states, 2)
    try:
        for trajectory in collect(env, env.splits[0], PLAYS, seed, "expert"):
            if trajectory.success is not True or len(trajectory.steps) < least:
                continue
            if len({step.action for step in trajectory.steps}) < 2:
                continue
            if len(_prompts(prompter, trajectory, "act")[-1]) > wanted.longest:
                continue
            yield trajectory
            n += 1
            if n == wanted.count:
                return
    finally:
        env.close()
    raise UserError(
        f"bench: --trajectory {wanted.env}: {n} of {PLAYS} plays have {least} states or more in at "
        f"most {wanted.longest} tokens; expected {wanted.count}; raise --longest"
    )


def _prompts(prompter: Prompter, trajectory: Trajectory, stage: str) -> list[Tokens]:
    """The prompt of every state. ACT's second action is another that this expert took."""
    prompts = []
    for i, step in enumerate(trajectory.steps):
        state = trajectory.state(i)
        if stage == "il":
            prompts.append(prompter.action(state).tokens)
            continue
        others = sorted({other.action for other in trajectory.steps} - {step.action})
        shown = [step.action, others[i % len(others)]]
        prompts.append(prompter.critic(state, shown[:: 1 if i % 2 else -1]).tokens)
    return prompts


def tree(prompts: Sequence[Tokens]) -> int:
    """Tokens of the prompts when what each shares with the one before it counts once."""
    total, before = 0, Tokens()
    for prompt in prompts:
        pairs = enumerate(zip(before, prompt))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(before), len(prompt)))
        total, before = total + len(prompt) - shared, prompt
    return total


# ---- a shorter model -----------------------------------------------------------------------------


def cut(model: str, layers: int, folder: Path) -> str:
    """The model's first layers in a folder of their own: the same widths, vocabulary and head."""
    import shutil

    from safetensors.numpy import load_file, save_file

    source = model_folder(model)
    config = json.loads((source / "config.json").read_text())
    if not 0 < layers <= config["num_hidden_layers"]:
        raise UserError(f"bench: --layers: expected 1 to {config['num_hidden_layers']}")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    kept = {}
    for file in sorted(source.glob("*.safetensors")):
        for name, array in load_file(file).items():
            _, numbered, rest = name.partition(".layers.")
            if not numbered or int(rest.partition(".")[0]) < layers:
                kept[name] = array
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config["num_hidden_layers"] = layers
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:layers]
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)
