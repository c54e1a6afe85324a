"""ALFWorld: games made and read, the stock texts at another speed, the expert, bad input."""

from __future__ import annotations

import collections
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from miniact import UserError
from miniact.envs import make_env
from miniact.envs.alfworld import engine as engine
from miniact.envs.alfworld.engine import NOTHING, Game, read_game
from miniact.envs.alfworld.env import OVER, ALFWorld
from miniact.envs.alfworld.games import SPLITS, TASK_TYPES, TREE, UNSEEN_ROOMS, generate

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("alfworld") is None,
    reason='needs the extra: pip install "miniact[alfworld]"',
)
COUNTS = {"train": 18, "valid_seen": 6, "valid_unseen": 12}
MANY = {"train": 60, "valid_seen": 24, "valid_unseen": 60}  # 24 of each type


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("games")
    assert generate(out, COUNTS, seed=0) == COUNTS
    return out


@pytest.fixture(scope="module")
def env(data):
    env = ALFWorld(data=str(data))
    yield env
    env.close()


@pytest.fixture
def copy(data, tmp_path) -> Path:
    """A tree that a test may spoil: the games of valid_seen."""
    shutil.copytree(data / TREE / "valid_seen", tmp_path / TREE / "valid_seen")
    return tmp_path


def files(root: Path) -> dict[str, str]:
    found = [f for f in sorted(root.rglob("*")) if f.is_file() and f.name != ".lock"]
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in found}


def game_files(root: Path) -> list[Path]:
    return sorted(root.glob(f"{TREE}/*/*/*/game.tw-pddl"))


def python(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=settings, capture_output=True, text=True
    )


# ---- games ----


