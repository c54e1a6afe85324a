"""How many tokens states take, and those that no prompt can show.

No state is overlooked, and few are tokenized: the bytes of a text bound its tokens, so only texts
that might be too long are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from miniact import UserError
from miniact.config import Config
from miniact.config.plugins import is_plugin
from miniact.data.trajectories import TrajectoryFile
from miniact.method import run_of
from miniact.method.prompts import Prompter
from miniact.method.stage import needs_of
from miniact.types import State, Step, Trajectory


def unlimited(prompter: Prompter) -> Prompter:
    """A prompter that shows every state, however long."""
    return Prompter(prompter.tokenizer, replace(prompter.config, max_tokens=0))


def bare(prompter: Prompter, config: Config, state: State, expert: str) -> int:
    """Tokens of the longest prompt that shows a state without its history."""
    thinking, left_out = _thinks(config), state.earlier + len(state.history)
    shown = replace(state, history=(), earlier=left_out)  # a line says so
    size = len(prompter.action(shown, thinking).tokens)
    if _judges(config):
        ways = config.pairs.choices
        asked = len(prompter.critic(shown, [expert] * ways, thinking).tokens)
        own = len(prompter.reply_tokens(prompter.render_action(expert)))
        # alternatives may be longer than the expert's action
        size = max(size, asked + (ways - 1) * max(0, config.pairs.max_tokens - own))
    return size


def whole(prompter: Prompter, config: Config, state: State, expert: str) -> int:
    """The same with the history that the config shows."""
    past = state.history[max(0, len(state.history) - config.prompt.history) :]
    more, less = (
        len(prompter.action(replace(state, history=turns)).tokens) for turns in (past, ())
    )
    return bare(prompter, config, state, expert) + more - less


def _thinks(config: Config) -> bool:
    """Whether some prompt asks for reasoning, which takes more words."""
    stages = [getattr(config.stage, name) for name in config.recipe if not is_plugin(name)]
    asking = [config.eval, config.pairs, *stages]
    return any(section.thinking for section in asking) or bool(config.eval.judge_thinking)


def _judges(config: Config) -> bool:
    """Whether a critic is asked anything."""
    return bool(config.eval.pairs) or any("pairs" in needs_of(run_of(n)) for n in config.recipe)


@dataclass
class TooLong:
    """States that no prompt can show, by trajectory, and what the longest of them takes."""

    states: int = 0  # of all
    steps: dict[int, list[int]] = field(default_factory=dict)
    longest: tuple[int, str] = (0, "")  # tokens, id of the state

    @property
    def number(self) -> int:
        return sum(map(len, self.steps.values()))


def too_long(prompter: Prompter, config: Config, file: TrajectoryFile) -> TooLong:
    """States whose task and observation alone exceed the limit, or whose action fits no pass.

    With prompt.too_long: shorten, only the latter: an action is never cut.
    """
    limit, batch = config.prompt.max_tokens, config.model.max_tokens_per_batch
    shorten = config.prompt.too_long == "shorten"
    prompter = unlimited(prompter)
    ways, result, empties = config.pairs.choices, TooLong(), dict[str, int]()
    for index in range(len(file)):
        trajectory = file.read(index)
        task, tools = _bytes(prompter, trajectory.task), str(trajectory.tools)
        if tools not in empties:  # a prompt without texts: few sets of tools make up a file
            nothing = State("", "", (), "", earlier=10**6, tools=trajectory.tools)
            empties[tools] = bare(prompter, config, nothing, "")
        empty = empties[tools]
        for i, step in enumerate(trajectory.steps):
            result.states += 1
            action, needs = _bytes(prompter, step.action), 0
            most = (
                empty
                + task
                + _shown_bytes(prompter, step)
                + ways * max(action, config.pairs.max_tokens)
            )
            if most > limit and not shorten:
                needs = bare(prompter, config, _state(trajectory, i), step.action)
            if limit + action > batch:
                action = len(prompter.reply_tokens(prompter.render_action(step.action)))
            if needs > limit or limit + action > batch:
                result.steps.setdefault(index, []).append(i)
                result.longest = max(result.longest, (max(needs, action), f"{trajectory.id}#{i}"))
    return result


def _state(trajectory: Trajectory, i: int) -> State:
    return replace(trajectory.state(i), history=(), earlier=i)


def _shown_bytes(prompter: Prompter, step: Step) -> int:
    listed = (step.admissible or ()) if prompter.config.show_admissible else ()
    turns = 24 * step.observation.count("\n")  # a line may be another speaker's turn
    return turns + sum(_bytes(prompter, text) for text in (step.observation, *listed))


def _bytes(prompter: Prompter, text: str) -> int:
    """At least the tokens of a text and of the two characters that part it from the next."""
    return len(prompter.quote(text).encode()) + 2


def tell(config: Config, file: TrajectoryFile, long: TooLong) -> Iterator[str]:
    """How many states are left out; UserError where the config says to stop at such."""
    if not long.number:
        return
    tokens, where = long.longest
    found = (
        f"{long.number} of {long.states} states are too long: their task and observation alone "
        f"need more than prompt.max_tokens {config.prompt.max_tokens}, or their action no longer "
        f"fits model.max_tokens_per_batch {config.model.max_tokens_per_batch}; the longest takes "
        f"{tokens} tokens ({where})"
    )
    if config.prompt.too_long == "stop":
        raise UserError(
            f"{file.path}: {found}; raise these, or set prompt.too_long: shorten or leave_out"
        )
    yield f"{found}: left out"


def leave_out_too_long(prompter: Prompter, config: Config, file: TrajectoryFile) -> None:
    """Leave such states out of what is learned and measured, or stop, as the config says."""
    long = too_long(prompter, config, file)
    for _ in tell(config, file, long):
        for index, steps in long.steps.items():
            file.leave_out(index, steps)
