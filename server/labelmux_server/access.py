"""Who may change things. Attached to the router of changes as a whole, never to single routes."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from fastapi import Request

from labelmux_server.errors import AdminOffError, UnauthorizedError
from labelmux_server.settings import Settings, is_loopback


async def require_admin(request: Request) -> None:
    """Return if the caller may change things.

    Raises:
        UnauthorizedError: a key is set and the request does not carry it.
        AdminOffError: no key is set and the server can be reached from other machines, or a web
            page from elsewhere sent the request.
    """
    settings: Settings = request.app.state.settings
    if settings.admin == "key":
        _check_key(settings.admin_key or "", request.headers.get("authorization", ""))
    elif settings.admin == "off":
        raise AdminOffError(
            f"the server binds {settings.host}, which other machines reach, and has no admin key; "
            "start it with --admin-key"
        )
    else:
        _check_origin(request.headers.get("origin"))


def _check_key(key: str, authorization: str) -> None:
    scheme, _, sent = authorization.partition(" ")
    same = hmac.compare_digest(sent.strip().encode("latin-1"), key.encode())
    if scheme.lower() != "bearer" or not same:
        raise UnauthorizedError


def _check_origin(origin: str | None) -> None:
    """A browser names the page that a change comes from; no page from elsewhere may change us."""
    if origin is not None and not is_loopback(urlsplit(origin).hostname or ""):
        raise AdminOffError(
            f"the request comes from a page of {origin}; set --admin-key to allow that"
        )
