"""Measuring: success in the environment, next-action accuracy, judgement accuracy.

Every rate comes with its n and a 95 % Wilson interval. All of it is measured on held-out tasks,
states and pairs, greedily by default, and is a function of the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from miniact.backends.protocol import Policy
from miniact.config.sections import EvalConfig
from miniact.data.trajectories import ExpertStates
from miniact.envs import Env
from miniact.evaluation.episodes import Episode, PlayOptions, Tally, Verdict, ask, play_episodes
from miniact.evaluation.intervene import forced_prefix, wrong_choice
from miniact.evaluation.rates import rate, rate_per_question
from miniact.evaluation.thoughts import Said, said_in, thoughts_of
from miniact.method.prompts import Prompter
from miniact.method.rewards import same_action
from miniact.types import Completion, Group, Question, Shown, State

POSITIONS = ("first", "second", "third", "fourth", "fifth", "sixth")


def evaluate_episodes(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Success and behaviour over finished episodes of one split."""
    return {
        "success": rate([e.success for e in episodes]),
        "score": float(np.mean([e.score for e in episodes])) if episodes else None,
        "steps": float(np.mean([len(e.moves) for e in episodes])) if episodes else None,
        "repeats_failure": rate([e.repeats_a_failure() for e in episodes]),
        "failed_actions": rate([not m.applied for e in episodes for m in e.moves]),
        "unparseable": rate([not m.action for e in episodes for m in e.moves]),
        "cut_off": rate([m.cut_off for e in episodes for m in e.moves]),
        "dropped_turns": sum(e.dropped_turns for e in episodes),
        "lost": sum(e.stop == "lost" for e in episodes),
    }


def next_action_accuracy(
    policy: Policy,
    prompter: Prompter,
    states: Sequence[tuple[State, str]],
    config: EvalConfig,
    seed: int,
    tally: Tally | None = None,
) -> dict[str, Any]:
    """How often the policy's action in a held-out expert state is the expert's."""
    prompts = [prompter.action(state, bool(config.thinking)) for state, _ in states]
    tokens, on_answers = [prompt.tokens for prompt in prompts], (tally or Tally()).on_answers
    answers = ask(policy, tokens, config.max_tokens, config.temperature, seed, on_answers)
    actions = [prompter.action_in(answer) for answer in answers]
    hits = [
        action is not None and same_action(action, expert, state.compare)
        for action, (state, expert) in zip(actions, states)
    ]
    return {
        "accuracy": rate(hits),
        "valid": rate([a is not None for a in actions]),
        "cut_off": rate([answer.stop == "length" for answer in answers]),
        "dropped_turns": sum(p.dropped for p in prompts),
    }


def judgement_accuracy(
    policy: Policy,
    prompter: Prompter,
    asked: Sequence[Question],
    config: EvalConfig,
    seed: int,
    tally: Tally | None = None,
) -> dict[str, Any]:
    """Ask the critic every held-out question, with the expert's action in every position.

    accuracy: right answers among all, an unparseable one counts as wrong. given_valid: among valid
    answers only, so that learning the format cannot pass for learning to judge. expert_first,
    expert_second, …: by the position of the right answer, which shows a position bias. consistent:
    the same action chosen in all orders. implicit: log π(a⁺|s) above that of every alternative, the
    judgement that acting itself implies, with no critic prompt. followed: the choice that a wrong
    rationale argues for (eval.intervene: wrong; see intervene.py). All questions have equally many
    candidates.
    """
    ways = 1 + len(asked[0].alternatives)
    shown = [question.present(right) for question in asked for right in range(ways)]
    verdicts, dropped = ask_critic(policy, prompter, shown, config, seed, tally)
    # Q questions, P positions of the right answer; −1: no choice could be read
    choices = [-1 if v.choice is None else v.choice for v in verdicts]
    choice_QP = np.array(choices).reshape(-1, ways)
    right_P = np.arange(ways)
    valid_QP, right_QP = choice_QP >= 0, choice_QP == right_P
    all_QP = np.ones_like(valid_QP)
    # the action behind a choice, wherever it was shown: 0 the expert's, then the alternatives
    picked_QP = np.where(right_QP, 0, choice_QP + (choice_QP < right_P))
    consistent_Q = valid_QP.all(1) & (picked_QP == picked_QP[:, :1]).all(1)
    results = {
        "accuracy": rate_per_question(right_QP, all_QP),
        "valid": rate_per_question(valid_QP, all_QP),
        "given_valid": rate_per_question(right_QP, valid_QP),
        **{f"expert_{POSITIONS[at]}": rate(right_QP[:, at]) for at in range(ways)},
        "consistent": rate(consistent_Q),
        "implicit": rate(implicit_judgements(policy, prompter, asked)),
        "cut_off": rate([verdict.cut_off for verdict in verdicts]),
        "dropped_turns": dropped,
    }
    if config.intervene == "wrong":
        wrong = [wrong_choice(ways, s.right) for s in shown]
        followed_QP = choice_QP == np.array(wrong).reshape(-1, ways)
        results["followed"] = rate_per_question(followed_QP, all_QP)
    return results


