"""Trajectories on disk: exact round trips, named mistakes, little memory, no state lost."""

from __future__ import annotations

import dataclasses
import gzip
import json
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniact import UserError
from miniact.data.trajectories import (
    TrajectoryFile,
    collect,
    from_row,
    hold_out,
    import_rows,
    to_row,
)
from miniact.envs import Turn
from miniact.runs.files import read_jsonl, write_jsonl
from miniact.types import Step, Trajectory

TEXT = st.text(max_size=8) | st.sampled_from(
    ["\n", "\r\n", "\u2028", "\u2029\x85", '"\\', "é🙂", "\0"]
)
LISTED = st.lists(TEXT, min_size=1, max_size=3).map(tuple)


@st.composite
def trajectories(draw) -> Trajectory:
    listed = LISTED if draw(st.booleans()) else st.none()
    steps = st.lists(st.builds(Step, TEXT, TEXT, listed | st.none()), min_size=1, max_size=4)
    return Trajectory(
        id=draw(TEXT),
        task=draw(TEXT),
        steps=tuple(draw(steps)),
        success=draw(st.sampled_from([True, None])),
        split=draw(st.sampled_from(["train", "id", "ood"])),
        source=draw(TEXT),
    )


def simple(name: str, steps: int = 2, **fields) -> Trajectory:
    taken = tuple(Step(f"{name} sees {i}", f"{name} does {i}") for i in range(steps))
    return Trajectory(name, f"task of {name}", taken, **fields)


def write(path, *trajectories_: Trajectory) -> TrajectoryFile:
    write_jsonl(path, map(to_row, trajectories_))
    return TrajectoryFile(path)


ROW = to_row(simple("a"))
GOOD = json.dumps(ROW)


# ---- round trips ---------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.lists(trajectories(), min_size=1, max_size=5))
def test_what_is_written_is_read(tmp_path_factory, given_):
    path = tmp_path_factory.mktemp("round") / "t.jsonl"
    write_jsonl(path, map(to_row, given_))
    file = TrajectoryFile(path)
    assert [file.read(i) for i in range(len(file))] == given_
    assert [file.read(i) for i in reversed(range(len(file)))] == given_[::-1]  # random access
    assert file.splits == [t.split for t in given_]
    assert list(import_rows(str(path), {}, False)) == given_


@given(trajectories())
def test_every_state_is_what_the_expert_saw(tmp_path_factory, one):
    states = write(tmp_path_factory.mktemp("states") / "t.jsonl", one).states(one.split)
    assert len(states) == len(one.steps)
    for i, (state, action) in enumerate(states):
        assert action == one.steps[i].action
        assert state.id == f"{one.id}#{i}" and state.task == one.task
        assert state.history == tuple((s.observation, s.action) for s in one.steps[:i])
        assert (state.observation, state.admissible) == (
            one.steps[i].observation,
            one.steps[i].admissible,
        )


def test_a_final_observation_and_absent_fields_are_accepted():
    row = {"task": "t", "observations": ["a", "b", "end"], "actions": ["x", "y"]}
    expected = Trajectory("row-7", "t", (Step("a", "x"), Step("b", "y")))
    assert from_row(row, "w", default_id="row-7") == expected
    full = {**row, "id": None, "success": None, "split": None, "source": None, "admissible": None}
    assert from_row(full, "w", default_id="row-7") == expected


@pytest.mark.parametrize(("given_", "read"), [(1, True), (0, False), (True, True), (None, None)])
def test_success_may_be_a_number(given_, read):
    assert from_row({**ROW, "success": given_}, "w").success is read


def test_windows_line_ends_a_mark_and_blank_lines_do_no_harm(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\r\n  \n" + GOOD.encode())
    file = TrajectoryFile(path)
    assert [file.read(i) for i in range(len(file))] == [simple("a")] * 2


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    def rows():
        yield ROW
        raise RuntimeError

    path = tmp_path / "t.jsonl"
    with pytest.raises(RuntimeError):
        write_jsonl(path, rows())
    assert not path.exists()


# ---- mistakes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", [GOOD[:-5], "{", "not json", "{}}", '{"task": nil}', "[" * 100_000, "\udcff"]
)
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "t.jsonl"
    text = f"{GOOD}\n\n{line}\n{GOOD}\n"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"t\.jsonl:3: expected a JSON object"):
        TrajectoryFile(path)
    with pytest.raises(UserError, match=r"t\.jsonl:3: "):
        list(import_rows(str(path), {}, False))


