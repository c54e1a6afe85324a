"""Run as a process of its own: what does a step take on a card that is not there, at full size?

Takes {case: [model, layers, [batch, P, G, C]]}; prints [case, figures] a line each: bytes,
kernels, and the seconds of an RTX 4090 by its roofline (fake_shapes.py). Nothing is computed.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_cuda

fake_cuda.install(fake_cuda.build(Path(sys.argv[1])))

import fake_shapes  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from random_model import random_weights, write_shape  # noqa: E402

import miniact.backends.torch.kernels as kernels  # noqa: E402
import miniact.backends.torch.policy as torch_policy  # noqa: E402
from miniact.backends.held import whole  # noqa: E402
from miniact.backends.protocol import load_policy  # noqa: E402
from miniact.backends.torch.sample import SharedKeys  # noqa: E402
from miniact.config.sections import ModelConfig  # noqa: E402
from miniact.method.grpo import weigh  # noqa: E402
from miniact.method.losses import GRPOLoss  # noqa: E402
from miniact.tools.cost import KNOWN  # noqa: E402
from miniact.tools.devices import card  # noqa: E402
from miniact.types import Completion, Group  # noqa: E402

PROMPTS = 8  # whose answers are sampled at once


def measure(folder: Path, model: dict, layers: int, sizes: list[int]) -> dict[str, Any]:
    batch, P, G, C = sizes
    shape = replace(KNOWN[model["path"]], layers=layers)
    where = folder / f"{shape.name}-{layers}"
    config = ModelConfig(**{**model, "path": str(write_shape(where, shape))})
    device = card("4090", config)
    out: dict[str, Any] = {}

    def note(name: str, log: fake_shapes.Log, before: int) -> None:
        kernels = sum(log.kernels.values())
        out[name] = {
            "peak": log.peak - before,
            "kernels": kernels,
            "names": dict(log.kernels),
            "seconds": log.seconds(device.matmul, device.bandwidth),
        }

    torch_policy.check = lambda *args, **kwargs: None  # type: ignore[assignment]  # values needed
    kernels._lost = lambda *args: 0.0  # type: ignore[assignment]  # and here
    with fake_shapes.shapes() as log, random_weights():
        policy: Any = load_policy(config, 0)
        policy._checked |= {"training", "sampling"}  # these comparisons are no part of a step
        out["weights"] = log.now
        groups = weigh([_group(P, G, C, seed) for seed in range(batch)], "grpo", C)
        policy.forward_backward(groups, GRPOLoss())
        policy.optim_step(1e-5, 1.0)
        before = settled(log)
        policy.forward_backward(groups, GRPOLoss())
        note("training", log, before)
        policy.optimizer.zero_grad()
        policy._mode(training=False)
        before = settled(log)
        with torch.no_grad():
            step = _prefilled(policy, log, [groups[0].prompt] * PROMPTS, G, C)
            note("prefill", log, before)
            step()
            log.clear()
            step()
            note("decode", log, before)
    return out


def settled(log: fake_shapes.Log) -> int:
    """Bytes that lie there, once all that nobody holds is gone."""
    gc.collect()
    log.clear()
    return log.now


def _group(P: int, G: int, C: int, seed: int) -> Group:
    rng = np.random.default_rng(seed)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(rng.integers(3, 100, n).tolist())

    old = np.zeros(C, np.float32)
    answers = [Completion(tokens(C), advantage=1.0, old_logps=old) for _ in range(G)]
    return Group(tokens(P), tuple(answers))


def _prefilled(policy: Any, log: fake_shapes.Log, prompts: list, n: int, C: int) -> Any:
    """A function that decodes one more token of n answers to each prompt."""
    body, plan = policy.causal_lm.get_decoder(), whole(prompts)
    keys = SharedKeys(body, plan, n, C, policy.budgets.prefill)
    log.number = len(prompts[0])  # the longest prompt
    widen = keys.cache.widen

    def then(n: int) -> None:
        log.number = n  # the most answers to a prompt
        widen(n)

    keys.cache.widen = then  # type: ignore[method-assign]
    keys.prefill()
    token_R = torch.zeros(n * len(prompts), dtype=torch.long, device="cuda:0")
    return lambda: policy.head.logits(keys.step(token_R), 1.0)


if __name__ == "__main__":
    for case, arguments in json.loads(sys.argv[2]).items():
        print(json.dumps([case, measure(Path(sys.argv[1]), *arguments)]), flush=True)
