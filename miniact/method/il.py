"""Imitation learning: maximise log π(a⁺ | s) over expert states. QLoRA or LoRA by the config.

    L = − 1/N · Σ over the N reply tokens of a batch of log π_θ(token | prompt, tokens before)

The reply is the action in its tags and the end token; prompts and observations are never trained.

With `thinking` a thought stands before the action: one that the policy itself had in that state
when the stage began, of a few the one after which the expert's action was likeliest. An expert's
log holds no thoughts, and each of the other ways does harm: the action alone would teach the
model not to think, a thought that leads elsewhere not to follow what it thinks, and thoughts
sampled anew at every step feed on themselves, until their form is lost (LAB.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from miniact.data.trajectories import shuffled
from miniact.method.pairs import SAMPLED_AT_ONCE
from miniact.method.stage import Stage, imitate
from miniact.runs.files import read_objects, write_jsonl
from miniact.types import Completion, Group, Sample, State

THOUGHTS = 4  # sampled in each state, of which one is imitated


def run(stage: Stage) -> None:
    prompter, config = stage.prompter, stage.config
    thoughts = own_thoughts(stage) if config.thinking else {}
    for step in stage.steps():
        batch = stage.states.batch(step, config.batch, stage.seed, config.neighbours)
        examples = []
        for state, action in batch:
            thought = thoughts.get(state.id)  # none where it never came to an end
            reply = prompter.render_action(action)
            if thought is not None:
                reply = prompter.render_thought(thought) + reply
            prompt = prompter.action(state, thinking=thought is not None)
            examples.append((prompt, prompter.reply_tokens(reply)))
        imitate(stage, step, examples)


def own_thoughts(stage: Stage) -> dict[str, str]:
    """State id → the thought to imitate there: the policy's own, before anything is trained.

    For all states that the stage will see. They are kept in the stage's folder: a run that is
    resumed later no longer has this policy.
    """
    file = stage.log.folder / "thoughts.jsonl"
    if stage.log.key and file.is_file():
        return dict(read_objects(file, lambda row: (row["state"], row["thought"])))
    config = stage.config
    thoughts: dict[str, str] = {}
    n, used = len(stage.states), config.steps * config.batch
    chosen = dict.fromkeys(shuffled(n, 0, used, stage.seed, stage.states.runs(config.neighbours)))
    examples = [stage.states[i] for i in chosen]
    for at in range(0, len(examples), SAMPLED_AT_ONCE):
        batch = examples[at : at + SAMPLED_AT_ONCE]
        prompts = [stage.prompter.action(state, thinking=True).tokens for state, _ in batch]
        replies = stage.policy.sample(prompts, THOUGHTS, config.max_tokens, 1.0, stage.seed + at)
        thoughts |= leading(stage, batch, prompts, replies)
    if stage.log.key:
        rows = ({"state": state, "thought": thought} for state, thought in thoughts.items())
        write_jsonl(file, rows)
    return thoughts


def leading(
    stage: Stage,
    examples: Sequence[tuple[State, str]],
    prompts: Sequence[tuple[int, ...]],
    replies: Sequence[Sequence[Sample]],
) -> dict[str, str]:
    """Of each state's thoughts the one that leads best to the action: argmax log π(a⁺ | s, z)."""
    prompter, groups, choices = stage.prompter, [], []
    for (state, action), prompt, sampled in zip(examples, prompts, replies):
        parsed = (prompter.parse_thought(reply.text) for reply in sampled)
        thoughts = list(dict.fromkeys(thought for thought in parsed if thought is not None))
        if thoughts:  # none ever came to an end: the action alone is imitated
            answer = prompter.render_action(action)
            texts = (prompter.render_thought(thought) + answer for thought in thoughts)
            rows = tuple(Completion(prompter.reply_tokens(text)) for text in texts)
            groups.append(Group(prompt, rows))
            choices.append((state.id, thoughts, len(prompter.reply_tokens(answer))))
    best = {}
    for (name, thoughts, length), logps in zip(choices, stage.policy.logprobs(groups)):
        best[name] = thoughts[int(np.argmax([logp[-length:].sum() for logp in logps]))]
    return best
