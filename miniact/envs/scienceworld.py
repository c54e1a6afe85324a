"""ScienceWorld (Wang et al., 2022): the real simulator, all 30 tasks, the official splits.

The simulator is a Java program inside the `scienceworld` package; each environment talks to a JVM
of its own. The package's Python class is not used, for three reasons:
- its `step` lists every valid action each time; asking for less gives the same texts sooner;
- an episode depends on the order of Java's identity hashes and on how often one looked. Here a JVM
  flag fixes the first and a seed before each call the second: the task id and the actions determine
  every text (on HotSpot JVMs, the usual ones; others ignore the flag);
- its JVM dies of a Ctrl-C, obeys any local user, and can hang for ever.

An observation holds the whole state: the answer to the last action, the room, the inventory. An
answer that only repeats the room or the inventory (`look around`) is shown once.
"""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

import yaml

from miniact import UserError
from miniact.envs import OVER, Turn, check_extra, check_names

# The tasks and how many variations each has: known here, so that listing them takes no JVM. The
# official split gives the first half to train, the next quarter to dev, the rest to test.
_VARIATIONS: dict[str, int] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_bytes())
_SIMPLIFICATIONS = (
    "teleportAction",
    "openDoors",
    "selfWateringFlowerPots",
    "noElectricalAction",  # left out by itself where the task is about electricity
    "openContainers",  # opens the beehive too: its bees escape, and the expert loses them
)
_UNKNOWN = "No known action matches that input."  # costs no time, changes nothing
_CANCELLED = "Unknown action."  # no answer to "Ambiguous request: …": costs one tick of time
STOPPED = "The simulator stopped."
_JAVA_FLAGS = (
    "-XX:+IgnoreUnrecognizedVMOptions",
    "-XX:+UnlockExperimentalVMOptions",
    "-XX:hashCode=2",  # every identity hash is 1, so that sets keep one order
    "-XX:+UseSerialGC",  # a third of the memory
)


