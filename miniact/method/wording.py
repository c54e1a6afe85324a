"""The words of the prompts, as a text file: miniact's own, wording.tags.txt and wording.plain.txt,
or the user's (`prompt.wording`). What its sections are is said at the head of those files.
"""

from __future__ import annotations

import re
from pathlib import Path

from miniact import UserError
from miniact.config.sections import PromptConfig
from miniact.config.strict import suggestion

SECTIONS: dict[str, tuple[str, ...]] = {  # with the fields that each must hold
    "task": ("task",),
    "left out": (),
    "observation": ("observation",),
    "action taken": ("action",),
    "admissible": ("actions",),
    "action": (),
    "action, thinking": (),
    "candidate": ("number", "action"),
    "choice of two": ("candidates",),
    "choice of two, thinking": ("candidates",),
    "choice of more": ("candidates",),
    "choice of more, thinking": ("candidates",),
    "outcome": ("action", "outcome"),
    "reflection": ("taken", "others"),
    "wrong rationale": ("wrong",),
}
MAY_HOLD = {  # and those that each may hold
    "left out": ("count",),
    "reflection": ("action",),
    "wrong rationale": ("right", "number"),
}
FIELD = re.compile(r"\{(\w+)\}")
COUNT = re.compile(r"\\\{(?:number|count)\\\}")  # in an escaped line


class Wording:
    """Sections of text with fields to fill in. Raises UserError for a file that cannot be used."""

    def __init__(self, config: PromptConfig) -> None:
        builtin = re.fullmatch(r"builtin:(tags|plain)", config.wording)
        form = builtin[1] if builtin else "plain" if config.form == "plain" else "tags"
        shipped = Path(__file__).with_name(f"wording.{form}.txt")
        self.file = Path(config.wording) if config.wording and not builtin else shipped
        try:
            self.text = self.file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(
                f"prompt.wording: {self.file} cannot be read ({error}); expected a text file like "
                f"{shipped}"
            ) from None
        parts = re.split(r"^== *(.*?) *==$", self.text, flags=re.MULTILINE)
        self.sections = dict(zip(parts[1::2], (part.strip("\n") for part in parts[2::2])))
        self._check(parts[1::2])

    def _check(self, names: list[str]) -> None:
        for name in [*names, *SECTIONS]:
            if name not in SECTIONS:
                self._refuse(f"unknown section {name!r}; {suggestion(name, SECTIONS)}")
            if names.count(name) != 1:
                self._refuse(f"expected one section == {name} ==, got {names.count(name)}")
        for name, text in self.sections.items():
            fields, needed = set(FIELD.findall(text)), set(SECTIONS[name])
            for field in sorted(needed - fields):
                self._refuse(f"section {name!r} lacks the field {{{field}}}")
            for field in sorted(fields - needed - set(MAY_HOLD.get(name, ()))):
                self._refuse(f"section {name!r} knows no field {{{field}}}")

    def _refuse(self, why: str) -> None:
        raise UserError(f"prompt.wording: {self.file}: {why}")

    def heads(self) -> list[str]:
        """How the lines of a prompt begin, as regular expressions: foreign text may not."""
        prompts = (text for name, text in self.sections.items() if name != "wrong rationale")
        lines = (line for text in prompts for line in text.splitlines())
        parts = (re.split(r"\{(?!number|count)\w+\}", line)[0].strip() for line in lines)
        return sorted({COUNT.sub(r"\\d+", re.escape(part)) for part in parts if part})

    def fill(self, section: str, **values: object) -> str:
        """The text of a section with its fields filled in, once: a value is never looked into."""
        return FIELD.sub(lambda field: str(values[field[1]]), self.sections[section])
