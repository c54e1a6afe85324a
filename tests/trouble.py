"""An environment that does whatever a simulator may do to those who run it: see `_troubles`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from miniact import UserError
from miniact.envs import Turn


class Trouble:
    """An action names a trouble, a task id "<split>/<trouble>" has it in reset. "ok" is none.

    start: trouble while it is built. nap: seconds that a step takes. once: a file; while it exists,
    the trouble in reset does not happen, and the first one makes it.
    """

    splits = ("train", "id")

    def __init__(self, *, start: str = "ok", nap: float = 0.0, once: str = "") -> None:
        self.nap, self.once = nap, Path(once) if once else None
        self._trouble(start)

    def tasks(self, split: str, n: int, seed: int) -> list[str]:
        if split not in self.splits:
            raise UserError(f"no split {split!r}")
        return [f"{split}/ok{i}" for i in range(n)]

    def reset(self, task_id: str) -> tuple[str, Turn]:
        self.taken = 0
        if self.once is None or not self.once.exists():
            if self.once is not None:
                self.once.touch()
            self._trouble(task_id.partition("/")[2])
        return "survive three steps", Turn("ready", score=0.25)

    def step(self, action: str) -> Turn:
        time.sleep(self.nap)
        self.taken += 1
        done = self.taken >= 3
        return Turn(self._trouble(action), done, done, 1.0 if done else 0.5)

    def admissible(self) -> tuple[str, ...]:
        return ("ok", f"taken {self.taken}")

    def expert_action(self) -> str:
        return "ok"

    def close(self) -> None:
        if self.once is not None:
            self.once.with_suffix(".closed").touch()

    def _trouble(self, name: str) -> str:
        match name:
            case "hang":
                while True:  # busy, and deaf to everything but a kill
                    pass
            case "hang with a child":
                child = subprocess.Popen(["sleep", "600"])
                Path(os.environ["TMPDIR"], "child").write_text(str(child.pid))
                time.sleep(600)
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(3)
            case "sys.exit":
                sys.exit("enough")
            case "raise":
                raise KeyError("val1")
            case "refuse":
                raise UserError("refuse: not with me")
            case "noise":
                print('{"values": [1]}')
                os.write(1, b'{"values": [2]}\n')
                os.write(2, b"x" * 100_000)
                subprocess.run(["echo", '{"values": [3]}'], check=True)
                return repr(sys.stdin.readline())
            case "who":
                threads = os.environ["OMP_NUM_THREADS"]
                return f"{os.getpid()} {os.getsid(0)} {threads} {os.environ['TMPDIR']}"
        return name
