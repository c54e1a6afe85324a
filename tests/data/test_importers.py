"""Importers: the published schemas and users' own logs, damaged rows included."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_logs import make

import miniact
from miniact import UserError
from miniact.data import containers
from miniact.data.importing import describe, import_log, read_log
from miniact.data.trajectories import TrajectoryFile
from miniact.method.rewards import same_action

LOGS = Path(miniact.__file__).parent / "data" / "samples"
ETO = {
    "id": 7,
    "reward": 0.75,
    "conversations": [
        {"from": "human", "value": "Interact with a household to solve a task. …"},
        {"from": "gpt", "value": "OK"},
        {
            "from": "human",
            "value": "You are in the middle of a room. You see a bed 1.\n\n"
            "Your task is to: put a pen in bed.",
        },
        {"from": "gpt", "value": "Thought: A pen is on the desk.\nAction: go to desk 1"},
        {"from": "human", "value": "Observation: On the desk 1, you see a pen 1."},
        {"from": "gpt", "value": "Thought: Take it.\nAction: take pen 1 from desk 1"},
    ],
}
SHOP = "WebShop [SEP] Instruction: [SEP] i need a red mug, under 20.00 dollars [SEP] Search"
AGENTTRAJ = {
    "item_id": "alfworld_12",
    "conversations": [
        {"from": "human", "loss": None, "value": "Interact with a household. …"},
        {"from": "gpt", "loss": False, "value": "OK. I'll follow your instructions."},
        {
            "from": "human",
            "loss": None,
            "value": "You see a desk 1.\nYour task is to: find a pen.\n"
            "AVAILABLE ACTIONS: go to desk 1,look, go to bed 1",
        },
        {"from": "gpt", "loss": True, "value": "Thought:\nThe desk.\n\nAction:\ngo to desk 1"},
        {"from": "human", "loss": None, "value": "Nothing.\nAVAILABLE ACTIONS: look,open drawer 1"},
        {"from": "gpt", "loss": False, "value": "Action:\nlook"},
        {"from": "human", "loss": None, "value": "You face the desk 1.\nAVAILABLE ACTIONS: look"},
        {"from": "gpt", "loss": True, "value": "Action:\nopen drawer 1"},
    ],
}


def call(id_: str | None, name: str, arguments: object) -> dict:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": text}}


def says(text: object, *calls: dict) -> dict:
    return {"role": "assistant", "content": text, **({"tool_calls": list(calls)} if calls else {})}


def tool(id_: str, text: str) -> dict:
    return {"role": "tool", "tool_call_id": id_, "content": text}


def convert(form: str, row: dict, tmp_path: Path, **options):
    """(the one trajectory of a one-row log, counts)."""
    file = tmp_path / "log.jsonl"
    file.write_text(json.dumps(row) + "\n")
    counts: Counter = Counter()
    (trajectory,) = read_log(file, form, counts, **options)
    return trajectory, counts


def steps(trajectory) -> list[tuple[str, str]]:
    return [(s.observation, s.action) for s in trajectory.steps]


# ---- ETO and AgentTraj-L -------------------------------------------------------------------


def test_eto(tmp_path):
    trajectory, counts = convert("eto", ETO, tmp_path)
    assert trajectory.id == "7/1" and trajectory.task == "put a pen in bed."
    assert steps(trajectory) == [
        ("You are in the middle of a room. You see a bed 1.", "go to desk 1"),
        ("On the desk 1, you see a pen 1.", "take pen 1 from desk 1"),
    ]
    assert trajectory.success is None and trajectory.source == "eto log.jsonl"
    assert counts == {
        "kept": 1,
        "actions": 2,
        "left out: thought": 2,
        "left out: opening rules and their OK": 1,
        "left out: system prompt": 1,
        "left out: field 'reward' of a row": 1,
    }


def test_eto_scienceworld_and_webshop_openings(tmp_path):
    def opening(text: str):
        turns = [*ETO["conversations"][:2], {"from": "human", "value": text}]
        row = {"id": "x", "conversations": [*turns, *ETO["conversations"][3:4]]}
        return convert("eto", row, tmp_path)[0]

    science = opening("Your task is to boil water. Then focus on it.")
    assert science.task == "Your task is to boil water. Then focus on it."
    assert science.steps[0].observation == ""
    shop = opening("Observation:\n" + SHOP)
    assert shop.task == "i need a red mug, under 20.00 dollars"
    assert shop.steps[0].observation == SHOP


def test_without_an_opening_nothing_is_lost(tmp_path):
    row = {"id": 1, "conversations": ETO["conversations"][2:]}
    assert steps(convert("eto", row, tmp_path)[0]) == steps(convert("eto", ETO, tmp_path)[0])


def test_a_turn_without_an_action_stays_in_sight(tmp_path):
    aside = [{"from": "gpt", "value": "Let me think."}, {"from": "human", "value": "Go on."}]
    turns = ETO["conversations"]
    row = {"id": 1, "conversations": [*turns[:5], *aside, *turns[5:]]}
    trajectory, counts = convert("eto", row, tmp_path)
    seen = "On the desk 1, you see a pen 1.\n> Let me think.\nGo on."
    assert steps(trajectory)[1] == (seen, "take pen 1 from desk 1")
    assert counts['not imitated: a turn without "Action:"'] == 1


def test_agenttraj(tmp_path):
    trajectory, counts = convert("agenttraj", AGENTTRAJ, tmp_path)
    assert trajectory.id == "alfworld_12/1" and trajectory.task == "find a pen."
    assert steps(trajectory) == [
        ("You see a desk 1.", "go to desk 1"),
        ("Nothing.\n> look\nYou face the desk 1.", "open drawer 1"),  # `look` has loss: false
    ]
    assert trajectory.steps[0].admissible == ("go to desk 1", "look", "go to bed 1")
    assert trajectory.steps[1].admissible == ("look",)
    assert counts["not imitated: loss is false"] == 1


def test_the_last_action_line_counts(tmp_path):
    turns = list(ETO["conversations"])
    text = "Action: look\nThought: no.\naction:  wait\nObservation: I made this up"
    turns[3] = {"from": "gpt", "value": text}
    row = {"id": 1, "conversations": turns}
    assert convert("eto", row, tmp_path)[0].steps[0].action == "wait"


# ---- chat ----------------------------------------------------------------------------------


def test_chat(tmp_path):
    messages = [
        {"role": "developer", "content": "You play."},
        {"role": "user", "content": [{"type": "text", "text": "Win."}, {"type": "image_url"}]},
        {"role": "user", "content": "A door."},
        says("<think>hm</think>\nopen door"),
        {"role": "user", "content": "A wall."},
        {**says("hit wall"), "weight": 0},
        {"role": "user", "content": "Ouch."},
        says(None),
        says("Thought: back.\nAction: go back"),
    ]
    row = {"id": "g1", "success": True, "split": "test", "messages": messages}
    trajectory, counts = convert("chat", row, tmp_path)
    assert (trajectory.id, trajectory.success, trajectory.split) == ("g1", True, "test")
    assert trajectory.task == "Win.\n[image]"
    assert steps(trajectory) == [
        ("A door.", "open door"),
        ("A wall.\n> hit wall\nOuch.", "go back"),
    ]
    assert counts["left out: image, sound or file"] == 1
    assert counts["left out: empty turn"] == 1
    assert counts["not imitated: weight is 0"] == 1
    assert (
        convert("chat", row, tmp_path, system_prompt=True)[0].task == "You play.\n\nWin.\n[image]"
    )


def test_rows_without_an_id_are_numbered(tmp_path):
    row = {"messages": [{"role": "user", "content": "Win."}, says("go")]}
    assert convert("chat", row, tmp_path)[0].id == "log-1"


# ---- tool calls ----------------------------------------------------------------------------


def test_tool_calls(tmp_path):
    messages = [
        {"role": "system", "content": "Use the tools."},
        {"role": "user", "content": "Refund order 5."},
        says("I look it up.", call("a", "find", {"order": 5})),
        tool("a", "paid"),
        says("Which card?"),
        {"role": "user", "content": "The blue one."},
        says(None, call("b", "refund", {"order": 5, "card": "Blue"})),
        tool("b", "ok"),
        says("Done, anything else?"),
        {"role": "user", "content": "No."},
    ]
    trajectory, counts = convert("toolcalls", {"messages": messages}, tmp_path)
    assert trajectory.task == "Refund order 5."
    assert steps(trajectory) == [
        ("", '{"name": "find", "arguments": {"order": 5}}'),
        (
            "paid\n> Which card?\nUser: The blue one.",
            '{"name": "refund", "arguments": {"order": 5, "card": "Blue"}}',
        ),
    ]
    same = '{"arguments": {"card": "Blue", "order": 5.0}, "name":"refund"}'
    assert same_action(trajectory.steps[1].action, same)
    assert counts["not imitated: text between tool calls"] == 1
    assert counts["left out: final answer (--keep-final-answer)"] == 1


def test_parallel_calls_are_one_action_and_results_follow_their_calls(tmp_path):
    messages = [
        {"role": "user", "content": "Compare."},
        says(None, call("x", "price", {"of": "A"}), call("y", "stock", {"of": "B"})),
        tool("y", "three"),
        tool("x", "9 €"),
        tool("z", "from nowhere"),
        says(None, call("w", "stop", "")),
    ]
    trajectory, counts = convert("toolcalls", {"messages": messages}, tmp_path)
    first, second = trajectory.steps
    assert json.loads(first.action) == [
        {"name": "price", "arguments": {"of": "A"}},
        {"name": "stock", "arguments": {"of": "B"}},
    ]
    assert second.observation == "price: 9 €\nstock: three\nfrom nowhere"
    assert second.action == '{"name": "stop", "arguments": {}}'
    assert counts["parallel calls joined to one action"] == 1
    assert counts["repaired: result without its call, kept in place"] == 1


def test_a_call_without_a_result_is_counted(tmp_path):
    messages = [
        {"role": "user", "content": "Go."},
        says(None, call("x", "a", {}), call("y", "b", {})),
        tool("y", "done"),
        says(None, call("z", "c", {})),
    ]
    trajectory, counts = convert("toolcalls", {"messages": messages}, tmp_path)
    assert trajectory.steps[1].observation == "b: done"
    assert counts["repaired: call without a result"] == 1


def test_the_older_function_calls(tmp_path):
    old = {"role": "assistant", "content": None}
    messages = [
        {"role": "user", "content": "Weather?"},
        {**old, "function_call": {"name": "weather", "arguments": '{"city": "Ulm"}'}},
        {"role": "function", "name": "weather", "content": "rain"},
        {**old, "function_call": {"name": "umbrella", "arguments": {"open": True}}},
    ]
    trajectory, counts = convert("toolcalls", {"messages": messages}, tmp_path)
    assert steps(trajectory) == [
        ("", '{"name": "weather", "arguments": {"city": "Ulm"}}'),
        ("rain", '{"name": "umbrella", "arguments": {"open": true}}'),
    ]
    assert counts == {"kept": 1, "actions": 2}


def test_arguments_that_are_no_json_are_seen_but_not_imitated(tmp_path):
    messages = [
        {"role": "user", "content": "Go."},
        says(None, call("x", "move", '{"to": ')),
        tool("x", "bad arguments"),
        says(None, call("y", "move", {"to": 1})),
    ]
    trajectory, counts = convert("toolcalls", {"messages": messages}, tmp_path)
    assert steps(trajectory) == [
        ('> move {"to": \nbad arguments', '{"name": "move", "arguments": {"to": 1}}')
    ]
    assert counts["not imitated: arguments are no JSON object"] == 1


# ---- bad rows ------------------------------------------------------------------------------

GOOD = {"messages": [{"role": "user", "content": "Go."}, says("go")]}
BAD_CHATS = {
    "no field 'messages'": {"rounds": []},
    "one message, expected one conversation": {"role": "user", "content": "x"},
    "messages: must be a list of objects": {"messages": "x"},
    "messages[0].role 'bot': unknown role": {"messages": [{"role": "bot", "content": "x"}]},
    "messages[0].content: must be a text": {"messages": [{"role": "user", "content": 5}]},
    "no task": {"messages": [says("go")]},
    "--format toolcalls": {"messages": [says(None, call("a", "b", {}))]},
    "UTF-8": {"messages": [{"role": "user", "content": "half \ud800"}, says("go")]},
}


@pytest.mark.parametrize("message", BAD_CHATS)
def test_bad_rows_name_file_line_and_field_or_are_counted(message, tmp_path):
    log, out = tmp_path / "log.jsonl", tmp_path / "out.jsonl"
    log.write_text("\n".join(map(json.dumps, [GOOD, BAD_CHATS[message], GOOD])) + "\n")
    with pytest.raises(UserError) as caught:
        import_log(log, "chat", out)
    assert message in str(caught.value) and f"{log}:2" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl"]  # nothing half-written
    counts = import_log(log, "chat", out, skip_bad_rows=True)
    assert counts["kept"] == 2
    assert sum(n for reason, n in counts.items() if reason.startswith("dropped")) == 1
    assert len(TrajectoryFile(out)) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": [{"from": "bot", "value": "x"}]}, "conversations[0].from 'bot'"),
        ({"conversations": [{"from": "human", "value": None}]}, "conversations[0].value None"),
        ({"conversations": [3]}, "conversations: must be a list of objects"),
        ({}, "no field 'conversations'"),
    ],
)
def test_bad_turns(row, message, tmp_path):
    with pytest.raises(UserError) as caught:
        convert("agenttraj", row, tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("calls", [{"a": 1}, 5, [3], [{"function": {"name": None}}]])
def test_bad_calls(calls, tmp_path):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": calls}]
    with pytest.raises(UserError, match=r"log.jsonl:1: .*must (be a list|hold function.name)"):
        convert("toolcalls", {"messages": messages}, tmp_path)


def test_damaged_items_of_a_list_are_named_and_the_next_one_is_read(tmp_path):
    log, out = tmp_path / "log.json", tmp_path / "out.jsonl"
    good = json.dumps(ETO)
    log.write_text(f'[{good}, {{"id": 3 "conversations": []}}, 17, {good}]\n')
    with pytest.raises(UserError, match=r"log\.json item 2.*not a complete JSON value"):
        import_log(log, "eto", out)
    counts = import_log(log, "eto", out, skip_bad_rows=True)
    assert counts["kept"] == 2
    assert counts["dropped: not a complete JSON value"] == 1
    assert counts["dropped: a conversation must be a JSON object"] == 1
    ids = [json.loads(line)["id"] for line in out.read_text().splitlines()]
    assert ids == ["7/1", "7/4"]  # the same id twice, told apart


@pytest.mark.parametrize("cut", [1, 40, 300])
def test_a_list_cut_short_keeps_what_is_whole(cut, tmp_path):
    log, out = tmp_path / "log.json", tmp_path / "out.jsonl"
    log.write_text(json.dumps([ETO, ETO])[:-cut])
    with pytest.raises(UserError, match="item"):
        import_log(log, "eto", out)
    counts = import_log(log, "eto", out, skip_bad_rows=True)
    assert counts["kept"] == (2 if cut == 1 else 1)


def test_what_cannot_be_split_stops(tmp_path, monkeypatch):
    log = tmp_path / "log.json"
    log.write_text(json.dumps([ETO]) + "garbage")
    with pytest.raises(UserError, match="after the end of the list"):
        list(read_log(log, "eto", Counter()))
    monkeypatch.setattr(containers, "MAX_ITEM", 2000)
    monkeypatch.setattr(containers, "CHUNK", 100)
    log.write_text('[{"id": "' + 5000 * "x")
    with pytest.raises(UserError, match="quote or a bracket missing"):
        list(read_log(log, "eto", Counter(), skip_bad_rows=True))
    log.write_text('{"id": "' + 5000 * "x")
    with pytest.raises(UserError, match="line of more than"):
        list(read_log(log, "eto", Counter(), skip_bad_rows=True))


def test_user_errors(tmp_path):
    log, out = tmp_path / "log.jsonl", tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="cannot be read"):
        import_log(log, "eto", out)
    log.write_text("")
    with pytest.raises(UserError, match="no usable conversation"):
        import_log(log, "eto", out)
    with pytest.raises(UserError, match="expected one of codex, claude-code"):
        import_log(log, "csv", out)
    with pytest.raises(UserError, match="is the log itself"):
        import_log(log, "eto", log)
    with pytest.raises(UserError, match="heldout-share"):
        import_log(log, "eto", out, heldout_share=1.0)
    assert not out.exists()


def test_rows_without_an_action_are_counted(tmp_path):
    log, out = tmp_path / "log.jsonl", tmp_path / "out.jsonl"
    silent = {"messages": [{"role": "user", "content": "x"}]}
    log.write_text("\n".join(map(json.dumps, [GOOD, silent])))
    counts = import_log(log, None, out)
    assert counts["left out: dialogue without an action (no turn of an agent)"] == 1
    log.write_text(json.dumps(silent))
    with pytest.raises(UserError, match=r"no usable conversation .*without an action"):
        import_log(log, None, out)


def test_held_out_by_task(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"task {i % 50}"}, says("go")]}
        for i in range(100)
    ]
    log, out = tmp_path / "log.jsonl", tmp_path / "out.jsonl"
    log.write_text("\n".join(map(json.dumps, rows)))
    import_log(log, "chat", out)
    assert set(TrajectoryFile(out).splits) == {"train"}
    import_log(log, "chat", out, heldout_share=0.3)
    file = TrajectoryFile(out)
    by_task = {file.read(i).task: set() for i in range(100)}
    for i, split in enumerate(file.splits):
        by_task[file.read(i).task].add(split)
    assert all(len(splits) == 1 for splits in by_task.values())
    assert 5 <= sum(splits == {"heldout"} for splits in by_task.values()) <= 25


# ---- the splitter --------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(alphabet='ab"\\[]{}, \n\tü\ud83d', max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3), JSON), max_size=6),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    ascii_=st.booleans(),
)
def test_split_is_json_loads_whatever_the_chunks(tmp_path_factory, rows, chunk, indent, ascii_):
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_)
    file = tmp_path_factory.getbasetemp() / "split.json"
    file.write_text(f"\ufeff \n{text}\n ", encoding="utf-8", errors="surrogatepass")
    before, containers.CHUNK = containers.CHUNK, max(chunk, 6)
    try:
        found = list(containers.read_items(file))
    finally:
        containers.CHUNK = before
    texts = [text.decode("utf-8", "surrogatepass") for _, _, text in found]
    assert [json.loads(text) for text in texts] == rows
    assert [number for _, number, _ in found] == list(range(1, len(rows) + 1))


@given(rows=st.lists(JSON.filter(lambda v: v not in ("",)), min_size=1, max_size=5))
def test_any_json_is_converted_or_a_user_error(tmp_path_factory, rows):
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    wrapped = [
        [{"messages": row}, {"conversations": row}, row][i % 3] for i, row in enumerate(rows)
    ]
    file.write_text("{}\n" + "\n".join(map(json.dumps, wrapped)))
    for form in ("eto", "chat", "toolcalls"):
        with pytest.raises(UserError):
            list(read_log(file, form, Counter(), skip_bad_rows=True))


MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "function"])},
    optional={
        "content": st.none() | st.text(max_size=5) | st.just([{"type": "text", "text": "p"}]),
        "tool_call_id": st.sampled_from(["a", "b", None]),
        "tool_calls": st.lists(
            st.builds(call, st.sampled_from(["a", "b", None]), st.just("f"), JSON), max_size=3
        ),
        "weight": st.integers(0, 1),
    },
)


@given(st.lists(MESSAGE, max_size=8))
def test_no_result_is_lost_and_every_action_is_a_call(messages):
    """Whatever the order of messages: one action per message with good calls, results kept."""
    from miniact.data.dialogue import BadRow
    from miniact.data.folding import Folding, fold
    from miniact.data.readers.rows import read_row

    try:
        (dialogue,) = read_row({"messages": messages}, Counter())
        row = fold(dialogue, Folding(calls=True), Counter())
    except BadRow:
        return
    assert len(row["observations"]) == len(row["actions"])
    for action in row["actions"]:
        calls = json.loads(action)
        for one in calls if isinstance(calls, list) else [calls]:
            assert one["name"] == "f" and isinstance(one["arguments"], dict)
    most = sum(bool(m.get("tool_calls")) for m in messages if m["role"] == "assistant")
    assert len(row["actions"]) <= most


# ---- size, and the logs that ship ----------------------------------------------------------

MEASURE = """
import re, sys, time
from pathlib import Path
from miniact.data.importing import import_log

