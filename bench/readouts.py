"""What readouts cost: 64 tasks beside one on the same texts, and 1,000 tasks beside one.

Times are of this process: the encoder's pass and the readouts, the best of several runs, since the
machine may be busy.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from labelmux_adapters.bank import Bank, Slot
from labelmux_adapters.files import Adapter
from labelmux_adapters.kinds import TaskKind
from labelmux_adapters.ytuning import YTuning, YTuningSizes, to_tensors
from labelmux_encoder.batch import PackedRows, pack_rows
from labelmux_encoder.frozen import Dtype
from labelmux_encoder.tokenizer import TokenRow
from labelmux_encoder.weights import LoadedEncoder, load_encoder
from machine import machine_facts

SIZES = {"width": 160, "heads": 4, "ffn": 320}
TOKENS = 21
TASKS, MOST_LABELS, FEWEST_LABELS = 64, 150, 2
MANY_TASKS = 1000

Rows = Sequence[tuple[int, Slot]]


class Figure(NamedTuple):
    """One comparison: the readouts of one task and of many, beside the same pass."""

    what: str
    pass_s: float
    one_s: float
    many_s: float

    @property
    def ratio(self) -> float:
        """Pass and readouts of many over those of one."""
        return (self.pass_s + self.many_s) / (self.pass_s + self.one_s)

    def line(self) -> str:
        """As a row of the table."""
        times = " | ".join(f"{1e3 * s:.2f}" for s in (self.pass_s, self.one_s, self.many_s))
        return f"| {self.what} | {times} | {self.ratio:.2f}x | {1 / self.ratio:.0%} |"


class Manifest(NamedTuple):
    """As much of a manifest as the bank reads."""

    sizes: dict[str, int]
    labels: tuple[str, ...]
    method: str = "ytuning"
    task_kind: TaskKind = "single_label"


def main(given: Sequence[str] | None = None) -> None:
    """Measure and print."""
    arguments = _arguments(given)
    torch.set_num_threads(arguments.threads)
    loaded = load_encoder("bundled", device="cpu", dtype=arguments.dtype)
    dtype = loaded.encoder.dtype
    with torch.inference_mode():
        figures = [
            *_many_tasks_on_the_same_texts(loaded, dtype, arguments),
            _rows_over_many_tasks(loaded, dtype, arguments),
        ]
    print("| what | pass ms | one task ms | ms | times one task | share of its speed |")
    print("|---|---:|---:|---:|---:|---:|")
    for figure in figures:
        print(figure.line())
    if arguments.out:
        found: dict[str, Any] = {"machine": machine_facts(), "dtype": str(dtype)}
        found["figures"] = [figure._asdict() | {"ratio": figure.ratio} for figure in figures]
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


def label_counts(tasks: int) -> list[int]:
    """From 2 to 150 in even ratios: half of the tasks have at most 17 labels."""
    ratio = MOST_LABELS / FEWEST_LABELS
    return [round(FEWEST_LABELS * ratio ** (at / (tasks - 1))) for at in range(tasks)]


def _many_tasks_on_the_same_texts(
    loaded: LoadedEncoder, dtype: torch.dtype, arguments: argparse.Namespace
) -> Iterator[Figure]:
    bank = Bank(dtype=dtype)
    counts = label_counts(TASKS)
    slots = [bank.add(_adapter(loaded, labels, seed)) for seed, labels in enumerate(counts)]
    for texts in (1, 32):
        work = _Work(loaded, bank, dtype, texts, arguments.runs)
        one = work.readouts([[(text, slots[TASKS // 2]) for text in range(texts)]])
        many = work.readouts([[(text, slot) for text in range(texts) for slot in slots]])
        yield Figure(f"{TASKS} tasks on {texts} texts", work.pass_s(), one, many)


def _rows_over_many_tasks(
    loaded: LoadedEncoder, dtype: torch.dtype, arguments: argparse.Namespace
) -> Figure:
    bank = Bank(dtype=dtype)
    slots = [bank.add(_adapter(loaded, 2 + seed % 3, seed)) for seed in range(MANY_TASKS)]
    texts = 32
    work = _Work(loaded, bank, dtype, texts, arguments.runs)
    one = work.readouts([[(text, slots[0]) for text in range(texts)]])
    step = MANY_TASKS // texts
    # Another offset each time, so that no run finds its adapters in the cache.
    many = work.readouts(
        [[(text, slots[text * step + offset]) for text in range(texts)] for offset in range(step)]
    )
    what = f"{texts} texts over {MANY_TASKS} tasks"
    return Figure(what, work.pass_s(), one, many)


class _Work:
    """One batch of texts, to be timed."""

    def __init__(
        self, loaded: LoadedEncoder, bank: Bank, dtype: torch.dtype, texts: int, runs: int
    ) -> None:
        self._loaded = loaded
        self._bank = bank
        self._runs = runs
        self._batch = _batch(texts)
        self._features = loaded.encoder(self._batch).to(dtype)

    def pass_s(self) -> float:
        return _best(lambda _: self._loaded.encoder(self._batch), self._runs)

    def readouts(self, turns: Sequence[Rows]) -> float:
        """Seconds for one of ``turns``."""
        lengths = self._batch.lengths
        return _best(
            lambda run: self._bank.readout(self._features, lengths, turns[run % len(turns)]),
            self._runs,
        )


def _best(work: Callable[[int], object], runs: int) -> float:
    """Seconds of the fastest run; ``work`` is told which run it is."""
    work(-1)
    times = []
    for run in range(runs):
        started = time.perf_counter()
        work(run)
        times.append(time.perf_counter() - started)
    return min(times)


def _batch(texts: int) -> PackedRows:
    generator = torch.Generator().manual_seed(texts)
    ids = torch.randint(10, 1000, (texts, TOKENS), generator=generator).tolist()
    return pack_rows([TokenRow(tuple(row), (0,) * TOKENS, truncated=False) for row in ids])


def _adapter(loaded: LoadedEncoder, labels: int, seed: int) -> Adapter:
    config = loaded.encoder.config
    sizes = SIZES | {"hidden": config.hidden_size, "states": config.num_layers + 1}
    torch.manual_seed(seed)
    module = YTuning(YTuningSizes.from_mapping(sizes), labels)
    manifest = Manifest(sizes, tuple(str(label) for label in range(labels)))
    return Adapter(manifest, to_tensors(module), f"sha256:{seed:064x}")  # type: ignore[arg-type]


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON of what was measured")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--dtype", choices=get_args(Dtype), default="auto")
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
