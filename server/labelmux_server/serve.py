"""Run the app on a socket until SIGTERM or SIGINT, then drain.

On the signal, ready turns false; after ``shutdown_delay_s`` the port closes; running requests have
``shutdown_grace_s`` to finish. A second SIGINT ends at once.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import uvicorn
import uvloop
from fastapi import FastAPI

from labelmux_server import logs
from labelmux_server.app import create_app
from labelmux_server.connections import Connection
from labelmux_server.environment import slips
from labelmux_server.errors import SettingsError
from labelmux_server.keyring import Access, check_exposure
from labelmux_server.service import Service
from labelmux_server.settings import Settings
from labelmux_server.watchdog import watch

_KEEP_ALIVE_S = 30
#: Connections. uvloop takes one from each socket in a turn: with one socket, those who opened a
#: connection in an overload waited 2.6 s for that alone, others 0.26 s for their whole answer.
_ACCEPTED_A_TURN = 64
#: New objects between two collections. Requests leave no cycles behind, and with Python's 700 each
#: request in work is walked again and again: a twentieth of the event loop's time.
_COLLECTED_AFTER = 20_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Serving:
    """What a server that has just become ready says of itself."""

    url: str
    encoder: str
    tasks: tuple[str, ...]
    access: Access


Announce = Callable[[Serving], None]


def serve(
    settings: Settings,
    announce: Announce | None = None,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Serve until a signal; return once everything has drained.

    Args:
        settings: how.
        announce: called once, when the server answers.
        environ: where the settings were looked for; what looks like one and is none is logged.

    Raises:
        SettingsError: the address cannot be bound or would be open to all, or the settings do not
            fit the encoder.
        StateError: the state folder cannot be used.
        EncoderError: the encoder cannot be loaded.
    """
    logs.configure(settings.log_format, settings.log_level, log_texts=settings.log_texts)
    for slip in slips(environ or {}):
        _log.warning(slip)
    check_exposure(settings)
    _allow_many_connections()
    with _bound(settings) as bound:
        app = create_app(settings)
        server = _Server(app, settings, _url(settings, bound), announce or (lambda _: None))
        uvloop.run(_run(app, server, bound))


async def _run(app: FastAPI, server: _Server, bound: socket.socket) -> None:
    """The lifespan around the server, driven here so that its errors reach the caller."""
    async with app.router.lifespan_context(app):
        server.listen(bound)
        # What is here by now stays; a full collection would walk it and stop all threads for 80 ms.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECTED_AFTER)
        service: Service = app.state.service
        watching = asyncio.create_task(
            watch(lambda: service.failed, service.settings.watchdog_grace_s)
        )
        await server.serve(sockets=[bound, *(bound.dup() for _ in range(_ACCEPTED_A_TURN - 1))])
    watching.cancel()


class _Server(uvicorn.Server):
    """uvicorn with our drain, and exit code 0 after it."""

    def __init__(self, app: FastAPI, settings: Settings, url: str, announce: Announce) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            http=_connection(settings),
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=settings.shutdown_grace_s,
        )
        super().__init__(config)
        self._app = app
        self._settings = settings
        self._url = url
        self._announce = announce

    def listen(self, bound: socket.socket) -> None:
        """Open the port. uvloop passes over a failure: the server would serve and hear nobody.

        Raises:
            SettingsError: the address was taken since it was bound.
        """
        with _binding(self._settings):
            bound.listen(self.config.backlog)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on SIGTERM and SIGINT. uvicorn's own raises the signal again at the end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain, number)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self.started:
            service = self._app.state.service
            self._announce(
                Serving(
                    url=self._url,
                    encoder=service.loaded.name,
                    tasks=tuple(version.task for version in service.registry.active()),
                    access=service.keyring.access,
                )
            )

    def _drain(self, number: int) -> None:
        service = self._app.state.service
        again, service.draining = service.draining, True
        if again and number == signal.SIGINT:
            self.force_exit = True
        delay_s = 0.0 if again else self._settings.shutdown_delay_s
        asyncio.get_running_loop().call_later(delay_s, self._stop)

    def _stop(self) -> None:
        self._app.state.service.stopping.set()
        self.should_exit = True


def _connection(settings: Settings) -> type[asyncio.Protocol]:
    made = functools.partial(
        Connection, max_head_bytes=settings.max_head_bytes, stall_s=settings.stall_s
    )
    return cast("type[asyncio.Protocol]", made)


def _allow_many_connections() -> None:
    """Take all the handles that this process may have; shells often give 1,024 of them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def _bound(settings: Settings) -> Iterator[socket.socket]:
    """A socket that is bound but refuses connections until the app is ready."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with _binding(settings):
            bound.bind((settings.host, settings.port))
        yield bound


@contextmanager
def _binding(settings: Settings) -> Iterator[None]:
    """What binding or listening fails with is a SettingsError."""
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"cannot bind {settings.host} port {settings.port} ({error.strerror}); "
            "choose another --port"
        ) from error


def _url(settings: Settings, bound: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{bound.getsockname()[1]}"
