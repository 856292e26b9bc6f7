"""Callers that say too little, too slowly or too much, against a real server."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time
from urllib.parse import urlsplit

import httpx2
import pytest

pytestmark = pytest.mark.slow

STALL_S = 1.0
IDLE = 1000
#: Far longer than a stall may last, since the machine may be busy.
LIMIT_S = 60.0
BODY = json.dumps({"task": "t", "texts": "a good film"}).encode()


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=LIMIT_S)


def until_closed(caller: socket.socket) -> bytes:
    """All that the server still says before it closes."""
    said = b""
    try:
        while chunk := caller.recv(65_536):
            said += chunk
    except ConnectionResetError:
        pass
    return said


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def code(answer: bytes) -> tuple[int, str]:
    first, _, body = answer.partition(b"\r\n\r\n")
    return int(first.split()[1]), json.loads(body)["error"]["code"]


def assert_serves(url: str) -> None:
    answer = httpx2.post(f"{url}/v1/classify", content=BODY, headers={"content-type": JSON})
    assert answer.status_code == 200, answer.text


JSON = "application/json"


@pytest.fixture(scope="module")
def url(start_shared_server, adapter_bytes):
    """Of a server that has a task, one place for uploads and little patience."""
    started = start_shared_server("--stall-s", str(STALL_S), "--max-uploads", "1")
    put = httpx2.put(f"{started.url}/v1/tasks/t/adapter", content=adapter_bytes())
    put.raise_for_status()
    return started.url


@pytest.mark.parametrize("sent", [b"", b"GET /health/live HT", head("/v1/classify")[:-2]])
def test_a_head_that_does_not_come_ends_the_connection(url, sent):
    with connect(url) as caller:
        caller.sendall(sent)
        assert until_closed(caller) == b""
    assert_serves(url)


def test_a_head_that_comes_byte_by_byte_gains_no_time(url, until):
    with connect(url) as caller:
        caller.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")

        def closed() -> bool:
            try:
                caller.sendall(b"x")
            except OSError:
                return True
            return False

        until(closed, LIMIT_S)


@pytest.mark.parametrize(
    "flood",
    [
        b"GET / HTTP/1.1\r\n" + b"X-Many: y\r\n" * 20_000,
        b"GET / HTTP/1.1\r\nX-Long: " + b"y" * 300_000,
        b"GET /" + b"y" * 300_000,
    ],
)
def test_a_flood_of_headers_is_refused(url, flood):
    with connect(url) as caller:
        with contextlib.suppress(OSError):
            caller.sendall(flood)
        said = until_closed(caller)
    assert not said or code(said) == (431, "head_too_large")
    assert_serves(url)


def test_a_head_at_the_limit_passes_and_one_beyond_it_is_refused(url):
    assert httpx2.get(f"{url}/health/live", headers={"x": "y" * 65_000}).status_code == 200
    refused = httpx2.get(f"{url}/health/live", headers={"x": "y" * 65_537})
    assert (refused.status_code, refused.json()["error"]["code"]) == (431, "head_too_large")
    assert "65536" in refused.json()["error"]["message"]
    assert refused.json()["error"]["request_id"]


def test_headers_behind_a_body_are_counted_too(url):
    with connect(url) as caller:
        caller.sendall(head("/v1/classify", f"Content-Type: {JSON}", "Transfer-Encoding: chunked"))
        with contextlib.suppress(OSError):
            caller.sendall(b"0\r\n" + b"X-Behind: y\r\n" * 20_000)
        until_closed(caller)
    assert_serves(url)


def test_an_upload_that_stalls_gives_its_place_back(url, adapter_bytes):
    data = adapter_bytes(seed=1)
    with connect(url) as caller:
        caller.sendall(head("/v1/tasks/u/adapter", f"Content-Length: {len(data)}", method="PUT"))
        caller.sendall(data[: len(data) // 2])
        assert code(until_closed(caller)) == (408, "body_stalled")
    assert httpx2.get(f"{url}/v1/tasks/u").status_code == 404
    assert httpx2.put(f"{url}/v1/tasks/u/adapter", content=data).status_code == 201


def test_a_body_that_drips_is_refused_though_it_never_stops(url, until):
    with connect(url) as caller:
        caller.sendall(head("/v1/classify", f"Content-Type: {JSON}", "Content-Length: 1000000"))

        def answered() -> bool:
            caller.sendall(b" ")
            caller.setblocking(False)
            try:
                return code(caller.recv(65_536)) == (408, "body_stalled")
            except BlockingIOError:
                return False
            finally:
                caller.settimeout(LIMIT_S)

        until(answered, LIMIT_S)


def test_a_caller_that_does_not_read_its_answer_is_left(url, until):
    words = [f"{number} " + "the coast " * 20 for number in range(256)]
    body = json.dumps({"task": "t", "texts": words}).encode()
    lines = (f"Content-Type: {JSON}", f"Content-Length: {len(body)}")
    with socket.socket() as caller:
        # Small buffers here, and many answers, so that the server's side fills up.
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.settimeout(LIMIT_S)
        address = urlsplit(url)
        caller.connect((address.hostname, address.port))
        started = time.monotonic()

        def left() -> bool:
            caller.settimeout(0.05)
            try:
                caller.sendall(head("/v1/classify", *lines) + body)
            except TimeoutError:
                return False
            except OSError:
                return True
            return False

        until(left, LIMIT_S)
        assert time.monotonic() - started >= STALL_S / 2
    assert_serves(url)
    metrics = httpx2.get(f"{url}/metrics").text
    assert "labelmux_requests_in_flight 1.0" in metrics


def test_a_thousand_idle_connections_leave_room_for_the_next(start_server, adapter_bytes, until):
    """In a process whose shell gave it far fewer handles, as shells do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * IDLE:
        pytest.skip(f"NOT RUN: this process may have {hard} handles at most")
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        started = start_server("--stall-s", "10")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * IDLE), hard))
    url = f"{started.url}/v1/tasks/t/adapter"
    httpx2.put(url, content=adapter_bytes()).raise_for_status()
    idle = [connect(started.url) for _ in range(IDLE)]
    try:
        assert_serves(started.url)
        assert httpx2.get(f"{started.url}/health/ready").status_code == 200
        for caller in idle:
            assert until_closed(caller) == b""
    finally:
        for caller in idle:
            caller.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert_serves(started.url)
    assert "Traceback" not in started.log_path.read_text()


def test_an_answer_is_one_packet(url):
    lines = f"Content-Type: {JSON}", f"Content-Length: {len(BODY)}"
    with connect(url) as caller:
        for _ in range(3):
            caller.sendall(head("/v1/classify", *lines) + BODY)
            first, _, body = caller.recv(65_536).partition(b"\r\n\r\n")
            assert first.startswith(b"HTTP/1.1 200")
            assert json.loads(body)["results"]
