"""Several processes, one policy: each computes a share of every call.

    process 0            runs the recipe as ever: files, worlds, rewards, log, Ctrl-C
    the others           hold the same model and do what process 0 asks, until it is done

    sample, logprobs     prompts and groups are divided; what comes back is put in order again
    forward_backward     groups are divided; each process keeps the gradients of its share
    optim_step           one sum of the gradients, then the same step in every process

So nothing above the policy knows how many there are. Losses are sums over tokens with the
normaliser of the whole batch in their weights, hence the sum of the gradients is the gradient of
the whole. An answer's random numbers follow from its prompt's place in the whole call. Nothing
else is exchanged inside a call: running out of memory is met by the process that meets it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import math
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from miniact import UserError
from miniact.backends.common import model_folder
from miniact.backends.launch import by_mlx
from miniact.backends.messages import encode, to_group, to_loss, to_name, to_rows
from miniact.backends.sampling import Request
from miniact.backends.tree import divide
from miniact.config.sections import ModelConfig
from miniact.types import Group, Loss, Sample

Load = Callable[[ModelConfig, int], Any]  # a policy of this process alone
THE_END = b""
COMPUTING = ("torch", "mlx", "transformers", "peft", "numpy")  # versions that must be alike
CLOSE = 1e-5  # relative; the sums of two unlike cards differ by rounding


class Lost(UserError):
    """Another process is gone, or does not answer: no call can be finished any more."""


class Team(Protocol):
    """How a library connects the processes. RuntimeError when a connection breaks."""

    rank: int
    size: int

    def broadcast(self, message: bytes) -> bytes:
        """Process 0's message, in every process; waits for it however long that takes."""
        ...

    def collect(self, message: bytes) -> list[bytes]:
        """In process 0 everyone's message, by rank; in the others nothing."""
        ...

    def place(self, config: ModelConfig) -> ModelConfig:
        """The config for this process: its own device. UserError where there is none for it."""
        ...

    def sum_gradients(self, policy: Any) -> None:
        """Replace the policy's gradients by their sum over all processes."""
        ...

    def checksum(self, policy: Any) -> float:
        """A number that tells two states of trainable weights and moments apart."""
        ...

    def close(self) -> None: ...


def shares(costs: Sequence[float], ways: int) -> list[list[int]]:
    """Divide indices so that their costs are about equal: the dearest first, to who has least.

    >>> shares([5, 1, 4, 2], 2)
    [[0, 1], [2, 3]]
    """
    parts: list[list[int]] = [[] for _ in range(ways)]
    sums = [0.0] * ways
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        least = sums.index(min(sums))
        parts[least].append(i)
        sums[least] += costs[i]
    return [sorted(part) for part in parts]


