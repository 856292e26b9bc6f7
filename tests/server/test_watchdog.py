"""An encoder that hangs, ends or has no memory, in a real server."""

from __future__ import annotations

import asyncio
import threading

import httpx2
import pytest
import torch

from labelmux_server.replica import is_out_of_memory

#: The server, with a replica that does what a file says as soon as the file is there.
FAULTY = """
import sys, threading
from pathlib import Path
from labelmux_server.replica import Replica
from labelmux_server.__main__ import main

fault, real = Path(sys.argv.pop(1)), Replica._answer

def answer(self, batch):
    if fault.exists():
        if fault.read_text() == "hang":
            threading.Event().wait()
        raise SystemExit("the thread is told to end")
    return real(self, batch)

Replica._answer = answer
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "status", "code"), [("hang", 504, "timeout"), ("end", 503, "not_ready")]
)
def test_a_replica_that_is_lost_ends_the_process_after_it_was_seen(
    start_server, adapter_bytes, until, tmp_path, kind, status, code
):
    fault = tmp_path / "fault"
    patience = ("--request-timeout-s", "1", "--max-queue-s", "1")
    flags = ("--watchdog-s", "1", "--watchdog-grace-s", "8", *patience)
    server = start_server(*flags, program=("-c", FAULTY, str(fault)))
    body = {"task": "t", "texts": "a good film"}
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        client.put("/v1/tasks/t/adapter", content=adapter_bytes()).raise_for_status()
        assert client.post("/v1/classify", json=body).status_code == 200
        assert client.get("/health/live").status_code == 200
        fault.write_text(kind)
        answers = []
        asking = threading.Thread(
            target=lambda: answers.append(
                httpx2.post(f"{server.url}/v1/classify", json=body | {"texts": "x"}, timeout=60)
            )
        )
        asking.start()
        until(lambda: client.get("/health/live").status_code == 503, 60)
        assert client.get("/health/live").json()["error"]["code"] == "not_ready"
        assert client.get("/health/ready").status_code == 503
        assert client.get("/v1/tasks").status_code == 200
    assert server.process.wait(60) == 70
    asking.join(60)
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (status, code)
    log = server.log_path.read_text()
    assert "does not answer any more" in log
    fault.unlink()
    with httpx2.Client(base_url=start_server().url, timeout=60) as client:
        assert client.post("/v1/classify", json=body).status_code == 200


def unallocatable() -> RuntimeError:
    """What torch raises on this machine where there is no memory."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60)
    return raised.value


@pytest.mark.parametrize(
    "fault",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), unallocatable()],
    ids=["python", "gpu", "cpu"],
)
def test_a_batch_without_memory_is_split_once_and_the_server_goes_on(
    serving, adapter_bytes, monkeypatch, fault
):
    async def scenario(client, service):
        await client.put("/v1/tasks/t/adapter", content=adapter_bytes())
        replica, passes = service._replica, []
        real = replica._encode

        def encode(rows):
            passes.append(len(rows))
            if len(rows) > 2:
                raise fault
            return real(rows)

        monkeypatch.setattr(replica, "_encode", encode)

        async def ask(count: int, word: str):
            texts = [f"{word} " + "the " * number for number in range(count)]
            return await client.post("/v1/classify", json={"task": "t", "texts": texts})

        split = await ask(4, "film")
        assert (split.status_code, passes) == (200, [4, 2, 2])
        assert len(split.json()["results"]) == 4
        passes.clear()
        refused = await ask(8, "soup")
        assert (refused.status_code, passes) == (503, [8, 4, 4])
        assert refused.json()["error"]["code"] == "out_of_memory"
        assert service.alive
        assert (await ask(2, "bread")).status_code == 200
        monkeypatch.undo()
        again = await ask(4, "film")
        pairs = zip(split.json()["results"], again.json()["results"], strict=True)
        for found, expected in pairs:
            for each, whole in zip(
                found["predictions"]["t"]["labels"],
                expected["predictions"]["t"]["labels"],
                strict=True,
            ):
                assert each["score"] == pytest.approx(whole["score"], abs=1e-5)

    serving(scenario)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory")])
def test_other_faults_are_not_taken_for_a_want_of_memory(error):
    assert not is_out_of_memory(error)


def test_rows_of_others_survive_a_half_that_has_no_memory(serving, adapter_bytes, monkeypatch):
    async def scenario(client, service):
        await client.put("/v1/tasks/t/adapter", content=adapter_bytes())
        replica = service._replica
        real, entered, gate = replica._encode, threading.Event(), threading.Event()

        def encode(rows):
            entered.set()
            assert gate.wait(60)
            if any(row.tokens > 20 for row in rows):
                raise MemoryError
            return real(rows)

        monkeypatch.setattr(replica, "_encode", encode)

        def ask(text: str):
            body = {"task": "t", "texts": text}
            return asyncio.ensure_future(client.post("/v1/classify", json=body))

        first = ask("the first")
        async with asyncio.timeout(30):
            while not entered.is_set():
                await asyncio.sleep(0.002)
            long, short = ask("the coast " * 20), ask("the coast")
            while service.batcher.queued_rows < 2:
                await asyncio.sleep(0.002)
        gate.set()
        statuses = [(await asked).status_code for asked in (first, long, short)]
        assert statuses == [200, 503, 200]

    serving(scenario)
