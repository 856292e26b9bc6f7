"""The book-keeping of one call: which row belongs to which task, version and text."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from labelmux_encoder.tokenizer import TextInput, TokenRow
from labelmux_server.caller import Caller
from labelmux_server.errors import (
    CallerGoneError,
    NeedsPairsError,
    NoRawScoresError,
    OverlapTooLongError,
    ServerError,
    TakesSingleTextsError,
    TextTruncatedError,
)
from labelmux_server.outcomes import Column, Outcome, Terms
from labelmux_server.registry import Registry, Version, parse_name
from labelmux_server.residency import Hold, Residency
from labelmux_server.shadows import Glance
from labelmux_server.statuses import answer_for
from labelmux_server.submission import Row, edited_key, row_key
from labelmux_server.task_metrics import ANSWERED
from labelmux_server.tokenizer_pool import Encoded, Want
from labelmux_server.trial import NO_TRIALS, Canary, Shadow, Trials

#: What is read of a text and its first row's place, or why nothing is.
_Place = tuple[Sequence[TokenRow], int] | ServerError


@dataclass(slots=True, eq=False)
class _Part:
    """What one version reads of a call."""

    version: Version
    limit_tokens: int
    hold: Hold
    #: Their places in the call.
    texts: Sequence[int]
    #: Of each of these texts, once there are rows.
    places: Sequence[_Place] = ()


class Call:
    """One call. Its holds end when it has left and no row of it runs any more."""

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
        self.in_flight = False
        self._residency = residency
        self._texts = texts
        self._pairs = isinstance(texts[0], tuple)
        self._terms = terms
        self._max_text_tokens = max_text_tokens
        self._left = False
        self._holds: list[Hold] = []
        self._errors: dict[str, ServerError] = {}
        #: What was named and is there.
        self._named: dict[str, Version] = {}
        #: By task that can read these texts: the version that its name means and, where there is
        #: one, the canary.
        self._parts: dict[str, list[_Part]] = {}
        self._canaries: dict[str, Canary] = {}
        self._shadows: list[tuple[Shadow, _Part, _Part]] = []
        self._keys: dict[int, list[list[tuple[Hashable, ...]]]] = {}
        self._tokens: Encoded = {}
        tried: list[tuple[str, Trials]] = []
        for name in names:
            try:
                task, number = parse_name(name)
                caller.check_task(task)
                version, trials = registry.route(task, number)
                self._named[name] = version
                self._parts[name] = [self._part(version, range(len(texts)))]
            except ServerError as error:
                self._errors[name] = error
                continue
            if trials is not NO_TRIALS:
                tried.append((name, trials))
        # Behind all that was asked for: a trial takes nobody's place in the bank.
        for name, trials in tried:
            self._begin(name, trials)

    @property
    def readable(self) -> int:
        """How many tasks can read the texts."""
        return len(self._parts)

    @property
    def shadowed(self) -> bool:
        """Whether any shadow reads along."""
        return bool(self._shadows)

    def want(self) -> Want:
        """What the tasks need of the texts' tokens."""
        parts = [part for own in self._parts.values() for part in own]
        parts += [part for _, _, part in self._shadows]
        return Want(
            sorted({part.limit_tokens for part in parts}),
            self._terms.overlap_tokens,
            any(part.version.manifest.task_kind == "token" for part in parts),
        )

    async def wait_resident(self) -> None:
        """Return once every adapter is in the bank; a task whose adapter cannot be is in error.

        What a canary's adapter cannot answer, the active version does.
        """
        for name, parts in list(self._parts.items()):
            try:
                await _loaded(parts[0].hold)
            except ServerError as error:
                self._errors[name] = error
                del self._parts[name]
                continue
            if len(parts) > 1:
                try:
                    await _loaded(parts[1].hold)
                except ServerError:
                    self._fall_back(name, parts)
        if self._shadows:
            answering = {parts[0] for parts in self._parts.values()}
            self._shadows = [found for found in self._shadows if found[1] in answering]

    def rows(self, tokens: Encoded) -> list[Row]:
        """Every (text, task) that can be answered, in windows where there are."""
        self._tokens = tokens
        self._keys = {
            limit: [[row_key(row.token_ids, row.type_ids) for row in parts] for parts in found]
            for limit, found in tokens.items()
        }
        rows: list[Row] = []
        for name, parts in self._parts.items():
            if len(parts) > 1 and not self._terms.truncation:
                self._leave_long(name, *parts)
            for part in parts:
                part.places = self._lay(part, rows)
        return rows

    def glances(self, rows: list[Row]) -> Iterator[Glance]:
        """What shadows read. Rows that the encoder reads anyway are put behind ``rows``."""
        known = {row.key for row in rows}
        for shadow, active, part in self._shadows:
            own: list[Row] = []
            answered = dict(zip(active.texts, active.places, strict=True))
            glance = Glance(shadow, active.version)
            for at, place in zip(part.texts, self._lay(part, own), strict=True):
                of_active = answered.get(at)
                if isinstance(place, tuple) and isinstance(of_active, tuple):
                    tokens, first = place
                    needed = own[first : first + len(tokens)]
                    glance.add(self._texts[at], of_active, tokens, needed)
            glance.ride(rows, known)
            yield glance

    def drop_shadows(self) -> None:
        """There is too much to do: they do not read this call."""
        for shadow, _, part in self._shadows:
            shadow.dropped += len(part.texts)

    def columns(self, answers: Sequence[Any]) -> list[Column]:
        """The call's answer, a column per name."""
        return [self._column(name, answers) for name in self.names]

    def outcomes(self, error: type[BaseException] | None) -> Iterator[tuple[Version, str, int]]:
        """Each version that was named, the code that it led to, and how many texts it answered.

        A canary that answered for one is one too. ``error``: what ended the whole call, if any did.
        """
        if error is not None:
            gone = issubclass(error, asyncio.CancelledError)
            code = answer_for(CallerGoneError if gone else error).code
            yield from ((version, code, 0) for version in self._named.values())
            return
        for name, version in self._named.items():
            if name in self._errors:
                yield version, answer_for(type(self._errors[name])).code, 0
                continue
            for part in self._parts[name]:
                failed = [place for place in part.places if isinstance(place, ServerError)]
                code = answer_for(type(failed[0])).code if failed else ANSWERED
                if part.texts:
                    yield part.version, code, len(part.places) - len(failed)

    def settle(self) -> None:
        """No row of the call waits or runs any more."""
        self.in_flight = False
        self._end_holds()

    def leave(self) -> None:
        """The caller has its answer, or has gone."""
        self._left = True
        self._end_holds()

    def _part(self, version: Version, texts: Sequence[int]) -> _Part:
        if version.pair != self._pairs:
            kind = TakesSingleTextsError if self._pairs else NeedsPairsError
            raise kind(version.task)
        limit = check_terms(version, self._terms, self._max_text_tokens)
        hold = self._residency.hold(version)
        self._holds.append(hold)
        return _Part(version, limit, hold, texts)

    def _begin(self, name: str, trials: Trials) -> None:
        if trials.canary is not None:
            self._begin_canary(name, trials.canary)
        if trials.shadow is not None:
            self._begin_shadow(name, trials.shadow)

    def _begin_canary(self, name: str, canary: Canary) -> None:
        self._canaries[name] = canary
        chosen = [
            at for at, text in enumerate(self._texts) if canary.covers(text, self.caller.name)
        ]
        if not chosen:
            return
        try:
            part = self._part(canary.version, chosen)
        except ServerError:
            canary.fell_back += len(chosen)
            return
        (active,) = self._parts[name]
        active.texts = sorted(set(active.texts).difference(chosen))
        self._parts[name].append(part)

    def _fall_back(self, name: str, parts: list[_Part]) -> None:
        self._canaries[name].fell_back += len(parts[1].texts)
        parts[0].texts = range(len(self._texts))
        del parts[1:]

    def _leave_long(self, name: str, active: _Part, canary: _Part) -> None:
        """What is too long for the canary alone, the active version reads; no text may be cut."""
        tokens = self._tokens[canary.limit_tokens]
        long = {at for at in canary.texts if tokens[at][0].truncated}
        self._canaries[name].fell_back += len(long)
        active.texts = sorted(long.union(active.texts))
        canary.texts = sorted(set(canary.texts).difference(long))

    def _begin_shadow(self, name: str, shadow: Shadow) -> None:
        """A shadow reads along if its adapter is at hand; else that is fetched for a later call."""
        active = self._parts[name][0]
        chosen = [at for at in active.texts if shadow.covers(self._texts[at])]
        if not chosen:
            return
        part = None
        if not (shadow.broken or self._residency.strained):
            with suppress(ServerError):
                part = self._part(shadow.version, chosen)
        if part is not None and part.hold.at_hand:
            self._shadows.append((shadow, active, part))
            return
        shadow.unloaded += len(chosen)
        if part is not None:
            part.hold.slot.add_done_callback(shadow.settle)

    def _lay(self, part: _Part, rows: list[Row]) -> list[_Place]:
        """Put a part's rows behind ``rows``; where each of its texts lies in them."""
        slot = part.hold.slot.result()
        keys, tokens = self._keys[part.limit_tokens], self._tokens[part.limit_tokens]
        places: list[_Place] = []
        for at in part.texts:
            read = tokens[at]
            if read[0].truncated and not self._terms.truncation:
                places.append(TextTruncatedError(part.version.task, at, part.limit_tokens))
                continue
            places.append((read, len(rows)))
            rows += [
                Row(
                    edited_key(key, slot.edit) if slot.edit else key,
                    *(row.token_ids, row.type_ids, slot, row.special, slot.edit),
                )
                for key, row in zip(keys[at], read, strict=True)
            ]
        return places

    def _column(self, name: str, answers: Sequence[Any]) -> Column:
        if name in self._errors:
            return Column(name, None, self._errors[name])
        active, *canaries = self._parts[name]
        outcomes = _outcomes(active, answers)
        for part in canaries:
            found = dict(zip(active.texts, outcomes, strict=True))
            found |= zip(part.texts, _outcomes(part, answers), strict=True)
            outcomes = [found[at] for at in range(len(self._texts))]
        if name in self._canaries:
            self._canaries[name].count(outcomes)
        return Column(name, active.version, None, outcomes)

    def _end_holds(self) -> None:
        if self._left and not self.in_flight:
            for hold in self._holds:
                hold.release()


async def _loaded(hold: Hold) -> None:
    if not hold.slot.done():
        await asyncio.wrap_future(hold.slot)
    hold.slot.result()


def check_terms(version: Version, terms: Terms, max_text_tokens: int) -> int:
    """How many tokens the version reads at a time, if it can answer on such terms.

    Raises:
        NoRawScoresError, OverlapTooLongError
    """
    limit_tokens = min(version.manifest.max_tokens, max_text_tokens)
    if terms.raw_scores and version.manifest.task_kind == "token":
        raise NoRawScoresError(version.task)
    # With more, the number of windows would grow with the overlap, not with the text.
    most = limit_tokens // 2 - 1
    if terms.overlap_tokens is not None and terms.overlap_tokens > most:
        raise OverlapTooLongError(version.task, terms.overlap_tokens, most)
    return limit_tokens


def _outcomes(part: _Part, answers: Sequence[Any]) -> list[Outcome]:
    return [
        Outcome(part.version, truncated=True, error=place)
        if isinstance(place, ServerError)
        else Outcome.of(part.version, *place, answers)
        for place in part.places
    ]
