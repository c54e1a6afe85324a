"""`miniact plan`: what a config will take, from the model's shape alone, before anything is loaded.

Memory of the largest micro-batch, which the token budget bounds (T tokens in it, N of answers):

    saved per layer   T·(5·hidden + 3·ff + 7·r) + prompts: P·4·q + answers: N·2·q
                      + keys and values that the answers see: A·(P + C)·2·kv
    with checkpointing: T·hidden per layer, and one layer of the above
    head              two buffers [512 × vocabulary] in float32

Estimates are for prompts as long as `prompt.max_tokens` and answers as long as allowed: real ones
are shorter, so times are upper bounds. The time of the environment itself is not in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from miniact import UserError
from miniact.backends.protocol import resolve_backend
from miniact.config import Config
from miniact.config.plugins import named, section_of
from miniact.config.sections import ModelConfig
from miniact.tools.cost import Shape, forward_flops, known_shape, training_flops

GB = 1e9
CHUNK = 512  # rows of logits at once, as in the backends' heads
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NF4 = 0.5 + 0.016  # bytes per weight: 4 bits, and double-quantised scales per 64
PROCESS = {"cpu": 0.7 * GB, "cuda": 0.9 * GB, "mlx": 0.5 * GB}  # the libraries themselves
TRAINING_SHARE, PREFILL_SHARE, DECODE_SHARE = 0.45, 0.5, 0.25  # of the matmul speed; LAB.md
ACTIONS_PER_EPISODE = 20
TINY = 10e6  # parameters; below, memory is no question and a run says its plan in one line


@dataclass(frozen=True)
class Device:
    """What there is to compute on. Bytes; FLOP/s; bytes/s."""

    kind: str  # cpu | cuda | mlx
    name: str
    dtype: str
    free: float
    matmul: float
    bandwidth: float


@dataclass(frozen=True)
class Work:
    """The batches of one stage, at their longest."""

    name: str
    steps: int
    batch: int  # prompts per step
    prompt: int  # P
    group: int  # answers per prompt; 1 for imitation, 2 for DPO
    completion: int  # C
    samples: bool  # whether the stage samples its answers

    @property
    def tokens(self) -> int:
        """Tokens that pass the model in one training step."""
        return self.batch * (self.prompt + self.group * self.completion)


@dataclass(frozen=True)
class Memory:
    """Bytes. What lies there all the time, and what a pass adds."""

    process: float
    weights: float
    adapter: float  # trainable weights that are not in `weights`, and all gradients
    optimizer: float
    training: float
    sampling: float

    @property
    def peak(self) -> float:
        fixed = self.process + self.weights + self.adapter + self.optimizer
        return fixed + max(self.training, self.sampling)


def stage_works(config: Config) -> Iterator[Work]:
    for name in config.recipe:
        stage, P = getattr(config.stage, section_of(name)), config.prompt.max_tokens
        G = getattr(stage, "group_size", 2 if name == "dpo" else 1)
        C = getattr(stage, "max_tokens", config.eval.max_tokens)
        yield Work(name, stage.steps, stage.batch, P, G, C, hasattr(stage, "group_size"))


def evaluation(config: Config) -> Work:
    """What sampling one chunk of prompts takes, where nothing is trained."""
    P, C = config.prompt.max_tokens, config.eval.max_tokens
    return Work("eval", 0, config.env.parallel, P, 1, C, True)


def weight_bytes(shape: Shape, model: ModelConfig, dtype: str) -> float:
    b = 4 if model.adapter == "full" else BYTES[dtype]  # what is trained is float32
    if model.adapter != "qlora":
        return shape.parameters * b
    return shape.linear * NF4 + (shape.parameters - shape.linear) * b


def training_bytes(shape: Shape, model: ModelConfig, work: Work, dtype: str) -> float:
    """What one micro-batch keeps for its backward pass, and the buffers of the head."""
    P, G, C, b = work.prompt, work.group, work.completion, BYTES[dtype]
    budget = model.max_tokens_per_batch
    k = min(work.batch, budget / (P + G * C))  # groups in it; under 1: a part of the answers
    trunk, branch = k * P if k >= 1 else P, k * G * C if k >= 1 else budget - P
    answers = branch / C
    if G == 1:  # one causal sequence each
        trunk, branch, answers = trunk + branch, 0, 0
    T, q, kv = trunk + branch, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    linear = T * (5 * shape.hidden + 3 * shape.ff * shape.active + 7 * model.rank)
    attention = 4 * q * trunk + 2 * q * branch + 2 * kv * answers * (P + C)
    layer = (linear + attention) * b
    if model.gradient_checkpointing:
        saved = shape.layers * T * shape.hidden * b + layer
    else:
        saved = shape.layers * layer
    passing = 3 * T * shape.ff * shape.active * b  # gradients on their way through one MLP
    head = min(CHUNK, k * G * C) * shape.vocab * (8 if dtype == "float32" else 10)
    return saved + max(passing, head)


def together(shape: Shape, model: ModelConfig, work: Work, device: Device) -> float:
    """Prompts whose answers are sampled at once: as many as the memory for it holds."""
    if model.sample_memory:
        limit = model.sample_memory * GB
    elif device.kind == "cuda":  # as the backends measure it
        limit = 0.8 * (device.free - PROCESS["cuda"] - weight_bytes(shape, model, device.dtype))
    else:
        limit = device.free / 8
    each = prompt_bytes(shape, work, device)
    return min(work.batch, max(limit / each, 1 / work.group))


def prompt_bytes(shape: Shape, work: Work, device: Device) -> float:
    """Keys, values and logits of the answers to one prompt."""
    P, G, C = work.prompt, work.group, work.completion
    kv = 2 * shape.layers * shape.kv_heads * shape.head_dim * BYTES[device.dtype]
    tokens = G * (P + C) if device.kind == "mlx" else P + G * C  # MLX copies a prompt's keys
    return tokens * kv + G * shape.vocab * 16


def sampling_bytes(shape: Shape, model: ModelConfig, work: Work, device: Device) -> float:
    """Merged weights, the cache, the logits of all rows or the pass over a slice of prompts."""
    k, b = together(shape, model, work, device), BYTES[device.dtype]
    logits = k * work.group * shape.vocab * 16
    cache = k * prompt_bytes(shape, work, device) - logits
    passing = max(work.prompt, min(k * work.prompt, model.max_tokens_per_batch))
    prefill = passing * (2 * shape.ff + 6 * shape.hidden) * b
    merged = shape.linear * b if model.adapter == "lora" and device.dtype == "float32" else 0
    return merged + cache + max(logits, prefill)


def memory(shape: Shape, model: ModelConfig, work: Work, device: Device) -> Memory:
    full = model.adapter == "full"
    trained = shape.parameters if full else shape.lora(model.rank)
    return Memory(
        process=PROCESS[device.kind],
        weights=weight_bytes(shape, model, device.dtype),
        adapter=trained * (4 if full else 2 * 4),
        optimizer=trained * 2 * 4,
        training=training_bytes(shape, model, work, device.dtype),
        sampling=sampling_bytes(shape, model, work, device) if work.samples else 0,
    )


def seconds(shape: Shape, config: Config, device: Device) -> Iterator[tuple[str, int, float]]:
    """(part, steps, seconds) of each stage and of all evaluations, at most."""
    model = config.model
    weights = weight_bytes(shape, model, device.dtype)

    def sample(batch: int, P: int, G: int, C: int) -> float:
        if not batch:  # eval.pairs: 0
            return 0.0
        work = Work("", 0, batch, P, G, C, True)
        passes = max(1.0, batch / together(shape, model, work, device))
        prefill = batch * forward_flops(shape, P, 0, 0) / (device.matmul * PREFILL_SHARE)
        flops = batch * G * C * 2 * (shape.computing + shape.head)
        decode = max(passes * C * weights / device.bandwidth, flops / device.matmul / DECODE_SHARE)
        return prefill + decode

    for work in stage_works(config):
        P, G, C = work.prompt, work.group, work.completion
        flops = training_flops(shape, P, G, C, model.rank, model.adapter == "full")
        step = work.batch * flops / (device.matmul * TRAINING_SHARE)
        if work.samples:
            step += sample(work.batch, P, G, C)
        yield work.name, work.steps, work.steps * step
    e, P = config.eval, config.prompt.max_tokens
    acts = e.episodes * len(e.splits) * ACTIONS_PER_EPISODE + e.states
    once = sample(acts, P, 1, e.max_tokens) + sample(2 * e.pairs, P, 1, e.judge_max_tokens)
    yield "evaluations", len(config.recipe) + 1, (len(config.recipe) + 1) * once


def detect(model: ModelConfig) -> Device:
    """The device that the config would run on, and how fast it is at this moment."""
    if resolve_backend(model.backend) == "mlx":
        from miniact.backends.mlx.probe import Probe
    else:
        from miniact.backends.torch.probe import Probe  # type: ignore[assignment]
    probe: Any = Probe(model.device, model.precision)
    return Device(
        probe.kind,
        probe.describe(),
        probe.precision,
        probe.free(),
        probe.matmul(),
        probe.bandwidth(),
    )


@dataclass(frozen=True)
class Plan:
    shape: Shape
    device: Device
    works: list[Work]
    memories: list[Memory]
    times: list[tuple[str, int, float]]

    @property
    def worst(self) -> tuple[Work, Memory]:
        """The stage that needs the most, and what it needs."""
        return max(zip(self.works, self.memories), key=lambda both: both[1].peak)

    @property
    def peak(self) -> float:
        return self.worst[1].peak

    @property
    def fits(self) -> bool:
        return self.peak <= self.device.free


def make_plan(config: Config) -> Plan:
    shape, device = known_shape(config.model.path), detect(config.model)
    works = list(stage_works(config)) or [evaluation(config)]
    memories = [memory(shape, config.model, work, device) for work in works]
    return Plan(shape, device, works, memories, list(seconds(shape, config, device)))


def remedies(config: Config, plan: Plan) -> list[str]:
    """What to lower, the most useful first."""
    (_, worst), model = plan.worst, config.model
    ways = []
    if not model.gradient_checkpointing and worst.training > 0.3 * plan.peak:
        ways.append("set model.gradient_checkpointing: true")
    if worst.training > 0.2 * plan.peak:
        least = config.prompt.max_tokens + max(work.completion for work in plan.works)
        if model.max_tokens_per_batch > least:
            ways.append(f"lower model.max_tokens_per_batch (at least {least})")
        ways.append("lower prompt.max_tokens")
    if model.adapter != "qlora" and worst.weights > 0.3 * plan.peak:
        ways.append("set model.adapter: qlora")
    return ways or ["choose a smaller model"]


def plan_line(config: Config, plan: Plan) -> str:
    """The plan in one line: what is planned for, the peak, the time."""
    return (
        f"{plan.shape.name}: {plan.shape.parameters / 1e6:.1f} M parameters, "
        f"{config.model.adapter}; at most {plan.peak / GB:.1f} of {plan.device.free / GB:.1f} GB, "
        f"{_clock(sum(spent for *_, spent in plan.times))}"
    )


def print_plan(config: Config, plan: Plan, console: Console) -> None:
    s, d, (stage, m) = plan.shape, plan.device, plan.worst
    kind = f"{config.model.adapter}, {d.dtype} on {d.name}"
    console.print(f"{s.name}: {s.parameters / 1e6:.1f} M parameters, {kind}", highlight=False)
    for where, code in named(config):
        console.print(f"{where}: {code} is imported", highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for label, size, note in (
        ("weights", m.weights, ""),
        ("adapter and gradients", m.adapter, ""),
        ("optimizer", m.optimizer, ""),
        ("training pass", m.training, f"largest micro-batch, stage {stage.name}"),
        ("sampling", m.sampling, "cache, logits, merged weights; not at the same time"),
        ("the process itself", m.process, ""),
        ("peak", plan.peak, f"of {d.free / GB:.1f} GB free"),
    ):
        table.add_row(label, f"{size / GB:.2f} GB", note)
    console.print(table)
    tokens = {work.name: work.tokens for work in plan.works}
    for name, steps, spent in plan.times:
        each = f", {tokens[name]:,} tokens each" if name in tokens else ""
        unit = "" if name == "evaluations" else " steps"
        console.print(f"{name}: {steps}{unit}{each}: at most {_clock(spent)}", highlight=False)
    console.print(f"all: at most {_clock(sum(t for *_, t in plan.times))}", highlight=False)
    if not plan.fits:
        console.print("it does not fit: " + ", or ".join(remedies(config, plan)), style="bold")


def _clock(s: float) -> str:
    return f"{s:.0f} s" if s < 90 else f"{s / 60:.0f} min" if s < 5400 else f"{s / 3600:.1f} h"


def check_fits(config: Config, console: Console, force: bool) -> None:
    """Print the plan, of a tiny model one line; refuse what cannot fit, unless forced."""
    plan = make_plan(config)
    if plan.fits and plan.shape.parameters < TINY and not named(config):
        console.print(plan_line(config, plan), highlight=False, soft_wrap=True)
    else:
        print_plan(config, plan, console)
    if not plan.fits and not force:
        raise UserError(
            f"needs {plan.peak / GB:.1f} GB and {plan.device.free / GB:.1f} GB are free; "
            f"{remedies(config, plan)[0]}, or pass --force"
        )
