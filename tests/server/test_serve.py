"""The process: starting, refusing to start, draining."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
import uvloop

from labelmux_encoder.weights import load_encoder
from labelmux_server import logs
from labelmux_server import serve as serve_module
from labelmux_server import service as service_module
from labelmux_server.__main__ import main
from labelmux_server.errors import SettingsError
from labelmux_server.serve import _bound
from labelmux_server.settings import Settings

pytestmark = pytest.mark.slow

BODY = json.dumps({"task": "t", "texts": "a good film"}).encode()


class RequestUnderWay:
    """A classification whose route runs for certain, and whose body is still to come."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname, address.port), timeout=60)
        head = (
            f"POST /v1/classify HTTP/1.1\r\nHost: {address.netloc}\r\n"
            "Content-Type: application/json\r\nExpect: 100-continue\r\n"
            f"Content-Length: {len(BODY)}\r\n\r\n"
        )
        self._socket.sendall(head.encode())
        assert self._socket.recv(1000).startswith(b"HTTP/1.1 100")

    def finish(self) -> bytes:
        """Send the body; the whole answer."""
        self._socket.sendall(BODY)
        answer = b""
        while chunk := self._socket.recv(65_536):
            answer += chunk
        return answer

    def close(self) -> None:
        self._socket.close()


def test_sigterm_finishes_what_runs_and_exits_0(start_server, adapter_bytes, until):
    server = start_server()
    httpx2.put(f"{server.url}/v1/tasks/t/adapter", content=adapter_bytes()).raise_for_status()
    under_way = RequestUnderWay(server.url)
    server.terminate()

    def refused() -> bool:
        try:
            httpx2.get(f"{server.url}/health/ready")
        except httpx2.TransportError:
            return True
        return False

    until(refused)
    assert server.process.poll() is None
    answer = under_way.finish()
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"predictions":{"t"' in answer
    assert server.process.wait(30) == 0
    under_way.close()
    assert "Traceback" not in server.log_path.read_text()


@pytest.mark.parametrize("begun", ["the process", "the store"])
def test_sigterm_during_the_start_ends_it_with_0(tmp_path, tiny_encoder_folder, until, begun):
    state = tmp_path / "state"
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "labelmux_server", "--port", "0", "--no-demo"),
            *("--state-dir", str(state), "--encoder", str(tiny_encoder_folder)),
        ],
        stderr=subprocess.PIPE,
    ) as process:

        def handles_sigterm() -> bool:
            # As the first process of a container it would get no signal that it does not handle.
            status = Path(f"/proc/{process.pid}/status").read_text()
            caught = int(re.search(r"SigCgt:\s*([0-9a-f]+)", status).group(1), 16)
            return bool(caught >> (signal.SIGTERM - 1) & 1)

        until(handles_sigterm)
        if begun == "the store":
            until(lambda: state.exists())
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"Traceback" not in errors