class ScienceWorld:
    """The 30 tasks of ScienceWorld. A task id is "<task>/<split>/<variation>": "boil/train/12".

    `simplifications`: names joined by commas. The default is what the simulator calls "easy".
    `tasks`: only these of the 30. `list_actions`: let `admissible` answer (see there).
    `timeout_s`: a call that takes longer has hung; planning an expert may take 30 s.
    """

    splits = ("train", "dev", "test")
    waits = True  # for its JVM

    def __init__(
        self,
        *,
        max_steps: int = 100,
        simplifications: str = ",".join(_SIMPLIFICATIONS[:4]),
        tasks: list[str] | None = None,
        list_actions: bool = False,
        timeout_s: float = 300,
    ) -> None:
        self._names = list(_VARIATIONS) if tasks is None else tasks
        check_names("env.options.tasks: unknown name", _VARIATIONS, *self._names)
        self._simplifications = [name for name in simplifications.split(",") if name]
        check_names(
            "env.options.simplifications: unknown name", _SIMPLIFICATIONS, *self._simplifications
        )
        self._max_steps = max_steps
        self._list_actions = list_actions
        self._timeout_s = timeout_s
        self._java = _find_java()
        self._jvm: _Jvm | None = None
        self._plan: list[str] | None = None  # the expert's next actions; None: not asked yet
        self._last = Turn(OVER, done=True)

    def tasks(self, split: str, n: int, seed: int) -> list[str]:
        """n distinct task ids of a split, dealt out evenly: one of each task, then another."""
        check_names("ScienceWorld split: unknown name", self.splits, split)
        names = random.Random(f"{split}/{seed}").sample(self._names, len(self._names))
        decks = []
        for name in names:
            ids = [f"{name}/{split}/{i}" for i in _variations(name, split)]
            random.Random(f"{name}/{split}/{seed}").shuffle(ids)
            decks.append(ids)
        return [task_id for deal in zip_longest(*decks) for task_id in deal if task_id][:n]

    def reset(self, task_id: str) -> tuple[str, Turn]:
        """Start an episode, and a new JVM if there is none or the last one died."""
        _parse(task_id)
        self._task_id = task_id
        self._last = Turn(OVER, done=True)
        for _ in range(2):
            try:
                return self._load()
            except _StoppedError:
                self.close()
        raise UserError(f"ScienceWorld stopped twice while loading {task_id!r}: is memory short?")

    def step(self, action: str) -> Turn:
        """Act. If the simulator dies or hangs, the episode ends as a failure."""
        if self._last.done or self._jvm is None:
            return replace(self._last, observation=OVER, applied=False)
        self._steps += 1
        try:
            self._jvm.seed(self._task_id)
            answer = self._jvm.ask("step", action.encode(errors="replace").decode())
            self._last = self._turn(self._jvm, answer)
        except _StoppedError:
            self._last = Turn(STOPPED, done=True, score=self._last.score, applied=False, lost=True)
            return self._last
        if self._plan and action == self._plan[0]:
            self._plan = self._plan[1:]
        elif answer != _UNKNOWN:
            self._plan = []
        return self._last

    def admissible(self) -> tuple[str, ...] | None:
        """None, unless `list_actions` is on: the simulator's own list is no list of what applies.

        It names each action in one of many accepted wordings (it has 57 % of the expert's), and
        115 to 3,736 of them, most of them pointless ("connect workshop to air").
        """
        if not self._list_actions or self._last.done or self._jvm is None:
            return None
        try:
            self._jvm.seed(self._task_id)
            return tuple(sorted(set(self._jvm.ask_list("getValidActionObjectCombinations"))))
        except _StoppedError:
            return None

    def expert_action(self) -> str | None:
        """The next action of the simulator's gold path, as long as the episode has followed it.

        Ask before the first action: the plan is made only then (0.2-4 s; Mendelian genetics 30 s).
        """
        if self._last.done:
            return None
        if self._plan is None:
            try:
                self._load(gold=True)
            except _StoppedError:
                return None
        return self._plan[0] if self._plan else None

    def close(self) -> None:
        """Stop the JVM; an episode in progress is lost. The next reset starts another."""
        if self._jvm is not None:
            self._jvm.stop()

    def _load(self, gold: bool = False) -> tuple[str, Turn]:
        """Put the simulator at the start of the task; with gold, let the expert plan it first."""
        if self._jvm is None or not self._jvm.alive:
            self._jvm = _Jvm(self._java, self._timeout_s)
        name, variation = _parse(self._task_id)
        electrical = "power-component" in name or "conductivity" in name
        names = [s for s in self._simplifications if not (electrical and s == "noElectricalAction")]
        self._jvm.ask("load", name, variation, ",".join(names), gold)
        self._jvm.ask("step", "look around")  # takes no time; until then, the score is the last one
        if not gold:
            self._steps = 0
        self._plan = self._jvm.ask_list("getGoldActionSequence") if gold else None
        self._last = self._turn(self._jvm, "")
        return self._jvm.ask("getTaskDescription"), self._last

    def _turn(self, jvm: _Jvm, answer: str) -> Turn:
        """The answer with the room and the inventory; to look at them takes no time."""
        answer = _tidy(answer)
        state = [_tidy(jvm.ask("freeActionLook")), _tidy(jvm.ask("freeActionInventory"))]
        score = round(100 * jvm.ask("getScore"))  # negative: the task has been failed
        completed = jvm.ask("getCompleted")
        return Turn(
            "\n".join(state if answer in ("", *state) else [answer, *state]),
            done=completed or score < 0 or self._steps >= self._max_steps,
            success=completed and score == 100,
            score=max(score, 0) / 100,
            applied=not answer.startswith((_UNKNOWN, _CANCELLED)),
        )


class _StoppedError(Exception):
    """The JVM is dead, hung, or failed in a call."""


