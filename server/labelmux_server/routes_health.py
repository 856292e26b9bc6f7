"""How the server is: for probes, which carry no key, and for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from labelmux_server import errors
from labelmux_server.access import guarded_router
from labelmux_server.answers import json_answer
from labelmux_server.documented import documented
from labelmux_server.metrics import CONTENT_TYPE, Metrics
from labelmux_server.schemas import Health
from labelmux_server.service import Service

#: Without a guard, as the console's files are; nothing else is.
router = APIRouter(tags=["health"])
metrics_router = guarded_router("metrics", "metrics")


@router.get("/health/live", response_model=Health, responses=documented(errors.NotReadyError))
async def live(request: Request) -> Response:
    """Whether the process is worth keeping."""
    service: Service = request.app.state.service
    if not service.alive:
        raise errors.NotReadyError
    return json_answer({"status": "ok"})


@router.get(
    "/health/ready",
    response_model=Health,
    responses=documented(errors.NotReadyError, errors.DrainingError),
)
async def ready(request: Request) -> Response:
    """Whether to send requests here."""
    service: Service = request.app.state.service
    if service.draining:
        raise errors.DrainingError
    if not service.ready:
        raise errors.NotReadyError
    return json_answer({"status": "ok"})


@metrics_router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    found: Metrics = request.app.state.metrics
    return Response(found.render(), headers={"content-type": CONTENT_TYPE})