def test_all_types_and_only_the_held_out_rooms_in_unseen(data):
    rooms = collections.defaultdict(set)
    for split, count in COUNTS.items():
        found = [json.loads(f.read_text()) for f in data.glob(f"{TREE}/{split}/*/*/traj_data.json")]
        assert len(found) == count
        types = collections.Counter(t["task_type"] for t in found)
        assert types == dict.fromkeys(TASK_TYPES, count // 6)
        rooms[split] = {t["scene"]["scene_num"] for t in found}
    assert rooms["valid_unseen"] <= set(UNSEEN_ROOMS)
    assert not (rooms["train"] | rooms["valid_seen"]) & set(UNSEEN_ROOMS)


GENERATE = """
import sys
from pathlib import Path
from miniact.envs.alfworld.games import generate
generate(Path(sys.argv[1]), {"train": 18, "valid_seen": 6, "valid_unseen": 12}, seed=0)
"""


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_same_seed_same_bytes(data, tmp_path, hash_seed):
    python(GENERATE, str(tmp_path), PYTHONHASHSEED=hash_seed)
    assert files(tmp_path) == files(data)


def test_another_seed_makes_other_games(data, tmp_path):
    generate(tmp_path, {"train": 6}, seed=1)
    texts = {json.loads(f.read_text())["pddl_problem"] for f in game_files(data)}
    assert not texts & {json.loads(f.read_text())["pddl_problem"] for f in game_files(tmp_path)}


def test_more_games_leave_the_first_as_they_are(data, tmp_path):
    assert generate(tmp_path, {"train": 6}, seed=0) == {"train": 6}
    first = files(tmp_path)
    assert generate(tmp_path, COUNTS, seed=0) == {**COUNTS, "train": 12}
    assert generate(tmp_path, COUNTS, seed=0) == dict.fromkeys(COUNTS, 0)
    assert files(tmp_path) == files(data)
    first.pop("generated.json")
    assert first.items() <= files(tmp_path).items()


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_generation_goes_on_after_a_kill(data, tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", GENERATE, str(tmp_path)])
    while len(game_files(tmp_path)) < 5:
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    for file in game_files(tmp_path):
        assert {f.name for f in file.parent.iterdir()} == {
            "game.tw-pddl",
            "initial_state.pddl",
            "traj_data.json",
        }
    assert sum(generate(tmp_path, COUNTS, seed=0).values()) > 0
    assert files(tmp_path) == files(data)


def test_folders_of_others_are_left_alone(data, copy, tmp_path_factory):
    with pytest.raises(UserError, match="seed 0, not 1"):
        generate(data, COUNTS, seed=1)
    with pytest.raises(UserError, match="did not make"):
        generate(copy, COUNTS, seed=0)
    with pytest.raises(UserError, match="unknown split 'test'"):
        generate(data, {"test": 1}, seed=0)
    file = tmp_path_factory.mktemp("file") / "taken"
    file.write_text("")
    with pytest.raises(UserError, match="cannot hold ALFWorld games"):
        generate(file, COUNTS, seed=0)


def test_every_game_comes_with_commands_that_solve_it(data):
    game = Game()
    for file in game_files(data)[: COUNTS["train"]]:
        game.load(read_game(file))
        for command in json.loads(file.read_text())["walkthrough"]:
            assert not game.won
            assert game.step(command) != NOTHING, (file, command)
        assert game.won, file
    game.close()


def stock_config(data: Path) -> dict:
    return {
        "env": {
            "goal_desc_human_anns_prob": 0,
            "task_types": [1, 2, 3, 4, 5, 6],
            "domain_randomization": False,
            "expert_type": "handcoded",
        },
        "dataset": {
            "data_path": str(data / TREE / "train"),
            "eval_id_data_path": str(data / TREE / "valid_seen"),
            "eval_ood_data_path": str(data / TREE / "valid_unseen"),
            "num_train_games": -1,
            "num_eval_games": -1,
        },
        "general": {"training_method": "dqn"},
        "rl": {"training": {"max_nb_steps_per_episode": 50}},
    }


@pytest.mark.parametrize(
    ("split", "name"),
    zip(SPLITS, ["train", "eval_in_distribution", "eval_out_of_distribution"]),
)
def test_the_package_itself_loads_and_plays_the_tree(data, env, split, name):
    from alfworld.agents.environment import get_environment

    stock = get_environment("AlfredTWEnv")(stock_config(data), train_eval=name)
    assert stock.num_games == COUNTS[split]
    stock.game_files = sorted(stock.game_files)[:1]
    batch = stock.init_env(batch_size=1)
    (text,), infos = batch.reset()
    file = Path(infos["extra.gamefile"][0])
    task, turn = env.reset("/".join(file.parts[-4:-1]))
    assert text.endswith(f"{turn.observation}\n\nYour task is to: {task}.")
    while not turn.done:
        action = env.expert_action()
        (text,), _, (done,), infos = batch.step([action])
        turn = env.step(action)
        assert (text, done, infos["won"][0]) == (turn.observation, turn.done, turn.success)
    assert turn.success
    batch.close()


# ---- the engine: stock texts, other speed ----


def stock_game():
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.envs import PddlEnv

    return AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)))


def test_the_stock_texts_at_many_times_the_speed(data):
    """Random play, side by side in turns: every text, list and outcome is the same."""
    stock, game = stock_game(), Game()
    ratios = []
    for n, file in enumerate(random.Random(0).sample(game_files(data), 4)):
        rng = random.Random(n)
        stock.load(str(file))
        state = stock.reset()
        assert game.load(read_game(file)) == state.feedback
        for _ in range(12):
            commands = state["admissible_commands"]
            assert sorted(game.commands) == commands
            near = [c for c in commands if not c.startswith("go ")]
            command = rng.choice([rng.choice(near), rng.choice(commands), "take it"])
            start = time.perf_counter()
            state, _, _ = stock.step(command)
            middle = time.perf_counter()
            text, won = game.step(command), game.won
            ratios.append((middle - start) / (time.perf_counter() - middle))
            assert (text, won) == (state.feedback, state["won"]), command
    game.close()
    low, median, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"speed ratio, n={len(ratios)}: median {median:.0f}, min {low:.1f}, max {high:.0f}")
    assert median >= 5


