"""ALFWorld (Shridhar et al., 2021): household tasks as text, on the engine of its own package.

The games are the official download (`alfworld-download`), those of `miniact alfworld-games`, or,
where nothing is said, some that are generated on first use into miniact's cache. All are read from
the tree that the package knows: `json_2.1.1/{train,valid_seen,valid_unseen}/<task>/<trial>/`.
valid_seen is played in the rooms of train; the rooms of valid_unseen appear nowhere else.

A task id is "<split>/<task>/<trial>". The commands are those that the game lists, but for `help`,
which answers with a text and is counted as no action.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import islice
from pathlib import Path

from miniact import UserError
from miniact.backends.models import cache_root
from miniact.envs import OVER, Turn, check_names
from miniact.envs.alfworld.engine import NOTHING, Game, bad_file, read_game, require_alfworld
from miniact.envs.alfworld.expert import Expert
from miniact.envs.alfworld.games import SPLITS, TASK_TYPES, TREE, generate

_HELP = "help"
_GENERATED = {"train": 300, "valid_seen": 140, "valid_unseen": 134}  # seen, unseen: as official
_TASK = "Your task is to: "


class ALFWorld:
    """The six types of ALFWorld task.

    `data`: a folder that holds `json_2.1.1`; "": games generated into the cache, 60 MB.
    `types`: only these of the six. `expert`: "explorer" looks for things, "oracle" knows where they
    are. A game in progress holds a copy of the package's C library (35 MB of temporary disk space,
    3 MB of memory), which `close` hands on to the next game.
    """

    splits = SPLITS

    def __init__(
        self,
        *,
        data: str = "",
        max_steps: int = 50,
        types: list[str] | None = None,
        expert: str = "explorer",
    ) -> None:
        require_alfworld()
        self._types = TASK_TYPES if types is None else types
        check_names("env.options.types: unknown name", TASK_TYPES, *self._types)
        check_names("env.options.expert: unknown name", ("explorer", "oracle"), expert)
        self._knows_all = expert == "oracle"
        self._max_steps = max_steps
        self._root = _find_games(data)
        self._listed: dict[str, dict[str, Path]] = {}  # split → task id → folder
        self._game: Game | None = None
        self._expert: Expert | None = None
        self._steps = 0
        self._last = Turn(OVER, done=True)

    def tasks(self, split: str, n: int, seed: int) -> list[str]:
        """n distinct task ids of a split. Games that are marked as unsolvable are left out."""
        check_names("ALFWorld split: unknown name", self.splits, split)
        ids = sorted(self._games(split))
        random.Random(f"{split}/{seed}").shuffle(ids)
        solvable = (i for i in ids if _solvable(self._games(split)[i] / "game.tw-pddl"))
        return list(islice(solvable, max(n, 0)))

    def reset(self, task_id: str) -> tuple[str, Turn]:
        split = task_id.partition("/")[0]
        if split not in self.splits or task_id not in self._games(split):
            raise UserError(
                f"{task_id[:80]!r} is no ALFWorld task here; they look like "
                "'train/<task>/<trial>', and tasks(split, n, seed) lists some"
            )
        folder = self._games(split)[task_id]
        file, trajectory = read_game(folder / "game.tw-pddl"), _read_trajectory(folder)
        if self._game is None:
            self._game = Game()
        room, _, task = self._game.load(file).partition(_TASK)
        self._expert = Expert(self._game, trajectory, self._knows_all)
        self._steps = 0
        self._last = Turn(room.partition("=-")[2].strip() or room.strip())
        return task.strip().removesuffix("."), self._last

    def step(self, action: str) -> Turn:
        if self._last.done or self._game is None or self._expert is None:
            return replace(self._last, observation=OVER, applied=False)
        self._steps += 1
        action = action.strip()
        applied = action in self._game.commands and action != _HELP
        text = self._game.step(action)
        won = self._game.won
        if applied:
            self._expert.observe()
        done = won or self._steps >= self._max_steps
        self._last = Turn(text.strip() or NOTHING, done, won, float(won), applied)
        return self._last

    def admissible(self) -> tuple[str, ...]:
        """What the game lists, without `help`: `look`, `inventory` and `examine …` do tell."""
        if self._last.done or self._game is None:
            return ()
        return tuple(sorted(self._game.commands.keys() - {_HELP}))

    def expert_action(self) -> str | None:
        if self._last.done or self._expert is None:
            return None
        return self._expert.action()

    def close(self) -> None:
        """Give the C library back; an episode in progress is lost."""
        if self._game is not None:
            self._game.close()
        self._game = self._expert = None
        self._last = Turn(OVER, done=True)

    def _games(self, split: str) -> dict[str, Path]:
        """The games of a split by task id, read from the names of folders alone."""
        if split not in self._listed:
            folder = self._root / TREE / split
            files = sorted(folder.glob("*/*/game.tw-pddl"))
            games = {}
            for file in files:
                task, trial = file.parts[-3:-1]
                # Like the package, leave out what asks for a slice.
                if task.partition("-")[0] in self._types and "Sliced" not in task:
                    games[f"{split}/{task}/{trial}"] = file.parent
            if not games:
                raise UserError(_why_empty(folder, bool(files)))
            self._listed[split] = games
        return self._listed[split]


def _find_games(data: str) -> Path:
    """The folder that holds the tree; generates games into the cache when none is named."""
    if not data:
        root = cache_root() / "alfworld-games-1"
        generate(root, _GENERATED, seed=0)
        return root
    root = Path(data).expanduser()
    if not (root / TREE).is_dir():
        raise UserError(
            f"env.options.data: {data!r} holds no folder {TREE}; name the folder above it, or make "
            f"games with `miniact alfworld-games --out {data}`, or run `alfworld-download`"
        )
    return root


def _why_empty(folder: Path, other_types: bool) -> str:
    if other_types:
        return f"env.options.types: no game in {folder} is of these types"
    if next(folder.glob("*/*/traj_data.json"), None):
        return f"{folder}: trajectories without game.tw-pddl files; run `alfworld-download` again"
    return f"{folder}: holds no games; run `alfworld-download` or `miniact alfworld-games`"


def _solvable(file: Path) -> bool:
    """What the game file says about itself. Its end is where a broken download stops short."""
    text = file.read_text(encoding="utf-8", errors="replace")
    if '"solvable"' not in text or not text.rstrip().endswith("}"):
        raise UserError(f"{file}: an incomplete game; delete its folder or fetch it again")
    return '"solvable": true' in text


def _read_trajectory(folder: Path) -> dict:
    file = folder / "traj_data.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        check_names(f"{file}: unknown name", TASK_TYPES, data["task_type"])
        for name in ("object_target", "parent_target", "toggle_target"):
            data["pddl_params"][name].lower()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise bad_file(file, "not readable", error) from None
    return data
