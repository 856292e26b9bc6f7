"""Streams against a server process: 20,000 lines, slow callers, callers that leave."""

from __future__ import annotations

import asyncio
import json
import re
import select
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from labelmux_client import AsyncClient, Client

pytestmark = pytest.mark.slow

LINES = 20_000
#: A body of 40 MB: far more than the server may grow by.
TEXT = "the train to the coast leaves at nine and the bus at ten " * 35
#: Known to the tiny tokenizer.
WORDS = ("train", "coast", "film", "soup", "bread", "dogs")
GROWTH_LIMIT_BYTES = 24 * 1024 * 1024

HEAD = (
    "POST /v1/classify/stream?task=t HTTP/1.1\r\nHost: localhost\r\n"
    "Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
)


@pytest.fixture
def server(start_server, adapter_bytes) -> Any:
    running = start_server("--feature-cache-bytes", "0")
    url = f"{running.url}/v1/tasks/t/adapter"
    answer = httpx2.put(url, content=adapter_bytes(), timeout=60)
    assert answer.status_code == 201
    return running


def memory_bytes(server: Any, name: str = "VmRSS") -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", status)[1])


def metric(server: Any, name: str) -> float:
    text = httpx2.get(f"{server.url}/metrics").text
    return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])


def chunk(*lines: dict[str, Any]) -> bytes:
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return b"%x\r\n%s\r\n" % (len(body), body)


async def connect(server: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = server.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def answers(reader: asyncio.StreamReader) -> AsyncIterator[Any]:
    """The answers of a chunked response, one by one."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    rest = b""
    while size := int(await reader.readline(), 16):
        *lines, rest = (rest + await reader.readexactly(size)).split(b"\n")
        await reader.readexactly(2)
        for line in lines:
            if line:
                yield json.loads(line)


async def ask(server: Any, count: int) -> int:
    """Send and read at once, as a caller that streams does; how many answers came, in order."""
    reader, writer = await connect(server)

    async def send() -> None:
        writer.write(HEAD.encode())
        for number in range(count):
            writer.write(chunk({"text": f"{number} {TEXT}"}))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    sending = asyncio.ensure_future(send())
    found = 0
    async for line in answers(reader):
        found += 1
        assert line["line"] == found
        assert line["predictions"]["t"]["labels"]
    await sending
    writer.close()
    return found


def test_20_000_lines_go_through_in_flat_memory(server):
    assert asyncio.run(ask(server, 2000)) == 2000
    before = memory_bytes(server)
    assert asyncio.run(ask(server, LINES)) == LINES
    assert memory_bytes(server, "VmHWM") - before < GROWTH_LIMIT_BYTES


def send_until_stalled(connection: socket.socket) -> int:
    """Write lines and read nothing, until no more is taken; how many lines went out."""
    sent, left = 0, HEAD.encode()
    while sent < LINES:
        if not select.select([], [connection], [], 3.0)[1]:
            return sent
        taken = connection.send(left)
        left = left[taken:]
        if not left:
            left = chunk({"text": f"{sent} {TEXT}"})
            sent += 1
    return sent


def test_a_caller_that_does_not_read_stalls_and_costs_nothing(server):
    asyncio.run(ask(server, 2000))
    before = memory_bytes(server)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        assert send_until_stalled(connection) < LINES
        assert memory_bytes(server, "VmHWM") - before < GROWTH_LIMIT_BYTES
        assert asyncio.run(ask(server, 100)) == 100
    assert asyncio.run(ask(server, 100)) == 100


def test_a_caller_that_leaves_frees_everything(server, until):
    async def leave() -> None:
        for _ in range(20):
            reader, writer = await connect(server)
            writer.write(HEAD.encode() + chunk(*({"text": f"{n} {TEXT}"} for n in range(500))))
            await writer.drain()
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.transport.abort()

    asyncio.run(leave())
    until(lambda: metric(server, "labelmux_requests_in_flight") == 1)
    assert metric(server, "labelmux_queue_rows") == 0
    assert asyncio.run(ask(server, 10)) == 10


def test_a_caller_that_sends_slowly_gets_each_answer_at_once(server):
    async def talk() -> None:
        reader, writer = await connect(server)
        writer.write(HEAD.encode())
        lines = answers(reader)
        for number in range(1, 6):
            writer.write(chunk({"text": f"film {number}"}))
            assert (await anext(lines))["line"] == number
        writer.write(b"0\r\n\r\n")
        assert [line async for line in lines] == []
        writer.close()

    asyncio.run(talk())


def text_of(number: int) -> str:
    """A text of six words that no other number has."""
    return " ".join(WORDS[number // 6**place % 6] for place in range(6))


def counted(taken: list[int]) -> Iterator[str]:
    for number in range(LINES):
        taken.append(number)
        yield text_of(number)


def test_the_client_streams_in_order_and_takes_texts_as_it_goes(server):
    taken: list[int] = []
    with Client(base_url=server.url) as client:
        some = range(0, LINES, 997)
        alone = client.classify([text_of(number) for number in some], task="t").predictions
        results = client.classify_stream(counted(taken), tasks="t", top_k=1)
        found = []
        for result in results:
            found.append((result["t"].label, result["t"].score))
            assert len(taken) - len(found) <= 1025
    assert len(found) == LINES
    for number, expected in zip(some, alone, strict=True):
        assert found[number] == (expected.label, pytest.approx(expected.score, abs=1e-5))


def test_the_async_client_streams_too_and_may_stop_early(server, until):
    async def texts() -> AsyncIterator[str]:
        for text in counted(taken):
            yield text

    async def run() -> None:
        async with AsyncClient(base_url=server.url) as client:
            results = client.classify_stream(texts(), tasks=["t", "t@1"])
            for _ in range(300):
                result = await anext(results)
                assert set(result.predictions) == {"t", "t@1"}
            await results.aclose()

    taken: list[int] = []
    asyncio.run(run())
    assert len(taken) < 2000
    until(lambda: metric(server, "labelmux_queue_rows") == 0)
