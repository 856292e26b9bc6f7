"""JSON from strangers: one meaning or none.

The standard parser lets a repeated key win silently, takes NaN, and turns any run of digits into a
number. Here each of them is an error, and so are nesting that exhausts the parser and objects too
large to be one of ours.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from labelmux_adapters.errors import DuplicateKeyError

#: Enough for any 64-bit number; int() takes quadratic time in the digits.
_MAX_DIGITS = 20
_MAX_KEYS = 10_000


def load_object(text: str, place: str) -> dict[str, Any]:
    """The JSON object that ``text`` is.

    Args:
        place: what the text is, for the error.

    Raises:
        DuplicateKeyError: an object, at any depth, has a key twice.
        ValueError: the text is not JSON, or is not an object.
    """

    def to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(pairs) > _MAX_KEYS:
            raise ValueError(f"it has an object of {len(pairs)} keys")
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise DuplicateKeyError(key, place)
            found[key] = value
        return found

    try:
        value = json.loads(
            text, object_pairs_hook=to_object, parse_int=_to_int, parse_constant=_refuse
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def _to_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"it has {name}, which is not JSON")
