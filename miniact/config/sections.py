"""The configuration: one frozen dataclass per section of the YAML file, strict and typed.

A key is declared once, by `key(default, "meaning", ...)`; from that come its type check, its range
check, the `key=value` overrides of the command line and the reference page. Defaults are miniact's
own choices: the paper's public material does not give them (see the README).
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from miniact import UserError
from miniact.config.strict import build, key


@dataclass(frozen=True)
class ModelConfig:
    """The model, and how it is trained."""

    path: str = key(
        "builtin:tiny", "model folder, .gguf file, pypi:PACKAGE, builtin:tiny or hub name"
    )
    backend: str = key(
        "auto",
        "library that computes; auto: MLX on Apple silicon where it is installed, else PyTorch",
        choices=("auto", "torch", "mlx"),
    )
    adapter: str = key(
        "lora",
        "what is trained: LoRA on a 4-bit base, LoRA, or all weights",
        choices=("qlora", "lora", "full"),
    )
    rank: int = key(16, "rank r of LoRA", low=1)
    alpha: float = key(32.0, "α of LoRA; the update is scaled by α / r", low=0)
    start: str = key("", "folder of a PEFT adapter to start from; empty: a fresh one")
    dtype: str = key(
        "auto",
        "precision of the base; auto: bfloat16 on a GPU that has it, else float32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    device: str = key("auto", "auto, cpu, cuda, cuda:1 or mps; auto: the best there is")
    gradient_checkpointing: bool = key(False, "recompute activations in the backward pass")
    max_tokens_per_batch: int = key(
        8192,
        "most tokens in one forward pass; lower it if memory runs out: the result stays the same",
        low=16,
    )
    weight_decay: float = key(0.0, "AdamW's decoupled weight decay", low=0)


@dataclass(frozen=True)
class PromptConfig:
    """What the model is shown, and the form of its replies."""

    form: str = key(
        "tags",
        "tags: <action>…</action> and <choice>…</choice>; plain: the bare answer, for tiny models",
        choices=("tags", "plain"),
    )
    max_tokens: int = key(2048, "longest prompt, in tokens; older history is dropped first", low=16)
    history: int = key(50, "most recent (observation, action) turns shown", low=0)
    show_admissible: bool = key(True, "list the admissible actions in the prompt, where known")


@dataclass(frozen=True)
class EnvConfig:
    """The world, and the expert trajectories."""

    name: str = key("household", "environment; none: work from a trajectory file alone")
    options: dict = key({}, "passed to the environment, for example {max_steps: 20}")
    train_tasks: int = key(200, "expert trajectories to collect from the train split", low=1)
    heldout_tasks: int = key(
        40, "expert trajectories per evaluation split, never trained on", low=0
    )
    parallel: int = key(128, "episodes played at once, in this process (see workers)", low=1)
    workers: int = key(
        0,
        "processes with one environment each, for slow simulators: so many episodes are played at "
        "once instead of `parallel`, and one that hangs or dies is lost alone; 0: none",
        low=0,
    )
    trajectories: str = key("", "trajectory file (.jsonl, .parquet) or HF dataset to use instead")
    columns: dict = key({}, "our field → the file's column, where they differ: {task: instruction}")
    heldout_share: float = key(
        0.2, "share of trajectories held out when the file has one split only", low=0
    )
    skip_bad_rows: bool = key(False, "count malformed rows and go on, instead of stopping")


@dataclass(frozen=True)
class PairsConfig:
    """Contrastive pairs: where alternatives come from."""

    file: str = key("", "existing pairs.jsonl to use instead of making pairs")
    source: str = key(
        "policy",
        "where alternatives come from: sampled from the initial policy, or drawn uniformly from "
        "the admissible actions",
        choices=("policy", "admissible"),
    )
    k: int = key(2, "alternatives sampled per state (K)", low=1)
    choices: int = key(
        2,
        "candidates shown to the critic: the expert's action and choices − 1 alternatives",
        choices=(2, 3, 4, 5, 6),
    )
    temperature: float = key(1.0, "sampling temperature of the initial policy", low=0)
    max_tokens: int = key(24, "longest alternative, in tokens", low=1)
    states_per_trajectory: int = key(0, "states used per trajectory; 0: all", low=0)
    thinking: bool = key(False, "let the initial policy think before it acts")
    drop_inadmissible: bool = key(False, "drop alternatives that the environment does not list")


@dataclass(frozen=True)
class StageConfig:
    """Keys that every stage has."""

    steps: int = key(
        100, "training steps; in act and rl each makes `updates` optimizer steps", low=0
    )
    batch: int = key(16, "prompts per step", low=1)
    lr: float = key(1e-4, "learning rate", low=0)
    warmup: int = key(5, "steps over which the learning rate rises from 0", low=0)
    schedule: str = key(
        "constant", "learning rate after the warm-up", choices=("constant", "linear")
    )
    max_grad_norm: float = key(1.0, "a gradient of a larger L2 norm is scaled down to it", low=0)
    thinking: bool = key(False, "let the model think before it answers")
    checkpoint_every: int = key(25, "steps between checkpoints", low=1)


@dataclass(frozen=True)
class ILConfig(StageConfig):
    """Imitation learning: cross-entropy on the expert's actions."""


