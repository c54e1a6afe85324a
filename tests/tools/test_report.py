"""The HTML report, in a real browser: it shows what was measured, and nothing in it can run.

The run folders are made by the real writers (StageLog, Prompter, evaluate, write_jsonl) with a
policy that needs no weights; one slow test reports a run of the real command.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import build_tokenizer
from fakes import FakePolicy
from rich.console import Console

from miniact import UserError
from miniact.config import Config
from miniact.config.load import to_dict
from miniact.config.sections import GRPOConfig, ILConfig, PromptConfig
from miniact.evaluation.episodes import Episode, Move
from miniact.evaluation.evaluate import evaluate_episodes
from miniact.evaluation.rates import rate
from miniact.experiments.metrics import EVALUATION, TRAINING
from miniact.method.grpo import advantages
from miniact.method.pairs import pair_row
from miniact.method.prompts import Prompter
from miniact.runs.files import write_json, write_jsonl, write_text
from miniact.runs.folder import RunFolder
from miniact.runs.log import StageLog
from miniact.runs.progress import Bar
from miniact.tools.report import page as report_html
from miniact.tools.report import samples as report_samples
from miniact.tools.report.page import curve, write_html
from miniact.tools.report.samples import candidates, episode_item, group_item, spread
from miniact.types import Question, Rollout, Sample, Scored, State

EVIL = "</script><script>window.pwned=1</script><!--<img src=x onerror='window.pwned=2'>]]>\u2028"
EVIL_NAME = "<img src=x onerror=window.pwned=3><script>window.pwned=4<!--"  # may name a folder
LONG = "pneumono" * 60  # one word, wider than any phone
STAGES = {"il": ("base", "1-il"), "il-act-rl": ("base", "1-il", "2-act", "3-rl")}


# ---- folders, by the real writers ---------------------------------------------------------------


def a_state(i: int, extra: str = "") -> State:
    seen = f"You see drawer {i} and shelf {i}. {extra}"
    return State(f"id/put/{i}#1", f"put pen {i} in drawer{extra}", (("a room", "look"),), seen)


def a_pair(i: int, extra: str = "") -> Question:
    split = "train" if i % 2 else "id"
    return Question(a_state(i, extra), f"open drawer {i}", (f"go to shelf {i}{extra}",), split)


def an_episode(i: int, split: str, wins: bool, extra: str = "") -> Episode:
    """Unsolved ones repeat one failing action four times; the solved ones never fail."""
    episode = Episode(f"{split}/{i}", f"find apple {i}{extra}", success=wins, score=float(wins))
    for step in range(5):
        failing = not wins and step > 0
        action = "open the sealed box" if failing else f"go to place {step}{extra}"
        reply = f"I think {extra} so <action>{action}</action>"
        episode.moves.append(Move(f"Room {step}.{extra}", reply, action, not failing))
    episode.stop = "solved" if wins else "ended"
    return episode


def a_rollout(prompter: Prompter, step: int, kind: str, extra: str = "") -> Rollout:
    """Four answers. Step 0: two right, one wrong, one unreadable and cut off; later: all right."""
    pair = a_pair(step)
    if kind == "act":
        shown = pair.present(1)  # the expert's is the second
        prompt = prompter.critic(shown.state, shown.actions, True).tokens
        right, wrong = "<choice>2</choice>", "<choice>1</choice>"
    else:
        prompt = prompter.action(pair.state, True).tokens
        right, wrong = "<action>open drawer</action>", "<action>wait</action>"
    texts = [f"Because{extra} {right}"] * 4 if step else [right, right, f"No{extra} {wrong}", "eh?"]
    correct = [right in text for text in texts]
    asked = (shown.actions, 1) if kind == "act" else ((pair.expert,), 0)
    scored = [Scored(float(c), c, "<" in text, *asked) for c, text in zip(correct, texts)]
    samples = [Sample((1, 2), (-0.5, -0.5), t, "end" if "<" in t else "length") for t in texts]
    return Rollout(prompt, samples, scored, advantages(np.array([s.reward for s in scored])))


def evaluation(stage: int, seed: int, n: int) -> tuple[dict[str, Any], list[Episode]]:
    wins = {"id": stage + seed, "ood": stage}  # so many of the first episodes are solved
    played = {s: [an_episode(i, s, i < wins[s]) for i in range(n)] for s in wins}
    hits = [i < 2 + stage for i in range(10)]
    judged = {k: rate(hits) for k in ("accuracy", "valid", "given_valid", "implicit", "consistent")}
    judged |= {"expert_first": rate(hits[:5]), "expert_second": rate(hits[5:])}
    results = {
        "splits": {s: evaluate_episodes(e) for s, e in played.items()},
        "next_action": {"accuracy": rate(hits[:8]), "valid": rate([True] * 8)},
        "judgement": judged,
    }
    return results, [e for es in played.values() for e in es]


def make_run(
    path: Path, recipe: str, seed: int, extra: str = "", n: int = 4, steps: int = 24
) -> Path:
    """A finished run folder. `extra` goes into every text that a model or a world can write."""
    tokenizer = build_tokenizer()
    config = replace(Config(), seed=seed, recipe=[s for s in recipe.split("-") if s])
    config = replace(config, prompt=PromptConfig(form="tags"))
    write_text(path / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
    facts = {"python": "3.11", "machine": f"x86{extra}", "cpus": 2, "command": ["run", extra]}
    write_json(path / "environment.json", {**facts, "versions": {"torch": f"2{extra}"}})
    write_jsonl(path / "pairs.jsonl", (pair_row(a_pair(i, extra), 50) for i in range(6)))
    prompter = Prompter(tokenizer, config.prompt)
    results = {}
    with RunFolder(path) as run:
        for number, stage in enumerate(
            ["0-base", *(f"{i}-{s}" for i, s in enumerate(config.recipe, 1))]
        ):
            kind = stage.partition("-")[2]
            if number:
                log = StageLog(run, number, kind, Bar(Console(file=StringIO()), stage))
                stage_config = ILConfig(steps=steps) if kind == "il" else GRPOConfig(steps=steps)
                for step in log.steps(FakePolicy(tokenizer, str), stage_config):
                    groups = [a_rollout(prompter, step, kind, extra)] if kind != "il" else []
                    log.write(step, numbers(kind, step, seed), groups)
            result, episodes = evaluation(number, seed, n)
            if extra:
                episodes = [
                    replace(e, task=e.task + extra, moves=an_episode(0, "", False, extra).moves)
                    for e in episodes
                ]
            (path / "stages" / stage).mkdir(parents=True, exist_ok=True)
            write_jsonl(path / "stages" / stage / "episodes.jsonl", map(asdict, episodes))
            write_jsonl(path / "stages" / stage / "judgements.jsonl", judgements(number, extra))
            results["base" if not number else stage] = result
    seconds = {"collect": 1.0, "evaluate": 2.5, **{s: 60.0 for s in results if s != "base"}}
    write_json(path / "results.json", {"results": results, "seconds": seconds})
    return path


def judgements(stage: int, extra: str) -> Iterator[dict[str, Any]]:
    """Both orders of three held-out questions. The base model never answers, later ones do."""
    for pair in (a_pair(i, extra) for i in (0, 2, 4)):
        for right in (0, 1):
            reply = f"So{extra} <choice>{right + 1}</choice>" if stage else "eh?"
            yield {
                "state": pair.state.id,
                "actions": list(pair.present(right).actions),
                "right": right,
                "choice": right if stage else None,
                "reply": reply,
            }


def numbers(kind: str, step: int, seed: int) -> dict[str, float]:
    if kind == "il":
        return {"loss": 1 / (step + 1) + seed, "grad_norm": 0.1, "tokens": 50}
    shares = {"reward": 0.5, "correct": step / 50 + seed / 10, "valid": 1.0, "zero_variance": 0.25}
    shares |= {"all_correct": 0.2, "all_wrong": 0.05, "reply_tokens": 8.0, "cut_off": 0.1}
    return {**shares, "tokens": 700, **({"grad_norm": 0.1} if step % 2 else {})}


def make_comparison(folder: Path, recipes: dict[str, str], extra: str = "") -> Path:
    """recipes: folder name → its stages. Two seeds; the first recipe is the baseline."""
    rows = []
    for at, (name, stages) in enumerate(recipes.items()):
        for seed in (0, 1):
            make_run(folder / "runs" / name / f"seed{seed}", stages, seed, extra)
        metrics = {
            label: {
                "mean": 0.5 + 0.1 * at,
                "std": 0.01,
                "low": 0.4,
                "high": 0.72,
                "n": 2,
                "seeds": [0.49, 0.51],
            }
            for label in (
                "success, id",
                "success, ood",
                "next action",
                "judgement",
                "valid answers",
            )
        }
        difference = {
            "success, id": {"mean": 0.1, "low": 0.02, "high": 0.18},
            "judgement": {"mean": 0.1, "low": -0.05, "high": 0.25},
        }
        rows.append(
            {
                "recipe": name,
                "steps": 24 * (at + 1),
                "tokens": 1200,
                "metrics": metrics,
                "difference": difference if at else {},
            }
        )
    write_json(
        folder / "comparison.json",
        {"recipes": list(recipes), "seeds": [0, 1], "baseline": next(iter(recipes)), "rows": rows},
    )
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "run", "il-act-rl", 0)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Path:
    return make_comparison(tmp_path_factory.mktemp("report") / "cmp", {n: n for n in STAGES})


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    names = {"il": "il", EVIL_NAME: "il-act-rl"}
    return make_comparison(tmp_path_factory.mktemp("report") / "evil", names, EVIL + LONG)


def data_of(file: Path) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>',
        file.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert found
    return json.loads(found[1])


# ---- what is in the file ------------------------------------------------------------------------


def test_the_file_is_complete_in_itself_and_the_same_twice(run_folder, tmp_path):
    one, two = (write_html(run_folder, tmp_path / n) for n in ("a.html", "b.html"))
    text = one.read_text(encoding="utf-8")
    assert one.read_bytes() == two.read_bytes()
    assert not list(tmp_path.glob("*.part"))
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == []
    assert not re.search(
        r"(?:src|href)=[\"'](?!#|data:,)|@import|url\(|innerHTML\s*=|fetch\(", text
    )
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy and "default-src 'none'" in policy[1] and "unsafe" not in policy[1]
    assert write_html(run_folder) == run_folder / "report.html"


def test_no_text_can_end_the_data(hostile, tmp_path):
    text = write_html(hostile, tmp_path / "r.html").read_text(encoding="utf-8")
    inside = text.partition('id="data">')[2].partition("</script>")[0]
    assert "<" not in inside and "window.pwned=1" in inside
    assert (
        text.count("</script>") == 2
        and "{{" not in text.partition("<body>")[2].partition(inside)[0]
    )


def test_a_run_is_a_comparison_of_one(run_folder, tmp_path):
    data = data_of(write_html(run_folder, tmp_path / "r.html"))
    results = json.loads((run_folder / "results.json").read_text())["results"]
    (recipe,) = data["recipes"]
    assert (
        recipe["label"] == "il → act → rl" and recipe["steps"] == 24 + 2 * 12
    )  # those that updated
    assert recipe["tokens"] == 24 * 50 + 2 * 24 * 700
    for measured, stage in zip(recipe["evaluations"], results, strict=True):
        rates = measured["rates"]["success, ood"]
        source = results[stage]["splits"]["ood"]["success"]
        assert (rates["mean"], rates["low"], rates["high"]) == tuple(
            source[k] for k in ("value", "low", "high")
        )
        assert rates["counts"] == [4]
        assert (
            measured["positions"]["second"]["mean"]
            == results[stage]["judgement"]["expert_second"]["value"]
        )


def test_seeds_become_means_and_ranges(comparison, tmp_path):
    il, full = data_of(write_html(comparison, tmp_path / "r.html"))["recipes"]
    success = full["evaluations"][3]["rates"]["success, id"]
    assert (success["mean"], success["low"], success["high"]) == (0.875, 0.75, 1.0)
    assert success["seeds"] == [0.75, 1.0] and success["counts"] == [4, 4]
    loss = next(c for c in il["curves"] if c["metric"] == "loss")
    assert (loss["low"][0], loss["y"][0], loss["high"][0], loss["n"]) == (1.0, 1.5, 2.0, 2)
    assert (il["steps"], full["steps"]) == (24, 48) and il["difference"] == {}


def test_a_long_curve_is_put_together_without_bias():
    values = {step: float(step % 7) for step in range(1000)}
    made = curve([values])
    assert len(made["x"]) <= report_html.POINTS
    width = made["x"][1] - made["x"][0]
    sizes = [len([s for s in values if x <= s < x + width]) for x in made["x"]]
    mean = sum(y * n for y, n in zip(made["y"], sizes)) / 1000
    assert mean == pytest.approx(sum(values.values()) / 1000, rel=1e-4)


@pytest.mark.parametrize("form", ["tags", "plain"])
def test_the_candidates_of_a_critic_prompt_are_found(form):
    tokenizer = build_tokenizer()
    prompter = Prompter(tokenizer, PromptConfig(form=form))
    actions = ("open <choice>1</choice> box", "go 3: north", "wait")
    prompt = tokenizer.decode(prompter.critic(a_state(1), actions).tokens)
    assert candidates(prompt) == list(actions)
    assert candidates(tokenizer.decode(prompter.action(a_state(1)).tokens)) == []
    fake = replace(a_state(1), observation="1: lie\n2: lie\nand more")
    assert candidates(tokenizer.decode(prompter.action(fake).tokens)) == []


def test_the_right_candidate_follows_from_the_rewards():
    prompter = Prompter(build_tokenizer(), PromptConfig(form="tags"))
    rollout = a_rollout(prompter, 0, "act")
    row = {"step": 0, "prompt": prompter.tokenizer.decode(rollout.prompt), "answers": []}
    for sample, scored in zip(rollout.samples, rollout.scored):
        row["answers"].append({"reply": sample.text, "reward": scored.reward})
    item = group_item(row, "2-act", prompter)
    assert item["right"] == 1 and [a["choice"] for a in item["answers"]] == [1, 1, 0, None]
    row["answers"] = row["answers"][
        2:
    ]  # only a wrong one and an unreadable one: the other is right
    assert group_item(row, "2-act", prompter)["right"] == 1
    row["answers"] = row["answers"][1:]
    assert group_item(row, "2-act", prompter)["right"] is None


@pytest.mark.parametrize("pattern", ["AAA", "AAbA", "AaAB", "AABBB", "ABABAB", "aaaa", "AA"])
def test_repeated_failures_are_counted_as_the_evaluation_counts_them(pattern):
    """Upper case: a failing action; the letter: which action."""
    moves = [Move("o", "r", c.lower(), c.islower()) for c in pattern]
    episode = Episode("t", "task", moves)
    counted = [move[4] for move in episode_item(asdict(episode))["moves"]]
    assert (max(counted) >= 3) == episode.repeats_a_failure()


def test_spread_keeps_both_ends():
    assert spread(list(range(100)), 3) == [0, 50, 99] and spread([1, 2], 3) == [1, 2]
    assert spread([1, 2, 3], 1) == [1]


def test_too_many_samples_are_thinned_and_it_says_so(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", "il-act", 0, n=40)
    all_of_them = data_of(write_html(run, tmp_path / "a.html"))["samples"]
    assert all_of_them["most"] == 24 and all_of_them["episodes"]["of"] == 3 * 2 * 40
    assert len(all_of_them["episodes"]["items"]) == 3 * 2 * 24
    monkeypatch.setattr(report_samples, "SIZE", 20_000)
    few = data_of(write_html(run, tmp_path / "b.html"))["samples"]
    assert few["most"] == 3 and len(few["episodes"]["items"]) == 3 * 2 * 3
    assert len(json.dumps(few)) <= 20_000 and few["episodes"]["of"] == 240
    kept = {
        i: {e["id"] for e in few["episodes"]["items"] if e["stage"] == i}
        for i in ("0-base", "2-act")
    }
    assert kept["0-base"] == kept["2-act"]  # the same tasks on both sides


def test_a_long_text_is_cut_and_it_says_so():
    cut = report_samples.clip("x" * 5000)
    assert cut.startswith("x" * 4000 + " …") and "1000 more" in cut


# ---- bad input ----------------------------------------------------------------------------------


def refuses(folder: Path, out: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        write_html(folder, out)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folders_that_cannot_be_reported(comparison, run_folder, tmp_path):
    assert "neither a run folder" in refuses(tmp_path)
    (tmp_path / "empty" / "runs").mkdir(parents=True)
    assert "the comparison is not finished" in refuses(tmp_path / "empty")
    part = shutil.copytree(comparison, tmp_path / "part")
    (part / "runs" / "il" / "seed1" / "results.json").unlink()
    says = refuses(part)
    assert "il/seed1: no results.json" in says and "--resume" in says and "compare again" in says
    run = shutil.copytree(run_folder, tmp_path / "run")
    (run / "results.json").unlink()
    assert "miniact run --resume" in refuses(run)
    assert "cannot be written" in refuses(run_folder, run / "config.yaml" / "x.html")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"results": 3}', '{"results": {}}', '{"results": {"base": 3}}']
)
def test_damaged_results_are_one_line(run_folder, tmp_path, content):
    run = shutil.copytree(run_folder, tmp_path / "run")
    (run / "results.json").write_text(content)
    assert str(run) in refuses(run)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"recipes": ["il"], "seeds": [0], "rows": []}',
        '{"recipes": [], "seeds": [], "rows": []}',
        '{"recipes": ["../il"], "seeds": [0], "rows": [{"recipe": "../il"}]}',
        '{"recipes": ["il"], "seeds": [7], "rows": [{"recipe": "il"}]}',
    ],
)
def test_damaged_comparisons_are_one_line(comparison, tmp_path, content):
    folder = shutil.copytree(comparison, tmp_path / "cmp")
    (folder / "comparison.json").write_text(content)
    assert str(folder) in refuses(folder)


def test_damaged_lines_are_left_out_and_named(run_folder, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / "run")
    with (run / "samples" / "2-act.jsonl").open("a") as file:
        file.write('{"step": 3, "pro\n{"step": 4}\n[1]\n')
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "1-il", "step": 99, "loss": NaN, "lr": 1e999}\n')
    data = data_of(write_html(run, tmp_path / "r.html"))
    named, missing = data["notes"]
    assert (
        "2-act.jsonl: damaged and left out: line 4, 6" in named and "1 entries left out" in missing
    )
    assert len([g for g in data["samples"]["groups"]["items"] if g["stage"] == "2-act"]) == 3


# ---- in a browser -------------------------------------------------------------------------------

SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def missing(what: str) -> None:
    """Without a browser these tests are skipped; in CI that would hide a failure."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{what} is not installed")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[Any]:
    programs = [shutil.which(n) for n in ("chromium", "google-chrome", "chrome")]
    program, driver = next(filter(None, programs), None), shutil.which("chromedriver")
    if not program or not driver:
        missing("chromium or chromedriver")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        missing("selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    yield browser
    browser.quit()


class Page:
    """A report opened from disk."""

    def __init__(self, browser: Any, folder: Path, width: int = 1200, dark: bool = False) -> None:
        self.browser = browser
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.media(dark)
        self.file = write_html(folder)
        self.data = data_of(self.file)
        browser.get(self.file.as_uri())
        self.js("localStorage.clear()")
        self.reload()
        self.errors()  # forget what the page before this one did

    def reload(self) -> None:
        self.browser.get(self.file.as_uri())
        self.wait("return document.documentElement.dataset.ready === 'true'")
        self.wait("return document.querySelectorAll('figure svg.chart').length > 0")

    def media(self, dark: bool, kind: str = "") -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        wanted = {"media": kind, "features": [scheme]}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)

    def js(self, code: str, *arguments: Any) -> Any:
        return self.browser.execute_script(code, *arguments)

    def wait(self, code: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 20).until(lambda browser: browser.execute_script(code))

    def find(self, css: str) -> list[Any]:
        return self.browser.find_elements("css selector", css)

    def click(self, css: str, number: int = 0) -> None:
        self.js("document.querySelectorAll(arguments[0])[arguments[1]].click()", css, number)

    def text(self, css: str) -> str:
        return self.js("return document.querySelector(arguments[0]).textContent", css)

    def open(self, kind: str) -> None:
        self.js("document.getElementById(`tab-${arguments[0]}`).click()", kind)

    def set(self, name: str, value: str) -> None:
        code = "const s = document.querySelector(`.filters [name=${arguments[0]}]`);"
        code += "s.value = arguments[1]; s.dispatchEvent(new Event('change'));"
        self.js(code + "s.dispatchEvent(new Event('input'))", name, value)

    def listed(self) -> list[str]:
        code = "return [...document.querySelectorAll('.list button')].map(b => b.textContent)"
        return self.js(code)

    def keys(self, *names: str) -> None:
        from selenium.webdriver.common.keys import Keys

        for name in names:
            self.browser.switch_to.active_element.send_keys(getattr(Keys, name))

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def colour(self, css: str, of: str) -> str:
        code = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        return self.js(code, css, of)


