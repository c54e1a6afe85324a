"""What `import miniact` offers is loaded when asked for; docs/api.md runs as it stands."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import miniact

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SMALL = [
    *("stage.il.steps=2", "stage.il.batch=4", "stage.act.steps=1", "stage.act.batch=2"),
    *("env.train_tasks=6", "env.heldout_tasks=2", "env.options={max_steps: 10}"),
    *("eval.episodes=1", "eval.states=2", "eval.pairs=2", "eval.splits=id"),
]


def block(word: str) -> str:
    (only,) = (code for code in BLOCKS if f"miniact.{word}(" in code)
    return only


def lines(code: str) -> int:
    return sum(bool(line.strip()) for line in code.splitlines())


def imports(code: str) -> list[str]:
    return re.findall(r"^(?:import|from) .*", code, re.MULTILINE)


def execute(code: str) -> dict:
    names: dict = {}
    exec(compile(code, "docs/api.md", "exec"), names)
    return names


def test_imitation_in_ten_lines():
    code = block("imitate")
    assert lines(code) <= 10 and imports(code) == ["import miniact"]
    losses = execute(code)["losses"]
    assert losses[-1] < losses[0] / 20


def test_reinforcement_in_fifteen_lines():
    code = block("reinforce")
    assert lines(code) <= 15 and imports(code) == ["import miniact"]
    rewards = execute(code)["rewards"]
    assert sum(rewards[-3:]) > 1.2 * sum(rewards[:3])


def test_a_run_and_a_comparison(tmp_path, monkeypatch):
    """As on the page, only smaller."""
    monkeypatch.chdir(tmp_path)
    load = miniact.load_config
    monkeypatch.setattr(miniact, "load_config", lambda path, more: load(path, [*more, *SMALL]))
    names = execute(block("compare"))
    assert list(names["results"]) == ["base", "1-il", "2-act"]
    assert names["table"]["recipes"] == ["il", "il-act"] and names["table"]["seeds"] == [0, 1]
    assert (tmp_path / "runs" / "compared" / "comparison.md").is_file()


def test_a_world():
    assert execute(block("make_env"))["turn"].success


def test_every_name_is_on_the_page():
    table = PAGE[PAGE.index("## Every name") :]
    named = re.findall(r"`(\w+)[(`]", "".join(re.findall(r"^\| (`.*?) \|", table, re.M)))
    assert len(named) == len(set(named))
    assert {*named, "__version__"} == set(miniact.__all__) == set(dir(miniact))
    for name in miniact.__all__:
        assert getattr(miniact, name) is not None


def test_type_checkers_are_told_the_same_names():
    tree = ast.parse(Path(miniact.__file__).read_text(encoding="utf-8"))
    told = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("miniact"):
            told |= {a.asname or a.name: f"{node.module}:{a.name}" for a in node.names}
    assert told == miniact.API


@pytest.mark.parametrize(
    ("used", "absent"),
    [
        ("", "torch numpy transformers yaml rich click"),
        ("load_config", "torch numpy transformers rich"),
        ("State", "torch transformers yaml"),
        (" ".join(miniact.API), "torch transformers peft mlx datasets matplotlib"),
    ],
)
def test_nothing_is_loaded_before_it_is_used(used, absent):
    code = (
        f"import sys, miniact\nfor name in {used.split()}: getattr(miniact, name)\n"
        f"loaded = set({absent.split()}) & set(sys.modules)\nassert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'imitation'"):
        _ = miniact.imitation


@pytest.fixture(scope="module")
def stage() -> miniact.Stage:
    config = miniact.load_config("household-plain")
    policy = miniact.load_policy(config.model)
    return miniact.Stage(policy, miniact.Prompter(policy.tokenizer, config.prompt), config.stage.rl)


@pytest.mark.parametrize(
    ("prompts", "scores", "message"),
    [
        (1, [1.0], "a scorer returned 1.0; expected Scored"),
        (1, [miniact.Scored(float("nan"), True, True)], "a scorer returned Scored.reward=nan"),
        (2, [miniact.Scored(1.0, True, True)], "2 prompts and 1 scorers"),
        (0, [], "0 prompts and 0 scorers"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_teaches_nothing(
    stage, tmp_path, prompts, scores, message
):
    prompt = stage.prompter.action(miniact.State("0", "take the mug", (), "a mug"))
    stage.policy.save_adapter(tmp_path / "before")
    with pytest.raises(miniact.UserError, match=message):
        scorers = [lambda _, score=score: score for score in scores]
        miniact.reinforce(stage, 0, [prompt] * prompts, scorers)
    with pytest.raises(miniact.UserError, match="imitate: no examples"):
        miniact.imitate(stage, 0, [])
    stage.policy.save_adapter(tmp_path / "after")
    name = "adapter_model.safetensors"
    assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()
