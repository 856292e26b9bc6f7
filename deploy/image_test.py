"""Build the image and run it as production would: read-only, without rights, killed, cut off.

``make image-test``. Needs Docker, or buildah and podman, and no package. With ``--if-possible``, as
CI calls it, it says so and passes where neither works, or where the base image is not at hand.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import secrets
import signal
import socket
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from container_engine import READY_LIMIT_S, ROOT, Engine, ImpossibleError

BASE = "docker.io/library/python:3.11-slim-bookworm"
DEMO = ROOT / "server/labelmux_server/demo/sentiment.safetensors"
KEY = "a-key-for-this-test-alone"
CI_BUILD_LIMIT_S = 600


class Server:
    """One container after another on one volume."""

    def __init__(self, engine: Engine, image: str) -> None:
        self._engine, self._image = engine, image
        self.name = f"labelmux-test-{secrets.token_hex(4)}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]

    def start(self) -> float:
        """Seconds until it was ready."""
        started = time.monotonic()
        self.begin()
        while time.monotonic() < started + READY_LIMIT_S:
            with contextlib.suppress(OSError):
                if self.ask("GET", "/health/ready")[0] == 200:
                    return time.monotonic() - started
            time.sleep(0.1)
        raise AssertionError(f"not ready in time: {self._engine.logs(self.name)}")

    def begin(self) -> None:
        """Start, and do not wait."""
        self._engine.start(
            self.name,
            self._image,
            *("--network", "host", "--volume", f"{self.name}:/state"),
            *("--env", "LABELMUX_HOST=127.0.0.1", "--env", f"LABELMUX_PORT={self._port}"),
            # What auto finds faster may differ from start to start, and its bits with it.
            *("--env", f"LABELMUX_ADMIN_KEY={KEY}", "--env", "LABELMUX_DTYPE=float32"),
            *("--env", "LABELMUX_SHUTDOWN_DELAY_S=3"),
        )

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and answer; ``body`` is bytes of a file, or becomes JSON."""
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {KEY}", "content-type": kind}
        url = f"http://127.0.0.1:{self._port}{path}"
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with _opener().open(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def classify(self, task: str) -> Any:
        status, answer = self.ask("POST", "/v1/classify", {"task": task, "texts": "A lovely film."})
        assert status == 200, answer
        return answer["results"][0]["predictions"][task]

    def stop(self) -> None:
        """As an orchestrator does; it must drain and end well."""
        self._engine.call("stop", "-t", "30", self.name)
        code = self._engine.call("inspect", "--format", "{{.State.ExitCode}}", self.name)
        assert code == "0", f"it ended with {code}: {self._engine.logs(self.name)}"
        self._engine.call("rm", self.name)

    def kill(self) -> None:
        self._engine.call("kill", "-s", "KILL", self.name)
        self._engine.call("rm", "-f", self.name)

    def remove(self) -> None:
        for what in (["rm", "-f", self.name], ["volume", "rm", "-f", self.name]):
            with contextlib.suppress(AssertionError):
                self._engine.call(*what)


def numbered(number: int) -> bytes:
    """The demo adapter with a number in its card: a file of its own that is as good."""
    data = DEMO.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    manifest = json.loads(header["__metadata__"]["labelmux.manifest"])
    manifest["card"] = {"number": str(number)}
    header["__metadata__"]["labelmux.manifest"] = json.dumps(manifest)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def check_contract(engine: Engine, image: str) -> None:
    """What the image says of itself."""
    (found,) = json.loads(engine.call("image", "inspect", image))
    config = found["Config"]
    assert config["User"] not in ("", "0", "root"), config["User"]
    assert config.get("StopSignal", "SIGTERM") == "SIGTERM"
    assert list(config["Volumes"]) == ["/state"]
    labels = config["Labels"]
    for name in ("title", "version", "licenses", "description"):
        assert labels.get(f"org.opencontainers.image.{name}"), name
    health = config.get("Healthcheck") or found.get("Healthcheck")
    assert "/health/ready" in json.dumps(health), "no health check"
    say(f"non-root, one volume, health check, labels; {found['Size'] / 1e6:.0f} MB")


def check_restart(server: Server, engine: Engine) -> None:
    """Classify, upload, restart: it is still there."""
    say(f"ready {server.start():.1f} s after a first start, read-only and without rights")
    assert server.classify("sentiment")["labels"]
    status, answer = server.ask("PUT", "/v1/tasks/mine/adapter", numbered(0))
    assert status == 201, answer
    before = server.classify("mine")
    engine.wait_healthy(server.name)
    (root,) = [
        line.split()[3].split(",")
        for line in engine.call("exec", server.name, "cat", "/proc/mounts").splitlines()
        if line.split()[1] == "/"
    ]
    assert "ro" in root, root
    server.stop()
    say(f"stopped by SIGTERM with exit code 0; ready again after {server.start():.1f} s")
    assert server.classify("mine") == before


def check_drain(server: Server) -> None:
    """SIGTERM under load: what was sent before it said that it is not ready is answered."""
    answered = [0]
    failed: list[Exception] = []
    draining = threading.Event()

    def classify() -> None:
        while not draining.is_set():
            try:
                server.classify("mine")
                answered[0] += 1
            except (OSError, http.client.HTTPException, AssertionError) as error:
                failed.append(error)

    def watch() -> None:
        """As a load balancer looks; to it, no answer is as good as a 503."""
        ready = True
        while ready:
            try:
                ready = server.ask("GET", "/health/ready")[0] == 200
            except OSError:
                ready = False
        draining.set()

    threads = [threading.Thread(target=work) for work in (watch, *[classify] * 4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + READY_LIMIT_S
    while answered[0] < 50:
        assert time.monotonic() < deadline, failed
        time.sleep(0.01)
    server.stop()
    for thread in threads:
        thread.join()
    assert not failed, failed
    say(f"drained under load with exit code 0: {answered[0]} requests, all answered")


def check_early_stop(server: Server, engine: Engine) -> None:
    """SIGTERM while it starts: a container's first process gets none that it does not handle."""
    server.begin()
    deadline = time.monotonic() + READY_LIMIT_S
    while not handles_sigterm(engine.call("exec", server.name, "cat", "/proc/1/status")):
        assert time.monotonic() < deadline, engine.logs(server.name)
    server.stop()
    say("stopped by SIGTERM during the start, with exit code 0")


def handles_sigterm(status: str) -> bool:
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def check_kill(server: Server) -> None:
    """SIGKILL while it answers and takes uploads: what it acknowledged is there."""
    server.start()
    acknowledged: list[str] = []
    answered = [0]
    over = threading.Event()

    def until_gone(work: Callable[[], None]) -> None:
        while not over.is_set():
            try:
                work()
            except (OSError, http.client.HTTPException, json.JSONDecodeError):
                return

    def upload() -> None:
        status, answer = server.ask(
            "PUT", "/v1/tasks/mine/adapter", numbered(len(acknowledged) + 1)
        )
        assert status == 201, answer
        acknowledged.append(answer["digest"])

    def classify() -> None:
        server.classify("mine")
        answered[0] += 1

    threads = [
        threading.Thread(target=until_gone, args=(each,)) for each in (upload, *[classify] * 4)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + READY_LIMIT_S
    while len(acknowledged) < 5 or answered[0] < 20:
        assert time.monotonic() < deadline, (len(acknowledged), answered)
        time.sleep(0.01)
    server.kill()
    over.set()
    for thread in threads:
        thread.join()
    server.start()
    _, listed = server.ask("GET", "/v1/tasks/mine/versions")
    missing = set(acknowledged) - {version["digest"] for version in listed["versions"]}
    assert not missing, missing
    assert server.classify("mine")["digest"] in (acknowledged[-1], listed["versions"][-1]["digest"])
    say(f"killed after {len(acknowledged)} uploads and {answered[0]} answers: nothing was lost")
    server.stop()


def check_no_network(engine: Engine, image: str) -> None:
    """It starts and answers where there is no network at all."""
    name = f"labelmux-test-{secrets.token_hex(4)}"
    body = json.dumps({"task": "sentiment", "texts": "A lovely film."})
    code = f"""
import urllib.request as u
headers = {{"authorization": "Bearer {KEY}", "content-type": "application/json"}}
request = u.Request("http://127.0.0.1:8000/v1/classify", {body.encode()!r}, headers)
print(u.urlopen(request, timeout=30).read().decode())
"""
    flags = ("--network", "none", "--volume", f"{name}:/state")
    try:
        engine.start(name, image, *flags, "--env", f"LABELMUX_ADMIN_KEY={KEY}")
        engine.wait_healthy(name)
        assert "sentiment" in engine.call("exec", name, "python3", "-c", code)
        say("starts and answers without a network")
    finally:
        for what in (["rm", "-f", name], ["volume", "rm", "-f", name]):
            with contextlib.suppress(AssertionError):
                engine.call(*what)


@contextlib.contextmanager
def served(engine: Engine, image: str) -> Iterator[Server]:
    server = Server(engine, image)
    try:
        yield server
    finally:
        server.remove()


def say(text: str) -> None:
    print(f"image-test: {text}", flush=True)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", help="test this image; without, one is built")
    parser.add_argument("--if-possible", action="store_true", help="pass where it cannot be done")
    wanted = parser.parse_args()
    image = wanted.image or "labelmux:test"
    try:
        engine = Engine()
        if wanted.if_possible and not (wanted.image or engine.has(BASE)):
            raise ImpossibleError(f"the base image {BASE} is not here")
        if wanted.image is None:
            engine.build(image, CI_BUILD_LIMIT_S if wanted.if_possible else None)
    except ImpossibleError as error:
        print(f"image-test: NOT TESTED: {error}", file=sys.stderr)
        return 0 if wanted.if_possible else 1
    check_contract(engine, image)
    with served(engine, image) as server:
        check_restart(server, engine)
        check_drain(server)
        check_early_stop(server, engine)
        check_kill(server)
    check_no_network(engine, image)
    say("passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
