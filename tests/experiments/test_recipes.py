"""Every row of the paper's tables is a recipe: each runs whole, and a killed one goes on the same.

The rows run over a scripted policy in the real household world; a few run with real models.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
from fakes import SMALL, TAGS, FakePolicy, scripted
from rich.console import Console
from tiny_models import write_model

from miniact import UserError
from miniact.config import load_config
from miniact.experiments.data import Workshop, make_data
from miniact.experiments.pipeline import resume_run, start_run, write_config
from miniact.method.controls.reflections import read_reflections
from miniact.method.pairs import read_pairs
from miniact.runs.folder import RunFolder
from miniact.runs.log import StageLog

ROWS = {  # row of the paper's tables → what to set
    "prompt without CoT": ["recipe=[]", "eval.thinking=false"],
    "prompt with CoT": ["recipe=[]", "eval.thinking=true"],
    "ACT stage": ["recipe=act", "stage.act.thinking=true"],
    "IL": ["recipe=il"],
    "Early Experience": ["recipe=reflect"],
    "IL → IL": ["recipe=il,il"],
    "ACT → IL": ["recipe=act,il", "stage.act.thinking=true"],
    "RL": ["recipe=rl"],
    "RL with ACT": ["recipe=act,rl", "stage.act.thinking=true"],
    "IL → RL": ["recipe=il,rl"],
    "IL → RL → RL": ["recipe=il,rl,rl"],
    "ACT → IL → RL": ["recipe=act,il,rl", "stage.act.thinking=true"],
    "IL → ACT → RL": ["recipe=il,act,rl", "stage.act.thinking=true"],
    "SFT-on-choice → IL → RL": ["recipe=choice_sft,il,rl"],
    "DPO → IL → RL": ["recipe=dpo,il,rl"],
    "ACT, no reasoning → IL → RL": ["recipe=act,il,rl", "stage.act.thinking=false"],
}


def config_of(*options: str):  # type: ignore[no-untyped-def]
    return load_config("household-plain", [*SMALL, *options])


def run(out: Path, *options: str) -> dict:
    return start_run(config_of(*options), out, Console(file=StringIO(), width=200))


def rows_of(out: Path) -> list[dict]:
    file = out / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


@pytest.fixture
def scripted_policy(tokenizer, monkeypatch):
    """The pipeline's own way of loading a model gives a scripted policy; returns those loaded."""
    made: list[FakePolicy] = []

    def load(config, seed):  # type: ignore[no-untyped-def]
        made.append(FakePolicy(tokenizer, scripted))
        return made[-1]

    monkeypatch.setattr("miniact.experiments.data.load_policy", load)
    return made


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_paper_is_a_recipe(scripted_policy, tmp_path, row):
    config = config_of(*TAGS, *ROWS[row])
    keys = [f"{n}-{name}" for n, name in enumerate(config.recipe, start=1)]
    outcome = run(tmp_path, *TAGS, *ROWS[row])
    thinks = config.thinks()  # then the base is measured in both ways
    base = ["base", "base-thinking"] if thinks else ["base"]
    assert list(outcome["results"]) == [*base, *keys]
    assert [r["stage"] for r in rows_of(tmp_path)] == [key for key in keys for _ in range(3)]
    for key in keys:
        assert (tmp_path / "stages" / key / "adapter").is_dir()
        assert (tmp_path / "samples" / f"{key}.jsonl").is_file() == ("act" in key or "rl" in key)
        assert (tmp_path / "tensorboard" / key).is_dir()
    # each stage continues from the one before: the fake's weights count its updates
    weights = [
        json.loads((tmp_path / f"stages/{k}/adapter/weights.json").read_text()) for k in keys
    ]
    assert weights == sorted(weights)
    asked = scripted_policy[0].prompts
    acting = [p for p in asked if "What is the best next action?" in p]
    thinks |= "eval.thinking=true" in ROWS[row]
    assert any("Think first" in p for p in acting) == thinks


def test_a_stage_that_comes_twice_draws_other_batches_and_keeps_its_own_log(
    scripted_policy, tmp_path
):
    run(tmp_path, *TAGS, "recipe=il,il", "stage.il.steps=4")
    trained = [g.prompt for g in scripted_policy[0].trained]
    assert len(trained) == 32 and trained[:16] != trained[16:]
    assert Counter(r["stage"] for r in rows_of(tmp_path)) == {"1-il": 4, "2-il": 4}
    (tmp_path / "stages" / "2-il" / "eval.json").unlink()
    again = resume_run(tmp_path, Console(file=StringIO()))  # trains nothing again
    assert scripted_policy[1].trained == [] and list(again["results"]) == ["base", "1-il", "2-il"]


