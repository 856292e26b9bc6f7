"""What ``train`` and ``evaluate`` share: column options, the table of metrics, a missing extra."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from labelmux_cli.errors import FailedError
from labelmux_cli.output import print_table

if TYPE_CHECKING:
    from labelmux_training.data import Columns
    from labelmux_training.metrics import Metrics

#: What the wheel's extra ``train`` brings.
_EXTRA = frozenset({"matplotlib", "sklearn"})

_PANEL = "Columns of the labelled files"

TextColumn = Annotated[
    str | None,
    typer.Option(
        "--text-column", metavar="NAME", help="Guessed if left out.", rich_help_panel=_PANEL
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        "--label-column", metavar="NAME", help="Guessed if left out.", rich_help_panel=_PANEL
    ),
]
PairColumn = Annotated[
    str | None,
    typer.Option(
        "--pair-column",
        metavar="NAME",
        help='The second text. Guessed if left out; "" means that there is none.',
        rich_help_panel=_PANEL,
    ),
]


def columns(text: str | None, label: str | None, pair: str | None) -> Columns:
    """The options above, as training takes them."""
    from labelmux_training.data import Columns

    return Columns(text=text, label=label, pair=pair)


def print_metrics(rows: Mapping[str, Metrics]) -> None:
    """A table with one line per set of rows."""
    print_table(
        ("", "Accuracy", "Macro F1", "Calibration error", "Rows"),
        (
            (name, f"{found.accuracy:.4f}", f"{found.macro_f1:.4f}", f"{found.ece:.4f}", found.rows)
            for name, found in rows.items()
        ),
    )


@contextmanager
def needs_extra() -> Iterator[None]:
    """Turns a missing package of the extra ``train`` into an error that names it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in _EXTRA:
            raise
        raise FailedError(
            f"training needs {error.name}, which is not installed; pip install 'labelmux[train]'"
        ) from error
