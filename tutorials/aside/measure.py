"""10: the peak of memory of real training steps, in a process of their own.

Freed memory must go back to the system at once, or the next peak would be hidden in it: hence two
settings of malloc, which a process reads when it starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from miniact.config.sections import ModelConfig

CAN_MEASURE = os.path.exists("/proc/self/clear_refs")  # Linux; elsewhere no peak can be reset


def peaks(model: ModelConfig, sizes: tuple[int, int, int], batches: Sequence[int]) -> np.ndarray:
    """Bytes that one GRPO update adds to weights and libraries, for each number of groups.

    sizes: P, G, C. Empty where the system cannot measure it.
    """
    if not CAN_MEASURE:
        return np.array([])
    done = subprocess.run(
        [sys.executable, __file__, json.dumps([asdict(model), *sizes, *batches])],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    return np.array(json.loads(done.stdout))


def train(options: dict, P: int, G: int, C: int, *batches: int) -> list[int]:
    """What `peaks` starts: random tokens, because memory does not depend on them."""
    from miniact.backends.protocol import load_policy
    from miniact.backends.torch.probe import Probe
    from miniact.method.grpo import advantages, weigh
    from miniact.method.losses import GRPOLoss
    from miniact.types import Completion, Group

    probe, rng, peaks = Probe("cpu", "float32"), np.random.default_rng(0), []
    policy = load_policy(ModelConfig(**options), 0)
    probe.touch(policy.model)
    base = probe.used()

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(rng.integers(5, 150, n).tolist())

    def group() -> Group:
        old = np.full(C, -5.0, np.float32)
        gains = advantages(rng.random(G))
        return Group(tokens(P), tuple(Completion(tokens(C), 1.0, float(a), old) for a in gains))

    for batch in (1, *batches):  # the first only warms up
        groups = weigh([group() for _ in range(batch)], "grpo", C)
        probe.reset_peak()
        policy.forward_backward(groups, GRPOLoss())
        policy.optim_step(1e-5, 1.0)
        peaks.append(probe.peak() - base)
    return peaks[1:]


if __name__ == "__main__":
    print(json.dumps(train(*json.loads(sys.argv[1]))))
