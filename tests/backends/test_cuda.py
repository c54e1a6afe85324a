"""The policy on a card that is not there (tests/fake_cuda.py): what a GPU would stumble over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_model

torch = pytest.importorskip("torch")
if shutil.which("g++") is None:
    pytest.skip("pretending a card needs g++", allow_module_level=True)
if torch.version.cuda or sys.platform != "linux":
    pytest.skip("pretending a card needs a PyTorch for Linux without CUDA", allow_module_level=True)

SCRIPT = Path(__file__).parents[1] / "fake_cuda.py"
LAYERS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("cuda")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": LAYERS}
    write_model(folder / "model", "llama-untied", tokenizer, **sizes)
    return folder


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), *arguments],
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("arguments", "precision", "launches"),
    [
        (("lora", "checkpointing"), ("bfloat16", "flash"), 90),
        (("qlora", "checkpointing"), ("bfloat16", "flash"), 90),
        (("full",), ("float32", "efficient"), 50),
    ],
    ids=lambda x: str(x),
)
def test_everything_runs_on_a_card(folder, arguments, precision, launches):
    """Load, sample, score, train, save, resume with the same next step, run out of memory."""
    seen = run(folder, *arguments)
    assert seen["refused"] == [False, True, True]  # a number may be added, a tensor of the CPU not
    dtype, attention = precision
    assert seen["dtype"] == f"torch.{dtype}"
    assert seen["attention"] == [f"_{attention}_attention_backward"]  # and no plainer way beside it
    assert [len(t) for answers in seen["tokens"] for t in answers] == [5] * 6
    assert seen["reference"] and seen["next"] > 0
    assert seen["resumed"] == seen["next"]
    assert seen["after out of memory"] == pytest.approx(seen["as without"], rel=1e-3)
    assert seen["budget"] == 4096
    # of one decode step: what is launched costs more than what is computed, up to some 64 rows
    assert seen["launches"] <= LAYERS * launches + 40


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "qlora", "full"])
def test_the_whole_recipe_runs_on_a_card(folder, adapter):
    """Collect, pairs, IL, ACT, RL, evaluations, and a resume that ends the same."""
    seen = run(folder, adapter, "recipe")
    assert seen == {"stages": ["base", "1-il", "2-act", "3-rl"], "same": True}
