"""What the server is and how it is."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter, Request, Response

from labelmux_server import errors
from labelmux_server.answers import json_answer
from labelmux_server.docs_page import docs_page
from labelmux_server.documented import documented
from labelmux_server.metrics import CONTENT_TYPE, Metrics
from labelmux_server.schemas import Health, Info
from labelmux_server.service import Service

router = APIRouter(tags=["server"])

_LIMITS = (
    "max_client_batch_size",
    "max_text_chars",
    "max_body_bytes",
    "max_upload_bytes",
    "max_batch_tokens",
    "max_batch_rows",
    "feature_cache_bytes",
    "max_queue_tokens",
    "max_queue_rows",
    "max_queue_s",
    "request_timeout_s",
)


@router.get("/v1/info", response_model=Info)
async def info(request: Request) -> Response:
    """The server, its encoder and its limits."""
    service: Service = request.app.state.service
    encoder = service.loaded.encoder
    return json_answer(
        {
            "name": "labelmux",
            "version": version("labelmux"),
            "encoder": {
                "name": service.loaded.name,
                "fingerprint": encoder.fingerprint,
                "hidden_size": encoder.config.hidden_size,
                "layers": encoder.config.num_layers,
                "parameters": encoder.parameter_count,
                "max_tokens": encoder.config.max_tokens,
            },
            "tasks": len(service.registry),
            "limits": {name: getattr(service.settings, name) for name in _LIMITS},
            "admin": service.settings.admin,
        }
    )


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


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    found: Metrics = request.app.state.metrics
    return Response(found.render(), headers={"content-type": CONTENT_TYPE})


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """The API as one page that needs no network."""
    page = docs_page(request.app.openapi(), str(request.base_url).rstrip("/"))
    return Response(page, media_type="text/html")
