"""General reasoning: the real lm-evaluation-harness, offline, on tasks and data made here."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from miniact import UserError
from miniact.backends.protocol import load_policy
from miniact.config.sections import ModelConfig
from miniact.evaluation.reasoning import (
    SUITES,
    ReasoningOptions,
    evaluate_reasoning,
    result_lines,
)
from miniact.tools.export import export

QUESTIONS = [f"put a {thing} in shelf." for thing in ("mug", "egg", "pen", "book", "cup", "plate")]
OPTIONS = ReasoningOptions(max_tokens=8)
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
num_fewshot: 0
doc_to_text: "{{{{question}}}}"
{more}
"""
COMMANDS = """\
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"""
CHOICES = """\
output_type: multiple_choice
doc_to_choice: ["go to shelf 1", "go to drawer 1"]
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]"""
PERPLEXITY = """\
output_type: loglikelihood_rolling
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity}]"""


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Where `datasets` keeps what it has read: not in the user's home."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before


def greedy_replies() -> list[str]:
    """What the tiny model answers to the questions, by miniact's own sampler."""
    policy = load_policy(ModelConfig(backend="torch"), 0)
    prompts = []
    for question in QUESTIONS:
        turn = [{"role": "user", "content": question}]
        text = policy.tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True
        )
        prompts.append(policy.tokenizer(text, add_special_tokens=False)["input_ids"])
    return [s.text for (s,) in policy.sample(prompts, 1, OPTIONS.max_tokens, 0.0, 0)]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder with three tasks; to every third question the answer is what the model replies."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "data.jsonl"
    with data.open("w") as file:
        for i, (question, reply) in enumerate(zip(QUESTIONS, greedy_replies())):
            answer = reply if i % 3 == 0 else "fly to the moon"
            file.write(json.dumps({"question": question, "answer": answer, "label": i % 2}) + "\n")
    for name, more in (("commands", COMMANDS), ("choices", CHOICES), ("fluency", PERPLEXITY)):
        text = TASK.format(name=name, data=data, more=more)
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """An adapter that does something: one step of training with a large learning rate."""
    from miniact.method.losses import cross_entropy
    from miniact.types import Completion, Group

    policy = load_policy(ModelConfig(backend="torch"), 0)
    policy.forward_backward([Group((2, 3), (Completion((20, 30, 40, 4)),))], cross_entropy)
    policy.optim_step(0.05, 1.0)
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    folder.mkdir()
    policy.save_adapter(folder)
    return folder


def value(results: dict, metric: str) -> float:
    (tasks,) = results["results"].values()
    return tasks["fluency"][f"{metric},none"]["value"]


def test_a_folder_of_tasks(tasks, tmp_path):
    results = evaluate_reasoning(ModelConfig(), [str(tasks)], tmp_path / "out", OPTIONS)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    found = results["results"][str(tasks)]
    assert set(found) == {"commands", "choices", "fluency"}
    # lm-eval's generation is our greedy sampling, through the chat template, to the token
    exact = found["commands"]["exact_match,none"]
    assert exact["value"] == pytest.approx(2 / 6) and exact["n"] == 6
    p = found["choices"]["acc,none"]["value"]
    assert found["choices"]["acc,none"]["stderr"] == pytest.approx(math.sqrt(p * (1 - p) / 5))
    assert {"lm_eval", "torch", "miniact"} <= set(results["versions"])
    assert f"{tasks} commands exact_match,none: 33.3 ± 21.1 % (n=6)" in result_lines(results)


def test_an_adapter_is_measured_as_what_it_merges_to(tasks, adapter, tmp_path):
    suite = [str(tasks / "fluency.yaml")]

    def perplexity(model: ModelConfig, out: str) -> float:
        options = ReasoningOptions(max_tokens=8)
        return value(evaluate_reasoning(model, suite, tmp_path / out, options), "word_perplexity")

    plain = perplexity(ModelConfig(), "plain")
    adapted = perplexity(ModelConfig(start=str(adapter)), "adapted")
    export(adapter, "merged", tmp_path / "merged", "builtin:tiny")
    merged = perplexity(ModelConfig(path=str(tmp_path / "merged")), "of-merged")
    assert adapted == pytest.approx(merged, rel=1e-3)
    assert abs(adapted - plain) > 0.01 * plain


def test_a_single_file_and_a_limit(tasks, tmp_path):
    options = ReasoningOptions(max_tokens=8, limit=3)
    suite = str(tasks / "choices.yaml")
    results = evaluate_reasoning(ModelConfig(), [suite], tmp_path, options)
    assert list(results["results"][suite]) == ["choices"]
    assert results["results"][suite]["choices"]["acc,none"]["n"] == 3
    assert results["options"]["limit"] == 3
    with pytest.raises(UserError, match="exists already"):
        evaluate_reasoning(ModelConfig(), [suite], tmp_path, options)


def broken(folder: Path, more: str) -> str:
    file = folder / "task.yaml"
    file.write_text(TASK.format(name="broken", data=folder / "missing.jsonl", more=more))
    return str(file)


def test_errors_are_one_line_and_leave_nothing(tasks, tmp_path):
    (tmp_path / "empty").mkdir()
    cases = {
        "no such file": str(tmp_path / "no.yaml"),
        "holds no task": str(tmp_path / "empty"),
        "cannot load its data": broken(tmp_path, CHOICES),
    }
    for message, suite in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            evaluate_reasoning(ModelConfig(), [suite], tmp_path / "out", OPTIONS)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="expected one or more"):
        evaluate_reasoning(ModelConfig(), [], tmp_path / "out", OPTIONS)
    suite = str(tasks / "choices.yaml")
    with pytest.raises(UserError, match="answers may take 100000 tokens"):
        options = ReasoningOptions(max_tokens=100_000)
        evaluate_reasoning(ModelConfig(), [suite], tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_code_of_the_model_is_never_run(tasks, tmp_path):
    text = (tasks / "choices.yaml").read_text() + "unsafe_code: true\n"
    (tmp_path / "unsafe.yaml").write_text(text)
    with pytest.raises(UserError, match="runs code that the model wrote"):
        suite = str(tmp_path / "unsafe.yaml")
        evaluate_reasoning(ModelConfig(), [suite], tmp_path / "out", OPTIONS)


def test_without_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'miniact\[reasoning\]'"):
        evaluate_reasoning(ModelConfig(), ["math500"], tmp_path / "out", OPTIONS)


@pytest.mark.slow
def test_friendly_names_are_tasks_of_the_harness(tmp_path):
    import lm_eval

    for name in SUITES.values():
        assert list((Path(lm_eval.__file__).parent / "tasks").rglob(f"{name}.yaml")), name
    with pytest.raises(UserError, match="did you mean 'gpqa_diamond'"):
        evaluate_reasoning(ModelConfig(), ["gpqa_diamnd"], tmp_path / "out", OPTIONS)
