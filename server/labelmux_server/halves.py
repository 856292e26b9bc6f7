r"""Half a character: a surrogate such as ``\ud83d`` alone. JSON can spell it, and no text hold it.

The parser refuses it, as the broken end of an escape and without the place. So who sent a text that
was cut within an emoji is told here which one it is.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

#: As an escape or, against UTF-8, as bytes; of whole pairs too.
_SPELT = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
_HALF = re.compile("[\ud800-\udfff]")
#: Bodies of more parts are not looked through: that would hold up the event loop.
_MOST_COMMAS = 100_000
#: Of each part of the way, and parts of it.
_SHOWN_CHARS, _SHOWN_PARTS = 80, 8


class Half(NamedTuple):
    """The first one of a body."""

    #: The way to the string with it, as ``texts.1``.
    field: str
    problem: str


def find_half(data: bytes) -> Half | None:
    """Where in JSON, by a parser that takes it, half a character stands; None if it is not JSON."""
    if not _SPELT.search(data) or data.count(b",") > _MOST_COMMAS:
        return None
    try:
        found = _find(json.loads(data.decode("utf-8", "surrogatepass")))
    except (ValueError, RecursionError):
        return None
    if found is None:
        return None
    way, half = found
    problem = (
        f"half of a surrogate pair (\\u{ord(half[0]):04x}) at character {half.start()}, which is "
        "no text; send the whole character, or leave it out"
    )
    return Half(".".join(way[:_SHOWN_PARTS]) or "body", problem)


def _find(value: Any) -> tuple[list[str], re.Match[str]] | None:
    """The way to the first one, and the one."""
    if isinstance(value, str):
        half = _HALF.search(value)
        return None if half is None else ([], half)
    if isinstance(value, dict):
        if (found := _find(list(value))) is not None:
            return [], found[1]  # in a name, which cannot be shown
        parts = list(value.items())
    else:
        parts = list(enumerate(value)) if isinstance(value, list) else []
    for name, part in parts:
        if (found := _find(part)) is not None:
            return [str(name)[:_SHOWN_CHARS], *found[0]], found[1]
    return None
