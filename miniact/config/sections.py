"""One frozen dataclass per section of the YAML file: every key with its meaning.

A key is declared once, by `key(default, "meaning", ...)`; from that come its type check, its range
check, the `key=value` overrides of the command line and the reference page. A rule about one
section is its `check`. Defaults are miniact's own choices: the paper's public material does not
give them (see the README).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from miniact import UserError
from miniact.config.plugins import check_form, is_plugin, section_of
from miniact.config.strict import key

OPEN = "0, or unset beside env.trajectories: as the data need"
LIMITS = {  # limit of answers: what they hold, the key that says whether they think first
    "pairs.max_tokens": ("action", "pairs.thinking"),
    "stage.act.max_tokens": ("choice", "stage.act.thinking"),
    "stage.rl.max_tokens": ("action", "stage.rl.thinking"),
    "stage.plugin.max_tokens": ("action", "stage.plugin.thinking"),
    "eval.max_tokens": ("action", "eval.thinking"),
    "eval.judge_max_tokens": ("choice", "eval.judge_thinking"),
}


@dataclass(frozen=True)
class ModelConfig:
    """The model, and how it is trained."""

    path: str = key("builtin:tiny", "folder, .gguf, pypi:PACKAGE, hub name, builtin:tiny, :thinker")
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
        "precision of a frozen base; auto: bfloat16 on a GPU that has it, else float32. What is "
        "trained is float32 always",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    device: str = key("auto", "auto, cpu, cuda, cuda:1 or mps; auto: the best there is")
    gradient_checkpointing: bool = key(False, "recompute activations in the backward pass")
    max_tokens_per_batch: int = key(
        8192,
        "most tokens in one forward pass; lower it if memory runs out: the result stays the same",
        low=16,
    )
    sample_memory: float = key(
        0.0,
        "GB for the keys and values of all answers that are sampled at once; 0: 80 % of what is "
        "free on a GPU, an eighth of a computer's memory; the result stays the same",
        low=0,
    )

    @property
    def precision(self) -> str:
        """`dtype`, but float32 where all weights are trained.

        A bfloat16 weight has 8 bits: of AdamW's steps at lr 1e-5 it would take one in six.
        """
        return "float32" if self.adapter == "full" else self.dtype


@dataclass(frozen=True)
class PromptConfig:
    """What the model is shown, and the form of its replies."""

    form: str = key(
        "tags",
        "tags: <action>…</action> and <choice>…</choice>; plain: the bare answer, for tiny models; "
        "chat: the dialogue as turns of the model's own template, tool calls in its own form; "
        "auto: chat for logs with tool calls, else tags; plain, without thinking, for a model that "
        "has no chat template or cannot write tags",
        choices=("tags", "plain", "chat", "auto"),
    )
    max_tokens: int = key(
        2048, f"longest prompt, in tokens; older history is dropped first; {OPEN}", low=0
    )
    too_long: str = key(
        "stop",
        "states whose task and observation alone are longer than that; shorten: the middle of long "
        "texts is left out, in sight; leave_out: nothing is learned or measured there",
        choices=("stop", "shorten", "leave_out"),
    )
    history: int = key(50, "most recent (observation, action) turns shown", low=0)
    wording: str = key("", "text file with the words of the prompts; empty: miniact's own")
    show_admissible: bool = key(True, "list the admissible actions in the prompt, where known")


@dataclass(frozen=True)
class EnvConfig:
    """The world, and the expert trajectories."""

    name: str = key("household", "environment, or module:Class; none: a trajectory file alone")
    options: dict = key({}, "passed to the environment, for example {max_steps: 20}")
    train_tasks: int = key(200, "expert trajectories to collect from the train split", low=1)
    heldout_tasks: int = key(40, "expert trajectories per held-out split, never trained on", low=0)
    parallel: int = key(128, "episodes played at once, in this process (see workers)", low=1)
    workers: int = key(
        0,
        "processes with one environment each, for slow simulators: so many episodes are played at "
        "once instead of `parallel`, and one that hangs or dies is lost alone; 0: none",
        low=0,
    )
    trajectories: str = key("", "trajectory file (.jsonl, .parquet) or HF dataset to use instead")
    columns: dict = key({}, "our field → the file's column, where they differ: {task: instruction}")
    heldout_share: float = key(0.2, "share to hold out of a file with one split", low=0, below=1)
    skip_bad_rows: bool = key(False, "count malformed rows and go on, instead of stopping")
    compare: str = key(
        "auto",
        "when two actions of a file are the same: auto is what the import found",
        choices=("auto", "words", "exact", "json"),
    )

    def check(self, where: str) -> None:
        if is_plugin(self.name):
            check_form(f"{where}.name", self.name)
        if self.name == "none" and not self.trajectories:
            raise UserError(
                f"{where}.trajectories: expected a file of expert steps, since {where}.name is none"
            )


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
    max_tokens: int = key(24, f"longest alternative, in tokens; {OPEN}", low=0)
    states_per_trajectory: int = key(0, "states used per trajectory; 0: all", low=0)
    thinking: bool = key(False, "let the initial policy think before it acts")
    drop_inadmissible: bool = key(False, "drop alternatives that the environment does not list")


@dataclass(frozen=True)
class StageConfig:
    """Keys that every stage has."""

    steps: int = key(100, "training steps; in act and rl each is `updates` optimizer steps", low=0)
    batch: int = key(16, "prompts per step", low=1)
    lr: float = key(1e-4, "learning rate", low=0)
    warmup: int = key(5, "steps over which the learning rate rises from 0", low=0)
    schedule: str = key("constant", "learning rate after warm-up", choices=("constant", "linear"))
    max_grad_norm: float = key(1.0, "a gradient of a larger L2 norm is scaled down to it", low=0)
    thinking: bool = key(False, "let the model think before it answers")
    checkpoint_every: int = key(25, "steps between checkpoints", low=1)


@dataclass(frozen=True)
class ILConfig(StageConfig):
    """Imitation learning: cross-entropy on the expert's actions.

    With `thinking` the action has a thought before it: one of four that the policy had in that
    state when the stage began, that which leads best to the action.
    """

    neighbours: int = key(1, "neighbouring states a batch takes together; 0: trajectories", low=0)
    max_tokens: int = key(256, "longest thought, in tokens; one that is longer is left out", low=1)


@dataclass(frozen=True)
class GRPOConfig(StageConfig):
    """Keys of the RL stages: `act` (rewards the choice), `rl` (the action), and one's own."""

    neighbours: int = key(1, "neighbouring states a batch takes together; 0: trajectories", low=0)
    group_size: int = key(8, "answers per prompt (G); an advantage needs at least 2", low=2)
    temperature: float = key(1.0, "sampling temperature; no top-p: sampled = scored", low=1e-3)
    max_tokens: int = key(24, f"longest answer, in tokens; {OPEN}", low=0)
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
        0.0,
        "w in reward = (1 − w)·correct + w·well formed; form must not outrank correctness",
        low=0,
        below=0.5,
    )
    admissible_credit: float = key(0.0, "reward of a wrong but admissible action (rl only)", low=0)
    reward: str = key("", "module:function of one's own that rewards a reply; empty: ours")

    def check(self, where: str) -> None:
        if self.reward:
            check_form(f"{where}.reward", self.reward)
        if self.admissible_credit >= 1 - self.format_weight:
            raise UserError(
                f"{where}.admissible_credit: would outrank correctness, use a smaller value"
            )


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

    share: float = key(0.5, "share of reflections in a batch; the rest is imitation", low=0, high=1)
    max_tokens: int = key(256, "longest reflection, in tokens; a longer one is dropped", low=1)
    temperature: float = key(1.0, "sampling temperature of the policy that reflects", low=0)