def test_the_package_and_the_process_are_left_as_they_were(data, tmp_path, monkeypatch):
    import fast_downward

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["mine", "own"])
    engine.read_game.cache_clear()
    stock, before = fast_downward.pddl2sas, random.getstate()
    env = ALFWorld(data=str(data))
    env.reset(env.tasks("train", 1, seed=0)[0])
    while not env.step(env.expert_action()).done:
        pass
    assert fast_downward.pddl2sas is stock
    assert random.getstate() == before
    assert sys.argv == ["mine", "own"]
    assert not list(tmp_path.iterdir())
    env.close()


def trace(env: ALFWorld, task_id: str, seed: int) -> list:
    """A generator's worth of an episode: one event for each time that it is asked."""
    rng = random.Random(seed)
    yield env.reset(task_id)
    for _ in range(12):
        action = rng.choice([*env.admissible(), *[env.expert_action()] * 9])
        yield action, (turn := env.step(action)), env.admissible()
        if turn.done:
            return


def test_environments_do_not_disturb_each_other(data, env):
    ids = env.tasks("train", 5, seed=3)
    alone = [list(trace(env, task_id, i)) for i, task_id in enumerate(ids)]
    envs = [ALFWorld(data=str(data)) for _ in ids]
    playing = {i: (trace(envs[i], task_id, i), []) for i, task_id in enumerate(ids)}
    rng, left = random.Random(0), list(playing)
    while left:
        i = rng.choice(left)
        events, seen = playing[i]
        event = next(events, None)
        left.remove(i) if event is None else seen.append(event)
    for one in envs:
        one.close()
    assert [playing[i][1] for i in range(len(ids))] == alone


def test_closing_gives_the_library_back(data):
    envs = [ALFWorld(data=str(data)) for _ in range(3)]
    for one in envs:
        one.reset(one.tasks("train", 1, seed=0)[0])
        one.close()
        one.close()
        assert one.step("look").observation == OVER and one.admissible() == ()
    idle = len(engine._IDLE)
    env = ALFWorld(data=str(data))
    env.reset(env.tasks("train", 1, seed=0)[0])
    assert len(engine._IDLE) == idle - 1
    del env  # as good as closed
    assert len(engine._IDLE) == idle


PLAY = """
import hashlib, random, sys
from miniact.envs import make_env
envs, digest = [make_env("alfworld", data=sys.argv[1]) for _ in range(2)], hashlib.sha256()
for i, task in enumerate(envs[0].tasks("train", 4, seed=1)):
    env, rng = envs[i % 2], random.Random(task)
    seen = env.reset(task)
    for _ in range(8):
        digest.update(repr((seen, env.admissible(), env.expert_action())).encode())
        if not env.admissible():
            break
        seen = env.step(rng.choice([*env.admissible(), env.expert_action()]))
envs[0].close()
print(digest.hexdigest())
"""


def test_play_does_not_depend_on_the_hash_seed_and_the_process_ends_well(data):
    done = [python(PLAY, str(data), PYTHONHASHSEED=seed) for seed in ("1", "2")]
    assert [d.returncode for d in done] == [0, 0], done[0].stderr
    assert done[0].stdout == done[1].stdout != ""


def test_expressions_of_a_grammar_are_not_evaluated(copy, tmp_path):
    file = game_files(copy)[0]
    content = json.loads(file.read_text())
    flag = tmp_path / "flag"
    code = f"{{open('{flag}', 'w')}}"
    content["grammar"] = content["grammar"].replace("-= Welcome", code + "-= Welcome")
    file.write_text(json.dumps(content))
    env = ALFWorld(data=str(copy))
    with pytest.raises(UserError, match="not an expression"):
        env.reset("/".join(file.parts[-4:-1]))
    assert not flag.exists()
    env.close()


# ---- the expert ----


def results(env: ALFWorld, splits: tuple[str, ...]) -> dict[str, list[int]]:
    """Type → the lengths of episodes that the expert played; 0 for those that it did not solve."""
    lengths: dict[str, list[int]] = collections.defaultdict(list)
    for task_id in [t for split in splits for t in env.tasks(split, 999, seed=0)]:
        _, turn = env.reset(task_id)
        n = 0
        while not turn.done and (action := env.expert_action()) is not None:
            assert action in env.admissible()
            turn, n = env.step(action), n + 1
            assert turn.applied
        lengths[task_id.split("/")[1].partition("-")[0]].append(n if turn.success else 0)
    return lengths


