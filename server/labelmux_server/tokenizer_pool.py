"""Threads that tokenise, so that neither the event loop nor the replica ever does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from labelmux_encoder.tokenizer import TextInput, Tokenizer, TokenRow

T = TypeVar("T")

#: By limit in tokens: each text's rows, one, or one per window.
Encoded = dict[int, list[Sequence[TokenRow]]]

#: Characters of the calls that a thread takes at once: a millisecond's work or two.
_SHARE_CHARS = 4096
#: Characters that a thread tokenises before it asks again whether anyone still waits for them: a
#: tenth of a second's work at worst. Fewer would keep a long call from the tokenizer's own threads.
_PART_CHARS = 65_536
#: Of English, whole words and parts.
_CHARS_OF_A_TOKEN = 4


class Want(NamedTuple):
    """What a call needs of its texts' tokens."""

    #: Rows have at most so many tokens; each limit has rows of its own.
    limits: Sequence[int]
    #: None: a longer text is cut. Else it becomes windows that share so many tokens.
    overlap_tokens: int | None = None
    #: Whether rows say where their tokens lie in the text.
    offsets: bool = False


class _Job(NamedTuple):
    texts: Sequence[TextInput]
    want: Want
    done: asyncio.Future[Encoded]


#: A job's future and what becomes of it.
_Settled = tuple[asyncio.Future[Encoded], Encoded | Exception]


class TokenizerPool:
    """Threads with a tokenizer each, since one must not be shared.

    Calls that come in one turn of the loop are handed over together, and so are their tokens: a
    hand-over costs the loop more than the tokens of a short text cost a thread.
    """

    def __init__(self, tokenizer: Tokenizer, threads: int) -> None:
        #: What came in this turn of the loop.
        self._arrived: list[_Job] = []
        self._shares: SimpleQueue[Sequence[_Job] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(
                target=self._run,
                args=(tokenizer.clone(),),
                name=f"labelmux-tokenizer-{number}",
                daemon=True,
            )
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Finish the work that is there and end the threads."""
        for _ in self._threads:
            self._shares.put(None)
        for thread in self._threads:
            thread.join()

    async def encode(self, texts: Sequence[TextInput], want: Want) -> Encoded:
        """Token rows of all texts for each limit in tokens. Windows are of single texts."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Encoded] = loop.create_future()
        if not self._arrived:
            loop.call_soon(self._hand_over)
        self._arrived.append(_Job(texts, want, done))
        return await done

    def _hand_over(self) -> None:
        arrived, self._arrived = self._arrived, []
        for share in _divided(arrived, _job_chars, _SHARE_CHARS):
            self._shares.put(share)

    def _run(self, tokenizer: Tokenizer) -> None:
        while (share := self._shares.get()) is not None:
            waiting = [job for job in share if not job.done.cancelled()]
            found: list[_Settled] = []
            for _, alike in groupby(waiting, key=lambda job: job.want):
                found += _encode_jobs(tokenizer, list(alike))
            if found:
                waiting[0].done.get_loop().call_soon_threadsafe(_settle, found)


def _divided(items: Sequence[T], chars: Callable[[T], int], most: int) -> Iterator[Sequence[T]]:
    """Items in their order, in parts of so many characters at most; an item is never cut."""
    begin, held = 0, 0
    for at, item in enumerate(items):
        own = chars(item)
        if at > begin and held + own > most:
            yield items[begin:at]
            begin, held = at, 0
        held += own
    yield items[begin:]


def about_tokens(texts: Sequence[TextInput]) -> int:
    """About how many tokens texts will have; for who cannot wait to know."""
    return sum(map(_chars, texts)) // _CHARS_OF_A_TOKEN + len(texts)


def _chars(text: TextInput) -> int:
    return len(text) if isinstance(text, str) else sum(map(len, text))


def _job_chars(job: _Job) -> int:
    return sum(map(_chars, job.texts))


def _encode_jobs(tokenizer: Tokenizer, jobs: Sequence[_Job]) -> list[_Settled]:
    """Jobs that want the same, all at once; if that fails, each by itself."""
    try:
        together = _encode_parts(tokenizer, jobs)
    except Exception as error:  # noqa: BLE001 - the call's boundary: it fails alone
        if len(jobs) == 1:
            return [(jobs[0].done, error)]
        return [settled for job in jobs for settled in _encode_jobs(tokenizer, [job])]
    found: list[_Settled] = []
    first = 0
    for job in jobs:
        end = first + len(job.texts)
        found.append((job.done, {limit: rows[first:end] for limit, rows in together.items()}))
        first = end
    return found


def _encode_parts(tokenizer: Tokenizer, jobs: Sequence[_Job]) -> Encoded:
    """The jobs' texts in their order; fewer once no caller is left to miss them."""
    want = jobs[0].want
    texts = [text for job in jobs for text in job.texts]
    if sum(map(_chars, texts)) <= _PART_CHARS:
        return _encode(tokenizer, texts, want)
    found: Encoded = {limit: [] for limit in want.limits}
    for part in _divided(texts, _chars, _PART_CHARS):
        if all(job.done.cancelled() for job in jobs):
            break
        for limit, rows in _encode(tokenizer, part, want).items():
            found[limit] += rows
    return found


def _settle(found: Sequence[_Settled]) -> None:
    for done, result in found:
        if done.done():
            continue
        if isinstance(result, Exception):
            done.set_exception(result)
        else:
            done.set_result(result)


def _encode(tokenizer: Tokenizer, texts: Sequence[TextInput], want: Want) -> Encoded:
    """Texts that are within a limit have one row for it and every larger one."""
    found: Encoded = {}
    rows: list[Sequence[TokenRow]] = []
    for limit in sorted(set(want.limits), reverse=True):
        longer = [at for at in range(len(texts)) if not rows or not _fits(rows[at], limit)]
        cut = _cut(tokenizer, [texts[at] for at in longer], limit, want)
        rows = rows.copy() if rows else [()] * len(texts)
        for at, row in zip(longer, cut, strict=True):
            rows[at] = row
        found[limit] = rows
    return found


def _fits(rows: Sequence[TokenRow], limit: int) -> bool:
    return len(rows) == 1 and len(rows[0].token_ids) <= limit


def _cut(
    tokenizer: Tokenizer, texts: Sequence[Any], limit: int, want: Want
) -> Sequence[Sequence[TokenRow]]:
    if want.overlap_tokens is not None:
        return tokenizer.windows(texts, limit, want.overlap_tokens, offsets=want.offsets)
    return [(row,) for row in tokenizer.encode(texts, limit, offsets=want.offsets)]