def ask_critic(
    policy: Policy,
    prompter: Prompter,
    shown: Sequence[Shown],
    config: EvalConfig,
    seed: int,
    tally: Tally | None = None,
) -> tuple[list[Verdict], int]:
    """What the critic says to each question, and how many turns of history were left out."""
    thinks = bool(config.judge_thinking)
    prompts = [prompter.critic(s.state, s.actions, thinks) for s in shown]
    begun = [forced_prefix(prompter, config.intervene, s.actions, s.right) for s in shown]
    asked = [p.tokens + prompter.begin_tokens(text) for p, text in zip(prompts, begun)]
    most, on_answers = config.judge_max_tokens, (tally or Tally()).on_answers
    answers = ask(policy, asked, most, config.temperature, seed, on_answers)
    verdicts = []
    for text, answer, s in zip(begun, answers, shown):
        reply = text + answer.text
        choice = prompter.parse_choice(reply, s.actions, s.state.compare)
        verdicts.append(Verdict(s, reply, choice, answer.stop == "length"))
    if tally:
        tally.verdicts += verdicts
    return verdicts, sum(p.dropped for p in prompts)


def implicit_judgements(
    policy: Policy, prompter: Prompter, asked: Sequence[Question]
) -> list[bool]:
    """log π(a⁺ | s) > log π(a⁻ | s) for each a⁻, summed over the reply's tokens and its end."""
    groups = []
    for question in asked:
        actions = map(prompter.render_action, question.present(0).actions)
        replies = tuple(Completion(prompter.reply_tokens(action)) for action in actions)
        groups.append(Group(prompter.action(question.state).tokens, replies))
    scored = ([logp.sum() for logp in logps] for logps in policy.logprobs(groups))
    return [bool(expert > max(others)) for expert, *others in scored]


@dataclass(frozen=True)
class HeldOut:
    """What to measure on: worlds, expert states, questions. Whatever is empty is left out."""

    envs: Sequence[Env] = ()
    states: Sequence[tuple[State, str]] = ()
    questions: Sequence[Question] = ()

    @classmethod
    def draw(
        cls,
        envs: Sequence[Env],
        states: Sequence[tuple[State, str]] | ExpertStates,
        questions: Sequence[Question],
        config: EvalConfig,
        seed: int,
    ) -> HeldOut:
        """As many states and questions as the config asks for, drawn from the seed."""

        def some(of: Any, n: int, purpose: int) -> list[Any]:
            chosen = np.random.default_rng([seed, purpose]).permutation(len(of))[:n]
            return [of[int(i)] for i in sorted(chosen)]

        return cls(envs, some(states, config.states, 1), some(questions, config.pairs, 2))

    def amount(self, config: EvalConfig) -> int:
        """Episodes to play, and answers to sample beside them."""
        episodes = len(config.splits) * config.episodes if self.envs else 0
        asked = sum(1 + len(question.alternatives) for question in self.questions)
        return episodes + len(self.states) + asked


def evaluate(
    policy: Policy,
    prompter: Prompter,
    config: EvalConfig,
    seed: int,
    held_out: HeldOut,
    tally: Tally | None = None,
) -> tuple[dict[str, Any], list[Episode]]:
    """Everything that can be measured with what is given. Returns (results, episodes)."""
    tally = tally or Tally()
    results: dict[str, Any] = {}
    played: list[Episode] = []
    thinks = bool(config.thinking)  # None, where nobody said what auto means, is no
    options = PlayOptions(config.temperature, config.max_tokens, thinks, seed)
    if held_out.envs and config.episodes:
        results["splits"] = {}
        for split in config.splits:
            tasks = held_out.envs[0].tasks(split, config.episodes, seed)
            episodes = play_episodes(policy, prompter, held_out.envs, tasks, options, tally)
            results["splits"][split] = evaluate_episodes(episodes)
            played += episodes
    if held_out.states:
        results["next_action"] = next_action_accuracy(
            policy, prompter, held_out.states, config, seed, tally
        )
    if held_out.questions:
        results["judgement"] = judgement_accuracy(
            policy, prompter, held_out.questions, config, seed, tally
        )
    judged = [
        Said(v.shown.state, thought, v.chosen, v.shown.actions)
        for v in tally.verdicts
        if (thought := prompter.parse_thought(v.reply))
    ]
    thoughts = thoughts_of(held_out.envs, act=said_in(prompter, played), judge=judged)
    if thoughts:
        results["thoughts"] = thoughts
    return results, played
