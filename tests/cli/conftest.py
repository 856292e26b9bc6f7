"""A small server of the wire's words, in a thread, and a way to run the command."""

from __future__ import annotations

import hashlib
import io
import json
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest

AT = "2026-01-02T03:04:05Z"


class Refused(Exception):
    """What the fake server answers instead."""

    def __init__(self, status: int, code: str, message: str = "", **fields: Any) -> None:
        super().__init__(status, code)
        self.message = message
        self.fields = fields
        self.status = status
        self.code = code


@dataclass
class Task:
    """One task of the fake server: it gives the first label to every text that has a "!"."""

    labels: list[str] = field(default_factory=lambda: ["spam", "ham"])
    pair: bool = False
    files: list[bytes] = field(default_factory=list)
    active: int = 1
    history: list[tuple[str, int]] = field(default_factory=list)
    kind: str = "single_label"
    #: What it says of every text, instead.
    answer: dict[str, Any] | None = None
    #: Its shadow and its canary, as they were asked for, and its gate.
    trials: dict[str, dict[str, Any]] = field(default_factory=dict)
    gate: list[dict[str, Any]] = field(default_factory=list)
    #: What a gated version scores; the active one scores 0.9.
    score: float = 0.9

    def digest(self, version: int) -> str:
        return f"sha256:{hashlib.sha256(self.files[version - 1]).hexdigest()}"


