"""Every tutorial runs from top to bottom, its assertions included."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parent.parent / "tutorials").glob("[0-9]*.py"))


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda p: p.stem)
def test_tutorial(tutorial):
    assert "# %% [markdown]" in tutorial.read_text()
    runpy.run_path(str(tutorial), run_name="__main__")
