"""The tiny base model: made from random play, never from an expert.

`miniact pretrain` plays the household world's train tasks at random, writes each visited state as
the prompt that the stages will use, and trains a small Llama on the whole text:

    action example   state → some admissible action, drawn at random
    critic example   state and two admissible actions → one of the two, drawn at random

So the base knows the words, the form of an answer and what tends to happen next, and nothing about
which action is good: its judgement is chance and its play is random. The rest is up to the recipe.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from miniact.config import ModelConfig, PromptConfig
from miniact.envs import Env, make_env
from miniact.grpo import weigh
from miniact.losses import cross_entropy
from miniact.policy import load_policy
from miniact.progress import Bar
from miniact.prompts import Prompter
from miniact.runs import whole_folder
from miniact.types import Completion, Group, State

CHAT_TEMPLATE = (
    "<start>{% for message in messages %}{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<reply>{% endif %}"
)
SPECIAL = ["<pad>", "<unk>", "<start>", "<reply>", "<end>"]
WORDS = r"[a-z]+ \d+|[a-z']+|\d+|\n|[^\sa-z0-9]"  # "shelf 1" is one word: one thing
FILLERS = r"[.,]|\b(a|an|the|and|you|is|are|it|middle of|looking quickly around)\b"  # left out


PLAIN = PromptConfig(form="plain", show_admissible=False, history=10, max_tokens=512)


def random_states(env: Env, rng: random.Random) -> Iterator[tuple[State, tuple[str, ...]]]:
    """Endless (state, admissible actions) of random play on train tasks."""
    seed = 0
    while True:
        seed += 1
        for task_id in env.tasks("train", 60, 10_000 + seed):
            task, turn = env.reset(task_id)
            history: list[tuple[str, str]] = []
            while not turn.done:
                actions = env.admissible() or ()
                yield State(task_id, task, tuple(history), turn.observation), actions
                action = random_action(actions, rng)
                history.append((turn.observation, action))
                turn = env.step(action)


def random_action(actions: Sequence[str], rng: random.Random) -> str:
    """Draw the kind of action first, then one of that kind, so that rare verbs are seen too."""

    def kind(action: str) -> str:
        verb = action.partition(" ")[0]
        return "look" if verb in ("examine", "inventory") else verb

    drawn = rng.choice(sorted({kind(a) for a in actions}))
    return rng.choice([a for a in actions if kind(a) == drawn])


def build_tokenizer(texts: Sequence[str]):  # type: ignore[no-untyped-def]
    """A word-level tokenizer over the words of `texts`, with the chat template.

    Filler words are left out: half as many tokens, and no action holds any of them.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="removed", invert=True)
    normal = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(tokenizers.Regex(FILLERS), "")]
    )
    read = (split.pre_tokenize_str(normal.normalize_str(text)) for text in texts)
    words = {word for pieces in read for word, _ in pieces}
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *sorted(words)])}
    core = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normal
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
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def example(prompter: Prompter, state: State, actions: Sequence[str], rng: random.Random) -> Group:
    """One training text: everything after the first token counts, prompt and reply alike."""
    if len(actions) >= 2 and rng.random() < 0.4:
        shown = rng.sample(list(actions), 2)
        if (
            rng.random() < 0.5
        ):  # alternatives of a real critic prompt are often of the policy's kind
            shown = [random_action(actions, rng) for _ in range(2)]
        prompt = prompter.critic(state, shown).tokens
        reply = rng.choice(shown)
    else:
        prompt = prompter.action(state).tokens
        reply = random_action(actions, rng)
    tokens = (*prompt, *prompter.reply_tokens(reply))
    return Group(tokens[:1], (Completion(tokens[1:]),))


def pretrain(out: Path, seed: int, steps: int, batch: int, console: Console) -> None:
    """Make the tiny base model in folder `out` (Hugging Face format). Same seed, same bytes."""
    from miniact.backends.torch_load import init_llama

    env = make_env("household")
    rng = random.Random(seed)
    play = random_states(env, rng)
    seen = [next(play) for _ in range(20_000)]
    lines = [f"{s.task}\n{s.observation}\n> {' '.join(a)}\n1: 2: … which ?" for s, a in seen]
    with whole_folder(out) as part:
        tokenizer = build_tokenizer(lines)
        tokenizer.save_pretrained(part)
        init_llama(part, tokenizer, seed)
        config = ModelConfig(path=str(part), adapter="full", max_tokens_per_batch=16384)
        policy = load_policy(config, seed)
        prompter = Prompter(tokenizer, PLAIN)
        with Bar(console, "pretrain") as bar:
            bar.start(steps)
            for step in range(steps):
                # walk through play, but learn from every 7th state only: neighbours look alike
                texts = []
                for _ in range(batch):
                    for _ in range(rng.randint(1, 7)):
                        state, actions = next(play)
                    texts.append(example(prompter, state, actions, rng))
                metrics = policy.forward_backward(weigh(texts, "dapo", 0), cross_entropy)
                lr = 3e-3 * min(1.0, (step + 1) / 50) * max(0.02, 1 - step / steps)
                policy.optim_step(lr, 1.0)
                bar.advance(metrics)
        policy.save_adapter(part)
    env.close()
