"""Where a long training run is kept: a checkpoint to go on from, and a log of JSON lines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from labelmux_encoder.weights import load_plain


class RunFolder:
    """``checkpoint.pt`` and ``log.jsonl`` in one folder, which is made if it is not there."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = path

    def save(self, **values: Any) -> None:
        """Replace the checkpoint; it is the old one or the new one at any moment."""
        partial = self._path / "checkpoint.part"
        torch.save(values, partial)
        partial.replace(self._path / "checkpoint.pt")

    def saved(self) -> dict[str, Any] | None:
        """The checkpoint, if there is one."""
        checkpoint = self._path / "checkpoint.pt"
        if not checkpoint.exists():
            return None
        values: dict[str, Any] = load_plain(checkpoint)
        return values

    def log(self, **values: Any) -> None:
        """Add a line to the log, and print it."""
        line = json.dumps(values)
        print(line, flush=True)
        with (self._path / "log.jsonl").open("a") as log:
            log.write(line + "\n")


class Checkpoint:
    """Where one run is kept while it lasts, beside what it makes."""

    def __init__(self, path: Path, run: str) -> None:
        """``run``: what the run is; that of another run is not gone on from."""
        self._path = path
        self._run = run

    def save(self, **values: Any) -> None:
        """Replace what was kept."""
        RunFolder(self._path).save(run=self._run, **values)

    def saved(self) -> dict[str, Any] | None:
        """What this run kept last, if it was begun."""
        saved = RunFolder(self._path).saved() if self._path.is_dir() else None
        return saved if saved and saved["run"] == self._run else None

    def remove(self) -> None:
        """The run is over."""
        shutil.rmtree(self._path, ignore_errors=True)
