"""Imitation learning: maximise log π(a⁺ | s) over expert states. QLoRA or LoRA by the config.

    L = − 1/N · Σ over the N reply tokens of a batch of log π_θ(token | prompt, tokens before)

The reply is the action in its tags and the end token; prompts and observations are never trained.
"""

from __future__ import annotations

from miniact.method.stage import Stage, imitate


def run(stage: Stage) -> None:
    prompter, config = stage.prompter, stage.config
    for step in stage.steps():
        batch = stage.states.batch(step, config.batch, stage.seed)
        examples = [
            (
                prompter.action(state, config.thinking),
                prompter.reply_tokens(prompter.render_action(action)),
            )
            for state, action in batch
        ]
        imitate(stage, step, examples)
