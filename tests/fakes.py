"""A scripted policy, a two-room world and small runs: tested without a model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from rich.console import Console

from miniact.config.sections import STAGES
from miniact.envs import Turn
from miniact.runs.log import StageLog
from miniact.runs.progress import Bar
from miniact.types import Group, Sample, Tokens

SMALL = [  # a run of seconds, whatever its recipe
    *(f"stage.{name}.{size}" for name in STAGES for size in ("steps=3", "batch=4")),
    *("stage.act.group_size=2", "stage.rl.group_size=2", "pairs.k=2", "env.parallel=2"),
    *("env.train_tasks=4", "env.heldout_tasks=1", "env.options={max_steps: 18}"),
    *("eval.episodes=1", "eval.states=4", "eval.pairs=4", "eval.splits=id"),
]
TAGS = ["prompt.form=tags", "prompt.max_tokens=6000", "model.max_tokens_per_batch=7000"]


class FakePolicy:
    """Answers by a script, remembers what it was asked to learn, and has one weight: a counter."""

    name = "fake"

    def __init__(self, tokenizer: Any, script: Callable[[str, int], str]) -> None:
        self.tokenizer, self.script = tokenizer, script
        self.trained: list[Group] = []
        self.prompts: list[str] = []
        self.updates = 0
        self.moments = 0

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[list[Sample]]:
        out = []
        for prompt in prompts:
            text = self.tokenizer.decode(prompt)
            self.prompts.append(text)
            replies = [self.script(text, i) for i in range(n)]
            out.append([self._sample(reply) for reply in replies])
        return out

    def _sample(self, reply: str) -> Sample:
        ids = self.tokenizer(reply, add_special_tokens=False)["input_ids"]
        tokens = (*ids, self.tokenizer.eos_token_id)
        return Sample(tokens, tuple(-0.5 for _ in tokens), reply, "end")

    def logprobs(self, groups, temperature=1.0, reference=False):  # type: ignore[no-untyped-def]
        def logp(c):  # type: ignore[no-untyped-def]
            known = not reference and c.old_logps is not None  # as it was sampled
            return c.old_logps if known else np.full(len(c.tokens), -1.0)

        return [[logp(c) for c in g.completions] for g in groups]

    def forward_backward(self, groups, loss, temperature=1.0):  # type: ignore[no-untyped-def]
        self.trained += groups
        sums: dict[str, float] = {"repeated_tokens": 0.0}
        for group in groups:
            for c in group.completions:
                n = len(c.tokens)
                old = np.full(n, -0.5) if c.old_logps is None else c.old_logps
                tokens = Tokens(
                    np.full(n, c.weight), np.full(n, c.advantage), old, np.full(n, -0.5)
                )
                for key, value in loss(np, np.full(n, -0.5), tokens)[1].items():
                    sums[key] = sums.get(key, 0.0) + float(value)
        return sums

    def optim_step(self, lr: float, max_grad_norm: float) -> float:
        self.updates += 1
        self.moments += 1
        return 0.1

    def freeze_reference(self) -> None:
        self.frozen_at = self.updates

    def reset_optimizer(self) -> None:
        self.moments = 0

    def save_adapter(self, folder: Path) -> None:
        (folder / "weights.json").write_text(json.dumps(self.updates))

    def load_adapter(self, folder: Path) -> None:
        self.updates = json.loads((folder / "weights.json").read_text())

    def save_optimizer(self, file: Path) -> None:
        file.write_text(json.dumps(self.moments))

    def load_optimizer(self, file: Path) -> None:
        self.moments = json.loads(file.read_text())


class Corridor:
    """Walk east `length` times. Task ids are "<split>/<length>"."""

    splits = ("train", "id")

    def __init__(self, limit: int = 8) -> None:
        self.limit, self.closed = limit, False

    def tasks(self, split: str, n: int, seed: int) -> list[str]:
        return [f"{split}/{2 + i}" for i in range(n)]

    def reset(self, task_id: str) -> tuple[str, Turn]:
        self.left, self.taken = int(task_id.partition("/")[2]), 0
        return "reach the end", Turn("you are in a corridor")

    def step(self, action: str) -> Turn:
        self.taken += 1
        applied = action == "east"
        self.left -= applied
        done = self.left == 0
        text = "you walk" if applied else "nothing happens"
        return Turn(text, done or self.taken == self.limit, done, float(done), applied)

    def admissible(self) -> tuple[str, ...]:
        return ("east", "west")

    def expert_action(self) -> str:
        return "east"

    def close(self) -> None:
        self.closed = True


def scripted(prompt: str, i: int) -> str:
    """Plays badly but in the right form, and reflects well."""
    if "which proves right" in prompt:
        action = re.search(r'proves right:\n- "(.*)" leads to: ', prompt)[1]  # type: ignore[index]
        seen = prompt.rpartition("Current observation: ")[2][:30]
        return f"I see {seen} so I {action} next. <action>{action}</action>"
    if "Candidate actions" in prompt:
        return f"Hm. <choice>{1 + i % 2}</choice>"
    return f"<action>{('look', 'inventory')[i % 2]}</action>"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "x", "\ud83d"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=4,
)


@st.composite
def mutated(draw: st.DrawFn, row: dict) -> dict:
    """A copy of a JSON row in which something, however deep, is gone or is something else."""
    row = json.loads(json.dumps(row))
    node: Any = row
    while True:
        key = draw(st.sampled_from(range(len(node)) if isinstance(node, list) else sorted(node)))
        if not (isinstance(node[key], (list, dict)) and node[key] and draw(st.booleans())):
            break
        node = node[key]
    if draw(st.booleans()):
        del node[key]
    else:
        node[key] = draw(JSON)
    return row


def quiet_bar() -> Bar:
    return Bar(Console(file=StringIO()), "test")


def learn(run, policy, config, stop_at=None, seen=None):
    """A stage that only counts; `stop_at` raises in the middle of that step, like a kill."""
    log = StageLog(run, 1, "il", quiet_bar())
    for step in log.steps(policy, config):
        if step == stop_at:
            raise RuntimeError("killed")
        policy.optim_step(0.1, 1.0)
        if seen is not None:
            seen.append(step)
        log.write(step, {"loss": float(step)})
