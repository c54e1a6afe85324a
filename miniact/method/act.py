"""Agentic critical training: stage 2 of the paper.

For a pair (s, a⁺, a⁻): show the state and both actions in an order drawn for this presentation,
sample G answers (free reasoning, then a choice), reward the right choice, update with GRPO. Nothing
ever looks at the reasoning: whatever reasoning emerges was useful for being right.

The twin of rl.py: the same loop, which shows and rewards something else.
"""

from __future__ import annotations

from functools import partial

from miniact.config.sections import ACTConfig
from miniact.data.trajectories import shuffled
from miniact.method.controls.refresh import questions_at
from miniact.method.pairs import draw_orders, neighbouring
from miniact.method.prompts import Prompter
from miniact.method.rewards import choice_reward, judged
from miniact.method.stage import Stage, needs, reinforce
from miniact.types import Reply, Sample, Scored, Shown


@needs("pairs")
def run(stage: Stage) -> None:
    prompter, config = stage.prompter, stage.config
    for step in stage.steps():
        asked = questions_at(stage, step)  # the same ones at every step, unless refresh_pairs
        runs = neighbouring(asked, config.neighbours)
        batch = [asked[i] for i in shuffled(len(asked), step, config.batch, stage.seed, runs)]
        shown = draw_orders(batch, (stage.seed, step))
        prompts = [prompter.critic(s.state, s.actions, config.thinking) for s in shown]
        reinforce(stage, step, prompts, [partial(score, prompter, config, s) for s in shown])


def score(prompter: Prompter, config: ACTConfig, shown: Shown, answer: Sample) -> Scored:
    """1 for naming the expert's action; what is thought before it is never looked at."""
    actions = shown.actions
    choice = prompter.parse_choice(answer.text, actions, shown.state.compare)
    correct, expert = choice == shown.right, actions[shown.right]
    reward = choice_reward(choice, shown.right, format_weight=config.format_weight)
    chosen = None if choice is None else actions[choice]
    reply = Reply(shown.state, expert, chosen, answer.text, correct, reward, actions)
    earned = judged(config.reward, reply)
    return Scored(earned, correct, choice is not None, tuple(actions), shown.right)
