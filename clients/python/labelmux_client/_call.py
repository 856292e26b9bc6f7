"""One request: what to send, how to read the answer, when to send it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import httpx2

from labelmux_client._errors import AnswerError, StatusError, error_class

__all__: list[str] = []

T = TypeVar("T")

#: When a request may be sent again. ``refused``: only where the server did nothing, since it said
#: so (429, 503) or was not reached. ``always``: also where no answer came, as a second time changes
#: nothing.
Repeat = Literal["never", "refused", "always"]

_SHOWN_CHARS = 200


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request and how to read its answer."""

    method: str
    path: str
    #: Takes an answer with a status below 300.
    read: Callable[[httpx2.Response], T]
    repeat: Repeat = "always"
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, int | str | Sequence[str]] = field(default_factory=dict)

    def parse(self, response: httpx2.Response) -> T:
        """What the answer says.

        Raises:
            StatusError: the server said no.
            AnswerError: the answer is not one that a labelmux server gives.
        """
        if response.status_code >= 400:
            raise status_error(response)
        if response.status_code >= 300:
            raise AnswerError(
                f"{self.method} {self.path}: answered with a redirect ({response.status_code}) to "
                f"{response.headers.get('Location', 'nowhere')}; use that address as base_url"
            )
        try:
            return self.read(response)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AnswerError(
                f"{self.method} {self.path}: the answer is not one of a labelmux server "
                f"({type(error).__name__}: {error}); check the address: "
                f"{response.text[:_SHOWN_CHARS]!r}"
            ) from error


def status_error(response: httpx2.Response) -> StatusError:
    """The error that an answer with a status of 400 or more stands for."""
    status = response.status_code
    request_id = response.headers.get("X-Request-Id")
    try:
        fields = dict(response.json()["error"])
        code, message = str(fields.pop("code")), str(fields.pop("message"))
    except (KeyError, TypeError, ValueError):
        shown = " ".join(response.text[:_SHOWN_CHARS].split())
        return error_class(status, "")(
            status=status,
            code=f"http_{status}",
            message=f"the server answered {status} {response.reason_phrase}: {shown!r}",
            request_id=request_id,
        )
    return error_class(status, code)(
        status=status,
        code=code,
        message=message,
        request_id=fields.pop("request_id", None) or request_id,
        fields=fields,
    )