KINDS = ("pairs", "groups", "episodes")


def test_a_report_opens_from_disk_without_an_error(chromium, run_folder, comparison, tmp_path):
    bare = shutil.copytree(run_folder, tmp_path / "bare")
    for name in ("samples", "stages", "pairs.jsonl", "metrics.jsonl", "environment.json"):
        shutil.rmtree(bare / name) if (bare / name).is_dir() else (bare / name).unlink()
    for folder in (run_folder, comparison, bare):
        page = Page(chromium, folder)
        page.js("document.querySelectorAll('details').forEach(d => { d.open = true })")
        for kind in KINDS if folder != bare else ():
            page.open(kind)
            assert page.listed()
        assert page.errors() == []
    assert "This folder holds no samples" in page.text("#samples-about")
    assert "No training steps were recorded" in page.text("#learning")


def test_the_table_says_what_was_measured(chromium, run_folder, comparison):
    page = Page(chromium, run_folder)
    rows = [row.text.split() for row in page.find("#results-table tbody tr")]
    assert [row[:2] for row in rows[1:]] == [["after", s] for s in ("il", "act", "rl")]
    assert rows[3][2:4] == ["75.0", "30–95"]  # 3 of 4, Wilson
    page = Page(chromium, comparison)
    first, second = (row.text for row in page.find("#results-table tbody tr"))
    assert "baseline" in first and "▲" not in first
    assert "▲ +10.0 [2, 18]" in second and "\n+10.0 [−5, 25]" in second
    page.click("#results-table th button")
    assert page.find("#results-table tbody th")[0].text == "il → act → rl"
    assert page.find("th[aria-sort=descending]")
    before = len(page.find("#results-table thead th"))
    page.click("#all-metrics")
    assert len(page.find("#results-table thead th")) > before
    page.click("#recipes input")
    assert [th.text for th in page.find("#results-table tbody th")] == ["il → act → rl"]
    assert "il → act" in page.text("#forest .legend, #stages .legend")
    assert len(page.find("#stages figure:first-child .legend li")) == 1


