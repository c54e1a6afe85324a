"""General reasoning before and after training: `miniact eval --suite math500,gpqa_diamond`.

EleutherAI's lm-evaluation-harness asks and scores; the model is ours, loaded as for training (so a
QLoRA adapter is measured on the 4-bit base that it was trained on), always on PyTorch. The paper's
row is "prompt with CoT", hence the tasks in which the model reasons before it answers:

    math500        minerva_math500            four worked examples, then the problem; the answer is
                                              compared as mathematics (math_verify)
    gpqa_diamond   gpqa_diamond_cot_zeroshot  "Let's think step by step"; the last letter in
                                              brackets is the answer (flexible-extract)

A model with a chat template is asked through it, examples as earlier turns. Any other task of the
harness goes by its own name; a task of your own by its YAML file, or by a folder of such files.
Such files can name Python functions beside them, which the harness runs: treat them as programs.

Deviation: the paper does not say which prompts and how long answers it used. Compare with your own
model's base, measured here by the same command without an adapter, not with the paper's figures.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from miniact import UserError
from miniact.backends.launch import processes
from miniact.backends.protocol import load_policy
from miniact.config.sections import ModelConfig
from miniact.runs.files import write_json
from miniact.runs.folder import versions

BATCH = 8  # prompts in one forward pass
SUITES = {"math500": "minerva_math500", "gpqa_diamond": "gpqa_diamond_cot_zeroshot"}
PACKAGES = ("lm_eval", "torch", "transformers", "peft", "datasets", "math_verify", "miniact")
INSTALL = "pip install 'miniact[reasoning]'"


@dataclass(frozen=True)
class ReasoningOptions:
    max_tokens: int = 2048  # longest answer, in tokens, the reasoning included
    limit: int | None = None  # questions per task; None: all. A part is no result to report
    seed: int = 0


def evaluate_reasoning(
    model: ModelConfig, suites: Sequence[str], out: Path, options: ReasoningOptions
) -> dict[str, Any]:
    """Measure `model` on `suites` and write the folder's results.json, whole or not at all.

    Returns {"results": {suite: {task: {metric: {"value", "stderr", "n"}}}}, "versions", …}.
    Raises UserError if the extra is missing, a task is unknown or its data cannot be read.
    """
    if not suites:
        raise UserError(f"--suite: expected one or more of {', '.join(SUITES)}, or a task")
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(f"--suite: lm-evaluation-harness is not installed; {INSTALL}")
    if processes() > 1:
        raise UserError("--suite: the harness runs in one process; start it without a launcher")
    file = out / "results.json"
    if file.exists():
        raise UserError(f"{file}: exists already; choose another --out")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tasks = {suite: _load_tasks(suite, options.seed) for suite in suites}  # before the model:
    lm = _load_model(model, options)  # a wrong name shall not cost its loading
    start = time.monotonic()
    measured = {suite: _measure(lm, *loaded, options) for suite, loaded in tasks.items()}
    results = {
        "model": model.path,
        "adapter": model.start or None,
        "results": measured,
        "options": {**asdict(options), "chat_template": bool(lm.tokenizer.chat_template)},
        "seconds": round(time.monotonic() - start, 1),
        "versions": versions(PACKAGES),
    }
    write_json(file, results)
    return results


# ---- tasks ---------------------------------------------------------------------------------


def _load_tasks(suite: str, seed: int) -> tuple[Any, Any]:
    """(the harness's tasks of one suite, their data included; the manager that found them)."""
    from lm_eval.tasks import TaskManager

    path = Path(suite).expanduser()
    if path.suffix == ".yaml" or path.is_dir():
        names, manager = _local_names(path)
    else:
        names, manager = [SUITES.get(suite, suite)], TaskManager()
        if names[0] not in manager.all_tasks:
            near = difflib.get_close_matches(suite, [*SUITES, *manager.all_tasks], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"--suite {suite}: unknown task; expected {', '.join(SUITES)}, a task of "
                f"lm-evaluation-harness, a YAML file or a folder of such{hint}"
            )
    random.seed(seed)  # gpqa shuffles its options by the global generator while it loads
    try:
        loaded = manager.load(names)
    except Exception as error:  # hub, files, YAML: a dozen kinds that all mean: not to be had
        reason = f"{' '.join(str(error).split()):.200}"
        if isinstance(error, ModuleNotFoundError):
            raise UserError(f"--suite {suite}: {reason}; {INSTALL}") from None
        raise UserError(
            f"--suite {suite}: cannot load its data: {reason}; it needs the hub once (gpqa: accept "
            "its terms there and log in), or a task of your own with local files"
        ) from None
    if any(getattr(task, "UNSAFE_CODE", False) for task in loaded["tasks"].values()):
        raise UserError(
            f"--suite {suite}: runs code that the model wrote; miniact does not do that"
        )
    return loaded, manager


def _local_names(path: Path) -> tuple[list[str], Any]:
    """The names of the tasks in a YAML file or in a folder, and a manager that knows them."""
    from lm_eval.tasks import TaskManager

    if not path.exists():
        raise UserError(f"--suite {path}: no such file; expected a task's YAML file or a folder")
    folder = path if path.is_dir() else path.parent
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    entries = manager.task_index.values()
    if path.is_dir():
        names = sorted(manager.all_subtasks)
    else:
        names = [e.name for e in entries if e.yaml_path and e.yaml_path.samefile(path)]
    if not names:
        raise UserError(
            f"--suite {path}: holds no task; expected YAML with task: and dataset_path:"
        )
    return names, manager


# ---- model and measurement -----------------------------------------------------------------


def _load_model(model: ModelConfig, options: ReasoningOptions) -> Any:
    """Our model with its adapter, behind the harness's client."""
    from lm_eval.models.huggingface import HFLM

    policy: Any = load_policy(replace(model, backend="torch"), options.seed)
    tokenizer = policy.tokenizer
    lm = HFLM(
        pretrained=policy.causal_lm,
        tokenizer=tokenizer,
        batch_size=BATCH,
        enable_thinking="enable_thinking" in str(tokenizer.chat_template) or None,
        think_end_token="</think>" if "</think>" in tokenizer.get_vocab() else None,
    )
    if options.max_tokens >= lm.max_length:
        raise UserError(
            f"--suite: answers may take {options.max_tokens} tokens, and {model.path} holds "
            f"{lm.max_length}, question and answer together; expected a model of longer context"
        )
    return lm


def _measure(lm: Any, loaded: Any, manager: Any, options: ReasoningOptions) -> dict[str, Any]:
    """{task: {metric: {"value", "stderr", "n"}}} of one suite's tasks."""
    import lm_eval

    has_template = bool(lm.tokenizer.chat_template)
    outcome = lm_eval.simple_evaluate(
        model=lm,
        tasks=list(loaded["tasks"].values()),
        task_manager=manager,  # else it would read its 14,000 YAML files again
        limit=options.limit,
        log_samples=False,
        apply_chat_template=has_template,
        fewshot_as_multiturn=has_template,
        gen_kwargs={"max_gen_toks": options.max_tokens},
        random_seed=options.seed,
        numpy_random_seed=options.seed,
        torch_random_seed=options.seed,
        fewshot_random_seed=options.seed,
    )
    asked = outcome["n-samples"]
    return {t: _metrics(values, asked[t]["effective"]) for t, values in outcome["results"].items()}


def _metrics(values: dict[str, Any], n: int) -> dict[str, Any]:
    """The harness's "exact_match,strict": 0.5, "exact_match_stderr,strict": 0.1 → one entry.

    >>> _metrics({"acc,none": 0.5, "acc_stderr,none": 0.25, "alias": "x"}, n=4)
    {'acc,none': {'value': 0.5, 'stderr': 0.25, 'n': 4}}
    """
    numbers = {key: float(v) for key, v in values.items() if isinstance(v, float) and "," in key}
    return {
        key: {"value": value, "stderr": numbers.get(key.replace(",", "_stderr,")), "n": n}
        for key, value in numbers.items()
        if "_stderr," not in key
    }


def result_lines(results: dict[str, Any]) -> str:
    """A line per metric: suite, value in percent with its standard error, n."""
    lines = []
    for suite, tasks in results["results"].items():
        for task, metrics in tasks.items():
            for metric, m in metrics.items():
                error = "" if m["stderr"] is None else f" ± {100 * m['stderr']:.1f}"
                named = suite if SUITES.get(suite) == task else f"{suite} {task}"
                lines.append(f"{named} {metric}: {100 * m['value']:.1f}{error} % (n={m['n']})")
    return "\n".join(lines)
