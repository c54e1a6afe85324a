"""RL on actions: stage 3 of the paper. The same GRPO as in `act`, asked for the action itself.

At each expert state sample G next-action answers; reward 1 if the action is the expert's (after
canonicalisation). No environment is needed: the expert's states and actions are enough.
"""

from __future__ import annotations

from miniact.method.grpo import grpo_step
from miniact.method.rewards import action_reward, same_action
from miniact.method.stage import Stage, learning_rate
from miniact.types import Sample, Scored


def run(stage: Stage) -> None:
    prompter, config = stage.prompter, stage.config
    if config.beta > 0:
        stage.policy.freeze_reference()
    for step in stage.log.steps(stage.policy, config):
        batch = stage.states.batch(step, config.batch, stage.seed)
        prompts = [prompter.action(state, config.thinking) for state, _ in batch]

        def score(i: int, sample: Sample, batch=batch) -> Scored:
            state, expert = batch[i]
            action = prompter.parse_action(sample.text)
            reward = action_reward(
                action,
                expert,
                state.admissible,
                format_weight=config.format_weight,
                admissible_credit=config.admissible_credit,
            )
            correct = action is not None and same_action(action, expert)
            return Scored(reward, correct, action is not None)

        lr = learning_rate(config, step)
        tokens = [p.tokens for p in prompts]
        metrics, rollouts = grpo_step(stage.policy, tokens, score, config, lr, stage.seed + step)
        metrics |= {"lr": lr, "dropped_turns": sum(p.dropped for p in prompts)}
        stage.log.write(step, metrics, rollouts)