MALFORMED = [
    (3, "expected a JSON object"),
    ([ROW], "expected a JSON object"),
    ({}, "task must be a string"),
    ({"task": "t"}, "no field 'observations'; has task"),
    ({**ROW, "task": 5}, "task must be a string.*, got 5"),
    ({**ROW, "observations": "ab"}, "observations must be a list of strings"),
    ({**ROW, "actions": [1, 2]}, "actions must be a list of strings"),
    ({**ROW, "actions": None}, "no field 'actions'"),
    ({**ROW, "actions": [], "observations": []}, "actions is empty"),
    ({**ROW, "observations": ["only one"]}, "1 observations for 2 actions"),
    ({**ROW, "observations": list("abcd")}, "4 observations for 2 actions"),
    ({**ROW, "admissible": [["a"]]}, "1 admissible lists for 2 actions"),
    ({**ROW, "admissible": 5}, "admissible must be"),
    ({**ROW, "admissible": ["look", "go"]}, "admissible must be"),
    ({**ROW, "admissible": [5, 5]}, "admissible must be"),
    ({**ROW, "admissible": [["a"], [5]]}, "admissible must be"),
    ({**ROW, "success": "false"}, "success must be true, false or absent, got 'false'"),
    ({**ROW, "success": 0.5}, "success must be true, false or absent, got 0.5"),
    ({**ROW, "task": "\ud83d"}, "task must be a string"),  # half an emoji: no UTF-8, no tokens
    ({**ROW, "actions": ["a", "\ud83d"]}, "actions must be a list of strings"),
]


@pytest.mark.parametrize(("row", "message"), MALFORMED, ids=[m for _, m in MALFORMED])
def test_a_malformed_row_is_named(tmp_path, row, message):
    path = tmp_path / "t.jsonl"
    path.write_text(f"{GOOD}\n{json.dumps(row)}\n")
    with pytest.raises(UserError, match=rf"t\.jsonl:2: {message}"):
        TrajectoryFile(path)
    with pytest.raises(UserError, match=rf"t\.jsonl:2: {message}"):
        list(import_rows(str(path), {}, False))


def test_bad_rows_are_skipped_and_counted_where_wanted(tmp_path, capsys):
    path = tmp_path / "t.jsonl"
    second = json.dumps(to_row(simple("b")))
    path.write_text(f"{GOOD}\n{GOOD[:-5]}\n3\n{{}}\n{second}\n")
    assert [t.id for t in import_rows(str(path), {}, True)] == ["a", "b"]
    told = capsys.readouterr().out
    assert "3 of 5 rows skipped as malformed" in told
    file = TrajectoryFile(path, skip_bad_rows=True)
    assert [file.read(i).id for i in range(len(file))] == ["a", "b"]
    told = capsys.readouterr().out
    assert "3 rows skipped as malformed" in told


