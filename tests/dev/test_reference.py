"""The reference: its page is up to date, and it defines exactly what is logged."""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from dataclasses import fields
from io import StringIO
from pathlib import Path

import pytest
from fakes import SMALL, TAGS, FakePolicy, scripted
from make_reference import config_keys, page
from markdown_it import MarkdownIt
from rich.console import Console

from miniact.config import Config, load_config
from miniact.config.load import to_dict
from miniact.config.sections import STAGES
from miniact.experiments.metrics import EVALUATION, TRAINING, rates
from miniact.experiments.pipeline import run_recipe
from miniact.experiments.reading import training_cost

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference.md"
EVERYTHING = [
    *(*TAGS, *SMALL, f"recipe={','.join(STAGES)}", "eval.splits=id,ood"),
    *(f"stage.{name}.{size}" for name in STAGES for size in ("steps=2", "batch=4")),
    *("stage.act.beta=0.1", "stage.rl.beta=0.1", "stage.rl.updates=2"),
    *("eval.intervene=wrong", "eval.judge_thinking=true"),
]


def answers(prompt: str, i: int) -> str:
    """Goes to one place after the other, which is sometimes what the expert does."""
    places = re.findall(r"\ba (\w+ \d+)", prompt)
    if "What is the best next action?" in prompt and places:
        return f"<action>go to {places[i % len(places)]}</action>"
    return scripted(prompt, i)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer) -> Path:
    """A run with every stage and every evaluation, over a scripted policy in the real world."""
    out = tmp_path_factory.mktemp("reference") / "run"
    config = load_config("household-plain", EVERYTHING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "miniact.experiments.data.load_policy", lambda *_: FakePolicy(tokenizer, answers)
        )
        run_recipe(config, out, Console(file=StringIO()))
    return out


@pytest.fixture(scope="module")
def logged(run) -> dict[str, set[str]]:
    """Stage → the names in its lines of metrics.jsonl."""
    found = defaultdict(set)
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        found[row["stage"].partition("-")[2]] |= set(row)
    return found


def fits(pattern: str, text: str) -> bool:
    """Whether a text is what a pattern says, in which CAPITALS stand for any word."""
    return re.fullmatch(re.sub("[A-Z]{2,}", r"\\w+", re.escape(pattern)), text) is not None


def leaves(result: dict, where: str = "") -> list[str]:
    """Paths of the figures in an evaluation; a rate is one figure."""
    if set(result) == {"value", "n", "low", "high"}:
        return [where[:-1]]
    return [
        path
        for name, inner in result.items()
        for path in (
            leaves(inner, f"{where}{name}.") if isinstance(inner, dict) else [where + name]
        )
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_logs_is_what_is_defined_for_it(logged, stage):
    defined = [m.name for m in TRAINING if stage in m.stages or m.stages == ("all",)]
    assert len(defined) == len(set(defined)), "two meanings for one name in one stage"
    assert logged[stage] == set(defined)


def test_every_training_metric_names_stages_that_exist():
    assert all(m.stages and set(m.stages) <= {*STAGES, "all"} for m in TRAINING)


def test_what_an_evaluation_holds_is_what_is_defined(run):
    result = json.loads((run / "stages" / "1-il" / "eval.json").read_text())
    paths = leaves(result)
    for path in paths:
        assert sum(fits(m.name, path) for m in EVALUATION) == 1, f"{path} is not defined"
    unused = [m.name for m in EVALUATION if not any(fits(m.name, path) for path in paths)]
    assert not unused, "defined and never measured"
    assert sum(m.unit == "rate" for m in EVALUATION) == len(
        {m.name for m in EVALUATION for p in paths if fits(m.name, p) and is_rate(result, p)}
    )


def is_rate(result: dict, path: str) -> bool:
    for part in path.split("."):
        result = result[part]
    return isinstance(result, dict)


def test_every_label_of_the_results_table_finds_its_figure(run):
    results = json.loads((run / "results.json").read_text())["results"]
    written = (run / "results.txt").read_text(encoding="utf-8")
    for label, rate in rates(results["base"]).items():
        name = re.sub(r", (id|ood)$", "", label.strip())
        (entry,) = [m for m in EVALUATION if m.label and fits(m.label, name)]
        (path,) = [p for p in leaves(results["base"]) if fits(of_split(entry.name, label), p)]
        assert rate == functools.reduce(dict.get, path.split("."), results["base"])
        assert f"\n{label} " in written
    assert {"success, id", "  stuck, ood", "next action", "  expert first"} < set(
        rates(results["base"])
    )


def of_split(pattern: str, label: str) -> str:
    """The pattern of the figure that a row shows, its split or position filled in."""
    last = re.findall(r"\w+", label)[-1]
    return re.sub("SPLIT|POSITION|WHO", last, pattern)


def test_the_costs_of_a_comparison_are_made_of_defined_metrics(run):
    rows = defaultdict(list)
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows[row["stage"]].append(row)
    _, tokens = training_cost(rows, to_dict(load_config(run / "config.yaml"))["stage"])
    assert tokens == sum(row["tokens"] for stage in rows.values() for row in stage) > 0


def test_every_config_key_is_there_once_with_all_that_is_known_of_it():
    keys = {key.name: key for key in config_keys()}
    assert len(keys) == len(config_keys())

    def walk(value, where=""):  # type: ignore[no-untyped-def]
        for name, inner in value.items():
            if isinstance(inner, dict) and where + name not in keys:
                yield from walk(inner, f"{where}{name}.")
            else:
                yield where + name, inner

    flat = dict(walk(to_dict(Config())))
    assert keys.keys() == flat.keys()
    assert all(json.loads(keys[name].default) == value for name, value in flat.items())
    assert keys["stage.rl.group_size"].allowed == "≥ 2"
    assert keys["prompt.form"].allowed == "tags, plain, chat, auto"
    assert all(field.metadata["doc"] in page() for field in fields(type(Config().pairs)))


def test_the_page_is_up_to_date():
    remedy = "run: python dev/make_reference.py"
    assert PAGE.read_text(encoding="utf-8") == page(), remedy


def test_the_page_is_markdown_without_accidents():
    """No HTML, links or emphasis by chance, and no cell lost: a table drops what is too much."""
    parsed = MarkdownIt().enable("table").parse(page())
    inline = [token for block in parsed for token in block.children or ()]
    assert {t.type for t in inline} <= {"text", "text_special", "code_inline", "softbreak"}
    shown = [block.content for block in parsed if block.type == "inline"]
    for metric in (*TRAINING, *EVALUATION):
        assert any(cell.replace("\\", "") == metric.meaning for cell in shown), metric.name
