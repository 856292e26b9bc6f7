"""What holds for every route: ids, error bodies, the contract, the page, health, metrics."""

from __future__ import annotations

import gzip
import json
import logging
import re
from pathlib import Path

import httpx2
import pytest

from labelmux_server import contract
from labelmux_server.docs_page import docs_page
from labelmux_server.edge import Edge
from labelmux_server.errors import CallerGoneError
from labelmux_server.keys import Rights, opened_keys
from labelmux_server.schemas import ErrorBody, Health, Info
from labelmux_server.statuses import TABLE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def openapi() -> dict:
    return contract.openapi()


@pytest.mark.parametrize("sent", ["abc", "A-1_b.c", "x" * 128])
def test_a_callers_request_id_is_given_back(serving, sent):
    async def scenario(client, service):
        answer = await client.get("/v1/tasks/absent", headers={"x-request-id": sent})
        assert answer.headers["x-request-id"] == sent
        assert answer.json()["error"]["request_id"] == sent

    serving(scenario)


@pytest.mark.parametrize("sent", ["", "a b", "a;b", "x" * 129, "<script>"])
def test_an_odd_request_id_is_replaced(serving, sent):
    async def scenario(client, service):
        answer = await client.get("/v1/tasks", headers={"x-request-id": sent})
        assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["x-request-id"])

    serving(scenario)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/absent", 404, "not_found"),
        ("GET", "/v1/tasks/", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("POST", "/v1/tasks", 405, "method_not_allowed"),
        ("GET", "/v1/classify", 405, "method_not_allowed"),
        ("DELETE", "/v1/tasks/t/versions/x", 422, "invalid_request"),
        ("DELETE", "/v1/tasks/t/versions/0", 422, "invalid_request"),
    ],
)
def test_the_frameworks_own_errors_have_the_one_body(serving, method, path, status, code):
    async def scenario(client, service):
        answer = await client.request(method, path)
        body = answer.json()
        ErrorBody.model_validate(body)
        assert (answer.status_code, body["error"]["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/json"
        if status == 405:
            assert answer.headers["allow"]

    serving(scenario)


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/v1/classify", "application/json"),
        ("POST", "/v1/classify/stream?task=t", "application/x-ndjson"),
        ("PUT", "/v1/tasks/t/adapter", "application/octet-stream"),
        ("PUT", "/v1/tasks/t/gate", "application/x-ndjson"),
        ("POST", "/tei/t/predict", "application/json"),
        ("POST", "/v2/models/t/infer", "application/json"),
        ("POST", "/v2/repository/index", "application/json"),
    ],
)
def test_a_compressed_body_is_refused_as_that(serving, adapter_bytes, method, path, kind):
    """Read as it is, it would be broken JSON or no adapter file, and the caller none the wiser."""
    headers = {"content-type": kind, "content-encoding": "gzip"}

    async def scenario(client, service):
        upload = {"content-type": "application/octet-stream", "content-encoding": "identity"}
        await client.put("/v1/tasks/t/adapter", content=adapter_bytes(), headers=upload)
        answer = await client.request(method, path, content=gzip.compress(b"{}"), headers=headers)
        assert answer.status_code == 415
        assert "unsupported_media_type" in answer.text
        assert "'gzip'; send the body as identity" in answer.text

    serving(scenario)


def test_a_route_called_directly_errs_as_one_called_through_the_framework(serving, caplog):
    """Classify is called from the edge; the same route through the framework is the yardstick."""

    async def scenario(client, service):
        await client.get("/health/live")
        edge = client._transport.app.middleware_stack
        while not isinstance(edge, Edge):
            edge = edge.app
        found = []
        for direct in (edge._direct, {}):
            edge._direct = direct
            for content, kind in ((b"{", "application/json"), (b"{}", "text/plain"), (b"", "")):
                headers = {"content-type": kind, "x-request-id": "same"}
                answer = await client.post("/v1/classify", content=content, headers=headers)
                found.append((answer.status_code, answer.json(), dict(answer.headers)))
        metrics = (await client.get("/metrics")).text
        assert 'labelmux_requests_total{route="/v1/classify",status="400"} 2.0' in metrics
        assert 'labelmux_rejected_total{code="invalid_json"} 2.0' in metrics
        return found

    found = serving(scenario)
    assert found[:3] == found[3:]