def test_a_measure_says_what_it_means(chromium, run_folder):
    page = Page(chromium, run_folder)
    titles = page.js("return [...document.querySelectorAll('th, figcaption')].map(x => x.title)")
    meant = {m.meaning for m in (*TRAINING, *EVALUATION)} & set(titles)
    assert {m.meaning for m in EVALUATION if m.label in ("success", "judgement")} <= meant
    assert next(m for m in TRAINING if m.name == "correct" and "act" in m.stages).meaning in meant
    assert page.errors() == []


def test_nothing_that_was_written_runs(chromium, hostile):
    page = Page(chromium, hostile)
    for kind in KINDS:
        page.open(kind)
        for at in range(min(len(page.listed()), 4)):
            page.js("document.querySelectorAll('.list button')[arguments[0]].click()", at)
            page.js("document.querySelectorAll('details').forEach(d => { d.open = true })")
        page.set("search", "pwned")
        assert page.listed() and page.find(".detail mark")
    page.wait("return document.querySelectorAll('.run dd').length > 0")
    assert page.js("return window.pwned") is None
    assert page.find("img") == [] and len(page.find("script")) == 2
    assert page.errors() == []
    assert EVIL.replace("\u2028", "") in page.text("#browser").replace("\u2028", "")
    assert EVIL_NAME in page.text("#results-table") and EVIL in page.text("#runs")


