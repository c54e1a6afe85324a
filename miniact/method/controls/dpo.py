"""DPO, a control for ACT: the same pairs, preferred directly instead of judged.

For a pair (s, a⁺, a⁻), both as replies to the action prompt of s:

    L = − log σ(β·m),  m = [log π_θ − log π_ref](a⁺) − [log π_θ − log π_ref](a⁻)

π_ref is the policy as this stage found it. m needs whole completions, so it is scored first,
without a gradient; `losses.dpo` then says how hard each completion is pulled up or pushed down, and
cross-entropy with those weights has exactly the gradient of L.
"""

from __future__ import annotations

import numpy as np

from miniact.backends.protocol import Policy
from miniact.data.trajectories import shuffled
from miniact.method.losses import cross_entropy, dpo
from miniact.method.stage import Stage, learning_rate, needs
from miniact.types import Completion, Group


@needs("pairs")
def run(stage: Stage) -> None:
    prompter, config = stage.prompter, stage.config
    for step in stage.steps():
        picks = shuffled(len(stage.pairs), step, config.batch, stage.seed)
        groups, dropped = [], 0
        for pair in (stage.pairs[i] for i in picks):
            prompt = prompter.action(pair.state, config.thinking)
            both = map(prompter.render_action, (pair.expert, *pair.alternatives))
            replies = tuple(Completion(prompter.reply_tokens(text)) for text in both)
            groups.append(Group(prompt.tokens, replies))
            dropped += prompt.dropped
        weighted, metrics = weigh_preferences(stage.policy, groups, config.beta)
        passed = stage.policy.forward_backward(weighted, cross_entropy)
        metrics["repeated_tokens"] = passed["repeated_tokens"]
        lr = learning_rate(config, step)
        metrics["grad_norm"] = stage.policy.optim_step(lr, config.max_grad_norm)
        metrics["tokens"] = 3 * sum(g.size for g in groups)  # scored twice, trained once
        stage.log.write(step, {**metrics, "lr": lr, "dropped_turns": dropped})


def weigh_preferences(
    policy: Policy, groups: list[Group], beta: float
) -> tuple[list[Group], dict[str, float]]:
    """Groups (a⁺, a⁻) with the weights whose cross-entropy has the gradient of mean DPO loss.

    metrics: the loss, the mean margin m in nats, and `correct`, the share of pairs with m > 0.
    """
    now, before = policy.logprobs(groups), policy.logprobs(groups, reference=True)
    gain_B2 = np.array(
        [[(a - b).sum() for a, b in zip(*both)] for both in zip(now, before)], np.float64
    )
    loss_B, pull_B = dpo(gain_B2[:, 0], gain_B2[:, 1], beta)
    weighted = [
        group.having(weight=[pull / len(groups), -pull / len(groups)])
        for group, pull in zip(groups, map(float, pull_B))
    ]
    margin_B = gain_B2[:, 0] - gain_B2[:, 1]
    return weighted, {
        "loss": float(loss_B.mean()),
        "margin": float(margin_B.mean()),
        "correct": float((margin_B > 0).mean()),
    }
