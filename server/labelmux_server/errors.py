"""What can go wrong between a request and its answer; ``statuses`` has how each is answered.

ServerError
├── StartError                    before or beside a server; never reaches HTTP
│   ├── SettingsError             a setting, or a mix of settings, that cannot work
│   ├── StateError                the state folder cannot be used
│   └── KeysError                 a key cannot be made or changed so
├── RequestError                  the request itself is wrong
│   ├── InvalidJsonError          the body is not JSON
│   ├── InvalidRequestError       a field is missing, unknown or out of range
│   ├── BodyTooLargeError         the body is longer than the limit
│   ├── UploadTooLargeError       the adapter file is longer than the limit
│   ├── TooManyTasksError         too many tasks in one call
│   ├── TooManyTextsError         too many texts, or texts times tasks, in one call
│   ├── TextTooLongError          one text has too many characters
│   ├── HeadTooLargeError         path and headers are longer than the limit
│   ├── BodyStalledError          the body comes too slowly
│   ├── MediaTypeError            the content type or encoding is not the one that the route reads
│   ├── DigestMismatchError       the body's SHA-256 is not the one that the header states
│   ├── NeedsPairsError           the task reads two texts, the request has single ones
│   ├── TakesSingleTextsError     the task reads one text, the request has pairs
│   ├── TextTruncatedError        a text is too long and the caller refused truncation
│   ├── OverlapTooLongError       windows would share more than half of what the task reads
│   ├── NoRawScoresError          the task's answer has no room for logits
│   ├── NoDefaultTaskError        no task is named, and there is none for such requests
│   └── SpansUnsupportedError     the route's answers have no room for spans
├── LookupFailedError             the thing named is not here
│   ├── RouteNotFoundError        no such path
│   ├── MethodNotAllowedError     the path is there, the method is not
│   ├── TaskNotFoundError         no task of that name
│   ├── VersionNotFoundError      the task has no such version
│   ├── TrialNotFoundError        the task has no shadow, or no canary
│   └── GateNotFoundError         the task has no labelled set to be gated by
├── AccessError                   the caller may not do this
│   ├── UnauthorizedError         no key, or none that is known
│   ├── WrongScopeError           the key is for other routes
│   ├── TaskForbiddenError        the key is for other tasks
│   └── ForeignPageError          a web page from elsewhere asks a server that asks for no key
├── ConflictError                 the state of the task forbids it
│   ├── VersionActiveError        the active version cannot be deleted
│   ├── VersionOnTrialError       a version that runs beside the active one cannot be deleted
│   ├── TrialMisfitError          a version cannot run beside the active one
│   ├── GateFailedError           a version is worse than the active one on the labelled set
│   ├── GateMisfitError           the labelled set is not of the kind that a version answers
│   ├── ActiveChangedError        another version became active meanwhile
│   ├── NoPreviousVersionError    there is nothing to roll back to
│   └── TaskExistsError           create-only upload to a task that exists
├── UnavailableError              right now it cannot be done
│   ├── OverloadedError           too much is waiting already
│   ├── RateLimitedError          the key was used more than it may be in a minute
│   ├── BankFullError             adapters in use leave no room for another
│   ├── StoreFullError            the server has all the tasks or adapters that it may have
│   ├── StorageError              the state folder cannot be read or written
│   │   └── DiskFullError         its disk is full
│   ├── AdapterDamagedError       the adapter's file is damaged on this server's disk
│   ├── OutOfMemoryError          the device has no memory for the texts
│   ├── NotReadyError             the encoder does not answer
│   ├── DrainingError             the server is shutting down
│   ├── TimedOutError             the answer was not there in time
│   └── InternalError             a fault of ours
│       └── BatchFailedError      the batch with the request's rows failed
└── CallerGoneError               the caller left; there is nobody to answer
"""

from __future__ import annotations


class ServerError(Exception):
    """Base of every error this room raises; ``fields`` stand beside the message in the body."""

    def __init__(self, message: str, **fields: object) -> None:
        self.fields = fields
        super().__init__(message)


class StartError(ServerError):
    """A server cannot start, or a command beside it cannot do its work."""


class SettingsError(StartError):
    """A setting, or a mix of settings, that cannot work."""


class StateError(StartError):
    """The state folder cannot be used."""


class KeysError(StartError):
    """A key cannot be made or changed so."""


class RequestError(ServerError):
    """The request itself is wrong; sending it again cannot help."""


class InvalidJsonError(RequestError):
    """The body is not JSON."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"the body is not valid JSON: {detail}")


class InvalidRequestError(RequestError):
    """A field is missing, unknown or out of range."""

    def __init__(self, field_name: str, problem: str) -> None:
        super().__init__(f"{field_name}: {problem}", field=field_name)


class BodyTooLargeError(RequestError):
    """The body is longer than the limit."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"the body is over {limit_bytes} bytes; send fewer texts in one call",
            limit_bytes=limit_bytes,
        )


