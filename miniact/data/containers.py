"""Files of logs → their rows, whatever they come in, a piece at a time.

    JSON lines · one document (indented or not), or several · a list · a folder of files
    each of them plain or .gz, in UTF-8 or UTF-16 with or without its mark · .parquet

The bytes tell what a file is; its name does not. Memory is bounded by the largest row.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from miniact import UserError

CHUNK = 1 << 20  # bytes read at once
MAX_ITEM = 256 << 20  # bytes of one row; beyond that a quote or a bracket must be missing
ENDINGS = (".json", ".jsonl", ".ndjson", ".traj", ".parquet", ".gz", ".log", ".txt")
_UTF8_MARK = b"\xef\xbb\xbf"
_OTHERS = {  # first bytes of what is not read
    b"PK\x03\x04": "a .zip archive",
    b"\xfd7zXZ": "an .xz file",
    b"(\xb5/\xfd": "a .zst file",
    b"BZh": "a .bz2 file",
    b"SQLite format 3": "an SQLite database",
    b"ARROW1": "an Arrow file",
}
# A whole string, or the start of one that the buffer does not hold whole, or a bracket.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{}]', re.DOTALL)
_OPENING, _QUOTE = b"[{", ord('"')

Item = tuple[str, int, "bytes | dict"]  # (where, number, JSON text or a row that is read already)


def list_files(paths: list[Path]) -> list[Path]:
    """The files named, folders replaced by what lies in them, in order of name."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = [
                p
                for p in sorted(path.rglob("*"))
                if p.is_file()
                and p.suffix in ENDINGS
                and not p.name.startswith(".")
                and not p.name.endswith(".import.json")
            ]
            if not inside:
                raise UserError(f"{path}: no file in it ends in {', '.join(ENDINGS)}")
            files += inside
        else:
            files.append(path)
    return files


def read_items(file: Path) -> Iterator[Item]:
    """Stream the rows of a file. Raises UserError naming what it is, if it is no log."""
    try:
        handle: Any = file.open("rb")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); expected a log") from None
    try:
        with handle:
            head = handle.read(16)
            handle.seek(0)
            if head.startswith(b"PAR1"):
                yield from _parquet(file)
                return
            for start, name in _OTHERS.items():
                if head.startswith(start):
                    raise UserError(f"{file}: is {name}; unpack or convert it to JSON lines first")
            zipped = head.startswith(b"\x1f\x8b")
            plain: Any = gzip.GzipFile(fileobj=handle) if zipped else handle
            yield from _json_items(file, _as_utf8(plain))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{file}: damaged .gz file ({error!s:.80}); make it again") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: text that is no UTF-16 at byte {error.start}") from None


def _as_utf8(handle: Any) -> Any:
    """A stream of UTF-8 bytes, whatever the encoding of the file; the mark is left out."""
    start = handle.read(4)
    handle.seek(0)
    if start.startswith(_UTF8_MARK):
        handle.read(len(_UTF8_MARK))
        return handle
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return io.BufferedReader(_Recoded(handle, "utf-16"))
    if len(start) == 4 and start.count(0) == 2:  # every other byte of ASCII is zero
        return io.BufferedReader(_Recoded(handle, "utf-16-be" if start[0] == 0 else "utf-16-le"))
    return handle


class _Recoded(io.RawIOBase):
    """Bytes of some encoding, read as UTF-8."""

    def __init__(self, handle: Any, encoding: str) -> None:
        # JSON of other programs may hold half a character; it is found later, with its row
        self.text = io.TextIOWrapper(handle, encoding, errors="surrogatepass", newline="")
        self.rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.rest:
            self.rest = self.text.read(CHUNK).encode("utf-8", "surrogatepass")
        given, self.rest = self.rest[: len(buffer)], self.rest[len(buffer) :]
        buffer[: len(given)] = given
        return len(given)


def _parquet(file: Path) -> Iterator[Item]:
    import pyarrow
    from pyarrow import parquet

    try:
        number = 0
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=64):
            for row in batch.to_pylist():
                number += 1
                yield f"{file} row {number}", number, _without_nulls(row)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{file}: damaged .parquet file ({' '.join(str(error).split()):.80})"
        ) from None


