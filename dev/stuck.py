"""Why does an agent repeat an action that failed? Measured for every stage of finished runs.

    python dev/stuck.py runs/cmp/runs/il-act-rl/seed*

An action that does nothing is played in the world, and the same policy is asked again: once after
it failed, once where *another* action failed in its place. What it then does more often only where
the action itself stands in the prompt is copying; what it does alike in both is not having noticed.
Two kinds of such actions, of held-out tasks, for the base model and after every stage:

    proposed    what the base would try in a state of the expert's: the same for all stages
    its own     the first failure in each episode of the stage's own evaluation

The critic is asked to choose between the expert's action and the failed one, before and after.
Prints a table in Markdown: mean ± standard deviation over the runs, in percent or nats.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from failures import Trial, own_trials, proposed_trials
from rich.console import Console

from miniact.backends.protocol import Policy, load_policy
from miniact.cli.common import friendly
from miniact.config import Config, load_config
from miniact.data.trajectories import TrajectoryFile
from miniact.envs import make_env
from miniact.evaluation.episodes import Episode, Move, ask, failures_running
from miniact.evaluation.evaluate import judgement_accuracy
from miniact.method.prompts import Prompter
from miniact.method.rewards import same_action
from miniact.runs.files import read_objects
from miniact.runs.folder import number_of
from miniact.runs.progress import Bar
from miniact.types import Completion, Group, Question, State

Values = dict[str, float | None]  # what is measured → its value; None where no case came up

# ---- what is measured ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    action: str | None
    thought: str | None
    text: str
    nats: float  # −log π of the answer


class Agent:
    """A policy as it acts in a run: with thoughts, if it does so there."""

    def __init__(self, policy: Policy, prompter: Prompter, config: Config) -> None:
        self.policy, self.prompter = policy, prompter
        self.how = config.measuring(config.thinks())
        self.seed = config.seed_for("eval")

    def act(self, states: Sequence[State], temperature: float = 0.0) -> list[Answer]:
        prompts = [self.prompter.action(s, bool(self.how.thinking)).tokens for s in states]
        samples = ask(self.policy, prompts, self.how.max_tokens, temperature, self.seed)
        read, thought_in = self.prompter.action_in, self.prompter.parse_thought
        return [Answer(read(s), thought_in(s.text), s.text, -sum(s.logps)) for s in samples]

    def logps(
        self, states: Sequence[State], answers: Sequence[Answer], actions: Sequence[str]
    ) -> list[float]:
        """log π of an action in each state, behind the thought that the agent had there."""
        groups, lengths, prompter = [], [], self.prompter
        for state, answer, action in zip(states, answers, actions):
            thought = prompter.render_thought(answer.thought or "") if self.how.thinking else ""
            text = prompter.render_action(action)
            lengths.append(len(prompter.reply_tokens(text)))
            reply = Completion(prompter.reply_tokens(thought + text))
            groups.append(Group(prompter.action(state, bool(self.how.thinking)).tokens, (reply,)))
        return [float(row[-n:].sum()) for (row,), n in zip(self.policy.logprobs(groups), lengths)]

    def judge(self, states: Sequence[State], trials: Sequence[Trial]) -> tuple[Any, Any]:
        """Right choices between the expert's and the failed action: of all, of the valid ones."""
        asked = [Question(s, t.expert, (t.action,)) for s, t in zip(states, trials)]
        results = judgement_accuracy(self.policy, self.prompter, asked, self.how, self.seed)
        return results["accuracy"]["value"], results["given_valid"]["value"]


def share(hits: Iterable[bool]) -> float | None:
    hits = list(hits)
    return sum(hits) / len(hits) if hits else None


def same(action: str | None, other: str | None) -> bool:
    return action is not None and other is not None and same_action(action, other)


def in_play(episodes: Sequence[Episode]) -> Values:
    """What the episodes of an evaluation did, move by move."""
    steps = []  # how often running a move has failed, it, and the next
    for moves in (episode.moves for episode in episodes):
        steps += list(zip(failures_running(moves), moves, moves[1:]))

    def again(failed: Callable[[int], bool]) -> float | None:
        return share(same(a.action, b.action) for times, a, b in steps if failed(times))

    return {
        "episodes that get stuck": share(e.repeats_a_failure() for e in episodes),
        "a move fails, behind one that applied": share(not b.applied for n, _, b in steps if not n),
        "it does the same, behind one that applied": again(lambda times: times == 0),
        "… that failed for the first time": again(lambda times: times == 1),
        "… that failed again": again(lambda times: times > 1),
    }


def thoughts_in_play(env: Any, prompter: Prompter, episodes: Sequence[Episode]) -> Values:
    """Whether its thoughts were true, and whether it thinks the same again. Empty without any."""
    all_true: dict[bool, list[bool]] = {True: [], False: []}  # by whether the move applied
    again = []
    for episode in episodes:
        past: list[tuple[str, str]] = []
        thoughts = [prompter.parse_thought(move.reply) for move in episode.moves]
        for i, (move, thought) in enumerate(zip(episode.moves, thoughts)):
            state = State(episode.task_id, episode.task, tuple(past), move.observation)
            past.append((move.observation, move.action or move.reply))
            if not thought:
                continue
            all_true[move.applied].append(all(t for _, t in env.check_thought(state, thought)))
            if i and not episode.moves[i - 1].applied:
                again.append(thought == thoughts[i - 1])
    names = {True: "thoughts that are all true: of moves that apply", False: "… of moves that fail"}
    values = {names[kind]: share(hits) for kind, hits in all_true.items()}
    return values | {"behind a failure: the same thought": share(again)} if again else {}


