"""Logs of other agents → trajectories: `miniact import`.

    files ── containers.py ──▶ rows ── readers/ ──▶ dialogues ── folding.py ──▶ trajectories

The files are read twice. First everything is recognised and surveyed (`checks.py`): does the agent
act by tool calls, which field tells success, which rows repeat others? Then it is converted and
written. Nothing is kept but a few numbers for each turn, so memory is bounded by the largest row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miniact import UserError
from miniact.data import containers
from miniact.data.checks import Findings, Repeats, Survey, is_blind
from miniact.data.dialogue import BadRow, Dialogue, Row
from miniact.data.folding import Folding, fold
from miniact.data.log import Log, Source
from miniact.data.outcomes import Rule, named_rule
from miniact.data.readers.rows import unused_fields
from miniact.data.trajectories import from_row, hold_out, to_row
from miniact.runs.files import write_json, write_jsonl
from miniact.types import Trajectory

_PUBLISHED = ("eto", "agenttraj")  # their ids repeat


@dataclass(frozen=True)
class Options:
    """How a log is read; each field is an option of `miniact import`."""

    success: str | None = None  # FIELD[>X]; "none": no field tells success; None: look for one
    system_prompt: bool = False
    keep_final_answer: bool = False
    opening: int | None = None
    code_block: bool = False
    no_images: bool = False
    repeats: str = "longest"  # or "keep", "once"
    skip_bad_rows: bool = False


@dataclass
class Report:
    """What was read, kept and left out, and what is to look at."""

    formats: Counter
    counts: Counter
    findings: list[str]
    success: str | None = None
    compare: str = "words"

    def write(self, out: Path) -> None:
        """Beside the trajectories, as OUT.import.json."""
        row = {**vars(self), "formats": dict(self.formats), "counts": dict(self.counts)}
        write_json(out.with_name(out.name + ".import.json"), row)

    def text(self) -> str:
        """Some readable lines."""
        kept = self.counts["kept"]
        lines = [
            f"format: {', '.join(f'{name} ({n} rows)' for name, n in self.formats.items())}",
            f"kept: {kept} trajectories, {self.counts['actions']} actions"
            + (f"; {n} failed, not imitated" if (n := self.counts["failed"]) else ""),
        ]
        lines.append(f"actions are compared by the rule: {self.compare} (env.compare)")
        if self.success:
            lines.append(f"success: {self.success}")
        for name, n in sorted(self.counts.items()):
            if name not in ("kept", "actions", "failed"):
                lines.append(f"{name}: {n}")
        return "\n".join(lines + [f"look: {finding}" for finding in self.findings])


def import_log(
    files: Path | Sequence[Path],
    form: str | None,
    out: Path,
    *,
    heldout_share: float = 0.0,
    **options: Any,
) -> Counter:
    """Convert logs to trajectories in `out`, which appears only when it is complete.

    form: a name in `readers.FORMATS`, or None to find it. heldout_share: share of the tasks that
    get split "heldout", by the hash of the task; 0 keeps the log's own `split` fields, or else
    "train". options: as in `Options`. Returns what was kept, changed and left out, by kind.

    Raises UserError naming file, row and field of a bad row (unless skip_bad_rows counts them), if
    it is not clear which field tells success, and if nothing usable is left.
    """
    return convert(files, form, out, heldout_share, Options(**options)).counts


def convert(
    files: Path | Sequence[Path],
    form: str | None,
    out: Path,
    heldout_share: float = 0.0,
    options: Options = Options(),
) -> Report:
    """`import_log` with all that there is to tell."""
    if not 0 <= heldout_share < 1:
        raise UserError(f"--heldout-share: {heldout_share} is not in [0, 1)")
    paths = containers.list_files([files] if isinstance(files, Path) else list(files))
    for file in paths:
        if file.resolve() == out.resolve():
            raise UserError(f"{out}: is the log itself; choose another --out")
    conversion = _Conversion(Log(paths, form, options.skip_bad_rows), options, Counter())
    trajectories: Iterable[Trajectory] = conversion.trajectories()
    if heldout_share:
        trajectories = hold_out(trajectories, heldout_share)
    findings = Findings()
    write_jsonl(out, map(to_row, _watched(trajectories, findings)))
    report = conversion.report(findings)
    if heldout_share and not findings.heldout:
        report.findings.append(f"no row is held out: {len(findings.tasks)} tasks are too few")
    if heldout_share and findings.heldout == findings.rows:
        report.findings.append("every row is held out: nothing is left to train on")
    return report


def _watched(trajectories: Iterable[Trajectory], findings: Findings) -> Iterator[Trajectory]:
    for trajectory in trajectories:
        findings.add(trajectory)
        yield trajectory


def read_log(
    file: Path,
    form: str | None,
    counts: Counter,
    system_prompt: bool = False,
    skip_bad_rows: bool = False,
) -> Iterator[Trajectory]:
    """Stream the trajectories of a log. `counts` is updated as they come."""
    options = Options(system_prompt=system_prompt, skip_bad_rows=skip_bad_rows)
    yield from _Conversion(Log([file], form, skip_bad_rows), options, counts).trajectories()


class _Conversion:
    """The two readings of a log: `trajectories` surveys it, then converts it row by row."""

    def __init__(self, log: Log, options: Options, counts: Counter) -> None:
        if options.repeats not in ("longest", "keep", "once"):
            raise UserError(f"--repeats {options.repeats}: expected longest, keep or once")
        self.log, self.options, self.counts = log, options, counts
        self.formats: Counter = Counter()
        self.survey = Survey()
        self.success: str | None = None
        self._rule: Rule | None = None

    def trajectories(self) -> Iterator[Trajectory]:
        """Raises UserError for what the survey finds before anything is yielded."""
        self._survey()
        how, repeats = self._folding(), self.survey.repeats()
        for source in self.log.dialogues(self.counts):
            self.formats[source.form.name] += 1
            row = self._row(source, how)
            if row is None or self._is_left_out(source.dialogue, row, repeats):
                continue
            try:
                name = f"{source.file.stem}-{source.number}"
                trajectory = from_row(row, source.where, default_id=name)
            except UserError:  # it says where
                if not self.options.skip_bad_rows:
                    raise
                self.counts["dropped: text that is not UTF-8, or no list of texts"] += 1
                continue
            self.counts["kept"] += 1
            self.counts["actions"] += len(trajectory.steps)
            self.counts.update(source.notes)
            if trajectory.tools:
                self.counts["rows with tool definitions"] += 1
            yield trajectory
        if not self.counts["kept"]:
            names = ", ".join(str(file) for file in self.log.files[:3])
            counts = Counter({name: n for name, n in self.counts.items() if n})
            raise UserError(f"{names}: no usable conversation ({describe(counts) or 'empty'})")

    def _survey(self) -> None:
        named = self.options.success
        if named and named != "none":
            self.success, self._rule = named, named_rule(named)
        has_field = False
        for source in self.log.dialogues(Counter()):
            facts = source.dialogue.row
            if source.form.name == "eto" and "reward" in facts and not named:
                self.survey.ignored_rewards += 1  # its authors imitate every row
                facts = {k: v for k, v in facts.items() if k != "reward"}
            if self._rule:
                verdict = self._rule(facts)
                has_field = has_field or verdict is not None
            else:
                verdict = self.survey.outcomes.add(facts)
            self.survey.add(source.dialogue, verdict)
        if self._rule and not has_field and self.survey.rows:
            raise UserError(f"--success {named}: no row has this field")
        if named is None:
            self.success = self.survey.outcomes.choose(str(self.log.files[0]))
            self._rule = named_rule(self.success) if self.success else None

    def _folding(self) -> Folding:
        options, form = self.options, self.log.form
        return Folding(
            calls=form == "toolcalls" or (form != "chat" and self.survey.calls > 0),
            system_prompt=options.system_prompt,
            keep_final_answer=options.keep_final_answer,
            code_block=options.code_block,
            opening=options.opening or 0,
            rules=options.opening is None and self.survey.shared_rules,
        )

    def _row(self, source: Source, how: Folding) -> Row | None:
        """A row of trajectories.jsonl; None if it holds no action, or is bad and skipped."""
        dialogue, notes = source.dialogue, source.notes
        try:
            row = fold(dialogue, how, notes)
        except BadRow as error:
            self.log.bad(source.where, error, self.counts)
            return None
        if not row["actions"]:
            why = "without a tool call" if how.calls else "without an action"
            if how.calls and any(turn.calls for turn in dialogue.turns):
                why = "without a call to imitate"
            self.counts[f"left out: dialogue {why} ({_reasons(notes)})"] += 1
            return None
        if source.form.name in _PUBLISHED:
            row.pop("compare", None)  # text worlds all
            if row["id"] is not None:
                row["id"] = f"{row['id']}/{source.number}"
        row["source"] = f"{source.form.name} {source.file.name}"
        row["success"] = self._rule(dialogue.row) if self._rule else None
        if source.form.open:
            used = (self.success or "").partition(".")[0]
            for name in unused_fields(dialogue.row):
                if name != used:
                    notes[f"left out: field {name!r:.40} of a row"] += 1
        return row

    def _is_left_out(self, dialogue: Dialogue, row: Row, repeats: Repeats) -> bool:
        kind, options = repeats.kind(dialogue, row["success"]), self.options
        if kind == "start" and options.repeats != "keep":
            self.counts["left out: row that a longer row repeats (--repeats keep)"] += 1
            return True
        if kind == "same" and options.repeats == "once":
            self.counts["left out: row that is equal to one before"] += 1
            return True
        if options.no_images and any(map(is_blind, row["observations"])):
            self.counts["left out: row with actions on images (--no-images)"] += 1
            return True
        if kind == "same":
            self.counts["rows equal to one before (--repeats once leaves them out)"] += 1
        return False

    def report(self, findings: Findings) -> Report:
        if findings.failed:
            self.counts["failed"] = findings.failed
        told = None
        if self.success:
            found = "" if self.options.success else " (found; --success FIELD[>X] sets it)"
            told = f"{self.success}{found}: {findings.failed} of {findings.rows} rows failed"
            if findings.unknown:
                told += f", {findings.unknown} do not say"
        lines = findings.lines(self.survey, self.options.code_block)
        rules = " and ".join(sorted(findings.compare))
        return Report(self.formats, self.counts, lines, told, rules)


def _reasons(notes: Counter) -> str:
    reasons = [name.partition(": ")[2] for name in notes if name.startswith(("left", "not"))]
    return ", ".join(reasons)[:120] or "no turn of an agent"


def describe(counts: Counter) -> str:
    """What was kept, changed and dropped, in one line.

    >>> describe(Counter({"kept": 2, "actions": 9, "dropped: no action to imitate": 1}))
    'kept 2, actions 9, dropped: no action to imitate 1'
    """
    return ", ".join(f"{reason} {n}" for reason, n in counts.items())
