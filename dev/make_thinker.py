"""A tiny base model that thinks: a beginner, made from play of mixed skill, never from an expert.

`python dev/make_thinker.py --out FOLDER` plays the household world's `play` split, whose rooms and
goals no other split has, and trains a small Llama on what was played there, replies alone:

    action example   state → a thought, then the action that it led to
    critic example   state and two actions → a thought, then one of the two, by the toss of a coin
    reflection       state, two actions and what they led to → thoughts on the first, and it

The player (`Player`) is skilled in some of its moves and random in the others, in a share that is
drawn for each episode; now and then it tries what does not apply. When skilled it does what its
task needs next, by what it has read; where it must search, it goes through the room by the
alphabet. A thought is a few true sentences of household_facts.py: of a skilled move its reasons, of
another any that are true. So the base knows the words, the form of an answer, how thoughts and
actions belong together, and something of what tasks need. Which of two actions is better nothing
tells it: in a critic's example chance picks the answer, and then thoughts that concern it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import tiny_llama
from rich.console import Console
from tiny_llama import build_tokenizer, options, random_action, replace
from tokenizers import normalizers

from miniact.cli.common import friendly
from miniact.config.sections import PromptConfig
from miniact.envs import Env, make_env
from miniact.envs.household import NOTHING, PLACES, PLAY
from miniact.envs.household_facts import LAMP, TOOLS, Known, kind_of, read, things
from miniact.method.prompts import Prompter
from miniact.types import Completion, Group, State

# A prompt that asks for a thought begins it; one that asks for none begins and ends it.
CHAT_TEMPLATE = (
    "<start>{% for message in messages %}{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<reply><think>"
    "{% if not enable_thinking %}</think>{% endif %}{% endif %}"
)
TAGS = ["<think>", "</think>", "<action>", "</action>", "<choice>", "</choice>"]
# one token for one thing ("shelf 1"), and for the head of a sentence ("i hold")
WORDS = (
    r"i (?:want|hold|must|am at|saw no|saw)|not searched|go to|nothing happens|[a-z]+ \d+|[a-z']+"
    r"|\d+|\n|[^\sa-z0-9]"
)
# Left out. The end of a sentence stays where another begins with a small letter: in a thought.
FILLERS = (
    r",|\.(?! [a-z])|\b(?i:arrive at|in the middle of|looking quickly around|a|an|the|and|you|is"
    r"|are|it)\b"
)
NORMAL = [replace(FILLERS), normalizers.Lowercase()]
SIZES = {"hidden_size": 128, "intermediate_size": 288, "num_hidden_layers": 4}  # 0.73M parameters
PROMPT = PromptConfig(
    form="tags", wording="builtin:plain", show_admissible=False, history=20, max_tokens=768
)
THINKS = 0.85  # share of the action examples that have a thought
JUDGES, REFLECTS = 0.2, 0.03  # share of critic examples, and of reflections; the rest are actions
REPLIES = 4  # to one prompt
SKILL = (0.4, 1.0)  # share of an episode's moves that are skilled, drawn uniformly from here
# Share of moves that do not apply, and of those that are then made once more. They are played and
# never learned, so that the base has been where its own mistakes will bring it.
BLUNDERS, AGAIN = 0.1, 0.4
MOST = 20  # steps of an episode
ANYWHERE = sorted(PLACES)


# ---- play --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """An action, and the true sentences that lead to it, the decisive one last."""

    action: str
    reasons: tuple[str, ...]


class Player:
    """Plays by what it has read. Reads nothing of the world but the actions that apply now.

    The reasons of a move are a chain: each sentence needs no more than one look at the prompt, or
    at the sentence before it, and the move follows from the last ones.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def plan(self, known: Known, actions: Sequence[str]) -> Plan:
        """What the task needs next."""
        hand = known.hand
        holds = f"i hold {hand or 'nothing'}"
        if not hand:
            return self._fetch(known, holds)
        if kind_of(hand) != known.object:
            return self._put_down(known, actions)
        if known.how == "light":
            lamps = known.of_kind(LAMP)
            if not lamps:
                return self._search(known, (holds, f"light needs {LAMP} 1"), LAMP)
            place = known.where[lamps[0]]
            reasons = (holds, f"light needs {lamps[0]}", f"i saw {lamps[0]} on {place}")
            return self._at(known, place, reasons, f"use {lamps[0]}")
        if not known.ready(hand):
            verb, tool = known.verb, f"{TOOLS[known.verb]} 1"
            reasons = (holds, f"i must {verb} {known.object}", f"{verb} needs {tool}")
            action = f"{verb} {hand} with {tool}"
            if known.at == tool:
                return Plan(action, (*reasons, f"i am at {tool}"))
            return Plan(f"go to {tool}", (*reasons, *here(known)))
        return self._deliver(known, holds)

    def _fetch(self, known: Known, holds: str) -> Plan:
        takeable = [
            (not known.ready(name), name)
            for name in known.of_kind(known.object)
            if not (known.how == "two" and kind_of(known.where[name]) == known.target)
        ]
        if not takeable:
            return self._search(known, (holds,), known.object)
        name = min(takeable)[1]
        place = known.where[name]
        reasons = (holds, f"i saw {name} on {place}")
        return self._at(known, place, reasons, f"take {name} from {place}")

    def _search(self, known: Known, reasons: tuple[str, ...], kind: str) -> Plan:
        """Go round by the alphabet: where things usually are it does not know."""
        # of two, the first may lie where it belongs: then it has seen one
        none = () if known.of_kind(kind) else (f"i saw no {kind}",)
        place = next_left(known)
        if not place:  # all was searched
            elsewhere = [place for place in known.places if place != known.at]
            return Plan(f"go to {self.rng.choice(elsewhere)}", (*reasons, *none))
        return self._at(
            known, place, (*reasons, *none), f"examine {place}", f"{place} not searched"
        )

    def _put_down(self, known: Known, actions: Sequence[str]) -> Plan:
        moves = [a for a in actions if a.startswith("move ")]
        elsewhere = [place for place in known.places if place != known.at]
        action = moves[0] if moves else f"go to {self.rng.choice(elsewhere)}"
        return Plan(action, (known.goal(), f"i hold {known.hand}"))

    def _deliver(self, known: Known, holds: str) -> Plan:
        targets = [p for p in known.places if kind_of(p) == known.target]
        begun = [p for n, p in known.where.items() if known.ready(n) and p in targets]
        place = begun[0] if known.how == "two" and begun else targets[0]
        if known.at in targets and not (known.how == "two" and begun):
            place = known.at
        treated = (f"{known.hand} {known.how}",) if known.verb else ()
        reasons = (holds, *treated, known.goal())
        return self._at(known, place, reasons, f"move {known.hand} to {place}")

    def _at(
        self, known: Known, place: str, reasons: tuple[str, ...], action: str, last: str = ""
    ) -> Plan:
        """The action, if it can be done where the agent stands; else what brings it nearer."""
        if known.at != place:
            return Plan(f"go to {place}", (*reasons, *here(known), *([last] if last else [])))
        if place in known.closed:
            return Plan(f"open {place}", (*reasons, *here(known), f"{place} closed"))
        return Plan(action, (*reasons, *here(known)))


