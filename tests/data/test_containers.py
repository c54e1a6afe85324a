"""Logs come in many containers; damaged ones get one line."""

from __future__ import annotations

import gzip
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniact import UserError
from miniact.data.importing import Options, convert, import_log
from miniact.data.outcomes import Outcomes, named_rule

ROWS = [
    {
        "id": str(i),
        "messages": [
            {"role": "user", "content": f"Task {i} ü 🙂"},
            {"role": "assistant", "content": f"go {i}"},
        ],
    }
    for i in range(3)
]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
CONTAINERS = {
    "lines.jsonl": LINES.encode(),
    "empty lines, no end.jsonl": ("\n\n" + LINES.replace("\n", "\n\n")).encode(),
    "windows.jsonl": LINES.replace("\n", "\r\n").encode(),
    "list.json": json.dumps(ROWS).encode(),
    "indented list.json": json.dumps(ROWS, indent=2).encode(),
    "documents.json": "\n".join(json.dumps(row, indent=4) for row in ROWS).encode(),
    "mark.jsonl": b"\xef\xbb\xbf" + LINES.encode(),
    "utf16.jsonl": LINES.encode("utf-16"),
    "utf16 big, no mark.jsonl": LINES.encode("utf-16-be"),
    "utf16 list.json": json.dumps(ROWS, indent=1, ensure_ascii=False).encode("utf-16"),
    "gz.jsonl.gz": gzip.compress(LINES.encode()),
    "gz of utf16.gz": gzip.compress(LINES.encode("utf-16")),
    "gz without its name.jsonl": gzip.compress(json.dumps(ROWS).encode()),
    "dialogues.json": json.dumps([row["messages"] for row in ROWS]).encode(),
    "dialogue a line.jsonl": "\n".join(json.dumps(r["messages"]) for r in ROWS).encode(),
    "wrapped text.jsonl": "\n".join(
        json.dumps({**row, "messages": json.dumps(row["messages"])}) for row in ROWS
    ).encode(),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(name, tmp_path):
    log, out = tmp_path / name, tmp_path / "out.jsonl"
    log.write_bytes(CONTAINERS[name])
    assert import_log(log, None, out)["kept"] == 3
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(row["task"], row["actions"]) for row in rows] == [
        (f"Task {i} ü 🙂", [f"go {i}"]) for i in range(3)
    ]


def test_parquet_and_folders(tmp_path):
    import pyarrow
    from pyarrow import parquet

    folder = tmp_path / "logs" / "deep"
    folder.mkdir(parents=True)
    calls = [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]
    told = [{"role": "user", "content": "Go."}, {"role": "assistant", "tool_calls": calls}]
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": told}]), folder / "x.parquet")
    (folder / "b.jsonl.gz").write_bytes(CONTAINERS["gz.jsonl.gz"])
    (folder / "notes.md").write_text("no log")
    report = convert(tmp_path / "logs", None, tmp_path / "out.jsonl", 0.0, Options())
    assert report.formats == {"chat": 3, "toolcalls": 1}
    assert report.counts["kept"] == 1  # in a log with calls, what calls nothing is left out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04xxxx", "is a .zip archive; unpack"),
        (gzip.compress(LINES.encode())[:-9], "damaged .gz file"),
        (b"PAR1xxxxxxxxxxxxx", "damaged .parquet file"),
        (LINES.encode("utf-16")[:-1], "no UTF-16"),
        (b"", "no usable conversation"),
        (b"a,b\n1,2\n", "not a complete JSON value"),
        (b'{"a": 1}', "an object with the fields a; read are Codex"),
        (b"[1, 2]", "item 1: b'1, 2'"),
        (LINES.encode()[:-20], ":3: b'"),
        (json.dumps(ROWS[0], indent=1).encode()[:-20], "document 1: b'"),
    ],
)
def test_what_cannot_be_read_gets_one_line(content, message, tmp_path):
    log = tmp_path / "log"
    log.write_bytes(content)
    with pytest.raises(UserError) as caught:
        import_log(log, None, tmp_path / "out.jsonl")
    assert message in str(caught.value) and str(log) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


# ---- outcomes --------------------------------------------------------------------------------


def chosen(*rows: dict) -> str | None:
    outcomes = Outcomes()
    for row in rows:
        outcomes.add(row)
    return outcomes.choose("log")


