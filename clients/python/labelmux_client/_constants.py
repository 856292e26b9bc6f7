"""Every number and name of the client that someone may ask about."""

from __future__ import annotations

__all__: list[str] = []

VERSION = "0.1.0"
DEFAULT_BASE_URL = "http://127.0.0.1:8000"
#: Longest wait for one attempt: to connect, and then between two pieces of the answer.
DEFAULT_TIMEOUT_S = 60.0
#: Attempts after the first one.
DEFAULT_MAX_RETRIES = 2
#: Pauses before repeats: doubled each time from the first to the longest, then spread at random
#: over its upper half, so that many clients do not come back at once.
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 8.0
#: A server that asks for more patience than this is not waited for: the error comes at once.
LONGEST_RETRY_AFTER_S = 60.0
