"""Speed of the frozen encoder beside the same weights elsewhere: ``python bench/encoder.py``.

Every cell is a batch of one shape. Contenders take turns within a round, so that a busy machine is
unfair to all of them alike; a cell's figure is the median of its rounds, and what is quoted is the
ratio of two figures of one run. The short form takes a few cells, ``--full`` the whole grid.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DebertaV2Config, DebertaV2Model

from encoder_peers import Contender, Run, contenders, v3_base
from labelmux_encoder.batch import pack_rows, unpack
from labelmux_encoder.frozen import Precision
from labelmux_encoder.weights import bundled_folder, load_encoder, read_checkpoint
from machine import machine_facts

REFERENCE = "transformers float32"
REFERENCE_BF16 = "transformers bfloat16"
OURS = "labelmux auto"
OURS_BF16 = "labelmux bfloat16"
PADDED = "labelmux auto, padded"
MIXED = "mixed"

GRID = [(rows, tokens) for rows in (1, 8, 32) for tokens in (16, 32, 64, 128, 256, 512)]
SHORT = {
    "bundled": [(1, 16), (1, 128), (8, 32), (8, 128), (32, 32), (32, 128)],
    "base": [(1, 16), (1, 128), (8, 64), (32, 64)],
}
#: A turn repeats a fast pass until it took this long.
_TURN_S = 0.05
_WARM_UPS = 2
#: Turns of our pass and of plain products.
_SHARE_ROUNDS = 9


@dataclass(frozen=True, slots=True)
class Batch:
    """One cell's input."""

    name: str
    ids: Tensor  # [B, T]
    mask: Tensor  # [B, T]


@dataclass(slots=True)
class Cell:
    """What one cell measured."""

    encoder: str
    batch: str
    tokens: int
    #: Median of one pass, per contender.
    ms: dict[str, float] = field(default_factory=dict)
    #: Least cosine of a real token's last state with the reference's, per contender.
    cosine: dict[str, float] = field(default_factory=dict)
    #: Share of the rate of plain matrix products that our pass reaches, per precision.
    share_of_product_rate: dict[str, float] = field(default_factory=dict)


def uniform(rows: int, tokens: int, vocab: int) -> Batch:
    """Rows of equal length."""
    ids = torch.randint(5, vocab, (rows, tokens), generator=torch.Generator().manual_seed(0))
    return Batch(f"{rows} x {tokens}", ids, torch.ones_like(ids, dtype=torch.bool))


