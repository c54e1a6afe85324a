"""One side of `bench.py`, in a process of its own.

Reads one JSON line with the work, answers {"ready": …}, then takes one GRPO step per line read and
answers with its seconds and its peak memory above the weights, in bytes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from miniact import UserError
from miniact.backends.protocol import Policy, load_policy, resolve_backend
from miniact.config.sections import GRPOConfig, ModelConfig
from miniact.method.grpo import grpo_step
from miniact.types import Sample, Scored


@dataclass(frozen=True)
class Work:
    """One prompt of P tokens and G answers of exactly C tokens per step."""

    model: str
    backend: str
    adapter: str
    prompt_tokens: int
    group_size: int
    completion_tokens: int
    steps: int  # counted ones; one more goes before them
    seed: int
    rank: int


def make_texts(tokenizer: Any, work: Work) -> list[str]:
    """Prompts of exactly P tokens, one per step: random words that are one token each."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    plain = [t[1:] for t, _ in vocabulary if t[:1] in "Ġ▁" and t[1:].isascii() and t[1:].isalpha()]
    words = plain or [t for t, _ in vocabulary if t.isascii() and t.isalpha()]
    rng = np.random.default_rng(work.seed)
    texts = []
    for _ in range(work.steps + 1):
        chosen = [words[i] for i in rng.integers(0, len(words), work.prompt_tokens)]
        found = [_fit(tokenizer, chosen, between, work.prompt_tokens) for between in (" ", "")]
        if not any(found):
            raise UserError(
                f"bench: found no text of {work.prompt_tokens} tokens for {work.model}; try "
                "another --prompt-tokens"
            )
        texts.append(found[0] or found[1])
    return texts


def _fit(tokenizer: Any, words: list[str], between: str, length: int) -> str:
    """As many of the words as make `length` tokens; "" if that is not to be had."""
    for _ in range(50):  # the first word has no space before it, and may be several tokens
        excess = len(tokenizer(between.join(words))["input_ids"]) - length
        if excess == 0:
            return between.join(words)
        words = words[: -min(excess, len(words) - 1)] if excess > 0 else [*words, words[0]]
    return ""


class Serve:
    """The worker's end of the pipe."""

    def __init__(self, out: Any, probe: Any) -> None:
        self.out, self.probe, self.weights = out, probe, 0

    def ready(self, model: Any) -> None:
        self.probe.touch(model)
        self.weights = self.probe.used()
        self._send({"ready": self.probe.describe(), "weights": self.weights})

    def wait(self) -> None:
        """Until the next step is asked for. Before it, how fast is the machine at this moment?"""
        if not sys.stdin.readline():
            os._exit(0)  # the parent has gone
        self.matmul = self.probe.matmul()
        self.probe.reset_peak()

    def report(self, sampling: float, training: float) -> None:
        peak = self.probe.peak() - self.weights
        self._send(
            {"sampling": sampling, "training": training, "peak": peak, "matmul": self.matmul}
        )

    def _send(self, message: dict) -> None:
        self.out.write(json.dumps(message) + "\n")
        self.out.flush()


def run_ours(work: Work, policy: Policy, texts: list[str], serve: Serve) -> None:
    policy.ends = ()  # type: ignore[attr-defined]  # answers of exactly C tokens
    config = GRPOConfig(group_size=work.group_size, max_tokens=work.completion_tokens)
    rng = np.random.default_rng(work.seed)
    sampling = [0.0]
    inner = policy.sample

    def timed(*args: Any) -> Any:
        start = time.perf_counter()
        made = inner(*args)
        serve.probe.wait()
        sampling[0] += time.perf_counter() - start
        return made

    policy.sample = timed  # type: ignore[method-assign, assignment]

    def score(sample: Sample) -> Scored:
        return Scored(float(rng.random()), True, True)

    serve.ready(policy.model)  # type: ignore[attr-defined]
    for number, text in enumerate(texts):
        serve.wait()
        start = time.perf_counter()
        prompt = tuple(policy.tokenizer(text)["input_ids"])
        grpo_step(policy, [prompt], [score], config, 1e-5, work.seed + number)
        serve.probe.wait()
        serve.report(sampling[0], time.perf_counter() - start - sampling[0])
        sampling[0] = 0.0


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not end up in the pipe
    request = json.loads(sys.stdin.readline())
    work, side = Work(**request["work"]), request["side"]
    try:
        longest = work.prompt_tokens + work.group_size * work.completion_tokens
        config = ModelConfig(
            path=work.model,
            backend=work.backend,
            adapter=work.adapter,
            rank=work.rank,
            alpha=2.0 * work.rank,
            max_tokens_per_batch=max(8192, longest),
        )
        backend = resolve_backend(work.backend) if side == "miniact" else "torch"
        if backend == "mlx":
            from miniact.backends.mlx.probe import Probe
        else:
            from miniact.backends.torch.probe import Probe  # type: ignore[assignment]
        serve = Serve(out, Probe("auto", "auto"))
        if side == "miniact":
            policy = load_policy(config, work.seed)
            run_ours(work, policy, make_texts(policy.tokenizer, work), serve)
        else:
            from trl_side import run_trl

            from miniact.backends.common import model_folder
            from miniact.backends.models import ModelSource, load_tokenizer

            source = ModelSource(str(model_folder(work.model)), is_local=True)
            run_trl(work, make_texts(load_tokenizer(source), work), side == "trl-lean", serve)
    except UserError as error:
        out.write(json.dumps({"error": str(error)}) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
