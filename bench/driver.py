"""Client processes at work: starts them together, gathers what they saw."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from figures import Run, merge
from load import Job, Outcome
from targets import Running

#: A second process from this many clients on: one alone would be near a whole core.
_TWO_PROCESSES_FROM = 8
#: For interpreters to start and connections to open.
_START_S = 0.3
_LOAD = Path(__file__).parent / "load.py"


@dataclass(frozen=True)
class Shape:
    """How a server is loaded."""

    clients: int
    texts_per_request: int
    #: None: a closed loop.
    arrivals_per_s: float | None = None

    @property
    def words(self) -> str:
        """For tables."""
        texts = f"{self.texts_per_request} text{'s' * (self.texts_per_request > 1)}"
        if self.arrivals_per_s is not None:
            return f"{self.arrivals_per_s:.0f} requests/s of {texts}"
        return f"{self.clients} client{'s' * (self.clients > 1)}, {texts}"


class Driver:
    """Loads servers with texts that they have not seen."""

    def __init__(self, texts_path: Path) -> None:
        self._texts_path = texts_path

    def measure(self, running: Running, shape: Shape, seconds: float, seed: int = 0) -> Run:
        """One run against a server that is paused before and after."""
        with awake(running):
            jobs = self._jobs(running, shape, seconds, seed)
            outcomes = _run_all(jobs)
        used = max(outcome.next_block for outcome in outcomes)
        running.next_text = (used + len(jobs)) * shape.texts_per_request
        return merge(outcomes, seconds, running.target.requests_per_texts)

    def _jobs(self, running: Running, shape: Shape, seconds: float, seed: int) -> list[Job]:
        open_loop = shape.arrivals_per_s is not None
        processes = 2 if open_loop or shape.clients >= _TWO_PROCESSES_FROM else 1
        first = -(-running.next_text // shape.texts_per_request)
        target = running.target
        fields = target.fields(shape.texts_per_request)
        return [
            Job(
                port=running.server.port,
                path=target.path,
                # Each process starts elsewhere in the round, so that they mix.
                fields=_turned(fields, number * len(fields) // processes),
                texts_path=str(self._texts_path),
                texts_field=target.texts_field,
                texts_per_request=shape.texts_per_request,
                requests_per_texts=target.requests_per_texts,
                clients=shape.clients // processes,
                arrivals_per_s=shape.arrivals_per_s / processes if shape.arrivals_per_s else None,
                seconds=seconds,
                start_at_s=time.monotonic() + _START_S,
                first_block=first + number,
                blocks_apart=processes,
                seed=seed * processes + number,
            )
            for number in range(processes)
        ]


@contextmanager
def awake(running: Running) -> Iterator[None]:
    """This server runs; it pauses at the end of the outermost of these."""
    outermost, running.awake = not running.awake, True
    if outermost:
        running.server.resume()
    try:
        yield
    finally:
        if outermost:
            running.server.pause()
            running.awake = False


def _turned(fields: list[dict[str, object]], by: int) -> list[dict[str, object]]:
    return fields[by:] + fields[:by]


def _run_all(jobs: Sequence[Job]) -> list[Outcome]:
    processes = [
        subprocess.Popen(
            [sys.executable, str(_LOAD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in jobs
    ]
    for process, job in zip(processes, jobs, strict=True):
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(job)))
        process.stdin.close()
        process.stdin = None
    outcomes = []
    for process in processes:
        answer, _ = process.communicate()
        if process.returncode:
            raise RuntimeError("a client process failed; its message stands above")
        outcomes.append(Outcome(**json.loads(answer)))
    return outcomes
