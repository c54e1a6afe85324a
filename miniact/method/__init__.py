"""The method of the paper, in the order of its seven steps.

1. every state s and expert action a⁺ of the expert trajectories        data.ExpertStates
2. K alternatives a⁻ of the initial policy, without those equal to a⁺   pairs.make_pairs
3. s and both actions, in an order drawn for this presentation          pairs.draw_orders
4. G answers: free reasoning, then a choice                             Policy.sample
5. reward 1 for the right choice, 0 otherwise                           act.score
6. each answer against its group, and an update                         grpo.grpo_step
7. imitation or RL on actions, before or after                          il.run, rl.run

act.py       critical training: the loop of steps 3 to 6
il.py        imitation learning
rl.py        RL on actions, the twin of act.py
stage.py     what the three loops have in common: Stage, imitate, reinforce
pairs.py     contrastive pairs: sample, filter, present in a drawn order
prompts.py   states and actions → prompts; replies → actions and choices
calls.py     tool calls as text, in the forms of different models
template.py  the chat template of a model: its switch for thinking, its date, what it refuses
chat.py      the form `chat`: turns of the model's own template, tool calls in its own form
quoting.py   foreign text takes no meaning
wording.py   the words of the prompts: a text file, miniact's or the user's
rewards.py   when two actions are the same; the two rewards
grpo.py      advantages, normalisers, one GRPO step
losses.py    cross-entropy, the GRPO loss and DPO, once for numpy, PyTorch and MLX
controls/    what ACT is compared with
"""

from collections.abc import Callable

from miniact.config.plugins import is_plugin, resolve
from miniact.method import act, il, rl
from miniact.method.controls import choice_sft, dpo, reflect
from miniact.method.stage import Stage

STAGES = {
    "il": il.run,
    "act": act.run,
    "rl": rl.run,
    "choice_sft": choice_sft.run,
    "dpo": dpo.run,
    "reflect": reflect.run,
}


def run_of(stage: str) -> Callable[[Stage], None]:
    """The loop of a stage: one of STAGES, or the user's own as module:function."""
    return resolve("recipe", stage) if is_plugin(stage) else STAGES[stage]
