"""What /metrics says, against what was asked of the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

from labelmux_server.batch_metrics import BatchMetrics
from labelmux_server.submission import Batch, EncoderRow, Times
from labelmux_server.tally import Tally

BYTES = {"content-type": "application/octet-stream"}


async def samples(client) -> list:
    text = (await client.get("/metrics")).text
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


async def values(client, name: str) -> dict[tuple[str, ...], float]:
    """A metric's values by its labels' values, in the order of their names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for sample in await samples(client)
        if sample.name == name
    }


async def put(client, task: str, data: bytes) -> None:
    answer = await client.put(f"/v1/tasks/{task}/adapter", content=data, headers=BYTES)
    assert answer.status_code in (200, 201), answer.text


async def ask(client, **body):
    return await client.post("/v1/classify", json={"texts": ["the train"]} | body)


def some_requests(client) -> Iterator:
    """Requests that end in every kind of way."""
    for _ in range(3):
        yield ask(client, task="t")
    yield ask(client, task="nobody")
    yield ask(client, tasks=["t", "nobody"])
    yield ask(client, task="t", texts=[])
    yield client.post("/v1/classify", content=b"{", headers={"content-type": "application/json"})
    yield client.get("/v1/tasks")
    yield client.get("/v1/tasks/nobody")
    yield client.get("/nowhere")
    yield client.delete("/v1/classify")
    yield client.get("/health/ready")


def test_requests_are_successes_and_refusals_and_nothing_else(serving, adapter_bytes, gate_replica):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        statuses = Counter([201])
        for request in some_requests(client):
            statuses[(await request).status_code] += 1
        gated = gate_replica(service)
        gated.gate.set()
        gated.fault = RuntimeError("the device is gone")
        statuses[(await ask(client, task="t", texts="another text")).status_code] += 1

        counted = Counter()
        for (_, status), count in (await values(client, "labelmux_requests_total")).items():
            counted[int(status)] += int(count)
        assert counted == statuses
        assert statuses[500] == 1
        refused = sum((await values(client, "labelmux_rejected_total")).values())
        assert refused == sum(n for status, n in statuses.items() if status >= 400)
        assert (await values(client, "labelmux_batch_failures_total"))[()] == 1

    serving(scenario)


def test_calls_are_counted_by_task_version_and_code(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes(seed=0))
        await put(client, "pairs", adapter_bytes(pair=True))
        await ask(client, task="t", texts=["one", "two"])
        await put(client, "t", adapter_bytes(seed=1))
        await ask(client, tasks=["t", "pairs", "nobody"])
        await ask(client, task="t@1")
        long = "the train to the coast " * 50
        await ask(client, task="t", texts=["short", long], truncation=False)
        assert await values(client, "labelmux_task_requests_total") == {
            ("ok", "t", "1"): 2,
            ("ok", "t", "2"): 1,
            ("text_truncated", "t", "2"): 1,
            ("task_needs_pairs", "pairs", "1"): 1,
        }
        assert await values(client, "labelmux_task_rows_total") == {
            ("t", "1"): 3,
            ("t", "2"): 2,
            ("pairs", "1"): 0,
        }
        took = await values(client, "labelmux_task_duration_seconds_count")
        assert took == {("t", "1"): 2, ("t", "2"): 1, ("pairs", "1"): 0}

    serving(scenario)


def test_a_call_that_ends_as_a_whole_counts_for_each_of_its_tasks(
    serving, adapter_bytes, gate_replica
):
    async def scenario(client, service):
        for seed, task in enumerate(("t", "u")):
            await put(client, task, adapter_bytes(seed=seed))
        gate_replica(service)
        assert (await ask(client, tasks=["t", "u"])).status_code == 504
        assert await values(client, "labelmux_task_requests_total") == {
            ("timeout", "t", "1"): 1,
            ("timeout", "u", "1"): 1,
        }

    serving(scenario, request_timeout_s=0.2, max_queue_s=0.1)


def test_tasks_beyond_the_cap_share_one_name_until_a_task_goes(serving, adapter_bytes):
    async def scenario(client, service):
        data = adapter_bytes()
        for task in ("a", "b", "c", "d"):
            await put(client, task, data)
            await ask(client, task=task)
        name = "labelmux_task_rows_total"
        assert await values(client, name) == {("a", "1"): 1, ("b", "1"): 1, ("(other)", ""): 2}
        await client.delete("/v1/tasks/a")
        assert await values(client, name) == {("b", "1"): 1, ("(other)", ""): 2}
        await ask(client, task="d")
        await ask(client, task="c")
        assert await values(client, name) == {
            ("b", "1"): 1,
            ("d", "1"): 1,
            ("(other)", ""): 3,
        }

    serving(scenario, task_metrics=2)