def here(known: Known) -> tuple[str, ...]:
    return (f"i am at {known.at}",) if known.at else ()


def next_left(known: Known) -> str:
    """The next place that has not been searched, by the alphabet, from where the agent stands.

    By an order that is always the same, not by the room's own: to look up what follows a place in a
    list is far harder for so small a model than to know by heart what follows it in every list.
    """
    later = [place for place in sorted(known.places) if place > known.at]
    round_trip = [*later, *(place for place in sorted(known.places) if place <= known.at)]
    if known.at in known.closed:
        round_trip.insert(0, known.at)
    return next((place for place in round_trip if place not in known.searched), "")


@dataclass(frozen=True)
class Visit:
    state: State
    actions: tuple[str, ...]  # those that apply in it


def play(env: Env, rng: random.Random) -> Iterator[list[Visit]]:
    """Endless episodes, each with a skill of its own."""
    player, seed = Player(rng), 0
    while True:
        seed += 1
        for task_id in env.tasks(PLAY, 60, 10_000 + seed):
            task, turn = env.reset(task_id)
            skill, visits = rng.uniform(*SKILL), []
            history: list[tuple[str, str]] = []
            while not turn.done:
                visit = Visit(
                    State(task_id, task, tuple(history), turn.observation), env.admissible() or ()
                )
                visits.append(visit)
                taken = blunder(visit, rng) or move(visit, read(visit.state), player, skill)[0]
                history.append((turn.observation, taken))
                turn = env.step(taken)
            yield visits