@pytest.mark.slow
@pytest.mark.parametrize("expert", ["explorer", "oracle"])
def test_the_expert_solves_games_within_50_steps(tmp_path, expert):
    generate(tmp_path, MANY, seed=1)
    env = ALFWorld(data=str(tmp_path), expert=expert)
    lengths = results(env, SPLITS)
    env.close()
    assert set(lengths) == set(TASK_TYPES)
    for name, found in lengths.items():
        found.sort()
        print(name, f"{sum(n > 0 for n in found)}/{len(found)}, median {found[len(found) // 2]}")
        assert len(found) == 24
        wanted = 0.9 if name == "pick_two_obj_and_place" else 0.95
        assert sum(n > 0 for n in found) >= wanted * len(found)


def test_the_explorer_looks_before_it_takes_and_the_oracle_does_not(data, env):
    oracle = ALFWorld(data=str(data), expert="oracle")
    short, long = (sum(sum(n) for n in results(e, ("train",)).values()) for e in (oracle, env))
    oracle.close()
    assert short < long
    for task_id in env.tasks("train", 18, seed=0):
        seen, turn = "", env.reset(task_id)[1]
        while not turn.done:
            action = env.expert_action()
            if action.startswith("take "):
                assert action.removeprefix("take ").partition(" from ")[0] in seen
            turn = env.step(action)
            seen += turn.observation


def test_the_expert_goes_on_after_actions_that_were_not_its_own(env):
    for i, task_id in enumerate(env.tasks("train", 6, seed=1)):
        rng = random.Random(i)
        _, turn = env.reset(task_id)
        for _ in range(10):
            if not turn.done:
                turn = env.step(rng.choice(env.admissible()))
        while not turn.done and (action := env.expert_action()):
            turn = env.step(action)
        assert turn.success, task_id


def test_the_expert_copes_with_two_receptacles_in_one_place(copy):
    """Official games have them: one cannot go to the second, only open or examine it."""
    for file in game_files(copy):
        content = json.loads(file.read_text())
        problem = content["pddl_problem"]
        for i in range(2, 90, 2):  # each second location falls together with the one before
            problem = problem.replace(f"loc_bar_{i})", f"loc_bar_{i - 1})")
        content["pddl_problem"] = problem
        file.write_text(json.dumps(content))
    env = ALFWorld(data=str(copy), types=[t for t in TASK_TYPES if "light" not in t])
    lengths = results(env, ("valid_seen",))
    env.close()
    assert all(n > 0 for found in lengths.values() for n in found), lengths


# ---- Env ----


def test_the_first_texts(env):
    task, turn = env.reset(env.tasks("train", 1, seed=0)[0])
    assert turn.observation.startswith("You are in the middle of a room. Looking quickly around")
    assert "task" not in turn.observation and "Welcome" not in turn.observation
    assert task == task.strip().rstrip(".") and task.split()[0] in (
        *("put", "clean", "heat", "cool", "find", "look", "examine"),
    )


def test_help_is_no_action_and_looking_is(env):
    env.reset(env.tasks("train", 1, seed=0)[0])
    assert {"look", "inventory"} <= set(env.admissible()) and "help" not in env.admissible()
    turn = env.step("help")
    assert not turn.applied and "Available commands" in turn.observation
    assert env.step("look").applied and env.step(" inventory\n").applied
    turn = env.step("Look around!")
    assert (turn.observation, turn.applied, turn.done) == (NOTHING, False, False)


def test_the_end(data):
    env = ALFWorld(data=str(data), max_steps=2)
    assert env.step("look").observation == OVER
    env.reset(env.tasks("train", 1, seed=0)[0])
    assert not env.step("look").done
    last = env.step("look")
    assert last.done and not last.success and last.score == 0
    over = env.step("look")
    assert over.observation == OVER and over.done and not over.applied
    assert env.admissible() == () and env.expert_action() is None
    env.close()


