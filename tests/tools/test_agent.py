"""A trained model put to use: the states that it is asked in."""

from __future__ import annotations

import pytest

from miniact import UserError
from miniact.tools.agent import load_agent, state_of

TOOL = {
    "type": "function",
    "function": {
        "name": "open_door",
        "description": "Opens a door.",
        "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}},
    },
}


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
