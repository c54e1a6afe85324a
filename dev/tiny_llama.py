"""What the makers of tiny models share: a word-level tokenizer, a small Llama, its training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import tokenizers
import torch
import transformers
from rich.console import Console
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from miniact.backends.protocol import load_policy
from miniact.backends.torch.load import add_rope_theta
from miniact.config.sections import ModelConfig
from miniact.method.grpo import weigh
from miniact.method.losses import cross_entropy
from miniact.runs.files import whole_folder
from miniact.runs.progress import Bar
from miniact.types import Group

SPECIAL = ["<pad>", "<unk>", "<start>", "<reply>", "<end>"]


def random_action(actions: Sequence[str], rng: random.Random) -> str:
    """Draw the kind of action first, then one of that kind, so that rare verbs are seen too."""

    def kind(action: str) -> str:
        verb = action.partition(" ")[0]
        return "look" if verb in ("examine", "inventory") else verb

    drawn = rng.choice(sorted({kind(a) for a in actions}))
    return rng.choice([a for a in actions if kind(a) == drawn])


def replace(pattern: str) -> normalizers.Normalizer:
    """Leaves out what the pattern fits."""
    return normalizers.Replace(tokenizers.Regex(pattern), "")


def build_tokenizer(
    texts: Sequence[str],
    words: str,
    normal: Sequence[normalizers.Normalizer],
    template: str,
    tags: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the words of `texts`, with the chat template.

    words: a pattern of what is one token; normal: what is done to a text before; tags: tokens that
    a reply is read with, so they are not "special", and around which space means nothing.
    """
    split = pre_tokenizers.Split(tokenizers.Regex(words), behavior="removed", invert=True)
    normaliser = normalizers.Sequence(list(normal))
    read = (split.pre_tokenize_str(normaliser.normalize_str(text)) for text in texts)
    known = {word for pieces in read for word, _ in pieces}
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *tags, *sorted(known)])}
    core = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normaliser
    core.pre_tokenizer = split
    core.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
        additional_special_tokens=["<reply>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens(
        [AddedToken(tag, lstrip=True, rstrip=True, normalized=False) for tag in tags]
    )
    tokenizer.chat_template = template
    return tokenizer


def init_llama(folder: Path, tokenizer: Any, seed: int, **sizes: Any) -> None:
    """Write a small Llama with random weights into `folder`."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    add_rope_theta(folder)


def pretrain(
    out: Path,
    tokenizer: Any,
    stream: Iterator[Group],
    how: tuple[int, int, int],
    console: Console,
    at_once: int = 16384,
    **sizes: Any,
) -> None:
    """Make a model in folder `out` (Hugging Face format). how: (seed, steps, groups in a step).

    at_once: tokens in a micro-batch.
    """
    seed, steps, batch = how
    with whole_folder(out) as part:
        tokenizer.save_pretrained(part)
        init_llama(part, tokenizer, seed, **sizes)
        config = ModelConfig(path=str(part), adapter="full", max_tokens_per_batch=at_once)
        policy = load_policy(config, seed)
        with Bar(console, "pretrain") as bar:
            bar.start(steps)
            for step in range(steps):
                groups = weigh([next(stream) for _ in range(batch)], "dapo", 0)
                metrics = policy.forward_backward(groups, cross_entropy)
                lr = 3e-3 * min(1.0, (step + 1) / 50) * max(0.02, 1 - step / steps)
                policy.optim_step(lr, 1.0)
                bar.advance(metrics)
        policy.save_adapter(part)


def options(steps: int, batch: int, unit: str) -> Callable[[Any], Any]:
    """The options of a maker's command, with its own defaults."""

    def add(command: Any) -> Any:
        for option in (
            click.option("--batch", default=batch, show_default=True, help=f"{unit} per step."),
            click.option("--steps", default=steps, show_default=True),
            click.option("--seed", default=0, show_default=True),
            click.option(
                "--out",
                type=click.Path(path_type=Path),
                required=True,
                help="Model folder to write.",
            ),
        ):
            command = option(command)
        return command

    return add
