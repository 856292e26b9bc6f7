"""A disk that fills up, turns read-only or loses bytes, under a real server."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys

import httpx2
import pytest

from labelmux_server.blobs import RESERVED_BYTES

pytestmark = pytest.mark.slow

TEXT = {"texts": "a good film"}


@pytest.fixture
def mount():
    """Mount something until the test ends; skips where that is not allowed."""
    with contextlib.ExitStack() as mounted:

        def do(folder, *arguments: str) -> None:
            command = ["mount", *arguments, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"NOT RUN: no right to mount here: {done.stderr.strip()}")
            if not any("remount" in argument for argument in arguments):
                mounted.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)

        yield do


@pytest.fixture
def small_disk(mount, tmp_path):
    """The state folder on a disk with room for 8 MiB above what is kept for deletes."""
    folder = tmp_path / "state"
    folder.mkdir()
    mount(folder, "-t", "tmpfs", "-o", f"size={RESERVED_BYTES + 8 * 2**20}", "tmpfs")
    return folder


def says(answer) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def put(client, task: str, data: bytes):
    return client.put(f"/v1/tasks/{task}/adapter", content=data)


def served(client) -> dict[str, str]:
    """By task, the digest that answers."""
    found = {}
    for each in client.get("/v1/tasks").json()["tasks"]:
        answer = client.post("/v1/classify", json={"task": each["task"], **TEXT})
        assert answer.status_code == 200, answer.text
        found[each["task"]] = answer.json()["results"][0]["predictions"][each["task"]]["digest"]
    return found


def test_a_full_disk_refuses_uploads_and_serves_on(small_disk, start_server, adapter_bytes):
    server = start_server()
    known = {}
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        for number in itertools.count():
            answer = put(client, f"t{number}", adapter_bytes(seed=number, width=64))
            if answer.status_code != 201:
                break
            known[f"t{number}"] = answer.json()["digest"]
        assert says(answer) == (507, "disk_full")
        assert "nothing was changed" in answer.json()["error"]["message"]
        assert served(client) == known
        assert len(known) > 3
        # Meanwhile SQLite's log reaches its full length and is copied back.
        for number in range(150):
            task = next(iter(known))
            assert client.delete(f"/v1/tasks/{task}").status_code == 204
            del known[task]
            answer = put(client, f"again{number}", adapter_bytes(seed=1000 + number, width=64))
            assert answer.status_code in {201, 507}, answer.text
            if answer.status_code == 201:
                known[f"again{number}"] = answer.json()["digest"]
        assert answer.status_code == 201, answer.text
        assert client.get("/health/ready").status_code == 200
    server.kill()
    with httpx2.Client(base_url=start_server().url, timeout=60) as client:
        assert served(client) == known


def test_a_disk_that_others_fill_to_the_last_byte_fails_no_request_with_500(
    small_disk, start_server, adapter_bytes
):
    server = start_server()
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        for seed in (1, 2):
            assert put(client, "t", adapter_bytes(seed=seed)).status_code == 201
        before = served(client)
        with (
            (small_disk / "ballast").open("wb", buffering=0) as ballast,
            contextlib.suppress(OSError),
        ):
            while ballast.write(b"\0" * 4096):
                pass
        assert shutil.disk_usage(small_disk).free == 0
        refused = set()
        for number in range(200):
            answer = client.post("/v1/tasks/t/activate", json={"version": 1 + number % 2})
            if answer.status_code != 200:
                refused.add(says(answer))
        refused.add(says(put(client, "u", adapter_bytes(seed=3))))
        assert refused <= {(507, "disk_full"), (503, "storage_failed")}
        assert served(client).keys() == before.keys()
        (small_disk / "ballast").unlink()
        assert put(client, "u", adapter_bytes(seed=3)).status_code == 201
        known = served(client)
    assert "Traceback" not in server.log_path.read_text()
    server.kill()
    with httpx2.Client(base_url=start_server().url, timeout=60) as client:
        assert served(client) == known


def test_blobs_that_turn_read_only_refuse_uploads_and_no_delete(
    mount, start_server, adapter_bytes, tmp_path
):
    server = start_server()
    blobs = tmp_path / "state" / "blobs"
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        for task, seed in (("t", 1), ("u", 2)):
            assert put(client, task, adapter_bytes(seed=seed)).status_code == 201
        mount(blobs, "--bind", str(blobs))
        mount(blobs, "-o", "remount,ro,bind")
        refused = put(client, "v", adapter_bytes(seed=3))
        assert says(refused) == (503, "storage_failed")
        assert "Read-only" in refused.json()["error"]["message"]
        assert client.delete("/v1/tasks/u").status_code == 204
        assert client.get("/v1/tasks/u").status_code == 404
        assert list(served(client)) == ["t"]
    assert "left until a restart" in server.log_path.read_text()


def start_fails(tmp_path, encoder, *flags: str) -> str:
    """The last line of a server that cannot start."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "labelmux_server", "--port", "0", "--no-demo"),
            *("--state-dir", str(tmp_path / "state"), "--encoder", str(encoder), *flags),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_a_read_only_disk_keeps_it_from_starting_in_one_line(
    mount, small_disk, start_server, tmp_path, tiny_encoder_folder
):
    start_server().close()
    mount(small_disk, "-o", "remount,ro")
    said = start_fails(tmp_path, tiny_encoder_folder)
    assert "Read-only file system" in said
    assert str(small_disk) in said


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_database_keeps_it_from_starting_in_one_line(
    start_server, adapter_bytes, tmp_path, tiny_encoder_folder, share
):
    server = start_server()
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        for seed in range(8):
            assert put(client, f"t{seed}", adapter_bytes(seed=seed)).status_code == 201
    server.terminate()
    assert server.process.wait(60) == 0
    database = tmp_path / "state" / "labelmux.sqlite"
    os.truncate(database, int(share * database.stat().st_size))
    said = start_fails(tmp_path, tiny_encoder_folder)
    assert "database" in said
    assert "restore it from a backup" in said


def test_a_damaged_file_is_set_aside_and_the_rest_serves_on(start_server, adapter_bytes, tmp_path):
    first = start_server()
    digests = {}
    with httpx2.Client(base_url=first.url, timeout=60) as client:
        for task, seed in (("bad", 1), ("gone", 2), ("good", 3)):
            digests[task] = put(client, task, adapter_bytes(seed=seed)).json()["digest"]
    first.kill()
    blobs = {name: next((tmp_path / "state").rglob(d[7:])) for name, d in digests.items()}
    data = bytearray(blobs["bad"].read_bytes())
    data[len(data) // 2] ^= 1
    blobs["bad"].write_bytes(data)
    blobs["gone"].unlink()
    with httpx2.Client(base_url=start_server().url, timeout=60) as client:
        for task in ("bad", "gone"):
            for answer in (
                client.post("/v1/classify", json={"task": task, **TEXT}),
                client.get(f"/v1/tasks/{task}/adapter"),
            ):
                assert says(answer) == (500, "adapter_damaged")
                assert digests[task] in answer.json()["error"]["message"]
        body = {"tasks": ["*"], **TEXT}
        answer = client.post("/v1/classify", json=body)
        assert answer.status_code == 200
        found = answer.json()["results"][0]["predictions"]
        assert {name for name, cell in found.items() if "error" not in cell} == {"good"}
        assert (tmp_path / "state" / "quarantine" / digests["bad"][7:]).is_file()
        assert client.get("/health/ready").status_code == 200
        assert put(client, "bad", adapter_bytes(seed=1)).status_code == 200
        assert client.delete("/v1/tasks/gone").status_code == 204
        assert served(client).keys() == {"bad", "good"}