class UploadTooLargeError(RequestError):
    """The adapter file is longer than the limit."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"the adapter file is over {limit_bytes} bytes; an adapter is a small part of its "
            "encoder, so check that this is one",
            limit_bytes=limit_bytes,
        )


class TooManyTextsError(RequestError):
    """Too many texts, or texts times tasks, in one call."""

    def __init__(self, what: str, found: int, limit: int) -> None:
        super().__init__(
            f"{found} {what} in one call, at most {limit}; split the call", found=found, limit=limit
        )


class TooManyTasksError(RequestError):
    """Too many tasks in one call."""

    def __init__(self, found: int, limit: int) -> None:
        super().__init__(
            f"{found} tasks in one call, at most {limit}; split the call", found=found, limit=limit
        )


class TextTooLongError(RequestError):
    """One text has too many characters."""

    def __init__(self, index: int, found_chars: int, limit_chars: int) -> None:
        super().__init__(
            f"text {index} has {found_chars} characters, at most {limit_chars}; shorten it",
            index=index,
            limit_chars=limit_chars,
        )


class HeadTooLargeError(RequestError):
    """Path and headers are longer than the limit."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"path and headers are over {limit_bytes} bytes; send less in them")


class BodyStalledError(RequestError):
    """The body comes too slowly."""

    def __init__(self, stall_s: float, progress_bytes: int) -> None:
        super().__init__(
            f"neither {progress_bytes} bytes nor the end of the body came within {stall_s:g} s; "
            "send it again over a faster connection"
        )


class MediaTypeError(RequestError):
    """The content type, or the content encoding, is not the one that the route reads."""

    def __init__(self, found: str, expected: str, header: str = "content type") -> None:
        super().__init__(
            f"{header} {found or 'missing'!r}; send the body as {expected}", expected=expected
        )


class DigestMismatchError(RequestError):
    """The body's SHA-256 is not the one that the header states."""

    def __init__(self, stated: str, found: str) -> None:
        super().__init__(
            f"X-Content-SHA256 states {stated}, the body that arrived has {found}; send it again",
            stated=stated,
            found=found,
        )


class NeedsPairsError(RequestError):
    """The task reads two texts, the request has single ones."""

    def __init__(
        self, task: str, remedy: str = 'send "pairs", or in each line of a stream "text" and "pair"'
    ) -> None:
        super().__init__(f"task {task!r} reads two texts; {remedy}", task=task)


class TakesSingleTextsError(RequestError):
    """The task reads one text, the request has pairs."""

    def __init__(
        self, task: str, remedy: str = 'send "texts", or in each line of a stream "text" alone'
    ) -> None:
        super().__init__(f"task {task!r} reads one text; {remedy}", task=task)


class TextTruncatedError(RequestError):
    """A text is too long and the caller refused truncation."""

    def __init__(
        self, task: str, index: int, limit_tokens: int, remedy: str = 'allow "truncation"'
    ) -> None:
        super().__init__(
            f"text {index} is over the {limit_tokens} tokens that task {task!r} reads; shorten it, "
            f"or {remedy}",
            task=task,
            index=index,
            limit_tokens=limit_tokens,
        )


class OverlapTooLongError(RequestError):
    """Windows would share more than half of what the task reads at a time."""

    def __init__(self, task: str, found_tokens: int, limit_tokens: int) -> None:
        super().__init__(
            f"windows.overlap_tokens is {found_tokens}, task {task!r} takes at most "
            f"{limit_tokens}, half of what it reads at a time; give less",
            task=task,
            limit_tokens=limit_tokens,
        )


class NoRawScoresError(RequestError):
    """The task answers with spans, which have no logits."""

    def __init__(self, task: str) -> None:
        super().__init__(
            f'task {task!r} answers with spans, which have no logits; leave out "raw_scores"',
            task=task,
        )


class NoDefaultTaskError(RequestError):
    """No task is named, and there is none for such requests."""

    def __init__(self, tasks: int) -> None:
        super().__init__(
            f"the request names no task and the server has {tasks}; name one in the path or the "
            "body, or start the server with --default-task"
        )


class SpansUnsupportedError(RequestError):
    """The route's answers have no room for spans."""

    def __init__(self, task: str) -> None:
        super().__init__(
            f"task {task!r} answers with spans, which have no place in this route's answers; ask "
            "POST /v1/classify",
            task=task,
        )


class LookupFailedError(ServerError):
    """The thing named is not here."""


class RouteNotFoundError(LookupFailedError):
    """No such path."""

    def __init__(self, path: str) -> None:
        super().__init__(f"no route {path!r}; GET /docs lists them", path=path)


class MethodNotAllowedError(LookupFailedError):
    """The path is there, the method is not."""

    def __init__(self, method: str, path: str) -> None:
        super().__init__(f"{path!r} does not take {method}; GET /docs lists the routes", path=path)


class TaskNotFoundError(LookupFailedError):
    """No task of that name."""

    def __init__(self, task: str) -> None:
        super().__init__(f"no task {task!r}; GET /v1/tasks lists those that serve", task=task)


