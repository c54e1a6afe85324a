"""Imitation learning: maximise log π(a⁺ | s) over expert states. QLoRA or LoRA by the config.

    L = − 1/N · Σ over the N reply tokens of a batch of log π_θ(token | prompt, tokens before)

The reply is the action in its tags and the end token; prompts and observations are never trained.

With `thinking` a thought stands before the action: the one that the policy itself had in that state
when the stage began. An expert's log holds no thoughts, and each of the other ways does harm: the
action alone would teach the model not to think, and thoughts sampled anew at every step feed on
themselves, until their form is lost (LAB.md).
"""

from __future__ import annotations

from miniact.data.trajectories import shuffled
from miniact.method.pairs import SAMPLED_AT_ONCE
from miniact.method.stage import Stage, imitate
from miniact.runs.files import read_objects, write_jsonl
from miniact.types import State


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
    """State id → what the policy thinks there now, before anything is trained.

    For all states that the stage will see. They are kept in the stage's folder: a run that is
    resumed later no longer has this policy.
    """
    file = stage.log.folder / "thoughts.jsonl"
    if stage.log.key and file.is_file():
        return dict(read_objects(file, lambda row: (row["state"], row["thought"])))
    config, thoughts = stage.config, {}
    n, used = len(stage.states), config.steps * config.batch
    chosen = dict.fromkeys(shuffled(n, 0, used, stage.seed, stage.states.runs(config.neighbours)))
    states: list[State] = [stage.states[i][0] for i in chosen]
    for at in range(0, len(states), SAMPLED_AT_ONCE):
        batch = states[at : at + SAMPLED_AT_ONCE]
        prompts = [stage.prompter.action(state, thinking=True).tokens for state in batch]
        replies = stage.policy.sample(prompts, 1, config.max_tokens, 1.0, stage.seed + at)
        for state, (reply,) in zip(batch, replies):
            thought = stage.prompter.parse_thought(reply.text)
            if thought is not None:
                thoughts[state.id] = thought
    if stage.log.key:
        rows = ({"state": state, "thought": thought} for state, thought in thoughts.items())
        write_jsonl(file, rows)
    return thoughts
