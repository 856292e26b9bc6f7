"""What the server is, and its API as data and as a page."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import Request, Response

from labelmux_server.access import guarded_router
from labelmux_server.answers import json_answer
from labelmux_server.caller import Caller
from labelmux_server.docs_page import docs_page
from labelmux_server.schemas import Info
from labelmux_server.service import Service
from labelmux_server.settings import Settings

router = guarded_router("server", "classify", "admin")
pages_router = guarded_router("server", "classify", "admin", any_parameters=True)

_LIMITS = (
    *(knob.name for knob in Settings.knobs() if knob.name.startswith("max_")),
    "feature_cache_bytes",
    "stream_window_lines",
    "request_timeout_s",
)


@router.get("/v1/info", response_model=Info)
async def info(request: Request) -> Response:
    """The server, its encoder, its limits, and the key that asks."""
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
            "access": service.keyring.access,
            "key": _key(request.state.caller),
        }
    )


@pages_router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Response:
    """The API as an OpenAPI document."""
    return json_answer(request.app.openapi())


@pages_router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """The API as one page that needs no network."""
    with_key = request.state.caller.key is not None
    page = docs_page(request.app.openapi(), str(request.base_url).rstrip("/"), with_key=with_key)
    return Response(page, media_type="text/html")


def _key(caller: Caller) -> dict[str, object] | None:
    if caller.key is None:
        return None
    rights = caller.rights
    return {"name": caller.key, "scopes": sorted(rights.scopes), "tasks": rights.tasks}
