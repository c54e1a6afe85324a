"""bench.py: real steps, TRL's beside ours, and what a user can get wrong."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from bench import gradient_gap, main
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from tiny_models import write_model
from work import Wanted, cut, random_text, tokenizer_of, trajectories, tree

from miniact import UserError

ROOT = Path(__file__).parents[2]
SMALL = ["-p", "24", "-g", "2", "-c", "4", "--steps", "1"]
OF_STATES = ["--trajectory", "household", "-g", "2", "-c", "3", "--steps", "1"]
needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is a dev extra")


def bench(*arguments: str):
    return CliRunner().invoke(main, arguments, env={"COLUMNS": "200"})


def options(**changed):
    plain = {
        "model": "builtin:tiny",
        "layers": 0,
        "path": "builtin:tiny",
        "backend": "torch",
        "adapter": "lora",
        "group_size": 2,
        "completion_tokens": 2,
        "steps": 1,
        "rank": 16,
        "max_tokens": 8192,
        "trl_rows": 2,
        "trl_alone": False,
        "cpu": False,
    }
    return plain | changed


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    return write_model(tmp_path_factory.mktemp("llama"), "llama-tied", tokenizer)


@pytest.mark.slow
@needs_trl
def test_against_trl_the_json_holds_the_ratio_its_spread_and_equal_gradients(folder, tmp_path):
    file = tmp_path / "bench.json"
    done = bench(
        *("--model", str(folder), *SMALL, "--trl-rows", "2", "--against", "trl"),
        *("--json", str(file)),
    )
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert found["ratio"]["n"] == 1
    assert 0 < found["ratio"]["min"] <= found["ratio"]["median"] <= found["ratio"]["max"]
    assert 0 < found["ratio"]["gradient_gap"] < 1e-5  # not the same computation, the same result
    ours, theirs = found["sides"]["miniact"], found["sides"]["trl"]
    expected = theirs["step_s"]["median"] / ours["step_s"]["median"]
    assert found["ratio"]["median"] == pytest.approx(expected)
    assert ours["training_s"]["median"] > 0 and theirs["sampling_s"]["median"] > 0
    assert 0 < ours["training_share_of_matmul"]["median"] < 1.5


@pytest.mark.slow
@needs_trl
@pytest.mark.parametrize("side", ["trl", "trl-lean"])
def test_trl_learns_the_same_from_every_state_of_a_trajectory(side, folder, tmp_path):
    file = tmp_path / "bench.json"
    done = bench(
        *("--model", str(folder), *OF_STATES, "--states", "3", "--trl-rows", "1", "--cpu"),
        *("--against", side, "--json", str(file)),
    )
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert found["work"]["states"] == 3
    assert found["work"]["tree_tokens"] < found["work"]["prompt_tokens"]
    assert found["ratio" if side == "trl" else "ratio_trl-lean"]["gradient_gap"] < 1e-5


@pytest.mark.slow
def test_another_checkout_is_a_side_and_both_stages_are_drawn(tmp_path):
    file, plot = tmp_path / "states.json", tmp_path / "states.png"
    done = bench(
        *("--model", "builtin:tiny", *OF_STATES, "--states", "2,4", "--stage", "il,act"),
        *("--against", str(ROOT), "--json", str(file), "--plot", str(plot)),
    )
    assert done.exit_code == 0, done.output
    results = json.loads(file.read_text())["results"]
    order = [(r["work"]["stage"], r["work"]["states"]) for r in results]
    assert order == [("il", 2), ("il", 4), ("act", 2), ("act", 4)]
    for result in results:
        assert result[f"ratio_{ROOT.name}"]["gradient_gap"] == 0  # the same code
    assert all(r["sides"]["miniact"]["sampling_s"]["median"] == 0 for r in results[:2])
    assert plot.read_bytes().startswith(b"\x89PNG")


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
    assert [(r["work"]["longest_prompt"], r["work"]["group_size"]) for r in results] == [
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
        (["--model", "builtin:tiny", "--layers", "99"], "--layers: expected 1 to"),
        (["--model", "builtin:tiny", "--against", "nowhere"], "another checkout"),
        (["--model", "builtin:tiny", "--against", "trl", "--adapter", "full"], "--adapter lora"),
        ([*OF_STATES, "--stage", "sft"], "--stage: expected act, il"),
        ([*OF_STATES, "--model", "builtin:tiny", "--longest", "9"], "0 of 200 plays"),
        (
            [*OF_STATES, "--model", "builtin:tiny", "--stage", "il", "--against", "trl"],
            "--stage act alone",
        ),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    done = bench(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split()) and "Traceback" not in done.output


def test_a_prompt_has_exactly_the_tokens_that_were_asked_for(tokenizer):
    for one in (tokenizer_of("builtin:tiny"), tokenizer):
        texts = [random_text(one, 37, seed) for seed in range(3)]
        assert len(set(texts)) == 3
        assert all(len(one(t)["input_ids"]) == 37 for t in texts)


def test_a_tokenizer_that_cannot_make_the_length_is_named():
    class Double:
        def get_vocab(self):
            return {"a": 0}

        def __call__(self, text):
            return {"input_ids": [0, 0] * len(text.split())}

    with pytest.raises(UserError, match="no text of 5 tokens"):
        random_text(Double(), 5, 0)


def test_works_of_a_trajectory_are_all_its_states_or_the_first():
    wanted = Wanted("household", count=2, stages=("act", "il"))
    act, il, *_ = works = trajectories(wanted, seed=0, **options())
    assert [bool(work.replies) for work in works] == [False, True, False, True]
    assert len({work.about["trajectory"] for work in works}) == 2
    assert len(il.replies) == len(il.prompts) == len(act.prompts) == act.about["states"]
    (first,) = trajectories(Wanted("household", states=(3,)), seed=0, **options())
    assert first.prompts == act.prompts[:3]
    assert act.row()["prompt_tokens"] == sum(map(len, act.prompts))


def test_tree_counts_once_what_a_prompt_shares_with_the_one_before():
    assert tree([(1, 2, 3), (1, 2, 4, 5), (1, 2, 4, 5, 6)]) == 3 + 2 + 1
    assert tree([(1, 2), (3, 4)]) == 4
    assert tree([(1, 2), (1, 2)]) == 2


def test_a_cut_model_is_the_first_layers(folder, tmp_path):
    kept, whole = (load_file(Path(f) / "model.safetensors") for f in (
        cut(str(folder), 1, tmp_path / "cut"), folder
    ))  # fmt: skip
    assert kept.keys() == {n for n in whole if ".layers." not in n or ".layers.0." in n}
    assert all(np.array_equal(kept[n], whole[n]) for n in kept)
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["num_hidden_layers"] == 1


def test_a_gap_of_gradients_is_relative_and_needs_the_same_weights(tmp_path):
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    save_file({"w": np.array([3.0, 4.0], np.float32)}, files[0])
    save_file({"w": np.array([3.0, 4.5], np.float32)}, files[1])
    save_file({"v": np.array([3.0, 4.5], np.float32)}, files[2])
    assert gradient_gap(files[1], files[0]) == [pytest.approx(0.1)]
    assert gradient_gap(files[1], tmp_path / "none") == []
    with pytest.raises(UserError, match="different weights"):
        gradient_gap(files[2], files[0])
