"""What rows of many edited tasks cost beside plain rows, and beside PEFT's mixed batches.

    python bench/methods.py --python-peers build/peers/bin/python --out methods.json

32 rows, each of another task: the pass with all their edits and the readout of their heads, over
the plain pass of the same rows and the readout of one plain head. PEFT runs the same rows on the
same weights with 32 LoRA adapters by ``adapter_names``, and without any, in its own process. All
take turns within a round; figures are medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from labelmux_adapters.bank import Bank, Slot
from labelmux_adapters.kinds import Pooling, TaskKind
from labelmux_adapters.methods import METHODS
from labelmux_encoder.batch import PackedRows, pack_rows
from labelmux_encoder.tokenizer import TokenRow
from labelmux_encoder.weights import LoadedEncoder, load_encoder
from machine import machine_facts, versions
from peer_weights import Head, export_classifier

TASKS, TOKENS, LABELS = 32, 32, 2
#: The methods and what the issue's bars allow over the plain pass; None: none is set.
BARS: Mapping[str, float | None] = {
    "pasta": 1.10,
    "unipelt": 1.35,
    "lora": None,
    "prefix": None,
    "bottleneck": None,
    "bitfit": None,
    "ia3": None,
}
PEER_DTYPES = ("float32", "bfloat16")
_PEER = Path(__file__).parent / "peers" / "lora_pass.py"

Run = Callable[[], float]


class Manifest(NamedTuple):
    """As much of a manifest as the bank reads."""

    method: str
    sizes: dict[str, int]
    labels: tuple[str, ...] = ("a", "b")
    task_kind: TaskKind = "single_label"
    pooling: Pooling | None = "mean"


class Made(NamedTuple):
    """As much of an adapter as the bank reads."""

    manifest: Manifest
    tensors: dict[str, Tensor]


@dataclass
class Figures:
    """Seconds by contender, a list of rounds each, on one batch."""

    batch: str
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def ratio(self, name: str, over: str) -> float:
        """Median of the rounds' ratios."""
        pairs = zip(self.seconds[name], self.seconds[over], strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)

    def ms(self, name: str) -> float:
        """Median."""
        return 1e3 * statistics.median(self.seconds[name])

    def to_json(self) -> dict[str, Any]:
        """Times, and ratios to the plain pass and to the peer."""
        times = {name: round(self.ms(name), 3) for name in self.seconds}
        over_plain = {name: round(self.ratio(name, "plain"), 3) for name in self.seconds}
        found: dict[str, Any] = {"batch": self.batch, "ms": times, "over_plain": over_plain}
        for dtype in PEER_DTYPES:
            mixed, plain = f"peft {dtype} mixed", f"peft {dtype} plain"
            if mixed in self.seconds:
                found[f"peft_{dtype}_over_its_plain"] = round(self.ratio(mixed, plain), 3)
                found[f"rows_per_second_over_peft_{dtype}"] = round(self.ratio(mixed, "lora"), 2)
        return found


def rows_of(loaded: LoadedEncoder, lengths: Sequence[int]) -> PackedRows:
    """Random rows of these lengths, special tokens first and last."""
    generator = torch.Generator().manual_seed(1)
    vocab = loaded.encoder.config.vocab_size
    return pack_rows(
        [
            TokenRow(
                tuple(torch.randint(5, vocab, (length,), generator=generator).tolist()),
                (0,) * length,
                truncated=False,
                special=(0, length - 1),
            )
            for length in lengths
        ]
    )


def make(loaded: LoadedEncoder, method: str, seed: int) -> Made:
    """A random adapter of the sizes that the paper has."""
    config, edited = loaded.encoder.config, METHODS[method].edited
    assert edited is not None
    sizes = {
        "layers": config.num_layers,
        "hidden": config.hidden_size,
        "intermediate": config.intermediate_size,
        **edited.defaults,
    }
    generator = torch.Generator().manual_seed(seed)
    shapes = edited.shapes(sizes, LABELS)
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()
    }
    return Made(Manifest(method, sizes), tensors)


def ours(loaded: LoadedEncoder, rows: PackedRows) -> dict[str, Run]:
    """A run of each method with a task of its own for each row, and the plain one."""
    bank = Bank.beside(loaded.encoder)
    count = len(rows.lengths)

    def run_of(slots: Sequence[Slot]) -> Run:
        wanted = list(enumerate(slots))

        @torch.inference_mode()
        def run() -> float:
            started = time.perf_counter()
            edits = bank.edits([slot.edit for slot in slots])
            bank.readout(loaded.encoder(rows, edits), rows.lengths, wanted)
            return time.perf_counter() - started

        return run

    plain = bank.add(make(loaded, "linear", 0))  # type: ignore[arg-type]
    runs = {"plain": run_of([plain] * count)}
    for method in BARS:
        made = [make(loaded, method, seed) for seed in range(count)]
        runs[method] = run_of([bank.add(adapter) for adapter in made])  # type: ignore[arg-type]
    return runs


