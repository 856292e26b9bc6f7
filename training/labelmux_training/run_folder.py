"""The folder of a long training run: a checkpoint to go on from, and a log of JSON lines."""

from __future__ import annotations

import json
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
