"""One classification from texts to logits: versions, tokens, adapters, the queue, the wait.

Runs on the event loop.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence

from labelmux_encoder.tokenizer import TextInput
from labelmux_server.batcher import Batcher
from labelmux_server.call import Call, check_terms
from labelmux_server.caller import Caller
from labelmux_server.errors import TimedOutError, TooManyTextsError
from labelmux_server.metrics import Metrics
from labelmux_server.outcomes import Classified, Terms
from labelmux_server.registry import Registry
from labelmux_server.residency import Residency
from labelmux_server.shadows import Shadows
from labelmux_server.task_metrics import TaskMetrics
from labelmux_server.timers import Timers
from labelmux_server.tokenizer_pool import TokenizerPool, about_tokens
from labelmux_server.tracing import current_span
from labelmux_server.waiting import answered

_log = logging.getLogger(__name__)


class Engine:
    """Answers calls through one batcher."""

    def __init__(
        self,
        registry: Registry,
        residency: Residency,
        batcher: Batcher,
        tokenizers: TokenizerPool,
        metrics: Metrics,
        shadows: Shadows,
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
        self._shadows = shadows
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._max_text_tokens = max_text_tokens or sys.maxsize
        self._timeout_s = timeout_s
        self._timers = Timers()
        self._log_texts = log_texts

    async def classify(
        self,
        names: Sequence[str],
        texts: Sequence[TextInput],
        caller: Caller,
        terms: Terms | None = None,
    ) -> Classified:
        """Logits of every text for every task named, by the versions that serve now.

        Raises:
            RateLimitedError: the caller has used up its tokens.
            OverloadedError: too much waits already.
            TooManyTextsError: texts, or windows, times tasks are more than may ever wait.
            TimedOutError: no answer in time.
        """
        if self._log_texts:
            _log.info("%s asked of %s", list(texts), list(names))
        call = Call(
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
                with self._timers.limit(self._timeout_s):
                    return await self._run(call, texts)
            except TimeoutError as error:
                raise TimedOutError(self._timeout_s) from error
            finally:
                call.leave()

    def check(self, name: str, terms: Terms) -> None:
        """Return if what ``name`` means now can answer any text on such terms.

        Raises:
            TaskNotFoundError, VersionNotFoundError, NoRawScoresError, OverlapTooLongError
        """
        check_terms(self._registry.resolve(name), terms, self._max_text_tokens)

    async def _run(self, call: Call, texts: Sequence[TextInput]) -> Classified:
        self._check_rows("rows (texts times tasks)", len(texts) * call.readable)
        started = time.monotonic()
        want = call.want()
        tokens = {}
        if want.limits:
            with self._batcher.expecting(about_tokens(texts), len(texts)):
                tokens = await self._tokenizers.encode(texts, want)
        tokenise_s = time.monotonic() - started
        self._metrics.record_tokenise(tokenise_s)
        await call.wait_resident()
        rows = call.rows(tokens)
        self._check_rows("rows (windows of texts times tasks)", len(rows))
        distinct = {row.key: len(row.token_ids) for row in rows}
        total = sum(distinct.values())
        if total > self._max_tokens:
            raise TooManyTextsError("tokens", total, self._max_tokens)
        call.caller.check_tokens()
        if not rows:
            return Classified(call.columns([]), 0, 0, {"tokenise": tokenise_s})
        glances = []
        if call.shadowed:
            if self._batcher.has_slack(2 * len(rows)):
                glances = list(call.glances(rows))
            else:
                call.drop_shadows()
        call.in_flight = True
        submission = await answered(
            self._batcher,
            rows,
            self._timeout_s,
            call.settle,
            # What was refused for want of room was not used.
            lambda: call.caller.spend_tokens(total),
        )
        self._shadows.follow(glances, submission.answers)
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


class _Recorded:
    """Counts a call for each task that it named, however it ends."""

    def __init__(self, call: Call, metrics: TaskMetrics) -> None:
        self._call = call
        self._metrics = metrics

    def __enter__(self) -> None:
        self._started_s = time.monotonic()

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        seconds = time.monotonic() - self._started_s
        for version, code, rows in self._call.outcomes(error):
            self._metrics.record(version, code, rows, seconds)
