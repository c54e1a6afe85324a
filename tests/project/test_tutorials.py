"""The tutorials: each runs from top to bottom, has its parts, and its notebook is what it says.

A tutorial runs in a process of its own, so that none can disturb another, in an empty folder and
without the hub. What is limited is the CPU time of that process and its children: the clock on the
wall says more about who else uses the machine.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import jupytext
import make_notebooks
import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "tutorials"
TUTORIALS = sorted(FOLDER.glob("[0-9]*.py"))
CPU_SECONDS = 120
WALL_SECONDS = 1800  # only so that nothing hangs for ever
NOTEBOOK_BYTES = 400_000
MACHINE = re.compile(
    r"/root\b|/tmp\b|/home\b|/Users\b|/var/folders\b|site-packages|\bat 0x[0-9a-f]+"
)

each = pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda p: p.stem)


def run(tutorial: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(tutorial)],
        cwd=folder,
        env={**os.environ, "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=WALL_SECONDS,
    )


def cpu_seconds() -> float:
    """Of all child processes that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read(tutorial: Path) -> tuple[str, str]:
    """(all prose, all code)"""
    cells = jupytext.read(tutorial, fmt="py:percent").cells
    prose = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    return prose, "\n".join(c.source for c in cells if c.cell_type == "code")


def notebook_of(tutorial: Path) -> Any:
    file = FOLDER / "notebooks" / f"{tutorial.stem}.ipynb"
    if not file.is_file():
        pytest.fail(f"{file.name} is missing; python dev/make_notebooks.py {tutorial.name[:2]}")
    return nbformat.read(file, as_version=4)


def test_there_are_eleven():
    assert [t.name[:2] for t in TUTORIALS] == [f"{n:02d}" for n in range(11)]


@pytest.mark.slow
@each
def test_runs_from_top_to_bottom_in_two_minutes_of_cpu(tutorial, tmp_path):
    before = cpu_seconds()
    done = run(tutorial, tmp_path)
    spent = cpu_seconds() - before
    if done.returncode and "pip install 'miniact[mlx]'" in done.stderr and not os.environ.get("CI"):
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr[-2000:]
    assert spent < CPU_SECONDS, f"took {spent:.0f} s of CPU time"
    assert not list(tmp_path.iterdir()), "a tutorial writes to a temporary folder of its own"


