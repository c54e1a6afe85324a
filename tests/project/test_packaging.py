"""What a user gets: the wheel holds the whole package, and runs far from the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NO_INDEX = ["-m", "pip", "--disable-pip-version-check", "--no-input"]


def call(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing is left behind and nothing stale gets in."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("miniact", "tiny_configs", "tests", "tutorials", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out), "."]
    call(*NO_INDEX, "wheel", *options, cwd=copy)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The wheel, unpacked into a folder of its own."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    call(*NO_INDEX, "install", *options, cwd=folder)
    return folder


def files_of(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}


def test_the_wheel_holds_every_file_of_the_package(wheel):
    wanted = {
        f"miniact/{file.relative_to(ROOT / 'miniact').as_posix()}"
        for file in (ROOT / "miniact").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    wanted |= {f"miniact/tiny_configs/{file.name}" for file in (ROOT / "tiny_configs").iterdir()}
    assert {f for f in files_of(wheel) if ".dist-info/" not in f} == wanted
    for part in ("backends/tiny/model.safetensors", "tools/report/app.js", "method/act.py"):
        assert f"miniact/{part}" in wanted
    assert any(f.startswith("miniact/data/samples/") for f in wanted)


def test_the_wheel_has_the_licence_and_the_metadata(wheel):
    info = f"miniact-{PROJECT['version']}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        assert "MIT License" in archive.read(f"{info}/licenses/LICENSE").decode()
        meta = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        assert (
            "miniact = miniact.cli.main:main" in archive.read(f"{info}/entry_points.txt").decode()
        )
    assert meta["License-Expression"] == "MIT" and meta["Requires-Python"].startswith(">=3.1")
    assert meta["Description-Content-Type"].startswith("text/markdown")
    assert "# miniact" in meta.get_payload()
    for url in meta.get_all("Project-URL", []):
        assert "example" not in url


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size < 5_000_000  # two models, of 1.4 and 2.9 MB


@pytest.fixture
def elsewhere(tmp_path, installed):
    """Run the installed package in an empty folder outside of the repository."""
    assert not tmp_path.is_relative_to(ROOT) and not any(tmp_path.iterdir())

    def run(*command: str) -> str:
        return call(*command, cwd=tmp_path, PYTHONPATH=str(installed))

    run.folder = tmp_path
    return run


def test_the_unpacked_wheel_is_what_is_imported(elsewhere, installed):
    code = (
        "import miniact, miniact.method.act, miniact.envs.household\n"
        "from importlib import metadata\n"
        "import sys; assert miniact.__version__ == metadata.version('miniact')\n"
        "print(*{m.__file__ for n, m in sys.modules.items() if n.startswith('miniact')}, sep='\\n')"
    )
    imported = [Path(line) for line in elsewhere("-c", code).splitlines()]
    assert len(imported) > 5 and all(file.is_relative_to(installed) for file in imported)


def test_help_and_configs_from_an_empty_folder(elsewhere, installed):
    shown = elsewhere(str(installed / "bin" / "miniact"), "--help")  # the script that pip writes
    assert "Agentic Critical Training" in shown
    for config in sorted((ROOT / "tiny_configs").glob("*.yaml")):
        resolved = yaml.safe_load(elsewhere("-m", "miniact.cli", "config", config.stem))
        assert resolved["recipe"]


@pytest.mark.slow
def test_a_run_and_its_report_from_an_empty_folder(elsewhere):
    small = [f"stage.{s}.{size}" for s in ("il", "act", "rl") for size in ("steps=1", "batch=2")]
    small += ["env.train_tasks=6", "env.heldout_tasks=2", "eval.episodes=1", "eval.states=2"]
    small += ["eval.pairs=2", "eval.splits=id"]
    elsewhere("-m", "miniact.cli", "run", "household-plain", "--out", "run", *small)
    results = json.loads((elsewhere.folder / "run" / "results.json").read_text())["results"]
    assert list(results) == ["base", "1-il", "2-act", "3-rl"]
    elsewhere("-m", "miniact.cli", "report", "run")
    assert "<script" in (elsewhere.folder / "run" / "report.html").read_text(encoding="utf-8")
    logs = ["--out", "logs", *small, "env.parallel=1"]
    elsewhere("-m", "miniact.cli", "run", "own-logs", *logs)  # a log that ships in the wheel
    assert (elsewhere.folder / "logs" / "results.json").is_file()


# ---- what stands beside the package ------------------------------------------------------------


def test_the_citation_is_valid_and_names_the_paper():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"authors", "cff-version", "message", "title"} <= cff.keys()  # required by CFF 1.2.0
    assert cff["cff-version"] == "1.2.0" and cff["type"] == "software"
    assert cff["version"] == PROJECT["version"] and cff["license"] == PROJECT["license"]
    (paper,) = cff["references"]
    assert {"authors", "title", "type"} <= paper.keys() and paper["year"] == 2026
    assert [a["family-names"] for a in paper["authors"]] == [
        *("Liu", "Liu", "Ho", "Chakraborty", "Wang", "Huang")
    ]
    people = [tuple(sorted(author.items())) for author in paper["authors"]]
    assert len(set(people)) == len(people)  # CFF's schema: no author twice
    assert "2603.08706" in paper["url"]


def test_the_hooks_need_no_network_and_name_what_exists():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = {hook["id"]: hook for hook in config["repos"][0]["hooks"]}
    assert hooks.keys() == {"ruff-check", "ruff-format", "mypy", "reference"}
    tools = {re.split(r"[\[>=<]", need)[0] for need in PROJECT["optional-dependencies"]["dev"]}
    for hook in hooks.values():
        assert hook["language"] == "system" and hook["entry"].split()[0] in tools
    _, file, _, name = hooks["reference"]["entry"].split()
    assert re.search(rf"def test_\w*{name}\b", (ROOT / file).read_text(encoding="utf-8"))
    for path in (
        "miniact/config/sections.py",
        "miniact/experiments/metrics.txt",
        "docs/reference.md",
    ):
        assert (ROOT / path).is_file() and re.search(hooks["reference"]["files"], path)


def test_the_picture_is_small_and_brings_everything_with_it():
    file = ROOT / "docs" / "pipeline.svg"
    text = file.read_text(encoding="utf-8")
    assert len(text) < 10_000
    root = ElementTree.fromstring(text)
    _, _, width, height = map(float, root.get("viewBox", "").split())
    assert (width, height) == (float(root.get("width", 0)), float(root.get("height", 0)))
    assert width <= 600  # so that its letters can be read on a phone
    links = re.findall(r"(?:href|src|url|@import)\W+([^\s\"')]+)", text.replace(root.tag, ""))
    assert all(link == "#tip" or link == "tip" for link in links), links
    said = " ".join(element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text"))
    for word in ("Expert trajectories", "Pairs", "IL", "ACT", "RL", "reward", "ID", "OOD"):
        assert word in said


def test_contributing_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:miniact|tests|docs|tutorials|\.ci)/[\w./]+)`", text)
    named += re.findall(r"\]\(([\w./]+)\)", text)
    assert len(named) > 6
    for name in named:
        assert (ROOT / name).exists(), name