class _Jvm:
    """One simulator process. It ends with `stop`, with this object, and with this process: its
    standard input closes then, even after a SIGKILL."""

    def __init__(self, java: str, timeout_s: float) -> None:
        from py4j.java_gateway import GatewayParameters, JavaGateway, find_jar_path
        from scienceworld.constants import JAR_PATH

        classpath = os.pathsep.join((find_jar_path(), JAR_PATH))
        # Not py4j's own launch_gateway: it forks Python code, which can hang where threads run.
        server = ["py4j.GatewayServer", "--die-on-broken-pipe", "--enable-auth", "0"]
        folder = tempfile.TemporaryDirectory(prefix="scienceworld-")  # it writes a table of types
        self._process = subprocess.Popen(
            [java, *_JAVA_FLAGS, "-classpath", classpath, *server],
            cwd=folder.name,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is for us alone: the step in progress ends well
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
        )
        self.stop = weakref.finalize(self, _stop, self._process, folder)
        out = self._process.stdout
        assert out is not None
        port, token = out.readline().decode().strip(), out.readline().decode().strip()
        if not port:
            self.stop()
            raise UserError(f"ScienceWorld: {java} could not start the simulator: is memory short?")
        threading.Thread(target=_drain, args=(out,), daemon=True).start()
        logging.getLogger("py4j").setLevel(logging.CRITICAL)  # a death is told once, by a Turn
        parameters = GatewayParameters(port=int(port), auth_token=token, read_timeout=timeout_s)
        self._jvm = jvm = JavaGateway(gateway_parameters=parameters).jvm
        self._server = self._call(lambda: jvm.scienceworld.runtime.pythonapi.PythonInterface())
        self._random = self._call(lambda: getattr(getattr(jvm.scala.util, "Random$"), "MODULE$"))

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, method: str, *args: Any) -> Any:
        """Call a method of the simulator."""
        return self._call(lambda: getattr(self._server, method)(*args))

    def ask_list(self, method: str) -> list[str]:
        """A list of strings, fetched as one text: py4j would make a call for each item."""
        items = self.ask(method)
        text = self._call(lambda: self._jvm.java.lang.String.join("\n", items))
        return text.split("\n") if text else []

    def seed(self, task_id: str) -> None:
        """Make chance (where a bee flies to) a function of the task and of the time that passed."""
        seed = random.Random(f"{task_id}/{self.ask('getNumMoves')}").getrandbits(48)
        self._call(lambda: self._random.setSeed(seed))

    def _call(self, function: Callable[[], Any]) -> Any:
        from py4j.protocol import Py4JError

        if not self.alive:
            raise _StoppedError
        try:
            return function()
        except Py4JError as error:
            self.stop()
            raise _StoppedError from error


def _stop(process: subprocess.Popen[bytes], folder: tempfile.TemporaryDirectory[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.terminate()
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    folder.cleanup()


def _drain(stream: IO[bytes]) -> None:
    """The simulator prints a lot; an unread pipe fills up and blocks it."""
    with stream:
        while stream.read(65536):
            pass


def _find_java() -> str:
    """The Java to run, found before the package is asked for anything."""
    check_extra("scienceworld", "scienceworld")
    home = os.environ.get("JAVA_HOME")
    folders = [os.path.join(home, "bin"), None] if home else [None]  # None: those of PATH
    unfit = "none"
    for java in filter(None, [shutil.which("java", path=folder) for folder in folders]):
        ran = subprocess.run([java, "-version"], capture_output=True, text=True)
        version = re.search(r'version "(?:1\.)?(\d+)', ran.stderr + ran.stdout)  # "1.8.0", "17.0"
        if ran.returncode == 0 and version and int(version[1]) >= 8:
            return java
        unfit = f"{java} ({version[1] if version else 'which does not run'})"
    raise UserError(
        f"ScienceWorld needs Java 8 or newer, found {unfit}. Debian or Ubuntu: "
        "`sudo apt install default-jre-headless`; macOS: `brew install --cask temurin`; "
        "Windows: `winget install EclipseAdoptium.Temurin.21.JRE`, then open a new terminal"
    )


def _variations(name: str, split: str) -> range:
    """The official split of a task's variations."""
    n = _VARIATIONS[name]
    half, most = n // 4 * 2, n // 4 * 3
    return {"train": range(half), "dev": range(half, most), "test": range(most, n)}[split]


def _parse(task_id: str) -> tuple[str, int]:
    """The task and the variation: ("boil", 12) of "boil/train/12"."""
    match task_id.split("/"):
        case [name, split, number] if name in _VARIATIONS and split in ScienceWorld.splits:
            if number in map(str, _variations(name, split)):
                return name, int(number)
    raise UserError(f"{task_id!r} is no ScienceWorld task; they look like 'boil/train/12'")


def _tidy(text: str) -> str:
    """The simulator's text without blanks at the ends of lines."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