@pytest.mark.parametrize("text", ["", "\n", "{}\n3\n"])
def test_a_file_with_nothing_usable_is_an_error(tmp_path, text):
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=r"t\.jsonl: no usable"):
        TrajectoryFile(path, skip_bad_rows=True)
    with pytest.raises(UserError, match=r"t\.jsonl: no usable"):
        list(import_rows(str(path), {}, True))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        TrajectoryFile(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        list(import_rows(str(tmp_path / "none.jsonl"), {}, False))


# ---- the index -----------------------------------------------------------------------------


def test_failed_trajectories_are_left_out_and_counted(tmp_path):
    file = write(
        tmp_path / "t.jsonl",
        simple("good", success=True),
        simple("bad", success=False),
        simple("unknown", success=None),
        simple("worse", success=False),
    )
    assert file.failed == 2 and len(file) == 2
    assert [state.id for state, _ in file.states("train")] == [
        *("good#0", "good#1", "unknown#0", "unknown#1"),
    ]
    with pytest.raises(UserError, match="no usable trajectory"):
        write(tmp_path / "f.jsonl", simple("bad", success=False))


def test_states_of_a_split(tmp_path):
    file = write(
        tmp_path / "t.jsonl",
        simple("a", 3),
        simple("b", 2, split="id"),
        simple("c", 1, split="ood"),
        simple("d", 2),
    )
    assert len(file.states("train")) == 5 and len(file.states("id", "ood")) == 3
    assert [s.id for s, _ in file.states("id", "ood")] == ["b#0", "b#1", "c#0"]
    assert len(file.states("none")) == 0 and list(file.states("none")) == []


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=5),
    st.integers(1, 7),
    st.integers(0, 2**31),
    st.integers(0, 3),
)
@settings(max_examples=50)
def test_batches_visit_every_state_once_an_epoch(tmp_path_factory, lengths, size, seed, together):
    path = tmp_path_factory.mktemp("batch") / "t.jsonl"
    file = write(path, *(simple(f"t{i}", n) for i, n in enumerate(lengths)))
    states, n = file.states("train"), sum(lengths)
    every = sorted(state.id for state, _ in states)
    epochs = 3
    steps = -(-epochs * n // size)
    stream = [pair for step in range(steps) for pair in states.batch(step, size, seed, together)]
    assert len(stream) == steps * size
    for epoch in range(epochs):
        assert sorted(s.id for s, _ in stream[epoch * n : (epoch + 1) * n]) == every
    # a function of its arguments: another object, asked in another order, answers the same
    again = TrajectoryFile(path).states("train")
    for step in reversed(range(steps)):
        assert again.batch(step, size, seed, together) == stream[step * size : (step + 1) * size]


@pytest.mark.parametrize(("together", "runs"), [(1, 9), (2, 6), (3, 4), (0, 3)])
def test_neighbours_stand_beside_each_other(tmp_path, together, runs):
    file = write(tmp_path / "t.jsonl", *(simple(f"t{i}", n) for i, n in enumerate([5, 3, 1])))
    batch = file.states("train").batch(0, 9, 4, together)
    places = [(state.id.split("#")[0], int(state.id.split("#")[1])) for state, _ in batch]
    follows = [a[0] == b[0] and a[1] + 1 == b[1] for a, b in pairwise(places)]
    assert 9 - sum(follows) <= runs  # two runs may meet by chance
    if together != 1:
        starts = [b for b, follow in zip(places[1:], follows) if not follow]
        assert all(at % (together or 9) == 0 for _, at in [places[0], *starts])
    earlier = file.states("train").batch(0, 9, 4)
    assert together != 1 or batch == earlier


def test_the_order_depends_on_epoch_and_seed(tmp_path):
    states = write(tmp_path / "t.jsonl", simple("a", 30)).states("train")
    orders = [
        tuple(state.id for state, _ in states.batch(step, 30, seed))
        for step, seed in [(0, 0), (1, 0), (0, 1)]
    ]
    assert len({*orders, tuple(sorted(orders[0]))}) == 4
    assert len({frozenset(order) for order in orders}) == 1


def test_a_large_file_is_indexed_in_little_memory(tmp_path):
    path = tmp_path / "large.jsonl"
    steps = tuple(Step(f"{i} " + "x" * 1000, "look") for i in range(10))
    large = Trajectory("t", "task", steps)
    count = 3000
    write_jsonl(path, (to_row(dataclasses.replace(large, id=str(i))) for i in range(count)))
    assert path.stat().st_size > 30e6
    tracemalloc.start()
    file = TrajectoryFile(path)
    state, _ = file.states("train")[10 * count - 1]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert state.id == f"{count - 1}#9" and len(file) == count
    assert peak < 3e6  # a tenth of the file


# ---- other sources -------------------------------------------------------------------------


def test_parquet_with_other_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "t.parquet"
    table = {
        "instruction": ["put", "take"],
        "seen": [["a", "b"], ["c"]],
        "actions": [["x", "y"], ["z"]],
        "admissible": [[["x"], ["y", "z"]], None],
        "success": [True, None],
    }
    datasets.Dataset.from_dict(table).to_parquet(path)
    columns = {"task": "instruction", "observations": "seen"}
    assert list(import_rows(str(path), columns, False)) == [
        Trajectory("row-1", "put", (Step("a", "x", ("x",)), Step("b", "y", ("y", "z"))), True),
        Trajectory("row-2", "take", (Step("c", "z"),)),
    ]
    with pytest.raises(
        UserError, match=r"t\.parquet row 1: no column 'goal'; has instruction, seen"
    ):
        list(import_rows(str(path), {"task": "goal"}, False))
    with pytest.raises(UserError, match=r"t\.parquet row 1: .*task"):
        list(import_rows(str(path), {}, False))


def test_a_parquet_file_that_is_none_is_named(tmp_path):
    pytest.importorskip("datasets")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"no parquet")
    for path in (broken, tmp_path / "none.parquet"):
        with pytest.raises(UserError, match=f"env.trajectories: cannot load '{path}'"):
            list(import_rows(str(path), {}, False))


def test_columns_of_a_jsonl_file(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"goal": "put", "obs": ["a"], "actions": ["x"]}) + "\n")
    columns = {"task": "goal", "observations": "obs"}
    assert list(import_rows(str(path), columns, False)) == [
        Trajectory("row-1", "put", (Step("a", "x"),))
    ]
    with pytest.raises(UserError, match=r"t\.jsonl:1: no column 'aim'; has goal, obs, actions"):
        list(import_rows(str(path), {"task": "aim"}, False))
    with pytest.raises(UserError, match="no usable row"):
        list(import_rows(str(path), {"task": "aim"}, True))


