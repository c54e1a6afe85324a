"""Environments in worker processes: the same episodes, and no simulator can harm a run."""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fakes import Corridor, FakePolicy
from trouble import Trouble

import miniact.envs
from miniact import UserError
from miniact.config.sections import PromptConfig
from miniact.envs import Turn, make_env
from miniact.envs.workers import STOPPED, WorkerEnv
from miniact.evaluation.episodes import PlayOptions, Tally, play_episodes
from miniact.evaluation.evaluate import evaluate_episodes
from miniact.method.prompts import Prompter

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
IN_WORKERS = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(miniact.envs._REGISTRY, "trouble", "trouble:Trouble")
    monkeypatch.setitem(miniact.envs._REGISTRY, "corridor", "fakes:Corridor")


@pytest.fixture
def worker():
    """Make workers that are closed at the end; then none of their processes may be left."""
    made: list[WorkerEnv] = []

    def make(name: str = "trouble", timeout_s: float = 30, **options) -> WorkerEnv:
        made.append(WorkerEnv(name, options, timeout_s))
        return made[-1]

    yield make
    for env in made:
        env.close()
        env.close()
    assert not children(), "a worker was left behind"


def children() -> list[int]:
    found = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "miniact.envs.workers"],
        capture_output=True,
        text=True,
    )
    return [pid for pid in map(int, found.stdout.split()) if running(pid)]