class Member:
    """One process's part. The methods below `turn` run in all processes at once, called alike."""

    def __init__(self, team: Team, load: Load) -> None:
        self.team, self._load = team, load
        self.policy: Any = None
        self.in_turn = False  # if this process leaves now, the others wait for it in vain

    def ask(self, name: str, *arguments: Any) -> list[Any]:
        """In process 0: let all do it, this one too; what each has made of it, by rank."""
        return self.turn(self._exchange(self.team.broadcast, encode([name, arguments])))

    def turn(self, call: bytes) -> list[Any]:
        """Do one call. In process 0 an error of any process is raised, in the others it is told."""
        self.in_turn, failure, value = True, None, None
        name, arguments = json.loads(call)
        try:
            value = getattr(self, name)(*arguments)
        except Lost:
            raise
        except Exception as error:  # one that fails must not keep the others waiting
            failure = error
        ours = isinstance(failure, UserError)
        reply = {"value": value, "error": failure and (str(failure) or repr(failure)), "user": ours}
        replies = [json.loads(r) for r in self._exchange(self.team.collect, encode(reply))]
        self.in_turn = False
        if failure and self.team.rank == 0:
            raise failure
        if failure and not ours:
            traceback.print_exception(failure)
        for rank, told in enumerate(replies):
            if told["error"]:
                raise (UserError if told["user"] else RuntimeError)(
                    f"process {rank}: {told['error']}"
                )
        return [told["value"] for told in replies]

    def close(self) -> None:
        """Let the others go home, unless one of them waits for an answer: it will see us gone."""
        if not self.in_turn:
            with contextlib.suppress(Lost):
                self._exchange(self.team.broadcast, THE_END)
                self.team.close()

    def serve(self) -> None:
        """In the other processes: do what process 0 asks, until it is done. Lost if it is gone."""
        while (call := self._exchange(self.team.broadcast, b"")) != THE_END:
            self.turn(call)
        self.team.close()

    def _exchange(self, exchange: Callable[[Any], Any], argument: Any) -> Any:
        self.in_turn, before = True, self.in_turn
        try:
            result = exchange(argument)
        except RuntimeError as error:
            reason = " ".join(re.sub(r"\[\S+:\d+\] ", "", str(error)).split())  # C++ file, line
            raise Lost(
                f"process {self.team.rank} of {self.team.size}: another one is gone or hangs "
                f"({reason:.80}); what it said last tells why; go on with --resume"
            ) from None
        self.in_turn = before
        return result

    # ---- what is done together -----------------------------------------------------------------

    def code(self) -> str:
        """What computes here: miniact's source, and the versions of what it stands on."""
        digest = hashlib.sha256()
        package = Path(__file__).parents[1]
        for file in sorted(package.rglob("*.py")):
            digest.update(str(file.relative_to(package)).encode() + file.read_bytes())
        for name in COMPUTING:
            try:
                digest.update(f"{name} {metadata.version(name)}".encode())
            except metadata.PackageNotFoundError:
                digest.update(f"no {name}".encode())
        return digest.hexdigest()[:12]

    def load(self, config: dict, seed: int) -> None:
        self.policy = None  # the one before goes first
        self.policy = self._load(self.team.place(ModelConfig(**config)), seed)

    def checksum(self) -> float:
        return self.team.checksum(self.policy)

    def sample(self, parts: list, prompts: list, how: dict) -> list[Any]:
        mine = parts[self.team.rank]
        request = Request([prompts[i] for i in mine], streams=mine, **how)
        answers = self.policy.answer(request) if mine else []
        return [[[s.tokens, s.logps, s.text, s.stop] for s in samples] for samples in answers]

    def logprobs(self, parts: list, rows: list, *how: Any) -> list[Any]:
        mine = [to_group(rows[i]) for i in parts[self.team.rank]]
        return self.policy.logprobs(mine, *how) if mine else []

    def forward_backward(
        self, parts: list, rows: list, loss: list, temperature: float
    ) -> dict[str, float]:
        mine = [to_group(rows[i]) for i in parts[self.team.rank]]
        return self.policy.forward_backward(mine, to_loss(*loss), temperature) if mine else {}

    def optim_step(self, lr: float, max_grad_norm: float) -> float:
        self._exchange(self.team.sum_gradients, self.policy)
        return self.policy.optim_step(lr, max_grad_norm)

    def freeze_reference(self) -> None:
        self.policy.freeze_reference()

    def reset_optimizer(self) -> None:
        self.policy.reset_optimizer()

    def load_adapter(self, folder: str) -> None:
        self.policy.load_adapter(Path(folder))

    def load_optimizer(self, file: str) -> None:
        self.policy.load_optimizer(Path(file))


