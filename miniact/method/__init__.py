"""The method of the paper, in the order of its seven steps.

1. every state s and expert action a⁺ of the expert trajectories        data.ExpertStates
2. K alternatives a⁻ of the initial policy, without those equal to a⁺   pairs.make_pairs
3. s and both actions, in an order drawn for this presentation          pairs.draw_orders
4. G answers: free reasoning, then a choice                             Policy.sample
5. reward 1 for the right choice, 0 otherwise                           act.score
6. each answer against its group, and an update                         grpo.grpo_step
7. imitation or RL on actions, before or after                          il.run, rl.run

stage.py holds what the three loops have in common; controls/ what ACT is compared with.
"""

from miniact.method import act, il, rl
from miniact.method.controls import choice_sft, dpo, reflect

STAGES = {
    "il": il.run,
    "act": act.run,
    "rl": rl.run,
    "choice_sft": choice_sft.run,
    "dpo": dpo.run,
    "reflect": reflect.run,
}