@pytest.mark.parametrize(
    ("good", "bad", "field"),
    [
        ({"success": True}, {"success": False}, "success"),
        ({"success": 1, "score": 0}, {"success": 0, "score": 1}, "success"),
        ({"reward": 1.0}, {"reward": 0.0}, "reward"),
        ({"reward": 1}, {"reward": -1}, "reward"),
        ({"is_success": True}, {"is_success": False}, "is_success"),
        ({"win": 1}, {"win": 0}, "win"),
        ({"outcome": "success"}, {"outcome": "failure"}, "outcome"),
        ({"meta": {"success": True}}, {"meta": {"success": False}}, "meta.success"),
        ({"info": {"reward": "1.0"}}, {"info": {"reward": "0.0"}}, "info.reward"),
        ({"target": True}, {"target": False}, "target"),
        ({"loss_weight": 1}, {"loss_weight": 0}, "loss_weight"),
        ({"resolved": True, "reward": 0.3}, {"resolved": False, "reward": 0.2}, "resolved"),
        ({"reward": 1, "label": 0}, {"reward": 0, "label": 1}, "reward"),
        ({"a": {"b": {"passed": "yes"}}}, {"a": {"b": {"passed": "no"}}}, "a.b.passed"),
    ],
)
def test_an_outcome_is_found(good, bad, field):
    assert chosen(good, bad) == field
    rule = named_rule(field)
    assert (rule(good), rule(bad), rule({})) == (True, False, None)


def test_what_is_no_outcome():
    assert chosen({"label": "shopping"}, {"label": "travel"}) is None
    assert chosen({"id": 1}) is None


@pytest.mark.parametrize(
    ("rows", "listed"),
    [
        (
            [{"reward": 0.0}, {"reward": 0.5}],
            "reward is graded, 0 to 0.5: reward>0 marks 1 of 2 rows as failed",
        ),
        (
            [{"reward": 1, "resolved": False}, {"reward": 1, "resolved": True}],
            "resolved marks 1 of 2 rows as failed; reward marks 0 of 2 rows as failed",
        ),
    ],
)
def test_what_is_not_clear_stops_and_is_listed(rows, listed):
    with pytest.raises(UserError) as caught:
        chosen(*rows)
    assert listed in str(caught.value) and "--success FIELD" in str(caught.value)


def test_named_outcomes(tmp_path):
    log, out = tmp_path / "log.jsonl", tmp_path / "out.jsonl"
    rows = [{**row, "info": {"reward": r}} for row, r in zip(ROWS, (0.2, 0.6, 1.0))]
    log.write_text("\n".join(map(json.dumps, rows)))

    def successes(rule: str) -> list:
        convert(log, None, out, options=Options(success=rule))
        return [json.loads(line)["success"] for line in out.read_text().splitlines()]

    with pytest.raises(UserError, match=r"info\.reward is graded"):
        import_log(log, None, out)
    assert successes("info.reward>0.5") == [False, True, True]
    assert successes("info.reward >= 1") == [False, False, True]
    assert successes("info.reward=0.2") == [True, False, False]
    assert successes("none") == [None] * 3
    for wrong, message in {
        "info.reward": "is neither yes nor no",
        "info.reward>x": "is no number",
        "nothing": "no row has this field",
        "": "expected FIELD",
    }.items():
        if wrong:
            with pytest.raises(UserError, match=message):
                successes(wrong)


# ---- whatever comes ----------------------------------------------------------------------------


def _mutated(value, rng: random.Random):
    """A copy of a JSON value in which something is lost, swapped or of another type."""
    odd = [None, 0, -1.5, "", "x", [], {}, [None], {"a": []}, True, "\ud800", [[]], "{", 10**400]
    if rng.random() < 0.06:
        return rng.choice(odd)
    if isinstance(value, dict):
        kept = {k: _mutated(v, rng) for k, v in value.items() if rng.random() > 0.04}
        return (
            {**kept, rng.choice(["type", "content", "id", "x"]): rng.choice(odd)}
            if (rng.random() < 0.04)
            else kept
        )
    if isinstance(value, list):
        return [_mutated(v, rng) for v in value if rng.random() > 0.04]
    return value


def _every_row() -> list:
    """Rows of every format, from the cases and the tests of formats."""
    import test_cases
    import test_formats as formats

    rows: list = [formats.ITEMS, formats.EVENTS, formats.LANGFUSE, formats.DUMPED, *formats.SPANS]
    rows += [formats.codex("response_item", **item) for item in formats.ITEMS]
    rows.append(formats.claude("assistant", "1", None, [formats.uses("f", "a", x=1)]))
    rows.append({"messages": [formats.lc("HumanMessage", content="x")]})
    for file in sorted(test_cases.CASES.iterdir()):
        if file.suffix == ".jsonl" and "one-long" not in file.name:
            rows.append(json.loads(file.read_text().splitlines()[-1]))
        elif file.suffix in (".json", ".traj"):
            rows.append(json.loads(file.read_text()))
    return rows


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_mutated_rows_give_a_trajectory_or_one_line(tmp_path_factory, seed):
    rng = random.Random(seed)
    rows = _every_row()
    first = rng.randrange(len(rows))
    log = tmp_path_factory.getbasetemp() / "mutated.jsonl"
    log.write_text("\n".join(json.dumps(_mutated(rows[first], rng)) for _ in range(3)))
    out = tmp_path_factory.getbasetemp() / "mutated-out.jsonl"
    for skip in (False, True):
        try:
            convert(log, None, out, options=Options(skip_bad_rows=skip)).text()
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1500, str(error)