def acting(agent: Agent, trials: Sequence[Trial], earlier: list[Answer]) -> Values:
    """How it acts in states of the expert's. `earlier` holds the last stage's answers, then its."""
    states = [t.before for t in trials]
    answers, before = agent.act(states), earlier[:]
    earlier[:] = answers
    moved = [(a.action, s.history[-1][1]) for a, s in zip(answers, states) if s.history]
    return {
        "the expert's action": share(same(a.action, t.expert) for a, t in zip(answers, trials)),
        "what it did last": share(same(action, last) for action, last in moved),
        "an answer in the form of a choice": share(
            bool(re.fullmatch(r"\s*\d+\s*|.*<choice>.*", a.text, re.DOTALL)) for a in answers
        ),
        "as the stage before": share(same(a.action, b.action) for a, b in zip(answers, before)),
        "entropy of an answer, nats": statistics.fmean(a.nats for a in agent.act(states, 1.0)),
    }


def after_failing(agent: Agent, trials: Sequence[Trial]) -> Values:
    """What it does, and what its critic says, before and after an action failed."""
    if not trials:
        return {}
    when = {"before": "before", "after another failed": "beside", "after it failed": "after"}
    states = {name: [getattr(t, key) for t in trials] for name, key in when.items()}
    answers = {name: agent.act(some) for name, some in states.items()}
    tried, expert = [t.action for t in trials], [t.expert for t in trials]

    def logp(name: str, actions: Sequence[str]) -> float:
        return statistics.fmean(agent.logps(states[name], answers[name], actions))

    def done(name: str, actions: Sequence[str]) -> float | None:
        return share(same(a.action, b) for a, b in zip(answers[name], actions))

    first, *_, last = when
    values: Values = {"trials": len(trials)}
    values |= {f"it is done, {name}": done(name, tried) for name in when}
    values |= {f"the expert's is done, {name}": done(name, expert) for name in (first, last)}
    values |= {f"log π of it, {name}, nats": logp(name, tried) for name in when}
    values |= {f"log π of the expert's, {name}, nats": logp(name, expert) for name in (first, last)}
    for name in (first, last):
        right, of_valid = agent.judge(states[name], trials)
        values |= {f"critic right, {name}": right, f"… of its valid answers, {name}": of_valid}
    return values


# ---- a run, and the table ------------------------------------------------------------------------


def read_episodes(file: Path) -> list[Episode]:
    def episode(row: dict[str, Any]) -> Episode:
        return Episode(**{**row, "moves": [Move(**move) for move in row["moves"]]})

    return read_objects(file, episode)


def measured(run: Path, most: int, console: Console) -> dict[str, dict[str, Values]]:
    """Stage → section of the table → values, of one run."""
    config = load_config(run / "config.yaml", saved=True)
    policy = load_policy(config.model, config.seed_for("lora"))
    prompter = Prompter(policy.tokenizer, config.prompt)
    agent, env = Agent(policy, prompter, config), make_env(config.env.name, **config.env.options)
    file = TrajectoryFile(run / "trajectories.jsonl")
    trials = proposed_trials(env, policy, prompter, config, file, most)
    # of a base that was measured with and without thoughts, the last: as it acts here
    folders = {number_of(f.parent.name): f.parent for f in sorted(run.glob("stages/*/eval.json"))}
    results, answers = {}, list[Answer]()
    with Bar(console, str(run)) as bar:
        bar.start(len(folders))
        for _, folder in sorted(folders.items()):
            if (folder / "adapter").is_dir():
                policy.load_adapter(folder / "adapter")
            episodes = read_episodes(folder / "episodes.jsonl")
            results[folder.name.partition("-")[2]] = {
                "in play": in_play(episodes) | thoughts_in_play(env, prompter, episodes),
                "states of the expert's": acting(agent, trials, answers),
                "an action that the base proposed": after_failing(agent, trials),
                "its own action": after_failing(agent, list(own_trials(env, episodes))),
            }
            bar.advance()
    return results


def cell(name: str, values: Iterable[float | None]) -> str:
    """Mean ± standard deviation over the runs that have a value."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    scale = 1 if name.endswith("nats") or name == "trials" else 100
    digits = 1 if name.endswith("nats") else 0
    spread = f" ± {scale * statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{scale * statistics.fmean(known):.{digits}f}{spread}".replace("-", "−")


def print_table(results: Sequence[dict[str, dict[str, Values]]]) -> None:
    """Of the results of all runs, in Markdown."""
    stages = list(results[0])
    print(f"| % | {' | '.join(stages)} |\n|---|{'---:|' * len(stages)}")
    for section in results[0][stages[0]]:
        print(f"| **{section}** |{' |' * len(stages)}")
        for name in dict.fromkeys(
            n for r in results for stage in stages for n in r[stage][section]
        ):
            cells = (cell(name, (r[stage][section].get(name) for r in results)) for stage in stages)
            print(f"| {name} | {' | '.join(cells)} |")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--states", default=100, show_default=True, help="Held-out states, at most.")
@friendly
def main(runs, states):  # type: ignore[no-untyped-def]
    """Print the table for finished RUNS of one recipe."""
    print_table([measured(run, states, Console(stderr=True)) for run in runs])


if __name__ == "__main__":
    main()
