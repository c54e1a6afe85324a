"""Turn the tutorials into notebooks with their outputs and plots inside.

    python dev/make_notebooks.py            all of them
    python dev/make_notebooks.py 01 10      these
    python dev/make_notebooks.py --words    only prose or the address has changed: nothing is run

Needs jupytext, nbclient, nbformat and ipykernel (pip install -e ".[dev]"). Each tutorial is run
from top to bottom in a fresh kernel, with one thread and a fixed hash seed, so that running it
again gives the same file (but for the memory that 10 measures). No clock, no path of this machine
and no half notebook is ever written.

A notebook begins with a cell that finds the plots and, as soon as pyproject.toml names the
repository, with a badge that opens it in Colab, where that cell fetches the package too. The code
under "## Solution" is folded.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = ROOT / "tutorials"
NOTEBOOKS = TUTORIALS / "notebooks"
TIMEOUT = 1800  # seconds a cell; the machine may be busy
INLINE = "module://matplotlib_inline.backend_inline"
KERNEL = {  # the environment of every kernel
    "MPLBACKEND": INLINE,
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "100",
    "PYTHONPATH": os.pathsep.join([str(TUTORIALS), os.environ.get("PYTHONPATH", "")]),
}

COLAB = "https://colab.research.google.com"
FIND = """\
# aside/ holds the plots of these pages, out of a reader's way
import sys

sys.path.append("..")"""
FETCH = """\
# Fetch what this page needs where it is missing, as in Colab; in a checkout only aside/ is found
import importlib.util
import sys

if importlib.util.find_spec("miniact") is None:
    !git clone -q --depth 1 {repository} miniact-source
    %pip install -q "./miniact-source{extra}"
    sys.path.append("miniact-source/tutorials")
sys.path.append("..")"""
EXTRAS = {"09": "[mlx]"}
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}  # by Colab, by JupyterLab


def repository() -> str | None:
    """The address of the project as pyproject.toml has it: the only place that names it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(r'^Repository = "(https://github\.com/[\w.-]+/[\w.-]+)"$', text, re.MULTILINE)
    return match and match[1]


def head(tutorial: Path, address: str | None) -> list[tuple[str, str]]:
    """(kind, source) of the cells that a notebook has before those of its tutorial."""
    if address is None:
        return [("code", FIND)]
    there = (
        f"{address.removeprefix('https://')}/blob/main/tutorials/notebooks/{tutorial.stem}.ipynb"
    )
    link = f"{COLAB}/{there.replace('.com', '', 1)}"  # github/OWNER/NAME/blob/…
    badge = f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({link})"
    extra = EXTRAS.get(tutorial.name[:2], "")
    return [("markdown", badge), ("code", FETCH.format(repository=address, extra=extra))]


def convert(tutorial: Path) -> nbformat.NotebookNode:
    """The cells of a tutorial as a notebook, not run yet. Cells are numbered, not named."""
    notebook = jupytext.read(tutorial, fmt="py:percent")
    new = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
    notebook.cells[:0] = [new[kind](source) for kind, source in head(tutorial, repository())]
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    solution = False
    for number, cell in enumerate(notebook.cells):
        solution = solution or cell.source.startswith("## Solution")
        folded = solution and cell.cell_type == "code"
        cell.id, cell.metadata = f"cell-{number:02d}", FOLDED if folded else {}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def run(notebook: nbformat.NotebookNode) -> None:
    """Execute in an empty folder, in a kernel that opens no port. Keeps what was printed, plots.

    Warnings (stderr) and the console's bars (HTML, in a notebook) hold times and paths of this
    machine. Warnings are shown here instead; a run's console also writes to the run's own log.
    """
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty"
        empty.mkdir()
        NotebookClient(
            notebook,
            km=AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{folder}/kernel"),
            timeout=TIMEOUT,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(empty)}},
        ).execute(cleanup_kc=True)  # ends the kernel too
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for output in cell.outputs:
                if output.get("name") == "stderr":
                    print(output.text, file=sys.stderr, end="")
            cell.outputs = [o for o in cell.outputs if is_kept(o)]
    notebook.metadata = {
        "kernelspec": notebook.metadata["kernelspec"],
        "language_info": {"name": "python"},  # without the version of this machine's Python
    }


def keep(notebook: nbformat.NotebookNode, file: Path) -> bool:
    """Take the outputs over from the notebook that is there. False if its code is another."""
    old = nbformat.read(file, as_version=4) if file.is_file() else nbformat.v4.new_notebook()
    ours, theirs = ([c for c in n.cells if c.cell_type == "code"] for n in (notebook, old))
    at = len(theirs) - len(ours) + 1  # the first is that of the head
    if at < 0 or [c.source for c in ours[1:]] != [c.source for c in theirs[at:]]:
        return False
    for number, cell in enumerate(ours):
        cell.execution_count = number + 1
        cell.outputs = theirs[at + number - 1].outputs if number else []
    return True


def is_kept(output: nbformat.NotebookNode) -> bool:
    return output.get("name") == "stdout" or "image/png" in output.get("data", {})


def write(notebook: nbformat.NotebookNode, file: Path) -> None:
    nbformat.validate(notebook)
    file.parent.mkdir(exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    part.replace(file)


def main(arguments: list[str]) -> int:
    words, numbers = "--words" in arguments, [a for a in arguments if a != "--words"]
    tutorials = sorted(TUTORIALS.glob("[0-9][0-9]_*.py"))
    unknown = set(numbers) - {t.name[:2] for t in tutorials}
    if unknown:
        print(f"no tutorial {', '.join(sorted(unknown))}; numbers look like 01", file=sys.stderr)
        return 2
    os.environ.update(KERNEL)
    failed = 0
    for tutorial in tutorials:
        if numbers and tutorial.name[:2] not in numbers:
            continue
        notebook, file = convert(tutorial), NOTEBOOKS / f"{tutorial.stem}.ipynb"
        if words and not keep(notebook, file):
            failed += 1
            print(f"{tutorial.name}: its code has changed; run it: without --words")
            continue
        try:
            if not words:
                run(notebook)
        except CellExecutionError as error:
            failed += 1
            print(f"{tutorial.name}: {error.ename}: {error.evalue}; not written", file=sys.stderr)
            continue
        write(notebook, file)
        print(f"{file.name}: {file.stat().st_size / 1000:.0f} kB")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
