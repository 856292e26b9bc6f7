"""The server benchmark: its arithmetic, its load, and what it says of a run."""

from __future__ import annotations

import asyncio
import importlib
import json
import math
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def load(bench_on_path: None) -> ModuleType:
    return importlib.import_module("load")


@pytest.fixture(scope="module")
def figures(bench_on_path: None) -> ModuleType:
    return importlib.import_module("figures")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("one\ntwo\nthree\n")
    return path


def job(load: ModuleType, texts: Path, port: int = 1, **given: Any) -> Any:
    values = {"port": port, "path": "/p", "fields": [{"task": "t"}], "texts_path": str(texts)}
    return load.Job(**(values | given))


class Answering:
    """A server on this loop that gives the statuses in turn, and keeps the bodies."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = statuses
        self.bodies: list[Any] = []

    async def __aenter__(self) -> Answering:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).lower():
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                status = self.statuses[len(self.bodies) % len(self.statuses)]
                self.bodies.append(json.loads(await reader.readexactly(length)))
                if not status:
                    break
                # In two parts, as a slow server would send them.
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 4\r\n\r\nab".encode())
                await asyncio.sleep(0)
                writer.write(b"cd")
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


def run_against(load: ModuleType, texts: Path, *statuses: int, **given: Any) -> tuple[Any, Any]:
    async def main() -> tuple[Any, Any]:
        async with Answering(*statuses) as server:
            asked = job(load, texts, server.port, seconds=0.2, **given)
            return server, await load.run(asked)

    return asyncio.run(main())


def test_percentiles_are_nearest_ranks(figures: ModuleType) -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert figures.percentile(values, 50) == 50
    assert figures.percentile(values, 99) == 99
    assert figures.percentile([7.0], 99) == 7
    assert math.isnan(figures.percentile([], 50))


def test_ratios_pair_runs_of_one_round(figures: ModuleType) -> None:
    ours, theirs = (
        figures.Cell("s", name, "l", 1, [figures.Run(rate) for rate in rates])
        for name, rates in (("a", (10.0, 40.0, 12.0)), ("b", (2.0, 4.0, 2.0)))
    )
    assert figures.paired_ratio(ours, theirs) == 6
    assert math.isnan(figures.paired_ratio(ours, None))
    assert math.isnan(figures.paired_ratio(ours, figures.Cell("s", "c", "l", 1)))


def test_bars_say_met_missed_or_not_measured(figures: ModuleType) -> None:
    bars = [
        figures.Bar("a", 5.1, "at least", 5.0),
        figures.Bar("b", 1.6, "at most", 1.5),
        figures.Bar("c", math.nan, "at least", 5.0),
        figures.Bar("d", 2.0, "at least", None),
    ]
    assert [bar.verdict for bar in bars] == ["met", "MISSED", "not measured", "-"]
    assert figures.bar_table(bars).splitlines()[2:4] == [
        "| a | at least 5 | 5.1 | met |",
        "| b | at most 1.5 | 1.6 | MISSED |",
    ]


def test_arrivals_are_the_same_for_the_same_seed(load: ModuleType) -> None:
    first = list(load.poisson_schedule(200.0, 5.0, seed=3))
    assert first == list(load.poisson_schedule(200.0, 5.0, seed=3))
    assert first != list(load.poisson_schedule(200.0, 5.0, seed=4))
    assert first == sorted(first) and first[0] > 0 and first[-1] < 5
    assert 900 < len(first) < 1100


def test_no_text_is_sent_twice(load: ModuleType, texts: Path) -> None:
    source = load.Texts(texts)
    sent = [text for number in range(50) for text in source.block(number, 4)]
    assert len(set(sent)) == len(sent) == 200
    texts.write_text("one\none\n")
    with pytest.raises(ValueError, match="distinct"):
        load.Texts(texts)


def test_one_model_per_task_gets_the_same_texts_in_turn(load: ModuleType, texts: Path) -> None:
    fields = [{"model": 0}, {"model": 1}]
    asked = job(load, texts, fields=fields, requests_per_texts=2, first_block=1, blocks_apart=2)
    sent = [request.split(b"\r\n\r\n")[1] for request in islice(load.requests(asked), 4)]
    assert [json.loads(body) for body in sent] == [
        {"model": 0, "texts": ["two 1"]},
        {"model": 1, "texts": ["two 1"]},
        {"model": 0, "texts": ["one 2"]},
        {"model": 1, "texts": ["one 2"]},
    ]


def test_a_refusal_counts_as_refused_and_not_as_texts(
    load: ModuleType, figures: ModuleType, texts: Path
) -> None:
    server, outcome = run_against(load, texts, 200, 429, 200, 500, clients=1, texts_per_request=2)
    run = figures.merge([outcome], 0.2, 1)
    assert run.answered + run.refused + run.failed == len(server.bodies)
    assert run.answered == len(outcome.latencies_ms) == outcome.texts_ok / 2
    assert abs(run.answered - 2 * run.refused) <= 2
    assert abs(run.refused - run.failed) <= 1
    assert run.texts_per_s == pytest.approx(outcome.texts_ok / 0.2, rel=0.3)


def test_an_open_loop_goes_on_over_broken_connections(load: ModuleType, texts: Path) -> None:
    server, outcome = run_against(load, texts, 200, 0, clients=2, arrivals_per_s=200.0)
    arrivals = list(load.poisson_schedule(200.0, 0.2, seed=0))
    assert len(server.bodies) == len(arrivals) == len(outcome.lateness_ms)
    assert outcome.statuses["200"] > 0
    assert outcome.statuses["0"] > 0
    assert outcome.next_block == len(arrivals)


def test_an_answer_with_other_labels_is_infinitely_wrong(bench_on_path: None) -> None:
    targets = importlib.import_module("targets")
    expected = [{"a": 0.9, "b": 0.1}]
    assert targets.greatest_difference([{"a": 0.8, "b": 0.2}], expected) == pytest.approx(0.1)
    assert targets.greatest_difference([{"a": 1.0}], expected) == math.inf
    assert targets.greatest_difference([], expected) == math.inf


def test_what_was_not_measured_is_null_in_json(figures: ModuleType) -> None:
    serve, workbench = (importlib.import_module(name) for name in ("serve", "workbench"))
    results = workbench.Results(bars=[figures.Bar("a", math.nan, "at least", 1.0)])
    results.missing.append("infinity: no interpreter given for it")
    written = json.loads(json.dumps(serve.to_json({}, {}, results), allow_nan=False))
    assert written["bars"][0]["value"] is None
    assert written["bars"][0]["verdict"] == "not measured"
    assert "MISSING infinity" in serve.report({}, results)


def test_the_committed_texts_are_distinct_and_small(load: ModuleType) -> None:
    path = ROOT / "bench" / "texts.txt"
    assert len(load.Texts(path).block(0, 600)) == 600
    assert path.stat().st_size < 100_000
