"""Progress of long work, on stderr: a bar with rate and time left, or lines where nobody watches.

Fits ``labelmux_training.progress.Progress`` without importing it.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from labelmux_cli.output import err, plain, tell

_BAR_CELLS = 16


class _Rate(ProgressColumn):
    """Steps a second, in the stage's unit."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None and task.completed and task.elapsed:
            speed = task.completed / task.elapsed
        unit = task.fields["unit"]
        return Text(f"{speed:,.0f} {unit}/s" if speed else f"- {unit}/s", style="cyan")


class _Notes(ProgressColumn):
    """What the stage says, on one line; where the screen is narrow, this column gives way."""

    def render(self, task: Task) -> Text:
        notes = Text.from_markup(task.fields["notes"], style="dim", overflow="ellipsis")
        notes.no_wrap = True
        return notes


def _fixed() -> Column:
    return Column(no_wrap=True)


class Bars:
    """One bar for each stage. Where stderr is no terminal, a line at the start of each instead."""

    def __init__(self) -> None:
        console = err()
        self._lines_only = not console.is_terminal
        self._stage: TaskID | None = None
        self._progress = Progress(
            SpinnerColumn(table_column=_fixed()),
            TextColumn("{task.description}", table_column=_fixed()),
            BarColumn(bar_width=_BAR_CELLS, table_column=_fixed()),
            MofNCompleteColumn(table_column=_fixed()),
            _Rate(table_column=_fixed()),
            TimeRemainingColumn(elapsed_when_finished=True, table_column=_fixed()),
            _Notes(),
            console=console,
            disable=self._lines_only,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage begins."""
        if self._lines_only:
            tell(f"{stage}: {total} {unit}")
        self._stage = self._progress.add_task(plain(stage).markup, total=total, unit=unit, notes="")

    def advance(self, steps: int = 1) -> None:
        """So many more steps are behind us."""
        if self._stage is not None:
            self._progress.advance(self._stage, steps)

    def note(self, **values: float | str) -> None:
        """Shown beside the bar."""
        if self._stage is not None:
            self._progress.update(self._stage, notes=plain(_line(values)).markup)

    def done(self) -> None:
        """The stage is over; its bar stays where it got to."""
        if self._stage is not None:
            self._progress.stop_task(self._stage)
            self._stage = None

    def say(self, message: str) -> None:
        """A sentence above the bar."""
        self._progress.console.print(plain(message), soft_wrap=True)


def _line(values: dict[str, float | str]) -> str:
    shown = (
        f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )
    return ", ".join(shown)
