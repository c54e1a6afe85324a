"""ALFWorld's own engine, without its waits: the same texts in a fiftieth of the time.

What decides is the package's: its translation from PDDL, the C library of Fast Downward that knows
which actions apply and what they do, its state, its queries and its grammar. What is ours is how
often they are asked. The stock environment translates each game four times, and at each step it
parses the template of every applicable command anew and copies the game's names for each of its
symbols. Here:
- a game file is read and translated once, and the grammar that all games share is parsed once;
- a grammar rule is filled in by walking its parsed form; queries are parsed once;
- a command's wording is kept: it names things and furniture, and those never change.

Python expressions in a grammar (`{o.indefinite + ' ' + o.name}`) are looked up, never evaluated: a
game file is data. Nothing of the package is changed for good, and nothing is shared between two
games in progress: each has a copy of the C library to itself.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import json
import re
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from miniact import UserError
from miniact.envs import check_extra

_GOAL = re.compile(r'(?<="Your task is to: )[^"]*?(?=\.?")')
_GOAL_MARK = "UNKNOWN GOAL"
_PACKAGE = threading.RLock()  # held while the package's global state is borrowed
NOTHING = "Nothing happens."


def require_alfworld() -> None:
    """Raises UserError where the extra is missing."""
    check_extra("alfworld", "alfworld", "fast_downward", "textworld.envs.pddl")


def alfworld_folder() -> Path:
    """Where the package lies, with its room layouts, its domain and its grammar."""
    spec = importlib.util.find_spec("alfworld")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def visible_names(ids: Iterable[str]) -> dict[str, str]:
    """Id → the name that the player reads: "cabinet_bar__plus_00…" → "cabinet 3"."""
    from alfworld.agents.utils.misc import Demangler

    infos = {id_: SimpleNamespace(id=id_) for id_ in ids}
    demangler = Demangler(game_infos=infos)
    return {id_: demangler.demangle_alfred_name(id_) for id_ in infos}


@dataclass(frozen=True)
class GameFile:
    """A game file, read and translated: all that its episodes share."""

    problem: str
    goal: str  # "put a hot apple in fridge"
    logic: Any  # GameLogic: the parsed grammar; shared by games that differ in their goal only
    task: Any  # the translated problem …
    sas: str  # … and the same as the text that the C library reads


def bad_file(file: Path, problem: str, error: BaseException) -> UserError:
    reason = f"{type(error).__name__}: {error}".replace("\n", " ")
    return UserError(f"{file}: {problem} ({reason:.100}); fetch it again")


@functools.lru_cache(maxsize=128)
def read_game(file: Path) -> GameFile:
    """Read a `game.tw-pddl`. Raises UserError when it is no game or cannot be solved."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        domain, grammar, problem = (data[k] for k in ("pddl_domain", "grammar", "pddl_problem"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise bad_file(file, "not a readable ALFWorld game", error) from None
    goal = _GOAL.search(grammar)
    with _PACKAGE:
        try:
            logic = _parse_logic(domain, _GOAL.sub(_GOAL_MARK, grammar))
            task, sas = _translate(domain, problem)
        except (Exception, SystemExit) as error:  # the translator may even exit
            raise bad_file(file, "a damaged ALFWorld game", error) from None
    if "Atom dummy(val1)" in sas:  # what the translator makes of it; the package: KeyError 'val1'
        raise UserError(f"{file}: this ALFWorld game cannot be solved; delete its folder")
    return GameFile(problem, goal[0] if goal else "", logic, task, sas)


@functools.lru_cache(maxsize=8)
def _parse_logic(domain: str, grammar: str) -> Any:
    from textworld.envs.pddl.logic import GameLogic

    return GameLogic(domain=domain, grammar=grammar)


def _translate(domain: str, problem: str) -> tuple[Any, str]:
    """PDDL → (task, SAS text). The package overwrites sys.argv for it: put that back."""
    import fast_downward

    argv = sys.argv
    try:
        return fast_downward.pddl2sas(domain, problem)
    finally:
        sys.argv = argv


@contextlib.contextmanager
def _already_translated(game: GameFile) -> Iterator[None]:
    """While the package builds a state, it is handed the translation that is there."""
    import fast_downward

    with _PACKAGE:
        stock = fast_downward.pddl2sas
        fast_downward.pddl2sas = lambda *args, **kwargs: (game.task, game.sas)
        try:
            yield
        finally:
            fast_downward.pddl2sas = stock


# Copies of the C library that no game uses. Each holds one state at a time: a game needs its own.
# They are used again and never unloaded: copies share a table of C++ objects, and a process that
# has unloaded one of several crashes at its end.
_IDLE: list[Any] = []


def _put_back(library: Any) -> None:
    library.cleanup()
    _IDLE.append(library)


