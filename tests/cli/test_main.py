"""Help, exit codes, imports: what holds for every command."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMANDS = [
    "serve",
    "train",
    "evaluate",
    "push",
    "tasks",
    "versions",
    "history",
    "keys",
    "activate",
    "rollback",
    "delete",
    "download",
    "classify",
    "inspect",
    "import-peft",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(labelmux, command):
    done = labelmux(command, "--help")
    assert done.code == 0
    assert f"labelmux {command}" in done.out.split("Example:")[1]
    assert "--json" in done.out


def test_no_arguments_show_the_commands(labelmux):
    done = labelmux()
    for command in COMMANDS:
        assert f" {command} " in done.out + done.err


def test_version(labelmux):
    done = labelmux("--version")
    assert (done.code, done.out.split()[0]) == (0, "labelmux")


@pytest.mark.parametrize("args", [["nonsense"], ["push"], ["activate", "spam", "first"]])
def test_usage_errors_end_in_2(labelmux, args):
    done = labelmux(*args)
    assert done.code == 2
    assert done.err


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_server_that_is_not_there_ends_in_3(labelmux, monkeypatch):
    monkeypatch.setattr("labelmux_client._retry.FIRST_PAUSE_S", 0.0)
    url = f"http://127.0.0.1:{free_port()}"
    done = labelmux("tasks", "--json", url=url)
    assert done.code == 3
    assert done.json["error"]["code"] == "not_reachable"
    assert "labelmux serve" in done.err
    assert done.err.count("\n") == 1


def test_something_that_is_no_labelmux_server_ends_in_1(labelmux, server, monkeypatch):
    monkeypatch.setattr(server, "_info", lambda name: "hello")
    done = labelmux("tasks", url=server.url)
    assert done.code == 1
    assert "not one of a labelmux server" in done.err


HEAVY = ("torch", "numpy", "transformers", "fastapi", "sqlalchemy", "uvicorn")


def loaded_by(code):
    """The heavy packages that a fresh interpreter has loaded after ``code``."""
    code += f"\nimport sys; print('loaded', [n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["serve", "--help"],
        ["tasks"],
        ["push", "FILE"],
        ["classify", "hi", "--task", "spam"],
        ["versions", "spam"],
    ],
)
def test_what_needs_no_torch_loads_none(server, adapter_file, args, monkeypatch):
    monkeypatch.setenv("LABELMUX_URL", server.url)
    arguments = [str(adapter_file) if arg == "FILE" else arg for arg in args]
    code = f"from labelmux_cli.main import run\nassert run({arguments!r}) == 0"
    assert loaded_by(code) == "loaded []"


def spawn(*args, **kwargs):
    environ = {**os.environ, "NO_PROXY": "127.0.0.1"}
    return subprocess.Popen(
        [sys.executable, "-m", "labelmux_cli.main", *args],
        stderr=subprocess.PIPE,
        env=environ,
        **kwargs,
    )


def test_a_closed_pipe_is_quiet(server):
    reader, writer = os.pipe()
    os.close(reader)
    with spawn("tasks", "--url", server.url, stdout=writer) as done:
        os.close(writer)
        _, err = done.communicate(timeout=60)
    assert (done.returncode, err) == (141, b"")
    reader, writer = os.pipe()
    os.close(reader)
    with spawn("tasks", "--json", "--url", server.url, stdout=writer) as done:
        os.close(writer)
        _, err = done.communicate(timeout=60)
    assert (done.returncode, err) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "args",
    [
        ["classify", "hi", "--task", "spam", "--json"],
        ["tasks"],
        ["tasks", "--json"],
        ["versions", "absent", "--json"],
        ["--version"],
    ],
)
def test_a_full_disk_ends_in_1_and_one_line(server, args):
    with open("/dev/full", "wb") as full:
        where = [] if args == ["--version"] else ["--url", server.url]
        with spawn(*args, *where, stdout=full) as done:
            _, err = done.communicate(timeout=60)
    problem = b"labelmux tasks" if "absent" in args else b"no space left on device"
    assert (done.returncode, err.count(b"\n")) == (1, 1), err
    assert problem in err


@pytest.mark.parametrize("args", [["tasks"], ["tasks", "--json"], ["versions", "absent"]])
def test_a_closed_stdout_ends_in_1_and_one_line(server, args):
    with spawn(*args, "--url", server.url, preexec_fn=lambda: os.close(1)) as done:
        _, err = done.communicate(timeout=60)
    problem = b"labelmux tasks" if "absent" in args else b"stdout: closed"
    assert (done.returncode, err.count(b"\n"), problem in err) == (1, 1, True), err


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_in_130_without_a_traceback(server):
    args = ("classify", "--task", "spam", "--url", server.url, "--json")
    with spawn(*args, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        running.stdin.write(b"hi\n" * 64)
        running.stdin.flush()
        assert json.loads(running.stdout.readline())["text"] == "hi"  # it waits for more
        deadline = time.monotonic() + 30
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=deadline - time.monotonic())
    assert running.returncode == 130
    assert b"Traceback" not in err