def test_the_page_lets_no_script_in_by_any_other_way(chromium, run_folder):
    """The policy itself, not only the escaping: what is forced into the page does not run."""
    page = Page(chromium, run_folder)
    refused = page.js(
        "try { document.body.innerHTML = '<b>x</b>'; return 'set' } catch (e) { return e.name }"
    )
    assert refused == "TypeError"
    for way in (
        "const s = document.createElement('script'); s.text = 'window.pwned=1'; b.append(s)",
        "const a = document.createElement('a'); a.href = 'javascript:window.pwned=2'; a.click()",
        "const i = document.createElement('img'); i.setAttribute('onerror', 'window.pwned=3');"
        "i.src = 'x:'; b.append(i)",
        "setTimeout('window.pwned=4')",
    ):
        page.js(f"const b = document.body; try {{ {way} }} catch {{ }}")
    page.browser.execute_async_script("setTimeout(arguments[0], 200)")
    assert page.js("return window.pwned") is None
    assert len(page.errors()) >= 4


@pytest.mark.parametrize("kind", KINDS)
def test_every_filter_filters(chromium, comparison, kind):
    page = Page(chromium, comparison)
    page.open(kind)
    everything = page.listed()
    selects = page.js(
        "return [...document.querySelectorAll('.filters select')].map(s => "
        "[s.name, [...s.options].map(o => o.value)])"
    )
    assert selects
    for name, options in selects:
        if name in ("left", "right"):
            continue
        parts = []
        for option in options[1:]:
            page.set(name, option)
            found = page.listed()
            assert set(found) <= set(everything), (name, option)
            assert page.text(".shown").startswith(f"{len(found)} of {len(everything)} ")
            parts.append(len(found))
        page.set(name, "")
        assert page.listed() == everything
        assert max(parts) > 0 and min(parts) < len(everything), (name, parts)
        if name in ("asked", "seed", "stage", "rewards", "solved"):  # each entry has one of these
            assert sum(parts) == len(everything), (name, parts)
    assert page.errors() == []