def test_tasks(env, data):
    everything = env.tasks("train", 999, seed=0)
    assert len(everything) == len(set(everything)) == COUNTS["train"]
    assert env.tasks("train", 5, seed=0) == everything[:5]
    assert env.tasks("train", 999, seed=1) != everything
    only = ALFWorld(data=str(data), types=["look_at_obj_in_light"])
    assert len(found := only.tasks("train", 999, seed=0)) == 3
    assert all(task_id.startswith("train/look_at_obj_in_light-") for task_id in found)


def test_the_games_of_the_cache_are_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIACT_CACHE", str(tmp_path))
    monkeypatch.setattr("miniact.envs.alfworld.env._GENERATED", {"train": 6, "valid_seen": 6})
    first = ALFWorld().tasks("train", 9, seed=0)
    before = files(tmp_path)
    assert ALFWorld().tasks("train", 9, seed=0) == first and len(first) == 6
    assert files(tmp_path) == before != {}


# ---- bad input ----


def one_line(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "alfworld", None)
    assert 'pip install "miniact[alfworld]"' in one_line(make_env, "alfworld")


def test_unknown_names(env, data):
    assert "one of train, valid_seen, valid_unseen" in one_line(env.tasks, "test", 1, seed=0)
    text = one_line(ALFWorld, data=str(data), types=["heat"])
    assert "env.options.types: unknown name 'heat', one of pick_and_place_simple" in text
    assert "env.options.expert" in one_line(ALFWorld, data=str(data), expert="human")
    for task_id in ("train", "train/x/y", "train/../..", "valid_seen/" + "x" * 999):
        assert "is no ALFWorld task" in one_line(env.reset, task_id)


def test_folders_without_games(copy, tmp_path):
    assert "holds no folder json_2.1.1" in one_line(ALFWorld, data=str(tmp_path / "nowhere"))
    env = ALFWorld(data=str(copy))
    assert "holds no games" in one_line(env.tasks, "train", 1, seed=0)
    assert len(env.tasks("valid_seen", 99, seed=0)) == 6
    assert "of these types" in one_line(
        ALFWorld(data=str(copy), types=[]).tasks, "valid_seen", 1, 0
    )
    for file in game_files(copy):
        file.unlink()
    assert "without game.tw-pddl" in one_line(ALFWorld(data=str(copy)).tasks, "valid_seen", 1, 0)


def spoil(file: Path, **changes) -> str:
    """Change a game and return its task id."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return "/".join(file.parts[-4:-1])


def test_damaged_games(copy):
    env = ALFWorld(data=str(copy))
    first, second, third, fourth, fifth, sixth = game_files(copy)
    problem = json.loads(first.read_text())["pddl_problem"]
    goal = problem[problem.index("(:goal") :]
    kind = json.loads((first.parent / "traj_data.json").read_text())["pddl_params"]["object_target"]
    unsolvable = problem.replace(goal, goal.replace(f"{kind}Type", "NothingType"))
    unsolvable = unsolvable.replace("(:objects", "(:objects\n        NothingType - otype")
    assert "cannot be solved" in one_line(env.reset, spoil(first, pddl_problem=unsolvable))
    assert "damaged" in one_line(env.reset, spoil(second, pddl_problem="(define (problem"))
    assert "damaged" in one_line(env.reset, spoil(third, grammar="grammar :: ;"))
    (fourth.parent / "traj_data.json").write_text("{}")
    assert "traj_data.json" in one_line(env.reset, "/".join(fourth.parts[-4:-1]))
    marked = spoil(fifth, solvable=False)
    assert len(found := env.tasks("valid_seen", 99, seed=0)) == 5 and marked not in found
    sixth.write_text(sixth.read_text()[:-2000])
    assert "incomplete" in one_line(env.tasks, "valid_seen", 99, seed=0)
    assert "not a readable" in one_line(env.reset, "/".join(sixth.parts[-4:-1]))
    env.close()
