"""README and docs do not drift: commands, file map, names, links and measured tables."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from miniact.cli.main import main
from miniact.experiments.table import describe, markdown, whole_page

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NEW = "extending.md"  # names what its reader adds; test_extending.py runs it
ALL = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != NEW)
COMMANDS = re.findall(
    r"^(?:.*&& |[A-Z_]+=\S+ )?miniact +([a-z].*?)(?:  +#.*)?$",
    re.sub(r"\\\n *", "", ALL),  # a line that goes on
    re.MULTILINE,
)


def test_there_are_commands():
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("line", sorted(set(COMMANDS)))
def test_every_command_of_the_readme_is_understood(line):
    name, *arguments = shlex.split(re.split(r" [|>] ", line)[0], comments=True)
    command = main.commands[name]
    with click.Context(main) as parent:
        command.make_context(name, arguments, parent=parent)


def test_the_file_map_is_complete():
    for file in (ROOT / "miniact").rglob("*.py"):
        if file.name != "__init__.py":
            name = file.relative_to(ROOT / "miniact").as_posix()
            assert f"`{name}`" in TEXT, f"{name} is missing from the README's file map"


def test_every_function_that_it_names_exists():
    import importlib

    for module, name in re.findall(r"\| `([a-z]+)\.(?!py`)(\w+)` \|", TEXT):
        assert hasattr(importlib.import_module(f"miniact.method.{module}"), name), (
            f"{module}.{name}"
        )


def test_files_that_it_names_exist():
    for name in re.findall(r"`((?:tiny_configs|tutorials|tests|miniact)/[\w./-]+\.\w+)`", ALL):
        assert (ROOT / name).is_file(), name


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
    assert markdown(measured) in TEXT and describe(measured) in TEXT.replace("\n", " ")
    whole = json.loads((folder / "all-rows.json").read_text())
    assert (folder / "all-rows.md").read_text() == whole_page(whole)
    assert all(row in whole["rows"] for row in measured["rows"])
