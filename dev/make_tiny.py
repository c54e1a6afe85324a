"""The tiny base model: made from random play, never from an expert.

`python dev/make_tiny.py --out FOLDER` plays the household world's train tasks at random, writes
each visited state as the prompt that the stages will use, and trains a small Llama on the whole
text:

    action example   state → the admissible action that random play took
    critic example   state and two admissible actions → one of the two, drawn at random

Often the task is told in hindsight: as the thing that random play then happened to do. So the base
knows the words, the form of an answer, what tends to happen next and that tasks have to do with
actions. It knows nothing of which action is better: that is up to the recipe.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from rich.console import Console

from miniact.backends.protocol import load_policy
from miniact.backends.torch.load import add_rope_theta
from miniact.cli.common import friendly
from miniact.config.sections import ModelConfig, PromptConfig
from miniact.envs import Env, make_env
from miniact.method.grpo import weigh
from miniact.method.losses import cross_entropy
from miniact.method.prompts import Prompter
from miniact.runs.files import whole_folder
from miniact.runs.progress import Bar
from miniact.types import Completion, Group, State

CHAT_TEMPLATE = (
    "<start>{% for message in messages %}{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<reply>{% endif %}"
)
SPECIAL = ["<pad>", "<unk>", "<start>", "<reply>", "<end>"]
WORDS = r"[a-z]+ \d+|[a-z']+|\d+|\n|[^\sa-z0-9]"  # "shelf 1" is one word: one thing
FILLERS = r"[.,]|\b(a|an|the|and|you|is|are|it|middle of|looking quickly around)\b"  # left out


PLAIN = PromptConfig(form="plain", show_admissible=False, history=10, max_tokens=512)


Visit = tuple[State, tuple[str, ...], str]  # a state, its admissible actions, the random one taken


def random_play(env: Env, rng: random.Random) -> Iterator[list[Visit]]:
    """Endless random episodes on train tasks."""
    seed = 0
    while True:
        seed += 1
        for task_id in env.tasks("train", 60, 10_000 + seed):
            task, turn = env.reset(task_id)
            history: list[tuple[str, str]] = []
            visits: list[Visit] = []
            while not turn.done:
                actions = env.admissible() or ()
                taken = random_action(actions, rng)
                state = State(task_id, task, tuple(history), turn.observation)
                visits.append((state, actions, taken))
                history.append((turn.observation, taken))
                turn = env.step(taken)
            yield visits


_MOVE = re.compile(r"move ([a-z]+) \d+ to ([a-z]+) \d+")
_TREATED = {"clean": "clean", "heat": "hot", "cool": "cool"}


def in_hindsight(visits: list[Visit], rng: random.Random) -> list[Visit]:
    """Random play, told as if what it happened to do had been the task (hindsight relabelling).

    So the base learns that a task sentence has to do with what is done. The play stays random: most
    of it leads nowhere near the new task. Episodes that moved nothing keep their own task.
    """
    moves = [(i, m) for i, (_, _, taken) in enumerate(visits) if (m := _MOVE.match(taken))]
    if not moves:
        return visits
    end, move = rng.choice(moves)
    how = ""
    for _, _, taken in visits[:end]:
        verb, _, rest = taken.partition(" ")
        if verb in _TREATED and rest.startswith(move[1] + " "):
            how = _TREATED[verb] + " "
    task = f"put a {how}{move[1]} in {move[2]}."
    return [
        (replace(state, task=task), actions, taken) for state, actions, taken in visits[: end + 1]
    ]


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


def example(prompter: Prompter, visit: Visit, rng: random.Random) -> Group:
    """One training text: everything after the first token counts, prompt and reply alike."""
    state, actions, taken = visit
    if len(actions) >= 2 and rng.random() < 0.4:
        shown = rng.sample(list(actions), 2)
        if rng.random() < 0.5:  # of the kinds that a policy would propose
            shown = [random_action(actions, rng) for _ in range(2)]
        prompt, reply = prompter.critic(state, shown).tokens, rng.choice(shown)
    else:
        prompt, reply = prompter.action(state).tokens, taken
    tokens = (*prompt, *prompter.reply_tokens(reply))
    return Group(tokens[:1], (Completion(tokens[1:]),))


def texts(prompter: Prompter, env: Env, rng: random.Random) -> Iterator[Group]:
    """Endless training texts: a few states of each random episode, since neighbours look alike."""
    for visits in random_play(env, rng):
        if rng.random() < 0.7:
            visits = in_hindsight(visits, rng)
        for visit in rng.sample(visits, min(4, len(visits))):
            yield example(prompter, visit, rng)


def init_llama(folder: Path, tokenizer: Any, seed: int) -> None:
    """Write a small Llama with random weights into `folder` (about 330k parameters)."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    add_rope_theta(folder)


def pretrain(out: Path, seed: int, steps: int, batch: int, console: Console) -> None:
    """Make the tiny base model in folder `out` (Hugging Face format). Same seed, same bytes."""
    env = make_env("household")
    play = random_play(env, random.Random(seed))
    seen = [visit for _ in range(700) for visit in next(play)]
    lines = [f"{s.task}\n{s.observation}\n> {' '.join(a)}\n1: 2: … which ?" for s, a, _ in seen]
    with whole_folder(out) as part:
        tokenizer = build_tokenizer(lines)
        tokenizer.save_pretrained(part)
        init_llama(part, tokenizer, seed)
        config = ModelConfig(path=str(part), adapter="full", max_tokens_per_batch=16384)
        policy = load_policy(config, seed)
        prompter = Prompter(tokenizer, PLAIN)
        stream = texts(prompter, env, random.Random(seed + 1))
        with Bar(console, "pretrain") as bar:
            bar.start(steps)
            for step in range(steps):
                groups = weigh([next(stream) for _ in range(batch)], "dapo", 0)
                metrics = policy.forward_backward(groups, cross_entropy)
                lr = 3e-3 * min(1.0, (step + 1) / 50) * max(0.02, 1 - step / steps)
                policy.optim_step(lr, 1.0)
                bar.advance(metrics)
        policy.save_adapter(part)
    env.close()


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Model folder to write."
)
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", default=1400, show_default=True)
@click.option("--batch", default=24, show_default=True, help="Texts per step.")
@friendly
def main(out, seed, steps, batch):  # type: ignore[no-untyped-def]
    """Make the tiny base model from random play (this is how the shipped one was made)."""
    pretrain(out, seed, steps, batch, Console())


if __name__ == "__main__":
    main()
