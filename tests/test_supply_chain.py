"""What the project brings with it, and what it never does: pickle, eval, telemetry, the network."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
SOURCES = [
    path
    for folder in ("encoder", "adapters", "training", "server", "cli", "clients", "bench", "docs")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
#: The one function that reads what ``torch.save`` wrote, as plain tensors.
PLAIN = (ROOT / "encoder/labelmux_encoder/weights.py", "load_plain")
#: Modules whose files can run code when they are read.
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load"}
OPTIONS = {"allow_pickle=True", "trust_remote_code=True", "shell=True", "weights_only=False"}


def project(folder: str = ".") -> dict:
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in found}


def installed_by_setup() -> set[str]:
    """Every requirement of ``make setup``, and theirs, as far as they hold on this machine."""
    ours = project()["project"]
    wanted = [*ours["dependencies"], *project("clients/python")["project"]["dependencies"]]
    for extra in ("train", "otel", "dev"):
        wanted += ours["optional-dependencies"][extra]
    wanted += project()["build-system"]["requires"]
    found: set[str] = set()
    waiting = [Requirement(each) for each in wanted]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        place = f"{name}[{','.join(sorted(requirement.extras))}]"
        if place in found or name == "labelmux-client":
            continue
        found |= {place, name}
        for text in requires(name) or ():
            further = Requirement(text)
            extras = requirement.extras or {""}
            if not further.marker or any(further.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(further)
    return {name for name in found if "[" not in name}


def test_all_that_setup_installs_is_pinned_to_one_version() -> None:
    assert installed_by_setup() - pins().keys() == set()
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.+]*", version) for version in pins().values())


def test_what_is_installed_is_what_is_pinned() -> None:
    wrong = {
        name: found
        for name in installed_by_setup()
        if (found := version(name).partition("+")[0]) != pins()[name]
    }
    assert wrong == {}


def test_every_other_extra_is_pinned_too() -> None:
    for extra, wanted in project()["project"]["optional-dependencies"].items():
        names = {canonicalize_name(Requirement(each).name) for each in wanted}
        assert names - pins().keys() == set(), extra


def test_every_install_goes_through_the_pins() -> None:
    for name in ("Makefile", "Dockerfile"):
        lines = (ROOT / name).read_text().replace("\\\n", " ").splitlines()
        installs = [line for line in lines if re.search(r"pip3? install", line)]
        assert installs
        for line in installs:
            for call in re.findall(r"pip3? install[^&|;]*", line):
                pinned = "-c constraints.txt" in call or re.search(r"==|-r \S*\$<|-r bench", call)
                assert pinned, call.strip()


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Every node, with the name of the top-level function it is in."""
    for item in tree.body:
        for node in ast.walk(item):
            yield getattr(item, "name", ""), node


def dangers(path: Path) -> Iterator[str]:
    """What in a file could run code from data."""
    for where, node in functions(ast.parse(path.read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and path != PLAIN[0]:
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from (f"imports {name}" for name in names if name.split(".")[0] in PICKLES)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {f"{each.arg}={ast.unparse(each.value)}" for each in node.keywords}
            plain = called == "torch.load" and (path, where) == PLAIN
            if called in CALLS and not (plain and "weights_only=True" in given):
                yield called
            elif given & OPTIONS:
                yield f"{called} with {given & OPTIONS}"


def test_no_file_of_ours_reads_pickle_or_runs_what_it_reads() -> None:
    assert len(SOURCES) > 100
    found = {str(path.relative_to(ROOT)): list(dangers(path)) for path in SOURCES}
    assert {name: each for name, each in found.items() if each} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "eval(x)",
        "exec(x)",
        "torch.load(x)",
        "torch.load(x, weights_only=True)",
        "np.load(x, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "def load_plain(x): torch.load(x, weights_only=False)",
    ],
)
def test_the_search_finds_what_it_looks_for(tmp_path: Path, line: str) -> None:
    path = tmp_path / "weights.py"
    path.write_text(f"{line}\n")
    assert len(list(dangers(path))) == 1


#: Serve the bundled encoder with the demo tasks, ask, upload and stop, all in one process tree.
TALK = """
    import json, os, select, signal, subprocess, sys, urllib.request

    server = subprocess.Popen(
        [sys.executable, "-c", sys.argv[1], "--port", "0", "--state-dir", sys.argv[2]],
        stdout=subprocess.PIPE,
    )
    line = server.stdout.readline().decode()
    url = next(word for word in line.split() if word.startswith("http://"))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(method, path, data=None, kind="application/json"):
        request = urllib.request.Request(url + path, data, {"content-type": kind}, method=method)
        return opener.open(request, timeout=60).read()

    body = json.dumps({"tasks": ["*"], "texts": "a lovely film"}).encode()
    answer = json.loads(ask("POST", "/v1/classify", body))
    data = ask("GET", "/v1/tasks/spam/adapter")
    ask("PUT", "/v1/tasks/spam-too/adapter", data, "application/octet-stream")
    ask("GET", "/metrics")
    server.send_signal(signal.SIGTERM)
    print(json.dumps([server.wait(60), sorted(answer["results"][0]["predictions"])]))
"""

#: A server that writes down every address it asks for or connects to.
WATCHED = """
    import sys

    def watch(event, args):
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
            print("REACHED", event, *args, file=sys.stderr)

    sys.addaudithook(watch)
    from labelmux_server.__main__ import main

    sys.exit(main(sys.argv[1:]))
"""

#: A network namespace has nothing but a loopback that is down.
LOOPBACK_UP = """
    import fcntl, socket, struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=5)
    except OSError as error:
        assert error.errno == 101, error
    else:
        raise SystemExit("the network is not off")
"""


def talk(*prefix: str, before: str = "", folder: Path) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(before) + textwrap.dedent(TALK)
    return subprocess.run(
        [*prefix, sys.executable, "-c", code, textwrap.dedent(WATCHED), str(folder / "state")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def check(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    code, tasks = json.loads(done.stdout)
    assert code == 0
    assert "sentiment" in tasks
    assert "REACHED" not in done.stderr


@pytest.mark.slow
def test_a_server_connects_to_nobody_from_start_to_end(tmp_path: Path) -> None:
    check(talk(folder=tmp_path))


@pytest.mark.slow
def test_a_server_works_with_the_network_off(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    prefix = (unshare or "unshare", "--map-root-user", "--net")
    possible = unshare and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    if not possible:
        pytest.skip("NOT TESTED: no network namespace can be made here (unshare --net)")
    check(talk(*prefix, before=LOOPBACK_UP, folder=tmp_path))


def test_the_search_for_connections_finds_one(tmp_path: Path) -> None:
    hook = textwrap.dedent(WATCHED).split("from labelmux_server")[0]
    code = hook + "import socket; socket.socket().connect_ex(('127.0.0.1', 9))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "REACHED socket.connect" in done.stderr
