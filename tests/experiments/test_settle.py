"""Data against config, before anything is made: limits, over-long states, what cannot work."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tiny_models import write_model

from miniact import UserError
from miniact.config import Config, load_config
from miniact.config.load import with_limits_of
from miniact.data.trajectories import TrajectoryFile
from miniact.experiments.lengths import leave_out_too_long, too_long
from miniact.experiments.pipeline import start_run
from miniact.experiments.settle import open_prompter, settled
from miniact.method.prompts import Prompter
from miniact.types import State


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer) -> str:
    """One byte, one token: lengths can be counted by hand."""
    folder = tmp_path_factory.mktemp("model")
    return str(write_model(folder, "llama-tied", tokenizer, max_position_embeddings=4096))


def rows(n: int = 12, **more: object) -> list[dict]:
    """Each with a task of its own, two states, actions of 6 and 12 bytes."""
    return [
        {
            "task": f"task {k}",
            "observations": [f"you see {k}", "done so far"],
            "actions": ["open 1", "look around."],
            **more,
        }
        for k in range(n)
    ]


def write(folder: Path, listed: list[dict]) -> str:
    file = folder / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in listed))
    return str(file)


def config_of(model: str, file: str, *more: str) -> Config:
    asked = [f"model.path={model}", f"env.trajectories={file}", "prompt.form=tags"]
    return load_config("own-logs", [*asked, "stage.act.thinking=false", *more])


def told(config: Config) -> tuple[Config, str]:
    out = StringIO()
    return settled(config, Console(file=out, width=300)), out.getvalue()


def test_limits_follow_from_the_data_unless_they_are_set(tmp_path, model):
    config = settled(config_of(model, write(tmp_path, rows()), "eval.max_tokens=50"))
    longest = len("<action>look around.</action>") + 1  # and its end token
    assert longest < config.stage.rl.max_tokens == config.pairs.max_tokens <= longest + 8
    assert config.eval.max_tokens == 50
    assert len("<choice>1</choice>") < config.stage.act.max_tokens <= 32
    prompter, _ = open_prompter(config)
    file = TrajectoryFile(Path(config.env.trajectories)).states("train")
    for state, _ in (file[i] for i in range(len(file))):
        for prompt in (prompter.action(state), prompter.critic(state, ["open 1", "look around."])):
            assert prompt.dropped == 0 and len(prompt.tokens) <= config.prompt.max_tokens
    assert config.prompt.max_tokens < 2048


def test_reasoning_gets_room(tmp_path, model):
    file = write(tmp_path, rows())
    plain = settled(config_of(model, file))
    thinks = settled(config_of(model, file, "stage.act.thinking=true"))
    assert thinks.stage.act.max_tokens == plain.stage.act.max_tokens + 256
    assert thinks.stage.rl.max_tokens == plain.stage.rl.max_tokens


def test_the_form_follows_from_the_model_and_the_data(tmp_path, model):
    """Tools: chat. A chat template: tags, and the critic thinks. Neither: plain, and none does."""
    calls = [row | {"actions": ['{"name": "f", "arguments": {}}'] * 2} for row in rows()]
    asked = {"chat": (model, calls), "tags": (model, rows())}
    for form, (path, listed) in asked.items():
        open_config = config_of(path, write(tmp_path, listed), "prompt.form=auto",
                                "stage.act.thinking=true")  # fmt: skip
        config = settled(open_config)
        assert config.prompt.form == form and config.stage.act.thinking
        assert with_limits_of(config, open_config) == config
    tiny = settled(load_config("own-logs", []))
    assert tiny.prompt.form == "plain" and not tiny.stage.act.thinking
    assert settled(load_config(None, ["prompt.form=auto"])).prompt.form == "plain"


def test_a_prompt_leaves_room_for_its_answer(tmp_path, model):
    """Neither the model's positions nor one pass of it are exceeded."""
    listed = rows()
    listed[0]["observations"] = ["x" * 2000, "y" * 2000]
    listed[1]["observations"] = ["x" * 2000, "y" * 2000]
    file = write(tmp_path, listed)
    for setting, most in (("model.max_tokens_per_batch=3000", 3000), ("seed=0", 4096)):
        config = settled(config_of(model, file, setting))
        assert config.prompt.max_tokens + config.stage.rl.max_tokens <= most


