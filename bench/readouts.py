"""What readouts cost: 64 tasks beside one on the same texts, and 1,000 tasks beside one.

Times are of this process: the encoder's pass and the readouts, the best of several runs, since the
machine may be busy. ``--pass-ms`` puts another pass time in the ratios, to see what they would be
with a faster encoder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from labelmux_adapters.bank import Bank, Slot
from labelmux_adapters.files import Adapter
from labelmux_adapters.ytuning import YTuning, YTuningSizes, to_tensors
from labelmux_encoder.batch import PackedRows, pack_rows
from labelmux_encoder.tokenizer import TokenRow
from labelmux_encoder.weights import LoadedEncoder, load_encoder

SIZES = {"width": 160, "heads": 4, "ffn": 320}
TOKENS = 21
TASKS, MOST_LABELS, FEWEST_LABELS = 64, 150, 2
MANY_TASKS = 1000


class Manifest(NamedTuple):
    """As much of a manifest as the bank reads."""

    sizes: dict[str, int]
    labels: tuple[str, ...]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    loaded = load_encoder("bundled", device="cpu")
    dtype = torch.bfloat16 if arguments.bfloat16 else torch.float32
    with torch.inference_mode():
        _many_tasks_on_the_same_texts(loaded, dtype, arguments)
        _rows_over_many_tasks(loaded, dtype, arguments)


def label_counts(tasks: int) -> list[int]:
    """From 2 to 150 in even ratios: half of the tasks have at most 17 labels."""
    ratio = MOST_LABELS / FEWEST_LABELS
    return [round(FEWEST_LABELS * ratio ** (at / (tasks - 1))) for at in range(tasks)]


def _many_tasks_on_the_same_texts(
    loaded: LoadedEncoder, dtype: torch.dtype, arguments: argparse.Namespace
) -> None:
    bank = Bank(dtype=dtype)
    slots = [bank.add(_adapter(loaded, labels, seed)) for seed, labels in enumerate(label_counts(TASKS))]
    for texts in (1, 32):
        batch = _batch(texts)
        features = loaded.encoder(batch).to(dtype)
        passes = _best(lambda batch=batch: loaded.encoder(batch), arguments.runs)
        many = [(text, slot) for text in range(texts) for slot in slots]
        one = [(text, slots[len(slots) // 2]) for text in range(texts)]
        costs = [_readout(bank, features, batch, rows, arguments.runs) for rows in (one, many)]
        _print(f"{TASKS} tasks on {texts} texts", passes, costs, arguments.pass_ms)


def _rows_over_many_tasks(
    loaded: LoadedEncoder, dtype: torch.dtype, arguments: argparse.Namespace
) -> None:
    bank = Bank(dtype=dtype)
    slots = [bank.add(_adapter(loaded, 2 + seed % 3, seed)) for seed in range(MANY_TASKS)]
    for texts in (32,):
        batch = _batch(texts)
        features = loaded.encoder(batch).to(dtype)
        passes = _best(lambda batch=batch: loaded.encoder(batch), arguments.runs)
        one = [(text, slots[0]) for text in range(texts)]
        step = MANY_TASKS // texts
        # Another offset each time, so that no run finds its adapters in the cache.
        spread = [
            [(text, slots[text * step + offset % step]) for text in range(texts)]
            for offset in range(arguments.runs)
        ]
        turn = iter(range(10**9))
        costs = [
            _readout(bank, features, batch, one, arguments.runs),
            _best(
                lambda: bank.readout(
                    features, batch.lengths, spread[next(turn) % len(spread)]
                ),
                arguments.runs,
            ),
        ]
        _print(f"{texts} texts over {MANY_TASKS} tasks", passes, costs, arguments.pass_ms)


def _print(
    what: str, pass_s: float, costs: Sequence[float], other_pass_ms: Sequence[float]
) -> None:
    one, many = costs
    ratio = (pass_s + many) / (pass_s + one)
    print(
        f"{what}: pass {pass_s * 1e3:.2f} ms, readouts {one * 1e3:.2f} and {many * 1e3:.2f} ms; "
        f"{ratio:.2f}x the time, {1 / ratio:.0%} of the speed"
    )
    for other in other_pass_ms:
        print(f"  with a pass of {other:g} ms: {(other + many * 1e3) / (other + one * 1e3):.2f}x")


def _readout(
    bank: Bank,
    features: torch.Tensor,
    batch: PackedRows,
    rows: Sequence[tuple[int, Slot]],
    runs: int,
) -> float:
    return _best(lambda: bank.readout(features, batch.lengths, rows), runs)


def _best(work: Callable[[], object], runs: int) -> float:
    """Seconds."""
    work()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--bfloat16", action="store_true", help="resident weights in bfloat16")
    parser.add_argument("--pass-ms", type=float, nargs="*", default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
