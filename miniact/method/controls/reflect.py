"""Early Experience: imitate reflections, mixed with the expert's actions (arXiv 2510.08558).

    L = − 1/N · Σ over the N reply tokens of a batch of log π_θ(token | prompt, tokens before)

A reflection is the reply to the thinking prompt: the reasoning in the model's own form, then the
expert's action. An expert action alone is the reply to the prompt of `il`, so the two do not give
two answers to one prompt (ours; stage.reflect.thinking: true gives both the thinking prompt). The
reflections are made before anything is trained: reflections.py.
"""

from __future__ import annotations

from miniact import UserError
from miniact.data.trajectories import shuffled
from miniact.method.stage import Stage, imitate, needs


@needs("pairs", "reflections")
def run(stage: Stage) -> None:
    prompter, config = stage.prompter, stage.config
    thoughts = round(config.share * config.batch)
    if thoughts and not stage.reflections:
        raise UserError("stage.reflect: there are no reflections; see reflections.counts.json")
    for step in stage.steps():
        examples = []
        for i in shuffled(len(stage.reflections), step, thoughts, stage.seed):
            known = stage.reflections[i]
            reply = prompter.render_thought(known.text) + prompter.render_action(known.expert)
            prompt = prompter.action(known.state, thinking=True)
            examples.append((prompt, prompter.reply_tokens(reply)))
        for state, action in stage.states.batch(step, config.batch - thoughts, stage.seed):
            prompt = prompter.action(state, config.thinking)
            examples.append((prompt, prompter.reply_tokens(prompter.render_action(action))))
        imitate(stage, step, examples)
