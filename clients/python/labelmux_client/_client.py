"""The client for code that waits, thin over ``_calls`` and ``_retry``; threads may share it.

``AsyncClient`` is its twin: what changes here changes there.
"""

from __future__ import annotations

import time
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Literal, Self

import httpx2

from labelmux_client import _calls, _stream
from labelmux_client._address import Address
from labelmux_client._call import Call, T
from labelmux_client._constants import (
    DEFAULT_BASE_URL,
    DEFAULT_MAX_RETRIES,
    DEFAULT_TIMEOUT_S,
)
from labelmux_client._errors import NotReadyError, TransportError
from labelmux_client._lines import Question
from labelmux_client._retry import pause_after_answer, pause_after_loss
from labelmux_client._threads import Until, check
from labelmux_client._types import (
    Activation,
    Canary,
    ClassifyResult,
    GateInfo,
    HistoryEntry,
    PushResult,
    ServerInfo,
    Shadow,
    TaskInfo,
    TextResult,
    Trials,
    VersionList,
    VersionRef,
    Windows,
)

__all__ = ["Client"]


class Client:
    """A labelmux server, from code that waits for answers.

    Args:
        base_url: scheme, host and port, and a path where a proxy adds one.
        key: for servers that ask for one.
        timeout_s: longest wait for one attempt to connect, and between two pieces of the answer.
        max_retries: attempts after the first, on 429, on 503, and where no answer came. Rollback is
            never sent twice; delete, a create-only push, and what is gated only where the server
            refused or was not reached.
        http_client: what to send with, for proxies, certificates or tests; the caller closes it.
        sleep: what waits between attempts.

    Every method raises ``TransportError``, ``AnswerError`` or a ``StatusError``.
    """

    def __init__(
        self,
        *,
        base_url: str = DEFAULT_BASE_URL,
        key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_retries: int = DEFAULT_MAX_RETRIES,
        http_client: httpx2.Client | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._address = Address(base_url, key, timeout_s, max_retries)
        self._owned = http_client is None
        self._http = http_client or httpx2.Client()
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, unless ``http_client`` was given."""
        if self._owned:
            self._http.close()

    def classify(
        self,
        texts: str | Sequence[str] | None = None,
        *,
        pairs: Sequence[tuple[str, str]] | None = None,
        task: str | None = None,
        tasks: str | Sequence[str] | None = None,
        top_k: int | None = None,
        raw_scores: bool = False,
        truncation: bool = True,
        windows: Windows | None = None,
    ) -> ClassifyResult:
        """Scores of texts (or of pairs of texts) for one task or several.

        With ``task``, a failure of the task is raised here. With ``tasks``, it stands in the result
        beside the answers of the other tasks, and is raised when that task's prediction is taken.

        Args:
            texts: one text, or several.
            pairs: two texts each, for tasks that read two; instead of ``texts``.
            task: name of one task; ``name@3`` is its version 3.
            tasks: instead of ``task``, names of several, or ``"*"`` for all that read such texts.
            top_k: give only so many labels, the likeliest.
            raw_scores: give logits instead of probabilities; not of tasks that find spans.
            truncation: False makes a text that is too long an error.
            windows: read such a text in parts instead.

        Raises:
            ValueError: both or neither of two arguments that exclude each other.
        """
        return self._send(
            _calls.classify(
                texts,
                pairs=pairs,
                task=task,
                tasks=tasks,
                top_k=top_k,
                raw_scores=raw_scores,
                truncation=truncation,
                windows=windows,
            )
        )

    def classify_stream(
        self,
        texts: Iterable[str] | None = None,
        *,
        pairs: Iterable[tuple[str, str]] | None = None,
        tasks: str | Sequence[str],
        top_k: int | None = None,
        raw_scores: bool = False,
        truncation: bool = True,
        windows: Windows | None = None,
    ) -> Iterator[TextResult]:
        """What ``tasks`` say of any number of texts (or pairs), in order, as it comes.

        Texts are taken a thousand ahead of the results at most. One that is wrong has ``error`` in
        its result, and the others go on; where the server has no room, it waits. Who takes no more
        results waits for nothing that is on its way.

        Raises:
            ValueError: both or neither of ``texts`` and ``pairs``, or pairs with windows.
        """
        question = Question(tasks, top_k, raw_scores, truncation, windows)
        return _stream.run(self._send, texts, pairs, question)

    def tasks(
        self, *, search: str | None = None, after: str | None = None, limit: int | None = None
    ) -> list[TaskInfo]:
        """The tasks that the server has, by name.

        Args:
            search: only those with this in their name, in any case.
            after: only those behind this name: the last one's of a page, to go on.
            limit: at most so many; all by default.
        """
        return self._send(_calls.tasks(search, after, limit))

    def task(self, name: str) -> TaskInfo:
        """One task and its active version."""
        return self._send(_calls.task(name))

    def push(
        self,
        name: str,
        data: bytes | Path,
        *,
        create_only: bool = False,
        activate: Activation = "now",
    ) -> PushResult:
        """Make an adapter file a version of a task, and the active one.

        The very same file twice is one version. ``create_only`` refuses a task that exists. The
        first version of a task serves at once, whatever ``activate`` says.

        Args:
            name: of the task.
            data: the file, or where it is.
            create_only: refuse a task that exists.
            activate: ``later`` leaves the active version as it is; ``gated`` activates this one if
                it is at least as good on the task's gate, and raises ``GateFailedError`` if not.
        """
        content = data.read_bytes() if isinstance(data, Path) else data
        call = _calls.push(name, content, create_only=create_only, activate=activate)
        return self._send(call)

    def versions(self, name: str) -> VersionList:
        """All versions of a task, and its history."""
        return self._send(_calls.versions(name))

    def history(self, name: str) -> tuple[HistoryEntry, ...]:
        """Who changed a task, how and when, oldest first; also of a task that was deleted."""
        return self._send(_calls.history(name))

    def activate(self, name: str, version: int, *, gated: bool = False) -> VersionRef:
        """Make a version of a task the active one; this ends its shadow and its canary.

        ``gated`` does so only if it is at least as good as the active one on the task's gate, and
        raises ``GateFailedError`` if not.
        """
        return self._send(_calls.activate(name, version, gated=gated))

    def shadow(self, name: str, version: int, *, share: float = 1.0) -> Shadow:
        """Let a version read a share of a task's texts, answer nobody, and be compared."""
        return self._send(_calls.shadow(name, version, share))

    def canary(
        self, name: str, version: int, *, share: float, by: Literal["text", "caller"] = "text"
    ) -> Canary:
        """Let a version answer a share of a task's texts, or of its callers."""
        return self._send(_calls.canary(name, version, share, by))

    def end_shadow(self, name: str) -> None:
        """End a task's shadow."""
        return self._send(_calls.end_trial(name, "shadow"))

    def end_canary(self, name: str) -> None:
        """End a task's canary: the active version answers everything again."""
        return self._send(_calls.end_trial(name, "canary"))

    def trials(self, name: str) -> Trials:
        """A task's shadow and canary, and what came of them so far."""
        return self._send(_calls.trials(name))

    def put_gate(self, name: str, data: bytes | Path) -> GateInfo:
        """Store the labelled set that gated versions of a task are judged by, as JSON lines."""
        content = data.read_bytes() if isinstance(data, Path) else data
        return self._send(_calls.put_gate(name, content))

    def gate(self, name: str) -> GateInfo:
        """What labelled set a task has."""
        return self._send(_calls.gate(name))

    def delete_gate(self, name: str) -> None:
        """Forget a task's labelled set."""
        return self._send(_calls.delete_gate(name))

    def rollback(self, name: str) -> VersionRef:
        """Make the previously active version of a task the active one; returns it."""
        return self._send(_calls.rollback(name))

    def delete(self, name: str, *, version: int | None = None) -> None:
        """Delete a task with all its versions, or one version that is not active."""
        return self._send(_calls.delete(name, version))

    def download(self, name: str, *, version: int | None = None) -> bytes:
        """The adapter file of a task: of its active version, or of the one given."""
        return self._send(_calls.download(name, version))

    def info(self) -> ServerInfo:
        """What the server is: its encoder, its limits, what the key opens."""
        return self._send(_calls.info())

    def ready(self) -> bool:
        """Whether a server is there and takes requests; asks once."""
        try:
            return self._send(_calls.ready())
        except (TransportError, NotReadyError):
            return False

    def _send(self, call: Call[T], ended: Event | None = None) -> T:
        attempt = 0
        while True:
            try:
                response = self._answer(call, ended)
            except httpx2.RequestError as error:
                pause_s = pause_after_loss(call.repeat, attempt, self._address.max_retries, error)
                if pause_s is None:
                    raise self._address.lost(call, error) from error
            else:
                pause_s = pause_after_answer(
                    call.repeat, attempt, self._address.max_retries, response
                )
                if pause_s is None:
                    return call.parse(response)
            self._sleep(pause_s)
            attempt += 1

    def _answer(self, call: Call[T], ended: Event | None) -> httpx2.Response:
        """The whole answer; where ``ended`` is set before, ``CancelledError``."""
        if ended is None:
            return self._http.request(**self._address.arguments(call))
        check(ended)
        with self._http.stream(**self._address.arguments(call)) as response:
            assert isinstance(response.stream, httpx2.SyncByteStream)
            response.stream = Until(response.stream, ended)
            response.read()
        return response