def test_without_mlx_the_mac_tutorial_says_so_in_one_line(tmp_path):
    for name in ("mlx", "mlx_lm"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('hidden by a test')\n")
    tutorial = FOLDER / "09_on_a_mac_with_mlx.py"
    done = run(tutorial, tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and not done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert "pip install 'miniact[mlx]'" in line


@each
def test_has_every_part(tutorial):
    prose, code = read(tutorial)
    assert prose.startswith(f"# {tutorial.name[:2]} · "), "its number and title"
    assert "**The question.**" in prose.split("\n## ")[0]
    assert re.search(r"\$[^$]+\$", prose), "an equation"
    assert "assert " in code
    assert "**What you should see.**" in prose
    assert prose.count("## Exercise\n") == 1 == prose.count("## Solution\n")
    *_, exercise, solution = re.split("^## (?:Exercise|Solution)\n", prose, flags=re.MULTILINE)
    assert exercise.strip() and solution.strip() and "\n## " not in solution


@each
def test_the_solution_stands_at_the_end_in_cells_of_its_own(tutorial):
    cells = jupytext.read(tutorial, fmt="py:percent").cells
    (at,) = [i for i, c in enumerate(cells) if c.source.startswith("## Solution\n")]
    assert any("## Exercise\n" in c.source for c in cells[:at])
    after = [c.source for c in cells[at:] if c.cell_type == "code"]
    assert any("assert " in source for source in after), "the solution is checked"
    assert not [c for c in cells[:at] if c.cell_type == "code" and "solution" in c.source]


@each
def test_imports_public_names_only(tutorial):
    _, code = read(tutorial)
    for line in re.findall(r"^(?:from|import) .*?(?:\([^)]*\)|$)", code, re.M | re.S):
        assert not re.search(r"[\s.,(]_[a-z]", line), line
        assert not re.search(r"\b(tests|conftest|tiny_models|fakes|measure_peak)\b", line), line


@each
def test_notebook_is_the_tutorial(tutorial):
    """Remedy: python dev/make_notebooks.py NN"""
    ours = jupytext.read(tutorial, fmt="py:percent").cells
    theirs = [(c.cell_type, c.source) for c in notebook_of(tutorial).cells]
    head = make_notebooks.head(tutorial, make_notebooks.repository())
    assert theirs == head + [(c.cell_type, c.source) for c in ours]


ADDRESS = "https://github.com/someone/some.name"


def test_with_an_address_a_notebook_opens_in_colab_and_fetches_what_is_missing():
    (_, badge), (kind, fetch) = make_notebooks.head(TUTORIALS[0], ADDRESS)
    assert kind == "code" and f"git clone -q --depth 1 {ADDRESS} " in fetch
    (link,) = re.findall(r"^\[!\[Open in Colab\]\(\S+?\)\]\((\S+)\)$", badge)
    start, _, rest = link.partition("/github/someone/some.name/blob/main/")
    assert start == "https://colab.research.google.com" and rest.endswith(".ipynb")
    assert (FOLDER.parent / rest).is_file()


def test_the_install_cell_does_nothing_where_the_package_is(tmp_path):
    """Run as Python, each shell line an error: none may be reached."""
    for tutorial in TUTORIALS:
        source = make_notebooks.head(tutorial, ADDRESS)[-1][1]
        code = re.sub(r"^( *)[!%].*$", r"\1raise SystemExit('reached')", source, flags=re.MULTILINE)
        assert code.count("reached") == 2
        exec(code + "\nsys.path.remove('..')", {})


def test_the_address_stands_in_pyproject_alone():
    """Nowhere else, so that one line changes all badges."""
    address = make_notebooks.repository()
    pages = [*FOLDER.glob("*.py"), FOLDER / "README.md", *(FOLDER.parent / "dev").glob("*.py")]
    for page in pages if address else []:
        assert address not in page.read_text(encoding="utf-8"), page.name


def test_words_alone_keep_the_outputs_and_other_code_does_not():
    tutorial = TUTORIALS[0]
    file = FOLDER / "notebooks" / f"{tutorial.stem}.ipynb"
    notebook = make_notebooks.convert(tutorial)
    notebook.cells[1].source += "\n\nOne sentence more."
    assert make_notebooks.keep(notebook, file)
    theirs = notebook_of(tutorial)
    assert [c.get("outputs") for c in notebook.cells] == [c.get("outputs") for c in theirs.cells]
    notebook.cells[-1].source += "\nprint('and more code')"
    assert not make_notebooks.keep(notebook, file)


@each
def test_notebook_shows_what_a_run_gave(tutorial):
    notebook = notebook_of(tutorial)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1)), "run in order, once"
    outputs = [o for c in code for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    images = [o for o in outputs if "image/png" in o.get("data", {})]
    assert images
    for output in outputs:
        told = {**output.get("data", {}), "text": output.get("text", "")}
        said = json.dumps({kind: text for kind, text in told.items() if kind != "image/png"})
        assert not MACHINE.search(said), MACHINE.search(said)


@each
def test_every_cell_that_draws_shows_its_picture(tutorial):
    for cell in notebook_of(tutorial).cells:
        draws = re.search(r"^draw_\w+\(|\bpanels\(|plt\.subplots\(", cell.source, re.MULTILINE)
        if cell.cell_type == "code" and draws:
            assert any("image/png" in o.get("data", {}) for o in cell.outputs), cell.source


@each
def test_notebook_is_small_and_repeats(tutorial):
    notebook = notebook_of(tutorial)
    file = FOLDER / "notebooks" / f"{tutorial.stem}.ipynb"
    assert file.stat().st_size < NOTEBOOK_BYTES
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert [c.id for c in notebook.cells] == [f"cell-{n:02d}" for n in range(len(notebook.cells))]
    (at,) = [i for i, c in enumerate(notebook.cells) if c.source.startswith("## Solution\n")]
    for i, cell in enumerate(notebook.cells):  # folded from the solution on, and no times
        folded = i > at and cell.cell_type == "code"
        assert cell.metadata == (make_notebooks.FOLDED if folded else {})


def test_no_notebook_without_its_tutorial():
    notebooks = {f.stem for f in (FOLDER / "notebooks").glob("*")}
    assert notebooks <= {t.stem for t in TUTORIALS}
