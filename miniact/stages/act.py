"""Agentic critical training: stage 2 of the paper.

For a pair (s, a⁺, a⁻): show the state and both actions in an order drawn for this presentation,
sample G answers (free reasoning, then a choice), reward the right choice, update with GRPO. Nothing
ever looks at the reasoning: whatever reasoning emerges was useful for being right.
"""

from __future__ import annotations

from miniact.grpo import Scored, grpo_step
from miniact.pairs import positions, present
from miniact.rewards import choice_reward
from miniact.stages import Stage, learning_rate
from miniact.trajectories import shuffled
from miniact.types import Sample


def run(stage: Stage) -> None:
    prompter, config = stage.prompter, stage.config
    if config.beta > 0:
        stage.policy.freeze_reference()
    for step in stage.log.steps(stage.policy, config):
        picks = shuffled(len(stage.pairs), step, config.batch, stage.seed)
        pairs = [stage.pairs[i] for i in picks]
        right_B = positions(len(pairs), (stage.seed, step))
        shown = [present(pair, right) for pair, right in zip(pairs, right_B)]
        prompts = [
            prompter.critic(pair.state, actions, config.thinking)
            for pair, actions in zip(pairs, shown)
        ]

        def score(i: int, sample: Sample, shown=shown, right_B=right_B) -> Scored:
            choice = prompter.parse_choice(sample.text, shown[i])
            right = int(right_B[i])
            reward = choice_reward(choice, right, format_weight=config.format_weight)
            return Scored(reward, choice == right, choice is not None)

        lr = learning_rate(config, step)
        tokens = [p.tokens for p in prompts]
        metrics, rollouts = grpo_step(stage.policy, tokens, score, config, lr, stage.seed + step)
        metrics |= {"lr": lr, "dropped_turns": sum(p.dropped for p in prompts)}
        stage.log.write(step, metrics, rollouts)
