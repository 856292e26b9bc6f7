"""Documentation that is run or compared, so that it cannot rot."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
START_LIMIT_S = 60.0


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[tuple[str, str]]:
    """The ``$`` lines of a console block, each with the output shown below it."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(part.split("\n", 1)[0], part.split("\n", 1)[1].strip()) for part in parts]


def normal(text: str) -> str:
    """Output without what differs from run to run: decimals, digests, times, spacing."""
    text = re.sub(r"\d{4}-\d\d-\d\d[T ][0-9:.]+(Z|\+00:00)?", "TIME", text)
    text = re.sub(r"-?\d+\.\d+(e-?\d+)?", "N", text)
    text = re.sub(r"sha256:[0-9a-f…]+|\b[0-9a-f]{12,64}\b", "DIGEST", text)
    return "\n".join(re.sub(r"[ \t]+", " ", line).strip() for line in text.strip().splitlines())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``labelmux serve`` as `make serve` runs it, on a free port and a fresh state folder.

    In float32: the order of labels that are all but impossible is otherwise the machine's.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("serve")
    with (folder / "out").open("w") as out:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "labelmux_cli.main", "serve"),
                *("--port", str(port), "--dtype", "float32"),
            ],
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            assert process.poll() is None, (folder / "out").read_text()
            assert time.monotonic() < deadline, "not ready in time"
            try:
                if httpx2.get(f"{url}/health/ready").status_code == 200:
                    break
            except httpx2.TransportError:
                continue
        yield url
    finally:
        process.terminate()
        assert process.wait(30) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader stands: a folder with the clone's docs in it."""
    place = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "docs/examples", place / "docs/examples")
    return place


def run(command: str, url: str, folder: Path) -> str:
    address = url.removeprefix("http://")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LABELMUX_URL": url,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        ["bash", "-c", command.replace("127.0.0.1:8000", address)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout.replace(address, "127.0.0.1:8000")


@pytest.mark.slow
def test_the_readmes_console_lines_print_what_it_says(server: str, folder: Path) -> None:
    shown = [pair for block in blocks(README, "console") for pair in commands(block)]
    assert len(shown) >= 10
    for command, expected in shown:
        found = run(command, server, folder)
        if expected:
            assert normal(found) == normal(expected), command


@pytest.mark.slow
def test_the_lines_for_other_servers_clients_run(server: str, folder: Path) -> None:
    page = (ROOT / "docs/compatibility.md").read_text()
    shown = [pair for block in blocks(page, "console") for pair in commands(block)]
    assert len(shown) >= 3
    for command, expected in shown:
        assert normal(run(command, server, folder)) == normal(expected), command
    scripts = blocks(page, "python")
    assert len(scripts) >= 3
    for code in scripts:
        script = folder / "client.py"
        script.write_text(code.replace("127.0.0.1:8000", server.removeprefix("http://")))
        printed = run(f"{sys.executable} {script}", server, folder)
        assert re.search("positive|sentiment", printed), code


@pytest.mark.slow
def test_the_readmes_python_runs(server: str, folder: Path) -> None:
    (code,) = blocks(README, "python")
    script = folder / "readme.py"
    script.write_text(code.replace("http://127.0.0.1:8000", server))
    printed = run(f"{sys.executable} {script}", server, folder)
    assert [line.split()[0] for line in printed.splitlines()] == ["number", "human"]


def test_the_readme_names_make_verbs_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    for verb in set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)):
        assert re.search(rf"^{verb}:", makefile, re.MULTILINE), verb


def test_links_between_documents_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_setting_is_documented_as_it_is() -> None:
    from labelmux_server.settings import docs_table

    assert docs_table().strip() in (ROOT / "docs/settings.md").read_text()


def test_every_limit_is_documented_with_its_code() -> None:
    from labelmux_server.documented import known_codes
    from labelmux_server.settings import Settings

    page = (ROOT / "docs/operations.md").read_text()
    rows = re.findall(r"^\| `(max_[a-z_]+)` \|[^|]*\|([^|]*)\|", page, re.MULTILINE)
    shapes_batches = {"max_batch_tokens", "max_batch_rows", "max_wait_ms"}
    limits = {knob.name for knob in Settings.knobs() if knob.name.startswith("max_")}
    assert {name for name, _ in rows} == limits - shapes_batches
    for name, words in rows:
        codes = set(re.findall(r"`([a-z_]+)`", words))
        assert codes, name
        assert codes <= set(known_codes()), name


def test_every_error_code_is_documented_with_its_status() -> None:
    from labelmux_server.documented import known_codes

    page = (ROOT / "docs/http-api.md").read_text()
    documented = {
        code: int(status)
        for code, status in re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \|", page, re.MULTILINE)
    }
    assert documented == known_codes()


def test_every_route_of_the_contract_is_documented() -> None:
    import json

    page = (ROOT / "docs/http-api.md").read_text()
    for path in json.loads((ROOT / "clients/openapi.json").read_text())["paths"]:
        assert path in page, path
