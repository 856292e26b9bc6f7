"""Where a client sends what."""

from __future__ import annotations

from typing import Any

import httpx2

from labelmux_client._call import Call
from labelmux_client._constants import DEFAULT_BASE_URL, VERSION
from labelmux_client._errors import TransportError

__all__: list[str] = []


class Address:
    """Where a client sends what, checked once."""

    def __init__(self, base_url: str, key: str | None, timeout_s: float, max_retries: int) -> None:
        try:
            url = httpx2.URL(base_url)
        except httpx2.InvalidURL as error:
            raise ValueError(f"base_url is {base_url!r}: {error}") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(
                f"base_url is {base_url!r}; give it as {DEFAULT_BASE_URL}, with http:// or https://"
            )
        if key is not None and not (key.isascii() and key.isprintable() and key.strip()):
            raise ValueError("the key is empty, or has characters that a header cannot carry")
        self.base_url = base_url.rstrip("/")
        self.shown = f"{url.scheme}://{url.netloc.decode('ascii')}"
        self.timeout_s = timeout_s
        self.max_retries = max_retries
        self.headers = {"User-Agent": f"labelmux-client/{VERSION}", "Accept": "*/*"}
        if key is not None:
            self.headers["Authorization"] = f"Bearer {key}"

    def arguments(self, call: Call[Any]) -> dict[str, Any]:
        """The call as ``httpx2.Client.request`` takes it."""
        return {
            "method": call.method,
            "url": self.base_url + call.path,
            "content": call.content,
            "headers": {**self.headers, **call.headers},
            "params": dict(call.params) or None,
            "timeout": self.timeout_s,
            "follow_redirects": False,
        }

    def lost(self, call: Call[Any], error: httpx2.RequestError) -> TransportError:
        """The error to raise when no answer came."""
        remedy = "is a labelmux server running there?"
        if isinstance(error, httpx2.TimeoutException):
            problem = f"no answer within {self.timeout_s:g} s"
            if not isinstance(error, httpx2.ConnectTimeout):
                remedy = "the server may be there and need longer than timeout_s for this"
        else:
            problem = f"no answer ({error or type(error).__name__})"
        return TransportError(f"{call.method} {call.path}: {problem} from {self.shown}; {remedy}")
