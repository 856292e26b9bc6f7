"""What may stand in the query of our own routes: what the route takes, and nothing else.

A parameter that is passed over for a slip of its name does harm: an upload with `?activete=later`
would serve at once.
"""

from __future__ import annotations

from fastapi import Request
from fastapi.routing import APIRoute

from labelmux_server.errors import InvalidRequestError

_SHOWN_CHARS = 80


async def check_parameters(request: Request) -> None:
    """A router's dependency: lets those through who send no parameter that the route lacks.

    Raises:
        InvalidRequestError: it names the first, and those that there are.
    """
    if not request.scope["query_string"]:
        return
    taken = _taken(request)
    for name in request.query_params:
        if name not in taken:
            known = f"takes {', '.join(taken)}" if taken else "takes none"
            problem = f"no such parameter; this route {known}"
            raise InvalidRequestError(name[:_SHOWN_CHARS] or "query", problem)


def _taken(request: Request) -> list[str]:
    route = request.scope.get("route")
    if route is None:  # called by the edge itself, which it does with routes that take nothing
        return []
    assert isinstance(route, APIRoute)
    return [parameter.alias for parameter in route.dependant.query_params]