def test_sigterm_ends_a_start_that_takes_long(tmp_path, tiny_encoder_folder):
    script = (
        "import sys, threading\n"
        "from labelmux_server.__main__ import main\n"
        "from labelmux_server.pins import Pins\n"
        "def load(*_):\n"
        "    print('preloading', flush=True)\n"
        "    threading.Event().wait()\n"
        "Pins.load = load\n"
        "main(sys.argv[1:])\n"
    )
    flags = ["--port", "0", "--no-demo", "--encoder", str(tiny_encoder_folder)]
    with subprocess.Popen(
        [sys.executable, "-c", script, *flags, "--state-dir", str(tmp_path / "state")],
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout.readline() == b"preloading\n"
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_during_the_delay_it_is_not_ready_but_serves(start_server, adapter_bytes, until):
    server = start_server("--shutdown-delay-s", "5")
    with httpx2.Client(base_url=server.url) as client:
        client.put("/v1/tasks/t/adapter", content=adapter_bytes()).raise_for_status()
        assert client.get("/health/ready").status_code == 200
        server.terminate()
        until(lambda: client.get("/health/ready").status_code == 503)
        assert client.get("/health/ready").json()["error"]["code"] == "draining"
        assert client.get("/health/live").status_code == 200
        answer = client.post("/v1/classify", json={"task": "t", "texts": "a good film"})
        assert answer.status_code == 200
        server.terminate()
    assert server.process.wait(30) == 0


def test_a_request_that_never_ends_is_cut_after_the_grace_period(start_server):
    server = start_server("--shutdown-grace-s", "1")
    under_way = RequestUnderWay(server.url)
    server.terminate()
    assert server.process.wait(20) == 0
    under_way.close()


def test_idle_connections_and_a_half_sent_upload_do_not_keep_it_from_ending(start_server):
    server = start_server("--shutdown-grace-s", "1")
    address = urlsplit(server.url)
    with (
        httpx2.Client(base_url=server.url) as idle,
        socket.create_connection((address.hostname, address.port), timeout=60) as half_sent,
    ):
        assert idle.get("/health/ready").status_code == 200
        half_sent.sendall(
            f"PUT /v1/tasks/t/adapter HTTP/1.1\r\nHost: {address.netloc}\r\n"
            "Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert half_sent.recv(1000).startswith(b"HTTP/1.1 100")
        half_sent.sendall(b"half of it")
        server.terminate()
        assert server.process.wait(20) == 0


def test_one_state_folder_serves_one_server(start_server, tmp_path, tiny_encoder_folder):
    start_server()
    second = subprocess.run(
        [
            *(sys.executable, "-m", "labelmux_server", "--port", "0", "--no-demo"),
            *("--state-dir", str(tmp_path / "state"), "--encoder", str(tiny_encoder_folder)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert second.returncode == 1
    assert "is in use by another server" in second.stderr.splitlines()[-1]


@pytest.fixture
def quiet_logs(monkeypatch):
    """Leave the test process's logging alone."""
    monkeypatch.setattr(logs, "configure", lambda *_, **__: None)


def test_what_keeps_it_from_starting_is_said_in_one_line(
    capsys, quiet_logs, tmp_path, tiny_encoder_folder
):
    common = ["--state-dir", str(tmp_path), "--no-demo", "--port", "0"]
    assert main([*common, "--max-batch-tokens", "0"]) == 2
    assert "max_batch_tokens" in capsys.readouterr().err
    assert main([*common, "--encoder", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
    small = ["--encoder", str(tiny_encoder_folder), "--max-batch-tokens", "32"]
    assert main([*common, *small]) == 1
    assert "64" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_before_the_encoder_loads(capsys, quiet_logs, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["--port", port, "--state-dir", str(tmp_path), "--encoder", "nowhere"]) == 1
    assert f"port {port}" in capsys.readouterr().err


def test_a_slip_in_a_name_of_the_environment_is_logged_at_start(
    caplog, quiet_logs, monkeypatch, tmp_path
):
    monkeypatch.setenv("LABELMUX_MAX_BATCH_TOKEN", "512")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["--port", port, "--state-dir", str(tmp_path), "--encoder", "nowhere"]) == 1
    (warning,) = (each for each in caplog.records if each.levelname == "WARNING")
    assert warning.getMessage() == (
        "LABELMUX_MAX_BATCH_TOKEN is set, but there is no such setting: "
        "the nearest is LABELMUX_MAX_BATCH_TOKENS"
    )


def test_a_port_that_is_taken_during_the_start_is_said(
    quiet_logs, monkeypatch, tmp_path, tiny_encoder_folder
):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))

        def taken_meanwhile(*args, **kwargs):
            taken.listen()
            return load_encoder(*args, **kwargs)

        monkeypatch.setattr(service_module, "load_encoder", taken_meanwhile)
        settings = Settings(
            port=taken.getsockname()[1],
            state_dir=tmp_path,
            no_demo=True,
            encoder=str(tiny_encoder_folder),
        )
        with pytest.raises(SettingsError, match=f"port {settings.port}"):
            serve_module.serve(settings, lambda serving: pytest.fail(f"hears nobody: {serving}"))


def test_answers_leave_at_once_and_do_not_wait_for_an_acknowledgement():
    async def accepted_option() -> int:
        found = asyncio.get_running_loop().create_future()

        async def meet(_, writer):
            accepted = writer.get_extra_info("socket")
            found.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with _bound(Settings(port=0)) as bound:
            async with await asyncio.start_server(meet, sock=bound):
                _, caller = await asyncio.open_connection(*bound.getsockname())
                option = await asyncio.wait_for(found, 10)
                caller.close()
                await caller.wait_closed()
        return option

    assert uvloop.run(accepted_option()) == 1
