"""What the command prints: results on stdout, everything else on stderr.

Names and texts come from files and servers, so what is printed for people passes ``plain``: no
markup, no control characters that a terminal would obey.
"""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TextIO

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from labelmux_cli import errors
from labelmux_client import TextResult

P = ParamSpec("P")

#: Where nobody's terminal says how wide lines may be.
_PIPE_WIDTH = 160
_DIGEST_CHARS = len("sha256:") + 12


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to ``reported``, inside whose ``except`` this is called."""
        raise


class ClosedStdout(io.TextIOBase):
    """In stdout's place where the process was started without one; results need somewhere to go."""

    def write(self, _: str) -> NoReturn:
        """Refuse it, as a full disk would."""
        raise OSError(errno.EBADF, "closed, and there are results to write", "stdout")


def out() -> Console:
    """The console of results."""
    return _Console(width=_width(sys.stdout), highlight=False)


def err() -> Console:
    """The console of progress and problems; nowhere, where the process has no stderr."""
    return _Console(stderr=True, width=_width(sys.stderr), highlight=False)


def plain(value: object) -> Text:
    """A value as people may see it: no markup, nothing that moves the cursor."""
    return Text("".join(char if char.isprintable() else " " for char in str(value)))


def print_line(message: str) -> None:
    """One sentence on stdout."""
    out().print(plain(message), soft_wrap=True)


def tell(message: str) -> None:
    """One sentence on stderr."""
    err().print(plain(message), soft_wrap=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout; numbers stand to the right."""
    cells = [list(row) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in cells)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(value if isinstance(value, Text) else plain(value) for value in row))
    out().print(table)


def print_json(value: object) -> None:
    """One JSON value on one line of stdout, in ASCII."""
    sys.stdout.write(json.dumps(to_json(value), allow_nan=False) + "\n")
    sys.stdout.flush()


def to_json(value: Any) -> Any:
    """Dataclasses, times and tuples as JSON has them."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(asdict(value))
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value.isoformat() if isinstance(value, datetime) else value


def answers_json(result: TextResult) -> dict[str, Any]:
    """What every task says of a text, or why it cannot, by task."""
    if result.error is not None:
        return {"error": {"code": result.error.code, "message": result.error.message}}
    failures = {
        name: {"error": {"code": failure.code, "message": failure.message}}
        for name, failure in result.failures.items()
    }
    predictions = {
        name: {key: value for key, value in to_json(prediction).items() if value is not None}
        for name, prediction in result.predictions.items()
    }
    return predictions | failures


def short_digest(digest: str) -> str:
    """Enough of a digest to tell versions apart."""
    return digest[:_DIGEST_CHARS]


def size(size_bytes: int) -> str:
    """A number of bytes for people."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    if size_bytes < 1024 * 1024:
        return f"{size_bytes / 1024:.0f} KiB"
    return f"{size_bytes / 1024 / 1024:.1f} MiB"


def when(moment: datetime) -> str:
    """A time for people, in the zone of this machine."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose errors end in one line on stderr and the exit code that fits.

    Where the command has ``as_json`` and it is set, stdout gets ``{"error": {...}}`` besides.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            quiet_stdout()
            raise typer.Exit(errors.BROKEN_PIPE) from None
        except errors.TOLD as error:
            _end_stdout(error if kwargs.get("as_json") else None)
            tell(errors.line(error))
            raise typer.Exit(errors.exit_code(error)) from error

    return run


def quiet_stdout() -> None:
    """Once it takes no more: nothing is written, also not when the interpreter ends."""
    with suppress(io.UnsupportedOperation), Path(os.devnull).open("wb") as devnull:
        os.dup2(devnull.fileno(), sys.stdout.fileno())


def _end_stdout(error: BaseException | None) -> None:
    """The error for scripts, unless stdout takes nothing: that may be what the error is about."""
    try:
        if error is not None:
            print_json({"error": errors.describe(error)})
        sys.stdout.flush()
    except OSError:
        quiet_stdout()


def _width(stream: TextIO | None) -> int | None:
    return None if stream is not None and stream.isatty() else _PIPE_WIDTH
