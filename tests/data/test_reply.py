"""What an agent wrote: its thought and its action, whatever marks it used."""

from __future__ import annotations

import pytest

from miniact.data.reply import find_calls, split_action, split_think


@pytest.mark.parametrize(
    ("text", "action", "thought"),
    [
        ("open door", "open door", ""),
        ("Cold. <action>open door</action>", "open door", "Cold."),
        ("I run <command>ls</command>", "ls", "I run"),
        ("<answer>open door</answer>", "open door", ""),
        ("Thought: cold.\nAction: open door", "open door", "Thought: cold."),
        ("I am cold.\nAction: open door", "open door", "I am cold."),
        ("Action: open door\nObservation: I made this up", "open door", ""),
        ("Action: write\nAction: is a word", "write\nAction: is a word", ""),
        ("Thought: I know.\nFinal Answer: 42", "Final Answer: 42", "Thought: I know."),
        ("THOUGHT: look\n\n```bash\nls -la\n```", "ls -la", "THOUGHT: look"),
        ("```bash\nls\n```", "```bash\nls\n```", ""),
        ("print('<action>')", "print('<action>')", ""),
    ],
)
def test_actions(text, action, thought):
    assert split_action(text) == (action, thought, "")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<action>a</action><action>b</action>", "several <action> tags"),
        ("<action>open", "never ends"),
        ("Thought: I wonder", "a thought without an action"),
    ],
)
def test_what_is_no_action(text, problem):
    assert problem in split_action(text)[2]


def test_a_code_block_on_request():
    text = "I look.\n```\n  open a.py\nls\n```\nThen we see."
    assert split_action(text)[0] == text.strip()
    assert split_action(text, code_block=True) == ("  open a.py\nls", "I look.\n\nThen we see.", "")
    two = "```\na\n```\n```\nb\n```"
    assert split_action(two, code_block=True) == (two, "", "")


@pytest.mark.parametrize(
    ("text", "thought", "rest", "whole"),
    [
        ("<think>a</think>b", "a", "b", True),
        ("<thinking>a</thinking>\n<thought>c</thought> b", "a\nc", "b", True),
        ("a</think>b", "a", "b", True),
        ("<think>a", "a", "", False),
        ("b\n<think>a", "a", "b", False),
        ("write '<think>a</think>'", "", "write '<think>a</think>'", True),
        ("<think></think>b", "", "b", True),
    ],
)
def test_thoughts(text, thought, rest, whole):
    assert split_think(text) == (thought, rest, whole)


def test_text_without_calls_is_as_it_was():
    text = " spaces \n stay "
    assert find_calls(text) == (text, [])
