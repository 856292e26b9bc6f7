"""``labelmux keys``: who may ask a server for what.

The commands work on the state folder, not through the server: the first key must be there before a
server may be reached from elsewhere, and no key, however it got out, can make another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from labelmux_cli.connection import AsJson
from labelmux_cli.errors import UsageError
from labelmux_cli.output import print_json, print_line, print_table, reported, tell, when
from labelmux_server.settings import Settings

if TYPE_CHECKING:
    from labelmux_server.keys import KeyRecord, Keys, Scope

app = typer.Typer(no_args_is_help=True)

StateDir = Annotated[
    Path,
    typer.Option(
        "--state-dir",
        envvar="LABELMUX_STATE_DIR",
        metavar="FOLDER",
        help="State folder of the server.",
    ),
]
KeyName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key.")]
#: More than any server does, and few enough for the database.
_MOST_PER_MINUTE = 10**12
PerMinute = typer.Option(
    metavar="N", min=0, max=_MOST_PER_MINUTE, help="Most of them in a minute; 0: no limit."
)
_LONGEST_GRACE_S = 366 * 24 * 3600

_STATE_DIR = Settings().state_dir


@app.callback()
def keys() -> None:
    """Make, list, rotate and revoke the keys of a server, on its state folder.

    A running server sees a change at its next request.

    Example:
      labelmux keys create shop --scope classify --task "shop-*"
      labelmux keys list --json
    """


@app.command()
@reported
def create(
    name: KeyName,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            metavar="SCOPE",
            help="What it opens: classify, admin or metrics; again for more. Default: classify.",
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="PATTERN",
            help='Only tasks of such names, such as "shop-*"; again for more. Default: all.',
        ),
    ] = None,
    requests_per_minute: Annotated[int | None, PerMinute] = None,
    tokens_per_minute: Annotated[int | None, PerMinute] = None,
    state_dir: StateDir = _STATE_DIR,
    as_json: AsJson = False,
) -> None:
    """Make a key; it is shown once, and cannot be shown again.

    Example:
      labelmux keys create ci --scope admin --scope classify
      labelmux keys create prometheus --scope metrics
      labelmux keys create shop --task "shop-*" --requests-per-minute 600
    """
    from labelmux_server.keys import EVERY_TASK, Rights

    rights = Rights(
        frozenset(cast("list[Scope]", scope or ["classify"])),
        tuple(task or EVERY_TASK),
        requests_per_minute,
        tokens_per_minute,
    )
    with _opened(state_dir, create=True) as found:
        _show(name, found.create(name, rights), as_json)


@app.command("list")
@reported
def list_(state_dir: StateDir = _STATE_DIR, as_json: AsJson = False) -> None:
    """List the keys there are and were; the keys themselves are not stored.

    Example:
      labelmux keys list
    """
    with _opened(state_dir) as opened:
        found = opened.all()
    if as_json:
        print_json({"keys": [_as_json(key) for key in found]})
        return
    columns = ("Name", "Scopes", "Tasks", "Requests/min", "Tokens/min", "Since", "Until")
    print_table(columns, (_row(key) for key in found))


@app.command()
@reported
def rotate(
    name: KeyName,
    grace_s: Annotated[
        float,
        typer.Option(
            "--grace-s", metavar="S", help="How long the key before stays in force; up to a year."
        ),
    ] = 0.0,
    state_dir: StateDir = _STATE_DIR,
    as_json: AsJson = False,
) -> None:
    """Make another key of the same name and rights; the one before ends, now or after --grace-s.

    Example:
      labelmux keys rotate shop
      labelmux keys rotate shop --grace-s 3600
    """
    if not 0 <= grace_s <= _LONGEST_GRACE_S:  # so neither for nan
        raise UsageError(f"--grace-s is {grace_s:g}; give 0 to {_LONGEST_GRACE_S} seconds, a year")
    with _opened(state_dir) as found:
        _show(name, found.rotate(name, grace_s), as_json)


@app.command()
@reported
def revoke(name: KeyName, state_dir: StateDir = _STATE_DIR, as_json: AsJson = False) -> None:
    """End a key, at once and for good.

    Example:
      labelmux keys revoke shop
    """
    with _opened(state_dir) as found:
        found.revoke(name)
    if as_json:
        print_json({"name": name, "revoked": True})
    else:
        print_line(f"{name}: opens nothing any more")


@contextmanager
def _opened(state_dir: Path, *, create: bool = False) -> Iterator[Keys]:
    from labelmux_server.keys import opened_keys

    with opened_keys(state_dir, create=create) as found:
        yield found


def _show(name: str, key: str, as_json: bool) -> None:
    """The key alone on stdout, so that a script can take it."""
    if as_json:
        print_json({"name": name, "key": key})
        return
    tell(f"{name}: this key is shown once; keep it")
    print_line(key)


def _row(key: KeyRecord) -> tuple[object, ...]:
    rights = key.rights
    return (
        key.name,
        ", ".join(sorted(rights.scopes)),
        ", ".join(rights.tasks),
        _rate(rights.requests_per_minute),
        _rate(rights.tokens_per_minute),
        when(key.created_at),
        "" if key.ends_at is None else when(key.ends_at) if key.live else "ended",
    )


def _rate(per_minute: int | None) -> str:
    if per_minute is None:
        return "as set"
    return str(per_minute) if per_minute else "any"


def _as_json(key: KeyRecord) -> dict[str, object]:
    rights = key.rights
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(rights.scopes),
        "tasks": rights.tasks,
        "requests_per_minute": rights.requests_per_minute,
        "tokens_per_minute": rights.tokens_per_minute,
        "created_at": key.created_at,
        "ends_at": key.ends_at,
        "live": key.live,
    }
