"""What ``train`` and ``evaluate`` share: column options, the table of metrics, a missing extra."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from labelmux_cli.errors import FailedError
from labelmux_cli.output import print_table

if TYPE_CHECKING:
    from labelmux_training.columns import Columns
    from labelmux_training.metrics import AnyMetrics

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


LabelDelimiter = Annotated[
    str,
    typer.Option(
        "--label-delimiter",
        metavar="SIGN",
        help="Between the labels of one field, where rows have several.",
        rich_help_panel=_PANEL,
    ),
]
DEFAULT_DELIMITER = "|"


def columns(text: str | None, label: str | None, pair: str | None, delimiter: str) -> Columns:
    """The options above, as training takes them."""
    from labelmux_training.columns import Columns

    return Columns(text=text, label=label, pair=pair, delimiter=delimiter)


def print_metrics(rows: Mapping[str, AnyMetrics]) -> None:
    """A table with one line per set of rows, all of one kind."""
    shown = {name: metrics.shown() for name, metrics in rows.items()}
    print_table(
        ("", *next(iter(shown.values()))), ((name, *of.values()) for name, of in shown.items())
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
