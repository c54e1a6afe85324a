"""An environment in a process of its own: many slow simulators at once, and none can harm the run.

    WorkerEnv ── ["step", "go east"] ──▶ main ──▶ Env
              ◀── {"value": {"observation": …}} ──

The socket carries JSON lines: what an environment says is data. A worker that dies, raises or takes
longer than `timeout_s` for one answer is killed and replaced at the next reset; its episode ends as
lost, which counts as failed. Only a worker that cannot play its very first episode is an error.

A worker is the leader of a session: it never sees a Ctrl-C, and its children are killed with it. It
ends when the socket closes, so also when the process that started it was killed. What a simulator
prints is dropped; to read it, use the environment without a worker. (multiprocessing would run the
user's script again in each worker, torch and all, and wait for a dead one before its children are.)
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from dataclasses import asdict
from typing import Any

from miniact import UserError
from miniact.envs import Env, Turn, build_env, find_env

STOPPED = "The worker stopped"
_IDLE = "no episode is running"
GRACE_S = 5.0  # for an environment to close; then its processes are killed

# The worker imports what its parent would import; `-m` would look into the working folder first.
_CODE = "import sys; fd, *sys.path = sys.argv[1:]; from miniact.envs.workers import main; main(fd)"


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

    @functools.cached_property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._insist("splits"))

    def tasks(self, split: str, n: int, seed: int) -> list[str]:
        return self._insist("tasks", split, n, seed)

    def reset(self, task_id: str) -> tuple[str, Turn]:
        """Start an episode; a task that stops two workers, one after the other, is lost."""
        try:
            task, turn = self._insist("reset", task_id)
        except _LostError:
            if not self._played:
                raise
            return "", self._lost()
        self._played = True
        return task, self._turn(turn)

    def step(self, action: str) -> Turn:
        try:
            return self._turn(self._ask("step", action))
        except _LostError:
            return self._lost()

    def admissible(self) -> tuple[str, ...] | None:
        listed = self._look("admissible")
        return None if listed is None else tuple(listed)

    def expert_action(self) -> str | None:
        return self._look("expert_action")

    def close(self) -> None:
        """End the worker; an episode in progress is lost. The next reset starts another."""
        worker, self._worker = self._worker, None
        self._why = _IDLE
        if worker is not None:
            worker.stop()

    def _look(self, what: str) -> Any:
        """Looking at a dead world is no error: nothing is to be seen."""
        with contextlib.suppress(_LostError):
            return self._ask(what)
        return None

    def _turn(self, fields: dict[str, Any]) -> Turn:
        self._score = fields["score"]
        return Turn(**fields)

    def _lost(self) -> Turn:
        text = f"{STOPPED}: {self._why}."
        return Turn(text, done=True, score=self._score, applied=False, lost=True)

    def _ask(self, *call: Any) -> Any:
        if self._worker is None:
            raise _LostError(self._why)
        try:
            return self._worker.ask(*call)
        except _LostError as error:
            self.close()
            self._why = str(error)
            raise

    def _insist(self, *call: Any) -> Any:
        """Ask; if there is no worker, or it stops, ask a new one, twice at the most."""
        for _ in range(2):
            if self._worker is None:
                self._worker = _Worker(self._setup, self._timeout_s)
                self._score = 0.0
            with contextlib.suppress(_LostError):
                return self._ask(*call)
        raise _LostError(
            f"{self._name}: two worker processes stopped, one after the other ({self._why}); "
            "env.workers=0 shows what they print"
        )


class _LostError(UserError):
    """The worker is dead, has hung, or its environment raised what is no UserError."""


class _Worker:
    """The parent's end of one worker process. It ends with `stop`, and with this object."""

    def __init__(self, setup: dict[str, Any], timeout_s: float) -> None:
        if os.name != "posix":
            raise UserError("env.workers: needs Linux or macOS; set env.workers to 0")
        self._timeout_s = timeout_s
        folder = tempfile.TemporaryDirectory(prefix="miniact-worker-", ignore_cleanup_errors=True)
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE, str(theirs.fileno()), *filter(None, sys.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": folder.name},
                start_new_session=True,
                pass_fds=[theirs.fileno()],
            )
        self._socket.settimeout(timeout_s)
        self._answers = self._socket.makefile("rb")
        self.stop = weakref.finalize(self, _stop, self._process, self._socket, folder)
        self._ready = False
        self._send(setup)

    def ask(self, *call: Any) -> Any:
        """The value of one call of the protocol: the name of a method, then its arguments."""
        if not self._ready:
            self._receive()  # the answer to the setup
            self._ready = True
        self._send(call)
        return self._receive()

    def _send(self, message: Any) -> None:
        text = json.dumps(message, default=str)  # YAML knows dates, JSON does not
        with contextlib.suppress(OSError):  # it has ended: its answer will say so
            self._socket.sendall(text.encode() + b"\n")

    def _receive(self) -> Any:
        line = b""
        try:
            with contextlib.suppress(ConnectionError):  # it died with a call unread
                line = self._answers.readline()
        except TimeoutError:
            _kill(self._process.pid)
            raise _LostError(f"no answer within {self._timeout_s:g} s") from None
        if not line.endswith(b"\n"):
            self.stop()
            code = self._process.wait()
            raise _LostError(f"exit code {code}" if code >= 0 else f"{signal.strsignal(-code)}")
        answer = json.loads(line)
        if "user_error" in answer:
            raise UserError(answer["user_error"])
        if "raised" in answer:
            raise _LostError(answer["raised"])
        return answer["value"]


def _stop(
    process: subprocess.Popen[bytes],
    ours: socket.socket,
    folder: tempfile.TemporaryDirectory[str],
) -> None:
    """Let the worker close its environment; then kill whatever is left of its session."""
    with ours, contextlib.suppress(OSError):
        ours.shutdown(socket.SHUT_WR)
        ours.settimeout(GRACE_S)
        while ours.recv(65536):  # until it ends; its id stays taken until `wait`
            pass
    _kill(process.pid)
    process.wait()
    folder.cleanup()


def _kill(leader: int) -> None:
    """Kill a session at once. Its leader must not have been waited for: its id could be reused."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


# ---- inside the worker ---------------------------------------------------------------------------


def main(fd: str) -> None:
    """Build the environment that the first line names, then answer calls until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    parent = socket.socket(fileno=int(fd))
    parent.set_inheritable(False)  # no child of a simulator may hold it open
    threading.Thread(target=_listen, args=(parent, requests), daemon=True).start()
    env: Env | None = None
    while line := requests.get():
        try:
            message, value = json.loads(line), None
            if env is None:
                env = build_env(**message)
            else:
                value = getattr(env, message[0])
                value = value(*message[1:]) if callable(value) else value
            answer = json.dumps({"value": value}, default=asdict)  # turns are dataclasses
        except UserError as error:
            answer = json.dumps({"user_error": str(error)})
        except (Exception, SystemExit) as error:
            answer = json.dumps({"raised": f"{type(error).__name__}: {error}"})
        parent.sendall(answer.encode() + b"\n")
        if env is None:
            return
    if env is not None:
        env.close()


def _listen(parent: socket.socket, requests: queue.SimpleQueue[bytes]) -> None:
    """Hear the end of the input even while the environment is busy, and see that it is obeyed."""
    with contextlib.suppress(OSError):
        for line in parent.makefile("rb"):
            requests.put(line)
    requests.put(b"")
    time.sleep(GRACE_S)
    _kill(os.getpid())
