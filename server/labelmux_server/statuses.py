"""The one table from an error's kind to its status and code, and an error as answers carry it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from labelmux_adapters import errors as adapter_errors
from labelmux_server import errors, release_errors


@dataclass(frozen=True, slots=True)
class Answer:
    """How one kind of error is answered."""

    status: int
    code: str


def leaves(base: type[Exception]) -> Iterator[type[Exception]]:
    """The kinds of error under ``base`` that carry a code of their own."""
    for kind in base.__subclasses__():
        if "code" in vars(kind):
            yield kind
        yield from leaves(kind)


def _adapter_answers() -> dict[type[Exception], Answer]:
    answers = {}
    for base, status in (
        (adapter_errors.AdapterFileError, 400),
        (adapter_errors.AdapterMisfitError, 422),
    ):
        for kind in leaves(base):
            answers[kind] = Answer(status, vars(kind)["code"])
    answers[adapter_errors.FileTooLargeError] = Answer(413, adapter_errors.FileTooLargeError.code)
    return answers


#: The only place with statuses. A kind that is not here is answered as its nearest base that is.
TABLE: Mapping[type[Exception], Answer] = {
    errors.InvalidJsonError: Answer(400, "invalid_json"),
    errors.InvalidRequestError: Answer(422, "invalid_request"),
    errors.BodyTooLargeError: Answer(413, "body_too_large"),
    errors.UploadTooLargeError: Answer(413, "file_too_large"),
    errors.TooManyTasksError: Answer(413, "too_many_tasks"),
    errors.TooManyTextsError: Answer(413, "too_many_texts"),
    errors.TextTooLongError: Answer(413, "text_too_long"),
    errors.HeadTooLargeError: Answer(431, "head_too_large"),
    errors.BodyStalledError: Answer(408, "body_stalled"),
    errors.MediaTypeError: Answer(415, "unsupported_media_type"),
    errors.DigestMismatchError: Answer(422, "digest_mismatch"),
    errors.NeedsPairsError: Answer(422, "task_needs_pairs"),
    errors.TakesSingleTextsError: Answer(422, "task_takes_single_texts"),
    errors.TextTruncatedError: Answer(422, "text_truncated"),
    errors.OverlapTooLongError: Answer(422, "overlap_too_long"),
    errors.NoRawScoresError: Answer(422, "no_raw_scores"),
    errors.NoDefaultTaskError: Answer(422, "no_default_task"),
    errors.SpansUnsupportedError: Answer(422, "spans_unsupported"),
    errors.RouteNotFoundError: Answer(404, "not_found"),
    errors.MethodNotAllowedError: Answer(405, "method_not_allowed"),
    errors.TaskNotFoundError: Answer(404, "task_not_found"),
    errors.VersionNotFoundError: Answer(404, "version_not_found"),
    release_errors.TrialNotFoundError: Answer(404, "trial_not_found"),
    release_errors.GateNotFoundError: Answer(404, "gate_not_found"),
    errors.UnauthorizedError: Answer(401, "unauthorized"),
    errors.WrongScopeError: Answer(403, "wrong_scope"),
    errors.TaskForbiddenError: Answer(403, "task_forbidden"),
    errors.ForeignPageError: Answer(403, "foreign_page"),
    errors.VersionActiveError: Answer(409, "version_active"),
    release_errors.VersionOnTrialError: Answer(409, "version_on_trial"),
    release_errors.TrialMisfitError: Answer(409, "trial_misfit"),
    release_errors.GateFailedError: Answer(409, "gate_failed"),
    release_errors.GateMisfitError: Answer(409, "gate_misfit"),
    release_errors.ActiveChangedError: Answer(409, "active_changed"),
    release_errors.NoPreviousVersionError: Answer(409, "no_previous_version"),
    errors.TaskExistsError: Answer(412, "task_exists"),
    errors.OverloadedError: Answer(429, "overloaded"),
    errors.RateLimitedError: Answer(429, "rate_limited"),
    errors.BankFullError: Answer(503, "bank_full"),
    errors.StoreFullError: Answer(507, "store_full"),
    errors.DiskFullError: Answer(507, "disk_full"),
    errors.StorageError: Answer(503, "storage_failed"),
    errors.AdapterDamagedError: Answer(500, "adapter_damaged"),
    errors.OutOfMemoryError: Answer(503, "out_of_memory"),
    errors.NotReadyError: Answer(503, "not_ready"),
    errors.DrainingError: Answer(503, "draining"),
    errors.TimedOutError: Answer(504, "timeout"),
    errors.InternalError: Answer(500, "internal"),
    errors.BatchFailedError: Answer(500, "internal"),
    errors.CallerGoneError: Answer(499, "caller_gone"),
    **_adapter_answers(),
}


def answer_for(kind: type[BaseException]) -> Answer:
    """The status and code of an error's kind; what the table does not know is our fault."""
    for base in kind.__mro__:
        if base in TABLE:
            return TABLE[base]
    return TABLE[errors.InternalError]


def error_part(error: BaseException) -> dict[str, Any]:
    """An error as it stands inside an answer: code, message, and the fields of its own."""
    answer = answer_for(type(error))
    if answer.code == "internal":
        error = errors.InternalError()
    fields = error.fields if isinstance(error, errors.ServerError) else vars(error)
    return {"code": answer.code, "message": str(error), **fields}
