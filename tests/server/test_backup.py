"""The procedure of docs/operations.md, beside a server that runs and takes uploads."""

from __future__ import annotations

import re
import subprocess
import threading
from pathlib import Path

import httpx2
import pytest

PAGE = (Path(__file__).parents[2] / "docs/operations.md").read_text()
SECTION = PAGE.split("## Backing up and restoring")[1].split("\n## ")[0]
BACK_UP, RESTORE = re.findall(r"^```bash\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)


def run(commands: str, folder: Path) -> None:
    """As a reader would, in the folder where the server's ``state`` is."""
    subprocess.run(["bash", "-euc", commands], cwd=folder, check=True, timeout=60)


def tasks(client: httpx2.Client) -> dict[str, list[str]]:
    """Each task's digests, by version."""
    names = [task["task"] for task in client.get("/v1/tasks").json()["tasks"]]
    return {
        name: [v["digest"] for v in client.get(f"/v1/tasks/{name}/versions").json()["versions"]]
        for name in names
    }


@pytest.mark.slow
def test_a_backup_beside_a_running_server_restores_what_was_there(
    start_server, adapter_bytes, tmp_path
):
    files = [adapter_bytes(seed=seed) for seed in range(12)]
    server = start_server("--dtype", "float32")
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        for task in ("a", "b"):
            client.put(f"/v1/tasks/{task}/adapter", content=files[0]).raise_for_status()
        first = client.post("/v1/classify", json={"task": "a", "texts": "the train"}).json()
        before = tasks(client)

        def upload() -> None:
            for data in files[1:]:
                client.put("/v1/tasks/b/adapter", content=data).raise_for_status()

        uploads = threading.Thread(target=upload)
        uploads.start()
        run(BACK_UP, tmp_path)
        uploads.join()
        after = tasks(client)
    server.kill()
    (tmp_path / "state").rename(tmp_path / "lost")

    run(RESTORE, tmp_path)
    with httpx2.Client(base_url=start_server("--dtype", "float32").url, timeout=60) as client:
        found = tasks(client)
        assert found["a"] == before["a"]
        assert found["b"] == after["b"][: len(found["b"])]
        again = client.post("/v1/classify", json={"task": "a", "texts": "the train"}).json()
        assert again["results"] == first["results"]
        for number in range(1, len(found["b"]) + 1):
            answer = client.post("/v1/classify", json={"task": f"b@{number}", "texts": "a"})
            assert answer.status_code == 200
        assert len(client.get("/v1/tasks/b/history").json()["history"]) == len(found["b"])