@dataclass(frozen=True)
class PluginConfig(GRPOConfig):
    """A stage of one's own, in the recipe as module:name. All such stages share these keys."""

    options: dict = key({}, "whatever else it wants to know: stage.config.options")


@dataclass(frozen=True)
class StagesConfig:
    il: ILConfig = field(default_factory=ILConfig)
    act: ACTConfig = field(default_factory=ACTConfig)
    rl: GRPOConfig = field(default_factory=GRPOConfig)
    choice_sft: ChoiceSFTConfig = field(default_factory=ChoiceSFTConfig)
    dpo: DPOConfig = field(default_factory=DPOConfig)
    reflect: ReflectConfig = field(default_factory=ReflectConfig)
    plugin: PluginConfig = field(default_factory=PluginConfig)


STAGES = tuple(f.name for f in fields(StagesConfig) if f.name != "plugin")  # what recipes name


@dataclass(frozen=True)
class EvalConfig:
    """What is measured after every stage, on held-out tasks, states and pairs."""

    episodes: int = key(100, "episodes per split; 0: none", low=0)
    splits: list = key(["id", "ood"], "splits of the environment to evaluate on")
    states: int = key(200, "held-out expert states for next-action accuracy", low=0)
    pairs: int = key(200, "pairs for judgement accuracy, with the expert in every position", low=0)
    temperature: float = key(0.0, "sampling temperature; 0: greedy", low=0)
    max_tokens: int = key(24, f"longest action reply, in tokens; {OPEN}", low=0)
    judge_max_tokens: int = key(24, f"longest judgement reply, in tokens; {OPEN}", low=0)
    thinking: bool | None = key(
        None,
        "let the model think before it acts; auto: as the stage just trained let it, and the base "
        "both with and without, where any stage thinks",
    )
    judge_thinking: bool | None = key(
        None, "let the model think before it judges; auto: as stage.act lets it"
    )
    intervene: str = key(
        "none",
        "what is done to the critic's reasoning; remove: it must choose at once; wrong: it chooses "
        "after an argument of ours for a wrong candidate",
        choices=("none", "remove", "wrong"),
    )

    def check(self, where: str) -> None:
        if self.intervene != "none" and self.judge_thinking is False:
            raise UserError(
                f"{where}.intervene: {self.intervene} changes the critic's reasoning, and there is "
                f"none; set {where}.judge_thinking: true"
            )


