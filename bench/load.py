"""One client process: requests over keep-alive connections, in a closed or an open loop.

``python bench/load.py < job.json > outcome.json``. Standard library only, so that a process starts
in a tenth of a second and adds little to what it measures. ``servers.py`` knows nothing of it, and
it knows nothing of whom it asks: a ``Job`` says where, what and when.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: A connection that broke or a body that never came, where an HTTP status would stand.
NO_ANSWER = 0
OK = 200
_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Job:
    """What one process asks for."""

    port: int
    path: str
    #: JSON fields beside the texts; request k carries the k-th, round and round.
    fields: list[dict[str, Any]]
    texts_path: str
    #: The JSON field that holds the texts.
    texts_field: str = "texts"
    texts_per_request: int = 1
    #: Requests in a row that carry the same texts, as peers need with one model per task.
    requests_per_texts: int = 1
    #: Closed loop: this many connections, each with one request under way.
    clients: int = 1
    #: Open loop: Poisson arrivals, whatever the answers do. None is the closed loop.
    arrivals_per_s: float | None = None
    seconds: float = 1.0
    #: On the machine's monotonic clock, so that processes start together.
    start_at_s: float = 0.0
    #: How long to wait for answers once no more are asked for.
    drain_s: float = 60.0
    #: Blocks of texts this process takes: the first, and how many processes share them.
    first_block: int = 0
    blocks_apart: int = 1
    seed: int = 0


@dataclass
class Outcome:
    """What came of a job. Times are in seconds on the machine's monotonic clock."""

    statuses: dict[str, int] = field(default_factory=dict)
    #: Of answers with status 200; an open loop counts from the scheduled arrival.
    latencies_ms: list[float] = field(default_factory=list)
    #: Of answers with status 429.
    refusals_ms: list[float] = field(default_factory=list)
    #: How late an open loop sent its requests: the client's own fault.
    lateness_ms: list[float] = field(default_factory=list)
    texts_ok: int = 0
    started_s: float = 0.0
    #: When the last answer was in.
    ended_s: float = 0.0
    cpu_s: float = 0.0
    #: The first block of texts that was not sent.
    next_block: int = 0

    def note(self, status: int, texts: int, latency_ms: float, ended_s: float) -> None:
        """Count one answer."""
        key = str(status)
        self.statuses[key] = self.statuses.get(key, 0) + 1
        self.ended_s = max(self.ended_s, ended_s)
        if status == OK:
            self.texts_ok += texts
            self.latencies_ms.append(latency_ms)
        elif status == 429:
            self.refusals_ms.append(latency_ms)


class Texts:
    """Texts without end, no two alike: the file's, each round with the round's number behind.

    A server that keeps answers or features of texts can so never answer from what it kept.
    """

    def __init__(self, path: Path) -> None:
        self._lines = path.read_text(encoding="utf-8").splitlines()
        if len(set(self._lines)) < len(self._lines) or not self._lines:
            raise ValueError(f"{path} has no lines, or one twice; give distinct texts")

    def block(self, number: int, size: int) -> list[str]:
        """The ``number``-th block of ``size`` texts."""
        return [self._text(index) for index in range(number * size, (number + 1) * size)]

    def _text(self, index: int) -> str:
        turn, place = divmod(index, len(self._lines))
        return f"{self._lines[place]} {turn + 1}"


def poisson_schedule(per_s: float, seconds: float, seed: int) -> Iterator[float]:
    """Arrival times in seconds from the start; the same for the same seed."""
    source = random.Random(seed)
    at = source.expovariate(per_s)
    while at < seconds:
        yield at
        at += source.expovariate(per_s)


def requests(job: Job) -> Iterator[bytes]:
    """Whole HTTP requests, one after the other."""
    texts = Texts(Path(job.texts_path))
    number, block = 0, job.first_block
    chosen = texts.block(block, job.texts_per_request)
    while True:
        fields = job.fields[number % len(job.fields)]
        yield http_post(job.port, job.path, {**fields, job.texts_field: chosen})
        number += 1
        if number % job.requests_per_texts == 0:
            block += job.blocks_apart
            chosen = texts.block(block, job.texts_per_request)


