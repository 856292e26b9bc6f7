"""Threads that tokenise, so that neither the event loop nor the replica ever does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from labelmux_encoder.tokenizer import TextInput, Tokenizer, TokenRow

Encoded = dict[int, list[TokenRow]]


@dataclass(frozen=True, slots=True)
class _Job:
    texts: Sequence[TextInput]
    limits: Sequence[int]
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

    async def encode(self, texts: Sequence[TextInput], limits: Sequence[int]) -> Encoded:
        """Token rows of all texts for each limit in tokens."""
        done: asyncio.Future[Encoded] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(texts, limits, done))
        return await done

    def _run(self, tokenizer: Tokenizer) -> None:
        while (job := self._jobs.get()) is not None:
            if job.done.cancelled():
                continue
            found: Encoded | Exception
            try:
                found = _encode(tokenizer, job.texts, job.limits)
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


def _encode(tokenizer: Tokenizer, texts: Sequence[TextInput], limits: Sequence[int]) -> Encoded:
    found: Encoded = {}
    rows: list[TokenRow] = []
    for limit in sorted(set(limits), reverse=True):
        if not rows:
            rows = tokenizer.encode(texts, limit)
        else:
            rows = list(rows)
            longer = [at for at, row in enumerate(rows) if len(row.token_ids) > limit]
            cut = tokenizer.encode([texts[at] for at in longer], limit)
            for at, row in zip(longer, cut, strict=True):
                rows[at] = row
        found[limit] = rows
    return found