def test_limits_are_open_only_beside_a_file():
    config = load_config(None, ["eval.max_tokens=0"])
    assert config == load_config(None, []) == settled(config)
    assert (config.prompt.max_tokens, config.stage.rl.max_tokens) == (2048, 24)
    config = load_config(None, ["env.trajectories=mine.jsonl", "eval.max_tokens=9"])
    assert (config.prompt.max_tokens, config.stage.rl.max_tokens) == (0, 0)
    assert config.eval.max_tokens == 9


def test_a_prompt_beyond_the_models_positions_is_named(tmp_path, model):
    file = write(tmp_path, rows())
    _, notes = told(config_of(model, file, "prompt.max_tokens=4090"))
    assert "4096 positions" in notes


def test_settled_limits_stay_settled(tmp_path, model):
    asked = config_of(model, write(tmp_path, rows()))
    known = settled(asked)
    assert settled(known) == known == with_limits_of(known, asked)


@pytest.mark.parametrize(
    ("listed", "more", "expected"),
    [
        (rows(env=1), ["stage.rl.max_tokens=10"], "stage.rl.max_tokens: 10, and 100% of the"),
        (rows(), ["pairs.max_tokens=10"], "pairs.max_tokens: 10"),
        (rows(), ["eval.max_tokens=10"], "eval.max_tokens: 10"),
        (rows(1) * 5, [], "none of 5 rows is held out, so nothing can be measured (all have the"),
        (rows(), ["env.heldout_share=0"], "none of 12 rows is held out"),
        (rows(split="test"), [], "none of 12 rows is left to train on"),
        (rows(), ["pairs.source=admissible"], "lists no actions; use policy"),
        (rows(), ["prompt.max_tokens=200"], "24 of 24 states are too long"),
    ],
)
def test_what_cannot_work_stops_before_anything_is_made(tmp_path, model, listed, more, expected):
    config = config_of(model, write(tmp_path, listed), *more)
    with pytest.raises(UserError) as refused:
        start_run(config, tmp_path / "run", Console(file=StringIO()))
    assert expected in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_words_that_the_model_does_not_know_stop(tmp_path):
    listed = rows()
    for number, row in enumerate(listed):
        row["task"] = f"refund invoice {number} of customer Smith immediately please"
    file = write(tmp_path, listed)
    with pytest.raises(UserError, match=r"does not know .*% of the words .*'refund', 'invoice'"):
        settled(load_config("own-logs", [f"env.trajectories={file}"]))


def test_the_sample_log_is_known_to_the_tiny_model():
    config, notes = told(load_config("own-logs", []))
    assert notes == "" and config.stage.rl.max_tokens <= 16


def long_rows() -> list[dict]:
    """Row 3 sees 900 bytes in its second state."""
    listed = rows()
    listed[3]["observations"] = ["you see 3", "head " + "x" * 900 + " tail"]
    return listed


def test_over_long_states_stop_with_their_number_and_the_way_on(tmp_path, model):
    file = write(tmp_path, long_rows())
    with pytest.raises(
        UserError, match=r"1 of 24 states .* \(line-4#1\); raise these, or set prompt.too_long: sho"
    ):
        settled(config_of(model, file, "prompt.max_tokens=800"))


def test_over_long_states_are_left_out_on_request(tmp_path, model):
    path = write(tmp_path, long_rows())
    asked = config_of(model, path, "prompt.max_tokens=800", "prompt.too_long=leave_out")
    config, notes = told(asked)
    assert "1 of 24 states are too long" in notes and notes.rstrip().endswith("left out")
    prompter, _ = open_prompter(config)
    file = TrajectoryFile(Path(path))
    leave_out_too_long(prompter, config, file)
    states = file.states("train")
    ids = [states[i][0].id for i in range(len(states))]
    assert len(ids) == 23 and "line-4#1" not in ids and "line-4#0" in ids and "line-5#1" in ids
    for i in range(len(states)):
        prompter.critic(states[i][0], ["open 1", "x" * config.pairs.max_tokens])  # it fits


