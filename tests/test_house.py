"""The rules of the house that a machine can check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    "labelmux_encoder": ROOT / "encoder/labelmux_encoder",
    "labelmux_adapters": ROOT / "adapters/labelmux_adapters",
    "labelmux_training": ROOT / "training/labelmux_training",
    "labelmux_server": ROOT / "server/labelmux_server",
    "labelmux_cli": ROOT / "cli/labelmux_cli",
    "labelmux_client": ROOT / "clients/python/labelmux_client",
}
#: What each room may import of the others, and nothing else.
MAY_IMPORT = {
    "labelmux_encoder": set[str](),
    "labelmux_adapters": {"labelmux_encoder"},
    "labelmux_training": {"labelmux_encoder", "labelmux_adapters"},
    "labelmux_server": {"labelmux_encoder", "labelmux_adapters"},
    "labelmux_cli": {
        "labelmux_encoder",
        "labelmux_adapters",
        "labelmux_training",
        "labelmux_server",
        "labelmux_client",
    },
    "labelmux_client": set[str](),
}
#: Outside these, a broad except hides a fault. The tokenizer library raises bare Exception; the
#: client's threads hand every error to whoever takes their result.
BROAD_EXCEPT = {
    "server/labelmux_server/replica.py",
    "server/labelmux_server/residency.py",
    "server/labelmux_server/edge.py",
    "server/labelmux_server/tokenizer_pool.py",
    "encoder/labelmux_encoder/tokenizer.py",
    "clients/python/labelmux_client/_threads.py",
}
MAX_FILE_LINES = 500


def sources(*folders: Path) -> Iterator[Path]:
    for folder in folders or ROOMS.values():
        yield from sorted(folder.rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_one_way(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(ROOMS[room])
        for name in imports(ast.parse(path.read_text()))
        if name.split(".")[0] in ROOMS.keys() - {room} - MAY_IMPORT[room]
    ]
    assert wrong == []


def test_torch_enters_the_server_through_the_replica_alone() -> None:
    users = {
        path.name
        for path in sources(ROOMS["labelmux_server"])
        for name in imports(ast.parse(path.read_text()))
        if name.split(".")[0] == "torch"
    }
    assert users <= {"replica.py"}


def test_no_top_level_folder_is_a_package() -> None:
    found = [path for path in ROOT.glob("*/__init__.py") if path.parent.name != ".venv"]
    assert found == []


def test_files_stay_short() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources(*ROOMS.values(), ROOT / "tests", ROOT / "bench")
        if (lines := len(path.read_text().splitlines())) > MAX_FILE_LINES
    }
    assert long == {}


def test_broad_excepts_are_where_they_are_allowed() -> None:
    found = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                names = (
                    {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
                    if node.type
                    else {"Exception"}
                )
                if names & {"Exception", "BaseException"}:
                    found.add(str(path.relative_to(ROOT)))
    assert found <= BROAD_EXCEPT


def test_nothing_names_a_machine_path_or_a_registry_host() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    pattern = re.compile(r"/work/(main|shared)|index-url|pypi\.org|BEGIN [A-Z ]*PRIVATE KEY")
    wrong = [
        name
        for name in tracked
        if name.endswith((".py", ".toml", ".md", ".txt", ".yaml", ".yml", "Makefile", "Dockerfile"))
        and name != "tests/test_house.py"
        and (ROOT / name).is_file()
        and pattern.search((ROOT / name).read_text())
    ]
    assert wrong == []


def test_importing_a_room_reads_no_environment_and_configures_no_logging() -> None:
    code = (
        "import os, logging\n"
        "class Watched(dict):\n"
        "    pass\n"
        "before = list(logging.getLogger().handlers)\n"
        "import labelmux_server.settings, labelmux_cli.main, labelmux_client\n"
        "assert logging.getLogger().handlers == before\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    for path in sources():
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
                continue
            read = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
            assert not read & {"environ", "getenv", "basicConfig"}, path


def test_both_wheels_and_the_changelog_agree_on_the_version() -> None:
    versions = {
        tomllib.loads((ROOT / name).read_text())["project"]["version"]
        for name in ("pyproject.toml", "clients/python/pyproject.toml")
    }
    (version,) = versions
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
