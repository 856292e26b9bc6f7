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


def connect(url: str, key: str | None) -> Client:
    """A client of the server at ``url``; nothing is sent yet.

    Raises:
        UsageError: the address or the key cannot be one.
    """
    try:
        return Client(base_url=url, key=key or None)
    except ValueError as error:
        raise UsageError(f"{error}") from error
