"""`miniact doctor`: all that works is told, all that is broken on purpose is noticed."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from miniact.backends.checks import tried
from miniact.cli.main import main
from miniact.config.sections import ModelConfig
from miniact.tools import doctor

torch = pytest.importorskip("torch")
CPU = ("model.device=cpu",)


def command(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["doctor", *CPU, *arguments], env={"COLUMNS": "80"})
    assert done.exit_code == code, done.output
    return done.output


def broken(monkeypatch: Any, part: str, change: Any) -> dict[str, doctor.Check]:
    """The checks of a policy, one part of which is wrong."""
    from miniact.backends.torch.policy import TorchPolicy

    right = getattr(TorchPolicy, part)
    monkeypatch.setattr(TorchPolicy, part, lambda self, *a, **k: change(self, right, *a, **k))
    checks = doctor.policy_checks(ModelConfig(device="cpu", backend="torch"))
    return {check.name: check for check in checks}


def test_it_reads_at_80_columns_and_says_that_all_is_well():
    output = command()
    assert max(map(len, output.splitlines())) <= 80
    for word in ("torch", "memory free", "attention", "NF4", "training", "resume", "Java", "well"):
        assert word in output


@pytest.mark.parametrize("backend", ["torch", pytest.param("mlx", marks=pytest.mark.slow)])
def test_json_holds_versions_and_every_check(backend):
    if backend == "mlx" and importlib.util.find_spec("mlx_lm") is None:
        pytest.skip("MLX is not installed")
    report = json.loads(command("--json", "--backend", backend))
    checks = {check["name"]: check for check in report["checks"]}
    assert report["ok"] and report["facts"]["transformers"] and report["facts"]["miniact"]
    for part in ("load", "shared prompt = plain", "together = alone", "checkpoint and resume"):
        assert checks[f"lora: {part}"]["ok"] is True
    assert " ms" in checks["lora: a token of 8 and 64 rows"]["seen"]
    assert sum(check["seconds"] for check in checks.values()) < 60


def a_wrong_score(self: Any, right: Any, groups: Any, *rest: Any) -> Any:
    """As if answers of one group saw each other."""
    scored = right(self, groups, *rest)
    several = [len(g.completions) > 1 for g in groups]
    return [[logp + 0.5 * s for logp in g] for g, s in zip(scored, several)]


def another_answer(self: Any, right: Any, prompts: Any, *rest: Any) -> Any:
    """As if padding were seen."""
    drawn = right(self, prompts, *rest)
    return drawn if len(prompts) == 1 else drawn[::-1]


def no_gradient(self: Any, right: Any, lr: float, norm: float) -> float:
    right(self, 0.0, norm)
    return 0.0


def nothing_read(self: Any, right: Any, file: Any) -> None:
    """As if the moments of the optimizer were forgotten."""
    self.reset_optimizer()


def nothing_loaded(self: Any, right: Any, folder: Any) -> None:
    raise RuntimeError("CUDA error: no kernel image is available\nfor this device")


@pytest.mark.parametrize(
    ("part", "change", "name"),
    [
        ("logprobs", a_wrong_score, "shared prompt = plain"),
        ("sample", another_answer, "together = alone"),
        ("optim_step", no_gradient, "training"),
        ("load_optimizer", nothing_read, "checkpoint and resume"),
        ("load_adapter", nothing_loaded, "checkpoint and resume"),
    ],
)
def test_what_is_broken_is_noticed(monkeypatch, part, change, name):
    check = broken(monkeypatch, part, change)[f"lora: {name}"]
    assert check.ok is False and check.remedy and "\n" not in check.seen


def test_a_failure_is_exit_code_1_and_one_line_with_a_remedy(monkeypatch):
    from miniact.backends.torch import checks

    wrong = lambda device, dtype: (False, "off by 3.1")  # noqa: E731
    monkeypatch.setattr(checks, "_nf4", wrong)
    monkeypatch.setattr(doctor, "policy_checks", lambda model: [])
    output = command(code=1)
    assert "✗" in output and "model.adapter: lora" in output.replace("\n", " ")
    assert "does not work: NF4" in output and "Traceback" not in output


def test_a_driver_without_a_pytorch_for_it_is_said(monkeypatch, tmp_path):
    from miniact.backends.torch import checks

    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.1  Thu\n")
    monkeypatch.setattr(checks, "DRIVER", driver)
    found = {c.name: c for c in checks.device_checks(ModelConfig(device="cpu"))}
    assert found["card"].ok is False and "pytorch.org" in found["card"].remedy
    assert checks.facts(ModelConfig(device="cpu"))["driver"].startswith("570.1")


def test_products_of_4_bits_that_are_wrong_are_noticed(monkeypatch):
    bnb = pytest.importorskip("bitsandbytes")
    from miniact.backends.torch import checks

    right = bnb.matmul_4bit
    monkeypatch.setattr(bnb, "matmul_4bit", lambda *a, **k: right(*a, **k) * 1.1)
    ok, seen = checks._nf4(torch.device("cpu"), torch.float32)
    assert not ok and "1.0e-01" in seen


def test_a_check_that_raises_is_a_failed_one():
    check = tried("this", "do that", lambda: np.zeros(2)[5])  # type: ignore[arg-type,return-value]
    assert check.ok is False and check.seen.startswith("IndexError") and check.remedy == "do that"