def blunder(visit: Visit, rng: random.Random) -> str:
    """Now and then an action that does not apply; "": none this time."""
    state = visit.state
    if state.observation == NOTHING and rng.random() < AGAIN:
        return state.history[-1][1]
    if rng.random() >= BLUNDERS:
        return ""
    tried = [action for _, action in state.history if action not in visit.actions]
    verb, place = rng.choice(("go to", "open")), f"{rng.choice(ANYWHERE)} {rng.randint(1, 2)}"
    action = rng.choice(tried) if tried and rng.random() < 0.5 else f"{verb} {place}"
    return "" if action in visit.actions else action


def move(visit: Visit, known: Known, player: Player, skill: float) -> tuple[str, list[str]]:
    """One move and the thought before it."""
    rng = player.rng
    if rng.random() >= skill:
        action = random_action(visit.actions, rng)
        return action, concerning(action, known, rng)
    plan = player.plan(known, visit.actions)
    return plan.action, list(plan.reasons)


def any_fact(known: Known, rng: random.Random) -> str:
    """A true sentence: the kind is drawn first, so that kinds of many sentences do not prevail."""
    facts = known.facts() | {
        "left": [f"{place} not searched" for place in [next_left(known)] if place]
    }
    return rng.choice(rng.choice([of_kind for of_kind in facts.values() if of_kind]))


def concerning(action: str, known: Known, rng: random.Random) -> list[str]:
    """One to three true sentences; nine times in ten one of them is about what the action is."""
    about = [
        [fact for fact in of_kind if things(fact) & things(action)]
        for of_kind in known.facts().values()
    ]
    about = [facts for facts in about if facts]
    thought = [any_fact(known, rng) for _ in range(rng.randint(0 if about else 1, 2))]
    if about and (rng.random() < 0.9 or not thought):
        thought.insert(rng.randrange(len(thought) + 1), rng.choice(rng.choice(about)))
    return list(dict.fromkeys(thought))


# ---- examples ----------------------------------------------------------------------------------


def reply(prompter: Prompter, thought: Sequence[str], answer: str) -> Completion:
    text = prompter.render_thought(". ".join(thought)) if thought else ""
    return Completion((*prompter.begin_tokens(text), *prompter.reply_tokens(answer)))


def action_example(prompter: Prompter, visit: Visit, player: Player) -> Group:
    """Several replies to one prompt, of several skills."""
    known, rng = read(visit.state), player.rng
    thinking = rng.random() < THINKS
    replies = []
    for _ in range(REPLIES):
        action, thought = move(visit, known, player, rng.uniform(*SKILL))
        answer = prompter.render_action(action)
        replies.append(reply(prompter, thought if thinking else (), answer))
    return Group(prompter.action(visit.state, thinking).tokens, tuple(replies))


def two_moves(visit: Visit, player: Player) -> list[str]:
    """Two different moves that the player might make, drawn alike."""
    known = read(visit.state)
    while True:
        shown = [move(visit, known, player, player.rng.uniform(*SKILL))[0] for _ in range(2)]
        if shown[0] != shown[1]:
            return shown


