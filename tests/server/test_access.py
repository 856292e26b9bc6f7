"""Who may change things."""

from __future__ import annotations

import pytest

from labelmux_server.access import require_admin
from labelmux_server.app import create_app
from labelmux_server.settings import Settings

READS_BY_POST = {"/v1/classify"}
CHANGES = [
    ("PUT", "/v1/tasks/t/adapter"),
    ("POST", "/v1/tasks/t/activate"),
    ("POST", "/v1/tasks/t/rollback"),
    ("DELETE", "/v1/tasks/t"),
    ("DELETE", "/v1/tasks/t/versions/1"),
]


def test_every_route_that_is_not_a_read_is_listed_here():
    paths = create_app(Settings()).openapi()["paths"]
    found = {
        (method.upper(), path.replace("{task}", "t").replace("{version}", "1"))
        for path, operations in paths.items()
        for method in operations
        if method != "get" and path not in READS_BY_POST
    }
    assert found == set(CHANGES)


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic right", "right", "Bearer right2"],
)
def test_once_a_key_is_set_every_change_needs_it(serving, method, path, authorization):
    async def scenario(client, service):
        headers = {} if authorization is None else {"authorization": authorization}
        answer = await client.request(method, path, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"

    serving(scenario, admin_key="right")


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_with_the_key_a_change_goes_through(serving, method, path):
    async def scenario(client, service):
        answer = await client.request(method, path, headers={"authorization": "bearer right"})
        assert answer.status_code not in (401, 403)

    serving(scenario, admin_key="right")


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_beyond_loopback_without_a_key_changes_are_off(serving, method, path):
    async def scenario(client, service):
        answer = await client.request(method, path, headers={"authorization": "Bearer any"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_off")
        assert "--admin-key" in answer.json()["error"]["message"]

    serving(scenario, host="0.0.0.0")


def test_on_loopback_without_a_key_changes_are_open(serving, adapter_bytes):
    async def scenario(client, service):
        answer = await client.put("/v1/tasks/t/adapter", content=adapter_bytes())
        assert answer.status_code == 201

    serving(scenario)


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_no_page_from_elsewhere_may_change_an_open_server(serving, method, path):
    async def scenario(client, service):
        for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example"):
            answer = await client.request(method, path, headers={"origin": origin})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_off")
        answer = await client.request(method, path, headers={"origin": "http://localhost:8000"})
        assert answer.status_code != 403

    serving(scenario)


@pytest.mark.parametrize("path", ["/v1/tasks", "/v1/info", "/health/ready", "/metrics", "/docs"])
def test_reading_needs_no_key_and_shows_none(serving, path):
    async def scenario(client, service):
        answer = await client.get(path)
        assert answer.status_code == 200
        assert "right-key" not in answer.text

    serving(scenario, admin_key="right-key")


def test_the_guard_is_on_the_router_not_on_its_routes():
    from labelmux_server.routes_tasks import admin_router

    assert [dependency.dependency for dependency in admin_router.dependencies] == [require_admin]


def test_a_refused_upload_is_refused_before_its_body_is_read(serving):
    sent = []

    async def chunks():
        sent.append(1)
        yield b"x"

    async def scenario(client, service):
        answer = await client.put("/v1/tasks/t/adapter", content=chunks())
        assert answer.status_code == 401
        assert sent == []

    serving(scenario, admin_key="right")
