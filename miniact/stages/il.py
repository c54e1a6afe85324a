"""Imitation learning: maximise log π(a⁺ | s) over expert states. QLoRA or LoRA by the config.

    L = − 1/N · Σ over the N reply tokens of a batch of log π_θ(token | prompt, tokens before)

The reply is the action in its tags and the end token; prompts and observations are never trained.
"""

from __future__ import annotations

from miniact.grpo import weigh
from miniact.losses import cross_entropy
from miniact.stages import Stage, learning_rate
from miniact.types import Completion, Group


def run(stage: Stage) -> None:
    prompter, config = stage.prompter, stage.config
    for step in stage.log.steps(stage.policy, config):
        groups, dropped = [], 0
        for state, action in stage.states.batch(step, config.batch, stage.seed):
            prompt = prompter.action(state, config.thinking)
            reply = prompter.reply_tokens(prompter.render_action(action))
            groups.append(Group(prompt.tokens, (Completion(reply),)))
            dropped += prompt.dropped
        metrics = stage.policy.forward_backward(weigh(groups, "dapo", 0), cross_entropy)
        lr = learning_rate(config, step)
        metrics["grad_norm"] = stage.policy.optim_step(lr, config.max_grad_norm)
        tokens = sum(len(g.completions[0].tokens) for g in groups)
        stage.log.write(step, {**metrics, "lr": lr, "tokens": tokens, "dropped_turns": dropped})
