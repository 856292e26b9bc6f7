"""Wiring: settings to an ASGI app. No logic."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from labelmux_encoder.weights import LoadedEncoder
from labelmux_server import (
    routes_classify,
    routes_console,
    routes_health,
    routes_info,
    routes_openai,
    routes_releases,
    routes_stream,
    routes_tasks,
    routes_tei,
    routes_v2,
)
from labelmux_server.access import behind
from labelmux_server.edge import Edge, add_error_handlers
from labelmux_server.metrics import Metrics
from labelmux_server.service import Service
from labelmux_server.settings import Settings
from labelmux_server.timers import Timers
from labelmux_server.tracing import Tracing

DESCRIPTION = "One frozen DeBERTa encoder, any number of text classifiers, swapped while it serves."


def create_app(
    settings: Settings, loaded: LoadedEncoder | None = None, tracing: Tracing | None = None
) -> FastAPI:
    """The app. Its lifespan opens the state folder and loads the encoder, unless one is given.

    ``app.state.service`` is there while the lifespan runs. ``tracing``: in place of what the
    settings say.

    Raises:
        SettingsError: traces are wanted, and what they need is not installed.
    """
    if tracing is None and settings.otlp_endpoint is not None:
        tracing = Tracing.to_collector(settings.otlp_endpoint, settings.trace_share)
    metrics = Metrics(settings.task_metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = await Service.start(settings, loaded, metrics)
        try:
            yield
        finally:
            await app.state.service.stop()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)

    app = FastAPI(
        title="labelmux",
        version=version("labelmux"),
        description=DESCRIPTION,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Spans and logs of the framework's own would carry what was sent.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.timers = Timers()
    classify = behind(routes_classify.router, routes_classify.classify)
    direct = {("POST", routes_classify.PATH): classify}
    app.add_middleware(
        Edge,
        metrics=metrics,
        direct=direct,
        max_concurrent_requests=settings.max_concurrent_requests,
        tracing=tracing,
    )
    add_error_handlers(app, metrics)
    for router in (
        routes_classify.router,
        routes_stream.router,
        routes_tasks.router,
        routes_tasks.admin_router,
        routes_releases.router,
        routes_info.router,
        routes_info.pages_router,
        routes_health.metrics_router,
        routes_health.router,
        routes_tei.router,
        routes_tei.info_router,
        routes_openai.router,
        routes_openai.models_router,
        routes_v2.router,
        routes_v2.info_router,
        routes_console.router,
    ):
        app.include_router(router)
    return app