def http_post(port: int, path: str, body: object) -> bytes:
    """The bytes of a POST with a JSON body."""
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._buffer = bytearray()
        self._wanted = 0
        self._status = NO_ANSWER

    @classmethod
    async def open(cls, port: int) -> Connection:
        """Connect to this machine."""
        _, made = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return made

    @property
    def closed(self) -> bool:
        """Whether it can carry no more requests."""
        return self._transport is None or self._transport.is_closing()

    async def ask(self, request: bytes) -> int:
        """The answer's status once its whole body is here; ``NO_ANSWER`` if the peer hung up."""
        if self._transport is None or self._transport.is_closing():
            return NO_ANSWER
        self._buffer.clear()
        self._wanted = 0
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The loop hands the socket over."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Settle the request once head and body are whole."""
        self._buffer += data
        if not self._wanted and (end := self._buffer.find(_HEAD_END)) >= 0:
            self._status, length = read_head(bytes(self._buffer[:end]))
            self._wanted = end + len(_HEAD_END) + length
        if self._wanted and len(self._buffer) >= self._wanted:
            self._settle(self._status)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        """A request under way has no answer."""
        self._transport = None
        self._settle(NO_ANSWER)

    def _settle(self, status: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)


def read_head(head: bytes) -> tuple[int, int]:
    """Status and length of the body; chunked bodies are not for this client.

    Raises:
        ValueError: there is no Content-Length.
    """
    first, *lines = head.split(b"\r\n")
    for line in lines:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(first.split(b" ", 2)[1]), int(value)
    raise ValueError(f"an answer without Content-Length: {head[:200]!r}")


async def run(job: Job, clock: Callable[[], float] = time.monotonic) -> Outcome:
    """Do the job, and wait for what is under way at its end."""
    outcome = Outcome(next_block=job.first_block)
    connections = [await Connection.open(job.port) for _ in range(job.clients)]
    load = _Load(job, outcome, connections, clock)
    await asyncio.sleep(max(0.0, job.start_at_s - clock()))
    cpu_s, outcome.started_s = time.process_time(), clock()
    outcome.ended_s = outcome.started_s
    await (load.closed_loop() if job.arrivals_per_s is None else load.open_loop())
    outcome.cpu_s = time.process_time() - cpu_s
    load.hang_up()
    return outcome


class _Load:
    def __init__(
        self,
        job: Job,
        outcome: Outcome,
        connections: list[Connection],
        clock: Callable[[], float],
    ) -> None:
        self._job, self._outcome, self._clock = job, outcome, clock
        self._idle = connections
        self._requests = requests(job)
        self._sent = 0

    async def closed_loop(self) -> None:
        """Every client asks again as soon as it has its answer."""
        end_s = self._outcome.started_s + self._job.seconds
        clients, self._idle = self._idle, []
        asking = [asyncio.ensure_future(self._ask_until(end_s, client)) for client in clients]
        await self._drained(asking, self._job.seconds)

    async def open_loop(self) -> None:
        """Requests go out at their times, on an idle connection or a new one."""
        job = self._job
        assert job.arrivals_per_s is not None
        asking = []
        for at in poisson_schedule(job.arrivals_per_s, job.seconds, job.seed):
            due_s = self._outcome.started_s + at
            if (wait_s := due_s - self._clock()) > 0:
                await asyncio.sleep(wait_s)
            self._outcome.lateness_ms.append(1000 * (self._clock() - due_s))
            asking.append(asyncio.ensure_future(self._ask_once(due_s)))
        await self._drained(asking, 0.0)

    def hang_up(self) -> None:
        """Close the connections that are idle."""
        for connection in self._idle:
            connection.close()

    async def _ask_until(self, end_s: float, connection: Connection) -> None:
        while (asked_s := self._clock()) < end_s:
            connection = await self._ask(connection, asked_s)
        self._idle.append(connection)

    async def _ask_once(self, due_s: float) -> None:
        # Servers hang up on connections that idle for long; that is no failure.
        while self._idle and self._idle[-1].closed:
            self._idle.pop()
        connection = self._idle.pop() if self._idle else await Connection.open(self._job.port)
        self._idle.append(await self._ask(connection, due_s))

    async def _ask(self, connection: Connection, since_s: float) -> Connection:
        """Ask once; the connection for the next time."""
        request = next(self._requests)
        self._sent += 1
        blocks = -(-self._sent // self._job.requests_per_texts)
        self._outcome.next_block = self._job.first_block + self._job.blocks_apart * blocks
        status = await connection.ask(request)
        now = self._clock()
        self._outcome.note(status, self._job.texts_per_request, 1000 * (now - since_s), now)
        return await Connection.open(self._job.port) if connection.closed else connection

    async def _drained(self, asking: list[asyncio.Task[None]], seconds: float) -> None:
        if not asking:
            return
        done, late = await asyncio.wait(asking, timeout=seconds + self._job.drain_s)
        for task in late:
            task.cancel()
            self._outcome.note(NO_ANSWER, 0, 0.0, self._clock())
        for task in done:
            task.result()


def main() -> None:
    """Read a job, do it, write what came of it."""
    job = Job(**json.load(sys.stdin))
    json.dump(asdict(asyncio.run(run(job))), sys.stdout)


if __name__ == "__main__":
    main()
