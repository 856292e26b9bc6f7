"""One classification from texts to logits: versions, tokens, adapters, the queue, the wait.

Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labelmux_encoder.tokenizer import TextInput, TokenRow
from labelmux_server.batcher import Batcher
from labelmux_server.caller import Caller
from labelmux_server.errors import (
    CallerGoneError,
    NeedsPairsError,
    NoRawScoresError,
    OverlapTooLongError,
    ServerError,
    TakesSingleTextsError,
    TextTruncatedError,
    TimedOutError,
    TooManyTextsError,
)
from labelmux_server.metrics import Metrics
from labelmux_server.registry import Registry, Version, parse_name
from labelmux_server.residency import Hold, Residency
from labelmux_server.statuses import answer_for
from labelmux_server.submission import Row, Submission, edited_key, row_key
from labelmux_server.task_metrics import ANSWERED, TaskMetrics
from labelmux_server.tokenizer_pool import Encoded, TokenizerPool, Want
from labelmux_server.tracing import current_span

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One text for one task: what was read and the logits, or why there are none."""

    #: One, or one per window.
    rows: Sequence[TokenRow] = ()
    #: Of each row. [K], or [T, K] of a token task
    logits: Sequence[Any] = ()
    truncated: bool = False
    error: ServerError | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """One task's part of a call: its version and an outcome per text, or why it has none."""

    name: str
    version: Version | None
    error: ServerError | None
    outcomes: Sequence[Outcome] = ()


@dataclass(frozen=True, slots=True)
class Classified:
    """A whole call."""

    columns: Sequence[Column]
    encoder_rows: int
    tokens: int
    #: Seconds by stage, in order.
    stages: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Terms:
    """How the texts of a call may be read."""

    #: False: a text that is longer than a task reads is an error.
    truncation: bool = True
    #: None: such a text is cut. Else it is read in windows that share so many tokens.
    overlap_tokens: int | None = None
    #: Whether logits are wanted: then a task that answers with spans is in error.
    raw_scores: bool = False


class Engine:
    """Answers calls through one batcher."""

    def __init__(
        self,
        registry: Registry,
        residency: Residency,
        batcher: Batcher,
        tokenizers: TokenizerPool,
        metrics: Metrics,
        *,
        max_rows: int,
        max_tokens: int,
        max_text_tokens: int,
        timeout_s: float,
        log_texts: bool,
    ) -> None:
        """``max_text_tokens``: of a text at a time, for every task; 0: what its task reads."""
        self._registry = registry
        self._residency = residency
        self._batcher = batcher
        self._tokenizers = tokenizers
        self._metrics = metrics
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._max_text_tokens = max_text_tokens or sys.maxsize
        self._timeout_s = timeout_s
        self._log_texts = log_texts

    async def classify(
        self,
        names: Sequence[str],
        texts: Sequence[TextInput],
        caller: Caller,
        terms: Terms | None = None,
    ) -> Classified:
        """Logits of every text for every task named, by the versions that are active now.

        Raises:
            RateLimitedError: the caller has used up its tokens.
            OverloadedError: too much waits already.
            TooManyTextsError: texts, or windows, times tasks are more than may ever wait.
            TimedOutError: no answer in time.
        """
        if self._log_texts:
            _log.info("%s asked of %s", list(texts), list(names))
        call = _Call(
            self._registry,
            self._residency,
            caller,
            names,
            texts,
            terms or Terms(),
            self._max_text_tokens,
        )
        with _Recorded(call, self._metrics.tasks):
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await self._run(call, texts)
            except TimeoutError as error:
                raise TimedOutError(self._timeout_s) from error
            finally:
                call.leave()

    async def _run(self, call: _Call, texts: Sequence[TextInput]) -> Classified:
        self._check_rows("rows (texts times tasks)", len(texts) * len(call.readable))
        started = time.monotonic()
        want = call.want()
        tokens = await self._tokenizers.encode(texts, want) if want.limits else {}
        tokenise_s = time.monotonic() - started
        self._metrics.record_tokenise(tokenise_s)
        await call.wait_resident()
        rows = call.rows(tokens)
        self._check_rows("rows (windows of texts times tasks)", len(rows))
        distinct = {row.key: len(row.token_ids) for row in rows}
        total = sum(distinct.values())
        if total > self._max_tokens:
            raise TooManyTextsError("tokens", total, self._max_tokens)
        call.caller.spend_tokens(total)
        if not rows:
            return Classified(call.columns([]), 0, 0, {"tokenise": tokenise_s})
        submission = await self._wait(call, rows)
        stages = {
            "tokenise": tokenise_s,
            "queue": submission.queue_s,
            "encode": submission.encode_s,
            "readout": submission.readout_s,
        }
        if (span := current_span()) is not None:
            begun_s = {"tokenise": started, "queue": submission.submitted_s}
            sizes = {"texts": len(texts), "tasks": len(call.names), "tokens": total}
            span.add_stages(stages, begun_s, sizes)
        return Classified(call.columns(submission.answers), submission.encoder_rows, total, stages)

    def _check_rows(self, what: str, rows: int) -> None:
        if rows > self._max_rows:
            raise TooManyTextsError(what, rows, self._max_rows)

    async def _wait(self, call: _Call, rows: Sequence[Row]) -> Submission:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def settled(_: Submission) -> None:
            call.settle()
            if not done.done():
                done.set_result(None)

        submission = Submission(rows, self._timeout_s, settled)
        self._batcher.submit(submission)
        call.in_flight = True
        try:
            await done
        finally:
            if submission.remaining:
                self._batcher.cancel(submission)
        if submission.error is not None:
            raise submission.error
        return submission


