"""``labelmux serve``: its options, and one server driven from start to end."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading

import pytest

from labelmux_cli import serve as module
from labelmux_server.serve import Serving
from labelmux_server.settings import Settings


@pytest.fixture
def started(monkeypatch):
    """Settings that the server was started with; it announces itself and ends."""
    found = []

    def serve(settings, announce, environ):
        found.append(settings)
        access = "open" if settings.admin_key is None else "key"
        announce(Serving("http://127.0.0.1:8000", "bundled", ("spam", "tone"), access))

    monkeypatch.setattr("labelmux_server.serve.serve", serve)
    for knob in Settings.knobs():
        monkeypatch.delenv(knob.env, raising=False)
    return found


def test_every_setting_is_an_option_and_its_default_is_the_servers(labelmux, started):
    done = labelmux("serve", "--help")
    for knob in Settings.knobs():
        assert knob.flag in done.out
    assert labelmux("serve").code == 0
    assert started == [Settings()]


def test_options_win_over_the_environment(labelmux, started, monkeypatch, tmp_path):
    monkeypatch.setenv("LABELMUX_PORT", "9001")
    monkeypatch.setenv("LABELMUX_NO_DEMO", "true")
    done = labelmux("serve", "--port", 9000, "--state-dir", tmp_path, "--max-wait-ms", 2.5)
    assert done.code == 0, done.err
    (settings,) = started
    assert (settings.port, settings.no_demo, settings.max_wait_ms) == (9000, True, 2.5)
    assert settings.state_dir == tmp_path


def test_a_newcomer_is_told_what_serves_and_what_to_try(labelmux, started):
    out = labelmux("serve").out
    assert "http://127.0.0.1:8000/docs" in out
    assert "spam, tone" in out
    assert "open to everyone on this machine" in out
    assert "curl http://127.0.0.1:8000/v1/classify" in out
    assert "\n" not in module._curl("http://x", "{}")
    key = labelmux("serve", "--admin-key", "secret-1").out
    assert "with a key" in key
    assert "secret-1" not in key


def test_json_says_where_it_serves(labelmux, started):
    assert labelmux("serve", "--json").json == {
        "url": "http://127.0.0.1:8000",
        "encoder": "bundled",
        "tasks": ["spam", "tone"],
        "access": "open",
    }


@pytest.mark.parametrize(
    "args", [["--port", "http"], ["--port", "70000"], ["--log-level", "loud"], ["--nonsense"]]
)
def test_wrong_settings_end_in_2(labelmux, started, args):
    done = labelmux("serve", *args)
    assert (done.code, started) == (2, [])
    assert done.err


def test_an_encoder_that_is_not_there_ends_in_1(labelmux, tmp_path, monkeypatch):
    monkeypatch.setattr("labelmux_server.logs.configure", lambda *args, **options: None)
    done = labelmux(
        *("serve", "--encoder", tmp_path / "none", "--state-dir", tmp_path / "state"),
        *("--port", 0, "--no-demo", "--json"),
    )
    assert done.code == 1
    assert "none" in done.json["error"]["message"]


@pytest.fixture
def serving(tiny_encoder_folder, tmp_path):
    """A real server of the tiny encoder; its process and what it said of itself."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "labelmux_cli.main", "serve", "--json", "--no-demo"),
            *("--port", "0", "--encoder", str(tiny_encoder_folder)),
            *("--state-dir", str(tmp_path / "state")),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    said = queue.Queue()
    reader = threading.Thread(target=lambda: said.put(process.stdout.readline()))
    reader.start()
    try:
        yield process, json.loads(said.get(timeout=120))
    finally:
        process.kill()
        process.communicate()
        reader.join()


@pytest.mark.slow
def test_a_task_lives_its_whole_life(labelmux, serving, make_adapter, tmp_path, adapter_bytes):
    process, said = serving
    url = said["url"]
    assert (said["tasks"], said["access"]) == ([], "open")
    assert "No tasks yet" in labelmux("tasks", url=url).out
    first, second = tmp_path / "mood.safetensors", tmp_path / "second.safetensors"
    first.write_bytes(adapter_bytes(make_adapter(("good", "bad"), seed=1)))
    second.write_bytes(adapter_bytes(make_adapter(("good", "bad"), seed=2)))

    assert labelmux("push", first, "--json", url=url).json["version"] == 1
    answer = labelmux("classify", "a good film", "--task", "mood", "--json", url=url)
    one = answer.json["results"][0]["predictions"]["mood"]
    assert one["version"] == 1
    assert {item["label"] for item in one["labels"]} == {"good", "bad"}
    assert sum(item["score"] for item in one["labels"]) == pytest.approx(1.0)

    pushed = labelmux("push", second, "--task", "mood", "--json", url=url).json
    assert (pushed["version"], pushed["created"]) == (2, True)
    two = labelmux("classify", "a good film", "--all", "--json", url=url).json["results"][0]
    assert two["predictions"]["mood"]["version"] == 2
    assert two["predictions"]["mood"]["labels"] != one["labels"]

    listed = labelmux("versions", "mood", "--json", url=url).json
    assert [(item["version"], item["active"]) for item in listed["versions"]] == [
        (1, False),
        (2, True),
    ]
    assert labelmux("tasks", "--json", url=url).json["tasks"][0]["version"] == 2
    assert labelmux("rollback", "mood", "--json", url=url).json["version"] == 1
    again = labelmux("classify", "a good film", "--task", "mood", "--json", url=url)
    assert again.json["results"][0]["predictions"]["mood"] == one
    assert labelmux("activate", "mood", 2, url=url).code == 0

    out = tmp_path / "back.safetensors"
    assert labelmux("download", "mood", "--version", 1, "--out", out, url=url).code == 0
    assert out.read_bytes() == first.read_bytes()

    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\na good film,good\nthe soup was cold,bad\n")
    assert labelmux("evaluate", "--task", "mood", rows, "--json", url=url).json["rows"] == 2

    refused = labelmux("delete", "mood", "--version", 2, "--yes", "--json", url=url)
    assert (refused.code, refused.json["error"]["code"]) == (1, "version_active")
    assert labelmux("delete", "mood", "--version", 1, "--yes", url=url).code == 0
    assert labelmux("delete", "mood", "--yes", url=url).code == 0
    gone = labelmux("classify", "a", "--task", "mood", "--json", url=url)
    assert (gone.code, gone.json["error"]["code"]) == (1, "task_not_found")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(first.read_bytes()[:-8])
    refused = labelmux("push", bad, "--json", url=url)
    assert (refused.code, refused.json["error"]["code"]) == (1, "truncated_file")

    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
