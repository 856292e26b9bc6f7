"""When to send a request again, and after which pause. No clock is read and nothing sleeps here."""

from __future__ import annotations

import random

import httpx2

from labelmux_client._call import Repeat
from labelmux_client._constants import FIRST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_RETRY_AFTER_S

__all__: list[str] = []

_REFUSED = frozenset({429, 503})
#: Where nothing was sent, not even in part.
_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


def pause_after_answer(
    repeat: Repeat, attempt: int, max_retries: int, response: httpx2.Response
) -> float | None:
    """Seconds to wait before sending again; None where the answer stands.

    ``attempt`` counts from 0. A ``Retry-After`` in seconds is honoured; where it asks for more than
    a minute, the answer stands.
    """
    if response.status_code not in _REFUSED or repeat == "never" or attempt >= max_retries:
        return None
    asked_s = _retry_after_s(response)
    if asked_s is None:
        return _pause_s(attempt)
    return asked_s if asked_s <= LONGEST_RETRY_AFTER_S else None


def pause_after_loss(
    repeat: Repeat, attempt: int, max_retries: int, error: httpx2.RequestError
) -> float | None:
    """Seconds to wait before sending again after no answer came; None where it must not be sent."""
    hopeless = not isinstance(error, httpx2.TransportError) or isinstance(
        error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError
    )
    harmless = repeat == "always" or (repeat == "refused" and isinstance(error, _UNSENT))
    if hopeless or not harmless or attempt >= max_retries:
        return None
    return _pause_s(attempt)


def _pause_s(attempt: int) -> float:
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**attempt)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - not for secrets


def _retry_after_s(response: httpx2.Response) -> float | None:
    try:
        seconds = float(response.headers.get("Retry-After", ""))
    except ValueError:
        return None
    return seconds if seconds >= 0 else None