def test_swaps_without_end_leave_four_versions_in_the_metrics(serving, adapter_bytes):
    async def scenario(client, service):
        for seed in range(6):
            await put(client, "t", adapter_bytes(seed=seed))
            await ask(client, task="t")
        found = await values(client, "labelmux_task_rows_total")
        assert found == {("t", str(number)): 1 for number in (3, 4, 5, 6)}

    serving(scenario)


def test_adapters_are_counted_as_they_are_looked_up(serving, adapter_bytes, tmp_path):
    async def upload(client, service):
        for seed, task in enumerate(("t", "u")):
            await put(client, task, adapter_bytes(seed=seed))
        return service.registry.get("u").digest.removeprefix("sha256:")

    digest = serving(upload)
    (tmp_path / "state/blobs/sha256" / digest[:2] / digest).write_bytes(b"x")

    async def scenario(client, service):
        for _ in range(3):
            await ask(client, task="t")
        await ask(client, task="u")
        assert (await values(client, "labelmux_adapter_lookups_total"))[()] == 4
        assert (await values(client, "labelmux_adapter_hits_total"))[()] == 2
        assert (await values(client, "labelmux_adapter_load_seconds_count"))[()] == 1
        failures = await values(client, "labelmux_adapter_load_failures_total")
        assert failures == {("adapter_damaged",): 1}
        assert (await values(client, "labelmux_resident_limit_bytes"))[()] == 12345678

    serving(scenario, max_resident_bytes=12345678)


def test_a_batch_is_counted_by_texts_tokens_and_stages(serving, adapter_bytes):
    async def scenario(client, service):
        await put(client, "t", adapter_bytes())
        answer = await ask(client, task="t", texts=["the train", "a good film"])
        tokens = answer.json()["tokens"]
        batches = (await values(client, "labelmux_batch_duration_seconds_count"))[()]
        assert 1 <= batches <= 2
        for name in ("encode_duration_seconds", "readout_duration_seconds", "batch_tokens"):
            assert (await values(client, f"labelmux_{name}_count"))[()] == batches
        assert (await values(client, "labelmux_tokenise_duration_seconds_count"))[()] == 1
        for name in ("batch_tokens_sum", "text_tokens_sum", "encoder_tokens_total"):
            assert (await values(client, f"labelmux_{name}"))[()] == tokens
        assert (await values(client, "labelmux_text_tokens_count"))[()] == 2

    serving(scenario)


def test_batches_that_run_side_by_side_are_as_busy_as_one_on_all_threads():
    row = EncoderRow((1, 2), (0, 0), key="row", waiting_since_s=0.0)
    times = Times(started_s=1.0, encode_s=0.75, readout_s=0.25)

    def busy_s(batches: list[Batch]) -> float:
        metrics = BatchMetrics()
        for batch in batches:
            metrics.record(batch, times, 4, failed=False)
        (found,) = (m for m in metrics.collect() if m.name == "labelmux_replica_busy_seconds")
        return found.samples[0].value

    assert busy_s([Batch([row])]) == 1.0
    assert busy_s([Batch([row], threads=1)] * 4) == 1.0


def test_what_serves_is_a_metric_too(serving, tiny_encoder):
    async def scenario(client, service):
        (info,) = [s for s in await samples(client) if s.name == "labelmux_info"]
        assert info.labels["fingerprint"] == tiny_encoder.encoder.fingerprint
        assert info.labels["device"] == "cpu"
        assert (await values(client, "labelmux_ready"))[()] == 1
        service.draining = True
        assert (await values(client, "labelmux_ready"))[()] == 0

    serving(scenario)


def test_a_tally_counts_as_prometheus_does():
    tally = Tally((1, 2.5, 8))
    for value in (0.0, 1, 1.1, 2.5, 9, 100):
        tally.observe(value)
    assert tally.buckets() == [("1.0", 2), ("2.5", 4), ("8.0", 4), ("+Inf", 6)]
    assert tally.total == 113.6