class Peer:
    """PEFT in a process of its own."""

    def __init__(
        self, python: str, folder: Path, rows: Path, dtype: str, threads: int, tasks: int
    ) -> None:
        command = [python, str(_PEER), "--adapters", str(tasks), "--dtype", dtype]
        command += ["--threads", str(threads), str(folder), str(rows)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self._read()
        except RuntimeError:
            self.close()
            raise

    def run(self, what: str) -> float:
        """Seconds of a pass, ``plain`` or ``mixed``."""
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """End it."""
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            word = line.strip()
            if word == "ready" or word.replace(".", "").replace("e-", "").isdigit():
                return word
        raise RuntimeError(f"{_PEER.name} ended: see what it said above")


def peers(
    asked: argparse.Namespace, folder: Path, rows: PackedRows, undo: ExitStack
) -> dict[str, Run]:
    """Runs of PEFT, if its environment is given."""
    if asked.python_peers is None:
        print("PEFT: MISSING, no --python-peers", file=sys.stderr)
        return {}
    path = folder / f"rows-{len(set(rows.lengths))}.json"
    path.write_text(json.dumps([row.tolist() for row in rows.token_ids.split(rows.lengths)]))
    runs: dict[str, Run] = {}
    for dtype in PEER_DTYPES:
        tasks = len(rows.lengths)
        peer = Peer(asked.python_peers, folder / "model", path, dtype, asked.threads, tasks)
        undo.callback(peer.close)
        for what in ("plain", "mixed"):
            runs[f"peft {dtype} {what}"] = partial(peer.run, what)
    return runs


def measure(name: str, runs: Mapping[str, Run], rounds: int) -> Figures:
    """Every contender in turns, each after a run of its own that is not timed.

    Without it, whoever follows another process pays for the caches and threads that it left cold.
    """
    figures = Figures(name, {contender: [] for contender in runs})
    for timed in (False, *[True] * rounds):
        for contender, run in runs.items():
            run()
            seconds = run()
            if timed:
                figures.seconds[contender].append(seconds)
    return figures


def table(figures: Figures) -> str:
    """As Markdown."""
    lines = [f"{figures.batch}", "", "| rows of | ms | over plain | bar |", "|---|---:|---:|---:|"]
    for name in figures.seconds:
        over = "peft " + name.split()[1] + " plain" if name.startswith("peft") else "plain"
        bar = BARS.get(name)
        shown = "" if bar is None else f"{bar:.2f}"
        lines.append(
            f"| {name} | {figures.ms(name):.1f} | {figures.ratio(name, over):.2f}x | {shown} |"
        )
    for dtype in PEER_DTYPES:
        if f"peft {dtype} mixed" in figures.seconds:
            ratio = figures.ratio(f"peft {dtype} mixed", "lora")
            lines.append(f"\nLoRA, rows a second over PEFT in {dtype}: {ratio:.1f}x")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python-peers", default=None, help="an interpreter with PEFT")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=None)
    # make bench gives every script the same interpreters.
    parser.add_argument("--python-infinity", default=None, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    loaded = load_encoder("bundled", dtype="auto")
    even = (TOKENS,) * TASKS
    uneven = tuple(8 + (37 * place) % 57 for place in range(TASKS))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        hidden = loaded.encoder.config.hidden_size
        export_classifier(Path(folder) / "model", Head.seeded(hidden, LABELS, 0))
        for name, lengths in (
            (f"{TASKS} rows of {TOKENS} tokens", even),
            (f"{TASKS} rows of {min(uneven)} to {max(uneven)} tokens", uneven),
        ):
            rows = rows_of(loaded, lengths)
            with ExitStack() as undo:
                runs = ours(loaded, rows) | peers(asked, Path(folder), rows, undo)
                figures = measure(name, runs, asked.rounds)
            print(table(figures), flush=True)
            found.append(figures.to_json())
    if asked.out:
        facts = {"machine": machine_facts(), "dtype": str(loaded.encoder.dtype)}
        facts |= {"peers": versions(Path(asked.python_peers)) if asked.python_peers else {}}
        asked.out.write_text(json.dumps(facts | {"figures": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
