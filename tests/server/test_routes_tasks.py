from __future__ import annotations

import hashlib
from datetime import datetime

import pytest

from labelmux_adapters.manifest import Calibration
from labelmux_server.schemas import TaskInfo, TaskList, UploadAnswer, VersionList, VersionReport


async def put(client, task: str, data: bytes, **headers: str):
    return await client.put(f"/v1/tasks/{task}/adapter", content=data, headers=headers)


def test_an_upload_serves_at_once_and_is_listed(serving, adapter_bytes, make_adapter):
    data, adapter = adapter_bytes(), make_adapter()

    async def scenario(client, service):
        answer = await put(client, "t", data)
        assert answer.status_code == 201
        body = answer.json()
        UploadAnswer.model_validate(body)
        stored = {"task": "t", "version": 1, "digest": adapter.digest}
        assert body == {**stored, "active": True, "gate": None}
        assert answer.headers["location"] == "/v1/tasks/t/adapter?version=1"
        listed = (await client.get("/v1/tasks")).json()
        TaskList.model_validate(listed)
        one = (await client.get("/v1/tasks/t")).json()
        TaskInfo.model_validate(one)
        assert listed == {"tasks": [one], "total": 1}
        assert one["labels"] == ["a", "b"]
        assert one["method"] == "ytuning"
        assert one["size_bytes"] == len(data)
        assert one["encoder_fingerprint"] == adapter.manifest.encoder_fingerprint

    serving(scenario)


def test_a_version_reports_all_that_its_file_says(serving, adapter_bytes, make_adapter):
    calibration = Calibration(temperature=1.5, thresholds=(0.25, 0.75))
    made = {"task_kind": "multi_label", "calibration": calibration}

    async def scenario(client, service):
        await put(client, "t", adapter_bytes(**made))
        await put(client, "t", adapter_bytes(seed=1))
        answer = await client.get("/v1/tasks/t/versions/1")
        VersionReport.model_validate(report := answer.json())
        manifest = make_adapter(**made).manifest
        assert (report["task"], report["version"], report["active"]) == ("t", 1, False)
        assert report["calibration"] == {
            "temperature": 1.5,
            "thresholds": [0.25, 0.75],
            "abstain": None,
        }
        assert (report["method"], report["sizes"]) == ("ytuning", manifest.sizes)
        assert report["data_digest"] == manifest.data_digest
        assert datetime.fromisoformat(report["trained_at"]) == manifest.created_at
        assert report["canaries"] == len(manifest.canaries)
        active = (await client.get("/v1/tasks/t/versions/2")).json()
        assert active["active"]
        task = (await client.get("/v1/tasks/t")).json()
        assert task == {name: active[name] for name in task}
        assert (await client.get("/v1/tasks/t/versions/3")).status_code == 404

    serving(scenario)


def test_tasks_are_read_in_pages_and_found_by_a_part_of_their_name(serving, adapter_bytes):
    names = ["Spam-de", "mood", "spam", "spam-en", "tone"]  # capitals first, as bytes sort

    async def scenario(client, service):
        for name in reversed(names):
            await put(client, name, adapter_bytes())

        async def page(**asked):
            body = (await client.get("/v1/tasks", params=asked)).json()
            return [task["task"] for task in body["tasks"]], body["total"]

        assert await page() == (names, 5)
        seen = []
        while found := (await page(limit=2, after=seen[-1] if seen else ""))[0]:
            seen += found
        assert seen == names
        assert await page(search="SPAM", limit=2) == (["Spam-de", "spam"], 3)
        assert await page(search="spam", after="spam") == (["spam-en"], 3)
        assert await page(search="absent") == ([], 0)
        odd = await client.get("/v1/tasks", params={"limit": 0})
        assert (odd.status_code, odd.json()["error"]["field"]) == (422, "limit")

    serving(scenario)