LOGGERS = ("tensorboard", "trackio", "wandb")


@dataclass(frozen=True)
class LogConfig:
    """Where metrics go besides metrics.jsonl."""

    to: list = key(["tensorboard"], "tensorboard, trackio, wandb, module:function; [] for none")

    def check(self, where: str) -> None:
        for name in self.to:
            if is_plugin(name):
                check_form(f"{where}.to", name)
            elif name not in LOGGERS:
                raise UserError(
                    f"{where}.to: {name!r} is not one of {', '.join(LOGGERS)}, module:function"
                )


@dataclass(frozen=True)
class Config:
    seed: int = key(0, "every random choice follows from it", low=0)
    recipe: list = key(
        ["il", "act", "rl"], "stages in order, or module:function; each continues from the last"
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    stage: StagesConfig = field(default_factory=StagesConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def thinks(self, stage: str = "") -> bool:
        """Whether a stage, or any, lets the model think. A reflection is a thought."""
        sections = [section_of(name) for name in ([stage] if stage else self.recipe)]
        return any(s == "reflect" or getattr(self.stage, s).thinking for s in sections)

    def measuring(self, thinking: bool) -> EvalConfig:
        """`eval` for a policy that acts with or without thoughts: nothing is left to auto."""
        chosen = self.eval.thinking if self.eval.thinking is not None else thinking
        judges = self.eval.judge_thinking
        judges = self.stage.act.thinking if judges is None else judges
        return replace(self.eval, thinking=chosen, judge_thinking=judges)

    def seed_for(self, *purpose: int | str) -> int:
        """An independent seed for one purpose, ("stage", 2, "act"): the same on every machine."""
        import numpy as np  # not at the top: --help reads no config and answers at once

        letters = [byte for word in purpose for byte in str(word).encode()]
        return int(np.random.SeedSequence([self.seed, *letters]).generate_state(1)[0] >> 1)
