"""Every shipped config runs end to end, with a tiny random model in the place of the real one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from miniact.cli.main import main
from miniact.config import load_config
from miniact.method.pairs import pair_row
from miniact.runs.files import write_jsonl
from miniact.types import Question, State

CONFIGS = sorted((Path(__file__).parents[2] / "tiny_configs").glob("*.yaml"))
REDUCED = [
    *("stage.il.steps=1", "stage.act.steps=1", "stage.rl.steps=1"),
    *("stage.il.batch=2", "stage.act.batch=2", "stage.rl.batch=1"),
    *("stage.act.max_tokens=4", "stage.rl.max_tokens=4", "stage.act.group_size=2"),
    *("stage.rl.group_size=2", "env.train_tasks=1", "env.heldout_tasks=1", "env.parallel=1"),
    *("eval.episodes=1", "eval.states=1", "eval.pairs=1", "eval.max_tokens=4"),
    *("eval.judge_max_tokens=4", "prompt.max_tokens=6000", "model.max_tokens_per_batch=7000"),
]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory, make_tokenizer) -> Path:
    """A random Llama with a byte-level ChatML tokenizer, as a local Hugging Face folder."""
    torch = pytest.importorskip("torch")
    import transformers

    folder = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8192,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_dry_run(config, chat_model, tmp_path):
    if "scienceworld" in config.stem:
        pytest.importorskip("scienceworld")
        if shutil.which("java") is None:
            pytest.skip("no Java runtime")
    if "webshop" in config.stem:
        for module in ("bm25s", "Stemmer", "rapidfuzz"):
            pytest.importorskip(module)
    if "alfworld" in config.stem:
        pytest.importorskip("alfworld")
    state = State("s", "t", (), "o")
    pairs = [Question(state, "look", ("wait",), split) for split in ("train", "train", "test")]
    write_jsonl(tmp_path / "pairs.jsonl", [pair_row(p, 9) for p in pairs])
    own_model = config.stem in ("household", "household-plain")
    model = [] if own_model else [f"model.path={chat_model}"]
    fewer = [x for x in REDUCED if config.stem != "own-logs" or "max_tokens=4" not in x]
    result = CliRunner().invoke(
        main,
        [
            *("run", str(config), "--out", str(tmp_path / "run"), *fewer, *model),
            f"pairs.file={tmp_path / 'pairs.jsonl'}",
        ],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output[-2000:]
    outcome = json.loads((tmp_path / "run" / "results.json").read_text())
    settings = load_config(config)
    names = [f"{i}-{stage}" for i, stage in enumerate(settings.recipe, start=1)]
    base = ["base", "base-thinking"] if settings.thinks() else ["base"]
    assert list(outcome["results"]) == [*base, *names]
    for result in outcome["results"].values():
        assert "judgement" in result and ("splits" in result) == (settings.env.name != "none")
