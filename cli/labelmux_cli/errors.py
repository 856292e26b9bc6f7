"""What the command itself refuses, and which exit code every error ends in.

CommandError
├── UsageError      the command line makes no sense           exit code 2
└── FailedError     it does, and what it asked for failed     exit code 1

Errors of the other rooms pass through as they are: a server that cannot be reached ends in 3, wrong
settings and options in 2, everything else in 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labelmux_adapters.errors import AdapterError
from labelmux_client import LabelmuxError, StatusError, TransportError
from labelmux_encoder.errors import EncoderError
from labelmux_server.errors import ServerError, SettingsError
from labelmux_training.errors import OptionsError, TrainingError

OK, FAILED, USAGE, UNREACHABLE = 0, 1, 2, 3
#: As a shell reports a program that Ctrl-C, or a closed pipe, ended.
INTERRUPTED, BROKEN_PIPE = 130, 141


class CommandError(Exception):
    """Base of what the command itself refuses."""


class UsageError(CommandError):
    """The command line makes no sense; the message says what to write."""


class FailedError(CommandError):
    """What was asked for failed."""


#: Errors that are told in one line. Any other is a fault of ours and shows where it happened.
TOLD = (
    CommandError,
    LabelmuxError,
    AdapterError,
    EncoderError,
    TrainingError,
    ServerError,
    OSError,
    UnicodeError,
)

#: What to do at this command, for errors whose own words are about HTTP, by code.
HINTS = {
    "task_not_found": "`labelmux tasks` lists what there is",
    "version_not_found": "`labelmux versions TASK` lists what there is",
    "unauthorized": "give one with --key, or in LABELMUX_KEY; `labelmux keys` makes them",
    "wrong_scope": "`labelmux keys create NAME --scope SCOPE` makes one",
    "task_forbidden": "`labelmux tasks` lists those it is for",
    "task_exists": "push without --create-only to add a version",
    "version_active": "`labelmux activate TASK VERSION` another one first",
    "version_on_trial": "`labelmux shadow TASK --end` or `labelmux canary TASK --end` first",
    "trial_not_found": "`labelmux trials TASK` says what runs",
    "gate_not_found": "`labelmux push FILE --gate DATA` makes one",
    "gate_failed": "`labelmux activate TASK VERSION` activates it in spite of that",
    "no_previous_version": "`labelmux activate TASK VERSION` takes any version",
    "task_needs_pairs": "give --pair and two texts",
    "task_takes_single_texts": "leave out --pair",
    "text_truncated": "leave out --no-truncation",
    "too_many_texts": "name fewer tasks at once",
    "overloaded": "try again in a moment",
    "internal": "look for the request id in the server's log",
}


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Errors about an adapter file that come from here are told with its path."""
    try:
        yield
    except AdapterError as error:
        error.add_note(str(path))
        raise


def exit_code(error: BaseException) -> int:
    """The exit code that an error of ``TOLD`` ends in."""
    if isinstance(error, TransportError):
        return UNREACHABLE
    if isinstance(error, UsageError | SettingsError | OptionsError):
        return USAGE
    return FAILED


def describe(error: BaseException) -> dict[str, object]:
    """An error of ``TOLD`` as JSON: code, message, and what else is known."""
    if isinstance(error, StatusError):
        said: dict[str, object] = {**error.fields, "code": error.code, "message": error.message}
        if error.request_id is not None:
            said["request_id"] = error.request_id
    else:
        said = {"code": _code(error), "message": _message(error)}
    hint = _hint(error)
    return said if hint is None else said | {"hint": hint}


def line(error: BaseException) -> str:
    """An error of ``TOLD`` as one line for people: what happened, and what to do."""
    said = describe(error)
    text = f"error: {said['message']}"
    if said["code"] == "internal" and "request_id" in said:
        text += f" (request id {said['request_id']})"
    return f"{text} - {said['hint']}" if "hint" in said else text


def _code(error: BaseException) -> str:
    if isinstance(error, TransportError):
        return "not_reachable"
    if isinstance(error, UsageError | SettingsError | OptionsError):
        return "usage"
    if isinstance(error, OSError):
        return "file"
    code = getattr(error, "code", "failed")
    return code if isinstance(code, str) else "failed"


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror.lower()}"
    return " ".join(": ".join([*getattr(error, "__notes__", ()), str(error)]).split())


def _hint(error: BaseException) -> str | None:
    if isinstance(error, TransportError):
        return "start one with `labelmux serve`, or name another with --url"
    if isinstance(error, StatusError):
        return HINTS.get(error.code)
    return None
