"""Code of the user's own, named in a config: it runs, and what keeps it from that is one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from miniact import UserError
from miniact.cli.main import main
from miniact.config import load_config
from miniact.config.plugins import resolve, short
from miniact.envs import make_env
from miniact.envs.workers import WorkerEnv
from miniact.experiments.recipes import parse_recipe
from miniact.experiments.start import check_code
from miniact.method.rewards import judged
from miniact.types import Reply, State

ROOT = Path(__file__).parents[2]
CODE = '''
from pathlib import Path

from miniact.envs.household import Household
from miniact.method.stage import imitate, needs

(Path(__file__).parent / "imported").touch()


class House(Household):
    """The shipped world, but everything is said twice as politely."""

    def reset(self, task_id):
        task, turn = super().reset(task_id)
        return task + " please", turn


def short_replies(reply):
    assert reply.state.task.endswith("please") and reply.expert and len(reply.candidates) in (0, 2)
    assert reply.correct == (reply.action == reply.expert)
    return reply.reward - 0.001 * len(reply.text)


@needs("pairs")
def echo(stage):
    assert stage.pairs and stage.config.options == {"times": 2}
    prompter = stage.prompter
    for step in stage.steps():
        batch = stage.states.batch(step, stage.config.batch, stage.seed)
        examples = [(prompter.action(s), prompter.reply_tokens(a)) for s, a in batch]
        imitate(stage, step, examples * stage.config.options["times"])


thing = 7
class Half:
    def tasks(self): ...
    def close(self): ...
def half(**options): return Half()
def nan(reply): return float("nan")
def word(reply): return "1"
def nothing(reply): return None
'''
SMALL = [
    *("household-plain", "env.name=my_code:House", "env.train_tasks=4", "env.heldout_tasks=2"),
    *("eval.episodes=1", "eval.splits=id", "eval.states=1", "eval.pairs=1"),
    *(f"stage.{s}.{key}" for s in ("il", "act", "rl", "plugin") for key in ("steps=1", "batch=2")),
    *("stage.act.group_size=2", "stage.rl.group_size=2", "stage.plugin.options={times: 2}"),
]
OWN = ["recipe=il,my_code:echo,act,rl"]
OWN += ["stage.rl.reward=my_code:short_replies", "stage.act.reward=my_code:short_replies"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with a user's module in it, as the current one."""
    (tmp_path / "my_code.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    resolve.cache_clear()
    yield tmp_path
    resolve.cache_clear()
    for name in ("my_code", "broken"):
        sys.modules.pop(name, None)


def miniact(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == 0, result.output[-3000:]
    return " ".join(result.output.split())


def test_one_of_each_kind_runs_and_only_running_imports_it(here):
    printed = miniact("run", *SMALL, *OWN, "--out", "run")
    for name in ("my_code:House", "my_code:echo", "my_code:short_replies"):
        assert f"{name} is imported" in printed
    results = json.loads(Path("run/results.json").read_text())["results"]
    assert list(results) == ["base", "1-il", "2-echo", "3-act", "4-rl"]
    assert "please" in Path("run/trajectories.jsonl").read_text()
    for stage in ("3-act", "4-rl"):
        for line in Path(f"run/samples/{stage}.jsonl").read_text().splitlines():
            for answer in json.loads(line)["answers"]:
                assert 0 <= 0.001 * len(answer["reply"]) + answer["reward"] <= 1 + 1e-9
                assert answer["reward"] not in (0.0, 1.0)
    for path in Path("run").rglob("*"):
        assert ":" not in path.name

    sys.modules.pop("my_code")
    Path("imported").unlink()
    miniact("report", "run")
    for what in ("pair", "group", "episode", "results"):
        miniact("show", "run", what)
    miniact("config", *SMALL, *OWN)
    assert "2-echo" in Path("run/report.html").read_text()
    assert not Path("imported").exists()

    shutil.rmtree("run/stages/4-rl")
    before = Path("run/stages/3-act/adapter/adapter_model.safetensors").read_bytes()
    printed = miniact("run", "--resume", "run")
    assert printed.index("run imports my_code:House (env.name)") < printed.index("4-rl")
    assert "run imports my_code:short_replies (stage.rl.reward)" in printed
    assert json.loads(Path("run/results.json").read_text())["results"].keys() == results.keys()
    assert Path("run/stages/3-act/adapter/adapter_model.safetensors").read_bytes() == before


def test_the_rows_of_a_comparison_may_be_ones_own(here):
    rows = "il; il,my_code:echo"
    command = ["compare", *SMALL, "--recipes", rows, "--seeds", "0", "--out", "rows"]
    miniact(*command)
    assert {p.name for p in Path("rows/runs").iterdir()} == {"il", "il-echo"}
    taken = json.loads(Path("rows/runs/il-echo/seed0/shared.json").read_text())
    assert taken["stages"] == ["1-il"]
    sys.modules.pop("my_code")
    resolve.cache_clear()
    Path("imported").unlink()
    assert "il → echo" in miniact(*command)  # the table again
    miniact("report", "rows")
    assert not Path("imported").exists()


def test_the_command_finds_the_module_in_the_current_folder(here):
    """Not `python -m`, which puts the folder on the path by itself: worker processes get it too."""
    code = "from miniact.cli.main import main; main()"
    arguments = ["collect", *SMALL, "env.workers=1", "--out", "played.jsonl"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments]
        if sys.version_info >= (3, 11)
        else [sys.executable, "-c", f"import sys; sys.path.remove(''); {code}", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "please" in Path("played.jsonl").read_text()


def test_an_environment_of_ones_own_in_a_process_of_its_own(here):
    env = WorkerEnv("my_code:House", {"max_steps": 5})
    try:
        task, turn = env.reset(env.tasks("train", 1, 0)[0])
        assert task.endswith("please") and not turn.done
    finally:
        env.close()


WRONG = {
    "recipe=il,my-code:echo": r"recipe\[1\]: 'my-code:echo'; expected module:name",
    "recipe=../my_code:echo": r"recipe\[0\]: '\.\./my_code:echo'; expected module:name",
    "recipe=my_code:act": r"recipe\[0\]: my_code:act: act is taken",
    "env.name=my_code:1": r"env\.name: 'my_code:1'; expected module:name",
    "stage.rl.reward=f": r"stage\.rl\.reward: 'f'; expected module:name",
}


@pytest.mark.parametrize(("override", "message"), WRONG.items(), ids=list(WRONG))
def test_what_is_no_name(override, message):
    with pytest.raises(UserError, match=message):
        load_config(None, [override])


UNUSABLE = {
    "recipe=missing:echo": r"recipe\[0\]: missing cannot be imported: No module named 'missing'; "
    "run miniact in the folder that holds it, or put that on PYTHONPATH",
    "recipe=my_code.sub:echo": r"recipe\[0\]: my_code\.sub cannot be imported: No module named",
    "recipe=broken:echo": r"recipe\[0\]: broken cannot be imported: ZeroDivisionError: .* "
    r"\(\S+broken\.py:2\)",
    "recipe=my_code:ecko": r"recipe\[0\]: \S+my_code\.py has no 'ecko'; expected what my_code:ecko",
    "recipe=my_code:thing": r"recipe\[0\]: my_code:thing is 7; expected a class or a function",
    "stage.rl.reward=my_code:thing": r"stage\.rl\.reward: my_code:thing is 7",
    "env.name=my_code:thing": r"env\.name: my_code:thing is 7",
    "env.name=my_code:Half": r"env\.name: my_code:Half lacks reset, step, admissible, expert_ac",
    "env.name=houshold": r"env\.name: unknown environment 'houshold'; did you mean 'household'\?",
}


@pytest.mark.parametrize(("override", "message"), UNUSABLE.items(), ids=list(UNUSABLE))
def test_what_can_not_be_used_is_named(here, override, message):
    Path("broken.py").write_text("\n1 / 0\n")
    with pytest.raises(UserError, match=message) as raised:
        check_code(load_config(None, [override]))
    assert "\n" not in str(raised.value)


def test_it_is_named_before_anything_is_made(here):
    result = CliRunner().invoke(main, ["il", *SMALL, "env.name=my_code:Half", "--out", "run"])
    assert result.exit_code == 2 and result.output.startswith("miniact: env.name: my_code:Half")
    assert not Path("run").exists()


def test_what_a_factory_builds_must_keep_the_protocol_too(here):
    with pytest.raises(UserError, match="my_code:half lacks splits, reset, step"):
        make_env("my_code:half")
    with pytest.raises(UserError, match=r"env\.options: my_code:House does not take"):
        make_env("my_code:House", nonsense=1)


@pytest.mark.parametrize(("name", "value"), [("nan", "nan"), ("word", "'1'"), ("nothing", "None")])
def test_a_reward_that_is_no_number_is_named(here, name, value):
    reply = Reply(State("s", "t", (), "o"), "look", None, "hm", correct=False, reward=0.0)
    with pytest.raises(UserError) as raised:
        judged(f"my_code:{name}", reply)
    assert str(raised.value) == (
        f"reward: my_code:{name} returned {value} for the reply 'hm'; expected a finite number"
    )


def test_a_config_that_is_only_read_imports_nothing(here):
    Path("c.yaml").write_text(yaml.safe_dump({"recipe": ["my_code:echo"]}))
    assert load_config("c.yaml").recipe == ["my_code:echo"]
    assert not Path("imported").exists()


def test_recipes_of_ones_own_have_safe_names():
    recipe = parse_recipe("il, my_code:echo".replace(" ", ""))
    assert (recipe.name, recipe.stages) == ("il-echo", ("il", "my_code:echo"))
    assert parse_recipe("long:il,rl").name == parse_recipe("long:a:b").name == "long"
    assert parse_recipe("a:b").stages == ("a:b",) and short("a.c:b") == "b"
