"""Threads that tokenise, so that neither the event loop nor the replica ever does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from labelmux_encoder.tokenizer import TextInput, Tokenizer, TokenRow

#: By limit in tokens: each text's rows, one, or one per window.
Encoded = dict[int, list[Sequence[TokenRow]]]


@dataclass(frozen=True, slots=True)
class Want:
    """What a call needs of its texts' tokens."""

    #: Rows have at most so many tokens; each limit has rows of its own.
    limits: Sequence[int]
    #: None: a longer text is cut. Else it becomes windows that share so many tokens.
    overlap_tokens: int | None = None
    #: Whether rows say where their tokens lie in the text.
    offsets: bool = False


@dataclass(frozen=True, slots=True)
class _Job:
    texts: Sequence[TextInput]
    want: Want
    done: asyncio.Future[Encoded]


class TokenizerPool:
    """Threads with a tokenizer each, since one must not be shared."""

    def __init__(self, tokenizer: Tokenizer, threads: int) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
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
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    async def encode(self, texts: Sequence[TextInput], want: Want) -> Encoded:
        """Token rows of all texts for each limit in tokens. Windows are of single texts."""
        done: asyncio.Future[Encoded] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(texts, want, done))
        return await done

    def _run(self, tokenizer: Tokenizer) -> None:
        while (job := self._jobs.get()) is not None:
            if job.done.cancelled():
                continue
            found: Encoded | Exception
            try:
                found = _encode(tokenizer, job.texts, job.want)
            except Exception as error:  # noqa: BLE001 - the call's boundary: it fails alone
                found = error
            job.done.get_loop().call_soon_threadsafe(_settle, job.done, found)


def _settle(done: asyncio.Future[Encoded], found: Encoded | Exception) -> None:
    if done.done():
        return
    if isinstance(found, Exception):
        done.set_exception(found)
    else:
        done.set_result(found)


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