class ParallelPolicy:
    """`Policy` for process 0: what its methods are asked, all processes do."""

    def __init__(self, member: Member, config: ModelConfig, seed: int) -> None:
        self.member, self.name = member, config.path
        model_folder(config.path)  # what must be fetched or converted is there before all look
        self._load(config.path, "load", asdict(config), seed)
        self.tokenizer = member.policy.tokenizer

    def _divided(self, parts: list[list[int]], name: str, *arguments: Any) -> list[Any]:
        """What all make of `name`, by the index of what was divided."""
        results: list[Any] = [None] * sum(map(len, parts))
        for part, values in zip(parts, self.member.ask(name, parts, *arguments)):
            for i, value in zip(part, values, strict=True):
                results[i] = value
        return results

    def _parts(self, groups: Sequence[Group]) -> list[list[int]]:
        """Groups for each process: what begins alike is computed once only within one."""
        answers = [group.size - len(group.prompt) for group in groups]
        return divide([group.prompt for group in groups], answers, self.member.team.size)

    def _load(self, what: Any, name: str, *arguments: Any) -> None:
        """Let all load `what`. UserError unless all hold the same weights and moments then."""
        self.member.ask(name, *arguments)
        sums = self.member.ask("checksum")
        for rank, value in enumerate(sums):
            if not math.isclose(value, sums[0], rel_tol=CLOSE):
                raise UserError(
                    f"{what}: process {rank} has read other weights there than process 0; expected "
                    "a folder that all processes share"
                )

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[list[Sample]]:
        costs = [len(prompt) + n * max_tokens for prompt in prompts]
        how = {"n": n, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        answers = self._divided(shares(costs, self.member.team.size), "sample", prompts, how)
        return [
            [Sample(tuple(tokens), tuple(logps), text, stop) for tokens, logps, text, stop in rows]
            for rows in answers
        ]

    def logprobs(
        self, groups: Sequence[Group], temperature: float = 1.0, reference: bool = False
    ) -> list[list[np.ndarray]]:
        parts = self._parts(groups)
        scored = self._divided(parts, "logprobs", to_rows(groups), temperature, reference)
        return [[np.asarray(logp, np.float32) for logp in logps] for logps in scored]

    def forward_backward(
        self, groups: Sequence[Group], loss: Loss, temperature: float = 1.0
    ) -> dict[str, float]:
        parts = self._parts(groups)
        named = to_name(loss)
        each = self.member.ask("forward_backward", parts, to_rows(groups), named, temperature)
        names = dict.fromkeys(name for metrics in each for name in metrics)
        return {name: sum(metrics.get(name, 0.0) for metrics in each) for name in names}

    def optim_step(self, lr: float, max_grad_norm: float) -> float:
        return self.member.ask("optim_step", lr, max_grad_norm)[0]

    def freeze_reference(self) -> None:
        self.member.ask("freeze_reference")

    def reset_optimizer(self) -> None:
        self.member.ask("reset_optimizer")

    def save_adapter(self, folder: Path) -> None:
        self.member.policy.save_adapter(folder)

    def load_adapter(self, folder: Path) -> None:
        self._load(folder, "load_adapter", folder.resolve())

    def save_optimizer(self, file: Path) -> None:
        self.member.policy.save_optimizer(file)

    def load_optimizer(self, file: Path) -> None:
        self._load(file, "load_optimizer", file.resolve())


# ---- one of several ----------------------------------------------------------------------------


def _connect() -> Team:
    if by_mlx():
        from miniact.backends.mlx.parallel import MLXTeam

        return MLXTeam()
    from miniact.backends.torch.parallel import TorchTeam

    return TorchTeam()


@functools.cache
def join(load: Load) -> Member:
    """Connect the processes of this launch. Only process 0 returns from here.

    The others serve it, and end when it does: with exit code 0, or 1 when it is gone.
    """
    member = Member(_connect(), load)
    if member.team.rank:
        for number in (signal.SIGINT, signal.SIGTERM):  # process 0 decides when to stop
            signal.signal(number, signal.SIG_IGN)
        try:
            member.serve()
        except Lost as error:
            sys.exit(f"miniact: {error}")
        sys.exit(0)
    atexit.register(member.close)
    codes = member.ask("code")
    for rank, code in enumerate(codes):
        if code != codes[0]:
            raise UserError(
                f"process {rank} runs other code than process 0 ({code}, not {codes[0]}); install "
                "the same versions of miniact and what it stands on wherever a process runs"
            )
    return member
