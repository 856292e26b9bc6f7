"""Requests made from the contract, good ones and bad ones, against a real server."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

pytestmark = pytest.mark.slow

CONTRACT = Path(__file__).parents[2] / "clients" / "openapi.json"
ROUTES = [
    (method.upper(), path)
    for path, operations in json.loads(CONTRACT.read_text())["paths"].items()
    for method in operations
]
CASES = 25
#: An adapter file, or which of two fields must be there, has rules that a schema cannot have; that
#: such a request is refused as the contract says is checked all the same.
TAKES_WHAT_FITS = positive_data_acceptance
KEY = {"Authorization": "Bearer of-every-route"}


@schemathesis.serializer("application/x-ndjson")
def lines(_context, value) -> bytes:
    """Of a body that has a value to a line, one line; what is bytes already goes as it is."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@pytest.fixture(scope="module")
def live(start_shared_server, adapter_bytes):
    """The contract that a server with some tasks hands out."""
    flags = ("--admin-key", "of-every-route", "--default-task", "t", "--log-level", "warning")
    server = start_shared_server(*flags)
    with httpx2.Client(base_url=server.url, headers=KEY, timeout=60) as client:
        for task, seed in (("t", 0), ("t", 1), ("u", 2)):
            put = client.put(f"/v1/tasks/{task}/adapter", content=adapter_bytes(seed=seed))
            assert put.status_code == 201
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=KEY)
    yield schema
    assert server.process.poll() is None
    assert "Traceback" not in server.log_path.read_text()


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_answers_as_the_contract_says(live, method, path):
    @settings(
        max_examples=CASES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=live[path][method].as_strategy())
    def ask(case):
        case.call_and_validate(headers=KEY, timeout=60, excluded_checks=[TAKES_WHAT_FITS])

    ask()
