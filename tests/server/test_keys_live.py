"""Keys of a real server process, made and ended by the real command while it runs."""

from __future__ import annotations

import os
import subprocess
import sys

import httpx2
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def keys(tmp_path):
    """Run ``labelmux keys`` on the server's state folder; what it printed."""

    def run(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "labelmux_cli.main", "keys", *args],
            env=os.environ | {"LABELMUX_STATE_DIR": str(tmp_path / "state")},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def status(url: str, key: str | None = None) -> int:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx2.get(f"{url}/v1/tasks", headers=headers, timeout=30).status_code


def test_keys_change_while_the_server_runs_and_outlive_it(start_server, keys):
    server = start_server()
    url = server.url
    assert status(url) == 200
    first = keys("create", "shop", "--scope", "classify")
    assert (status(url), status(url, "lmx_no_key"), status(url, first)) == (401, 401, 200)
    second = keys("rotate", "shop", "--grace-s", "600")
    assert (status(url, first), status(url, second)) == (200, 200)
    third = keys("rotate", "shop")
    assert [status(url, key) for key in (first, second, third)] == [401, 401, 200]
    other = keys("create", "metrics", "--scope", "metrics")
    assert status(url, other) == 403
    keys("revoke", "shop")
    assert status(url, third) == 401
    server.kill()
    fourth = keys("create", "again")
    url = start_server().url
    assert [status(url, key) for key in (None, third, other, fourth)] == [401, 401, 403, 200]


def test_no_server_without_a_key_binds_an_address_for_others(tmp_path, tiny_encoder_folder, keys):
    def serve(*flags: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "labelmux_server", "--host", "0.0.0.0", "--port", "0"),
                *("--no-demo", "--encoder", str(tiny_encoder_folder)),
                *("--state-dir", str(tmp_path / "state"), *flags),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    refused = serve()
    out, err = refused.communicate(timeout=60)
    assert (refused.returncode, out) == (1, "")
    assert "labelmux keys create NAME --state-dir" in err
    key = keys("create", "first")
    for flags, sent in (((), key), (("--admin-key", "k-1"), "k-1")):
        with serve(*flags) as server:
            try:
                line = server.stdout.readline()
                assert "access key" in line
                port = line.split("http://0.0.0.0:")[1].split()[0]
                url = f"http://127.0.0.1:{port}"
                assert (status(url), status(url, sent)) == (401, 200)
            finally:
                server.terminate()
                server.communicate(timeout=60)
