"""Run as a process of its own: what does one GRPO step (or IL step) of a config really take?

Takes {case: [model, batch, P, G, C]}; each is measured in a fork, so that PyTorch is imported once.
Prints [case, bytes above the weights: {"training": …, "sampling": …}], a line each.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np

import miniact.backends.torch.policy  # noqa: F401  (before the forks)
from miniact.backends.protocol import load_policy
from miniact.backends.torch.probe import Probe
from miniact.config.sections import ModelConfig
from miniact.method.grpo import advantages, make_group, weigh
from miniact.method.losses import GRPOLoss, cross_entropy
from miniact.types import Completion, Group


def measure(model: dict, batch: int, P: int, G: int, C: int) -> dict[str, float]:
    policy = load_policy(ModelConfig(**model), 0)
    policy.ends = ()
    probe = Probe("cpu", "float32")
    probe.touch(policy.model)
    rng = np.random.default_rng(0)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(rng.integers(3, 250, n).tolist())

    found, base = {}, probe.used()
    prompts = [tokens(P) for _ in range(batch)]
    if G > 1:
        policy.sample(prompts[:1], 2, 2, 1.0, 0)
        probe.reset_peak()
        answers = policy.sample(prompts, G, C, 1.0, 0)
        found["sampling"] = probe.peak() - base
        groups = [make_group(p, a, advantages(rng.random(G))) for p, a in zip(prompts, answers)]
        groups, loss = weigh(groups, "grpo", C), GRPOLoss(0.2, 0.2, 0.0)
    else:
        groups = [Group(p, (Completion(tokens(C)),)) for p in prompts]
        groups, loss = weigh(groups, "dapo", C), cross_entropy
    policy._checked.add("training")  # the comparison with the plain layout is no part of a step
    for _ in range(2):  # the optimizer's moments come with the first
        probe.reset_peak()
        policy.forward_backward(groups, loss)
        policy.optim_step(1e-5, 1.0)
        found["training"] = probe.peak() - base
    return found


def main() -> None:
    for case, arguments in json.loads(sys.argv[1]).items():
        if (pid := os.fork()) == 0:
            print(json.dumps([case, measure(*arguments)]), flush=True)
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            sys.exit(f"{case} failed")


if __name__ == "__main__":
    main()
