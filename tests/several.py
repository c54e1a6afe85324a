"""The same calls of a policy, however many processes answer them; what came of it goes to a file.

python tests/several.py '{"out": …}', or the same under torchrun or mlx.launch. `fault` names
something that goes wrong in process 1, from the start.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from tiny_models import random_batch

from miniact.backends.protocol import Policy, load_policy
from miniact.config.sections import ModelConfig
from miniact.method.losses import GRPOLoss, cross_entropy
from miniact.types import Group

CLIPPED = GRPOLoss(0.2, 0.28, beta=0.05)
BATCH = random_batch([5, 9, 3, 1, 12], [[3, 1, 4], [6, 2], [5], [1, 2], [4, 4]])


def learn(policy: Policy, told: list[Any], seed: int) -> None:
    """Steps on many groups, and on one alone: then all processes but one have nothing to do."""
    for step, (groups, loss) in enumerate([(BATCH, CLIPPED), (BATCH[:1], cross_entropy)]):
        scored = policy.logprobs(groups, 0.9, reference=True)
        known = [group.having(ref_logps=logps) for group, logps in zip(groups, scored)]
        told += [[logp.tolist() for logps in scored for logp in logps]]
        metrics = policy.forward_backward(known, loss, 0.9)
        metrics |= policy.forward_backward(known[:2], loss, 0.9)  # gradients gather
        told += [metrics, policy.optim_step(1e-3 * (step + seed), 0.5)]


def answers(policy: Policy, prompts: list[Any], temperature: float) -> list[Any]:
    asked = policy.sample(prompts, 3, 7, temperature, seed=5)
    return [[(s.tokens, s.logps, s.text, s.stop) for s in samples] for samples in asked]


def exercise(config: ModelConfig, out: Path) -> list[Any]:
    policy, told = load_policy(config, seed=3), []
    policy.freeze_reference()
    prompts = [group.prompt for group in BATCH]
    told += [answers(policy, prompts, 1.0), answers(policy, prompts[:1], 0.0)]
    learn(policy, told, 1)
    for name in ("half", "whole"):
        (out / name).mkdir(parents=True, exist_ok=True)
    policy.save_adapter(out / "half")
    policy.save_optimizer(out / "half.safetensors")
    policy.load_adapter(out / "half")
    policy.load_optimizer(out / "half.safetensors")
    learn(policy, told, 2)
    policy.save_adapter(out / "whole")
    policy.save_optimizer(out / "whole.safetensors")
    if hasattr(policy, "member"):
        assert len(set(policy.member.ask("checksum"))) == 1
    told += [answers(policy, prompts, 1.0)]
    return told


def unnamed_loss(config: ModelConfig) -> None:
    groups: list[Group] = BATCH
    load_policy(config).forward_backward(groups, lambda xp, logp_N, tokens: (logp_N.sum(), {}))


def sabotage(fault: str) -> None:
    from miniact.backends.parallel import Member
    from miniact.backends.torch import parallel
    from miniact.backends.torch.policy import TorchPolicy

    second = os.environ.get("RANK") == "1"
    whole = TorchPolicy._forward_backward
    if fault == "memory" and second:

        def once(self: Any, *arguments: Any) -> Any:
            whole(self, *arguments)
            TorchPolicy._forward_backward = whole  # type: ignore[method-assign]
            raise RuntimeError("CUDA out of memory")

        TorchPolicy._forward_backward = once  # type: ignore[method-assign]
    if fault == "hang":
        parallel.TIMEOUT = timedelta(seconds=2)
        if second:
            Member.optim_step = lambda *_: time.sleep(60)  # type: ignore[assignment,method-assign]
    if fault == "code" and second:
        Member.code = lambda self: "0ther"  # type: ignore[method-assign]
    if fault == "weights" and second:
        load = TorchPolicy.load_optimizer

        def other(self: Any, file: Path) -> None:
            load(self, file)
            next(iter(self.trainable.values())).data += 0.1

        TorchPolicy.load_optimizer = other  # type: ignore[method-assign]


def main(out: str, configs: list[dict], fault: str = "") -> None:
    if fault:
        sabotage(fault)
    told = []
    for number, options in enumerate(configs):
        config = replace(ModelConfig(rank=4, alpha=6, max_tokens_per_batch=48), **options)
        if fault == "loss":
            unnamed_loss(config)
        told.append(exercise(config, Path(out) / str(number)))
    (Path(out) / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    from miniact.cli.common import friendly

    friendly(main)(**json.loads(sys.argv[1]))