@dataclass
class FakeServer:
    """What the tests look at."""

    url: str = ""
    tasks: dict[str, Task] = field(default_factory=dict)
    key: str | None = None
    max_texts: int = 256
    #: Longer texts are refused.
    max_text_chars: int = 1000
    #: Codes of errors by the text of their line, in streams.
    line_errors: dict[str, str] = field(default_factory=dict)
    #: A stream with a line of this text gets a blank line, and then nothing until ``released``.
    stalling_text: str | None = None
    stalled: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    released: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, Any]] = field(default_factory=list)

    def task(self, name: str) -> Task:
        if name not in self.tasks:
            raise Refused(404, "task_not_found")
        return self.tasks[name]

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, Any]:
        if self.key and method != "GET" and headers.get("Authorization") != f"Bearer {self.key}":
            raise Refused(401, "unauthorized")
        if path == "/v1/classify":
            return 200, self._classify(json.loads(body))
        if path.startswith("/v1/classify/stream?"):
            return 200, self._stream(parse_qs(urlsplit(path).query), body)
        if path == "/v1/tasks":
            return 200, {"tasks": [self._info(name) for name in self.tasks]}
        found = re.fullmatch(r"/v1/tasks/([^/?]+)(/[^?]*)?(?:\?(?:version|activate)=(\w+))?", path)
        assert found, path
        name, tail, asked = found.groups()
        if tail in ("/shadow", "/canary", "/trials", "/gate"):
            return self._release(method, name, tail[1:], body)
        return self._task_route(method, name, tail or "", asked, headers, body)

    def _task_route(
        self, method: str, name: str, tail: str, version: str | None, headers: Any, body: bytes
    ) -> tuple[int, Any]:
        if (method, tail) == ("PUT", "/adapter"):
            return self._push(name, headers, body, version or "now")
        task = self.task(name)
        if (method, tail) == ("GET", ""):
            return 200, self._info(name)
        if (method, tail) == ("GET", "/adapter"):
            return 200, task.files[int(version or task.active) - 1]
        if (method, tail) == ("GET", "/versions"):
            return 200, self._versions(name)
        if (method, tail) == ("GET", "/history"):
            return 200, {"task": name, "history": self._history(task)}
        if (method, tail) == ("DELETE", ""):
            del self.tasks[name]
            return 204, None
        if method == "DELETE":
            raise Refused(409, "version_active")
        if tail == "/activate":
            task.active = json.loads(body)["version"]
        elif task.active == 1:
            raise Refused(409, "no_previous_version")
        else:
            task.active -= 1
        return 200, {"task": name, "version": task.active, "digest": task.digest(task.active)}

    def _release(self, method: str, name: str, what: str, body: bytes) -> tuple[int, Any]:
        task = self.task(name)
        if what == "gate":
            task.gate = [json.loads(line) for line in body.splitlines()]
            about = {"task": name, "task_kind": task.kind, "pair": task.pair, "stored_by": None}
            facts = {"rows": len(task.gate), "digest": "sha256:0", "size_bytes": len(body)}
            return 200, about | facts | {"stored_at": AT}
        if what == "trials":
            trials = {kind: self._trial(task, kind) for kind in ("shadow", "canary")}
            return 200, {"task": name, "active": task.active, **trials}
        if method == "POST":
            task.trials[what] = json.loads(body)
            return 200, self._trial(task, what)
        if what not in task.trials:
            raise Refused(404, "trial_not_found")
        del task.trials[what]
        return 204, None

    def _trial(self, task: Task, kind: str) -> dict[str, Any] | None:
        if kind not in task.trials:
            return None
        asked = task.trials[kind]
        common = {"digest": task.digest(asked["version"]), "since": AT, "counted_since": AT}
        counts: dict[str, Any] = {"answered": 5, "active_answered": 95, "fell_back": 0}
        if kind == "shadow":
            counts = {"compared": 100, "agreed": 97, "agreement": 0.97, "score_difference": 0.01}
            counts |= {"dropped": 1, "unloaded": 2}
        return {**asked, **common, **counts, "started_by": None}

    def _push(self, name: str, headers: Any, body: bytes, activate: str) -> tuple[int, Any]:
        assert headers["X-Content-SHA256"] == hashlib.sha256(body).hexdigest()
        if headers.get("If-None-Match") == "*" and name in self.tasks:
            raise Refused(412, "task_exists")
        if not body.startswith(b"adapter"):
            raise Refused(400, "not_safetensors")
        task = self.tasks.setdefault(name, Task())
        known = body in task.files
        if not known:
            task.files.append(body)
        number, gate = task.files.index(body) + 1, None
        if activate == "gated" and task.gate:
            gate = {"measure": "accuracy", "rows": len(task.gate), "score": task.score}
            gate |= {"active_version": task.active, "active_score": 0.9}
            if task.score < 0.9:
                raise Refused(409, "gate_failed")
        if activate != "later":
            task.active = number
        task.history.append(("stage" if activate == "later" else "upload", number))
        answer = {"task": name, "version": number, "digest": task.digest(number)}
        return 200 if known else 201, answer | {"active": number == task.active, "gate": gate}

    def _info(self, name: str) -> dict[str, Any]:
        task = self.tasks[name]
        return {
            "task": name,
            "method": "ytuning",
            "task_kind": task.kind,
            "labels": task.labels,
            "pair": task.pair,
            "max_tokens": 64,
            "version": task.active,
            "digest": task.digest(task.active),
            "encoder_fingerprint": "sha256:0",
            "metrics": {"accuracy": 0.9},
            "parameters": 10,
            "parameter_share": 0.01,
            "size_bytes": 2048,
            "created_at": AT,
            "card": {},
        }

    def _versions(self, name: str) -> dict[str, Any]:
        task = self.tasks[name]
        return {
            "task": name,
            "active": task.active,
            "versions": [
                {
                    "version": number,
                    "digest": task.digest(number),
                    "size_bytes": len(data),
                    "created_at": AT,
                    "active": number == task.active,
                    "metrics": {},
                }
                for number, data in enumerate(task.files, start=1)
            ],
            "history": self._history(task),
        }

    def _history(self, task: Task) -> list[dict[str, Any]]:
        return [
            {
                "at": AT,
                "action": action,
                "version": number,
                "digest": task.digest(number),
                "by": "ci",
            }
            for action, number in task.history
        ]

    def _classify(self, body: dict[str, Any]) -> dict[str, Any]:
        texts = body.get("texts") or [" | ".join(pair) for pair in body["pairs"]]
        if len(texts) > self.max_texts:
            raise Refused(413, "too_many_texts")
        for index, text in enumerate(texts):
            if len(text) > self.max_text_chars:
                raise Refused(413, "text_too_long", f"text {index} has too much", index=index)
        names = [body["task"]] if "task" in body else body["tasks"]
        if names == ["*"]:
            names = list(self.tasks)
        results = [
            {"predictions": {name: self._predict(name, text, body) for name in names}}
            for text in texts
        ]
        return {"results": results, "encoder_rows": len(texts), "tokens": 5 * len(texts)}

    def _stream(self, asked: dict[str, list[str]], body: bytes) -> bytes:
        answers = []
        for number, line in enumerate(body.splitlines(), start=1):
            row = json.loads(line)
            wanted: dict[str, Any] = {"tasks": asked["task"]}
            if "top_k" in asked:
                wanted["top_k"] = int(asked["top_k"][0])
            if "pair" in row:
                wanted["pairs"] = []
            text = " | ".join(row.values())
            answer: dict[str, Any] = {"line": number}
            if text in self.line_errors:
                answer["error"] = {"code": self.line_errors[text], "message": "no"}
            else:
                answer["predictions"] = {
                    name: self._predict(name, text, wanted) for name in asked["task"]
                }
            answers.append(json.dumps(answer))
        return "\n".join(answers).encode()

    def _predict(self, name: str, text: str, body: dict[str, Any]) -> dict[str, Any]:
        base, _, version = name.partition("@")
        try:
            task = self.task(base)
            if task.pair != ("pairs" in body):
                raise Refused(422, "task_needs_pairs" if task.pair else "task_takes_single_texts")
        except Refused as refused:
            if "task" in body:
                raise
            return {"error": {"code": refused.code, "message": f"{name}: {refused.code}"}}
        labels = task.labels if "!" in text else task.labels[::-1]
        scores = [0.75, *[0.25 / (len(labels) - 1)] * (len(labels) - 1)]
        number = int(version or task.active)
        if task.answer is not None:
            return {**task.answer, "task": base, "version": number, "digest": task.digest(number)}
        return {
            "task": base,
            "version": number,
            "digest": task.digest(number),
            "task_kind": "single_label",
            "abstained": False,
            "windows": 1,
            "labels": [
                {"label": label, "score": score}
                for label, score in zip(labels, scores, strict=True)
            ][: body.get("top_k")],
            "truncated": len(text) > 200,
            "calibrated": not body.get("raw_scores"),
        }


