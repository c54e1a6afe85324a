"""RL on actions: stage 3 of the paper. The twin of act.py, asked for the action itself.

At each expert state sample G next-action answers; reward 1 if the action is the expert's (after
canonicalisation). No environment is needed: the expert's states and actions are enough.
"""

from __future__ import annotations

from functools import partial

from miniact.config.sections import GRPOConfig
from miniact.method.prompts import Prompter
from miniact.method.rewards import action_reward, judged, same_action
from miniact.method.stage import Stage, reinforce
from miniact.types import Reply, Sample, Scored, State


def run(stage: Stage) -> None:
    prompter, config = stage.prompter, stage.config
    for step in stage.steps():
        batch = stage.states.batch(step, config.batch, stage.seed, config.neighbours)
        prompts = [prompter.action(state, config.thinking) for state, _ in batch]
        reinforce(stage, step, prompts, [partial(score, prompter, config, *s) for s in batch])


def score(
    prompter: Prompter, config: GRPOConfig, state: State, expert: str, answer: Sample
) -> Scored:
    """1 for the expert's action."""
    action = prompter.action_in(answer)
    reward = action_reward(
        action,
        expert,
        state.admissible,
        state.compare,
        format_weight=config.format_weight,
        admissible_credit=config.admissible_credit,
    )
    correct = action is not None and same_action(action, expert, state.compare)
    reply = Reply(state, expert, action, answer.text, correct, reward)
    return Scored(judged(config.reward, reply), correct, action is not None, (expert,))
