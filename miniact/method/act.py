"""Agentic critical training: stage 2 of the paper.

For a pair (s, a⁺, a⁻): show the state and both actions in an order drawn for this presentation,
sample G answers (free reasoning, then a choice), reward the right choice, update with GRPO. Nothing
ever looks at the reasoning: whatever reasoning emerges was useful for being right.

Ours, both off by default: questions with more than two candidates (pairs.choices), and alternatives
sampled anew from the current policy every `refresh_pairs` steps, as those of π_θ0 grow too easy.
"""

from __future__ import annotations

from collections import Counter

from miniact.data.trajectories import shuffled
from miniact.method.grpo import grpo_step
from miniact.method.pairs import (
    Question,
    by_state,
    draw_orders,
    pairs_at,
    propose,
    questions,
    read_pairs,
    to_row,
)
from miniact.method.rewards import choice_reward
from miniact.method.stage import Stage, learning_rate
from miniact.runs.files import write_json, write_jsonl
from miniact.types import Sample, Scored


def run(stage: Stage) -> None:
    prompter, config = stage.prompter, stage.config
    if config.beta > 0:
        stage.policy.freeze_reference()
    asked, made_at = stage.questions(), 0
    for step in stage.log.steps(stage.policy, config):
        latest = step - step % config.refresh_pairs if config.refresh_pairs else 0
        if latest != made_at:
            asked, made_at = refreshed(stage, latest) or stage.questions(), latest
        picks = shuffled(len(asked), step, config.batch, stage.seed)
        shown = draw_orders([asked[i] for i in picks], (stage.seed, step))
        prompts = [prompter.critic(s.state, s.actions, config.thinking) for s in shown]

        def score(i: int, sample: Sample, shown=shown) -> Scored:
            choice, right = prompter.parse_choice(sample.text, shown[i].actions), shown[i].right
            reward = choice_reward(choice, right, format_weight=config.format_weight)
            return Scored(reward, choice == right, choice is not None)

        lr = learning_rate(config, step)
        tokens = [p.tokens for p in prompts]
        metrics, rollouts = grpo_step(stage.policy, tokens, score, config, lr, stage.seed + step)
        metrics |= {"lr": lr, "dropped_turns": sum(p.dropped for p in prompts)}
        stage.log.write(step, metrics, rollouts)


def refreshed(stage: Stage, step: int) -> list[Question]:
    """Questions with alternatives of the policy as it is at `step`; none if all were filtered out.

    They are written to the stage's folder: a run that is resumed later no longer has that policy.
    """
    config = stage.config
    file = stage.log.folder / f"pairs-{step:07d}.jsonl"
    if not file.is_file():
        states = list(by_state(stage.pairs))
        enough = min(len(states), config.refresh_pairs * config.batch)
        batch = [states[i] for i in shuffled(len(states), 0, enough, stage.seed + step)]
        counts: Counter = Counter()
        proposed = propose(
            stage.policy, stage.prompter, batch, stage.alternatives, stage.seed + step
        )
        provenance = {"stage": stage.log.key, "step": step, "seed": stage.seed + step}
        made = list(pairs_at(batch, proposed, stage.alternatives, provenance, counts))
        write_json(file.with_suffix(".counts.json"), counts)
        write_jsonl(file, (to_row(pair, len(pair.state.history)) for pair in made))
    pairs = read_pairs(file) if file.stat().st_size else []
    return questions(pairs, stage.alternatives.choices)
