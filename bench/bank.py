"""A server with few and with many registered tasks: its start, memory, hot and cold requests.

    python bench/bank.py --tasks 10
    python bench/bank.py --tasks 10000

The tasks that are asked for have adapters of the shipped size; the others exist to be registered,
so theirs are small. Requests go through the app in this process, without a socket.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import torch
from sqlalchemy import insert
from sqlalchemy.orm import Session

from labelmux_adapters.files import write_adapter
from labelmux_adapters.manifest import Canary, Manifest
from labelmux_adapters.ytuning import YTuningSizes, expected_tensors, parameter_count
from labelmux_encoder.weights import LoadedEncoder, load_encoder
from labelmux_server.app import create_app
from labelmux_server.blobs import digest_of
from labelmux_server.database import ManifestRow, TaskRow, VersionRow
from labelmux_server.settings import Settings
from labelmux_server.store import Store

ASKED = 10
REQUESTS = 300
TEXT = "My card was charged twice, and I want the money back before the weekend, please."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    tasks = parser.parse_args().tasks
    torch.set_num_threads(2)
    loaded = load_encoder("bundled", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        _register(Path(folder), loaded, tasks)
        found = asyncio.run(_measure(Path(folder), loaded))
    print(json.dumps({"tasks": tasks, **found}))


async def _measure(folder: Path, loaded: LoadedEncoder) -> dict[str, float]:
    app = create_app(Settings(state_dir=folder, no_demo=True), loaded)
    before, started = _resident_mib(), time.perf_counter()
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://labelmux") as client,
    ):
        found = {
            "start_s": time.perf_counter() - started,
            "start_mib": _resident_mib() - before,
        }

        async def ask(task: str) -> float:
            asked = time.perf_counter()
            answer = await client.post("/v1/classify", json={"task": task, "texts": TEXT})
            assert answer.status_code == 200, answer.text
            return (time.perf_counter() - asked) * 1e3

        await ask("asked-0")
        cold = [await ask(f"asked-{at}") for at in range(1, ASKED)]
        hot = [await ask(f"asked-{at % ASKED}") for at in range(REQUESTS)]
        asked = time.perf_counter()
        assert (await client.get("/v1/tasks")).status_code == 200
        found |= {
            "hot_median_ms": statistics.median(hot),
            "hot_p99_ms": statistics.quantiles(hot, n=100)[98],
            "cold_median_ms": statistics.median(cold),
            "cold_worst_ms": max(cold),
            "list_s": time.perf_counter() - asked,
            "end_mib": _resident_mib() - before,
        }
    return {name: round(value, 2) for name, value in found.items()}


def _register(folder: Path, loaded: LoadedEncoder, tasks: int) -> None:
    """A state folder as uploads would have left it, written in one transaction."""
    store = Store(folder)
    records: dict[type, list[dict[str, object]]] = {TaskRow: [], VersionRow: [], ManifestRow: []}
    for name, manifest, data in _adapters(loaded, tasks):
        digest = digest_of(data)
        path = store.blobs._path(digest)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        now = datetime.now(UTC).isoformat()
        records[TaskRow].append({"name": name, "active": 1})
        records[VersionRow].append(
            {
                "task": name,
                "number": 1,
                "digest": digest,
                "size_bytes": len(data),
                "created_at": now,
            }
        )
        records[ManifestRow].append(
            {
                "digest": digest,
                "encoder_fingerprint": manifest.encoder_fingerprint,
                "pair": manifest.pair,
                "text": manifest.to_json(),
            }
        )
    with Session(store._engine) as session, session.begin():
        for table, rows in records.items():
            session.execute(insert(table), rows)
    store.mark_started()
    store.close()


def _adapters(loaded: LoadedEncoder, tasks: int) -> Iterator[tuple[str, Manifest, bytes]]:
    config = loaded.encoder.config
    for at in range(tasks):
        asked = at < ASKED
        width, heads, ffn, labels = (160, 4, 320, 6) if asked else (4, 2, 4, 6)
        sizes = YTuningSizes(config.hidden_size, config.num_layers + 1, width, heads, ffn)
        generator = torch.Generator().manual_seed(at)
        tensors = {
            name: torch.randn(shape, generator=generator).half()
            for name, shape in expected_tensors(sizes, labels).items()
        }
        manifest = _manifest(loaded, sizes, labels)
        name = f"asked-{at}" if asked else f"other-{at}"
        yield name, manifest, write_adapter(manifest, tensors)


def _manifest(loaded: LoadedEncoder, sizes: YTuningSizes, labels: int) -> Manifest:
    parameters = parameter_count(sizes, labels)
    return Manifest(
        task_kind="single_label",
        labels=tuple(f"label {at}" for at in range(labels)),
        method="ytuning",
        sizes=sizes.to_mapping(),
        encoder="bundled",
        encoder_fingerprint=loaded.encoder.fingerprint,
        max_tokens=128,
        pair=False,
        metrics={"accuracy": 0.9},
        parameters=parameters,
        parameter_share=parameters / loaded.encoder.parameter_count,
        data_digest="sha256:" + "0" * 64,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        canaries=tuple(Canary(text=TEXT, logits=(0.0,) * labels) for _ in range(6)),
    )


def _resident_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmRSS")


if __name__ == "__main__":
    main()
