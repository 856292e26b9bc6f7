"""Who may call what."""

from __future__ import annotations

import hmac
import re
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.routing import BaseRoute, Route

from labelmux_server import keyring as keyring_module
from labelmux_server.access import Guard
from labelmux_server.app import create_app
from labelmux_server.errors import SettingsError
from labelmux_server.keyring import check_exposure
from labelmux_server.keys import SCOPES, Rights, digest_of_key, opened_keys
from labelmux_server.parameters import check_parameters
from labelmux_server.settings import Settings

#: What a probe asks, which carries no key.
PROBES = {
    "/health/live",
    "/health/ready",
    "/health",
    "/v2/health/live",
    "/v2/health/ready",
}
#: What a browser asks before anybody could enter a key; it says nothing of this server.
CONSOLE = {"/", "/console/t"}
PUBLIC = PROBES | CONSOLE
#: An input of the Open Inference Protocol.
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
#: What reads although it is no GET.
READS = {
    "/v1/classify",
    "/v1/classify/stream",
    "/predict",
    "/tei/t/predict",
    "/classify",
    "/infinity/classify",
    "/v2/models/t/infer",
    "/v2/models/t/versions/1/infer",
    "/v2/repository/index",
}


def all_routes(routes: list[BaseRoute]) -> Iterator[BaseRoute]:
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is None:
            yield route
        else:
            yield from all_routes(inner.routes)


def places() -> Iterator[tuple[str, str]]:
    """Every method and path of the app."""
    for route in all_routes(create_app(Settings()).routes):
        assert isinstance(route, Route), f"{route} would not be walked"
        path = re.sub(r"\{version[^}]*\}", "1", route.path)
        path = re.sub(r"\{[^}]*\}", "t", path)
        for method in sorted(route.methods or ()):
            yield method, path


GUARDED = [place for place in places() if place[1] not in PUBLIC]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def make_key(service: Any, name: str, *scopes: str, **rights: Any) -> dict[str, str]:
    """The headers of a new key, made beside the running service."""
    with opened_keys(service.settings.state_dir) as keys:
        return bearer(keys.create(name, Rights(frozenset(scopes), **rights)))


def code(answer: Any) -> tuple[int, str]:
    body = answer.json()
    # Clients of other servers read an error's message where ours read its fields.
    error = body if isinstance(body["error"], str) else body["error"]
    return answer.status_code, error["code"]


def test_the_walk_meets_every_route_of_the_contract():
    paths = create_app(Settings()).openapi()["paths"]
    documented = {re.sub(r"\{(\w)[^}]*\}", r"{\1}", path) for path in paths}
    filled = {path.replace("{t}", "t").replace("{v}", "1") for path in documented}
    assert filled <= {path for _, path in places()}
    assert {path for _, path in places()} >= PUBLIC | READS


def test_every_route_but_the_probes_and_the_console_needs_a_key(serving):
    async def scenario(client, service):
        make_key(service, "k", "classify")
        for method, path in places():
            for headers in ({}, bearer("lmx_0_wrong"), {"authorization": "Basic k"}):
                answer = await client.request(method, path, headers=headers)
                if path in PUBLIC:
                    assert answer.status_code == (404 if path == "/console/t" else 200), path
                else:
                    assert answer.headers["www-authenticate"] == "Bearer", (method, path)
                    if method != "HEAD":
                        assert code(answer) == (401, "unauthorized"), (method, path)

    serving(scenario)


def test_every_route_but_the_probes_refuses_some_scope_and_takes_another(serving):
    async def scenario(client, service):
        keys = {scope: make_key(service, scope, scope) for scope in SCOPES}
        for method, path in GUARDED:
            taken = set()
            for scope, headers in keys.items():
                answer = await client.request(method, path, headers=headers)
                if answer.status_code == 403:
                    assert code(answer) == (403, "wrong_scope"), (method, path)
                else:
                    assert answer.status_code != 401, (method, path)
                    taken.add(scope)
            assert taken
            assert taken < set(SCOPES), (method, path)
            if method not in ("GET", "HEAD") and path not in READS:
                assert taken == {"admin"}, (method, path)

    serving(scenario)