def critic_example(prompter: Prompter, visit: Visit, player: Player) -> Group:
    """Two moves that the player might make, drawn alike; a coin says which is chosen."""
    known, rng, replies = read(visit.state), player.rng, []
    shown = two_moves(visit, player)
    for _ in range(REPLIES):
        chosen = shown[rng.randrange(2)]
        thought = concerning(chosen, known, rng)
        # by its own words: to find the number of the one that it thinks of is beyond so small a
        # model (tried: its choices had nothing to do with its thoughts)
        replies.append(reply(prompter, thought, f"<choice>{chosen}</choice>"))
    return Group(prompter.critic(visit.state, shown, thinking=True).tokens, tuple(replies))


def reflection_example(prompter: Prompter, visit: Visit, player: Player, env: Env) -> Group:
    """Two moves, alike, and what each leads to; the reply says true things of the one it is for."""
    rng, state = player.rng, visit.state
    shown = two_moves(visit, player)
    led_to = [outcome(env, state, action) for action in shown]
    prompt = prompter.reflection(state, (shown[0], led_to[0]), [(shown[1], led_to[1])])
    after = read(State("", state.task, (*state.history, (state.observation, shown[0])), led_to[0]))
    replies = []
    for _ in range(REPLIES):
        thought = ". ".join(concerning(shown[0], after, rng))
        text = f"{thought} {prompter.render_action(shown[0])}"
        replies.append(Completion(prompter.reply_tokens(text)))
    return Group(prompt.tokens, tuple(replies))


def outcome(env: Env, state: State, action: str) -> str:
    """What an action would lead to, found by playing the episode again up to there."""
    env.reset(state.id)
    for _, taken in state.history:
        env.step(taken)
    return env.step(action).observation


def examples(prompter: Prompter, env: Env, rng: random.Random) -> Iterator[Group]:
    """Endless prompts with replies: some states of each episode, since neighbours look alike."""
    player, other = Player(rng), make_env("household", max_steps=MOST)
    for visits in play(env, rng):
        for visit in rng.sample(visits, min(4, len(visits))):
            kind = rng.random()
            if kind < REFLECTS:
                yield reflection_example(prompter, visit, player, other)
            elif kind < REFLECTS + JUDGES:
                yield critic_example(prompter, visit, player)
            else:
                yield action_example(prompter, visit, player)


# ---- tokenizer and model -----------------------------------------------------------------------


def words_of(env: Env, rng: random.Random) -> list[str]:
    """Texts that hold every word of play: prompts, actions and thoughts."""
    lines = ["1: 2: 3: 4: 5: 6: … which ? why ? Nothing happens. x. i"]
    visits = play(env, rng)
    for visit in (visit for _ in range(700) for visit in next(visits)):
        facts = [fact for of_kind in read(visit.state).facts().values() for fact in of_kind]
        state = visit.state
        lines.append("\n".join([state.task, state.observation, "> ", *visit.actions, *facts]))
    return lines


def tokenizer_for(env: Env, seed: int) -> Any:
    lines = words_of(env, random.Random(seed))
    return build_tokenizer(lines, WORDS, NORMAL, CHAT_TEMPLATE, TAGS)


def pretrain(out: Path, seed: int, steps: int, batch: int, console: Console) -> None:
    """Make the tiny base model in folder `out` (Hugging Face format). Same seed, same bytes."""
    env = make_env("household", max_steps=MOST)
    tokenizer = tokenizer_for(env, seed)
    stream = examples(Prompter(tokenizer, PROMPT), env, random.Random(seed + 1))
    how = (seed, steps, batch)
    # few tokens at once: what so small a model computes then stays in the processor's cache
    tiny_llama.pretrain(out, tokenizer, stream, how, console, at_once=2048, **SIZES)
    env.close()


@click.command()
@options(steps=3600, batch=24, unit="Prompts")
@friendly
def main(out, seed, steps, batch):  # type: ignore[no-untyped-def]
    """Make the tiny base model from play of mixed skill."""
    pretrain(out, seed, steps, batch, Console())


if __name__ == "__main__":
    main()
