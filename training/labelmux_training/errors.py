"""What can go wrong between labelled rows and an adapter file.

TrainingError
├── DataError              something is wrong with a labelled file
│   ├── DataFileError      the file cannot be read, or its kind is not known
│   ├── ColumnsError       a column is absent, or cannot be guessed
│   ├── RowError           one row is bad; names file and line
│   ├── LabelsError        the labels cannot make a task
│   └── TooFewRowsError    not enough rows to learn from
├── PeftError              a PEFT adapter cannot become an adapter file
│   ├── PeftFolderError    a file of its folder is missing or damaged
│   └── PeftRefusedError   it has what an adapter file cannot carry; named
├── DivergedError          a loss or an answer is no finite number any more
├── OptionsError           an option, or two together, make no sense
├── RunFolderError         the folder of a run has what cannot be gone on from
└── CacheSpaceError        the features do not fit on the disk
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class TrainingError(Exception):
    """Base of every error this room raises."""


class DataError(TrainingError):
    """Something is wrong with a labelled file."""


class DataFileError(DataError):
    """The file is absent, unreadable, or of a kind this room does not read."""

    def __init__(self, path: Path, problem: str, next_step: str) -> None:
        self.path = path
        super().__init__(f"{path}: {problem}; {next_step}")


class ColumnsError(DataError):
    """The column for ``role`` (text, pair or label) is absent or cannot be guessed."""

    def __init__(self, path: Path, role: str, wanted: str | None, found: Sequence[str]) -> None:
        self.path = path
        self.role = role
        self.found = tuple(found)
        problem = f"no column {wanted!r}" if wanted else f"cannot tell which column is the {role}"
        columns = ", ".join(repr(name) for name in found) or "none"
        super().__init__(
            f"{path}: {problem}; columns found: {columns}; name the {role} column by option"
        )


class RowError(DataError):
    """One row is bad."""

    def __init__(self, path: Path, line: int, problem: str, next_step: str) -> None:
        self.path = path
        self.line = line
        super().__init__(f"{path}, line {line}: {problem}; {next_step}")


class LabelsError(DataError):
    """The file's labels cannot make a task."""

    def __init__(self, path: Path, problem: str, next_step: str) -> None:
        self.path = path
        super().__init__(f"{path}: {problem}; {next_step}")


class TooFewRowsError(DataError):
    """Not enough rows to learn from, or to prove the adapter with."""

    def __init__(self, path: Path, found: int, needed: int, what: str = "rows") -> None:
        self.path = path
        self.found = found
        self.needed = needed
        super().__init__(
            f"{path}: {found} {what}, at least {needed} are needed; add rows to the file"
        )


class PeftError(TrainingError):
    """A PEFT adapter cannot become an adapter file."""


class PeftFolderError(PeftError):
    """A file of the adapter's folder is missing, too large or damaged."""

    def __init__(self, path: Path, problem: str, next_step: str) -> None:
        self.path = path
        super().__init__(f"{path}: {problem}; {next_step}")


class PeftRefusedError(PeftError):
    """The adapter has what an adapter file cannot carry; ``what`` is its name."""

    def __init__(self, what: str, problem: str, next_step: str) -> None:
        self.what = what
        super().__init__(f"PEFT adapter: {what}: {problem}; {next_step}")


class OptionsError(TrainingError):
    """An option, or two together, make no sense."""

    def __init__(self, option: str, problem: str, next_step: str) -> None:
        self.option = option
        super().__init__(f"{option}: {problem}; {next_step}")


class RunFolderError(TrainingError):
    """Where a run is kept there is what no run put there, or what cannot be read."""

    def __init__(self, path: Path, problem: str, next_step: str) -> None:
        self.path = path
        super().__init__(f"{path}: {problem}; {next_step}")


class DivergedError(TrainingError):
    """A loss, or an answer on dev, is NaN or infinite: what was learned cannot be used."""

    def __init__(self, what: str, next_step: str) -> None:
        super().__init__(f"training diverged: {what} is not finite; {next_step}")


class CacheSpaceError(TrainingError):
    """The features do not fit on the disk of the cache folder."""

    def __init__(self, folder: Path, needed_bytes: int, free_bytes: int) -> None:
        self.folder = folder
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        super().__init__(
            f"features need {needed_bytes / 2**30:.1f} GiB in {folder}, which has "
            f"{free_bytes / 2**30:.1f} GiB free; clear it, name another cache folder, "
            "or lower the token limit"
        )
