"""The command ``labelmux``: which commands there are, and how the process ends.

Exit codes: 0 done, 1 it failed, 2 the command line makes no sense, 3 no server could be reached,
130 Ctrl-C. Importing this module loads no torch; commands that need it load it when they run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from labelmux_cli import keys, releases, remote
from labelmux_cli.classify import classify
from labelmux_cli.errors import BROKEN_PIPE, FAILED, line
from labelmux_cli.evaluate import evaluate
from labelmux_cli.import_peft import import_peft
from labelmux_cli.inspect_file import inspect
from labelmux_cli.output import ClosedStdout, print_line, quiet_stdout, tell
from labelmux_cli.serve import serve
from labelmux_cli.train import train

app = typer.Typer(
    name="labelmux",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PANELS: dict[str, dict[str, Callable[..., None]]] = {
    "Make": {
        "train": train,
        "evaluate": evaluate,
        "inspect": inspect,
        "import-peft": import_peft,
    },
    "Serve and ask": {"serve": serve, "tasks": remote.tasks, "classify": classify},
    "Change a running server": {
        "push": remote.push,
        "versions": remote.versions,
        "history": remote.history,
        "activate": remote.activate,
        "rollback": remote.rollback,
        "shadow": releases.shadow,
        "canary": releases.canary,
        "trials": releases.trials,
        "download": remote.download,
        "delete": remote.delete,
    },
}
for _panel, _commands in _PANELS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_panel)(_command)
app.add_typer(keys.app, name="keys", rich_help_panel="Serve and ask")


def _show_version(wanted: bool) -> None:
    if wanted:
        print_line(f"labelmux {version('labelmux')}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show the version and leave."
        ),
    ] = False,
) -> None:
    """One frozen encoder, any number of text classifiers, swapped while it serves.

    Start a server with `labelmux serve`, then in another terminal:
      labelmux classify "what a lovely film" --task sentiment

    A task of your own:
      labelmux train --task mine --train rows.csv
      labelmux push mine.safetensors
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the process's exit code."""
    if sys.stdout is None:
        sys.stdout = ClosedStdout()
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        quiet_stdout()
        return BROKEN_PIPE
    except OSError as error:
        quiet_stdout()
        tell(line(error))
        return FAILED
    return code


def _run(arguments: Sequence[str] | None) -> int:
    try:
        app(args=None if arguments is None else list(arguments), prog_name="labelmux")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(run())