class _Call:
    """The book-keeping of one call: which row belongs to which task and text.

    Its holds end when the call has left and no row of it runs any more.
    """

    def __init__(
        self,
        registry: Registry,
        residency: Residency,
        caller: Caller,
        names: Sequence[str],
        texts: Sequence[TextInput],
        terms: Terms,
        max_text_tokens: int,
    ) -> None:
        self.caller = caller
        self.names = names
        self._terms = terms
        self.in_flight = False
        self._left = False
        self._holds: dict[str, Hold] = {}
        self._errors: dict[str, ServerError] = {}
        #: What was named and is there.
        self.versions: dict[str, Version] = {}
        #: Tasks that can read these texts, each with its limit in tokens.
        self.readable: dict[str, tuple[Version, int]] = {}
        #: Per task and text: what is read of it and the first one's place, or why nothing is.
        self._places: dict[str, list[tuple[Sequence[TokenRow], int] | ServerError]] = {}
        pairs = isinstance(texts[0], tuple)
        for name in names:
            try:
                caller.check_task(parse_name(name)[0])
                version = self.versions[name] = registry.resolve(name)
                if version.pair != pairs:
                    kind = TakesSingleTextsError if pairs else NeedsPairsError
                    raise kind(version.task)
                limit = min(version.manifest.max_tokens, max_text_tokens)
                _check_terms(version, limit, terms)
                self._holds[name] = residency.hold(version)
            except ServerError as error:
                self._errors[name] = error
                continue
            self.readable[name] = (version, limit)

    def want(self) -> Want:
        """What the tasks need of the texts' tokens."""
        return Want(
            sorted({limit for _, limit in self.readable.values()}),
            self._terms.overlap_tokens,
            any(found.manifest.task_kind == "token" for found, _ in self.readable.values()),
        )

    async def wait_resident(self) -> None:
        """Return once every adapter is in the bank; a task whose adapter cannot be is in error."""
        for name, hold in self._holds.items():
            try:
                if not hold.slot.done():
                    await asyncio.wrap_future(hold.slot)
                hold.slot.result()
            except ServerError as error:
                self._errors[name] = error
                del self.readable[name]

    def rows(self, tokens: Encoded) -> list[Row]:
        """Every (text, task) that can be answered, in windows where there are."""
        rows: list[Row] = []
        keys = {
            limit: [[row_key(row.token_ids, row.type_ids) for row in parts] for parts in found]
            for limit, found in tokens.items()
        }
        for name, (version, limit) in self.readable.items():
            slot = self._holds[name].slot.result()
            places = self._places[name] = []
            for index, (own, parts) in enumerate(zip(keys[limit], tokens[limit], strict=True)):
                if parts[0].truncated and not self._terms.truncation:
                    places.append(TextTruncatedError(version.task, index, limit))
                    continue
                places.append((parts, len(rows)))
                rows += [
                    Row(
                        edited_key(key, slot.edit) if slot.edit else key,
                        *(part.token_ids, part.type_ids, slot, part.special, slot.edit),
                    )
                    for key, part in zip(own, parts, strict=True)
                ]
        return rows

    def columns(self, answers: Sequence[Any]) -> list[Column]:
        """The call's answer, a column per name."""
        return [self._column(name, answers) for name in self.names]

    def _column(self, name: str, answers: Sequence[Any]) -> Column:
        if name in self._errors:
            return Column(name, None, self._errors[name])
        outcomes = [
            Outcome(truncated=True, error=place)
            if isinstance(place, ServerError)
            else _outcome(*place, answers)
            for place in self._places[name]
        ]
        return Column(name, self.readable[name][0], None, outcomes)

    def outcomes(self, error: type[BaseException] | None) -> Iterator[tuple[Version, str, int]]:
        """Each version that was named, the code that it led to, and how many texts it answered.

        ``error``: what ended the whole call, if something did.
        """
        if error is not None:
            gone = issubclass(error, asyncio.CancelledError)
            code = answer_for(CallerGoneError if gone else error).code
            yield from ((version, code, 0) for version in self.versions.values())
            return
        for name, version in self.versions.items():
            places = self._places.get(name, [self._errors.get(name)])
            failed = [place for place in places if isinstance(place, ServerError)]
            code = answer_for(type(failed[0])).code if failed else ANSWERED
            yield version, code, len(places) - len(failed)

    def settle(self) -> None:
        """No row of the call waits or runs any more."""
        self.in_flight = False
        self._end_holds()

    def leave(self) -> None:
        """The caller has its answer, or has gone."""
        self._left = True
        self._end_holds()

    def _end_holds(self) -> None:
        if self._left and not self.in_flight:
            for hold in self._holds.values():
                hold.release()


class _Recorded:
    """Counts a call for each task that it named, however it ends."""

    def __init__(self, call: _Call, metrics: TaskMetrics) -> None:
        self._call = call
        self._metrics = metrics

    def __enter__(self) -> None:
        self._started_s = time.monotonic()

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        seconds = time.monotonic() - self._started_s
        for version, code, rows in self._call.outcomes(error):
            self._metrics.record(version, code, rows, seconds)


def _check_terms(version: Version, limit_tokens: int, terms: Terms) -> None:
    if terms.raw_scores and version.manifest.task_kind == "token":
        raise NoRawScoresError(version.task)
    # With more, the number of windows would grow with the overlap, not with the text.
    most = limit_tokens // 2 - 1
    if terms.overlap_tokens is not None and terms.overlap_tokens > most:
        raise OverlapTooLongError(version.task, terms.overlap_tokens, most)


def _outcome(rows: Sequence[TokenRow], first: int, answers: Sequence[Any]) -> Outcome:
    return Outcome(rows, answers[first : first + len(rows)], rows[0].truncated)
