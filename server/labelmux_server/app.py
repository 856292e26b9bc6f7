"""Wiring: settings to an ASGI app. No logic."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from labelmux_encoder.weights import LoadedEncoder
from labelmux_server import routes_classify, routes_health, routes_tasks
from labelmux_server.edge import Edge, add_error_handlers
from labelmux_server.metrics import Metrics
from labelmux_server.service import Service
from labelmux_server.settings import Settings

DESCRIPTION = "One frozen DeBERTa encoder, any number of text classifiers, swapped while it serves."


def create_app(settings: Settings, loaded: LoadedEncoder | None = None) -> FastAPI:
    """The app. Its lifespan opens the state folder and loads the encoder, unless one is given.

    ``app.state.service`` is there while the lifespan runs.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = await Service.start(settings, loaded, metrics)
        try:
            yield
        finally:
            await app.state.service.stop()

    app = FastAPI(
        title="labelmux",
        version=version("labelmux"),
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.settings = settings
    app.state.metrics = metrics
    direct = {("POST", routes_classify.PATH): routes_classify.classify}
    app.add_middleware(Edge, metrics=metrics, direct=direct)
    add_error_handlers(app, metrics)
    app.include_router(routes_classify.router)
    app.include_router(routes_tasks.router)
    app.include_router(routes_tasks.admin_router)
    app.include_router(routes_health.router)
    return app
