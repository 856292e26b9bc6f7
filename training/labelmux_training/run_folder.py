"""Where a long training run is kept: a checkpoint to go on from, and a log of JSON lines."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from labelmux_encoder.errors import CheckpointError
from labelmux_encoder.weights import load_plain
from labelmux_training.errors import RunFolderError

_CHECKPOINT, _PARTIAL = "checkpoint.pt", "checkpoint.part"


class RunFolder:
    """``checkpoint.pt`` and ``log.jsonl`` in one folder, which is made if it is not there."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = path

    def save(self, **values: Any) -> None:
        """Replace the checkpoint; it is the old one or the new one at any moment."""
        partial = self._path / _PARTIAL
        with partial.open("wb") as file:
            torch.save(values, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path / _CHECKPOINT)

    def saved(self) -> dict[str, Any] | None:
        """The checkpoint, if there is one.

        Raises:
            RunFolderError: it cannot be read.
        """
        checkpoint = self._path / _CHECKPOINT
        if not checkpoint.exists():
            return None
        try:
            values = load_plain(checkpoint)
        except CheckpointError as error:
            raise RunFolderError(
                checkpoint, "the checkpoint of a run, damaged", "delete it to begin again"
            ) from error
        return values if isinstance(values, dict) else {}

    def log(self, **values: Any) -> None:
        """Add a line to the log, and print it."""
        line = json.dumps(values)
        print(line, flush=True)
        with (self._path / "log.jsonl").open("a") as log:
            log.write(line + "\n")


class Checkpoint:
    """Where one run is kept while it lasts, beside what it makes."""

    def __init__(self, path: Path, run: str) -> None:
        """
        Args:
            path: the folder, which is of runs alone.
            run: what the run is; that of another run is not gone on from.

        Raises:
            RunFolderError: something at ``path`` is no run's.
        """
        self._path = path
        self._run = run
        self._check()

    def save(self, **values: Any) -> None:
        """Replace what was kept."""
        RunFolder(self._path).save(run=self._run, **values)

    def saved(self) -> dict[str, Any] | None:
        """What this run kept last, if it was begun."""
        saved = RunFolder(self._path).saved() if self._path.is_dir() else None
        return saved if saved and saved["run"] == self._run else None

    def remove(self) -> None:
        """The run is over; what somebody else put into its folder stays there."""
        for name in (_CHECKPOINT, _PARTIAL):
            (self._path / name).unlink(missing_ok=True)
        with suppress(OSError):
            self._path.rmdir()

    def _check(self) -> None:
        """Nobody's own files may be taken for a run's: those are replaced and removed."""
        away = "move it away, or name another file to make"
        if not self._path.is_dir():
            if os.path.lexists(self._path):
                raise RunFolderError(self._path, "no folder, and a run is kept there", away)
            return
        for found in sorted(self._path.iterdir()):
            if found.name not in (_CHECKPOINT, _PARTIAL) or not found.is_file():
                raise RunFolderError(found, "no file of a run, and a run is kept there", away)
        saved = RunFolder(self._path).saved()
        if saved is not None and "run" not in saved:
            raise RunFolderError(self._path / _CHECKPOINT, "no checkpoint of a run", away)
