"""What can go wrong between a caller and a labelmux server.

LabelmuxError
├── TransportError                no answer came: refused, broken off, or too late
├── AnswerError                   an answer came that no labelmux server gives
└── StatusError                   the server said no; status, code, message, request_id
    ├── InvalidRequestError       the request is wrong; sending it again cannot help
    ├── UnauthorizedError         no key was sent, or none that the server knows
    ├── ForbiddenError            the key is for something else
    ├── NotFoundError             the thing named is not there
    │   ├── TaskNotFoundError     no task of that name
    │   └── VersionNotFoundError  the task has no such version
    ├── ConflictError             the state of the task forbids it
    │   ├── TaskExistsError       create-only push to a task that exists
    │   ├── VersionActiveError    the active version cannot be deleted
    │   ├── GateFailedError       the version is worse than the active one on the task's gate
    │   └── NoPreviousVersionError  there is nothing to roll back to
    ├── AdapterRefusedError       the file is no adapter for this server; code says why
    ├── OverloadedError           too much is waiting there, or the key was used too fast
    ├── NotReadyError             the server is starting, or shutting down
    └── ServerFailureError        the server failed or took too long

The class is chosen by the answer's ``code``; where that is unknown, by its status. Both tables are
below and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "AdapterRefusedError",
    "AnswerError",
    "ConflictError",
    "ForbiddenError",
    "GateFailedError",
    "InvalidRequestError",
    "LabelmuxError",
    "NoPreviousVersionError",
    "NotFoundError",
    "NotReadyError",
    "OverloadedError",
    "ServerFailureError",
    "StatusError",
    "TaskExistsError",
    "TaskNotFoundError",
    "TransportError",
    "UnauthorizedError",
    "VersionActiveError",
    "VersionNotFoundError",
]


class LabelmuxError(Exception):
    """Base of every error this package raises about a server."""


class TransportError(LabelmuxError):
    """No answer came: refused, broken off, or too late. ``__cause__`` is the error of httpx2."""


class AnswerError(LabelmuxError):
    """An answer came that no labelmux server gives: another server, or a proxy in between."""


class StatusError(LabelmuxError):
    """The server said no."""

    def __init__(
        self,
        *,
        status: int,
        code: str,
        message: str,
        request_id: str | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        #: HTTP status; 200 where one task failed in a call that answered others.
        self.status = status
        #: Stable snake_case word.
        self.code = code
        #: For people: names the thing, the value, and the next step.
        self.message = message
        #: What the server's log has this request under.
        self.request_id = request_id
        #: What else the error said, by name, such as ``field`` or ``retry_after_s``.
        self.fields: Mapping[str, Any] = dict(fields or {})
        super().__init__(f"{message} [{code}]")


class InvalidRequestError(StatusError):
    """The request is wrong; sending it again cannot help."""


class UnauthorizedError(StatusError):
    """No key was sent, or none that the server knows."""


class ForbiddenError(StatusError):
    """The key is for other routes or other tasks; the message says which."""


class NotFoundError(StatusError):
    """The thing named is not there."""


class TaskNotFoundError(NotFoundError):
    """No task of that name."""


class VersionNotFoundError(NotFoundError):
    """The task has no such version."""


class ConflictError(StatusError):
    """The state of the task forbids it."""


class TaskExistsError(ConflictError):
    """Create-only push to a task that exists."""


class VersionActiveError(ConflictError):
    """The active version cannot be deleted."""


class GateFailedError(ConflictError):
    """The version is worse than the active one on the task's gate; ``fields`` has both scores."""


class NoPreviousVersionError(ConflictError):
    """There is nothing to roll back to."""


class AdapterRefusedError(StatusError):
    """The file is no adapter for this server; ``code`` says why."""


class OverloadedError(StatusError):
    """Too much is waiting there already, or the key was used too fast; ``code`` says which."""


class NotReadyError(StatusError):
    """The server is starting, or shutting down."""


class ServerFailureError(StatusError):
    """The server failed, is full, or took too long; ``code`` says which."""


#: Every code a server gives, and the class it is raised as.
CODES: Mapping[str, type[StatusError]] = {
    "invalid_json": InvalidRequestError,
    "body_stalled": InvalidRequestError,
    "head_too_large": InvalidRequestError,
    "invalid_request": InvalidRequestError,
    "body_too_large": InvalidRequestError,
    "too_many_tasks": InvalidRequestError,
    "too_many_texts": InvalidRequestError,
    "text_too_long": InvalidRequestError,
    "text_truncated": InvalidRequestError,
    "unsupported_media_type": InvalidRequestError,
    "overlap_too_long": InvalidRequestError,
    "no_raw_scores": InvalidRequestError,
    "no_default_task": InvalidRequestError,
    "spans_unsupported": InvalidRequestError,
    "task_needs_pairs": InvalidRequestError,
    "task_takes_single_texts": InvalidRequestError,
    "method_not_allowed": InvalidRequestError,
    "unauthorized": UnauthorizedError,
    "wrong_scope": ForbiddenError,
    "task_forbidden": ForbiddenError,
    "foreign_page": ForbiddenError,
    "not_found": NotFoundError,
    "task_not_found": TaskNotFoundError,
    "version_not_found": VersionNotFoundError,
    "trial_not_found": NotFoundError,
    "gate_not_found": NotFoundError,
    "task_exists": TaskExistsError,
    "version_active": VersionActiveError,
    "version_on_trial": ConflictError,
    "trial_misfit": ConflictError,
    "gate_failed": GateFailedError,
    "gate_misfit": ConflictError,
    "active_changed": ConflictError,
    "no_previous_version": NoPreviousVersionError,
    "file_too_large": AdapterRefusedError,
    "not_safetensors": AdapterRefusedError,
    "truncated_file": AdapterRefusedError,
    "header_too_large": AdapterRefusedError,
    "header_beyond_file": AdapterRefusedError,
    "duplicate_key": AdapterRefusedError,
    "unknown_format": AdapterRefusedError,
    "bad_manifest": AdapterRefusedError,
    "bad_labels": AdapterRefusedError,
    "unknown_dtype": AdapterRefusedError,
    "unexpected_tensor": AdapterRefusedError,
    "missing_tensor": AdapterRefusedError,
    "wrong_shape": AdapterRefusedError,
    "bad_offsets": AdapterRefusedError,
    "non_finite": AdapterRefusedError,
    "foreign_encoder": AdapterRefusedError,
    "canary_mismatch": AdapterRefusedError,
    "size_misfit": AdapterRefusedError,
    "digest_mismatch": AdapterRefusedError,
    "overloaded": OverloadedError,
    "rate_limited": OverloadedError,
    "not_ready": NotReadyError,
    "draining": NotReadyError,
    "adapter_damaged": ServerFailureError,
    "out_of_memory": ServerFailureError,
    "storage_failed": ServerFailureError,
    "disk_full": ServerFailureError,
    "store_full": ServerFailureError,
    "bank_full": ServerFailureError,
    "internal": ServerFailureError,
    "timeout": ServerFailureError,
}

#: For codes that are not above: of a newer server, or of a proxy in between.
STATUSES: Mapping[int, type[StatusError]] = {
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    412: ConflictError,
    429: OverloadedError,
    503: NotReadyError,
}


def error_class(status: int, code: str) -> type[StatusError]:
    """The class that an answer is raised as: by code, then by status, then by hundreds."""
    if code in CODES:
        return CODES[code]
    if status in STATUSES:
        return STATUSES[status]
    if 400 <= status < 500:
        return InvalidRequestError
    return ServerFailureError if status >= 500 else StatusError
