"""ScienceWorld: the official splits, the stock texts, the expert, JVMs that die or stay behind."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from miniact import UserError
from miniact.envs import make_env
from miniact.envs.scienceworld import _VARIATIONS, OVER, STOPPED, ScienceWorld, _tidy, _variations

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("scienceworld") is None,
        reason='needs the extra: pip install "miniact[scienceworld]"',
    ),
    pytest.mark.skipif(shutil.which("java") is None, reason="needs Java 8 or newer"),
]
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")

SHORT = [  # tasks that the expert solves in 30 actions, one of each topic, from all splits
    "use-thermometer/train/1",
    "power-component/dev/10",
    "find-plant/test/231",
    "chemistry-mix-paint-tertiary-color/train/5",
    "lifespan-longest-lived-then-shortest-lived/dev/70",
    "identify-life-stages-2/test/7",
]
# Takes time and takes none; is unknown; is ambiguous and then answered, or not.
MIXED = """
look around, wait1, zzz, inventory, teleport to kitchen, pick up cup, look around, drop orange, 1,
drop orange, open fridge, teleport to outside, wait, eat, pick up cup, teleport to greenhouse, help,
open bee hive, wait, wait1, look at bee, examine air, go to hallway
""".strip().replace("\n", " ")
MIXED = MIXED.split(", ")


@pytest.fixture(scope="module")
def env():
    env = ScienceWorld(max_steps=60)
    yield env
    env.close()
    assert not children(), "a JVM was left behind"


def children() -> list[int]:
    """The JVMs that this process has started and that still run."""
    found = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "java"], capture_output=True, text=True
    )
    states = {int(pid): running(int(pid)) for pid in found.stdout.split()}
    return [pid for pid, runs in states.items() if runs]


def running(pid: int) -> bool:
    """A process that has ended but was not waited for counts as ended."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip()[:1] not in ("", "Z")


def ended(pid: int, within: float = 10) -> bool:
    deadline = time.monotonic() + within
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not running(pid)


def jvm_pid(env: ScienceWorld) -> int:
    return env._jvm._process.pid


def play(env: ScienceWorld, task_id: str, actions: list[str]) -> list:
    return [env.reset(task_id), *map(env.step, actions)]


# ---- tasks ----


def test_the_splits_are_the_simulators(env):
    env.reset("boil/train/0")
    server = env._jvm._server
    assert list(server.getTaskNames()) and set(server.getTaskNames()) == set(_VARIATIONS)
    for name, n in _VARIATIONS.items():
        assert server.getTaskMaxVariations(name) == n
        getattr(server, "taskStr_$eq")(name)  # what the next lines refer to, without loading it
        for split in env.splits:
            official = getattr(server, f"getVariations{split.title()}")()
            assert list(official) == list(_variations(name, split)), (name, split)


def test_every_id_is_there_once(env):
    ids = {split: env.tasks(split, 10_000, seed=0) for split in env.splits}
    assert [len(ids[split]) for split in env.splits] == [3592, 1796, 1819]
    assert len(set().union(*ids.values())) == 7207
    assert {task.split("/")[0] for task in ids["dev"]} == set(_VARIATIONS)
    assert all(task.split("/")[1] == split for split in ids for task in ids[split])


def test_tasks_are_spread_and_follow_the_seed(env):
    sixty = env.tasks("train", 60, seed=3)
    names = [task.split("/")[0] for task in sixty]
    assert set(names[:30]) == set(names[30:]) == set(_VARIATIONS)
    assert sixty == ScienceWorld().tasks("train", 60, seed=3)
    assert sixty[:7] == env.tasks("train", 7, seed=3)
    assert set(sixty) != set(env.tasks("train", 60, seed=4))
    two = ScienceWorld(tasks=["melt", "boil"]).tasks("test", 5, seed=0)
    assert sorted({task.split("/")[0] for task in two}) == ["boil", "melt"] and len(two) == 5


@pytest.mark.parametrize(
    "bad", "boil boil/train boil/train/14 boil/dev/0 boil/train/00 boil/train/1/ x/train/0".split()
)
def test_a_bad_task_id_is_a_user_error(env, bad):
    with pytest.raises(UserError, match="boil/train/12"):
        env.reset(bad)


def test_unknown_names_are_user_errors():
    with pytest.raises(UserError, match=r"tasks: unknown name 'boiling', one of boil, melt"):
        make_env("scienceworld", tasks=["boiling"])
    with pytest.raises(UserError, match=r"simplifications: unknown name 'openDoor'"):
        make_env("scienceworld", simplifications="openDoor")
    with pytest.raises(UserError, match="unknown name 'valid'"):
        ScienceWorld().tasks("valid", 1, seed=0)


# ---- episodes ----


@pytest.mark.parametrize("task_id", SHORT)
def test_the_expert_solves_it(env, task_id):
    text, first = env.reset(task_id)
    assert text.startswith("Your task is to") and first.observation.startswith("This ")
    turn = first
    while not turn.done:
        action = env.expert_action()
        assert env._last.observation == turn.observation  # planning changes nothing
        turn = env.step(action)
        assert turn.applied and turn.success == (turn.score == 1)
    assert turn.success and turn.score == 1
    assert env.expert_action() is None