def test_guards_are_on_routers_never_on_single_routes():
    for included in create_app(Settings()).routes:
        router = included.original_router
        guards = [each.dependency for each in router.dependencies]
        public = {re.sub(r"\{[^}]*\}", "t", route.path) for route in router.routes} <= PUBLIC
        # The guard stands first: who may not ask is told nothing else.
        assert [isinstance(each, Guard) for each in guards[:1]] == ([] if public else [True])
        assert guards[1:] in ([], [check_parameters])
        for route in router.routes:
            assert [each.dependency for each in route.dependencies] == guards


@pytest.mark.parametrize("wrong", ["", "Bearer", "Bearer ", "Basic right", "right", "Bearer r"])
def test_the_settings_key_opens_everything_and_nothing_else_does(serving, wrong):
    async def scenario(client, service):
        for method, path in GUARDED:
            for authorization, refused in ((wrong, True), ("bearer right", False)):
                headers = {"authorization": authorization}
                answer = await client.request(method, path, headers=headers)
                assert (answer.status_code in (401, 403)) == refused, (method, path)

    serving(scenario, admin_key="right")


def test_the_settings_key_may_be_given_as_its_digest(serving):
    async def scenario(client, service):
        assert (await client.get("/v1/tasks", headers=bearer("right"))).status_code == 200
        digest = digest_of_key(b"right")
        for wrong in (digest, f"sha256:{digest}", "wrong"):
            assert (await client.get("/v1/tasks", headers=bearer(wrong))).status_code == 401

    serving(scenario, admin_key="sha256:" + digest_of_key(b"right").upper())


@pytest.mark.parametrize(
    "sent", ["right", "wrong", "", "lmx_0_x", "ключ".encode().decode("latin-1")]
)
def test_keys_are_compared_by_digest_in_constant_time(serving, monkeypatch, sent):
    compared = []
    real = hmac.compare_digest

    def compare(left, right):
        compared.append((left, right))
        return real(left, right)

    async def scenario(client, service):
        monkeypatch.setattr(keyring_module.hmac, "compare_digest", compare)
        service.keyring.find(sent)
        ((left, right),) = compared
        assert left == digest_of_key(sent.encode("latin-1"))
        assert len(left) == len(right) == 64

    serving(scenario, admin_key="right")


def test_a_change_to_the_keys_counts_from_the_next_request_on(serving):
    async def scenario(client, service):
        first = make_key(service, "first", "classify")
        assert (await client.get("/v1/tasks", headers=first)).status_code == 200
        with opened_keys(service.settings.state_dir) as keys:
            second = bearer(keys.rotate("first"))
            assert (await client.get("/v1/tasks", headers=first)).status_code == 401
            assert (await client.get("/v1/tasks", headers=second)).status_code == 200
            third = bearer(keys.rotate("first", grace_s=3600))
            assert (await client.get("/v1/tasks", headers=second)).status_code == 200
            assert (await client.get("/v1/tasks", headers=third)).status_code == 200
            keys.revoke("first")
        for headers in (second, third):
            assert (await client.get("/v1/tasks", headers=headers)).status_code == 401

    serving(scenario)


def test_keys_that_cannot_be_read_again_stay_in_force(serving, caplog):
    async def scenario(client, service):
        key = make_key(service, "k", "classify")
        assert (await client.get("/v1/info", headers=key)).status_code == 200
        with sqlite3.connect(service.settings.state_dir / "labelmux.sqlite") as other:
            other.execute("alter table keys rename to lost")
        other.close()
        assert (await client.get("/v1/info", headers=key)).status_code == 200
        assert (await client.get("/v1/info")).status_code == 401
        assert "cannot be read again" in caplog.text

    serving(scenario)