def mixed(path: Path, rows: int) -> Batch:
    """Real texts as they come, tokenised for the bundled encoder."""
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    every = max(1, len(lines) // rows)
    packed = pack_rows(load_encoder().tokenizer.encode(lines[::every][:rows], 512))
    padded, mask = unpack(packed.token_ids.unsqueeze(1).float(), packed.lengths)
    return Batch(f"{MIXED} x {rows}", padded.squeeze(-1).long(), mask)


def measure(batch: Batch, ways: Sequence[Contender], rounds: int, budget_s: float) -> Cell:
    """Run every contender in turns. A contender slower than the budget gets one turn."""
    cell = Cell("", batch.name, int(batch.mask.sum()))
    reference = next(way for way in ways if way.name == REFERENCE)
    expected = reference.run(batch.ids, batch.mask)
    samples: dict[str, list[float]] = {way.name: [] for way in ways}
    for way in ways:
        found = way.run(batch.ids, batch.mask)
        cell.cosine[way.name] = round(least_cosine(found, expected, batch.mask), 5)
        for _ in range(_WARM_UPS - 1):
            if _turn(way.run, batch, once=True) > budget_s:
                break
    for _ in range(rounds):
        for way in ways:
            taken = samples[way.name]
            if not taken or sum(taken) < budget_s:
                taken.append(_turn(way.run, batch))
    cell.ms = {name: round(statistics.median(taken) * 1e3, 3) for name, taken in samples.items()}
    return cell


def _turn(run: Run, batch: Batch, *, once: bool = False) -> float:
    """Median seconds of a pass."""
    taken: list[float] = []
    while not taken or (not once and sum(taken) < _TURN_S):
        started = time.perf_counter()
        run(batch.ids, batch.mask)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def least_cosine(found: Tensor, expected: Tensor, mask: Tensor) -> float:
    """Over real tokens."""
    cosines = functional.cosine_similarity(found.float(), expected.float(), dim=-1)
    return float(cosines[mask].min().item())


def product_rate(hidden: int, inner: int, tokens: int, precision: Precision) -> float:
    """FLOP/s of the four plain products of a layer."""
    dtype: torch.dtype = getattr(torch, precision)
    multiply = torch._int_mm if precision == "int8" else torch.mm
    shapes = ((hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden))
    seconds, flops = 0.0, 0.0
    for inputs, outputs in shapes:
        left = torch.randn(tokens, inputs).to(dtype)
        right = torch.randn(outputs, inputs).to(dtype).t()
        out = multiply(left, right)
        taken = []
        for _ in range(7):
            started = time.perf_counter()
            multiply(left, right, out=out)
            taken.append(time.perf_counter() - started)
        seconds += statistics.median(taken)
        flops += 2.0 * tokens * inputs * outputs
    return flops / seconds


def pass_flops(config: DebertaV2Config, mask: Tensor) -> float:
    """Of the products that one pass needs: linear maps, and the four products of attention."""
    lengths = mask.sum(1).double()
    hidden, inner = config.hidden_size, config.intermediate_size
    linear: float = 2 * lengths.sum().item() * hidden * (4 * hidden + 2 * inner)
    attention: float = 4 * 2 * lengths.square().sum().item() * hidden
    return int(config.num_hidden_layers) * (linear + attention)


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive values."""
    return math.exp(sum(map(math.log, values)) / len(values))


def ratios(cells: Sequence[Cell], over: str | None, ours: str) -> list[float]:
    """How many times faster ``ours`` is, per cell; ``over`` None is the best peer of each cell."""
    found = []
    for cell in cells:
        others = [ms for name, ms in cell.ms.items() if not name.startswith("labelmux")]
        if ours in cell.ms and (over is None or over in cell.ms):
            found.append((min(others) if over is None else cell.ms[over]) / cell.ms[ours])
    return found


def summary(cells: Sequence[Cell]) -> list[str]:
    """The lines that are quoted: geometric mean and worst cell of each comparison."""
    even = [cell for cell in cells if MIXED not in cell.batch]
    uneven = [cell for cell in cells if MIXED in cell.batch]
    lines = ["| comparison | geometric mean | worst cell |", "|---|---:|---:|"]
    for words, ours, over, part in (
        ("labelmux float32 over transformers float32", "labelmux float32", REFERENCE, even),
        ("labelmux bfloat16 over transformers bfloat16", OURS_BF16, REFERENCE_BF16, even),
        ("labelmux auto over transformers float32", OURS, REFERENCE, even),
        ("labelmux auto over the best peer of each cell", OURS, None, even),
        ("mixed texts: packed over padded", OURS, PADDED, uneven),
        ("mixed texts: labelmux auto over the best peer", OURS, None, uneven),
    ):  # fmt: skip
        found = ratios(part, over, ours)
        if found:
            lines.append(f"| {words} | {geometric_mean(found):.2f}x | {min(found):.2f}x |")
    shares = [cell.share_of_product_rate for cell in cells if cell.share_of_product_rate]
    for precision in shares[0] if shares else ():
        found = [share[precision] for share in shares]
        lines.append(
            f"| share of the rate of plain products in {precision}, batch 32, base "
            f"| {statistics.mean(found):.0%} | {min(found):.0%} |"
        )
    return lines


def table(cells: Sequence[Cell]) -> list[str]:
    """Milliseconds of every contender, the fastest in bold."""
    names = list(dict.fromkeys(name for cell in cells for name in cell.ms))
    lines = ["| cell | " + " | ".join(names) + " |", "|---" + "|---:" * len(names) + "|"]
    for cell in cells:
        best = min(cell.ms.values())
        values = [
            "-" if name not in cell.ms
            else f"**{cell.ms[name]:.2f}**" if cell.ms[name] == best
            else f"{cell.ms[name]:.2f}"
            for name in names
        ]  # fmt: skip
        lines.append(f"| {cell.encoder} {cell.batch} | " + " | ".join(values) + " |")
    least = {
        name: min(cell.cosine[name] for cell in cells if name in cell.cosine) for name in names
    }
    # Padding that is computed on as if it were text gives other features, at the same cost.
    shown = ["-" if name == PADDED else f"{least[name]:.5f}" for name in names]
    lines.append("| least cosine | " + " | ".join(shown) + " |")
    return lines


def models() -> Iterator[tuple[str, DebertaV2Model]]:
    """The encoders of the grid."""
    _, state = read_checkpoint("bundled")
    bundled = DebertaV2Model(DebertaV2Config.from_pretrained(bundled_folder())).eval()
    bundled.load_state_dict(state)
    yield "bundled", bundled
    yield "base", v3_base()


def run(options: argparse.Namespace) -> tuple[list[Cell], Mapping[str, str]]:
    """Measure; cells, and contenders that could not run with the reason."""
    cells: list[Cell] = []
    missing: dict[str, str] = {}
    for name, model in models():
        if name not in options.encoders:
            continue
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            ways = []
            for way in contenders(
                model, Path(folder), options.threads, with_compile=options.compile
            ):
                if isinstance(way, Contender):
                    ways.append(way)
                else:
                    missing[way[0]] = way[1].splitlines()[0][:200]
            batches = [
                uniform(*shape, vocab=30_000) for shape in (GRID if options.full else SHORT[name])
            ]
            batches += [mixed(options.texts, rows) for rows in ((8, 32) if options.full else (32,))]
            for batch in batches:
                takes_part = [way for way in ways if way.name != PADDED or MIXED in batch.name]
                cell = measure(batch, takes_part, options.rounds, options.budget_s)
                cell.encoder = name
                if name == "base" and batch.name.startswith("32 x"):
                    cell.share_of_product_rate = {
                        way.precision: round(share_of_product_rate(model, batch, way), 3)
                        for way in ways
                        if way.name in (OURS_BF16, OURS)
                    }
                cells.append(cell)
                print(table([cell])[2], flush=True)
    return cells, missing


def share_of_product_rate(model: DebertaV2Model, batch: Batch, way: Contender) -> float:
    """Our rate over that of plain products at the same shapes and precision.

    They take turns: the rate of a shared machine changes within seconds.
    """
    config = model.config
    tokens, flops = int(batch.mask.sum()), pass_flops(config, batch.mask)
    sizes = config.hidden_size, config.intermediate_size
    shares = []
    for _ in range(_SHARE_ROUNDS):
        started = time.perf_counter()
        way.run(batch.ids, batch.mask)
        ours = flops / (time.perf_counter() - started)
        shares.append(ours / product_rate(*sizes, tokens, way.precision))
    return statistics.median(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("build/bench-encoder.json"))
    parser.add_argument("--full", action="store_true", help="the whole grid; an hour")
    parser.add_argument("--compile", action="store_true", help="torch.compile too; minutes more")
    parser.add_argument("--encoders", nargs="+", default=["bundled", "base"])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--budget-s", type=float, default=1.0, help="per contender and cell")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--texts", type=Path, default=Path(__file__).parent / "texts.txt")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cells, missing = run(options)
    print("\n".join(["", *table(cells), "", *summary(cells)]))
    for name, why in missing.items():
        print(f"missing: {name}: {why}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": machine_facts(),
        "threads": options.threads,
        "missing": missing,
        "cells": [
            {name: getattr(cell, name) for name in Cell.__slots__} for cell in cells
        ],
    }  # fmt: skip
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
