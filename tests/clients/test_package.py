"""What the package is: twins that agree, few imports, one version, a README that runs."""

import asyncio
import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx2
import pytest

import labelmux_client
from labelmux_client import AsyncClient, Client

ROOT = Path(__file__).parents[2] / "clients" / "python"
ROOMS = ("labelmux_encoder", "labelmux_adapters", "labelmux_training", "labelmux_server")


def public(kind):
    """The public methods of a class by name."""
    members = inspect.getmembers(kind, inspect.isfunction)
    return {name: function for name, function in members if not name.startswith("_")}


def parameters(function):
    """Names, kinds and defaults."""
    found = inspect.signature(function).parameters.values()
    return [(item.name, item.kind, item.default) for item in found]


def without_async(function):
    """The annotations of an async method as those of its twin."""
    return {
        name: re.sub(r" \| AsyncIterable\[.*\](?= \|)", "", said).replace(
            "AsyncIterator", "Iterator"
        )
        for name, said in function.__annotations__.items()
    }


def test_the_twins_have_the_same_methods_and_signatures():
    sync, twin = public(Client), public(AsyncClient)
    assert sync.keys() == twin.keys()
    for name in sync:
        assert parameters(sync[name]) == parameters(twin[name]), name
        assert sync[name].__annotations__ == without_async(twin[name]), name
        assert inspect.iscoroutinefunction(twin[name]) != ("stream" in name), name
        assert not inspect.iscoroutinefunction(sync[name]), name


def test_the_twins_are_made_with_the_same_arguments():
    own = {"http_client", "sleep"}
    made = [
        [(*item, note) for item in parameters(kind) if item[0] not in own for note in [""]]
        for kind in (Client, AsyncClient)
    ]
    assert made[0] == made[1]
    kinds = {item.kind for item in inspect.signature(Client).parameters.values()}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}


def test_importing_it_pulls_in_no_torch_no_pydantic_and_no_other_room():
    code = (
        "import sys, labelmux_client; "
        f"print([n for n in sys.modules if n.split('.')[0] in {(*ROOMS, 'torch', 'pydantic')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_names_what_is_there():
    assert labelmux_client.__all__ == sorted(labelmux_client.__all__)
    for name in labelmux_client.__all__:
        assert hasattr(labelmux_client, name)


def test_the_version_is_the_one_of_the_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == labelmux_client.__version__
    assert project["dependencies"] == ["httpx2"]


def test_an_http_client_that_was_given_stays_open():
    with httpx2.Client() as http_client:
        with Client(http_client=http_client):
            pass
        assert not http_client.is_closed
    client = Client()
    with client:
        pass
    assert client._http.is_closed


def test_an_async_http_client_that_was_given_stays_open():
    async def run():
        async with httpx2.AsyncClient() as http_client:
            async with AsyncClient(http_client=http_client):
                pass
            assert not http_client.is_closed
        async with AsyncClient() as client:
            pass
        assert client._http.is_closed

    asyncio.run(run())


def test_the_readme_runs(wire, monkeypatch, tmp_path, capsys):
    ref = {"task": "spam", "version": 1, "digest": wire.DIGEST, "active": True}

    def handle(request):
        path = request.url.path
        if path == "/v1/classify":
            return wire.classified({"spam": wire.PREDICTION})
        if path == "/v1/classify/stream":
            said = dict.fromkeys(request.url.params.get_list("task"), wire.PREDICTION)
            lines = [{"line": 1, "predictions": said}] * len(request.content.splitlines())
            return httpx2.Response(200, content="\n".join(map(json.dumps, lines)))
        if path.endswith("/versions"):
            return wire.answer(200, wire.VERSIONS)
        return wire.answer(204 if request.method == "DELETE" else 200, ref)

    transport = httpx2.MockTransport(handle)
    for name in ("Client", "AsyncClient"):
        made = getattr(httpx2, name)
        monkeypatch.setattr(httpx2, name, lambda made=made: made(transport=transport))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spam.safetensors").write_bytes(b"x")
    (tmp_path / "texts.txt").write_text("a\nb\n")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 5
    scope = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    assert asyncio.run(scope["label"]("win")) == "spam"
    assert capsys.readouterr().out.startswith("spam 0.75\n")


@pytest.mark.parametrize("name", ["Client", "AsyncClient"])
def test_every_public_method_has_a_docstring(name):
    for method in public(getattr(labelmux_client, name)).values():
        assert method.__doc__
