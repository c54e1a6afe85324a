"""What several test files share: the hypothesis profiles and tiny tokenizers built in memory.

HYPOTHESIS_PROFILE=explore pytest      search with fresh seeds and many more examples
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

# One thread per test process: pytest -n has a process per core, and threads that fight for cores
# are ten times slower than one alone. Must be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # the few tests that ask for two

# No clock, no chance: on a busy machine a deadline fails for no reason, and CI must repeat.
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=100)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

CHAT = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""

# Qwen3's switch: with thinking off, the reply starts behind an empty thought
CHAT_WITH_SWITCH = CHAT.replace(
    "assistant\n",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false -%}\n"
    "<think>\n\n</think>\n\n{% endif %}",
)


def build_tokenizer(template: str = CHAT, control: tuple[str, ...] = ()) -> Any:
    """One token per byte, so that any text survives encode → decode; ChatML's control tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    backend.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "</think>", *control)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """build_tokenizer(template, control): a tokenizer of one's own."""
    return build_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level chat tokenizer."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def switch_tokenizer() -> Any:
    """The same, but its chat template takes `enable_thinking`."""
    return build_tokenizer(CHAT_WITH_SWITCH)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Any:
    """Tiny policies of both backends: zoo.policy("torch")."""
    from zoo import Zoo

    return Zoo(tmp_path_factory.mktemp("zoo"), tokenizer)