def test_reflections_are_made_by_the_initial_policy_and_once(scripted_policy, tmp_path):
    run(tmp_path, *TAGS, "recipe=il,reflect", "eval.pairs=0")
    (policy,) = scripted_policy
    at = [i for i, p in enumerate(policy.prompts) if "which proves right" in p]
    reflections = read_reflections(tmp_path / "reflections.jsonl")
    pairs = [p for p in read_pairs(tmp_path / "pairs.jsonl") if p.split == "train"]
    assert len(at) == len({p.state.id for p in pairs})
    counts = json.loads((tmp_path / "reflections.counts.json").read_text())
    assert sum(counts.values()) == len(at) and counts["kept"] == len(reflections) == 4
    assert all(r.provenance["model"] == "fake" for r in reflections)
    replies = [policy.tokenizer.decode(g.completions[0].tokens) for g in policy.trained[12:]]
    assert sum(r.startswith("I see") for r in replies) == 6 and len(replies) == 12
    before = (tmp_path / "reflections.jsonl").read_bytes()
    (tmp_path / "stages" / "2-reflect" / "eval.json").unlink()
    resume_run(tmp_path, Console(file=StringIO()))
    assert not any("which proves right" in p for p in scripted_policy[1].prompts)
    assert (tmp_path / "reflections.jsonl").read_bytes() == before


def test_a_model_that_can_not_reflect_is_told_so(scripted_policy, tmp_path, monkeypatch):
    speaks = scripted

    def mute(prompt: str, i: int) -> str:
        return "Well…" if "which proves right" in prompt else speaks(prompt, i)

    monkeypatch.setitem(globals(), "scripted", mute)
    with pytest.raises(UserError, match=r"reflections: all were filtered out \(.*unparseable"):
        run(tmp_path, *TAGS, "recipe=reflect")
    assert not (tmp_path / "reflections.jsonl").exists()  # so the next run makes them anew


