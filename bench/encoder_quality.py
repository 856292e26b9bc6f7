"""How good an encoder is frozen: Y-Tuning and a linear probe on dev splits of public sets.

    python bench/encoder_quality.py --data FOLDER --encoder bundled --out after.jsonl
    python bench/encoder_quality.py --compare before.jsonl after.jsonl

``--data`` holds a folder per set with ``train.jsonl.gz``, ``dev.jsonl.gz`` and ``meta.json``. Every
result is a JSON line: encoder, set, method, rows, seed and the dev scores. Lines that ``--out``
holds already are not made again, so a run that was stopped goes on. ``--methods full`` adds full
fine-tuning of a copy of the encoder, the yardstick of the paper's claim. ``--compare`` prints the
means by group and the ratio of Y-Tuning to full fine-tuning.

Each method keeps the epoch (the probe: the strength) with the best dev accuracy, so every score
flatters a little, all of them alike; test splits are not touched.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from full_finetuning import MAX_TOKENS, FullSettings, fit_full
from labelled_sets import LabelledSet, accuracy, sample
from labelmux_encoder.weights import LoadedEncoder, load_encoder, read_checkpoint
from labelmux_training.features import FeatureCache
from labelmux_training.kinds import KINDS
from labelmux_training.labels import label_ids
from labelmux_training.linear import fit_probe
from labelmux_training.metrics import Ids, confusion, macro_f1
from labelmux_training.settings import TrainerSettings
from labelmux_training.sizes import choose_sizes
from labelmux_training.trainer import Labelled, fit

#: The sets by what the bars ask of them.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "pairs": ("mrpc", "rte", "sick"),
    "sentiment": ("sst2", "mr", "cr"),
    "others": (
        "trec",
        "ag_news",
        "emotion",
        "tweet_emotion",
        "banking77",
        "clinc150",
        "snips",
        "sms_spam",
        "cola",
    ),
}
SETS = tuple(name for names in GROUPS.values() for name in names)
METHODS = ("ytuning", "probe", "full")
#: ``--rows`` where every row is meant.
ALL = "all"


@dataclass(frozen=True)
class Run:
    """One line of the results."""

    set: str
    method: str
    rows: str
    seed: int


def runs(asked: argparse.Namespace, name: str) -> Iterator[Run]:
    """The runs on one set; the probe has no seed where it sees every row."""
    for rows in asked.rows:
        for seed in asked.seeds:
            for method in asked.methods:
                once = method == "probe" and rows == ALL
                if not once or seed == asked.seeds[0]:
                    yield Run(name, method, rows, seed)


def score(
    run: Run, task: LabelledSet, source: str, loaded: LoadedEncoder, cache: FeatureCache
) -> tuple[dict[str, float], int]:
    """Dev scores of one run, and how many rows it learned from."""
    most = len(task.train.rows) if run.rows == ALL else int(run.rows)
    rows = sample(task.train, most, run.seed)
    gold, dev_gold = (label_ids(split, task.labels) for split in (rows, task.dev))
    if run.method == "full":
        _, state = read_checkpoint(source)
        known = (rows.texts, gold), (task.dev.texts, dev_gold)
        settings = FullSettings(seed=run.seed)
        full = fit_full(loaded, state, *known, task.labels, KINDS[rows.kind], settings)
        predicted = np.stack(full.answers(task.dev.texts)).argmax(1)
        return scores(dev_gold, predicted), len(gold)
    features, dev_features = (
        cache.features(loaded, split.texts, MAX_TOKENS) for split in (rows, task.dev)
    )
    train, dev = Labelled(features, gold), Labelled(dev_features, dev_gold)
    if run.method == "probe":
        kept: Any = fit_probe(task.labels, train, dev).dev
    else:
        kept = _ytuning(task, loaded, train, dev, run.seed)
    return {"accuracy": kept.accuracy, "macro_f1": kept.macro_f1}, len(gold)


def _ytuning(
    task: LabelledSet, loaded: LoadedEncoder, train: Labelled, dev: Labelled, seed: int
) -> Any:
    """Train as ``labelmux train`` does by default."""
    count = len(task.labels)
    sizes, starts = choose_sizes(loaded, count), partial(train.class_means, count)
    found = fit(sizes, task.labels, train, dev, TrainerSettings(seed=seed), starts)
    return found.kept.dev


def scores(gold: Ids, predicted: Ids) -> dict[str, float]:
    found = confusion(gold, predicted, int(max(gold.max(), predicted.max())) + 1)
    return {"accuracy": accuracy(gold, predicted), "macro_f1": macro_f1(found)}


def measure(asked: argparse.Namespace) -> None:
    """Make every line that is asked for and not in ``--out`` yet."""
    loaded = load_encoder(asked.encoder)
    done = {_key(line) for line in _lines(asked.out)}
    for name in asked.sets:
        task = LabelledSet.open(asked.data / name)
        with _cache(asked.cache_dir) as cache:
            for run in runs(asked, name):
                if (loaded.encoder.fingerprint, *vars(run).values()) not in done:
                    _write(asked.out, _result(run, task, asked.encoder, loaded, cache))


@contextmanager
def _cache(folder: Path | None) -> Iterator[FeatureCache]:
    """Features of one set: kept in ``folder``, or for as long as the set is measured."""
    if folder is not None:
        yield FeatureCache(folder)
        return
    with tempfile.TemporaryDirectory() as passing:
        yield FeatureCache(Path(passing))


def _result(
    run: Run, task: LabelledSet, source: str, loaded: LoadedEncoder, cache: FeatureCache
) -> dict[str, Any]:
    started = time.monotonic()
    found, rows = score(run, task, source, loaded, cache)
    return {
        "encoder": loaded.encoder.fingerprint,
        **vars(run),
        "train_rows": rows,
        "dev_rows": len(task.dev.rows),
        **{name: round(value, 5) for name, value in found.items()},
        "seconds": round(time.monotonic() - started, 1),
    }


def _key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in ("encoder", "set", "method", "rows", "seed"))


def _lines(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _write(path: Path | None, line: Mapping[str, Any]) -> None:
    text = json.dumps(line)
    print(text, flush=True)
    if path is not None:
        with path.open("a") as out:
            out.write(text + "\n")


def mean_accuracy(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, str], float]:
    """Points by (set, method, rows), the mean over seeds."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for line in lines:
        found.setdefault((line["set"], line["method"], line["rows"]), []).append(line["accuracy"])
    return {key: 100 * sum(values) / len(values) for key, values in found.items()}


