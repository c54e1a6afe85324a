"""A trained model put to use: ask, judge, and behind an OpenAI-compatible server."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
from tiny_models import write_model

import miniact
from miniact import UserError
from miniact.cli.main import main
from miniact.config import load_config
from miniact.experiments.pipeline import run_recipe
from miniact.tools.agent import load_agent, prompt_of, state_of
from miniact.tools.export import export

CALL = {"name": "open_door", "arguments": {"number": 7}}
TOOL = {
    "type": "function",
    "function": {
        "name": "open_door",
        "description": "Opens a door.",
        "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}},
    },
}
# As Qwen3 writes calls: mlx-lm finds the parser of a model's calls by the words of its template.
TEMPLATE = """\
{%- if tools -%}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif -%}
{%- for m in messages -%}<|im_start|>{{ "user" if m.role == "tool" else m.role }}
{{ m.content }}{% for tool_call in m.tool_calls or [] -%}
{%- set tool_call = tool_call.function -%}<tool_call>
{"name": "{{ tool_call.name }}", "arguments": {{ tool_call.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_tokenizer) -> Path:
    """A run in the form `chat`: imitation of one log, until its call is known by heart."""
    folder = tmp_path_factory.mktemp("agent")
    control = ("<tool_call>", "</tool_call>")
    model = write_model(folder / "model", "qwen3-tied", make_tokenizer(TEMPLATE, control),
                        max_position_embeddings=1024, initializer_range=0.05)  # fmt: skip
    rows = [
        {
            "task": f"Open door 7, please ({k}).",
            "observations": [""],
            "actions": [json.dumps(CALL)],
            "compare": "json",
            "marked": True,
            "tools": [TOOL],
        }
        for k in range(6)
    ]
    file = folder / "log.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        *(f"model.path={model}", f"env.trajectories={file}", "prompt.form=chat", "recipe=il"),
        *("eval.pairs=0", "eval.states=2", "env.heldout_share=0.4", "model.backend=torch"),
        "prompt.max_tokens=800",  # a letter is a token, and the critic is asked too
        *("stage.il.steps=60", "stage.il.batch=2", "stage.il.lr=0.01", "model.rank=32"),
    ]
    run_recipe(load_config("own-logs", settings), folder / "run", Console(file=StringIO()))
    return folder / "run"


def asked(*arguments: str, text: str | None = None) -> str:
    done = CliRunner().invoke(main, ["ask", *arguments], input=text, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


DIALOGUE = {"messages": [{"role": "user", "content": "Open door 7, please (2)."}], "tools": [TOOL]}


@pytest.mark.slow
def test_a_trained_model_answers_a_running_dialogue(trained):
    assert json.loads(asked(str(trained), text=json.dumps(DIALOGUE))) == CALL
    adapter = trained / "stages" / "1-il" / "adapter"
    state, _ = state_of(DIALOGUE, "here")
    assert json.loads(miniact.load_agent(adapter).act(state) or "") == CALL


@pytest.mark.slow
def test_an_exported_model_is_asked_in_the_same_way(trained, tmp_path):
    export(trained / "stages" / "1-il" / "adapter", "merged", tmp_path / "merged")
    agent = load_agent(tmp_path / "merged")
    assert agent.config.prompt.form == "chat"
    assert json.loads(agent.act(state_of(DIALOGUE, "here")[0]) or "") == CALL


@pytest.mark.slow
def test_the_prompt_to_send_is_the_one_that_was_trained(trained):
    sent = prompt_of(trained, state_of(DIALOGUE, "here")[0])
    assert sent["messages"] == DIALOGUE["messages"] and sent["tools"] == DIALOGUE["tools"]
    assert sent["prompt"].endswith("please (2).<|im_end|>\n<|im_start|>assistant\n")
    assert json.loads(asked(str(trained), "--show-prompt", text=json.dumps(DIALOGUE))) == sent


@pytest.mark.slow
def test_judging_shows_both_actions_and_the_choice(trained):
    other = '{"name": "open_door", "arguments": {"number": 8}}'
    shown = asked(str(trained), "--judge", "--candidate", other, text=json.dumps(DIALOGUE))
    assert shown.startswith(f"1: {other}\n2: {json.dumps(CALL)}\n")
    assert "better: " in shown or "no choice could be read" in shown


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="mlx-lm is not installed")
def test_a_served_model_calls_its_tool_over_http(trained, tmp_path):
    """mlx_lm.server with the merged model, asked by OpenAI's own client."""
    openai = pytest.importorskip("openai")
    export(trained / "stages" / "1-il" / "adapter", "merged", tmp_path / "merged")
    port = free_port()
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(tmp_path / "merged")]
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log)
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120)
        reply = None
        for _ in range(150):
            try:
                reply = client.chat.completions.create(
                    model=str(tmp_path / "merged"), temperature=0, max_tokens=120, **DIALOGUE
                )
                break
            except openai.APIConnectionError:
                assert server.poll() is None, (tmp_path / "server.log").read_text()[-2000:]
                time.sleep(2)
        assert reply is not None
        (call,) = reply.choices[0].message.tool_calls
        assert call.function.name == CALL["name"]
        assert json.loads(call.function.arguments) == CALL["arguments"]
    finally:
        server.kill()
        server.wait()


def test_states_come_as_states_or_as_dialogues():
    state, actions = state_of({"task": "t", "observation": "o", "actions": ["a", "b"]}, "here")
    assert (state.task, state.observation, actions) == ("t", "o", ("a", "b"))
    talk = [
        {"role": "user", "content": "Buy it."},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "ok"},
        {"role": "user", "content": "Faster!"},
    ]
    state, _ = state_of({"messages": talk, "tools": [TOOL]}, "here")
    assert state.history == (("", '{"name": "f", "arguments": {}}'),) and state.marked
    assert state.observation == "ok\nUser: Faster!" and state.compare == "json"
    assert state.tools[0]["function"]["name"] == "open_door"
    plain, _ = state_of(talk[:1], "here")
    assert (plain.task, plain.history, plain.observation) == ("Buy it.", (), "")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([{"role": "oracle", "content": "x"}], "unknown role"),
        ({"task": 3}, "task: expected text"),
        ({"observation": "x"}, "no field 'task'"),
        ("text", "expected a state"),
        ({"messages": []}, "no task"),
        ({"task": "t", "actions": "a"}, "actions must be a list"),
    ],
)
def test_what_is_no_state_is_told_in_one_line(row, says):
    with pytest.raises(UserError, match=says) as refused:
        state_of(row, "here")
    assert str(refused.value).startswith("here") and "\n" not in str(refused.value)


def test_a_folder_that_holds_no_agent_is_told_before_anything_is_loaded(tmp_path):
    for where in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="no run folder, no adapter in one, and no model"):
            load_agent(where)
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match="no stage is trained yet"):
        load_agent(tmp_path)
