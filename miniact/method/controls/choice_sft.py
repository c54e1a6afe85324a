"""SFT on the choice, a control for ACT: the same pairs in the same drawn orders, without RL.

    L = − 1/N · Σ over the batch's N reply tokens of log π_θ(token | critic prompt, tokens before)

The reply is the number of the expert's action in its tags. What this stage cannot teach is to
reason: there is no reasoning to imitate.
"""

from __future__ import annotations

from miniact.data.trajectories import shuffled
from miniact.method.pairs import draw_orders
from miniact.method.stage import Stage, imitate, needs


@needs("pairs")
def run(stage: Stage) -> None:
    prompter, config = stage.prompter, stage.config
    asked = stage.questions
    for step in stage.steps():
        picks = shuffled(len(asked), step, config.batch, stage.seed)
        examples = [
            (
                prompter.critic(shown.state, shown.actions, config.thinking),
                prompter.reply_tokens(prompter.render_choice(shown.right)),
            )
            for shown in draw_orders([asked[i] for i in picks], (stage.seed, step))
        ]
        imitate(stage, step, examples)
