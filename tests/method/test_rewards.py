"""Rewards: canonical forms, and that nothing outranks being right."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from miniact.method.rewards import action_reward, canonical, choice_reward, mix_format, same_action

# text that comes close to JSON, to punctuation and to the oddities of lower()
MESSY = st.text() | st.lists(
    st.sampled_from(
        [*'{}[]":,.!?; \t\n\r\v\u3000\u2028aAß01', "İ", "Σ", "true", "NaN", "1e400", '"k"']
    )
).map("".join)

NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False, width=32)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)
TOOL_CALLS = st.dictionaries(st.text(max_size=4), VALUES, max_size=4) | st.lists(VALUES, max_size=4)
NEAR = st.lists(st.sampled_from([0, 1, 1.5, -1, True, False, None, "", "0", "1", "a", "A", [], {}]))
SHARES = st.floats(0, 0.499)


def rendered(draw, value) -> str:
    """`value` as JSON in one of its many spellings: key order, space, number form, escapes."""
    space = draw(st.sampled_from(["", " ", "\n", "\t  "]))
    if isinstance(value, dict):
        items = draw(st.permutations(list(value.items())))
        body = [f"{json.dumps(k)}{space}:{space}{rendered(draw, v)}" for k, v in items]
        return "{" + space + f"{space},{space}".join(body) + space + "}"
    if isinstance(value, list):
        return "[" + space + f"{space},".join(rendered(draw, v) for v in value) + space + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=draw(st.booleans()))
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    forms = [repr(value), f"{value:.17e}"]
    if value == int(value):
        forms += [str(int(value)), f"{int(value)}.0", f"{int(value)}.00E0"]
    return draw(st.sampled_from(forms))


@given(MESSY)
@example("İ.")
@example("foo.\u3000. ")
@example('{"A": TRUE}')
@example("[1e400]")
def test_canonical_twice_is_canonical_once(text):
    assert canonical(canonical(text)) == canonical(text)


@given(MESSY, st.sampled_from(["", " ", "\n"]), st.sampled_from(["", ".", " !", "?\n", ";"]))
def test_surrounding_space_and_final_punctuation_do_not_count(text, before, after):
    assert same_action(before + text + after, text)


@given(st.text(st.sampled_from("abC 1\t\n"), min_size=1))
def test_case_and_inner_space_of_text_do_not_count(text):
    assert same_action(text.upper(), text.lower())
    assert canonical(text) == " ".join(text.lower().split())


@pytest.mark.parametrize(
    ("one", "other"),
    [("go to shelf 1", "go to shelf 2"), ("take a mug", "take amug"), ("a.b", "ab"), ("", "look")],
)
def test_different_actions_stay_different(one, other):
    assert not same_action(one, other)


@settings(max_examples=60)
@given(TOOL_CALLS, st.data())
def test_a_tool_call_has_one_form_however_it_is_spelled(value, data):
    one, other = rendered(data.draw, value), rendered(data.draw, value)
    assert canonical(one) == canonical(other)
    assert json.loads(canonical(one)) == value


@given(NEAR, NEAR)
def test_tool_calls_are_equal_only_if_their_values_are(a, b):
    assert same_action(json.dumps(a), json.dumps(b)) == (strict(a) == strict(b))


def strict(value):
    """Python has True == 1; JSON has not."""
    if isinstance(value, dict):
        return {k: strict(v) for k, v in value.items()}
    if isinstance(value, list):
        return [strict(v) for v in value]
    return (isinstance(value, bool), value)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ('{"name": "buy", "n": 1}', '{"n":1.0,"name":"buy"}.', True),
        ('{"n": 1}', '{"n": 10e-1}', True),
        ('{"n": 1}', '{"n": "1"}', False),
        ('{"n": 1}', '{"n": true}', False),
        ('{"q": "Red"}', '{"q": "red"}', False),  # the case of a string is part of the value
        ("[1, 2]", "[2, 1]", False),
        ('{"a": 1}', '{"a": 1, "b": null}', False),
        ('{"n": 9007199254740993}', '{"n": 9007199254740992}', False),  # ids beyond float precision
        ('{"unfinished": ', '{"unfinished":', True),  # no JSON: plain text
    ],
)
def test_tool_calls_by_example(one, other, same):
    assert same_action(one, other) is same


def test_absurd_nesting_is_data():
    assert canonical("[" * 100_000) == "[" * 100_000
    assert canonical("[" + "9" * 10_000 + "]") == "[" + "9" * 10_000 + "]"


@given(SHARES, st.booleans(), st.booleans())
def test_right_outranks_wrong_whatever_the_format(weight, form_of_right, form_of_wrong):
    right, wrong = mix_format(1, form_of_right, weight), mix_format(0, form_of_wrong, weight)
    assert 0 <= wrong < right <= 1
    assert right <= mix_format(1, True, weight) and mix_format(0, False, weight) == 0


@given(st.none() | st.integers(0, 3), st.integers(0, 3), SHARES)
def test_choice_reward(choice, right, weight):
    reward = choice_reward(choice, right, format_weight=weight)
    if choice is None:
        assert reward == 0
    elif choice == right:
        assert reward == pytest.approx(1)
    else:
        assert reward == weight


@given(SHARES, st.floats(0, 0.499))
def test_action_reward_ranks_right_admissible_other_unparseable(weight, credit):
    def reward(action):
        return action_reward(
            action, "go north", ("go north", "look"), format_weight=weight, admissible_credit=credit
        )

    right, listed, other, none = map(reward, ("Go  north.", " LOOK ", "fly", None))
    assert right == pytest.approx(1)
    assert right > listed >= other >= none == 0
    assert other == weight
    assert listed == pytest.approx((1 - weight) * credit + weight)


def test_admissible_credit_needs_a_list_and_is_off_by_default():
    assert action_reward("look", "go", ("look",)) == 0
    assert action_reward("look", "go", None, admissible_credit=0.2) == 0
    assert action_reward("look", "go", (), admissible_credit=0.2) == 0
    assert action_reward("look", "go", ("Look.",), admissible_credit=0.2) == 0.2


# ---- rules of comparison -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "same", "different"),
    [
        ("words", ("Go to  Shelf 1.", "go to shelf 1"), ("go to shelf 1", "go to shelf 2")),
        ("exact", ("git add .\n", " git add ."), ("git add .", "git add")),
        ("exact", ("if a:\r\n    b", "if a:\n    b\n"), ("if a:\n    b", "if a:\n  b")),
        ("exact", ("cd ..", "cd .."), ("cd ..", "cd")),
        ("exact", ("  a\nb", "  a\nb"), ("  a\nb", "a\nb")),
        (
            "json",
            (
                '{"name": "f", "arguments": {"a": 1, "b": null}}',
                '{"arguments":{"a":1.0},"name":"f"}',
            ),
            ('{"name": "f", "arguments": {"a": "B"}}', '{"name": "f", "arguments": {"a": "b"}}'),
        ),
        (
            "json",
            ('<tool_call>\n{"name": "f"}\n</tool_call>', '{"name": "f", "arguments": {}}'),
            ('<tool_call>{"name": "f"}</tool_call>', '<tool_call>{"name": "g"}</tool_call>'),
        ),
        (
            "json",
            ('[{"name": "f"}, {"name": "g"}]', '[{"name": "g"}, {"name": "f"}]'),
            ('[{"name": "f"}, {"name": "g"}]', '[{"name": "f"}, {"name": "f"}]'),
        ),
        (
            "json",
            ('{"name": "f", "arguments": "{\\"a\\": 1}"}', '{"name":"f","arguments":{"a":1}}'),
            ("It rains.", "it rains"),
        ),
    ],
)
def test_rules(rule, same, different):
    assert same_action(*same, rule) and not same_action(*different, rule)
    for action in (*same, *different):
        assert canonical(canonical(action, rule), rule) == canonical(action, rule)


@given(st.text(), st.sampled_from(["words", "exact", "json"]))
def test_every_rule_is_idempotent(action, rule):
    once = canonical(action, rule)
    assert canonical(once, rule) == once
    assert same_action(action, once, rule)


def test_the_rule_reaches_the_reward():
    assert action_reward("git add .", "git add", None, "exact") == 0
    assert action_reward("git add .", "git add", None, "words") == 1
    assert action_reward("Look", "go", ("look",), "exact", admissible_credit=0.2) == 0
