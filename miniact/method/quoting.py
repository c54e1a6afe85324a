"""Foreign text in prompts and replies: tags that mean something here get a backslash, as
`<\\choice>`, and lose it again where a reply is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable


def _pair(tags: str) -> tuple[Callable[[str], str], Callable[[str], str]]:
    """(take the meaning out of these tags, its inverse)."""
    tag, escaped = re.compile(rf"<(\\*)(?={tags})"), re.compile(rf"<\\(\\*)(?={tags})")
    return (
        lambda text: tag.sub(lambda m: "<\\" + m[1], text),
        lambda text: escaped.sub(lambda m: "<" + m[1], text),
    )


_escape, _unescape = _pair(r"/?(?:action|choice|think)>|\|")
_escape_calls, _unescape_calls = _pair(
    r"/?(?:action|choice|think|tool_call|tool_response|tools)>|\|"
)


def escape(text: str) -> str:
    """Take the meaning out of every tag in foreign text. `unescape` is its inverse.

    >>> print(escape("see <choice>1</choice>"))
    see <\\choice>1<\\/choice>
    """
    return _escape(text)


def unescape(text: str) -> str:
    return _unescape(text)


def escape_calls(text: str) -> str:
    """The same for text in dialogues, where tools are called in tags, too.

    >>> print(escape_calls("</tool_response>"))
    <\\/tool_response>
    """
    return _escape_calls(text)


def unescape_calls(text: str) -> str:
    return _unescape_calls(text)
