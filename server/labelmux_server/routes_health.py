"""How the server is: for probes, which carry no key, and for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from labelmux_server import errors
from labelmux_server.access import guarded_router
from labelmux_server.answers import json_answer
from labelmux_server.documented import documented
from labelmux_server.error_shapes import V2Error
from labelmux_server.metrics import CONTENT_TYPE, Metrics
from labelmux_server.schemas import ErrorBody, Health, V2Live, V2Ready
from labelmux_server.service import Service

#: Without a guard, as the console's files are; nothing else is.
router = APIRouter(tags=["health"])
metrics_router = guarded_router("metrics", "metrics", any_parameters=True)

Probe = Callable[[Request], Awaitable[Response]]


def _probe(
    path: str,
    answer: type[BaseModel],
    *kinds: type[errors.ServerError],
    error_body: type[BaseModel] = ErrorBody,
) -> Callable[[Probe], Probe]:
    """A route for GET, and for HEAD, by which monitors and load balancers look.

    uvicorn leaves the body out. The contract has the one without saying that there is the other.
    """

    def add(endpoint: Probe) -> Probe:
        responses = documented(*kinds, body=error_body)
        router.get(path, response_model=answer, responses=responses)(endpoint)
        router.head(path, include_in_schema=False)(endpoint)
        return endpoint

    return add


@_probe("/health/live", Health, errors.NotReadyError)
async def live(request: Request) -> Response:
    """Whether the process is worth keeping."""
    service: Service = request.app.state.service
    if not service.alive:
        raise errors.NotReadyError
    return json_answer({"status": "ok"})


@_probe("/health/ready", Health, errors.NotReadyError, errors.DrainingError)
async def ready(request: Request) -> Response:
    """Whether to send requests here."""
    service: Service = request.app.state.service
    if service.draining:
        raise errors.DrainingError
    if not service.ready:
        raise errors.NotReadyError
    return json_answer({"status": "ok"})


@_probe("/health", Health, errors.NotReadyError, errors.DrainingError)
async def tei_health(request: Request) -> Response:
    """As `/health/ready`, where the clients of other servers look."""
    return await ready(request)


@_probe("/v2/health/live", V2Live, errors.NotReadyError, error_body=V2Error)
async def v2_live(request: Request) -> Response:
    """As `/health/live`, for the Open Inference Protocol."""
    await live(request)
    return json_answer({"live": True})


@_probe("/v2/health/ready", V2Ready, errors.NotReadyError, errors.DrainingError, error_body=V2Error)
async def v2_ready(request: Request) -> Response:
    """As `/health/ready`, for the Open Inference Protocol."""
    await ready(request)
    return json_answer({"ready": True})


@metrics_router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    found: Metrics = request.app.state.metrics
    # With many tasks that takes a while, in which probes and requests must be answered.
    text = await asyncio.to_thread(found.render)
    return Response(text, headers={"content-type": CONTENT_TYPE})
