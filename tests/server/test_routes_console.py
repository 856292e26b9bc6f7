"""The console's files, as the server hands them out."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

from labelmux_server import contract
from labelmux_server.routes_console import FOLDER

ROOT = Path(__file__).parents[2]
FILES = sorted(path.name for path in FOLDER.iterdir())
KINDS = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}


def test_every_file_is_served_as_what_it_is_under_a_strict_policy(serving):
    async def scenario(client, service):
        for place in ("/", *(f"/console/{name}" for name in FILES)):
            answer = await client.get(place)
            assert answer.status_code == 200, place
            kind = KINDS[place.rpartition(".")[2]] if place != "/" else "text/html"
            assert answer.headers["content-type"].split(";")[0] == kind
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'self';")
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cache-control"] == "no-cache"

    serving(scenario)


def test_an_unchanged_file_is_not_sent_again(serving):
    async def scenario(client, service):
        first = await client.get("/")
        again = await client.get("/", headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")

    serving(scenario)


@pytest.mark.parametrize(
    "path", ["", "absent.js", "..%2f..%2fpyproject.toml", "%2fetc%2fpasswd", "%00", "a" * 5000]
)
def test_nothing_but_the_consoles_files_is_served(serving, path):
    async def scenario(client, service):
        answer = await client.get(f"/console/{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")

    serving(scenario)


def test_the_latency_it_shows_is_that_of_calls_and_not_of_streams_or_probes():
    """A stream lasts as long as its caller has lines; the script's patterns read as Python's do."""
    script = (FOLDER / "pulse.js").read_text(encoding="utf-8")
    own, asked = (
        re.compile(re.search(rf"const {name} =\s+/(.+)/;", script)[1].replace(r"\/", "/"))
        for name in ("OWN", "ASKED")
    )
    paths = contract.openapi()["paths"]
    answers = {path for path in paths if asked.search(path)}
    assert answers == {
        path
        for path, operations in paths.items()
        if path.endswith(("/classify", "/predict", "/infer")) and "post" in operations
    }
    assert "/v1/classify/stream" not in answers
    probes = {path for path in paths if own.search(path)}
    assert probes == {path for path in paths if "/health" in path} | {"/metrics", "/v1/info"}


@pytest.mark.slow
def test_the_wheel_carries_the_console(tmp_path, monkeypatch):
    from hatchling.build import build_wheel

    monkeypatch.chdir(ROOT)
    wheel = zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path)))
    place = "labelmux_server/web/"
    packed = {name.removeprefix(place) for name in wheel.namelist() if name.startswith(place)}
    assert packed == set(FILES)


def test_the_pages_files_are_all_there_and_nothing_comes_from_elsewhere():
    for name in FILES:
        text = (FOLDER / name).read_text()
        for target in re.findall(
            r'(?:from|import) "\./([^"]+)"|(?:src|href)="console/([^"]+)"', text
        ):
            assert "".join(target) in FILES, f"{name}: {target}"
        addresses = re.findall(r"(?:https?:)?//[\w-]+\.[\w.-]+[\w/]*", text)
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, name
