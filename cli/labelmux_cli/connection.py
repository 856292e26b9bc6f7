"""How commands reach a server: the options they share, and the client they make."""

from __future__ import annotations

from typing import Annotated

import typer

from labelmux_cli.errors import UsageError
from labelmux_client import Client

DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="LABELMUX_URL",
        metavar="URL",
        help="Address of the server.",
        rich_help_panel="Server",
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="LABELMUX_KEY",
        metavar="KEY",
        help="Key, for servers that ask for one.",
        rich_help_panel="Server",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON for scripts instead of text for people.")
]
TaskName = Annotated[str, typer.Argument(metavar="TASK", help="Name of the task.")]


#: Longest wait for an answer that has a gate before it: thousands of rows may have to be read.
GATE_TIMEOUT_S = 1800.0


def connect(url: str, key: str | None, *, gated: bool = False) -> Client:
    """A client of the server at ``url``; nothing is sent yet.

    ``gated``: its answers may take as long as a gate does.

    Raises:
        UsageError: the address or the key cannot be one.
    """
    try:
        if gated:
            return Client(base_url=url, key=key or None, timeout_s=GATE_TIMEOUT_S)
        return Client(base_url=url, key=key or None)
    except ValueError as error:
        raise UsageError(f"{error}") from error