def test_a_fault_in_a_route_is_answered_with_the_one_body(serving, monkeypatch, caplog):
    async def scenario(client, service):
        def fail(*_):
            raise KeyError("the words of a user")

        monkeypatch.setattr(service.registry, "active", fail)
        with caplog.at_level(logging.ERROR):
            answer = await client.get("/v1/tasks")
        assert answer.status_code == 500
        assert set(answer.json()["error"]) == {"code", "message", "request_id"}
        assert "words" not in answer.text
        assert answer.headers["x-request-id"] in caplog.text
        metrics = (await client.get("/metrics")).text
        assert 'labelmux_requests_total{route="/v1/tasks",status="500"} 1.0' in metrics

    serving(scenario)


def test_the_log_says_whose_key_asked_also_where_it_was_refused(serving, caplog):
    async def scenario(client, service):
        with opened_keys(service.settings.state_dir) as keys:
            key = keys.create("shop", Rights(frozenset({"classify"})))
        for path, sent in (("/v1/info", key), ("/metrics", key), ("/v1/info", "wrong")):
            await client.get(path, headers={"authorization": f"Bearer {sent}"})
        assert key not in caplog.text

    with caplog.at_level(logging.INFO, logger="labelmux_server.edge"):
        serving(scenario)
    found = [(record.route, record.status, record.key) for record in caplog.records]
    assert found == [("/v1/info", 200, "shop"), ("/metrics", 403, "shop"), ("/v1/info", 401, None)]


def test_info_says_what_runs(serving, tiny_encoder):
    async def scenario(client, service):
        headers = {"authorization": "Bearer k"}
        body = (await client.get("/v1/info", headers=headers)).json()
        Info.model_validate(body)
        assert body["encoder"]["fingerprint"] == tiny_encoder.encoder.fingerprint
        assert body["encoder"]["max_tokens"] == 64
        assert (body["access"], body["key"]["name"]) == ("key", "(admin-key)")
        assert body["limits"]["max_client_batch_size"] == 7

    serving(scenario, max_client_batch_size=7, admin_key="k")


def test_health_says_ok_then_draining(serving):
    async def scenario(client, service):
        for path in ("/health/live", "/health/ready"):
            answer = await client.get(path)
            assert answer.status_code == 200
            Health.model_validate(answer.json())
        service.draining = True
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "draining")
        assert (await client.get("/health/live")).status_code == 200

    serving(scenario)


PROBES = ("/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")


@pytest.mark.parametrize("path", PROBES)
def test_a_probe_may_ask_by_head(serving, openapi, path):
    async def scenario(client, service):
        for draining in (False, True):
            service.draining = draining
            asked, looked = await client.get(path), await client.head(path)
            assert looked.status_code == asked.status_code
            assert looked.headers["content-length"] == asked.headers["content-length"]
        metrics = (await client.get("/metrics")).text
        assert f'route="{path}"' in metrics
        assert 'route="unmatched"' not in metrics

    serving(scenario)
    assert set(openapi["paths"][path]) == {"get"}


@pytest.mark.slow
def test_the_answer_to_head_has_no_body(start_server):
    with httpx2.Client(base_url=start_server().url) as client:
        for path in PROBES:
            # On the same connection, where a body that nobody expects would be the next answer.
            looked, asked = client.head(path), client.get(path)
            assert (looked.status_code, looked.content) == (200, b"")
            assert asked.status_code == 200
            assert looked.headers["content-length"] == asked.headers["content-length"]


def test_metrics_count_requests_rows_and_tokens(serving, adapter_bytes):
    async def scenario(client, service):
        await client.put("/v1/tasks/t/adapter", content=adapter_bytes())
        body = {"task": "t", "texts": ["a", "the train to the coast"]}
        tokens = (await client.post("/v1/classify", json=body)).json()["tokens"]
        await client.post("/v1/classify", json={"task": "absent", "texts": "a"})
        lines = (await client.get("/metrics")).text.splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))

        def value(name: str) -> float:
            return float(values[name])

        assert value('labelmux_requests_total{route="/v1/classify",status="200"}') == 1
        assert value('labelmux_requests_total{route="/v1/classify",status="404"}') == 1
        assert value('labelmux_rejected_total{code="task_not_found"}') == 1
        assert value("labelmux_rows_total") == 2
        assert value("labelmux_encoder_tokens_total") == tokens
        assert value("labelmux_queue_wait_seconds_count") == 2
        assert value("labelmux_queue_tokens") == 0
        assert value("labelmux_tasks") == 1
        assert value('labelmux_task_changes_total{action="upload"}') == 1

    serving(scenario)


