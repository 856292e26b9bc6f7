"""How long work tells what it is at; the command draws it, tests ignore it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Stages follow one another: ``start``, any number of ``advance`` and ``note``, ``done``."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage begins: ``total`` steps, each one ``unit`` (rows, tokens, steps)."""

    def advance(self, steps: int = 1) -> None:
        """So many more steps of the stage are behind us."""

    def note(self, **values: float | str) -> None:
        """Something to show beside the bar, such as ``epoch=3, dev_accuracy=0.91``."""

    def done(self) -> None:
        """The stage is over, early or not."""

    def say(self, message: str) -> None:
        """One sentence that the user should see, such as a default that was chosen for them."""


class NoProgress:
    """Progress that nobody watches."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """Nothing."""

    def advance(self, steps: int = 1) -> None:
        """Nothing."""

    def note(self, **values: float | str) -> None:
        """Nothing."""

    def done(self) -> None:
        """Nothing."""

    def say(self, message: str) -> None:
        """Nothing."""