class VersionNotFoundError(LookupFailedError):
    """The task has no such version."""

    def __init__(self, task: str, version: int) -> None:
        super().__init__(
            f"task {task!r} has no version {version}; GET /v1/tasks/{task}/versions lists them",
            task=task,
            version=version,
        )


class AccessError(ServerError):
    """The caller may not do this."""


class UnauthorizedError(AccessError):
    """No key, or none that is known."""

    def __init__(self) -> None:
        super().__init__('this needs a live key of this server; send "Authorization: Bearer KEY"')


class WrongScopeError(AccessError):
    """The key is for other routes."""

    def __init__(self, key: str, needed: list[str]) -> None:
        super().__init__(
            f"key {key!r} lacks the scope for this route; use one with {' or '.join(needed)}",
            needed=needed,
        )


class TaskForbiddenError(AccessError):
    """The key is for other tasks."""

    def __init__(self, key: str, task: str) -> None:
        super().__init__(
            f"key {key!r} is not for task {task!r}; GET /v1/tasks lists those it is for", task=task
        )


class ForeignPageError(AccessError):
    """A web page from elsewhere asks a server that asks for no key."""

    def __init__(self, origin: str) -> None:
        super().__init__(
            f"the request comes from a page of {origin[:200]}, or goes there, and this server asks "
            "for no key: ask 127.0.0.1, or make a key with `labelmux keys create` to allow that",
            origin=origin,
        )


class ConflictError(ServerError):
    """The state of the task forbids it."""


class VersionActiveError(ConflictError):
    """The active version cannot be deleted."""

    def __init__(self, task: str, version: int) -> None:
        super().__init__(
            f"version {version} of task {task!r} is active; activate another one first, or delete "
            "the whole task",
            task=task,
            version=version,
        )


class TaskExistsError(ConflictError):
    """Create-only upload to a task that exists."""

    def __init__(self, task: str) -> None:
        super().__init__(
            f"task {task!r} exists; leave out If-None-Match to add a version to it", task=task
        )


class UnavailableError(ServerError):
    """Right now it cannot be done."""


class OverloadedError(UnavailableError):
    """Too much is waiting already."""

    def __init__(self, what: str, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"{what}; try again in {retry_after_s} s", retry_after_s=retry_after_s)


class RateLimitedError(UnavailableError):
    """The key was used more than it may be in a minute."""

    def __init__(self, unit: str, per_minute: int, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(
            f"this key may use {per_minute} {unit} a minute; try again in {retry_after_s} s",
            unit=unit,
            per_minute=per_minute,
            retry_after_s=retry_after_s,
        )


class BankFullError(UnavailableError):
    """Adapters in use leave no room for another."""

    def __init__(self, held_bytes: int, needed_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"adapters in use take {held_bytes} of the {limit_bytes} bytes that may be resident, "
            f"and this one needs {needed_bytes}; ask for fewer tasks in one call, or raise "
            "max_resident_bytes",
            needed_bytes=needed_bytes,
            limit_bytes=limit_bytes,
        )


class StoreFullError(UnavailableError):
    """The server has all the tasks or adapters that it may have."""

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(
            f"the server has {limit} {what}, the most it may have; delete what is not needed, or "
            f"raise max_{what}",
            limit=limit,
        )


class StorageError(UnavailableError):
    """The state folder cannot be read or written; what was being done has changed nothing."""

    def __init__(self, detail: object) -> None:
        super().__init__(
            f"the server cannot use its state folder ({detail}); nothing was changed, and what "
            "serves serves on"
        )


class DiskFullError(StorageError):
    """The state folder's disk is full."""


class AdapterDamagedError(UnavailableError):
    """The adapter's file is damaged on this server's disk."""

    def __init__(self, task: str, version: int, digest: str) -> None:
        super().__init__(
            f"the file of version {version} of task {task!r} is damaged on this server; upload "
            f"{digest} again",
            task=task,
            version=version,
            digest=digest,
        )


class OutOfMemoryError(UnavailableError):
    """The device has no memory for the texts, or for an adapter."""

    def __init__(self, what: str = "these texts; send fewer, or lower max_batch_tokens") -> None:
        super().__init__(f"no memory for {what}")


class NotReadyError(UnavailableError):
    """The encoder does not answer."""

    def __init__(self) -> None:
        super().__init__("the encoder of this server does not answer; ask another server, or later")


class DrainingError(UnavailableError):
    """The server is shutting down."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; send the request to another one")


class TimedOutError(UnavailableError):
    """The answer was not there in time."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(
            f"no answer within {limit_s:g} s; send fewer texts in one call, or try again later",
            limit_s=limit_s,
        )


class InternalError(UnavailableError):
    """A fault of ours; the log has it under the request id."""

    def __init__(self) -> None:
        super().__init__("the server failed on this request; its log has the cause by request id")


class BatchFailedError(InternalError):
    """The batch with the request's rows failed; the log has the cause once, for all in it."""


class CallerGoneError(ServerError):
    """The caller left before its answer; the status is for the log alone."""

    def __init__(self) -> None:
        super().__init__("the caller left before its answer")
