"""bench.py: real steps, TRL's beside ours, and what a user can get wrong."""

from __future__ import annotations

import importlib.util
import json

import pytest
from bench import main, works
from click.testing import CliRunner
from tiny_models import write_model
from worker import Work, make_texts

from miniact import UserError

SMALL = ["-p", "24", "-g", "2", "-c", "4", "--steps", "1"]


def bench(*arguments: str):
    return CliRunner().invoke(main, arguments, env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    return write_model(tmp_path_factory.mktemp("llama"), "llama-tied", tokenizer)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is a dev extra")
def test_against_trl_the_json_holds_the_ratio_and_its_spread(folder, tmp_path):
    file = tmp_path / "bench.json"
    done = bench("--model", str(folder), *SMALL, "--against", "trl", "--json", str(file))
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert found["ratio"]["n"] == 1
    assert 0 < found["ratio"]["min"] <= found["ratio"]["median"] <= found["ratio"]["max"]
    ours, theirs = found["sides"]["miniact"], found["sides"]["trl"]
    expected = theirs["step_s"]["median"] / ours["step_s"]["median"]
    assert found["ratio"]["median"] == pytest.approx(expected)
    assert ours["training_s"]["median"] > 0 and theirs["sampling_s"]["median"] > 0
    assert 0 < ours["training_share_of_matmul"]["median"] < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_a_sweep_measures_every_P_and_G_and_draws_them(backend, tmp_path):
    if backend == "mlx" and importlib.util.find_spec("mlx_lm") is None:
        pytest.skip("MLX is not installed")
    file, plot = tmp_path / "sweep.json", tmp_path / "sweep.png"
    done = bench(
        *("--model", "builtin:tiny", "--backend", backend, "-p", "16,32", "-g", "2,4", "-c", "3"),
        *("--steps", "1", "--json", str(file), "--plot", str(plot)),
    )
    assert done.exit_code == 0, done.output
    results = json.loads(file.read_text())["results"]
    assert [(r["work"]["prompt_tokens"], r["work"]["group_size"]) for r in results] == [
        (p, g) for p in (16, 32) for g in (2, 4)
    ]
    assert all(r["sides"]["miniact"]["peak_above_weights_bytes"] >= 0 for r in results)
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-g", "1"], "at least 2 answers"),
        (["-p", "many"], "expected 512 or 64,512"),
        (["-c", "0"], "at least 1"),
        (["--model", "builtin:huge"], "no built-in model"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    done = bench(*arguments)
    assert done.exit_code == 2
    assert message in done.output and "Traceback" not in done.output


def test_prompts_have_exactly_the_tokens_that_were_asked_for(tokenizer):
    (work,) = works(
        "37",
        "2",
        {
            "model": "builtin:tiny",
            "backend": "torch",
            "adapter": "lora",
            "completion_tokens": 2,
            "steps": 2,
            "seed": 0,
        },
    )
    from miniact.backends.models import find_model, load_tokenizer

    for one in (load_tokenizer(find_model("builtin:tiny")), tokenizer):
        texts = make_texts(one, work)
        assert len(set(texts)) == 3
        assert all(len(one(t)["input_ids"]) == 37 for t in texts)


def test_a_tokenizer_that_cannot_make_the_length_is_named(tokenizer):
    class Double:
        def get_vocab(self):
            return {"a": 0}

        def __call__(self, text):
            return {"input_ids": [0, 0] * len(text.split())}

    work = Work("m", "torch", "lora", 5, 2, 2, 1, 0, 16)
    with pytest.raises(UserError, match="no text of 5 tokens"):
        make_texts(Double(), work)