def test_a_page_reads_its_own_manifests_alone(serving, adapter_bytes):
    async def scenario(client, service):
        for seed in range(4):
            await put(client, f"t{seed}", adapter_bytes(seed=seed))
        read = []
        stored = service.store.manifest
        service.store.manifest = lambda digest: read.append(digest) or stored(digest)
        body = (await client.get("/v1/tasks", params={"limit": 2, "after": "t0"})).json()
        assert read == [task["digest"] for task in body["tasks"]]
        assert [task["task"] for task in body["tasks"]] == ["t1", "t2"]

    serving(scenario)


def test_the_same_file_again_is_200_and_becomes_active(serving, adapter_bytes):
    async def scenario(client, service):
        first, second = adapter_bytes(seed=0), adapter_bytes(seed=1)
        assert (await put(client, "t", first)).status_code == 201
        assert (await put(client, "t", second)).status_code == 201
        again = await put(client, "t", first)
        assert (again.status_code, again.json()["version"]) == (200, 1)
        assert (await client.get("/v1/tasks/t")).json()["version"] == 1

    serving(scenario)


def test_an_upload_whose_task_is_deleted_before_its_answer_was_done(
    serving, adapter_bytes, monkeypatch
):
    async def scenario(client, service):
        change = service.change

        async def then_deleted(action, work):
            done = await change(action, work)
            await change("delete", lambda changes: changes.delete_task("t"))
            return done

        monkeypatch.setattr(service, "change", then_deleted)
        answer = await put(client, "t", adapter_bytes())
        assert (answer.status_code, answer.json()["active"]) == (201, False)
        assert "t" not in service.registry

    serving(scenario)


def test_download_gives_the_bytes_back(serving, adapter_bytes):
    async def scenario(client, service):
        first, second = adapter_bytes(seed=0), adapter_bytes(seed=1)
        await put(client, "t", first)
        await put(client, "t", second)
        active = await client.get("/v1/tasks/t/adapter")
        assert active.content == second
        assert active.headers["x-labelmux-version"] == "2"
        digest = hashlib.sha256(second).hexdigest()
        assert active.headers["etag"] == f'"sha256:{digest}"'
        older = await client.get("/v1/tasks/t/adapter", params={"version": 1})
        assert older.content == first
        absent = await client.get("/v1/tasks/t/adapter", params={"version": 3})
        assert absent.json()["error"]["code"] == "version_not_found"
        odd = await client.get("/v1/tasks/t/adapter", params={"version": "x"})
        assert (odd.status_code, odd.json()["error"]["field"]) == (422, "version")

    serving(scenario)


def test_versions_activate_rollback_delete(serving, adapter_bytes):
    async def scenario(client, service):
        for seed in range(3):
            await put(client, "t", adapter_bytes(seed=seed))
        activated = await client.post("/v1/tasks/t/activate", json={"version": 1})
        assert (activated.status_code, activated.json()["version"]) == (200, 1)
        back = await client.post("/v1/tasks/t/rollback")
        assert back.json()["version"] == 3
        back = await client.post("/v1/tasks/t/rollback")
        assert back.json()["version"] == 2
        listed = (await client.get("/v1/tasks/t/versions")).json()
        VersionList.model_validate(listed)
        assert listed["active"] == 2
        assert [v["metrics"] for v in listed["versions"]] == [{}, {}, {}]
        assert [(v["version"], v["active"]) for v in listed["versions"]] == [
            (1, False),
            (2, True),
            (3, False),
        ]
        assert [(h["action"], h["version"]) for h in listed["history"]] == [
            *(("upload", number) for number in (1, 2, 3)),
            ("activate", 1),
            ("rollback", 3),
            ("rollback", 2),
        ]
        refused = await client.delete("/v1/tasks/t/versions/2")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_active")
        assert (await client.delete("/v1/tasks/t/versions/1")).status_code == 204
        none_left = await client.post("/v1/tasks/t/rollback")
        assert none_left.json()["error"]["code"] == "no_previous_version"
        assert none_left.status_code == 409
        gone = await client.delete("/v1/tasks/t")
        assert (gone.status_code, gone.content) == (204, b"")
        assert (await client.get("/v1/tasks")).json() == {"tasks": [], "total": 0}

    serving(scenario)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/tasks/absent", None),
        ("GET", "/v1/tasks/absent/versions", None),
        ("GET", "/v1/tasks/absent/adapter", None),
        ("POST", "/v1/tasks/absent/activate", {"version": 1}),
        ("POST", "/v1/tasks/absent/rollback", None),
        ("DELETE", "/v1/tasks/absent", None),
        ("DELETE", "/v1/tasks/absent/versions/1", None),
        ("GET", "/v1/tasks/..%2F..%2Fetc", None),
    ],
)
def test_a_task_that_is_not_here_is_404_everywhere(serving, method, path, body):
    async def scenario(client, service):
        answer = await client.request(method, path, json=body)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] in ("task_not_found", "not_found")

    serving(scenario)


