"""What can go wrong while an encoder is read or run.

EncoderError
├── UnsupportedEncoderError   the checkpoint is of a kind this room cannot run
├── UnsupportedDtypeError     this machine cannot compute in what was asked for
├── CheckpointError           the checkpoint is incomplete, damaged or absent
└── InputTooLongError         more tokens than the encoder has positions for
"""

from __future__ import annotations


class EncoderError(Exception):
    """Base of every error this room raises."""


class UnsupportedEncoderError(EncoderError):
    """The checkpoint's configuration asks for something this room does not implement."""

    def __init__(self, field: str, found: object, supported: str) -> None:
        self.field = field
        self.found = found
        self.supported = supported
        super().__init__(f"encoder config: {field} is {found!r}; supported: {supported}")


class UnsupportedDtypeError(EncoderError):
    """This machine, or this encoder on it, cannot compute in the dtype that was asked for."""

    def __init__(self, dtype: str, needed: str) -> None:
        self.dtype = dtype
        self.needed = needed
        super().__init__(f"dtype {dtype!r} needs {needed}; use auto")


class CheckpointError(EncoderError):
    """A checkpoint's file is missing, damaged, or does not hold what its config promises."""

    def __init__(self, source: str, problem: str, next_step: str) -> None:
        self.source = source
        self.problem = problem
        self.next_step = next_step
        super().__init__(f"encoder {source!r}: {problem}; {next_step}")


class InputTooLongError(EncoderError):
    """A row has more tokens than the encoder was made for."""

    def __init__(self, found_tokens: int, limit_tokens: int) -> None:
        self.found_tokens = found_tokens
        self.limit_tokens = limit_tokens
        super().__init__(
            f"a row has {found_tokens} tokens, the encoder takes at most {limit_tokens}; "
            "truncate it when tokenising"
        )
