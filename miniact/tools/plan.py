"""`miniact plan`: what a config will take, from the model's shape alone, before anything is loaded.

Memory of the largest micro-batch, which the token budget bounds (T tokens in it):

    saved per layer   T·(5·hidden + 3·ff + 7·r + 2·q + 2·kv)
                      (in 16 bits 9·hidden: norms compute in float32)
    with checkpointing: T·hidden per layer, and one layer of the above
    head              two buffers [512 × vocabulary] in float32

Estimates are for prompts, answers and episodes as long as the config allows. The time of the
environment itself is not in them; that of the model is times.py's.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from miniact import UserError
from miniact.config import Config
from miniact.config.plugins import named, section_of
from miniact.config.sections import EnvConfig, ModelConfig
from miniact.envs import find_env
from miniact.tools import times
from miniact.tools.cost import BYTES, Shape, Work, known_shape, weight_bytes
from miniact.tools.devices import Device, card, detect

GB = 1e9
CHUNK = 512  # rows of logits at once, as in the backends' heads
PROCESS = {"cpu": 0.7 * GB, "cuda": 0.9 * GB, "mlx": 0.5 * GB}  # the libraries themselves
TINY = 10e6  # parameters; below, memory is no question and a run says its plan in one line
EXPERT_STEPS = 15  # of a trajectory, where nobody has said how many of its states are used
EPISODE_STEPS = 30  # at most, of an environment that does not say it
TOO_LONG = 60 * 86400.0  # seconds; of no use to know more exactly


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
        C = config.pairs.max_tokens  # of those that imitate: as long as an action
        if hasattr(stage, "group_size") or name == "reflect" or stage.thinking:
            C = getattr(stage, "max_tokens", C)
        yield Work(name, stage.steps, stage.batch, P, G, C, hasattr(stage, "group_size"))


def evaluation(config: Config) -> Work:
    """What sampling one chunk of prompts takes, where nothing is trained."""
    P, C = config.prompt.max_tokens, config.eval.max_tokens
    return Work("eval", 0, config.env.parallel, P, 1, C, True)


def training_bytes(shape: Shape, model: ModelConfig, work: Work, dtype: str) -> float:
    """What one micro-batch keeps for its backward pass, and the buffers of the head."""
    P, G, C, b = work.prompt, work.group, work.completion, BYTES[dtype]
    budget = model.max_tokens_per_batch
    k = min(work.batch, budget / (P + G * C))  # groups in it; under 1: a part of the answers
    T, q, kv = k * (P + G * C), shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 5 if b == 4 else 9  # both norms keep their input in float32 too
    linear = T * (norms * shape.hidden + 3 * shape.ff * shape.active + 7 * model.rank)
    layer = (linear + T * (2 * q + 2 * kv)) * b
    passing = 3 * T * shape.ff * shape.active * b  # gradients on their way through one MLP
    head = min(CHUNK, k * G * C) * shape.vocab * (8 if dtype == "float32" else 10)
    if model.gradient_checkpointing:  # a layer is computed again when the head is done
        return shape.layers * T * shape.hidden * b + max(layer + passing, head)
    return shape.layers * layer + max(passing, head)


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
    tokens = G * (P + C) if device.kind == "mlx" else P + G * C  # MLX copies a prompt's keys
    return tokens * shape.keys * BYTES[device.dtype] + G * shape.vocab * 16


def sampling_bytes(shape: Shape, model: ModelConfig, work: Work, device: Device) -> float:
    """Merged weights, and the cache with all rows' logits, or of the prompts while they pass."""
    k, b = together(shape, model, work, device), BYTES[device.dtype]
    prompts = k * work.prompt * shape.keys * b
    passing = max(work.prompt, min(k * work.prompt, model.max_tokens_per_batch))
    prefill = passing * (2 * shape.ff + 6 * shape.hidden) * b
    merged = shape.linear * b if model.adapter == "lora" and device.dtype == "float32" else 0
    return merged + max(k * prompt_bytes(shape, work, device), prompts + prefill)


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


def sampling_seconds(shape: Shape, model: ModelConfig, work: Work, device: Device) -> float:
    """Prompts in slices, then answers a token at a time, as many at once as memory holds."""
    if not work.batch:  # eval.pairs: 0
        return 0.0
    at_once = together(shape, model, work, device)
    chunks = math.ceil(work.batch / at_once)
    token = times.decode(shape, device, work, model, work.batch / chunks)
    passes = times.prefill(shape, device, work, model)
    return passes + chunks * work.completion * token.seconds


def seconds(shape: Shape, config: Config, device: Device) -> Iterator[tuple[str, int, float]]:
    """(part, steps, seconds) of the pairs, of each stage and of all evaluations."""
    model = config.model
    if states := pair_states(config):
        p = config.pairs
        work = Work("pairs", 0, states, config.prompt.max_tokens, p.k, p.max_tokens, True)
        yield "pairs", states, sampling_seconds(shape, model, work, device)
    for name, work in zip(config.recipe, stage_works(config)):
        stage = getattr(config.stage, section_of(name))
        updates, beta = getattr(stage, "updates", 1), getattr(stage, "beta", 0.0)
        step = updates * times.training(shape, device, work, model)
        scored = (updates > 1) + (beta > 0)  # π_old and π_ref: forward passes
        step += scored * times.training(shape, device, work, model) / 3
        if work.samples:
            step += sampling_seconds(shape, model, work, device)
        yield work.name, work.steps, work.steps * step
    once = sum(
        count * sampling_seconds(shape, model, work, device)
        for count, work in evaluation_works(config)
    )
    both_ways = config.eval.thinking is None and config.thinks()  # so the base is measured
    count = len(config.recipe) + 1 + both_ways
    yield "evaluations", count, count * once