def running(pid: int) -> bool:
    """A process that has ended but was not waited for counts as ended."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip()[:1] not in ("", "Z")


def ended(pid: int, within: float = 10) -> bool:
    deadline = time.monotonic() + within
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not running(pid)


def who(env: WorkerEnv) -> tuple[int, int, str, Path]:
    """Process, session, threads and folder of a worker in whose episode a step is left."""
    pid, session, threads, folder = env.step("who").observation.split()
    return int(pid), int(session), threads, Path(folder)


# ---- the same environment ----


def registered_envs():
    extras = {"scienceworld": "scienceworld", "alfworld": "alfworld", "webshop": "bm25s"}
    for name in ("household", *extras):
        module = miniact.envs._REGISTRY[name].partition(":")[0]
        missing = [
            *(m for m in (module, extras.get(name, "json")) if not importlib.util.find_spec(m)),
            *(["java"] if name == "scienceworld" and not shutil.which("java") else []),
        ]
        skip = pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")
        slow = pytest.mark.slow if name in ("scienceworld", "alfworld") else ()
        yield pytest.param(name, id=name, marks=[skip, slow] if slow else [skip])


@pytest.mark.parametrize("name", registered_envs())
def test_a_worker_shows_what_the_environment_shows(worker, name):
    def play(env, task_id: str) -> list:
        rng = random.Random(task_id)
        seen: list = [env.reset(task_id), env.expert_action(), env.admissible()]
        for i in range(8):
            listed = env.admissible() if i != 3 else None
            actions = [env.expert_action(), rng.choice(listed or ["look"]), "no such thing ☃"]
            seen += [listed, actions, env.step(next(filter(None, rng.sample(actions, 3))))]
        return seen

    here, there = make_env(name), worker(name, timeout_s=300)
    try:
        assert there.splits == here.splits
        for split in here.splits[:2]:
            ids = here.tasks(split, 3, 5)
            assert there.tasks(split, 3, 5) == ids
            for task_id in ids[:2]:
                assert play(there, task_id) == play(here, task_id)
    finally:
        here.close()


def test_any_text_survives_the_pipe(worker):
    env = worker()
    for text in ["", "\n", "\x00\u2028\r", '"]}', "\ud800 🦙", "x" * 300_000]:
        env.reset("train/ok")
        assert env.step(text) == Turn(text, score=0.5)


def test_what_a_simulator_prints_and_reads_stays_out_of_the_pipes(worker):
    env = worker()
    env.reset("train/noise")
    assert env.step("noise").observation == "''"  # nothing to read
    assert env.admissible() == ("ok", "taken 1")


def test_admissible_actions_are_those_of_now(worker):
    env = worker()
    env.reset("train/ok")
    seen = [env.admissible(), env.admissible()]
    for _ in range(2):
        env.step("ok")
        seen.append(env.admissible())
    assert seen == [("ok", f"taken {n}") for n in (0, 0, 1, 2)]
    env.reset("train/ok")
    assert env.admissible() == ("ok", "taken 0")


# ---- user errors ----


def test_user_errors_cross_the_pipe(worker):
    with pytest.raises(UserError, match="did you mean 'household'"):
        WorkerEnv("houshold", {})
    for name in ("household", "trouble"):
        with pytest.raises(UserError) as here:
            make_env(name, no_such=1)
        bad = worker(name, no_such=1)
        for _ in range(2):
            with pytest.raises(UserError) as there:
                bad.tasks("train", 1, 0)
            assert str(there.value) == str(here.value)
    env = worker()
    with pytest.raises(UserError, match="no split 'nowhere'"):
        env.tasks("nowhere", 1, 0)
    with pytest.raises(UserError, match="refuse: not with me"):
        env.reset("train/refuse")
    env.reset("train/ok")
    before = who(env)
    with pytest.raises(UserError, match="refuse: not with me"):
        env.step("refuse")
    env.reset("train/ok")
    assert who(env) == before


@pytest.mark.parametrize("trouble", ["exit", "raise", "hang"])
def test_a_worker_that_can_never_start_is_a_user_error(worker, trouble):
    env = worker(start=trouble, timeout_s=1.5)
    started = time.monotonic()
    for call in (lambda: env.splits, lambda: env.reset("train/ok")):
        with pytest.raises(UserError, match=r"trouble: two worker .* env.workers=0") as error:
            call()
        assert "\n" not in str(error.value)
    assert time.monotonic() - started < 12


# ---- hung and dead workers ----

REASONS = {
    "hang": "no answer within 1.5 s",
    "hang with a child": "no answer within 1.5 s",
    "killed": "Killed",
    "exit": "exit code 3",
    "sys.exit": "SystemExit: enough",
    "raise": "KeyError: 'val1'",
}


@pytest.mark.parametrize("trouble", REASONS)
def test_a_worker_that_stops_loses_its_episode_and_is_replaced(worker, trouble):
    env = worker(timeout_s=1.5)
    env.reset("train/ok")
    pid, _, _, folder = who(env)
    lost = Turn(f"{STOPPED}: {REASONS[trouble]}.", True, False, 0.5, False, lost=True)
    assert env.step(trouble) == lost
    assert not running(pid) and not folder.exists()
    assert env.step("ok") == lost and env.admissible() is None and env.expert_action() is None

    assert env.reset("train/ok") == ("survive three steps", Turn("ready", score=0.25))
    assert env.admissible() == ("ok", "taken 0")
    assert who(env)[0] != pid


def test_the_children_of_a_hung_worker_die_with_it(worker, monkeypatch):
    env = worker(timeout_s=2)
    env.reset("train/ok")
    folder = who(env)[3]
    turns: list[Turn] = []
    call = threading.Thread(target=lambda: turns.append(env.step("hang with a child")))
    call.start()
    child = int(wait_for(folder / "child"))
    assert running(child)
    call.join()
    assert turns[0].lost and ended(child)


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("scienceworld") or not shutil.which("java"),
    reason="needs scienceworld and Java",
)
@pytest.mark.parametrize("end", ["close", "kill"])
def test_the_jvm_in_a_worker_ends_with_it(worker, end):
    env = worker("scienceworld", timeout_s=120)
    env.reset("boil/train/0")
    (pid,) = children()
    found = subprocess.run(["pgrep", "-P", str(pid), "java"], capture_output=True, text=True)
    jvm = int(found.stdout)
    assert running(jvm)
    if end == "kill":
        os.kill(pid, signal.SIGKILL)
        assert env.step("look around").lost
    else:
        env.close()
    assert ended(jvm)


def wait_for(file: Path, within: float = 10) -> str:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if file.is_file() and (text := file.read_text()):
            return text
        time.sleep(0.01)
    raise AssertionError(f"{file} never came")


def test_looking_at_a_dead_world_is_no_error(worker):
    env = worker()
    env.reset("train/ok")
    os.kill(who(env)[0], signal.SIGKILL)
    assert env.expert_action() is None and env.admissible() is None
    assert env.step("ok").observation == f"{STOPPED}: Killed."


def test_a_reset_is_tried_again_by_a_new_worker(worker, tmp_path):
    env = worker(once=str(tmp_path / "once"))
    assert env.reset("train/killed") == ("survive three steps", Turn("ready", score=0.25))


@pytest.mark.parametrize("trouble", ["killed", "hang"])
def test_a_task_that_stops_every_worker_is_lost_and_the_next_is_not(worker, trouble):
    env = worker(timeout_s=1.5)
    with pytest.raises(UserError, match="two worker processes stopped"):
        env.reset(f"train/{trouble}")  # nothing was ever played: the user should know
    env.reset("train/ok")
    assert env.step("ok").score == 0.5
    task, turn = env.reset(f"train/{trouble}")
    assert (task, turn.done, turn.success, turn.lost) == ("", True, False, True)
    assert (turn.score, turn.observation) == (0, f"{STOPPED}: {REASONS[trouble]}.")
    assert env.reset("train/ok")[1].observation == "ready"


# ---- ends ----


def test_closing_frees_everything_and_the_next_reset_starts_another(worker, tmp_path):
    env = worker(once=str(tmp_path / "once"))
    env.reset("train/ok")
    pid, session, threads, folder = who(env)
    assert folder.is_dir() and pid == session != os.getsid(0) and threads == "1"
    env.close()
    assert not running(pid) and not folder.exists()
    assert (tmp_path / "once.closed").exists(), "the environment's own close was not called"
    env.close()
    assert env.step("ok").lost and env.admissible() is None
    assert env.reset("train/ok")[1].observation == "ready"


def test_a_worker_ends_with_its_object():
    env = WorkerEnv("trouble", {})
    env.reset("train/ok")
    pid = who(env)[0]
    del env
    gc.collect()
    assert not running(pid)


def test_a_worker_does_not_hear_ctrl_c(worker):
    env = worker()
    env.reset("train/ok")
    pid = who(env)[0]
    os.kill(pid, signal.SIGINT)
    assert env.step("ok").applied and running(pid)


PARENT = """
import threading, time, miniact.envs
from miniact.envs.workers import WorkerEnv
miniact.envs._REGISTRY["trouble"] = "trouble:Trouble"
env = WorkerEnv("trouble", {{}})
env.reset("train/ok")
print(env.step("who").observation, flush=True)
threading.Thread(target=env.step, args=({trouble!r},), daemon=True).start()
time.sleep(60)
"""


@pytest.mark.parametrize("trouble", ["ok", "hang", "hang with a child"])
def test_a_worker_ends_with_a_parent_that_is_killed(trouble):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(trouble=trouble)],
        stdout=subprocess.PIPE,
        env={**os.environ, **IN_WORKERS},
    )
    try:
        pid, *_, folder = parent.stdout.readline().decode().split()
        pids = [int(pid)]
        if "child" in trouble:
            pids.append(int(wait_for(Path(folder, "child"))))
        time.sleep(0.2)
        assert all(map(running, pids))
    finally:
        parent.kill()
        parent.communicate()
    assert all(map(ended, pids))  # a busy one after GRACE_S
    shutil.rmtree(folder, ignore_errors=True)  # what a killed parent leaves behind: an empty folder


def test_a_python_that_forgets_to_close_leaves_nothing(tmp_path):
    code = PARENT.format(trouble="ok").replace("time.sleep(60)", "")
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **IN_WORKERS, "TMPDIR": str(tmp_path)},
        timeout=60,
    )
    assert done.stderr == "" and ended(int(done.stdout.split()[0]), within=0)
    assert not [*tmp_path.iterdir()]


# ---- rollouts ----


def rollout(tokenizer, envs, tasks, script=lambda prompt, i: "ok"):
    prompter = Prompter(tokenizer, PromptConfig(form="plain", max_tokens=5000))
    tally = Tally()
    return play_episodes(
        FakePolicy(tokenizer, script), prompter, envs, tasks, PlayOptions(), tally
    ), tally


def test_episodes_are_those_of_this_process(worker, tokenizer):
    def chance(prompt: str, i: int) -> str:
        return random.Random(prompt).choice(prompt.rpartition("can:")[2].split(", ")).strip()

    tasks = make_env("household").tasks("train", 7, 0)
    here, _ = rollout(tokenizer, [make_env("household") for _ in range(3)], tasks, chance)
    there, _ = rollout(tokenizer, [worker("household") for _ in range(3)], tasks, chance)
    assert there == here and len({len(e.moves) for e in here} | {e.task for e in here}) > 3
    lengths = ["id/2", "id/5", "id/3", "id/4"]
    here, _ = rollout(tokenizer, [Corridor()], lengths, lambda p, i: "east")
    there, _ = rollout(
        tokenizer, [worker("corridor") for _ in range(9)], lengths, lambda p, i: "east"
    )
    assert there == here


def test_lost_episodes_are_counted_as_failed_and_harm_no_other(worker, tokenizer):
    envs = [worker(timeout_s=1.5) for _ in range(2)]
    for env in envs:
        env.reset("train/ok")
    tasks = ["id/ok1", "id/killed", "id/raise", "id/ok2", "id/ok3"]
    told: list[str] = []
    prompter = Prompter(tokenizer, PromptConfig(form="plain", max_tokens=5000))
    steps = iter(range(100))
    policy = FakePolicy(tokenizer, lambda p, i: "hang" if next(steps) == 7 else "ok")
    tally = Tally(lambda episode: told.append(episode.task_id))
    episodes = play_episodes(policy, prompter, envs, tasks, PlayOptions(), tally)
    assert [e.task_id for e in episodes] == tasks and sorted(told) == sorted(tasks)
    stops = [e.stop for e in episodes]
    assert stops[1:3] == ["lost", "lost"] and sorted(stops[3:]) == ["lost", "solved"]
    assert [len(e.moves) for e in episodes[:3]] == [3, 0, 0]
    assert episodes[1].last == f"{STOPPED}: Killed."
    assert episodes[2].last == f"{STOPPED}: KeyError: 'val1'."
    results = evaluate_episodes(episodes)
    assert results["lost"] == 3 and results["success"]["value"] == 2 / 5
    assert (tally.episodes, tally.solved, tally.lost) == (5, 2, 3)
    assert "5 episodes, 3 lost" in str(tally)


def test_slow_environments_are_awaited_all_at_once(worker, tokenizer):
    nap, tasks = 0.05, [f"id/ok{i}" for i in range(16)]
    envs = [worker(nap=nap) for _ in range(8)]
    for env in envs:
        env.reset("train/ok")
    one_by_one = len(tasks) * 3 * nap  # 2.4 s
    episodes, tally = rollout(tokenizer, envs, tasks)
    assert all(e.success for e in episodes)
    speed = one_by_one / tally.seconds["environment"]
    assert speed > 3, f"8 environments are {speed:.1f} times as fast as one"


def test_environments_of_this_process_are_called_in_this_thread(tokenizer):
    seen: set[str] = set()

    class Watched(Trouble):
        def step(self, action: str) -> Turn:
            seen.add(threading.current_thread().name)
            return super().step(action)

    rollout(tokenizer, [Watched(), Watched()], ["id/ok1", "id/ok2"])
    assert seen == {threading.main_thread().name}


def test_a_user_error_in_one_worker_ends_the_rollout_at_once(worker, tokenizer):
    envs = [worker(), worker(nap=30)]
    for env in envs:
        env.reset("train/ok")
    started = time.monotonic()
    with pytest.raises(UserError, match="not with me"):
        rollout(tokenizer, envs, ["id/ok", "id/ok2"], lambda p, i: "refuse")
    for env in envs:
        env.close()
    assert time.monotonic() - started < 20


@pytest.mark.slow
def test_a_run_with_workers_measures_what_a_run_without_measures(tmp_path):
    small = ["household-plain", "recipe=[]", "env.train_tasks=2", "env.heldout_tasks=2"]
    small += ["eval.episodes=4", "eval.pairs=0", "eval.states=0", "--verbose"]
    bytes_of = []
    for where in ("env.parallel=2", "env.workers=2"):
        out = tmp_path / where
        command = [sys.executable, "-m", "miniact.cli", "run", *small, where, "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "eval base: 8 episodes, " in done.stdout and "evaluate/environment" in done.stdout
        stage = out / "stages" / "0-base"
        files = [out / "trajectories.jsonl", stage / "eval.json", stage / "episodes.jsonl"]
        bytes_of.append([file.read_bytes() for file in files])
    assert bytes_of[0] == bytes_of[1]