def test_the_expert_speaks_only_while_it_is_followed(env):
    env.reset("find-plant/train/0")
    plan = env.expert_action()
    env.step("no action at all")
    assert env.expert_action() == plan  # nothing has changed
    env.step(plan)
    assert env.expert_action() is not None
    env.step("wait1")
    assert env.expert_action() is None
    env.reset("find-plant/train/0")
    env.step("wait1")
    assert env.expert_action() is None  # asked too late: no plan was made
    env.reset("find-plant/train/0")
    assert env.expert_action() == plan


def test_texts_are_those_of_the_stock_step(env):
    from scienceworld import ScienceWorldEnv

    class Stock(ScienceWorldEnv):  # on our JVM
        def __init__(self, server):
            self.server, self.envStepLimit = server, 1000

        def __del__(self):
            pass

    task, ours = env.reset("melt/train/3")
    seen = [(ours, None), *((env.step(action), action) for action in MIXED)]
    stock = Stock(env._jvm._server)
    stock.load("melt", 3, "teleportAction,openDoors,selfWateringFlowerPots,noElectricalAction")
    _, info = stock.reset()
    assert task == info["taskDesc"].removeprefix("Task Description:\n")
    assert ours.observation == _tidy(info["look"]) + "\n" + _tidy(info["inv"])
    for turn, action in seen[1:]:
        env._jvm.seed(env._task_id)
        answer, _, done, info = stock.step(action)
        state = [_tidy(info["look"]), _tidy(info["inv"])]
        shown = state if _tidy(answer) in state else [_tidy(answer), *state]
        assert turn.observation == "\n".join(shown), action
        assert (turn.score, turn.done) == (max(info["score"], 0) / 100, done)
    assert info["moves"] > 15  # the world has been running


def test_what_applies(env):
    turns = play(env, "melt/train/3", MIXED)[1:]
    refused = [action for action, turn in zip(MIXED, turns) if not turn.applied]
    assert refused == ["zzz", "open fridge", "eat", "look at bee"]  # the fridge is no number
    env.reset("melt/train/3")
    env.step("teleport to kitchen")
    asked = env.step("drop orange")
    assert asked.applied and asked.observation.startswith("Ambiguous request")
    dropped = env.step("wait1")
    assert not dropped.applied and dropped.observation.startswith("Unknown action")


def test_looking_around_is_shown_once(env):
    _, first = env.reset("boil/train/0")
    assert env.step("look around") == env.step("inventory") == first
    assert env.step("wait1").observation.endswith(first.observation)


def test_the_score_of_the_last_episode_does_not_leak(env):
    env.reset(SHORT[3])
    while (action := env.expert_action()) is not None:
        won = env.step(action)
    assert won.success
    _, turn = env.reset("boil/train/0")
    assert (turn.score, turn.done) == (0, False)
    turn = env.step("help")  # the one kind of action that leaves the simulator's score as it is
    assert (turn.score, turn.done, turn.success) == (0, False, False)


def test_a_wrong_answer_ends_the_episode_as_a_failure(env):
    env.reset("find-plant/train/0")
    turn = env.step("focus on orange")
    assert (turn.done, turn.success, turn.score) == (True, False, 0)


def test_the_end(env):
    short = ScienceWorld(max_steps=2)
    assert short.step("wait1").observation == OVER
    short._jvm = env._jvm  # saves a start
    short.reset("boil/train/0")
    assert not short.step("wait1").done
    last = short.step("wait1")
    assert last.done and not last.success
    over = short.step("wait1")
    assert over.observation == OVER and over.done and not over.applied


def test_junk_is_harmless(env):
    junk = ["", "   ", "\n\n", "look\taround\n\nwait", "\x00", "\ud800", "🦙 ☃", "a " * 50_000]
    junk += ["e\ny\nxp", "__import__('os')", "${jndi:ldap://x}", "!x\\n", "0", "-1", "1e999"]
    clean = play(env, "melt/train/3", MIXED[:5])
    _, before = env.reset("melt/train/3")
    for text in junk:
        turn = env.step(text)
        assert not (turn.applied or turn.done), text
        assert turn.observation.endswith("\n" + before.observation), text
    assert list(map(env.step, MIXED[:5])) == clean[1:]


def test_an_ordinary_list_of_actions_is_off_and_can_be_had(env):
    env.reset("melt/train/3")
    assert env.admissible() is None
    listing = ScienceWorld(list_actions=True)
    listing._jvm = env._jvm
    listing.reset("melt/train/3")
    actions = listing.admissible()
    assert actions == listing.admissible() == tuple(sorted(set(actions)))
    assert "teleport to kitchen" in actions and len(actions) > 50
    listing.step("teleport to art studio")  # where the wording of the paints is left to chance
    assert listing.admissible() == listing.admissible()
    listing.step("teleport to kitchen")
    listing.step("drop orange")
    assert listing.admissible()[:2] == ("0", "1")


