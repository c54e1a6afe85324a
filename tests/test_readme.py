"""The README does not drift: its commands, its file map, its names and its links are checked."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from miniact.cli import main

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(?:.*&& )?miniact +([a-z].*?)(?:  +#.*)?$", TEXT, re.MULTILINE)


def test_there_are_commands():
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("line", sorted(set(COMMANDS)))
def test_every_command_of_the_readme_is_understood(line):
    name, *arguments = shlex.split(line.partition(" | ")[0], comments=True)
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
        assert hasattr(importlib.import_module(f"miniact.{module}"), name), f"{module}.{name}"


def test_files_that_it_names_exist():
    for name in re.findall(r"`((?:tiny_configs|tutorials|tests|miniact)/[\w./-]+\.\w+)`", TEXT):
        assert (ROOT / name).is_file(), name
