"""Configuration: every mistake of a user is one clear message; what ships loads."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from miniact import UserError
from miniact.config import Config, load_config
from miniact.config.load import changed_keys, to_dict, with_overrides
from miniact.config.sections import STAGES
from miniact.envs import make_env

ROOT = Path(__file__).parents[2]
SHIPPED = sorted([*ROOT.glob("tiny_configs/*.yaml"), *ROOT.glob("miniact/tiny_configs/*.yaml")])


@pytest.fixture
def load(tmp_path):
    """Load YAML text from a file; `*overrides` as on the command line."""

    def load_text(text: str, *overrides: str) -> Config:
        file = tmp_path / "c.yaml"
        file.write_text(text, encoding="utf-8")
        return load_config(file, overrides)

    return load_text


# ---- what works ----------------------------------------------------------------------------


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_config_loads(file):
    config = load_config(file)
    assert all(name in STAGES for name in config.recipe)


def test_no_file_means_all_defaults():
    assert load_config(None) == Config()


def test_an_empty_file_means_all_defaults(load):
    assert load("# nothing but a comment\n") == Config()


def test_a_saved_config_loads_as_itself(load):
    config = load(
        "recipe: [act]\nstage: {act: {lr: 3e-5, thinking: true}}", "env.columns={task: x}"
    )
    assert load(yaml.safe_dump(to_dict(config))) == config


def test_sections_and_overrides(load):
    config = load("seed: 3\nstage:\n  act: {steps: 7}\n", "stage.act.lr=2e-5", "stage.rl.steps=1")
    assert config.seed == 3
    assert (config.stage.act.steps, config.stage.act.lr, config.stage.rl.steps) == (7, 2e-5, 1)
    assert config.stage.il == Config().stage.il


def test_a_later_override_wins():
    assert load_config(None, ["seed=1", "seed=2"]).seed == 2


@given(st.floats(1e-12, 1e6), st.integers(0, 10**15))
def test_numbers_in_any_form_arrive_exactly(lr, seed):
    config = load_config(None, [f"stage.il.lr={lr!r}", f"seed={seed}"])
    assert config.stage.il.lr == lr and config.seed == seed


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("stage.il.lr=1e-5", lambda c: c.stage.il.lr, 1e-5),  # to PyYAML this is a string
        ("stage.il.steps=1e2", lambda c: c.stage.il.steps, 100),
        ("stage.il.steps=20.0", lambda c: c.stage.il.steps, 20),
        ("seed=9007199254740993", lambda c: c.seed, 2**53 + 1),  # beyond the precision of floats
        ("model.alpha=8", lambda c: c.model.alpha, 8.0),
        ("stage.il.thinking=true", lambda c: c.stage.il.thinking, True),
        ("stage.il.thinking=False", lambda c: c.stage.il.thinking, False),
        ("stage.il.thinking='true'", lambda c: c.stage.il.thinking, True),
        ("recipe=act,il", lambda c: c.recipe, ["act", "il"]),
        ("recipe=[act, il]", lambda c: c.recipe, ["act", "il"]),
        ("recipe=", lambda c: c.recipe, []),
        ("env.columns={task: goal}", lambda c: c.env.columns, {"task": "goal"}),
        ("env.options.size=3", lambda c: c.env.options, {"size": 3}),
        ("model.path=/a=b", lambda c: c.model.path, "/a=b"),
        ("model.path=2020-13-45", lambda c: c.model.path, "2020-13-45"),  # no date
        ("model.device=cuda:1", lambda c: c.model.device, "cuda:1"),
        ("model.start=", lambda c: c.model.start, ""),
    ],
)
def test_values_are_brought_to_their_type(override, read, value):
    got = read(load_config(None, [override]))
    assert got == value and type(got) is type(value)


def test_an_override_of_an_aliased_section_changes_that_section_only(load):
    config = load("stage:\n  act: &same {steps: 3}\n  rl: *same\n", "stage.act.steps=9")
    assert (config.stage.act.steps, config.stage.rl.steps) == (9, 3)


def test_two_configs_share_no_list():
    one, other = load_config(None), load_config(None)
    one.recipe.append("il")
    assert other.recipe == ["il", "act", "rl"]


# ---- what does not -------------------------------------------------------------------------

MISTAKES = [
    # unknown keys, with a suggestion
    ("stage.act.setps=3", r"stage\.act\.setps: unknown key; did you mean 'steps'\?"),
    ("modle.path=x", r"modle: unknown key; did you mean 'model'\?"),
    ("zzz=1", r"zzz: unknown key; known: seed, recipe, model"),
    ("stage.il.group_size=4", r"stage\.il\.group_size: unknown key"),  # imitation has no groups
    # wrong types
    ("stage.il.steps=many", r"stage\.il\.steps: expected int, got 'many'"),
    ("stage.il.steps=1.5", r"stage\.il\.steps: expected int, got 1\.5"),
    ("stage.il.steps=true", r"stage\.il\.steps: expected int, got True"),
    ("stage.il.steps=[1]", r"stage\.il\.steps: expected int"),
    ("stage.il.steps=.inf", r"stage\.il\.steps: expected int, got inf"),
    ("stage.il.lr=fast", r"stage\.il\.lr: expected float, got 'fast'"),
    ("stage.il.lr=", r"stage\.il\.lr: expected float"),
    ("stage.il.thinking=maybe", r"stage\.il\.thinking: expected bool, got 'maybe'"),
    ("stage.il.thinking=1", r"stage\.il\.thinking: expected bool, got 1"),
    ("model.path=yes", r"model\.path: expected str, got True"),  # YAML's yes
    ("model.path={a: 1}", r"model\.path: expected str"),
    ("recipe={il: 1}", r"recipe: expected list"),
    ("env.columns=[a]", r"env\.columns: expected dict"),
    ("model=tiny", r"model: expected a section of keys, got 'tiny'"),
    ("seed.x=1", r"seed: expected int"),
    ("seed=2020-01-01", r"seed: expected int"),
    # wrong ranges and choices
    ("stage.il.steps=-1", r"stage\.il\.steps: -1 is too small, expected at least 0"),
    ("stage.il.lr=-1e-5", r"stage\.il\.lr: -1e-05 is too small"),
    ("stage.il.lr=.nan", r"stage\.il\.lr: nan is too small"),
    ("stage.il.lr=.inf", r"stage\.il\.lr: inf is not a finite number"),
    ("stage.act.group_size=1", r"stage\.act\.group_size: 1 is too small, expected at least 2"),
    ("model.rank=0", r"model\.rank: 0 is too small, expected at least 1"),
    ("model.adapter=loar", r"model\.adapter: 'loar' is not one of qlora, lora, full"),
    ("stage.rl.variant=ppo", r"stage\.rl\.variant: 'ppo' is not one of grpo, dr_grpo, dapo"),
    # sense
    ("recipe=il,atc", r"recipe\[1\]: unknown stage 'atc'; did you mean 'act'\?"),
    ("recipe=evaluate-me", r"recipe\[0\]: unknown stage 'evaluate-me'; known: il, act, rl"),
    (
        "stage.act.format_weight=0.5",
        r"stage\.act\.format_weight: 0\.5 is too large, expected under 0\.5",
    ),
    ("stage.rl.admissible_credit=1", r"stage\.rl\.admissible_credit: would outrank correctness"),
    ("env.name=none", r"env\.trajectories: expected a file"),
    ("pairs.choices=7", r"pairs\.choices: 7 is not one of 2, 3, 4, 5, 6"),
    ("pairs.choices=4", r"pairs\.choices: 4 candidates need pairs\.k of at least 3, got 2"),
    ("stage.dpo.beta=0", r"stage\.dpo\.beta: 0\.0 is too small"),
    ("stage.reflect.share=1.1", r"stage\.reflect\.share: 1\.1 is too large, expected at most 1"),
    ("eval.intervene=swap", r"eval\.intervene: 'swap' is not one of none, remove, wrong"),
    # overrides that are none
    ("steps", r"'steps': expected key=value"),
    ("=3", r"unknown key"),
]


GONE = [
    ("model.weight_decay", 0.0, 0.1, "leave it out"),
    ("stage.act.scale_rewards", True, False, "stage.act.variant: dr_grpo"),
    ("stage.rl.scale_rewards", True, False, "stage.rl.variant: dr_grpo"),
]


def test_alternatives_that_no_policy_proposes_can_not_be_refreshed():
    with pytest.raises(
        UserError, match=r"stage\.act\.refresh_pairs: admissible alternatives do not"
    ):
        load_config(None, ["stage.act.refresh_pairs=5", "pairs.source=admissible"])
    assert load_config(None, ["stage.act.refresh_pairs=5"])


def test_given_pairs_may_hold_more_alternatives_than_pairs_k():
    options = ["pairs.choices=4", "pairs.file=pairs.jsonl"]
    assert load_config(None, options).pairs.choices == 4
    with pytest.raises(UserError, match=r"need pairs\.k of at least 3"):  # it samples k anew
        load_config(None, [*options, "stage.act.refresh_pairs=5"])


def test_a_reflection_must_fit_a_batch():
    options = ["prompt.max_tokens=8000", "prompt.form=tags"]
    assert load_config(None, options)
    with pytest.raises(UserError, match="less than one prompt and its answer, 8256"):
        load_config(None, [*options, "recipe=reflect"])


@pytest.mark.parametrize(("override", "message"), MISTAKES, ids=[o for o, _ in MISTAKES])
def test_a_mistake_is_named(override, message):
    with pytest.raises(UserError, match=message):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage:\n  act:\n    setps: 3\n", r"stage\.act\.setps: unknown key; did you mean 'steps'"),
        ("seed: [\n", "not valid YAML"),
        ("seed: 2020-13-45\n", "not valid YAML"),
        ("seed: !!python/object:os.system {}\n", "not valid YAML"),
        ("- a\n- b\n", r"expected sections such as model: and env:, got \['a', 'b'\]"),
        ("0\n", "expected sections"),
        ("[]\n", "expected sections"),
        ("model:\n", "model: expected a section of keys, got None"),
        ("1: 2\n", "1: unknown key"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(load, text, message):
    with pytest.raises(UserError, match=rf"c\.yaml: {message}|c\.yaml: .*{message}"):
        load(text)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError, match=f"{path}: no such config file"):
            load_config(path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(UserError, match=r"binary\.yaml: not valid YAML"):
        load_config(binary)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["model", "path", "stage", "act", "steps", "recipe", "env", "x"]),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_any_yaml_loads_or_is_a_user_error(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("any", numbered=True) / "c.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    try:
        assert isinstance(load_config(file), Config)
    except UserError as error:
        assert str(error).startswith(str(file)) and "\n" not in str(error)


# ---- what is gone --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "unchanged", "changed", "instead"), GONE)
def test_a_key_that_is_gone_says_what_replaces_it(load, name, unchanged, changed, instead):
    *sections, last = name.split(".")
    for value in (unchanged, changed):
        text = yaml.safe_dump(reduce(lambda inner, s: {s: inner}, sections[::-1], {last: value}))
        for refused in (
            lambda: load(text),  # noqa: B023
            lambda: load_config(None, [f"{name}={value}"]),  # noqa: B023
            lambda: with_overrides(Config(), [f"{name}={value}"]),  # noqa: B023
        ):
            with pytest.raises(UserError, match=f"{name}: no longer a key; .*{instead}"):
                refused()


@pytest.mark.parametrize(("name", "unchanged", "changed", "instead"), GONE)
def test_an_old_run_goes_on_if_it_did_what_is_done_now(tmp_path, name, unchanged, changed, instead):
    *sections, last = name.split(".")
    file = tmp_path / "config.yaml"
    for value in (unchanged, changed):
        data = to_dict(Config())
        reduce(dict.__getitem__, sections, data)[last] = value
        file.write_text(yaml.safe_dump(data))
        if value == unchanged:
            assert load_config(file, saved=True) == Config()
            assert changed_keys(file, replace(Config(), seed=1)) == ["seed"]
        else:
            with pytest.raises(UserError, match=rf"config\.yaml: {name}: no longer .*{instead}"):
                load_config(file, saved=True)


def test_dr_grpo_never_divided_by_the_deviation(tmp_path):
    file = tmp_path / "config.yaml"
    text = "stage: {{act: {{variant: dr_grpo, scale_rewards: {}}}}}"
    file.write_text(text.format("false"))
    assert load_config(file, saved=True).stage.act.variant == "dr_grpo"
    file.write_text(text.format("true"))
    with pytest.raises(UserError, match=r"stage\.act\.scale_rewards: no longer a key"):
        load_config(file, saved=True)


def test_an_unknown_environment_is_named():
    with pytest.raises(
        UserError, match=r"env\.name: unknown environment 'houshold'.*'household'\?"
    ):
        make_env("houshold")
    with pytest.raises(UserError, match=r"env\.options: household does not take .*'nonsense'"):
        make_env("household", nonsense=1)