def test_filters_agree_with_the_folder(chromium, comparison):
    page = Page(chromium, comparison)
    page.open("groups")
    page.set("rewards", "mixed")
    assert len(page.listed()) == 2 * 2  # the groups of step 0: two seeds, two stages
    page.set("form", "cut")
    assert len(page.listed()) == 4
    page.set("stage", "2-act")
    assert all(entry.startswith("act, step 0") for entry in page.listed())
    page.open("episodes")  # il after il: 1 + seed of id and 1 of ood; the other: 3 + seed and 3
    counts = {}
    for outcome in ("a", "b", "both", "neither"):
        page.set("solved", outcome)
        counts[outcome] = len(page.listed())
    assert counts == {"a": 0, "b": 8, "both": 5, "neither": 3}
    page.set("solved", "")
    page.set("stuck", "a")
    assert len(page.listed()) == 16 - 5
    page.set("left", "1/3-rl")
    assert len(page.listed()) == 3
    page.open("pairs")
    page.set("judged", "wrong")
    assert len(page.listed()) == 2 and all("2 of 4 right" in entry for entry in page.listed())


def test_search_finds_texts_and_only_texts(chromium, run_folder):
    page = Page(chromium, run_folder)
    page.open("episodes")
    page.set("search", "APPLE ood/3")
    assert len(page.listed()) == 1
    assert {m.text for m in page.find(".detail mark")} == {"apple"}
    page.set("search", "nowhere to be found")
    assert page.listed() == [] and page.text(".detail") == ""
    assert page.text(".shown").startswith("0 of")
    page.set("search", "moves")  # the name of a field, which is no text
    assert page.listed() == []
    page.set("search", "(.*[")
    assert page.listed() == [] and page.errors() == []


