"""The files that a run makes: each whole or not at all, and tried before the work begins."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from labelmux_training.errors import OptionsError


def check_output(path: Path, option: str) -> None:
    """Return if ``write_file`` could put a file at ``path``; its folder is made.

    Raises:
        OptionsError: it could not; names ``option`` and the path.
    """
    try:
        if path.is_dir():
            raise OptionsError(option, f"{str(path)!r} is a folder", "name a file")
        handle, made = _begin(path)
        os.close(handle)
        made.unlink()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise OptionsError(
            option,
            f"{str(path)!r} cannot be written ({reason})",
            "name a file in a folder that you may write to",
        ) from error


def write_file(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, whole or not at all; its folder is made where there is none."""
    handle, made = _begin(path)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        made.chmod(0o644)
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)


def _begin(path: Path) -> tuple[int, Path]:
    """A new file beside ``path``, open, to take its place when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    return handle, Path(name)