@pytest.mark.parametrize(
    ("method", "path", "in_body"),
    [
        ("GET", "/v1/tasks/t/versions/{}", False),
        ("DELETE", "/v1/tasks/t/versions/{}", False),
        ("GET", "/v1/tasks/t/adapter?version={}", False),
        ("POST", "/v1/tasks/t/activate", True),
        ("POST", "/v1/tasks/t/shadow", True),
        ("POST", "/v1/tasks/t/canary", True),
        ("GET", "/v2/models/t/versions/{}", False),
        ("GET", "/v2/models/t/versions/{}/ready", False),
        ("POST", "/v2/models/t/versions/{}/infer", False),
    ],
)
def test_a_version_number_of_any_size_is_refused_by_name(
    serving, adapter_bytes, method, path, in_body
):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        for number in (10**9, 2**64, 10**30):
            sent = {"version": number, "share": 1.0} if in_body else None
            answer = await client.request(method, path.format(number), json=sent)
            assert answer.status_code == 422, answer.text
            assert "version" in answer.text
            assert "999999999" in answer.text

    serving(scenario)


def test_uploads_that_are_refused_change_nothing(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes(seed=0))
        before = (await client.get("/v1/tasks/t/versions")).json()
        good, zeros = adapter_bytes(seed=1), "0" * 64
        cases = [
            (await put(client, "t", good, **{"if-none-match": "*"}), 412, "task_exists"),
            (await put(client, "t", good, **{"x-content-sha256": zeros}), 422, "digest_mismatch"),
            (await put(client, "t", good, **{"x-content-sha256": "zz"}), 422, "invalid_request"),
            (await put(client, "t", b"tiny"), 400, "not_safetensors"),
            (await put(client, "t", good[:-4]), 400, "truncated_file"),
            (await put(client, "t", b"x" * 50_001), 413, "file_too_large"),
            (
                await put(client, "t", good, **{"content-type": "multipart/form-data"}),
                415,
                "unsupported_media_type",
            ),
            (await put(client, "-t", good), 422, "invalid_request"),
            (await put(client, "a b", good), 422, "invalid_request"),
            (await put(client, "t@2", good), 422, "invalid_request"),
        ]
        for answer, status, code in cases:
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert (await client.get("/v1/tasks/t/versions")).json() == before

    serving(scenario, max_upload_bytes=50_000)


def test_the_stated_digest_and_create_only_let_a_right_upload_through(serving, adapter_bytes):
    data = adapter_bytes()
    digest = hashlib.sha256(data).hexdigest().upper()

    async def scenario(client, service):
        answer = await put(client, "t", data, **{"x-content-sha256": digest, "if-none-match": "*"})
        assert answer.status_code == 201

    serving(scenario)


def test_an_upload_without_a_stated_length_is_counted_as_it_comes(serving):
    sent = []

    async def chunks():
        for _ in range(100):
            sent.append(1)
            yield b"x" * 10_000

    async def scenario(client, service):
        answer = await client.put("/v1/tasks/t/adapter", content=chunks())
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "file_too_large")
        assert len(sent) < 10

    serving(scenario, max_upload_bytes=50_000)


def test_too_many_uploads_at_once_are_refused(serving, adapter_bytes):
    async def scenario(client, service):
        with service.upload_place():
            with service.upload_place():
                answer = await put(client, "t", adapter_bytes())
                assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")
                assert answer.headers["retry-after"] == "1"
            assert (await put(client, "t", adapter_bytes())).status_code == 201

    serving(scenario, max_uploads=2)