@dataclass(frozen=True)
class GRPOConfig(StageConfig):
    """Keys of both RL stages: `act` (rewards the choice) and `rl` (rewards the action)."""

    group_size: int = key(8, "answers per prompt (G); an advantage needs at least 2", low=2)
    temperature: float = key(
        1.0, "sampling temperature; no top-p, so that sampled = scored", low=1e-3
    )
    max_tokens: int = key(24, "longest answer, in tokens", low=1)
    variant: str = key(
        "grpo",
        "how token losses are averaged: grpo per answer, then over answers; dapo over all "
        "tokens; dr_grpo by a constant, and advantages are not divided by the group's deviation",
        choices=("grpo", "dr_grpo", "dapo"),
    )
    clip_low: float = key(0.2, "ε_low: ratios under 1 − ε_low are clipped", low=0)
    clip_high: float = key(0.2, "ε_high: ratios over 1 + ε_high are clipped", low=0)
    beta: float = key(0.0, "β: weight of the KL term to the stage's starting adapter", low=0)
    updates: int = key(1, "optimizer steps per sampled batch", low=1)
    format_weight: float = key(
        0.0, "w in reward = (1 − w)·correct + w·well formed; under 0.5", low=0
    )
    admissible_credit: float = key(0.0, "reward of a wrong but admissible action (rl only)", low=0)


@dataclass(frozen=True)
class ACTConfig(GRPOConfig):
    """Agentic critical training: GRPO on choices."""

    refresh_pairs: int = key(
        0,
        "steps after which alternatives are sampled anew, from the current policy; 0: never",
        low=0,
    )


@dataclass(frozen=True)
class ChoiceSFTConfig(StageConfig):
    """The control that imitates the right choice: cross-entropy, no reasoning, no reward."""


@dataclass(frozen=True)
class DPOConfig(StageConfig):
    """The control that prefers a⁺ to a⁻ directly (direct preference optimisation)."""

    beta: float = key(0.1, "β: how strongly the policy is held to where it started", low=1e-3)


@dataclass(frozen=True)
class ReflectConfig(StageConfig):
    """Early Experience: imitate reflections on what each action led to, mixed with IL."""

    share: float = key(
        0.5, "share of a batch that are reflections; the rest are expert actions", low=0
    )
    max_tokens: int = key(256, "longest reflection, in tokens; a longer one is dropped", low=1)
    temperature: float = key(1.0, "sampling temperature of the policy that reflects", low=0)


@dataclass(frozen=True)
class StagesConfig:
    il: ILConfig = field(default_factory=ILConfig)
    act: ACTConfig = field(default_factory=ACTConfig)
    rl: GRPOConfig = field(default_factory=GRPOConfig)
    choice_sft: ChoiceSFTConfig = field(default_factory=ChoiceSFTConfig)
    dpo: DPOConfig = field(default_factory=DPOConfig)
    reflect: ReflectConfig = field(default_factory=ReflectConfig)


STAGES = tuple(field.name for field in dataclasses.fields(StagesConfig))


@dataclass(frozen=True)
class EvalConfig:
    """What is measured after every stage, on held-out tasks, states and pairs."""

    episodes: int = key(100, "episodes per split; 0: none", low=0)
    splits: list = key(["id", "ood"], "splits of the environment to evaluate on")
    states: int = key(200, "held-out expert states for next-action accuracy", low=0)
    pairs: int = key(
        200, "held-out pairs for judgement accuracy, asked with the expert in every position", low=0
    )
    temperature: float = key(0.0, "sampling temperature; 0: greedy", low=0)
    max_tokens: int = key(24, "longest action reply, in tokens", low=1)
    judge_max_tokens: int = key(24, "longest judgement reply, in tokens", low=1)
    thinking: bool = key(False, "let the model think before it acts")
    judge_thinking: bool = key(False, "let the model think before it judges")
    intervene: str = key(
        "none",
        "what is done to the critic's reasoning; remove: it must choose at once; wrong: it chooses "
        "after an argument of ours for a wrong candidate",
        choices=("none", "remove", "wrong"),
    )


