"""What stands in a query: our own routes take what they know, those of other servers anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

CONTRACT = Path(__file__).parents[2] / "clients" / "openapi.json"
PATHS = json.loads(CONTRACT.read_text(encoding="utf-8"))["paths"]
#: By method and path, the parameters that the contract has in the query of our own routes.
OWN = {
    (method, path): [
        each["name"] for each in operation.get("parameters", []) if each["in"] == "query"
    ]
    for path, operations in PATHS.items()
    for method, operation in operations.items()
    if path.startswith("/v1/") and not path.startswith("/v1/models")
}


@pytest.mark.parametrize(("method", "path"), OWN)
def test_a_parameter_that_a_route_lacks_is_refused_with_those_that_it_takes(serving, method, path):
    async def scenario(client, service):
        where = path.format(task="t", version=1)
        answer = await client.request(method, where, params={"activete": "later"})
        known = ", ".join(OWN[method, path]) or "none"
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (422, "invalid_request")
        assert error["field"] == "activete"
        assert error["message"] == f"activete: no such parameter; this route takes {known}"

    serving(scenario)


def test_a_slip_in_a_parameter_lets_no_version_serve(serving, adapter_bytes):
    async def scenario(client, service):
        await client.put("/v1/tasks/t/adapter", content=adapter_bytes())
        slip = {"activate": "later", "Activate": "later"}
        refused = await client.put(
            "/v1/tasks/t/adapter", content=adapter_bytes(seed=1), params=slip
        )
        assert refused.json()["error"]["field"] == "Activate"
        assert len((await client.get("/v1/tasks/t/versions")).json()["versions"]) == 1
        listed = await client.get("/v1/tasks", params={"search": "", "after": "", "limit": 1})
        assert listed.status_code == 200

    serving(scenario)


@pytest.mark.parametrize("query", ["=1", "&x=", "?", "x" * 10_000])
def test_odd_queries_are_refused_in_few_words(serving, query):
    async def scenario(client, service):
        answer = await client.get(f"/v1/info?{query}")
        assert answer.status_code == 422
        assert len(answer.text) < 400

    serving(scenario)


def test_who_has_no_key_is_told_that_first(serving):
    async def scenario(client, service):
        for method, path in (("GET", "/v1/info"), ("POST", "/v1/classify")):
            answer = await client.request(method, path, params={"x": 1})
            assert answer.status_code == 401

    serving(scenario, admin_key="k")


def test_routes_of_other_servers_and_pages_pass_over_what_they_do_not_know(serving, adapter_bytes):
    async def scenario(client, service):
        await client.put("/v1/tasks/t/adapter", content=adapter_bytes())
        for path in (
            "/v1/models",
            "/v1/models/t",
            "/infinity/models",
            "/tei/t/info",
            "/v2/models/t",
            "/health/ready",
            "/metrics",
            "/docs",
            "/openapi.json",
            "/",
        ):
            answer = await client.get(path, params={"api-version": "1"})
            assert answer.status_code == 200, path
        for path, body in (
            ("/tei/t/predict", {"inputs": "a"}),
            ("/classify", {"model": "t", "input": "a"}),
        ):
            answer = await client.post(path, json=body, params={"api-version": "1"})
            assert answer.status_code == 200, path

    serving(scenario)
