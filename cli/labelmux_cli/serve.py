"""``labelmux serve``: its options are the settings of the server, none is written twice."""

from __future__ import annotations

import inspect
import json
import os
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from labelmux_cli.connection import AsJson
from labelmux_cli.output import out, plain, print_json, reported
from labelmux_server.settings import Knob, Settings
from labelmux_server.sigterm import ends_on_sigterm

if TYPE_CHECKING:
    from labelmux_server.serve import Serving

#: What a newcomer needs stands first; the rest has a panel of its own.
_FIRST = frozenset({"host", "port", "state_dir", "encoder", "no_demo", "admin_key"})
_ACCESS = {
    "open": "open to everyone on this machine, until `labelmux keys create` makes the first key",
    "key": "with a key; `labelmux keys list` shows which there are",
}
_TEXT = "What a lovely film."


@ends_on_sigterm()
def _serve(*, as_json: bool = False, **flags: object) -> None:
    """Serve an encoder and its tasks over HTTP, until Ctrl-C or SIGTERM.

    A fresh state folder starts with the demo tasks.
    Every option can come from the environment too: --port as LABELMUX_PORT.

    Example:
      labelmux serve
      labelmux serve --port 9000 --encoder ./my-deberta --no-demo
    """
    settings = Settings.from_sources(flags, os.environ)
    from labelmux_server.serve import serve as run

    def announce(serving: Serving) -> None:
        if as_json:
            print_json(serving)
        else:
            _print_people(serving)

    run(settings, announce, os.environ)


def _print_people(serving: Serving) -> None:
    tasks = ", ".join(serving.tasks) or "none yet; push one with `labelmux push FILE`"
    console = out()
    console.print(Text("labelmux serves", style="bold green"), plain(serving.url))
    for name, value in (
        ("encoder", serving.encoder),
        ("tasks", tasks),
        ("access", _ACCESS[serving.access]),
        ("API page", f"{serving.url}/docs"),
    ):
        console.print(Text(f"  {name:<9}", style="dim"), plain(value), soft_wrap=True)
    if serving.tasks:
        body = json.dumps({"tasks": ["*"], "texts": _TEXT})
        console.print(
            Text("  try      ", style="dim"), plain(_curl(serving.url, body)), soft_wrap=True
        )


def _curl(url: str, body: str) -> str:
    return f"curl {url}/v1/classify -H 'Content-Type: application/json' -d '{body}'"


def _parameters() -> list[inspect.Parameter]:
    """One option per setting, and ``--json``."""
    kinds = typing.get_type_hints(Settings)
    found = [_parameter(knob, kinds[knob.name]) for knob in Settings.knobs()]
    found.append(_keyword("as_json", AsJson, default=False))
    return found


def _parameter(knob: Knob, kind: Any) -> inspect.Parameter:
    extra: dict[str, Any] = {} if knob.is_switch else {"metavar": _metavar(kind)}
    option = typer.Option(
        knob.flag,
        help=_help(knob),
        show_default=False,
        rich_help_panel=None if knob.name in _FIRST else "Limits and logs",
        **extra,
    )
    taken = bool if knob.is_switch else str
    return _keyword(knob.name, Annotated[taken | None, option], default=None)


def _help(knob: Knob) -> str:
    """The knob's help with its default, which must not be the option's: that would hide the
    environment's value."""
    if knob.default is None or knob.is_switch:
        return knob.help
    return f"{knob.help} Default: {knob.default}."


def _metavar(kind: Any) -> str:
    choices = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(choices)
    return {int: "N", float: "X", Path: "FOLDER"}.get(choices[0] if choices else kind, "TEXT")


def _keyword(name: str, annotation: Any, *, default: object) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


_serve.__signature__ = inspect.Signature(_parameters())  # type: ignore[attr-defined]
serve = reported(_serve)
