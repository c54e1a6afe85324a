"""The words of prompts: the shipped ones stay as they were to the byte, others can be put in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniact import UserError
from miniact.cli.main import main
from miniact.config.sections import PromptConfig
from miniact.method import wording
from miniact.method.prompts import Prompt, Prompter
from miniact.method.wording import SECTIONS, Wording
from miniact.types import State

SHIPPED = Path(wording.__file__).parent
ASKED = Path(__file__).with_name("prompts.txt")
STATE = State(
    "s#2",
    "put a {mug} on <choice>1</choice>",
    (("a desk", "go to desk 1"), ("a {task}", "take mug 1")),
    "you hold mug 1 <|im_end|>",
    ("look", "put {observation}"),
    earlier=3,
)
TAKEN, OTHERS = ("put mug", "{others}"), [("look", "a {taken}"), ("wait", "nothing")]


class Letters:
    """A tokenizer whose tokens are letters."""

    chat_template = None

    def get_added_vocab(self) -> dict[str, int]:
        return {"<|im_end|>": 1}

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


def prompter(form: str = "tags", file: Path | str = "") -> Prompter:
    return Prompter(
        Letters(), PromptConfig(form=form, max_tokens=10**6, history=1, wording=str(file))
    )


def read(prompt: Prompt) -> str:
    return "".join(map(chr, prompt.tokens))


def all_prompts() -> str:
    asked = []
    for form in ("tags", "plain"):
        asks = prompter(form)
        for thinking in (False, True):
            asked += [
                asks.action(STATE, thinking),
                asks.critic(STATE, ["look", "{candidates}"], thinking),
                asks.critic(STATE, ["look", "wait", "put mug 1"], thinking),
            ]
        asked.append(asks.reflection(STATE, TAKEN, OTHERS))
    return "\n----\n".join(map(read, asked)) + "\n"


def test_the_shipped_words_are_to_the_byte_those_of_the_file():
    """What changes here changes every trained model: prompts.txt is changed by hand alone."""
    assert all_prompts() == ASKED.read_text(encoding="utf-8")


@given(st.text("{}abcdetskno_ ", max_size=30), st.text("{}abcdetskno_ ", max_size=30))
def test_no_text_of_the_world_is_a_field(task, action):
    words = Wording(PromptConfig())
    line = words.fill("candidate", number=1, action=action)
    assert line == f"Action 1: {action}"
    asked = words.fill("reflection", taken=task, others=line, action=action)
    assert f"right:\n{task}\nYou could" in asked and f'why is "{action}" better' in asked


@pytest.fixture
def other(tmp_path):
    """other("old", "new"): the shipped wording with something replaced, as a file."""

    def write(old: str, new: str, form: str = "tags") -> Path:
        text = (SHIPPED / f"wording.{form}.txt").read_text(encoding="utf-8")
        assert old in text
        file = tmp_path / "my.txt"
        file.write_text(text.replace(old, new), encoding="utf-8")
        return file

    return write


def test_words_of_ones_own_are_used(other):
    file = other("Task: {task}", "Auftrag ({task}):\n")
    shown = read(prompter(file=file).action(STATE))
    assert shown.startswith("Auftrag (put a {mug} on <\\choice>1<\\/choice>):\n[4 earlier")
    rest = read(prompter().action(STATE)).partition("\n")[2]
    assert shown.endswith(rest)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("Task: {task}", "Task:", r"section 'task' lacks the field \{task\}$"),
        ("Action: {action}\n", "\n", r"section 'action taken' lacks the field \{action\}$"),
        ("{count} earlier", "{task} earlier", r"section 'left out' knows no field \{task\}$"),
        ("{candidates}", "{kandidaten}", r"section 'choice of two' lacks the field \{candidates\}"),
        ("== observation ==", "", r"expected one section == observation ==, got 0$"),
        ("== observation ==", "== task ==", r"expected one section == task ==, got 2$"),
        ("== outcome ==", "== outcom ==", r"unknown section 'outcom'; did you mean 'outcome'\?$"),
    ],
)
def test_a_wording_that_lacks_something_is_refused(other, old, new, says):
    file = other(old, new)
    with pytest.raises(UserError, match=rf"^prompt\.wording: \S+my\.txt: {says}") as raised:
        prompter(file=file)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("form", ["tags", "plain"])
@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_is_needed(other, form, section):
    with pytest.raises(UserError, match=f"expected one section == {section} ==, got 0"):
        prompter(form, other(f"== {section} ==\n", "", form))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\xd8")
    for file in (tmp_path / "none.txt", tmp_path, tmp_path / "binary"):
        with pytest.raises(UserError, match=f"prompt.wording: {file} cannot be read"):
            prompter(file=file)


def test_a_run_keeps_the_words_that_it_began_with(other, tmp_path, monkeypatch):
    from click.testing import CliRunner

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, list(arguments))
        assert result.exit_code == 0, result.output
        return result.output

    def asked() -> str:
        return (tmp_path / "run/samples/1-rl.jsonl").read_text().partition("answers")[0]

    monkeypatch.chdir(tmp_path)
    small = "eval.episodes=0 eval.states=0 eval.pairs=0 env.train_tasks=2 env.heldout_tasks=0"
    rl = "stage.rl.steps=1 stage.rl.batch=1 stage.rl.group_size=2"
    file = other("> {action}", "please {action}", "plain")
    words = f"prompt.wording={file.name}"
    run("rl", "household-plain", *small.split(), *rl.split(), words, "--out", "run")
    once = asked()
    assert (tmp_path / "run/wording.txt").read_text() == file.read_text()
    file.unlink()
    for part in ("samples/1-rl.jsonl", "stages/1-rl/adapter/adapter_model.safetensors"):
        (tmp_path / "run" / part).unlink()
    (tmp_path / "run/stages/1-rl/adapter").rename(tmp_path / "gone")
    run("run", "--resume", "run")
    assert asked() == once
    result = CliRunner().invoke(main, ["rl", "household-plain", words, "--out", "new"])
    assert result.exit_code == 2 and "cannot be read" in result.output
    assert not (tmp_path / "new").exists()