def peak():  # kB; ru_maxrss will not do: a child inherits its parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before, start = peak(), time.monotonic()
import_log(Path(sys.argv[1]), "agenttraj", Path(sys.argv[2]))
print(peak() - before, time.monotonic() - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_a_hundred_megabytes_take_a_few(tmp_path):
    log = tmp_path / "log.json"
    turns = AGENTTRAJ["conversations"]
    row = {**AGENTTRAJ, "conversations": turns[:4] + 30 * turns[4:]}
    item = json.dumps(row, indent=2)
    n = 100_000_000 // len(item)
    with log.open("w") as file:
        file.write("[" + item)
        for _ in range(n - 1):
            file.write(",\n" + item)
        file.write("]")
    command = [sys.executable, "-c", MEASURE, str(log), str(tmp_path / "out.jsonl")]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    grown, seconds = map(float, told.split())
    print(f"{log.stat().st_size / 1e6 / seconds:.0f} MB/s, {grown / 1e3:.1f} MB")
    assert 0 < grown < 20_000
    assert sum(1 for _ in (tmp_path / "out.jsonl").open()) == n


def test_the_shipped_logs_are_what_their_script_makes(tmp_path):
    make(tmp_path)
    files = sorted(p.name for p in LOGS.glob("*.jsonl"))
    assert len(files) == 3
    for name in files:
        assert (tmp_path / name).read_bytes() == (LOGS / name).read_bytes(), name
    assert sum((LOGS / name).stat().st_size for name in files) < 300_000


def test_the_shipped_tool_calls_import(tmp_path):
    counts = import_log(LOGS / "household-toolcalls.jsonl", "toolcalls", tmp_path / "out.jsonl")
    assert counts["kept"] == 22
    file = TrajectoryFile(tmp_path / "out.jsonl")
    assert file.failed == 1 and len(file) == 21
    assert json.loads(file.read(0).steps[0].action)["name"] == "go_to"
    assert describe(counts).startswith("kept 22, actions ")