def test_definitions_of_tools_count(tmp_path, model):
    tool = {"type": "function", "function": {"name": "f", "description": "x" * 900}}
    action = '{"name": "f", "arguments": {}}'
    listed = [row | {"actions": [action] * 2, "tools": [tool]} for row in rows()]
    asked = config_of(model, write(tmp_path, listed), "prompt.form=chat", "prompt.max_tokens=1000")
    with pytest.raises(UserError, match="24 of 24 states are too long"):
        settled(asked)
    assert settled(config_of(model, write(tmp_path, listed), "prompt.form=chat"))


def test_long_texts_are_shortened_in_sight_on_request(tmp_path, model):
    path = write(tmp_path, long_rows())
    asked = config_of(model, path, "prompt.max_tokens=800", "prompt.too_long=shorten")
    config = settled(asked)
    prompter, _ = open_prompter(config)
    trajectory = TrajectoryFile(Path(path)).read(3)
    text = prompter.tokenizer.decode(prompter.action(trajectory.state(1)).tokens)
    assert "head xxx" in text and "xxx tail" in text and "characters are left out here" in text
    assert len(text) <= 800 and "you see 3" in text
    same = prompter.action(TrajectoryFile(Path(path)).read(2).state(1)).tokens
    assert "left out here" not in prompter.tokenizer.decode(same)


def test_a_shortened_text_stays_the_same_in_later_prompts(model):
    config = config_of(model, "x", "prompt.max_tokens=900", "prompt.too_long=shorten")
    prompter, _ = open_prompter(config)
    long = "first " + "é" * 700 + " last"
    now = prompter.tokenizer.decode(prompter.action(State("a#0", "t", (), long)).tokens)
    later = State("a#1", "t", ((long, "look"),), "here")
    shown = now.partition("What is the best")[0].strip()
    assert prompter.tokenizer.decode(prompter.action(later).tokens).startswith(shown)
    kept = shown.partition("Observation: ")[2]
    assert kept.startswith("first é") and kept.endswith("é last")


def test_actions_are_never_cut(tmp_path, model):
    """Where observations are shortened, an action that fits no pass is left out."""
    listed = rows()
    listed[5]["actions"] = ["open 1", "write " + "z" * 3000]
    file = write(tmp_path, listed)
    more = ["prompt.max_tokens=1000", "model.max_tokens_per_batch=2000", "prompt.too_long=shorten"]
    _, notes = told(config_of(model, file, *more))
    assert "1 of 24 states are too long" in notes and "(line-6#1): left out" in notes


def test_no_state_that_is_too_long_is_overlooked(tmp_path, tokenizer, model):
    """Against the plain way: try every prompt."""
    rng = np.random.default_rng(1)
    listed = rows()
    for row in listed:
        row["observations"] = ["<choice>\nAction: " * int(n) for n in rng.integers(1, 40, 2)]
    path = Path(write(tmp_path, listed))
    for limit in (400, 500, 600, 700):
        config = settled(config_of(model, str(path), f"prompt.max_tokens={limit}",
                                   "prompt.too_long=leave_out", "pairs.max_tokens=60"))  # fmt: skip
        prompter = Prompter(tokenizer, config.prompt)
        file = TrajectoryFile(path)
        found = too_long(prompter, config, file)
        for index in range(len(file)):
            for i in range(2):
                state, expert = file.read(index).state(i), file.read(index).steps[i].action
                own = len(tokenizer(prompter.render_action(expert))["input_ids"]) + 1
                other = expert + "x" * (60 - own)
                try:
                    prompter.action(state)
                    prompter.critic(state, [expert, other])
                    fits = True
                except UserError:
                    fits = False
                assert fits == (i not in found.steps.get(index, []))