def pair_states(config: Config) -> int:
    """States of experts at which alternatives are sampled; 0 where none are."""
    pairs, env = config.pairs, config.env
    needed = config.eval.pairs or set(config.recipe) - {"il", "rl"}
    if pairs.file or pairs.source != "policy" or not needed or env.name == "none":
        return 0
    tasks = env.train_tasks + env.heldout_tasks * len(config.eval.splits)
    return tasks * (pairs.states_per_trajectory or EXPERT_STEPS)


def evaluation_works(config: Config) -> Iterator[tuple[int, Work]]:
    """(how often, what) of one evaluation: ticks of episodes, states, questions."""
    e, P = config.eval, config.prompt.max_tokens
    if config.env.name != "none" and e.episodes:
        at_once = min(config.env.workers or config.env.parallel, e.episodes)
        ticks = len(e.splits) * math.ceil(e.episodes / at_once) * most_steps(config.env)
        yield ticks, Work("episodes", 0, at_once, P, 1, e.max_tokens, True)
    yield 1, Work("states", 0, e.states, P, 1, e.max_tokens, True)
    asked = config.pairs.choices * e.pairs  # with the expert in every position
    yield 1, Work("questions", 0, asked, P, 1, e.judge_max_tokens, True)


def most_steps(env: EnvConfig) -> int:
    """Actions after which an episode ends at the latest."""
    if "max_steps" in env.options:
        return int(env.options["max_steps"])
    module, name = find_env(env.name).split(":")
    target = getattr(importlib.import_module(module), name)
    parameter = inspect.signature(target).parameters.get("max_steps")
    return parameter.default if parameter else EPISODE_STEPS


@dataclass(frozen=True)
class Plan:
    shape: Shape
    device: Device
    works: list[Work]
    memories: list[Memory]
    times: list[tuple[str, int, float]]  # empty where the device's speed is not known

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


def make_plan(config: Config, gpu: str | None = None) -> Plan:
    """What the config takes here, or on the card that is named."""
    device = card(gpu, config.model) if gpu else detect(config.model)
    shape = known_shape(config.model.path)
    works = list(stage_works(config)) or [evaluation(config)]
    memories = [memory(shape, config.model, work, device) for work in works]
    known = list(seconds(shape, config, device)) if device.matmul else []
    return Plan(shape, device, works, memories, known)


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
        f"{config.model.adapter}; {plan.peak / GB:.1f} of {plan.device.free / GB:.1f} GB, "
        f"{_clock(sum(spent for *_, spent in plan.times))} with prompts as long as they may be"
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
        ("sampling", m.sampling, "cache and logits; not beside training"),
        ("the process itself", m.process, ""),
        ("peak", plan.peak, f"of {d.free / GB:.1f} GB free"),
    ):
        table.add_row(label, f"{size / GB:.2f} GB", note)
    console.print(table)
    for line in (*_decoding(config, plan), *_durations(config, plan)):
        console.print(line, highlight=False, soft_wrap=True)
    if not plan.fits:
        console.print("it does not fit: " + ", or ".join(remedies(config, plan)), style="bold")


def _decoding(config: Config, plan: Plan) -> Iterator[str]:
    """Why sampling takes as long as it does, for each stage that samples."""
    for work in plan.works:
        if not (work.samples and plan.times):
            continue
        at_once = together(plan.shape, config.model, work, plan.device)
        prompts = work.batch / math.ceil(work.batch / at_once)
        token = times.decode(plan.shape, plan.device, work, config.model, prompts)
        each, computed, started = (
            f"{1000 * s:,.{0 if s > 0.1 else 1}f} ms"
            for s in (token.seconds, token.device, token.host)
        )
        yield (
            f"{work.name}: {max(1, prompts * work.group):.0f} answers at once, {each} a token "
            f"(computing {computed}, starting kernels {started})"
        )


def _durations(config: Config, plan: Plan) -> Iterator[str]:
    if not plan.times:
        yield f"time: not known for {plan.device.name}; a name such as 4090 or m3-16 has one"
        return
    works = {work.name: work for work in plan.works}
    units = {"evaluations": "", "pairs": " states"}
    for name, steps, spent in plan.times:
        each = f", {works[name].tokens:,} tokens each" if name in works else ""
        yield f"{name}: {steps:,}{units.get(name, ' steps')}{each}: {_clock(spent)}"
    total = sum(spent for *_, spent in plan.times)
    longest = [f"prompts of {config.prompt.max_tokens:,} tokens"]
    if config.env.name != "none" and config.eval.episodes:
        longest.append(f"episodes of {most_steps(config.env)} actions")
    how = "measured here" if plan.device.is_measured else "from a table, never measured"
    yield f"all: {_clock(total)} with {' and '.join(longest)}, the longest; most are shorter"
    yield f"speed: {how}; without the world's own time"
    if plan.device.is_measured and total > TOO_LONG:
        yield "not on this device; for another one: miniact plan CONFIG --gpu 4090"


def _clock(s: float) -> str:
    if s > TOO_LONG:
        return f"more than {TOO_LONG / 86400:.0f} days"
    if s < 90:
        return f"about {s:.0f} s"
    if s < 5400:
        return f"about {s / 60:.0f} min"
    return f"about {s / 3600:.1f} h" if s < 72 * 3600 else f"about {s / 86400:.1f} days"


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
