"""Agentic Critical Training on one page: an expert plays, a model learns IL → ACT → RL from it.

    python act_loop.py                                a minute on two cores, no download
    python act_loop.py seed=1 stage.act.steps=100     any key of the config

`miniact run` reaches the same weights (a test compares the bytes). It also keeps every artefact,
resumes after a kill, and reports: experiments/pipeline.py. Read on in method/ from here.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

from miniact.backends.protocol import load_policy
from miniact.config import load_config
from miniact.data.trajectories import TrajectoryFile, collect, shuffled, to_row
from miniact.envs import make_env
from miniact.evaluation.evaluate import HeldOut, evaluate
from miniact.method.pairs import draw_orders, gather, make_pairs, questions
from miniact.method.prompts import Prompter
from miniact.method.rewards import action_reward, choice_reward, same_action
from miniact.method.stage import Stage, imitate, reinforce
from miniact.runs.files import write_jsonl
from miniact.types import Scored

# The shipped config of a model that answers at once, without a thought, in half of its steps.
SIZES = "env.train_tasks=600 env.heldout_tasks=30 eval.episodes=32 eval.states=100 eval.pairs=30"
STEPS = "stage.il.steps=150 stage.act.steps=30 stage.rl.steps=30"


def main(folder: Path, overrides: list[str]) -> dict:
    config = load_config("household-plain", [*SIZES.split(), *STEPS.split(), *overrides])
    seed = config.seed_for  # one number, and a name for each use of chance
    policy = load_policy(config.model, seed("lora"))  # a frozen base and a fresh LoRA adapter
    prompter = Prompter(policy.tokenizer, config.prompt)  # states → tokens, replies → actions
    worlds = [make_env(config.env.name, **config.env.options) for _ in range(config.eval.episodes)]

    # ---- the expert plays; its tasks of id and ood are never trained on --------------------------
    sizes = {"train": config.env.train_tasks}
    sizes |= dict.fromkeys(config.eval.splits, config.env.heldout_tasks)
    plays = (collect(worlds[0], s, n, seed("collect"), "expert") for s, n in sizes.items())
    write_jsonl(folder / "trajectories.jsonl", (to_row(t) for play in plays for t in play))
    file = TrajectoryFile(folder / "trajectories.jsonl")
    expert, heldout = file.states("train"), sorted(config.eval.splits)

    # ---- what would the model have done instead? Before it has learned anything: π_θ0 ------------
    def pairs_of(split: str) -> list:
        states, chance = file.states(split), seed("pairs", split)
        return gather(make_pairs(policy, prompter, states, config.pairs, chance))[0]

    pairs = pairs_of("train")
    asked = questions(pair for split in heldout for pair in pairs_of(split))

    # ---- the measure: success in the world, the expert's action, the better of two actions -------
    chance = seed("eval")
    measured_on = HeldOut.draw(worlds, file.states(*heldout), asked, config.eval, chance)

    def measure() -> dict:
        return evaluate(policy, prompter, config.eval, chance, measured_on)[0]

    results = {"base": measure()}

    # ---- IL: imitate. It sees good actions only, and never why they are good ---------------------
    il = config.stage.il
    stage = Stage(policy, prompter, il, seed=seed("stage", 1, "il"))
    for step in stage.steps():
        prompts, replies = [], []
        for state, action in expert.batch(step, il.batch, stage.seed):
            prompts.append(prompter.action(state))
            # the end of the reply is trained too: an agent that never stops never acts
            replies.append(prompter.reply_tokens(prompter.render_action(action)))
        imitate(stage, step, list(zip(prompts, replies)))
    results["1-il"] = measure()

    # ---- ACT: judge. Good beside worse, and a reward for telling them apart ----------------------
    act = config.stage.act
    stage = Stage(policy, prompter, act, seed=seed("stage", 2, "act"))
    train = questions(pairs)
    for step in stage.steps():
        batch = [train[i] for i in shuffled(len(train), step, act.batch, stage.seed)]
        # an order drawn anew each time: if the better one stood first, "1" would be all to learn
        shown = draw_orders(batch, (stage.seed, step))
        prompts = [prompter.critic(s.state, s.actions) for s in shown]

        def judge(shown, answer):
            # only the choice is read: whatever reasoning leads to right choices is reinforced
            choice = prompter.parse_choice(answer.text, shown.actions)
            reward = choice_reward(choice, shown.right)
            return Scored(reward, choice == shown.right, choice is not None)

        # G answers to each prompt; those better than their group's mean become more likely
        reinforce(stage, step, prompts, [partial(judge, s) for s in shown])
    results["2-act"] = measure()

    # ---- RL: act. The same loop, asked for the action itself -------------------------------------
    rl = config.stage.rl
    stage = Stage(policy, prompter, rl, seed=seed("stage", 3, "rl"))
    for step in stage.steps():
        batch = expert.batch(step, rl.batch, stage.seed)
        prompts = [prompter.action(state) for state, _ in batch]

        def match(expert_action, answer):
            # its own words, judged by the expert's deed: no world is needed to train
            action = prompter.parse_action(answer.text)
            right = action is not None and same_action(action, expert_action)
            return Scored(action_reward(action, expert_action), right, action is not None)

        reinforce(stage, step, prompts, [partial(match, action) for _, action in batch])
    results["3-rl"] = measure()

    policy.save_adapter(folder)
    return results


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        results = main(Path(folder), sys.argv[1:])
    print(f"{'%, held out':10} success id   ood   next action   judgement")
    for stage, found in results.items():
        rates = [found["splits"][split]["success"] for split in ("id", "ood")]
        rates += [found["next_action"]["accuracy"], found["judgement"]["accuracy"]]
        print(f"{stage:10}" + "".join(f"{100 * r['value']:10.1f}" for r in rates))