def test_a_server_is_open_until_its_first_key_and_never_again(serving):
    async def scenario(client, service):
        assert (await client.get("/v1/info")).json()["access"] == "open"
        make_key(service, "first", "classify")
        assert (await client.get("/v1/info")).status_code == 401
        with opened_keys(service.settings.state_dir) as keys:
            keys.revoke("first")
        assert (await client.get("/v1/info")).status_code == 401

    serving(scenario)


def test_beyond_loopback_a_server_without_keys_opens_nothing(serving):
    async def scenario(client, service):
        for method, path in GUARDED:
            assert (await client.request(method, path)).status_code == 401

    serving(scenario, host="0.0.0.0")


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_no_page_from_elsewhere_may_use_an_open_server(serving, method, path):
    async def scenario(client, service):
        for foreign in (
            *({"origin": name} for name in ("https://evil.example", "null", "http://[")),
            {"origin": "http://127.0.0.1.evil.example"},
            # A name that its owner has made lead to this machine: browsers send no origin then.
            *({"host": name} for name in ("evil.example:8000", "localhost.evil.example", "[")),
        ):
            answer = await client.request(method, path, headers=foreign)
            assert code(answer) == (403, "foreign_page"), foreign
        for own in (
            {"origin": "http://localhost:8000"},
            {"host": "localhost"},
            {"host": "[::1]:80"},
        ):
            assert (await client.request(method, path, headers=own)).status_code != 403, own

    serving(scenario)


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


def test_a_key_for_some_tasks_classifies_with_those_alone(serving, adapter_bytes):
    async def scenario(client, service):
        for task in ("shop-mood", "shop-spam", "bank"):
            await client.put(f"/v1/tasks/{task}/adapter", content=adapter_bytes())
        shop = make_key(service, "shop", "classify", tasks=("shop-*", "none"))

        async def ask(**body: Any) -> Any:
            return await client.post("/v1/classify", json=body | {"texts": "a film"}, headers=shop)

        assert (await ask(task="shop-mood")).status_code == 200
        for task in ("bank", "bank@1", "absent"):
            assert code(await ask(task=task)) == (403, "task_forbidden")
        found = (await ask(tasks=["bank", "shop-mood@1", "none"])).json()["results"][0]
        kinds = {
            name: item.get("error", {}).get("code") for name, item in found["predictions"].items()
        }
        assert kinds == {"bank": "task_forbidden", "shop-mood@1": None, "none": "task_not_found"}
        every = (await ask(tasks=["*"])).json()["results"][0]["predictions"]
        assert set(every) == {"shop-mood", "shop-spam"}
        assert all("error" not in item for item in every.values())

    serving(scenario)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/tei/{}/predict", {"inputs": "a"}),
        ("GET", "/tei/{}/info", None),
        ("POST", "/v2/models/{}/infer", {"inputs": [TENSOR]}),
        ("GET", "/v2/models/{}", None),
        ("GET", "/v2/models/{}/ready", None),
        ("GET", "/v1/models/{}", None),
    ],
)
def test_a_pinned_name_in_a_path_needs_a_key_for_its_task(
    serving, adapter_bytes, method, path, body
):
    async def scenario(client, service):
        for task in ("t", "u"):
            for seed in range(2):
                await client.put(f"/v1/tasks/{task}/adapter", content=adapter_bytes(seed=seed))
        one, two, missing, other = [
            await client.request(method, path.format(name), json=body)
            for name in ("t@1", "t@2", "t@3", "u@1")
        ]
        assert (one.status_code, two.status_code, other.status_code) == (200, 200, 200)
        assert missing.status_code == 404
        assert "version_not_found" in missing.text
        key = make_key(service, "k", "classify", tasks=("t",))
        for name, status in (("t", 200), ("t@1", 200), ("t@3", 404), ("u", 403), ("u@1", 403)):
            answer = await client.request(method, path.format(name), json=body, headers=key)
            assert answer.status_code == status, (name, answer.text)

    serving(scenario)