def handler_for(server: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.requests.append((self.command, self.path, body))
            stalling = server.stalling_text
            if stalling is not None and json.dumps({"text": stalling}).encode() in body:
                self.stall()
                return
            try:
                status, answer = server.answer(self.command, self.path, self.headers, body)
            except Refused as refused:
                status = refused.status
                message = refused.message or f"refused {self.path}"
                answer = {"error": {"code": refused.code, "message": message} | refused.fields}
                answer["error"]["request_id"] = "r-1"
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("X-Request-Id", "r-1")
            self.send_header("Content-Length", "0" if status == 204 else str(len(content)))
            self.end_headers()
            if status != 204:
                self.wfile.write(content)

        def stall(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"\n")
            server.stalled.release()
            server.released.wait()
            self.close_connection = True  # its caller may have gone

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A fake server with one task, ``spam``, at version 1."""
    fake = FakeServer(tasks={"spam": Task(files=[b"adapter one"], history=[("upload", 1)])})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler_for(fake))
    http.daemon_threads = True
    fake.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    fake.released.set()
    http.shutdown()
    thread.join()
    http.server_close()


class Done(NamedTuple):
    """How a run of the command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def labelmux(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Done]:
    """Run the command in this process; ``url`` and ``stdin`` by keyword."""
    from labelmux_cli.main import run

    for name in ("LABELMUX_URL", "LABELMUX_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("COLUMNS", "160")

    def call(*args: object, url: str | None = None, stdin: str | bytes = "") -> Done:
        data = stdin if isinstance(stdin, bytes) else stdin.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        arguments = [str(arg) for arg in args]
        if url is not None:
            arguments += ["--url", url]
        code = run(arguments)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


@pytest.fixture
def interruptible():
    """A background job of a shell starts with SIGINT ignored, and its children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def adapter_file(tmp_path):
    """A file that the fake server takes for an adapter."""
    path = tmp_path / "tone.safetensors"
    path.write_bytes(b"adapter tone")
    return path


@pytest.fixture
def adapter_bytes() -> Callable[[Any], bytes]:
    """The file that an adapter is."""

    def write(adapter: Any) -> bytes:
        from labelmux_adapters.files import write_adapter

        return write_adapter(adapter.manifest, adapter.tensors)

    return write
