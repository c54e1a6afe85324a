"""Examples in docstrings are run, so they cannot drift. (Not in backends: those import torch.)"""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import miniact

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(miniact.__path__, "miniact.")
    if not name.startswith("miniact.backends")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.failed == 0
    assert bool(result.attempted) == (">>> " in inspect.getsource(module))