def compare(before: Path, after: Path) -> str:
    """Two files of lines as tables in Markdown: each set, then each group."""
    old, new = (mean_accuracy(_lines(path)) for path in (before, after))
    parts = []
    for rows in sorted({key[2] for key in new}):
        parts += [*_set_table(old, new, rows), "", *_group_table(old, new, rows), ""]
    ratios = [
        new[name, "ytuning", ALL] / new[name, "full", ALL]
        for name in SETS
        if (name, "full", ALL) in new and (name, "ytuning", ALL) in new
    ]
    if ratios:
        mean = sum(ratios) / len(ratios)
        parts.append(
            f"Y-Tuning is at {mean:.3f} of full fine-tuning, mean of {len(ratios)} sets, "
            f"at {min(ratios):.3f} where it is furthest behind."
        )
    return "\n".join(parts)


Points = Mapping[tuple[str, str, str], float]


def _set_table(old: Points, new: Points, rows: str) -> list[str]:
    lines = [
        f"| set, {rows} rows | Y-Tuning before | after | probe before | after | full after |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in SETS:
        cells = [
            points.get((name, method, rows))
            for method, points in (
                ("ytuning", old),
                ("ytuning", new),
                ("probe", old),
                ("probe", new),
                ("full", new),
            )
        ]
        shown = ("-" if cell is None else f"{cell:.1f}" for cell in cells)
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


def _group_table(old: Points, new: Points, rows: str) -> list[str]:
    lines = [f"| group, {rows} rows | Y-Tuning | probe |", "|---|---:|---:|"]
    for group, names in GROUPS.items():
        cells = []
        for method in ("ytuning", "probe"):
            keys = [(name, method, rows) for name in names]
            both = [key for key in keys if key in old and key in new]
            change = sum(new[key] - old[key] for key in both) / max(1, len(both))
            cells.append(f"{change:+.2f}" if len(both) == len(keys) else "-")
        lines.append(f"| {group} | {' | '.join(cells)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of labelled sets")
    parser.add_argument("--encoder", default="bundled", help="bundled, a folder or a hub id")
    parser.add_argument("--out", type=Path, help="file that lines are added to")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS[:2])
    parser.add_argument("--rows", nargs="+", default=["1000", ALL], help=f"numbers, or {ALL}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[13, 14])
    parser.add_argument("--cache-dir", type=Path, help="keep features here; 14 GB for all sets")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    asked = parser.parse_args(arguments)
    if asked.compare:
        sys.stdout.write(compare(*asked.compare) + "\n")
    elif asked.data is None:
        parser.error("--data: name the folder of labelled sets")
    else:
        measure(asked)


if __name__ == "__main__":
    main()