def test_episodes_stand_side_by_side_with_their_failures_marked(chromium, run_folder):
    page = Page(chromium, run_folder)
    page.open("episodes")
    page.set("left", "0/0-base")
    page.set("right", "0/3-rl")
    left, right = page.find(".episodes > div")
    assert "not solved" in left.text and "stuck" in left.text and "✓ solved" in right.text
    assert "failed again: 4 times running" in left.text and "failed again" not in right.text
    assert len(left.find_elements("css selector", "li.stuck")) == 4
    assert left.text.count("From here on the two differ") == 1
    page.set("right", "0/0-base")
    assert "differ" not in page.text(".episodes")


def test_a_pair_shows_reasoning_choice_and_the_right_answer(chromium, run_folder):
    page = Page(chromium, run_folder)
    page.open("pairs")
    assert "Action 2 ✓ the expert’s" in page.text(".choice.right")
    answers = [li.text for li in page.find(".answers li")]
    marks = [(a.count("✓"), a.count("✗")) for a in answers]
    assert marks == [(1, 0), (1, 0), (0, 1), (0, 0)]
    assert page.text(".answers .reasoning") == "No "
    assert page.text(".answers .answer") == "<choice>2</choice>"
    page.open("groups")
    shown = [li.text for li in page.find(".answers li")]
    assert "reward 1" in shown[0] and "advantage +0.866" in shown[0]
    assert "advantage -0.866" in shown[3] and "cut off" in shown[3]


