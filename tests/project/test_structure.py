"""The shape of the code: rooms that import downward, short modules, array libraries in one room."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "miniact"
FILES = sorted(PACKAGE.rglob("*.py"))
TOWER = (  # each imports only from those before it; "" is the package itself: errors, the API
    *("", "types", "config", "backends", "runs", "envs", "data", "method", "evaluation"),
    *("experiments", "tools", "cli"),
)
LONGEST_MODULE, LONGEST_FUNCTION = 360, 45  # lines
LONGER = {"household.py": 450}  # a whole world


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    if file == PACKAGE / "__init__.py":
        return found  # the API, imported when asked for: test_api.py
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module}
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_torch_and_mlx_stay_in_the_backends(file):
    if "backends" in file.parts:
        return
    roots = {name.partition(".")[0] for name in imports(file)}
    assert not roots & {"torch", "mlx", "mlx_lm", "peft", "bitsandbytes", "accelerate"}


def room(module: str) -> str:
    """The folder of a module, or "" for miniact itself and what it holds."""
    name = f"{module}.".split(".")[1]
    return name if name in TOWER else ""


def test_a_reader_finds_twelve_entries():
    entries = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert sorted(path.stem for path in entries) == sorted(["__init__", *TOWER[1:]])


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_run_downward(file):
    here = TOWER.index(room(module_name(file)))
    ours = [name for name in imports(file) if name.split(".")[0] == "miniact"]
    assert not [name for name in ours if TOWER.index(room(name)) > here]


def test_there_are_no_import_circles():
    names = {module_name(f) for f in FILES}
    graph = {module_name(f): imports(f) & names - {module_name(f)} for f in FILES}
    done: set[str] = set()
    while ready := {m for m, needs in graph.items() if m not in done and needs <= done}:
        done |= ready
    assert done == names, f"in a circle: {sorted(names - done)}"


def test_modules_and_functions_stay_readable():
    for file in FILES:
        lines = file.read_text().splitlines()
        most = LONGER.get(file.name, LONGEST_MODULE)
        assert len(lines) <= most, f"{file.name} has {len(lines)} lines"
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef):
                size = (node.end_lineno or 0) - node.lineno + 1
                assert size <= LONGEST_FUNCTION, f"{file.name}:{node.name} has {size} lines"


def test_nothing_unsafe_is_used():
    for file in FILES:
        text = file.read_text()
        assert not re.search(
            r"\bpickle\b\s*\.|import pickle|torch\.load\(|shell=True|(?<!\.)\beval\(", text
        )
        assert "trust_remote_code=True" not in text


def test_help_imports_no_array_library():
    code = (
        "import sys, miniact.cli.main\n"
        "bad = {'torch', 'mlx', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