def test_unknown_paths_do_not_grow_the_metrics(serving):
    async def scenario(client, service):
        for number in range(5):
            await client.get(f"/nothing/{number}")
        metrics = (await client.get("/metrics")).text
        assert 'route="unmatched",status="404"} 5.0' in metrics

    serving(scenario)


def test_the_contract_documents_every_code_that_a_route_may_answer(openapi):
    described = json.dumps(openapi["paths"])
    outside = {"not_found", "method_not_allowed", "caller_gone", "head_too_large"}
    for answer in TABLE.values():
        if answer.code not in outside:
            assert f"`{answer.code}`" in described, answer.code
    assert TABLE[CallerGoneError].status == 499
    assert '"499"' not in described


def error_body(path: str) -> str:
    if path.startswith("/v2"):
        return "V2Error"
    return "TeiError" if path.startswith(("/predict", "/info", "/tei/")) else "ErrorBody"


def test_every_error_in_the_contract_has_the_body_of_its_clients(openapi):
    for path, operations in openapi["paths"].items():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema == {"$ref": f"#/components/schemas/{error_body(path)}"}


def test_statuses_in_the_contract_are_those_of_the_table(openapi):
    statuses = {answer.code: answer.status for answer in TABLE.values()}
    for operations in openapi["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    for code in re.findall(r"`(\w+)`", answer["description"]):
                        assert statuses[code] == int(status)


def test_bodies_that_routes_read_by_themselves_are_in_the_contract(openapi):
    paths = openapi["paths"]
    classify = paths["/v1/classify"]["post"]["requestBody"]["content"]["application/json"]
    assert {"task", "tasks", "texts", "pairs", "top_k"} <= set(classify["schema"]["properties"])
    upload = paths["/v1/tasks/{task}/adapter"]["put"]["requestBody"]["content"]
    assert "application/octet-stream" in upload


def references(node) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(references, node))
    if not isinstance(node, dict):
        return set()
    own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
    own |= set(node.get("discriminator", {}).get("mapping", {}).values())
    return own.union(*map(references, node.values()))


def test_every_reference_in_the_contract_leads_somewhere(openapi):
    known = {f"#/components/schemas/{name}" for name in openapi["components"]["schemas"]}
    assert references(openapi) <= known


def test_the_committed_contract_is_the_apps():
    committed = ROOT / "clients" / "openapi.json"
    assert committed.read_text(encoding="utf-8") == contract.render(), "run `make contract`"


def test_the_page_lists_every_route_and_loads_nothing(openapi):
    page = docs_page(openapi, "http://127.0.0.1:8000", with_key=True)
    for path in openapi["paths"]:
        assert path in page
    assert page.count("curl") >= len(openapi["paths"])
    assert "curl -T labelled.jsonl" in re.search(r"<pre>([^<]*)/sentiment/gate</pre>", page)[1]
    operations = [each for found in openapi["paths"].values() for each in found.values()]
    assert page.count("Bearer KEY") == sum("security" in each for each in operations)
    assert "Bearer" not in docs_page(openapi, "http://127.0.0.1:8000", with_key=False)
    loads = re.findall(r'<script|<link|@import|url\(|src=|https?://[^"\s<]+', page)
    assert {found for found in loads if not found.startswith("http://127.0.0.1:8000")} == set()


def test_the_page_escapes_what_it_is_given(openapi):
    assert "<script>" not in docs_page(openapi, "http://x/<script>", with_key=True)


def test_head_of_docs_is_html_and_openapi_is_served(serving):
    async def scenario(client, service):
        page = await client.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        assert "http://127.0.0.1/v1/classify" in page.text
        assert (await client.get("/openapi.json")).json()["info"]["title"] == "labelmux"

    serving(scenario)
