"""The rationale intervention: what is forced on a critic, and what it does with it."""

from __future__ import annotations

import re

import pytest
from fakes import FakePolicy
from tiny_models import write_model

from miniact import UserError
from miniact.backends.protocol import load_policy
from miniact.config import load_config
from miniact.config.sections import EvalConfig, ModelConfig, PromptConfig
from miniact.evaluation.evaluate import judgement_accuracy
from miniact.evaluation.intervene import forced_prefix, wrong_choice
from miniact.method.prompts import Prompter
from miniact.types import Question, State

STATE = State("s", "put an apple in the fridge", (), "you see a fridge")
PAIRS = [Question(STATE, f"open fridge {i}", (f"go to bed {i}",)) for i in range(5)]


def judge(tokenizer, script, kind, asked=PAIRS):  # type: ignore[no-untyped-def]
    policy = FakePolicy(tokenizer, script)
    prompter = Prompter(tokenizer, PromptConfig(max_tokens=4000))
    config = EvalConfig(judge_thinking=True, intervene=kind)
    return judgement_accuracy(policy, prompter, asked, config, seed=0), policy.prompts


def right(prompt: str) -> int:
    return int(re.search(r"Action (\d): open", prompt)[1])  # type: ignore[index]


def by_reasoning(prompt: str, i: int) -> str:
    """A critic whose choice is what its rationale says; without one it says 1."""
    argued = re.search(r"the better action is number (\d)", prompt.rpartition("assistant")[2])
    if prompt.endswith("<choice>"):
        return f"{argued[1] if argued else 1}</choice>"
    return f"I see.\n<choice>{right(prompt)}</choice>"


def by_instinct(prompt: str, i: int) -> str:
    """A critic that has decided before it reasons."""
    answer = f"{right(prompt)}</choice>"
    return answer if prompt.endswith("<choice>") else f"So.\n<choice>{answer}"


@pytest.mark.parametrize(
    ("critic", "kind", "accuracy", "followed"),
    [
        (by_reasoning, "none", 1.0, None),
        (by_reasoning, "remove", 0.5, None),
        (by_reasoning, "wrong", 0.0, 1.0),
        (by_instinct, "none", 1.0, None),
        (by_instinct, "remove", 1.0, None),
        (by_instinct, "wrong", 1.0, 0.0),
    ],
)
def test_it_tells_reasoning_from_instinct(tokenizer, critic, kind, accuracy, followed):
    result, prompts = judge(tokenizer, critic, kind)
    assert result["accuracy"]["value"] == accuracy and result["valid"]["value"] == 1
    assert ("followed" in result) == (followed is not None)
    if followed is not None:
        assert result["followed"]["value"] == followed and result["followed"]["n"] == 5
    assert all("Think first" in p for p in prompts)  # the prompt is that of free reasoning
    assert all(p.endswith("<choice>") == (kind != "none") for p in prompts)


def test_the_wrong_argument_names_the_wrong_action_and_its_number(tokenizer):
    _, prompts = judge(tokenizer, by_reasoning, "wrong")
    for prompt in prompts:
        thought = prompt.rpartition("assistant\n")[2]
        wrong = 3 - right(prompt)
        i = re.search(r"open fridge (\d)", prompt)[1]  # type: ignore[index]
        assert f"the better action is number {wrong}: go to bed {i}.\n<choice>" in thought
        assert f'"open fridge {i}" does not help' in thought


def test_the_wrong_choice_is_never_the_right_one():
    for choices in range(2, 7):
        wrong = [wrong_choice(choices, at) for at in range(choices)]
        assert sorted(wrong) == list(range(choices))
        assert all(w != at for at, w in enumerate(wrong))


def test_three_candidates(tokenizer):
    asked = [Question(STATE, "open fridge", ("go to bed", "look"))]
    result, _ = judge(tokenizer, by_reasoning, "wrong", asked)
    assert result["followed"] == result["valid"] and result["followed"]["n"] == 1
    assert result["accuracy"]["value"] == 0


def test_foreign_text_in_the_argument_can_not_answer(tokenizer):
    """An action that looks like an answer is only quoted in the forced thought."""
    prompter = Prompter(tokenizer, PromptConfig())
    pair = Question(STATE, "<choice>1</choice>", ("</think><choice>2</choice>",))
    shown = pair.present(0).actions
    prefix = forced_prefix(prompter, "wrong", shown, 0)
    assert prompter.parse_choice(prefix + "1</choice>", shown) == 0


def test_models_that_think_in_tags_get_the_thought_in_tags(make_tokenizer, switch_tokenizer):
    prompter = Prompter(switch_tokenizer, PromptConfig())
    assert forced_prefix(prompter, "remove", ("a", "b"), 0) == "<think>\n\n</think>\n\n<choice>"
    wrong = forced_prefix(prompter, "wrong", ("a", "b"), 0)
    assert wrong.startswith("<think>\nI compare") and wrong.endswith("b.\n</think>\n\n<choice>")
    assert prompter.parse_choice(wrong + "2</choice>", ("a", "b")) == 1

    opens = "{{ messages[0].content }}{% if add_generation_prompt %}assistant\n<think>\n{% endif %}"
    prompter = Prompter(make_tokenizer(opens), PromptConfig())
    assert forced_prefix(prompter, "remove", ("a", "b"), 0) == "\n</think>\n\n<choice>"
    assert forced_prefix(prompter, "none", ("a", "b"), 0) == ""


def test_a_real_model_goes_on_from_the_prefix(tokenizer, tmp_path):
    """The sampled answers are those of the prompt with the prefix behind it, token for token."""
    folder = write_model(tmp_path / "m", "llama-tied", tokenizer, max_position_embeddings=4096)
    policy = load_policy(ModelConfig(path=str(folder), backend="torch", device="cpu"), 0)
    prompter = Prompter(policy.tokenizer, PromptConfig())
    config = EvalConfig(judge_thinking=True, intervene="wrong", judge_max_tokens=3)
    asked: list[tuple[int, ...]] = []
    sample = policy.sample

    def listening(prompts, *rest):  # type: ignore[no-untyped-def]
        asked.extend(prompts)
        return sample(prompts, *rest)

    policy.sample = listening  # type: ignore[method-assign]
    result = judgement_accuracy(policy, prompter, PAIRS[:2], config, seed=0)
    assert result["accuracy"]["n"] == result["followed"]["n"] == 2
    shown = PAIRS[0].present(0).actions
    free = prompter.critic(STATE, shown, thinking=True).tokens
    assert asked[0][: len(free)] == free
    begun = policy.tokenizer.decode(asked[0][len(free) :])
    assert begun == forced_prefix(prompter, "wrong", shown, 0)


@pytest.mark.parametrize("kind", ["remove", "wrong"])
def test_plain_replies_hold_no_reasoning_to_intervene_in(kind):
    with pytest.raises(UserError, match="plain replies hold no reasoning"):
        options = [f"eval.intervene={kind}", "eval.judge_thinking=true"]
        load_config(None, ["prompt.form=plain", *options])
    with pytest.raises(UserError, match=rf"eval\.intervene: {kind} .* set eval\.judge_thinking"):
        load_config(None, [f"eval.intervene={kind}", "eval.judge_thinking=false"])
    assert load_config(None, [f"eval.intervene={kind}", "eval.judge_thinking=true"])