@given(st.lists(TEXT, min_size=1, max_size=30), st.floats(0, 1))
def test_a_task_is_held_out_as_a_whole(tasks, share):
    given_ = [dataclasses.replace(simple(f"t{i}"), task=task) for i, task in enumerate(tasks)]
    parted = list(hold_out(given_, share))
    side = {}
    for before, after in zip(given_, parted, strict=True):
        assert after.split in ("train", "heldout")
        assert side.setdefault(after.task, after.split) == after.split
        assert dataclasses.replace(after, split=before.split) == before
    # a larger share only moves tasks over to the held-out side
    for one, more in zip(parted, hold_out(given_, min(1, share + 0.3)), strict=True):
        assert one.split == "train" or more.split == "heldout"


def test_the_held_out_share_is_about_what_was_asked_for():
    given_ = [dataclasses.replace(simple("t"), task=f"task {i}") for i in range(2000)]
    for share in (0.0, 0.2, 1.0):
        held = sum(t.split == "heldout" for t in hold_out(given_, share))
        assert held / 2000 == pytest.approx(share, abs=0.03 if share == 0.2 else 0)


class Corridor:
    """An environment: walk right `n` times. Its expert loses its way at `lost`."""

    splits = ("train",)

    def __init__(self, lost: int = 99) -> None:
        self.lost = lost

    def tasks(self, split, n, seed):
        return [f"{split}-{i + 1}" for i in range(n)]

    def reset(self, task_id):
        self.at, self.n = 0, int(task_id.rpartition("-")[2])
        return f"walk {self.n}", self._turn()

    def _turn(self):
        done = self.at == self.n
        return Turn(f"at {self.at}", done, success=done)

    def step(self, action):
        self.at += action == "right"
        return self._turn()

    def admissible(self):
        return ("left", "right")

    def expert_action(self):
        return None if self.at == self.lost else "right"

    def close(self):
        pass


def test_collect_records_the_expert():
    _, second = collect(Corridor(), "train", 2, seed=0, source="test")
    listed = ("left", "right")
    steps = (Step("at 0", "right", listed), Step("at 1", "right", listed))
    assert second == Trajectory("train-2", "walk 2", steps, True, "train", "test")


def test_collect_marks_an_expert_that_is_lost():
    first, second = collect(Corridor(lost=1), "train", 2, seed=0, source="")
    assert first.success and not second.success and len(second.steps) == 1
    assert list(collect(Corridor(lost=0), "train", 2, seed=0, source="")) == []


def test_read_jsonl_gives_lines_and_offsets(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes('{"a": "é"}\n\n{"b": 1}'.encode())
    assert list(read_jsonl(path)) == [(1, 0, {"a": "é"}), (3, 13, {"b": 1})]


# ---- files given as env.trajectories -------------------------------------------------------


@pytest.mark.parametrize("name", ["t.json", "t.jsonl.gz", "t.data"])
def test_a_file_that_exists_is_read_and_not_looked_up(name, tmp_path):
    rows = [to_row(simple("a")), to_row(simple("b"))]
    text = json.dumps(rows, indent=1).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    read = list(import_rows(str(tmp_path / name), {}, False))
    assert [t.id for t in read] == ["a", "b"]


def test_a_file_that_is_missing_is_not_looked_up(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        list(import_rows(str(tmp_path / "none.json"), {}, False))


@pytest.mark.parametrize("name", ["log.jsonl", "log.json"])
@pytest.mark.parametrize("skip", [True, False])
def test_a_raw_log_gets_the_way_to_import_it(name, skip, tmp_path):
    turns = [{"role": "user", "content": "Win."}, {"role": "assistant", "content": "go"}]
    (tmp_path / name).write_text(json.dumps({"messages": turns}))
    with pytest.raises(UserError, match=rf"\(OpenAI chat messages\).* miniact import .*{name}"):
        list(import_rows(str(tmp_path / name), {}, skip))


def test_tools_are_kept(tmp_path):
    tools = ({"type": "function", "function": {"name": "f"}},)
    file = write(tmp_path / "t.jsonl", dataclasses.replace(simple("a"), tools=tools))
    assert file.read(0).tools == tools
    assert next(hold_out([file.read(0)], 1.0)).tools == tools
    with pytest.raises(UserError, match="x: tools must be a list of objects"):
        from_row({**ROW, "tools": [1]}, "x")