class Game:
    """A game in progress. `load` one, then `step`; `commands` are the words that apply now."""

    def __init__(self) -> None:
        import fast_downward

        self._library = _IDLE.pop() if _IDLE else fast_downward.load_lib()
        self.close = weakref.finalize(self, _put_back, self._library)
        self.close.atexit = False
        self.commands: dict[str, Any] = {}  # command → operator of the C library

    def load(self, file: GameFile) -> str:
        """Start from the beginning. Returns the first text."""
        from textworld.envs.pddl.logic import PddlState
        from textworld.generator.game import EntityInfo

        with _already_translated(file):
            self.state = PddlState(self._library, file.problem, file.logic)
        types = {v.name: v.type for fact in self.state.facts for v in fact.arguments}
        self._entities = {name: EntityInfo(name, type_) for name, type_ in types.items()}
        for name, shown in visible_names(self._entities).items():
            info = self._entities[name]
            info.name, info.definite, info.indefinite = shown, "the", "a"
        self._file = file
        self.receptacle: str | None = None  # what the last command that applied was about
        self._wordings: dict[str, str] = {}
        self._refresh()
        return self._derive("#intro#", {}).replace(_GOAL_MARK, file.goal)

    def step(self, command: str) -> str:
        """Act and return what the game says; what does not apply changes nothing."""
        operator = self.commands.get(command)
        if operator is None:
            return NOTHING
        action = SimpleNamespace(id=operator.id)
        self.state.apply(action)
        name, mapping = self._bind(operator.name)
        self.receptacle = next((v.name for ph, v in mapping.items() if ph.name == "r"), None)
        self._refresh()
        return self._derive(self._file.logic.actions[name].feedback_rule, mapping)

    @property
    def won(self) -> bool:
        return self.state.check_goal()

    def name(self, id_: str) -> str:
        return self._entities[id_].name

    def _refresh(self) -> None:
        """Ask the C library what applies now, and word it."""
        import fast_downward

        count = self._library.get_applicable_operators_count()
        operators = (fast_downward.Operator * count)()
        self._library.get_applicable_operators(operators)
        self.state._operators = {op.id: op for op in operators}  # where `apply` looks
        self.commands = {}
        for operator in operators:
            name = operator.name
            if name not in self._wordings:
                action, mapping = self._bind(name)
                template = self._file.logic.actions[action].template
                self._wordings[name] = self._derive(template, mapping)
            self.commands.setdefault(self._wordings[name], operator)

    def _bind(self, operator: str) -> tuple[str, dict[Any, Any]]:
        """ "takeobject agent1 loc1 …" → the action's name and its parameters' values."""
        from textworld.logic import Placeholder, Variable

        name, *arguments = operator.split()
        parameters = self.state._actions[name].parameters
        return name, {
            Placeholder(p.name.strip("?"), p.type_name): Variable(value, p.type_name)
            for p, value in zip(parameters, arguments)
        }

    def _derive(self, start: str, mapping: dict[Any, Any]) -> str:
        """Fill in a template of the grammar: what the stock grammar's `derive` answers."""
        return "".join(self._texts(_parse_template(start), mapping))

    def _texts(self, symbols: Sequence[Any], mapping: dict[Any, Any]) -> Iterator[str]:
        from textworld.envs.pddl import textgen

        for symbol in symbols:
            if isinstance(symbol, textgen.TerminalSymbol):
                yield str(symbol.symbol)
            elif isinstance(symbol, textgen.NonterminalSymbol):
                yield from self._texts(self._rule(str(symbol.symbol), mapping), mapping)
            elif isinstance(symbol, textgen.ConditionalSymbol):
                yield from self._items(symbol, mapping)
            elif isinstance(symbol, textgen.ListSymbol):
                yield self._listing(list(self._items(symbol.symbol, mapping)), mapping)
            else:
                values = {ph.name: self._entities[var.name] for ph, var in mapping.items()}
                yield str(_look_up(symbol.expression, values))

    def _items(self, symbol: Any, mapping: dict[Any, Any]) -> Iterator[str]:
        """One text for each way in which the condition of `{expression | condition}` holds."""
        mappings = [mapping]
        if symbol.given:
            matches = self.state.all_assignments(_parse_query(symbol.given), mapping)
            mappings = [{**mapping, **match} for match in matches]
        for each in mappings:
            yield "".join(self._texts([symbol.expression], each))

    def _listing(self, items: list[str], mapping: dict[Any, Any]) -> str:
        """ "a, b, and c", in the words of the grammar."""

        def word(name: str) -> str:
            return "".join(self._texts(self._rule(name, mapping), mapping))

        if not items:
            return word("list_empty")
        if len(items) == 1:
            return items[0]
        head = word("list_separator").join(items[:-1])
        return head + word("list_last_separator") + items[-1]

    def _rule(self, name: str, mapping: dict[Any, Any]) -> Sequence[Any]:
        """The right-hand side of the first rule of this name whose condition holds."""
        for rule in self._file.logic.grammar._rules[name]:
            if not rule.condition:
                return rule.rhs
            matches = self.state.all_assignments(_parse_query(rule.condition), mapping)
            if next(iter(matches), None) is not None:
                return rule.rhs
        raise KeyError(f"the grammar has no rule for {name!r}")


@functools.lru_cache(maxsize=4096)
def _parse_template(text: str) -> Sequence[Any]:
    from textworld.envs.pddl import textgen

    return textgen._parse_and_convert(text, rule_name="symbols")


@functools.lru_cache(maxsize=4096)
def _parse_query(text: str) -> Any:
    from textworld.logic import Rule

    return Rule.parse_conjunctive_query(text)


def _look_up(expression: str, values: dict[str, Any]) -> Any:
    """The value of an expression over names, attributes, texts, `+` and `or`; nothing else runs.

    >>> _look_up("r.name or r.id", {"r": SimpleNamespace(name="", id="shelf_1")})
    'shelf_1'
    """
    return _value(_parse_expression(expression), values)


@functools.lru_cache(maxsize=4096)
def _parse_expression(text: str) -> ast.expr:
    return ast.parse(text.strip(), mode="eval").body


def _value(node: ast.expr, values: dict[str, Any]) -> Any:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Name(id=name):
            return values[name]
        case ast.Attribute(value=ast.Name(id=name), attr=attribute) if attribute[0] != "_":
            return getattr(values[name], attribute)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return str(_value(left, values)) + str(_value(right, values))
        case ast.BoolOp(op=ast.Or(), values=[*options]):
            for option in options:
                if value := _value(option, values):
                    break
            return value
    raise UserError(f"ALFWorld grammar: {ast.unparse(node)!r} is not an expression that it may use")
