"""Who may call a route. Attached to a router as a whole, never to single routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request, Response
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from pydantic import BaseModel
from starlette.datastructures import Headers

from labelmux_server import errors
from labelmux_server.caller import Caller
from labelmux_server.documented import documented
from labelmux_server.keys import EVERY_RIGHT, Scope
from labelmux_server.parameters import check_parameters
from labelmux_server.registry import parse_name
from labelmux_server.schemas import ErrorBody
from labelmux_server.service import Service
from labelmux_server.settings import is_loopback

Endpoint = Callable[[Request], Awaitable[Response]]

_REFUSALS: tuple[type[errors.ServerError], ...] = (
    errors.UnauthorizedError,
    errors.ForeignPageError,
    errors.WrongScopeError,
    errors.TaskForbiddenError,
    errors.RateLimitedError,
)


class Guard(SecurityBase):
    """A router's dependency: lets those through whose key has one of the scopes.

    A path's ``{task}``, which may be ``task@3``, must be one of the key's. From then on
    ``request.state.caller`` is the ``Caller``.
    """

    scheme_name = "key"
    model = HTTPBearer(
        description="A key that `labelmux keys create` made, or the admin key of the settings. "
        "A server on loopback asks for none until the first is made."
    )

    def __init__(self, *scopes: Scope) -> None:
        self._scopes = frozenset(scopes)

    async def __call__(self, request: Request) -> None:
        """Return if the caller may go on.

        Raises:
            UnauthorizedError, ForeignPageError, WrongScopeError, TaskForbiddenError,
            RateLimitedError
        """
        caller = request.state.caller = _caller(request)
        caller.check_scope(self._scopes)
        if "task" in request.path_params:
            caller.check_task(parse_name(request.path_params["task"])[0])
        caller.spend_request()


def guarded_router(
    tag: str,
    *scopes: Scope,
    error_body: type[BaseModel] = ErrorBody,
    any_parameters: bool = False,
) -> APIRouter:
    """A router for whose every route a key needs one of the scopes.

    ``any_parameters``: pass over those in the query that a route does not know, as the clients of
    other servers and browsers may send.
    """
    dependencies, refusals = [Depends(Guard(*scopes))], [*_REFUSALS]
    if not any_parameters:
        dependencies.append(Depends(check_parameters))
        refusals.append(errors.InvalidRequestError)
    return APIRouter(
        tags=[tag],
        dependencies=dependencies,
        responses=documented(*refusals, body=error_body),
    )


def behind(router: APIRouter, endpoint: Endpoint) -> Endpoint:
    """A router's endpoint behind the router's dependencies, for who calls it by itself."""
    guards = [each.dependency for each in router.dependencies]

    async def call(request: Request) -> Response:
        for guard in guards:
            assert guard is not None
            await guard(request)
        return await endpoint(request)

    return call


def _caller(request: Request) -> Caller:
    service: Service = request.app.state.service
    if service.keyring.access == "open":
        _check_page(request.headers)
        return Caller(None, EVERY_RIGHT, service.rates, service.settings)
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    record = service.keyring.find(sent.strip())
    if record is None or scheme.lower() != "bearer":
        raise errors.UnauthorizedError
    return Caller(record.name, record.rights, service.rates, service.settings)


def _check_page(headers: Headers) -> None:
    """No page from elsewhere may use us.

    A browser names the page that a request comes from; but not where the page's own name leads
    here, as its owner may have arranged, so the name that is asked must be this machine's.
    """
    origin, host = headers.get("origin"), headers.get("host")
    for named in (origin, host and f"//{host}"):
        if named and not is_loopback(_host_of(named)):
            raise errors.ForeignPageError(named.removeprefix("//"))


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
