"""An environment in a process of its own: many slow simulators at once, and none can harm the run.

    WorkerEnv ── [["step", "go east"], ["admissible"]] ──▶ main ──▶ Env
              ◀── {"values": [{"observation": …}, ["go west"]]} ──

The pipes carry JSON lines: what an environment says is data. A worker that dies, raises or takes
longer than `timeout_s` for one answer is killed and replaced at the next reset; its episode ends as
lost, which counts as failed. Only a worker that cannot play its very first episode is an error.

A worker is the leader of a session: it never sees a Ctrl-C, and its children are killed with it. It
ends when its standard input closes, so also when the process that started it was killed. What a
simulator prints is dropped; to read it, use the environment without a worker.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from dataclasses import asdict
from typing import IO, Any

from miniact import UserError
from miniact.envs import Env, Turn, build_env, find_env

STOPPED = "The worker stopped"
_IDLE = "no episode is running"
GRACE_S = 5.0  # for an environment to close; then its processes are killed

# The worker imports what its parent would import; `-m` would look into the working folder first.
_CODE = "import sys; sys.path[:] = sys.argv[1:]; from miniact.envs.workers import main; main()"


class WorkerEnv:
    """A registered environment, by name and options, in a worker process that starts at once.

    timeout_s: an answer that takes longer (building the world included) means that it has hung.
    Raises UserError as the environment does, with the same text, when it is first used.
    """

    waits = True  # see miniact.envs.Env

    def __init__(self, name: str, options: dict[str, Any], timeout_s: float = 300) -> None:
        self._name = name
        self._setup = {"name": name, "target": find_env(name), "options": options}
        self._timeout_s = timeout_s
        self._worker: _Worker | None = _Worker(self._setup, timeout_s)
        self._why = _IDLE
        self._played = False  # has a reset ever succeeded?
        self._score = 0.0  # of the last turn
        self._lists = False  # once somebody asks for the admissible actions …
        self._listed: list | None = None  # … they come along with every turn

    @functools.cached_property
    def splits(self) -> tuple[str, ...]:
        (splits,) = self._insist(["splits"])
        return tuple(splits)

    def tasks(self, split: str, n: int, seed: int) -> list[str]:
        (ids,) = self._insist(["tasks", split, n, seed])
        return ids

    def reset(self, task_id: str) -> tuple[str, Turn]:
        """Start an episode; a task that stops two workers, one after the other, is lost."""
        try:
            (task, turn), *listed = self._insist(["reset", task_id], *self._look())
        except _LostError:
            if not self._played:
                raise
            return "", self._lost()
        self._played = True
        return task, self._turn(turn, listed)

    def step(self, action: str) -> Turn:
        try:
            turn, *listed = self._ask(["step", action], *self._look())
        except _LostError:
            return self._lost()
        return self._turn(turn, listed)

    def admissible(self) -> tuple[str, ...] | None:
        if not self._lists:
            try:
                (self._listed,) = self._ask(["admissible"])
            except _LostError:
                return None
            self._lists = True
        return None if self._listed is None else tuple(self._listed)

    def expert_action(self) -> str | None:
        try:
            return self._ask(["expert_action"])[0]
        except _LostError:
            return None

    def close(self) -> None:
        """End the worker; an episode in progress is lost. The next reset starts another."""
        worker, self._worker = self._worker, None
        self._why, self._listed = _IDLE, None
        if worker is not None:
            worker.stop()

    def _look(self) -> list[list]:
        return [["admissible"]] if self._lists else []

    def _turn(self, fields: dict[str, Any], listed: list) -> Turn:
        if listed:
            (self._listed,) = listed
        self._score = fields["score"]
        return Turn(**fields)

    def _lost(self) -> Turn:
        text = f"{STOPPED}: {self._why}."
        return Turn(text, done=True, score=self._score, applied=False, lost=True)

    def _ask(self, *calls: list) -> list:
        """The values of some calls, made one after the other in a single exchange."""
        if self._worker is None:
            raise _LostError(self._why)
        try:
            return self._worker.ask(*calls)
        except _LostError as error:
            self.close()
            self._why = str(error)
            raise

    def _insist(self, *calls: list) -> list:
        """Ask; if there is no worker, or it stops, ask a new one, twice at the most."""
        for _ in range(2):
            if self._worker is None:
                self._worker = _Worker(self._setup, self._timeout_s)
                self._score = 0.0
            with contextlib.suppress(_LostError):
                return self._ask(*calls)
        raise _LostError(
            f"{self._name}: two worker processes stopped, one after the other ({self._why}); "
            "env.workers=0 shows what they print"
        )


class _LostError(UserError):
    """The worker is dead, has hung, or its environment raised what is no UserError."""


class _Worker:
    """The parent's end of one worker process. It ends with `stop`, and with this object."""

    def __init__(self, setup: dict[str, Any], timeout_s: float) -> None:
        self._timeout_s = timeout_s
        folder = tempfile.TemporaryDirectory(prefix="miniact-worker-", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE, *filter(None, sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": folder.name},
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
        )
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin = self._process.stdin
        ears = (self._process.stdout, self._answers)
        reader = threading.Thread(target=_read_lines, args=ears, daemon=True)
        reader.start()
        self.stop = weakref.finalize(self, _stop, self._process, reader, folder)
        self._ready = False
        self._send(setup)

    def ask(self, *calls: list) -> list:
        if not self._ready:
            self._receive()  # the answer to the setup
            self._ready = True
        self._send(calls)
        return self._receive()

    def _send(self, message: Any) -> None:
        with contextlib.suppress(OSError, ValueError):  # it has ended: its answer will say so
            text = json.dumps(message, default=str)  # YAML knows dates, JSON does not
            self._stdin.write(text.encode() + b"\n")
            self._stdin.flush()

    def _receive(self) -> list:
        try:
            line = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            _kill(self._process.pid)
            raise _LostError(f"no answer within {self._timeout_s:g} s") from None
        if not line:
            self.stop()
            code = self._process.wait()
            raise _LostError(f"exit code {code}" if code >= 0 else f"{signal.strsignal(-code)}")
        answer = json.loads(line)
        if "user_error" in answer:
            raise UserError(answer["user_error"])
        if "raised" in answer:
            raise _LostError(answer["raised"])
        return answer["values"]


def _stop(
    process: subprocess.Popen[bytes],
    reader: threading.Thread,
    folder: tempfile.TemporaryDirectory[str],
) -> None:
    """Let the worker close its environment; then kill whatever is left of its session."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # what could not be written to it is flushed here again
        process.stdin.close()
    reader.join(GRACE_S)  # it ends when the worker does, whose id stays taken until `wait`
    _kill(process.pid)
    process.wait()
    folder.cleanup()


def _kill(leader: int) -> None:
    """Kill a session at once. Its leader must not have been waited for: its id could be reused."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(leader, signal.SIGKILL)
        else:  # Windows knows no process groups of this kind
            os.kill(leader, signal.SIGTERM)


def _read_lines(stream: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """Put every line into the queue, and an empty one at the end."""
    with stream, contextlib.suppress(OSError):
        for line in stream:
            lines.put(line)
    lines.put(b"")


# ---- inside the worker ---------------------------------------------------------------------------


def main() -> None:
    """Build the environment that the first line names, then answer calls until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    stdin, stdout = _take_pipes()
    threading.Thread(target=_listen, args=(stdin, requests), daemon=True).start()
    env: Env | None = None
    while line := requests.get():
        try:
            message = json.loads(line)
            if env is None:
                env, message = build_env(**message), []
            answer = json.dumps({"values": [_call(env, *call) for call in message]})
        except UserError as error:
            answer = json.dumps({"user_error": str(error)})
        except (Exception, SystemExit) as error:
            answer = json.dumps({"raised": f"{type(error).__name__}: {error}"})
        stdout.write(answer.encode() + b"\n")
        stdout.flush()
        if env is None:
            return
    if env is not None:
        env.close()


def _call(env: Env, method: str, *args: Any) -> Any:
    """One call of the protocol, its answer as JSON values."""
    match method:
        case "splits":
            return env.splits
        case "reset":
            task, turn = env.reset(*args)
            return task, asdict(turn)
        case "step":
            return asdict(env.step(*args))
        case "tasks" | "admissible" | "expert_action":
            return getattr(env, method)(*args)
    raise ValueError(f"no method of Env: {method!r}")


def _take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """The two pipes, out of reach: simulators (and their children) print, and some read."""
    pipes = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    return pipes


def _listen(stdin: IO[bytes], requests: queue.SimpleQueue[bytes]) -> None:
    """Hear the end of the input even while the environment is busy, and see that it is obeyed."""
    _read_lines(stdin, requests)
    time.sleep(GRACE_S)
    _kill(os.getpid())