def test_a_run_that_has_its_config_has_all_that_comes_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr("miniact.experiments.pipeline.environment", lambda config: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_config(config_of(), tmp_path)
    assert not (tmp_path / "config.yaml").exists()  # so the next start writes both


# ---- real models -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_controls_with_the_built_in_model(tmp_path):
    """SFT on the choice and DPO learn their own goals; three candidates; alternatives renewed."""
    outcome = run(
        tmp_path,
        *("recipe=choice_sft,dpo,act", "pairs.k=4", "pairs.temperature=1.5", "pairs.choices=3"),
        *("env.train_tasks=30", "stage.choice_sft.steps=40", "stage.choice_sft.batch=16"),
        *("stage.choice_sft.lr=3e-3", "stage.dpo.steps=30", "stage.dpo.lr=2e-3"),
        *("stage.dpo.batch=16", "stage.act.refresh_pairs=2"),
    )
    rows = {key: [r for r in rows_of(tmp_path) if r["stage"] == key] for key in outcome["results"]}
    sft, dpo = rows["1-choice_sft"], rows["2-dpo"]
    assert sft[-1]["loss"] < 0.5 * sft[0]["loss"]
    assert dpo[0]["margin"] == 0 and dpo[-1]["margin"] > 1 and dpo[-1]["loss"] < 0.65
    assert (tmp_path / "stages/3-act/pairs-0000002.jsonl").stat().st_size
    judged = outcome["results"]["3-act"]["judgement"]
    assert {"expert_first", "expert_second", "expert_third"} < set(judged)
    assert judged["accuracy"]["n"] == judged["consistent"]["n"] > 0  # questions, not presentations


@pytest.mark.slow
def test_early_experience_with_a_real_model_in_tags_form(tmp_path, tokenizer):
    """Reflections written by a script over the real world, imitated by a real (random) model."""
    model = write_model(tmp_path / "m", "llama-tied", tokenizer, max_position_embeddings=8192)
    options = [
        *TAGS,
        *("recipe=reflect", f"model.path={model}", "eval.episodes=0", "eval.states=0"),
        *(
            "eval.pairs=0",
            "pairs.source=admissible",
            "env.train_tasks=2",
            "pairs.states_per_trajectory=0",
            "pairs.k=2",
        ),
        *("prompt.show_admissible=true", "stage.reflect.steps=8", "stage.reflect.lr=1e-2"),
        "stage.reflect.batch=2",
    ]
    out = tmp_path / "run"
    out.mkdir()
    config = config_of(*options)
    with RunFolder(out) as folder, Workshop(config, folder, Console(file=StringIO())) as work:
        work.policy = FakePolicy(tokenizer, scripted)  # writes; the real one learns below
        data = make_data(work)
    assert len(data.reflections) > 5
    run(out, *options)
    rows = rows_of(out)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
    assert (out / "stages/1-reflect/adapter/adapter_model.safetensors").is_file()


def digests(out: Path) -> dict[str, str]:
    files = [*out.glob("stages/*/adapter/*.safetensors"), *out.glob("stages/*/pairs-*")]
    files += [out / "pairs.jsonl", *out.glob("samples/*")]
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


REFRESHING = [
    *("recipe=act", "stage.act.steps=8", "stage.act.refresh_pairs=3", "env.train_tasks=8"),
    *("stage.act.checkpoint_every=2", "stage.act.beta=0.1", "pairs.k=3", "stage.act.lr=5e-3"),
    *("eval.episodes=0", "eval.states=0", "eval.pairs=0"),
]


@pytest.mark.slow
def test_refreshed_alternatives_are_the_same_after_a_kill(tmp_path, monkeypatch):
    """Killed at step 3 (alternatives just made), 5 (made before the checkpoint) and 7."""
    run(tmp_path / "whole", *REFRESHING)
    whole = digests(tmp_path / "whole")
    assert {"stages/1-act/pairs-0000003.jsonl", "stages/1-act/pairs-0000006.jsonl"} < set(whole)
    made = [read_pairs(tmp_path / f"whole/stages/1-act/pairs-000000{n}.jsonl") for n in (3, 6)]
    assert made[0] != made[1]
    write = StageLog.write
    for kill_at in (3, 5, 7):

        def dying(self, step, *rest, kill_at=kill_at):  # type: ignore[no-untyped-def]
            if step == kill_at:
                raise KeyError("killed")
            write(self, step, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(StageLog, "write", dying)
            with pytest.raises(KeyError, match="killed"):
                run(tmp_path / "killed", *REFRESHING)
    resume_run(tmp_path / "killed", Console(file=StringIO()))
    assert digests(tmp_path / "killed") == whole


def test_pairs_of_admissible_actions_hold_only_those(tmp_path, scripted_policy):
    run(tmp_path, *TAGS, "recipe=[]", "pairs.source=admissible", "pairs.k=3", "eval.states=0")
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    assert all(p.alternative in p.state.admissible for p in pairs)
    assert all(p.provenance["source"] == "admissible" for p in pairs)
    assert set(Counter(p.state.id for p in pairs).values()) == {3}


def test_each_stage_is_measured_as_it_acts_and_the_base_in_both_ways():
    from miniact.experiments.pipeline import steps

    def measured(*settings: str) -> list[tuple[int, str, bool]]:
        shared = ("prompt.form=tags", "recipe=il,act,rl", "stage.act.thinking=true")
        config = load_config(None, [*shared, *settings])
        return [(n, name, config.measuring(on).thinking) for n, name, on in steps(config)]

    assert measured() == [
        *((0, "base", False), (0, "base-thinking", True)),
        *((1, "il", False), (2, "act", True), (3, "rl", False)),
    ]
    plain = [(0, "base"), (1, "il"), (2, "act"), (3, "rl")]
    assert measured("stage.act.thinking=false") == [(n, name, False) for n, name in plain]
    assert measured("eval.thinking=true") == [(n, name, True) for n, name in plain]
    assert measured("recipe=il", "stage.il.thinking=true")[-1] == (1, "il", True)


@pytest.mark.parametrize(("value", "expected"), [("auto", None), ("true", True), ("false", False)])
def test_a_switch_may_be_left_to_the_program(value, expected):
    config = load_config(None, [f"eval.thinking={value}", "stage.act.thinking=true"])
    assert config.eval.thinking is expected
    assert config.measuring(False).judge_thinking is True
    with pytest.raises(UserError, match=r"^eval\.thinking: expected bool, got 'often'"):
        load_config(None, ["eval.thinking=often"])