# ---- JVMs ----


def test_the_task_id_and_the_actions_determine_everything(env):
    """In another JVM with another history, and however often one looks."""
    other = ScienceWorld(max_steps=60, list_actions=True)
    try:
        play(other, "find-animal/train/1", ["wait", "teleport to outside"])
        task_id = "find-living-thing/train/2"
        plain = play(env, task_id, MIXED)
        seen = [other.reset(task_id)]
        plan = other.expert_action()
        for i, action in enumerate(MIXED):
            if i % 5 == 0:
                other.admissible()
            seen.append(other.step(action))
        assert seen == plain
        env.reset(task_id)
        assert env.expert_action() == plan
    finally:
        other.close()
    assert other.step("wait1").done


@posix
def test_a_jvm_that_dies_or_hangs_fails_the_episode_and_is_replaced():
    env = ScienceWorld()
    try:
        env.reset("find-plant/train/0")
        env.step("wait1")
        score = env._last.score
        assert score > 0
        os.kill(first := jvm_pid(env), signal.SIGKILL)
        turn = env.step("wait1")
        assert (turn.observation, turn.done, turn.success) == (STOPPED, True, False)
        assert (turn.applied, turn.score) == (False, score)
        assert env.step("wait1").observation == OVER and env.expert_action() is None

        _, turn = env.reset("find-plant/train/0")
        second = jvm_pid(env)
        assert not turn.done and second != first
        client = env._jvm._jvm._gateway_client
        assert client.gateway_parameters.read_timeout == 300
        client.gateway_parameters.read_timeout = 1
        client.close()  # the next call connects anew, with the new limit
        os.kill(second, signal.SIGSTOP)
        assert env.expert_action() is None
        assert ended(second, within=0)
        assert env.step("wait1").observation == STOPPED
    finally:
        env.close()


@posix
def test_a_jvm_ends_with_its_environment_and_does_not_hear_ctrl_c(tmp_path, monkeypatch):
    for folder in ("here", "temp"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    env = ScienceWorld()
    env.reset("boil/train/0")
    pid = jvm_pid(env)
    assert os.getpgid(pid) != os.getpgrp()
    del env
    gc.collect()
    assert ended(pid, within=0)
    assert not [*tmp_path.glob("*/*")]  # the simulator's own file is gone too


@posix
def test_a_jvm_ends_with_a_python_that_is_killed(tmp_path):
    code = (
        "import time; from miniact.envs.scienceworld import ScienceWorld; env = ScienceWorld()\n"
        "env.reset('boil/train/0'); print(env._jvm._process.pid, flush=True); time.sleep(60)"
    )
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    python = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=variables)
    try:
        pid = int(python.stdout.readline())
        assert running(pid)
    finally:
        python.kill()
        python.communicate()
    assert ended(pid)


# ---- what must be installed ----


@pytest.fixture
def fake_java(tmp_path, monkeypatch):
    """Make the only Java of this machine a script that writes this to standard error."""

    def install(text: str | None, code: int = 0) -> None:
        monkeypatch.delenv("JAVA_HOME", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        if text is not None:
            java = tmp_path / "java"
            java.write_text(f"#!/bin/sh\necho '{text}' >&2\nexit {code}\n")
            java.chmod(0o755)

    return install


@posix
@pytest.mark.parametrize(
    ("text", "code", "found"),
    [
        (None, 0, "found none"),
        ('java version "1.7.0_80"', 0, r"java \(7\)"),
        ("Unable to locate a Java Runtime.", 1, r"java \(which does not run\)"),
    ],
)
def test_no_java_is_a_user_error(fake_java, text, code, found):
    fake_java(text, code)
    with pytest.raises(UserError, match=rf"Java 8 or newer, found .*{found}|{found}") as error:
        make_env("scienceworld")
    for word in ("apt install", "brew install", "winget install"):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@posix
def test_a_java_that_cannot_start_the_simulator_is_a_user_error(fake_java):
    fake_java('openjdk version "21-ea" 2023-09-19')  # and exits, whatever it is asked for
    with pytest.raises(UserError, match="could not start the simulator"):
        make_env("scienceworld").reset("boil/train/0")


@posix
def test_java_home_comes_first(fake_java, tmp_path, monkeypatch):
    fake_java('openjdk version "17.0.15" 2025-04-15')
    (tmp_path / "home" / "bin").mkdir(parents=True)
    shutil.copy(tmp_path / "java", tmp_path / "home" / "bin" / "java")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert ScienceWorld()._java == str(tmp_path / "home" / "bin" / "java")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    assert ScienceWorld()._java == str(tmp_path / "java")


def test_no_extra_is_a_user_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "scienceworld", None)
    with pytest.raises(UserError, match=r'pip install "miniact\[scienceworld\]"'):
        make_env("scienceworld")
