"""Spans of requests: what they hold, whose trace they are part of, and where they go."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from labelmux_server.app import create_app
from labelmux_server.errors import SettingsError
from labelmux_server.settings import Settings
from labelmux_server.tracing import Tracing

SECRET = "xylophonist"
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = ["tokenise", "queue", "encode", "readout"]


@pytest.fixture
def traced(tmp_path, tiny_encoder, adapter_bytes):
    """Run ``calls(client)`` against an app with a task ``t``; the spans that came of them."""

    def run(calls, share: float = 1.0):
        async def main():
            exporter = InMemorySpanExporter()
            tracing = Tracing(SimpleSpanProcessor(exporter), share)
            settings = Settings(state_dir=tmp_path / "state", no_demo=True)
            app = create_app(settings, tiny_encoder, tracing)
            transport = httpx2.ASGITransport(app)
            async with (
                app.router.lifespan_context(app),
                httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
            ):
                put = await client.put("/v1/tasks/t/adapter", content=adapter_bytes())
                assert put.status_code == 201
                exporter.clear()
                await calls(client, app.state.service)
                return exporter.get_finished_spans()

        return asyncio.run(main())

    return run


async def ask(client, *headers: tuple[str, str], **body):
    body = {"task": "t", "texts": f"the {SECRET}"} | body
    return await client.post("/v1/classify", json=body, headers=dict(headers))


def test_a_calls_stages_lie_beneath_its_span_one_after_another(traced):
    async def calls(client, service):
        await ask(client, ("x-request-id", "r1"), texts=["one", "two"])

    *stages, request = traced(calls)
    assert [span.name for span in stages] == STAGES
    assert request.name == "POST /v1/classify"
    assert dict(request.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/classify",
        "http.response.status_code": 200,
        "labelmux.request_id": "r1",
        "labelmux.texts": 2,
        "labelmux.tasks": 1,
        "labelmux.tokens": request.attributes["labelmux.tokens"],
    }
    for span in stages:
        assert span.parent.span_id == request.context.span_id
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time
    for before, after in itertools.pairwise(stages):
        assert before.end_time <= after.start_time


def test_a_request_is_part_of_its_callers_trace(traced):
    async def calls(client, service):
        await ask(client, ("traceparent", f"00-{TRACE}-{CALLER}-01"))
        await ask(client, ("traceparent", f"00-{TRACE}-{CALLER}-00"))
        await ask(client, ("traceparent", "nonsense"))

    spans = traced(calls)
    first, second = [span for span in spans if span.name == "POST /v1/classify"]
    assert f"{first.context.trace_id:032x}" == TRACE
    assert f"{first.parent.span_id:016x}" == CALLER
    assert second.parent is None
    assert len(spans) == 2 * (1 + len(STAGES))


def test_the_share_is_of_requests_without_a_trace(traced):
    async def calls(client, service):
        await ask(client)
        await ask(client, ("traceparent", f"00-{TRACE}-{CALLER}-01"))

    spans = traced(calls, share=0.0)
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE}


def test_errors_are_marked_and_no_span_holds_a_text(traced):
    async def calls(client, service):
        await ask(client)
        await ask(client, task=SECRET)
        await client.get(f"/v1/tasks/{SECRET}")

        async def fails(texts, want):
            raise ValueError(f"cannot read {texts!r}")

        service.engine._tokenizers.encode = fails
        assert (await ask(client)).status_code == 500

    spans = traced(calls)
    assert [span.status.is_ok for span in spans if "http.route" in span.attributes] == [
        *(True, True, True),
        False,
    ]
    assert all(SECRET not in span.to_json() for span in spans)


def test_requests_at_once_keep_their_stages_apart(traced):
    async def calls(client, service):
        await asyncio.gather(*(ask(client, texts=["word " * n]) for n in range(1, 9)))

    spans = traced(calls)
    requests = [span for span in spans if span.name == "POST /v1/classify"]
    assert len(requests) == 8
    for request in requests:
        beneath = [
            s.name for s in spans if s.parent and s.parent.span_id == request.context.span_id
        ]
        assert beneath == STAGES


def test_without_the_setting_nothing_of_it_is_loaded(tmp_path):
    code = (
        "import sys\n"
        "from labelmux_server.app import create_app\n"
        "from labelmux_server.settings import Settings\n"
        "create_app(Settings())\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_without_opentelemetry_the_setting_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match=r"labelmux\[otel\]"):
        create_app(Settings(otlp_endpoint="http://127.0.0.1:4318"))


@pytest.fixture
def collector():
    """A collector of OTLP over HTTP: its address, and the spans that it was sent."""
    spans: list = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            sent = ExportTraceServiceRequest.FromString(body)
            assert self.path == "/v1/traces"
            for resource in sent.resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()


@pytest.mark.slow
def test_a_server_sends_its_spans_to_the_collector_before_it_ends(
    start_server, adapter_bytes, collector
):
    address, spans = collector
    server = start_server("--otlp-endpoint", address, "--log-format", "json")
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        client.put("/v1/tasks/t/adapter", content=adapter_bytes()).raise_for_status()
        header = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
        client.post("/v1/classify", json={"task": "t", "texts": "one"}, headers=header)
    server.terminate()
    assert server.process.wait(30) == 0
    found = [span.name for span in spans if span.trace_id.hex() == TRACE]
    assert sorted(found) == sorted([*STAGES, "POST /v1/classify"])
    assert f'"trace_id":"{TRACE}"' in server.log_path.read_text()


@pytest.mark.slow
def test_a_collector_that_is_not_there_keeps_nothing_from_being_answered(
    start_server, adapter_bytes
):
    server = start_server("--otlp-endpoint", "http://127.0.0.1:9")
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        client.put("/v1/tasks/t/adapter", content=adapter_bytes()).raise_for_status()
        answer = client.post("/v1/classify", json={"task": "t", "texts": "one"})
        assert answer.status_code == 200
    server.terminate()
    assert server.process.wait(30) == 0
