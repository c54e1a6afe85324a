"""README and docs do not drift: commands, file map, names, links and measured tables."""

from __future__ import annotations

import ast
import importlib
import json
import os
import pkgutil
import re
import shlex
import textwrap
from pathlib import Path

import click
import pytest

from miniact.cli.main import main
from miniact.experiments.table import short_markdown, whole_page

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "tutorials/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
NEW = "extending.md"  # names what its reader adds; test_extending.py runs it
ALL = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != NEW)
COMMANDS = re.findall(
    r"^(?:.*&& |[A-Z_]+=\S+ )?miniact +([a-z].*?)(?:  +#.*)?$",
    re.sub(r"\\\n *", "", ALL),  # a line that goes on
    re.MULTILINE,
)

ROOMS = sorted(init.parent for init in (ROOT / "miniact").glob("*/**/__init__.py"))
OUTSIDE = ("runs/", "stages/", "tensorboard/", "convert_hf")  # what a run leaves; llama.cpp's


def test_there_are_commands():
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("line", sorted(set(COMMANDS)))
def test_every_command_of_the_readme_is_understood(line):
    name, *arguments = shlex.split(re.split(r" [|<>] ", line)[0], comments=True)
    command = main.commands[name]
    with click.Context(main) as parent:
        command.make_context(name, arguments, parent=parent)


def test_it_is_short_and_its_code_fits_the_column_of_github():
    assert TEXT.count("\n") <= 130 and len(TEXT.split()) <= 1350
    blocks = re.findall(r"^```\w*\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert max(len(line) for block in blocks for line in block.splitlines()) <= 97


def test_the_tree_names_every_room():
    tree = re.search(r"^```\nminiact/\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    named = re.findall(r"^  (\S+?)/? {2,}\S", tree[1], re.MULTILINE)
    there = {path.name for path in (ROOT / "miniact").iterdir() if path.name != "__pycache__"}
    assert sorted(named) == sorted(there)


def test_the_code_that_it_shows_is_that_of_act_loop():
    (code,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    whole = (ROOT / "act_loop.py").read_text(encoding="utf-8")
    assert textwrap.indent(code, "    ") in whole and code.count("\n") > 10


@pytest.mark.parametrize("room", ROOMS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_room_says_what_its_files_are(room):
    told = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""
    files = {f.name for f in room.glob("*.py")} - {"__init__.py", "__main__.py"}
    files |= {f"{f.name}/" for f in room.iterdir() if f.is_dir() and f.name != "__pycache__"}
    named = re.findall(r"^(\w+(?:\.py|/)) +\S", told, re.MULTILINE)
    assert sorted(named) == sorted(files)


ADDED = {name for page in PAGES for name in re.findall(r"^# (\S+\.py)$", page.read_text(), re.M)}
COPIED = [re.findall(r"^cp (\S+\.py) (\S+/)$", page.read_text(), re.M) for page in PAGES]
ADDED |= {folder + name for copies in COPIED for name, folder in copies}
ADDED |= {os.path.basename(name) for name in ADDED}  # what extending.md makes


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_that_it_names_exist(page):
    """A path from the root, from `miniact/` or from the page; a name alone is in `method/`."""
    roots = (ROOT, ROOT / "miniact", ROOT / "miniact" / "method", page.parent)
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w./-])(\w[\w.-]*(?:/[\w.-]+)*(?:\.py|/))(?=[`,;:\s)])", text):
        known = name in ADDED or any((root / name).exists() for root in roots)
        assert known or name.startswith(OUTSIDE), name


CODE = [f for room in ("miniact", "dev", "tutorials") for f in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize("file", CODE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_that_the_code_names_exist(file):
    """In comments and docstrings: from the root, from `miniact/` or a room of it, or beside it."""
    rooms = [room for room in (ROOT / "miniact").iterdir() if room.is_dir()]
    roots = (ROOT, ROOT / "miniact", file.parent, *rooms)
    text = file.read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w./-])([a-z]\w*(?:/\w+)*\.py)\b", text):
        assert any((root / name).exists() for root in roots), name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_names_that_it_gives_exist(page):
    """`miniact.module.name`, and `module.name` of a module of method/."""
    text = page.read_text(encoding="utf-8")
    files = {f.stem for f in (ROOT / "miniact" / "method").glob("[a-z]*.py")}
    modules = "|".join(files - {"pairs", "stage"})  # sections of the config have these names
    for module, name in re.findall(rf"`(?:miniact\.method\.)?({modules})\.(\w+)", text):
        found = importlib.import_module(f"miniact.method.{module}")
        assert name == "py" or hasattr(found, name), f"{module}.{name}"
    for dotted in re.findall(r"(?<!\w)miniact((?:\.\w+)+)", text):
        if f"miniact{dotted.replace('.', '/')}.py" not in ADDED:
            pkgutil.resolve_name(f"miniact{dotted}")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r'(?<!\\)\]\(([^)\s]+)\)|src="([^"]+)"', text):
        name = "".join(target).partition("#")[0]
        if name and not name.startswith("http"):
            assert (page.parent / name).exists(), f"{page.name}: {name}"


def test_the_results_are_those_of_the_comparison():
    folder = ROOT / "docs" / "household"
    measured = json.loads((folder / "comparison.json").read_text())
    assert len(measured["seeds"]) >= 5
    assert short_markdown(measured) in TEXT
    assert short_markdown(measured) in (folder / "README.md").read_text(encoding="utf-8")
    whole = json.loads((folder / "all-rows.json").read_text())
    assert (folder / "all-rows.md").read_text() == whole_page(whole)
    assert all(row in whole["rows"] for row in measured["rows"])