def _without_nulls(value: Any) -> Any:
    """Tables give every row all fields; those that a row lacks are null."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


# ---- JSON ----------------------------------------------------------------------------------


def _json_items(file: Path, handle: Any) -> Iterator[Item]:
    """The items of a list, or every document, or every line: the beginning decides."""
    head = handle.read(CHUNK)
    empty = head[: len(head) - len(head.lstrip())].count(b"\n")  # lines before the first row
    head = head.lstrip()
    line, newline, _ = head.partition(b"\n")
    line = line.strip()
    if head.startswith(b"[") and not _is_list_of_messages(line):
        for number, item in enumerate(_items(file, handle, head[1:]), start=1):
            yield f"{file} item {number}", number, item
    elif newline and head.startswith(b"{") and _opens_document(line):
        for number, item in enumerate(_items(file, handle, head, top=True), start=1):
            yield f"{file} document {number}", number, item
    else:
        for number, text in enumerate(_lines(head, handle), start=1 + empty):
            if len(text) >= MAX_ITEM:
                raise UserError(f"{file}:{number}: line of more than {MAX_ITEM >> 20} MiB")
            if text := text.strip():
                yield f"{file}:{number}", number, text


def _is_list_of_messages(line: bytes) -> bool:
    """Whether a first line is one whole dialogue, so that each line may be one."""
    try:
        rows = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return False
    return bool(rows) and all(
        {"role", "from"} & set(r) or {"type", "content"} <= set(r) for r in rows
    )


def _opens_document(line: bytes) -> bool:
    """Whether a first line is the beginning of an indented document.

    Such a line ends where JSON may be broken; a damaged row of JSON lines ends anywhere else.
    """
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return line.endswith((b"{", b"[", b",")) and len(line) < 1000
    return False


def _lines(head: bytes, handle: Any) -> Iterator[bytes]:
    *whole, last = head.split(b"\n")
    yield from whole
    line = last + handle.readline(MAX_ITEM) if last or not whole else handle.readline(MAX_ITEM)
    while line:
        yield line
        line = handle.readline(MAX_ITEM)


def _items(file: Path, handle: BinaryIO, buffer: bytes, top: bool = False) -> Iterator[bytes]:
    """The items of a list whose "[" is already read, or (`top`) the documents of a file.

    Only strings and brackets are looked at, so a damaged item ends where it seems to end, and the
    next one can be read. Whatever stands between two objects is an item too, and a bad one.
    """
    depth = start = at = 0  # start: of what was not yielded yet; at: where to look on
    while True:
        for match in _TOKEN.finditer(buffer, at):
            byte, at = buffer[match.start()], match.end()
            if byte == _QUOTE:
                if at - match.start() == 1:
                    at = match.start()  # it goes on in the next chunk
                    break
            elif byte in _OPENING:
                if depth == 0 and (between := _bare(buffer[start : match.start()])):
                    yield between
                start = match.start() if depth == 0 else start
                depth += 1
            elif depth == 0:  # the end of the list
                if between := _bare(buffer[start : match.start()]):
                    yield between
                if top:
                    yield buffer[match.start() : match.end()]
                    start = at
                    continue
                _check_rest(file, buffer[match.end() :] + handle.read(CHUNK))
                return
            else:
                depth -= 1
                if depth == 0:
                    yield buffer[start:at]
                    start = at
        chunk = handle.read(CHUNK)
        if not chunk:
            if not top or _bare(buffer[start:]):
                yield buffer[start:]  # cut short: no complete JSON value
            return
        buffer, at, start = buffer[start:] + chunk, at - start, 0
        if len(buffer) > MAX_ITEM + CHUNK:
            raise UserError(
                f"{file}: an item starting with {buffer[:40]!r} does not end within "
                f"{MAX_ITEM >> 20} MiB; is a quote or a bracket missing?"
            )


def _bare(text: bytes) -> bytes:
    return text.strip(b" \t\r\n,")


def _check_rest(file: Path, rest: bytes) -> None:
    if rest.strip():
        raise UserError(f"{file}: {rest.strip()[:40]!r}… after the end of the list")
