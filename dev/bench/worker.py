"""One side of `bench.py`, in a process of its own.

Reads one JSON line with the work, answers {"ready": …}, then takes one step per line read and
answers with its seconds, its peak memory above the weights in bytes, and the answers it sampled.
A step has learning rate 0: it costs what any step costs, and every side stays at the same weights,
so that the gradients of each step, left in a file, can be compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from work import Work, read_work

from miniact import UserError
from miniact.backends.protocol import Policy, load_policy, resolve_backend
from miniact.config.sections import GRPOConfig, ModelConfig
from miniact.method.grpo import grpo_step, weigh
from miniact.method.losses import cross_entropy
from miniact.types import Completion, Group, Sample, Scored


class Watch:
    """Seconds of one step, by part: those of sampling, and those aside that do not count.

    On a machine that does other work the seconds of the clock say little; those that the processor
    spent on this process (`cpu`; with one thread) hold.
    """

    def __init__(self, cpu: bool) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.on_cpu, self.now = cpu, time.process_time if cpu else time.perf_counter

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = self.now()
        try:
            yield
        finally:
            self.seconds[part] += self.now() - start


class Serve:
    """The worker's end of the pipe."""

    def __init__(self, out: Any, probe: Any, gradients: Path, cpu: bool) -> None:
        self.out, self.probe, self.gradients = out, probe, gradients
        self.watch = Watch(cpu)

    def weigh(self, model: Any) -> None:
        """What is in memory now are the weights."""
        self.probe.touch(model)
        self.weights = self.probe.used()

    def ready(self) -> None:
        self.send({"ready": self.probe.describe(), "weights": self.weights})

    def wait(self) -> dict[str, Any]:
        """Until the next step is asked for. Before it, how fast is the machine at this moment?"""
        line = sys.stdin.readline()
        if not line:
            os._exit(0)  # the parent has gone
        self.matmul = 0.0 if self.watch.on_cpu else self.probe.matmul()
        self.probe.reset_peak()
        self.watch.seconds.clear()
        self.start = self.watch.now()
        return json.loads(line)

    def report(self, answers: list[list[tuple[int, ...]]]) -> None:
        """The step is over: its figures, and what was sampled."""
        self.probe.wait()
        parts = self.watch.seconds
        whole = self.watch.now() - self.start
        self.send(
            {
                "sampling": parts["sampling"],
                "training": whole - parts["sampling"] - parts["aside"],
                "peak": self.probe.peak() - self.weights,
                "matmul": self.matmul,
                "answers": answers,
            }
        )

    def keep(self, gradients: dict[str, Any]) -> None:
        """Write the gradients of PyTorch parameters to the file."""
        from safetensors.torch import save_file

        with self.watch("aside"):
            kept = {n: g.detach().float().cpu().contiguous() for n, g in gradients.items()}
            save_file(kept, self.gradients)

    def send(self, message: dict) -> None:
        self.out.write(json.dumps(message) + "\n")
        self.out.flush()


def rewards(work: Work, number: int) -> np.ndarray:
    """Random rewards of step `number`, [prompts, G]: the same on every side."""
    shape = (len(work.prompts), work.group_size)
    return np.random.default_rng([work.seed, number]).random(shape)


def run_ours(work: Work, policy: Policy, serve: Serve) -> None:
    policy.ends = ()  # type: ignore[attr-defined]  # answers of exactly C tokens
    on_torch = type(policy).__name__ == "TorchPolicy"
    answers: list[list[tuple[int, ...]]] = []
    sample, optim_step = policy.sample, policy.optim_step

    def timed(*args: Any) -> Any:
        with serve.watch("sampling"):
            samples = sample(*args)
            serve.probe.wait()
        answers[:] = [[s.tokens for s in group] for group in samples]
        return samples

    def kept(lr: float, max_grad_norm: float) -> float:
        if on_torch:
            parameters = policy.trainable.items()  # type: ignore[attr-defined]
            serve.keep({name: p.grad for name, p in parameters if p.grad is not None})
        return optim_step(lr, max_grad_norm)

    policy.sample, policy.optim_step = timed, kept  # type: ignore[method-assign, assignment]
    step = _imitate if work.replies else _reinforce
    serve.weigh(policy.model)  # type: ignore[attr-defined]
    step(work, policy, range(1), 0)
    serve.ready()
    for number in range(work.steps):
        serve.wait()
        step(work, policy, range(len(work.prompts)), number)
        serve.report(answers)


def _reinforce(work: Work, policy: Policy, which: range, number: int) -> None:
    config = GRPOConfig(
        group_size=work.group_size, max_tokens=work.completion_tokens, variant="dapo"
    )

    def scorer(reward_G: np.ndarray) -> Any:
        of_answer = iter(reward_G)

        def score(sample: Sample) -> Scored:
            return Scored(float(next(of_answer)), True, True)

        return score

    prompts = [work.prompts[i] for i in which]
    scorers = [scorer(reward_G) for reward_G in rewards(work, number)[list(which)]]
    grpo_step(policy, prompts, scorers, config, 0.0, work.seed + number)


def _imitate(work: Work, policy: Policy, which: range, number: int) -> None:
    groups = [Group(work.prompts[i], (Completion(work.replies[i]),)) for i in which]
    policy.forward_backward(weigh(groups, "dapo", 0), cross_entropy)
    policy.optim_step(0.0, 1.0)


def serve_side(name: str, work: Work, folder: Path, out: Any) -> None:
    """Serve as the side of this name. What all sides start from lies in `folder`."""
    config = ModelConfig(
        path=work.path,
        backend=work.backend,
        adapter=work.adapter,
        rank=work.rank,
        alpha=2.0 * work.rank,
        max_tokens_per_batch=work.max_tokens,
    )
    is_trl = name.startswith("trl")
    if not is_trl and resolve_backend(work.backend) == "mlx":
        from miniact.backends.mlx.probe import Probe
    else:
        from miniact.backends.torch.probe import Probe  # type: ignore[assignment]
    serve = Serve(out, Probe("auto", "auto"), folder / f"{name}.safetensors", work.cpu)
    if is_trl:
        from trl_side import run_trl

        run_trl(work, folder / "adapter", name == "trl-lean", serve)
        return
    policy = load_policy(config, work.seed)
    if work.adapter != "full":  # a fresh adapter's B is zero, and so would be half the gradient
        if name == "miniact":
            with policy.disturbed(work.seed):  # type: ignore[attr-defined]
                policy.save_adapter(folder / "adapter")
        policy.load_adapter(folder / "adapter")
    run_ours(work, policy, serve)


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not end up in the pipe
    request = json.loads(sys.stdin.readline())
    try:
        serve_side(request["side"], read_work(request["work"]), Path(request["folder"]), out)
    except UserError as error:
        out.write(json.dumps({"error": str(error)}) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
