"""Turn the tutorials into notebooks with their outputs and plots inside.

    python dev/make_notebooks.py            all of them
    python dev/make_notebooks.py 01 10      these

Needs jupytext, nbclient, nbformat and ipykernel (pip install -e ".[dev]"). Each tutorial is run
from top to bottom in a fresh kernel, with one thread and a fixed hash seed, so that running it
again gives the same file (but for the memory that 10 measures). No clock, no path of this machine
and no half notebook is ever written.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

TUTORIALS = Path(__file__).resolve().parent.parent / "tutorials"
NOTEBOOKS = TUTORIALS / "notebooks"
TIMEOUT = 1800  # seconds a cell; the machine may be busy
INLINE = "module://matplotlib_inline.backend_inline"
KERNEL = {  # the environment of every kernel
    "MPLBACKEND": INLINE,
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "100",
}


def convert(tutorial: Path) -> nbformat.NotebookNode:
    """The cells of a tutorial as a notebook, not run yet. Cells are numbered, not named."""
    notebook = jupytext.read(tutorial, fmt="py:percent")
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02d}", {}
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


def is_kept(output: nbformat.NotebookNode) -> bool:
    return output.get("name") == "stdout" or "image/png" in output.get("data", {})


def write(notebook: nbformat.NotebookNode, file: Path) -> None:
    nbformat.validate(notebook)
    file.parent.mkdir(exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    part.replace(file)


def main(numbers: list[str]) -> int:
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
        try:
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
