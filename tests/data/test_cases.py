"""Small logs of the shapes that real ones have: the right trajectory, or the right line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from miniact import UserError
from miniact.cli.main import main
from miniact.data.importing import Options, convert
from miniact.data.trajectories import TrajectoryFile

CASES = Path(__file__).parent / "cases"


def call(name: str, **arguments: object) -> str:
    return json.dumps({"name": name, "arguments": arguments})


WEATHER = call("weather", city="Ulm")
ANSWER = "left out: final answer (--keep-final-answer)"
BESIDE = "left out: text beside a call"

# file → (format, task, steps of the first trajectory, what is counted beside kept and actions)
RIGHT = {
    "01-anthropic-blocks.jsonl": (
        "anthropic",
        "Add a licence file.",
        [
            ("", call("write_file", path="LICENSE", text="MIT")),
            ("written 3 bytes", call("run", cmd="git add LICENSE")),
        ],
        {ANSWER: 1, BESIDE: 1},
    ),
    "02-failed-resolved-False.jsonl": (
        "chat",
        "Book a room.",
        [("", "cancel room")],
        {"failed": 1},
    ),
    "02-failed-reward-0.0.jsonl": ("chat", "Book a room.", [("", "cancel room")], {"failed": 1}),
    "02-failed-success-0.jsonl": ("chat", "Book a room.", [("", "cancel room")], {"failed": 1}),
    "03-greeting-first.jsonl": (
        "chat",
        "Cancel order 7.",
        [("> Hello, what can I do?", "cancel 7")],
        {"not imitated: said before the first request": 1},
    ),
    "05-rules-first.jsonl": (
        "chat",
        "Task 0: find the pen.",
        [("", "go to desk 0")],
        {"left out: opening rules and their OK (--opening 0 keeps them)": 8},
    ),
    "06-action-tags.jsonl": (
        "chat",
        "Win.",
        [("", "open door"), ("A wall.", "go back")],
        {"left out: thought": 2},
    ),
    "08-reasoning-part.jsonl": ("chat", "Win.", [("", "open door")], {"left out: thought": 1}),
    "11-one-document.json": ("chat", "Win.", [("", "open door")], {}),
    "13-gz.jsonl.gz": ("chat", "Win.", [("", "open door")], {}),
    "15-one-row-per-call.jsonl": (
        "chat",
        "Find the pen.",
        [("" if i == 0 else f"Drawer {i - 1} is empty.", f"open drawer {i}") for i in range(6)],
        {"left out: row that a longer row repeats (--repeats keep)": 5},
    ),
    "16-few-shot-first.jsonl": (
        "chat",
        "find pen 0.",
        [
            (
                "Example.\nYou see a bed.\nYour task is to: put a mug on a bed.\n\\> go to bed 1\n"
                "\nNow it is your turn.\nYou see a desk.",
                "go to desk 1",
            )
        ],
        {"examples before the task: the last one named is the task": 3},
    ),
    "18-tool-call-in-text.jsonl": ("chat", "Weather?", [("", WEATHER)], {ANSWER: 1, BESIDE: 1}),
    "19-sharegpt-function-call.jsonl": ("sharegpt", "Weather?", [("", WEATHER)], {ANSWER: 1}),
    "22-no-call-needed.jsonl": (
        "chat",
        "Weather?",
        [("", WEATHER)],
        {ANSWER: 1, f"left out: dialogue without a tool call ({ANSWER[10:]})": 1},
    ),
    "23-tools-and-system.jsonl": (
        "toolcalls",
        "Weather?",
        [("", WEATHER)],
        {"left out: system prompt": 1, BESIDE: 1, "rows with tool definitions": 1},
    ),
    "24-calls-as-strings.jsonl": ("toolcalls", "Weather?", [("", WEATHER)], {}),
    "26-langchain-roles.jsonl": ("toolcalls", "Weather?", [("", WEATHER)], {}),
    "27-responses-items.jsonl": ("responses", "Weather?", [("", WEATHER)], {}),
    "28-prompt-completion.jsonl": ("completion", "Win.", [("", "open door")], {}),
    "30-image.jsonl": (
        "chat",
        "Click on the blue button.",
        [("[image]", "click 10 20"), ("[image]", "click 30 40")],
        {"left out: image, sound or file": 2},
    ),
    "33-rules-first-all-held-out.jsonl": (
        "chat",
        "Task 0: find the pen.",
        [("", "go to desk 0")],
        {"left out: opening rules and their OK (--opening 0 keeps them)": 8},
    ),
    "35-codex-session.jsonl": ("codex", "List files.", [("", call("exec_command", cmd="ls"))], {}),
    "43-verifiers-results.jsonl": ("completion", "Weather?", [("", call("weather"))], {}),
    "45-tau-result.jsonl": (
        "tau",
        "Cancel 7.",
        [("", call("cancel", id=7))],
        {"failed": 1, "left out: system prompt": 1, "left out: field 'trial' of a row": 1},
    ),
    "46-swe-agent.traj": (
        "swe-agent",
        "Fix the colon.",
        [("", "open a.py")],
        {
            "left out: thought": 1,
            "left out: system prompt": 1,
            "left out: message of a demonstration": 1,
        },
    ),
}
WRONG = {
    "07-thought-not-closed.jsonl": "without an action (thought that never ends",
    "32-one-long-observation.jsonl": "need no import: set env.trajectories to this file",
}
LOOK = {  # what the summary points at
    "02-failed-reward-0.0.jsonl": "all 1 rows failed: nothing is left to imitate",
    "30-image.jsonl": "2 of 2 actions follow an image that no text describes",
    "28-prompt-completion.jsonl": "no field tells success: all 1 rows are imitated",
}


def test_every_case_is_here():
    assert {p.name for p in CASES.iterdir()} == set(RIGHT) | set(WRONG)


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_trajectory(name, tmp_path):
    form, task, steps, counted = RIGHT[name]
    out = tmp_path / "out.jsonl"
    report = convert(CASES / name, None, out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert list(report.formats) == [form]
    assert rows[0]["task"] == task
    assert list(zip(rows[0]["observations"], rows[0]["actions"])) == steps
    rest = {k: n for k, n in report.counts.items() if k not in ("kept", "actions") and n}
    assert rest == counted
    assert report.counts["kept"] == len(rows)
    assert rows[0]["success"] is (False if "failed" in counted else rows[0]["success"])
    assert LOOK.get(name, "") in "\n".join(report.findings)
    report.write(out)
    told = json.loads((tmp_path / "out.jsonl.import.json").read_text())
    assert told["counts"] == dict(report.counts)


@pytest.mark.parametrize("name", WRONG)
def test_the_right_line(name, tmp_path):
    with pytest.raises(UserError) as caught:
        convert(CASES / name, None, tmp_path / "out.jsonl")
    assert WRONG[name] in str(caught.value) and name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_tasks_of_rules_first_differ(tmp_path):
    out = tmp_path / "out.jsonl"
    convert(CASES / "05-rules-first.jsonl", None, out, 0.4)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({row["task"] for row in rows}) == 8
    assert {row["split"] for row in rows} == {"train", "heldout"}
    report = convert(CASES / "05-rules-first.jsonl", None, out, options=Options(opening=0))
    assert "the task is the same in 8 of 8 rows" in report.findings[0]
    assert "--opening 2 leaves them out" in report.findings[0]
    assert 'the first action is an "OK" in 8 of 8 rows' in report.findings[1]


def test_tools_are_kept_with_the_trajectory(tmp_path):
    out = tmp_path / "out.jsonl"
    convert(CASES / "23-tools-and-system.jsonl", None, out)
    function = {"name": "weather", "description": "", "parameters": {}}
    assert json.loads(out.read_text())["tools"] == [{"type": "function", "function": function}]


def test_final_answers_on_request(tmp_path):
    out = tmp_path / "out.jsonl"
    report = convert(
        CASES / "22-no-call-needed.jsonl", None, out, options=Options(keep_final_answer=True)
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["actions"] for row in rows] == [["Hello! What can I do?"], [WEATHER, "It rains."]]
    assert rows[1]["observations"] == ["", "rain"] and report.counts["kept"] == 2


def test_rows_on_images_are_left_out_on_request(tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="row with actions on images"):
        convert(CASES / "30-image.jsonl", None, out, options=Options(no_images=True))


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("01-anthropic-blocks.jsonl", "json"),
        ("28-prompt-completion.jsonl", "exact"),
        ("16-few-shot-first.jsonl", "words"),
    ],
)
def test_the_import_proposes_how_actions_are_compared(name, rule, tmp_path):
    out = tmp_path / "out.jsonl"
    report = convert(CASES / name, None, out)
    file = TrajectoryFile(out)
    assert file.read(0).compare == rule == report.compare
    assert file.states("train")[0][0].compare == rule
    assert f"by the rule: {rule}" in report.text()


def test_examples_as_turns_are_found_and_left_out_on_request(tmp_path):
    example = [
        {"role": "user", "content": "Example: find a cup."},
        {"role": "assistant", "content": "go to sink 1"},
        {"role": "user", "content": "Done. Now another."},
        {"role": "assistant", "content": "go to drawer 1"},
    ]
    log, out = tmp_path / "log.jsonl", tmp_path / "out.jsonl"
    with log.open("w") as file:
        for i in range(4):
            task = {"role": "user", "content": f"Find pen {i}."}
            turns = [*example, task, {"role": "assistant", "content": f"go to desk {i}"}]
            file.write(json.dumps({"messages": turns}) + "\n")
    look = convert(log, None, out).findings[0]
    assert "the task is the same in 4 of 4 rows ('Example: find a cup.')" in look
    assert "--opening 4 leaves them out" in look
    report = convert(log, None, out, options=Options(opening=4))
    tasks = [json.loads(line)["task"] for line in out.read_text().splitlines()]
    assert tasks == [f"Find pen {i}." for i in range(4)]
    assert not any("the task is the same" in finding for finding in report.findings)


def test_the_command_tells_what_it_did(tmp_path):
    out = tmp_path / "out.jsonl"
    case = str(CASES / "45-tau-result.jsonl")
    done = CliRunner().invoke(main, ["import", case, "--out", str(out), "--success", "reward>0"])
    assert done.exit_code == 0, done.output
    for line in (
        "format: tau (1 rows)",
        "kept: 1 trajectories, 1 actions; 1 failed, not imitated",
        "success: reward>0: 1 of 1 rows failed",
        "left out: system prompt: 1",
        "look: all 1 rows failed: nothing is left to imitate",
    ):
        assert line in done.output.splitlines()
    assert json.loads((tmp_path / "out.jsonl.import.json").read_text())["success"]
    wrong = CliRunner().invoke(main, ["import", case, "--out", str(out), "--format", "csv"])
    assert wrong.exit_code == 2 and "--format csv: expected one of codex" in wrong.output