def test_a_key_for_some_tasks_sees_and_changes_those_alone(serving, adapter_bytes):
    async def scenario(client, service):
        for task in ("shop-mood", "bank"):
            await client.put(f"/v1/tasks/{task}/adapter", content=adapter_bytes())
        shop = make_key(service, "shop", "classify", "admin", tasks=("shop-*",))
        listed = (await client.get("/v1/tasks", headers=shop)).json()
        assert ([item["task"] for item in listed["tasks"]], listed["total"]) == (["shop-mood"], 1)
        for method, path in GUARDED:
            of_bank = re.sub(r"/t(?=/|$)", "/bank", path)
            if of_bank != path:
                answer = await client.request(method, of_bank, headers=shop)
                assert code(answer) == (403, "task_forbidden"), (method, of_bank)
                assert "'bank'" in answer.text
        for task, status in (("shop-new", 201), ("shop-mood", 201), ("new", 403)):
            answer = await client.put(
                f"/v1/tasks/{task}/adapter", content=adapter_bytes(seed=3), headers=shop
            )
            assert answer.status_code == status
        info = (await client.get("/v1/info", headers=shop)).json()["key"]
        assert info == {"name": "shop", "scopes": ["admin", "classify"], "tasks": ["shop-*"]}

    serving(scenario)


def test_the_history_says_whose_key_changed_what_and_outlives_the_task(serving, adapter_bytes):
    async def scenario(client, service):
        await client.put("/v1/tasks/t/adapter", content=adapter_bytes(seed=1))
        ci, ops = (make_key(service, name, "admin") for name in ("ci", "ops"))
        await client.put("/v1/tasks/t/adapter", content=adapter_bytes(seed=2), headers=ci)
        await client.post("/v1/tasks/t/activate", json={"version": 1}, headers=ops)
        await client.post("/v1/tasks/t/rollback", headers=ci)
        await client.delete("/v1/tasks/t/versions/1", headers=ops)
        versions = (await client.get("/v1/tasks/t/versions", headers=ci)).json()
        await client.delete("/v1/tasks/t", headers=ops)
        history = (await client.get("/v1/tasks/t/history", headers=ci)).json()["history"]
        assert [(entry["by"], entry["action"], entry["version"]) for entry in history] == [
            (None, "upload", 1),
            ("ci", "upload", 2),
            ("ops", "activate", 1),
            ("ci", "rollback", 2),
            ("ops", "delete", 1),
            ("ops", "delete", 2),
        ]
        assert versions["history"] == history[:-1]
        assert history[1]["digest"] == history[3]["digest"] != history[0]["digest"]
        assert code(await client.get("/v1/tasks/u/history", headers=ci)) == (404, "task_not_found")

    serving(scenario)


def test_no_route_shows_a_key(serving):
    async def scenario(client, service):
        made = make_key(service, "every", *SCOPES)
        for method, path in GUARDED:
            answer = await client.request(method, path, headers=made)
            assert made["authorization"][7:] not in answer.text
            assert "hunter-22" not in answer.text

    serving(scenario, admin_key="hunter-22")


def test_the_contract_says_where_a_key_is_needed():
    document = create_app(Settings()).openapi()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation.get("security") == (None if path in PUBLIC else [{"key": []}])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_without_a_live_key_an_address_for_others_is_refused(tmp_path, host):
    settings = Settings(host=host, state_dir=tmp_path / "state")
    with pytest.raises(SettingsError, match="labelmux keys create"):
        check_exposure(settings)
    assert not settings.state_dir.exists()
    with opened_keys(settings.state_dir, create=True) as keys:
        with pytest.raises(SettingsError):
            check_exposure(settings)
        keys.create("k", Rights(frozenset({"classify"})))
        check_exposure(settings)
        keys.revoke("k")
        with pytest.raises(SettingsError):
            check_exposure(settings)
    check_exposure(Settings(host=host, state_dir=tmp_path, admin_key="k"))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_loopback_needs_no_key(tmp_path, host):
    check_exposure(Settings(host=host, state_dir=tmp_path / "state"))
    assert not (tmp_path / "state").exists()
