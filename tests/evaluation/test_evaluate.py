"""Metrics: intervals, and what each figure means, by policies whose judgement is known."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import FakePolicy
from hypothesis import given
from hypothesis import strategies as st

from miniact.config.sections import EvalConfig, PromptConfig
from miniact.evaluation.evaluate import judgement_accuracy, next_action_accuracy
from miniact.evaluation.rates import rate, rate_per_question, wilson
from miniact.method.prompts import Prompter
from miniact.types import Question, State

PAIRS = [Question(State(f"s{i}", "t", (), "o"), f"good {i}", (f"bad {i}",)) for i in range(10)]


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_rate_and_lies_in_0_1(case):
    k, n = case
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1 and high - low > 0


def test_the_interval_matches_published_values():
    # Newcombe 1998, table I: 81 of 263 → (0.2553, 0.3662); 0 of 20 → (0, 0.1611)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)


def test_nothing_counted_is_no_rate():
    assert rate([])["value"] is None


def judge(tokenizer, script):
    policy = FakePolicy(tokenizer, script)
    prompter = Prompter(tokenizer, PromptConfig(form="tags", max_tokens=4000))
    return judgement_accuracy(policy, prompter, PAIRS, EvalConfig(), seed=0)


def knows(prompt: str, i: int) -> str:
    return f"<choice>{1 if 'Action 1: good' in prompt else 2}</choice>"


def value(result, name):
    return result[name]["value"]


def test_a_perfect_critic(tokenizer):
    result = judge(tokenizer, knows)
    assert value(result, "accuracy") == value(result, "consistent") == 1.0
    assert value(result, "expert_first") == value(result, "expert_second") == 1.0


def test_a_critic_that_always_says_one_earns_chance_and_shows_its_bias(tokenizer):
    result = judge(tokenizer, lambda prompt, i: "<choice>1</choice>")
    assert value(result, "accuracy") == 0.5 and value(result, "valid") == 1.0
    assert value(result, "expert_first") == 1.0 and value(result, "expert_second") == 0.0
    assert value(result, "consistent") == 0.0


def test_format_is_told_apart_from_judgement(tokenizer):
    answers = iter([None, True] * 10)
    result = judge(tokenizer, lambda p, i: knows(p, i) if next(answers) else "hm")
    assert value(result, "accuracy") == 0.5 and value(result, "valid") == 0.5
    assert value(result, "given_valid") == 1.0 and result["given_valid"]["n"] == 10


def test_next_action_accuracy_is_canonical(tokenizer):
    policy = FakePolicy(tokenizer, lambda prompt, i: "<action>Go  East.</action>")
    prompter = Prompter(tokenizer, PromptConfig())
    states = [(State("a", "t", (), "o"), "go east"), (State("b", "t", (), "o"), "go west")]
    result = next_action_accuracy(policy, prompter, states, EvalConfig(), seed=0)
    assert result["accuracy"]["value"] == 0.5 and result["valid"]["value"] == 1.0


def test_both_orders_of_a_question_count_once():
    """Twenty answers to ten questions: the interval is as wide as ten observations make it."""
    right_QP = np.array([[True, True]] * 8 + [[True, False]] * 2)
    valid_QP = np.array([[True, True]] * 9 + [[False, False]])
    everything = rate_per_question(right_QP, np.ones_like(right_QP))
    assert everything == {"value": 0.9, "n": 10, "low": wilson(9, 10)[0], "high": wilson(9, 10)[1]}
    valid = rate_per_question(right_QP, valid_QP)
    assert valid["n"] == 9 and valid["value"] == 17 / 18
    nothing = rate_per_question(right_QP, np.zeros_like(right_QP))
    assert nothing["value"] is None and (nothing["n"], nothing["high"]) == (0, 1.0)
