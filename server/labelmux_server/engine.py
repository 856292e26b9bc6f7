"""One classification from texts to logits: versions, tokens, adapters, the queue, the wait.

Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labelmux_encoder.tokenizer import TextInput, TokenRow
from labelmux_server.batcher import Batcher
from labelmux_server.caller import Caller
from labelmux_server.errors import (
    NeedsPairsError,
    ServerError,
    TakesSingleTextsError,
    TextTruncatedError,
    TimedOutError,
    TooManyTextsError,
)
from labelmux_server.registry import Registry, Version, parse_name
from labelmux_server.residency import Hold, Residency
from labelmux_server.submission import Row, Submission, row_key
from labelmux_server.tokenizer_pool import TokenizerPool


@dataclass(frozen=True, slots=True)
class Outcome:
    """One text for one task: logits [K], or why there are none."""

    logits: Any
    truncated: bool
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


class Engine:
    """Answers calls through one batcher."""

    def __init__(
        self,
        registry: Registry,
        residency: Residency,
        batcher: Batcher,
        tokenizers: TokenizerPool,
        *,
        max_rows: int,
        max_tokens: int,
        timeout_s: float,
    ) -> None:
        self._registry = registry
        self._residency = residency
        self._batcher = batcher
        self._tokenizers = tokenizers
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._timeout_s = timeout_s

    async def classify(
        self,
        names: Sequence[str],
        texts: Sequence[TextInput],
        caller: Caller,
        *,
        truncation: bool = True,
    ) -> Classified:
        """Logits of every text for every task named, by the versions that are active now.

        Raises:
            RateLimitedError: the caller has used up its tokens.
            OverloadedError: too much waits already.
            TooManyTextsError: texts times tasks are more than may ever wait.
            TimedOutError: no answer in time.
        """
        call = _Call(self._registry, self._residency, caller, names, texts)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._run(call, texts, truncation)
        except TimeoutError as error:
            raise TimedOutError(self._timeout_s) from error
        finally:
            call.leave()

    async def _run(self, call: _Call, texts: Sequence[TextInput], truncation: bool) -> Classified:
        if len(texts) * len(call.readable) > self._max_rows:
            raise TooManyTextsError(
                "rows (texts times tasks)", len(texts) * len(call.readable), self._max_rows
            )
        started = time.monotonic()
        limits = {limit for _, limit in call.readable.values()}
        tokens = await self._tokenizers.encode(texts, sorted(limits)) if limits else {}
        tokenise_s = time.monotonic() - started
        await call.wait_resident()
        rows = call.rows(tokens, truncation)
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
        return Classified(call.columns(submission.answers), submission.encoder_rows, total, stages)

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
    ) -> None:
        self.caller = caller
        self.names = names
        self.in_flight = False
        self._left = False
        self._holds: dict[str, Hold] = {}
        self._errors: dict[str, ServerError] = {}
        #: Tasks that can read these texts, each with its limit in tokens.
        self.readable: dict[str, tuple[Version, int]] = {}
        #: Per task and text: the place of its row, or why it has none.
        self._places: dict[str, list[tuple[int, bool] | ServerError]] = {}
        pairs = isinstance(texts[0], tuple)
        for name in names:
            try:
                caller.check_task(parse_name(name)[0])
                version = registry.resolve(name)
                if version.pair != pairs:
                    kind = TakesSingleTextsError if pairs else NeedsPairsError
                    raise kind(version.task)
                self._holds[name] = residency.hold(version)
            except ServerError as error:
                self._errors[name] = error
                continue
            self.readable[name] = (version, version.manifest.max_tokens)

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

    def rows(self, tokens: dict[int, list[TokenRow]], truncation: bool) -> list[Row]:
        """Every (text, task) that can be answered."""
        rows: list[Row] = []
        keys = {
            limit: [row_key(row.token_ids, row.type_ids) for row in found]
            for limit, found in tokens.items()
        }
        for name, (version, limit) in self.readable.items():
            slot = self._holds[name].slot.result()
            places = self._places[name] = []
            for index, (key, token_row) in enumerate(zip(keys[limit], tokens[limit], strict=True)):
                if token_row.truncated and not truncation:
                    places.append(TextTruncatedError(version.task, index, limit))
                    continue
                places.append((len(rows), token_row.truncated))
                rows.append(Row(key, token_row.token_ids, token_row.type_ids, slot))
        return rows

    def columns(self, answers: Sequence[Any]) -> list[Column]:
        """The call's answer, a column per name."""
        return [self._column(name, answers) for name in self.names]

    def _column(self, name: str, answers: Sequence[Any]) -> Column:
        if name in self._errors:
            return Column(name, None, self._errors[name])
        outcomes = [
            Outcome(None, truncated=True, error=place)
            if isinstance(place, ServerError)
            else Outcome(answers[place[0]], place[1])
            for place in self._places[name]
        ]
        return Column(name, self.readable[name][0], None, outcomes)

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