@dataclass(frozen=True)
class Config:
    seed: int = key(0, "every random choice follows from it", low=0)
    recipe: list = key(["il", "act", "rl"], "stages in order; each continues from the one before")
    model: ModelConfig = field(default_factory=ModelConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    stage: StagesConfig = field(default_factory=StagesConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def _thinks(config: Config) -> bool:
    stages = (getattr(config.stage, name) for name in STAGES)
    judges = config.eval.thinking or config.eval.judge_thinking or config.eval.intervene != "none"
    return judges or config.pairs.thinking or any(s.thinking for s in stages)


def _validate(config: Config) -> Config:
    for i, name in enumerate(config.recipe):
        if name not in STAGES:
            near = difflib.get_close_matches(name, STAGES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"recipe[{i}]: unknown stage {name!r}, one of {', '.join(STAGES)}{hint}"
            )
    _validate_stages(config)
    _validate_pairs(config)
    if config.prompt.form == "plain" and _thinks(config):
        raise UserError(
            "prompt.form: plain replies hold no reasoning; use tags, or thinking: false"
        )
    if config.eval.intervene != "none" and not config.eval.judge_thinking:
        raise UserError(
            f"eval.intervene: {config.eval.intervene} changes the critic's reasoning, and there is "
            "none; set eval.judge_thinking: true"
        )
    answers = [config.stage.act.max_tokens, config.stage.rl.max_tokens, config.eval.max_tokens]
    if "reflect" in config.recipe:
        answers.append(config.stage.reflect.max_tokens)
    longest = config.prompt.max_tokens + max(answers)
    if longest > config.model.max_tokens_per_batch:
        raise UserError(
            f"model.max_tokens_per_batch: {config.model.max_tokens_per_batch} is less than one "
            f"prompt and its answer, {longest}; raise it, or lower prompt.max_tokens"
        )
    if config.env.heldout_share >= 1:
        raise UserError(
            f"env.heldout_share: {config.env.heldout_share} leaves nothing to train on; expected "
            "under 1"
        )
    if config.env.name == "none" and not config.env.trajectories:
        raise UserError("env.trajectories: expected a file of expert steps, since env.name is none")
    return config


def _validate_stages(config: Config) -> None:
    """What holds for one stage alone."""
    for name in ("act", "rl"):
        weight = getattr(config.stage, name).format_weight
        if weight >= 0.5:
            raise UserError(
                f"stage.{name}.format_weight: {weight} outranks correctness; expected under 0.5"
            )
    if config.stage.rl.admissible_credit >= 1 - config.stage.rl.format_weight:
        raise UserError(
            "stage.rl.admissible_credit: would outrank correctness, use a smaller value"
        )
    if config.stage.reflect.share > 1:
        raise UserError(
            f"stage.reflect.share: {config.stage.reflect.share} is over 1, a whole batch"
        )
    if "reflect" in config.recipe:
        if config.prompt.form == "plain":
            raise UserError("stage.reflect: plain replies hold no reasoning; use prompt.form: tags")
        if config.env.name == "none":
            raise UserError(
                "stage.reflect: acts in the environment, and env.name is none; name one"
            )


def _validate_pairs(config: Config) -> None:
    """What holds between pairs and the stages that use them."""
    pairs, refresh = config.pairs, config.stage.act.refresh_pairs
    if pairs.choices > pairs.k + 1 and (refresh or not pairs.file):
        raise UserError(
            f"pairs.choices: {pairs.choices} candidates need pairs.k of at least "
            f"{pairs.choices - 1}, got {pairs.k}"
        )
    if refresh and pairs.source == "admissible":
        raise UserError(
            "stage.act.refresh_pairs: admissible alternatives do not depend on the policy; use 0, "
            "or pairs.source: policy"
        )


def to_dict(config: Any) -> dict:
    return dataclasses.asdict(config)


def differing(before: dict, after: dict, where: str = "") -> list[str]:
    """The keys, as section.key, in which two resolved configs differ."""
    found = []
    for name, value in after.items():
        known = before.get(name)
        if isinstance(value, dict) and isinstance(known, dict) and name != "options":
            found += differing(known, value, f"{where}{name}.")
        elif known != value:
            found.append(where + name)
    return found


def load_config(path: str | Path | None, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a YAML file (None: all defaults), apply `section.key=value` overrides, check everything.

    Raises UserError, naming file or key, on anything unknown or of the wrong type or range.
    """
    data: Any = {}
    if path is not None:
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror}); expected a YAML file"
            ) from None
        except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or 2020-13-45
            raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
        data = {} if data is None else data
        if not isinstance(data, dict):
            raise UserError(f"{path}: expected sections such as model: and env:, got {data!r:.60}")
    try:
        return _validate(build(Config, _override(data, overrides), ""))
    except UserError as error:
        raise UserError(f"{path}: {error}" if path else str(error)) from None


def with_overrides(config: Config, overrides: typing.Sequence[str]) -> Config:
    """The same config with some `section.key=value` changed, checked again."""
    return _validate(build(Config, _override(to_dict(config), overrides), ""))


def _override(data: dict, overrides: typing.Sequence[str]) -> dict:
    for override in overrides:
        name, sep, text = override.partition("=")
        if not sep:
            raise UserError(f"{override!r}: expected key=value, for example stage.act.steps=50")
        *sections, last = name.split(".")
        node = data
        for section in sections:
            inner = node.get(section, {})
            if not isinstance(inner, dict):
                raise UserError(f"{name}: {section} is no section")
            node[section] = dict(inner)  # a copy: two sections may be one object, by a YAML alias
            node = node[section]
        try:
            node[last] = yaml.safe_load(text) if text else ""
        except (yaml.YAMLError, ValueError):
            node[last] = text
    return data