def test_the_reader_is_the_critic(chromium, run_folder, tmp_path):
    """Choose, then see what the model chose after every stage, and the score of both."""
    page = Page(chromium, run_folder)
    assert len(page.data["quiz"]) == 3 and page.errors() == []
    assert "put pen 0 in drawer" in page.text("#quiz-card h3")
    for number, question in enumerate(page.data["quiz"], start=1):
        assert "eh?" not in page.text("#quiz-card")  # nothing is told before one has chosen
        assert not page.find("button.option.right")
        wrong = number == 2
        page.click("button.option", question["right"] ^ wrong)
        assert "✓ the expert’s" in page.text("button.option.right")
        said = [li.text for li in page.find("#quiz .answers li")]
        assert [line.split("\n")[0] for line in said] == [
            "base",
            "after il",
            "after act",
            "after rl",
        ]
        assert "no valid choice" in said[0] and "eh?" in said[0]
        assert f"✓ chose {question['right'] + 1}" in said[2] and "So " in said[2]
        if number < 3:
            page.keys("ENTER")  # the focus is on the next question
    assert "Right so far: you 2 of 3; the model: base 0, after il 3" in page.text("#quiz-score")
    old = shutil.copytree(run_folder, tmp_path / "old")  # a run of before there were judgements
    for file in old.glob("stages/*/judgements.jsonl"):
        file.unlink()
    page = Page(chromium, old)
    assert not page.find("#quiz") and page.errors() == []


def test_the_verdict_comes_first_and_in_words(chromium, run_folder, comparison):
    page = Page(chromium, run_folder)
    order = page.js("return [...document.querySelectorAll('main > section')].map(s => s.id)")
    assert order[:4] == ["words", "quiz", "samples", "results"]
    assert len(page.find("#verdict p")) == 3 and "What one seed cannot say" in page.text("#verdict")
    page = Page(chromium, comparison)
    assert page.find("#verdict-words dt")
    assert "(by 10.0 points)" in page.text("#verdict") and "than il." in page.text("#verdict")


def test_every_word_of_the_table_is_explained_under_it(chromium, run_folder):
    page = Page(chromium, run_folder)
    heads = {th.text.split(",")[0] for th in page.find("#results-table thead button")}
    told = "; ".join(dt.text for dt in page.find("#words-of-table dt")).split("; ")
    words = {word.split(",")[0] for word in told}
    assert heads == words and "success" in words


def test_an_episode_has_a_link_of_its_own(chromium, run_folder):
    page = Page(chromium, run_folder)
    page.open("episodes")
    page.click(".list button", 2)
    task = page.text(".detail h3")
    target = page.find(".detail .meta a")[0].get_attribute("href")
    chromium.get("about:blank")
    chromium.get(target)
    page.wait("return document.documentElement.dataset.ready === 'true'")
    assert page.text(".detail h3") == task


def test_the_numbers_come_as_csv(chromium, comparison):
    page = Page(chromium, comparison)
    page.js(
        "window.made = null; URL.createObjectURL = (blob) => { window.made = blob; return '#'; };"
    )
    page.click("#csv")
    page.js("window.made.text().then((text) => { window.text = text; })")
    page.wait("return window.text !== undefined")
    lines = page.js("return window.text").splitlines()
    assert lines[0].startswith("recipe,measure,value,low,high,difference")
    assert 'il → act → rl,"success, id",0.6,0.4,0.72,' in "\n".join(lines)


def test_on_a_phone_the_table_is_read_downwards(chromium, run_folder):
    page = Page(chromium, run_folder, width=390)
    box = "return arguments[0].getBoundingClientRect().right <= 390"
    cells = page.find("#results-table tbody td")
    assert cells and all(page.js(box, cell) for cell in cells)
    label = "return getComputedStyle(arguments[0], '::before').content"
    assert "success, id" in page.js(label, cells[0])


def test_light_and_dark(chromium, run_folder):
    page = Page(chromium, run_folder, dark=False)
    light = page.colour("body", "backgroundColor")
    page.media(dark=True)
    dark = page.colour("body", "backgroundColor")
    assert light == "rgb(255, 255, 255)" and dark != light
    # the label follows the browser's event, which comes some time after the colour
    page.wait("return document.getElementById('theme').textContent === 'Light'")
    assert page.text("#theme") == "Light"
    page.find("#theme")[0].click()
    assert page.colour("body", "backgroundColor") == light and page.text("#theme") == "Dark"
    page.reload()
    assert page.colour("body", "backgroundColor") == light  # the choice is remembered


def test_all_of_it_works_from_the_keyboard(chromium, comparison):
    page = Page(chromium, comparison)
    page.keys("TAB")
    assert page.js("return document.activeElement.className") == "skip"
    page.js("document.getElementById('tab-pairs').focus()")
    page.keys("ARROW_RIGHT", "ARROW_RIGHT")
    assert page.js("return document.activeElement.id") == "tab-episodes"
    assert page.find("#tab-episodes[aria-selected=true]")
    for _ in range(8):  # two sides, four filters, search, list
        page.keys("TAB")
    assert page.js("return document.activeElement.dataset.i") == "0"
    outline = page.js("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    first = page.text(".detail h3 + p")
    page.keys("ARROW_DOWN")
    assert page.js("return document.activeElement.getAttribute('aria-current')") == "true"
    assert page.js("return document.activeElement.dataset.i") == "1"
    assert page.text(".detail h3 + p") != first
    page.keys("TAB")
    assert page.js("return document.activeElement.className") == "detail"
    page.js("document.querySelector('#learning svg.chart').focus()")
    page.keys("HOME", "ARROW_RIGHT")
    assert page.text("#announce").startswith("step 1: il ")
    page.js("document.querySelector('#forest svg.chart').focus()")
    page.keys("ARROW_DOWN")
    assert page.text("#announce").startswith("il: 50.0 [40–72], 2 seeds")
    nameless = page.js(
        "return [...document.querySelectorAll('button, select, input, [role=img], [role=region]')]"
        ".filter(n => !(n.getAttribute('aria-label') || n.textContent.trim() || n.labels?.length))"
        ".map(n => n.outerHTML)"
    )
    assert nameless == []


def test_pointing_at_a_chart_reads_it(chromium, comparison):
    from selenium.webdriver import ActionChains

    page = Page(chromium, comparison)
    chart = page.find("#learning svg.chart")[0]
    page.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", chart)
    assert page.text("#learning .at") == "at the last step"
    ActionChains(chromium).move_to_element_with_offset(chart, 0, 0).perform()
    page.wait("return /^step 1[0-3]$/.test(document.querySelector('#learning .at').textContent)")
    page.js("document.querySelector('#learning details.data').open = true")
    page.wait("return document.querySelectorAll('#learning details.data tbody tr').length === 24")


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_narrow_page_never_scrolls_sideways(chromium, hostile, width):
    page = Page(chromium, hostile, width=width)
    for kind in KINDS:
        page.open(kind)
        page.js("document.querySelectorAll('details').forEach(d => { d.open = true })")
        page.wait("return document.querySelectorAll('details.data tbody tr').length > 0")
        assert page.js("return document.documentElement.scrollWidth") <= width, kind


def test_on_paper_it_is_light_and_without_controls(chromium, run_folder):
    page = Page(chromium, run_folder, dark=True)
    page.find("#theme")[0].click()
    page.find("#theme")[0].click()  # dark by choice
    page.media(dark=True, kind="print")
    assert page.colour("body", "backgroundColor") == "rgb(255, 255, 255)"
    for css in ("nav.bar", ".filters", ".list", ".tabs"):
        assert page.colour(css, "display") == "none", css
    page.media(dark=False)


@pytest.mark.slow
def test_a_real_run(chromium, tmp_path):
    from click.testing import CliRunner

    from miniact.cli.main import main

    out = tmp_path / "run"
    steps = ["stage.il.steps=2", "stage.act.steps=2", "stage.rl.steps=1", "eval.episodes=3"]
    sizes = ["env.train_tasks=8", "env.heldout_tasks=4", "eval.states=4", "eval.pairs=4"]
    given = ["run", "household-plain", "--out", str(out), *steps, *sizes]
    assert CliRunner().invoke(main, given, catch_exceptions=False).exit_code == 0
    page = Page(chromium, out)
    assert page.data["notes"] == [] and page.errors() == []
    assert page.data["samples"]["groups"]["items"][0]["actions"]
    for kind in KINDS:
        page.open(kind)
        assert page.listed()


# ---- colours ------------------------------------------------------------------------------------

BLIND = {  # linear RGB as seen with full colour vision and without one kind of cone (Machado 2009)
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deutan": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "tritan": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}


def linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = np.cbrt(to_xyz @ np.clip(rgb, 0.001, 1) / (0.9505, 1, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_apart_and_read(mode):
    style = (Path(report_html.__file__).parent / "style.css").read_text()
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style)
    colours = {name: linear(pair[mode]) for name, *pair in found}
    light = {name: rgb @ (0.2126, 0.7152, 0.0722) + 0.05 for name, rgb in colours.items()}
    series = [f"s{i}" for i in range(6)]
    grounds = ("paper", "raised", "good-wash", "bad-wash")
    for names, over, least in (
        (series, ("paper",), 3.0),
        (("ink", "soft"), grounds, 4.5),
        (("good", "bad", "accent"), ("paper", "raised"), 4.5),
    ):
        for name in names:
            for ground in over:
                ratio = max(light[name], light[ground]) / min(light[name], light[ground])
                assert ratio >= least, (name, ground, ratio)
    for kind, matrix in BLIND.items():
        seen = [lab(np.array(matrix) @ colours[name]) for name in series]
        apart = min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i])
        assert apart > 20, kind
