"""What each method is worth: scores on test splits of public sets, with what they cost.

    python bench/quality.py --data FOLDER --out FILE
    python bench/quality.py --data FOLDER --out FILE --tables full-size --sets trec --seeds 13
    python bench/quality.py --out FILE --render docs

Every measurement is a JSON line of ``--out``, made in a process of its own; lines that are there
already are not made again, so a run that was stopped goes on. With the first seed, every learning
rate of a method is tried (``--rates`` tries fewer); other seeds run the one with the best dev score
and the list's first. The tables show each seed with the rate that has its best dev score. Each run
keeps the epoch with the best dev accuracy; test splits decide nothing. ``--render`` writes the
tables into ``quality.md`` of that folder, between its marks, and the pictures beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

import torch

from labelled_sets import SCORES, LabelledSet, sample
from labelmux_encoder.weights import load_encoder
from labelmux_training.labels import choose_labels
from quality_methods import METHODS, Outcome, Problem
from quality_plan import SEEDS, TABLES, Asked, Line, Run, plan
from quality_render import render

#: Rows that choose epoch, rate and strength, at most; the same for every run on a set.
MOST_DEV_ROWS = 1000
_DEV_SEED = 0


def measure(asked: Asked, data: Path, out: Path, encoder: str, jobs: int) -> None:
    """Make every line that is asked for and not in ``out`` yet, ``jobs`` at a time."""
    under_way: dict[Future[Line], Run] = {}
    # A process is started anew for every run, so that the memory it needs is that of the run.
    with ProcessPoolExecutor(
        jobs,
        get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
        max_tasks_per_child=1,
    ) as processes:
        while True:
            lines = read_lines(out)
            begun = {Run.of(line) for line in lines} | set(under_way.values())
            missing = [run for run in plan(asked, lines) if run not in begun]
            for run in missing[: jobs - len(under_way)]:
                under_way[processes.submit(measured, run, data, encoder)] = run
            if not under_way:
                return
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                del under_way[future]
                _append(out, future.result())


def measured(run: Run, data: Path, encoder: str) -> Line:
    """The line of one run; the thread count is the caller's."""
    cell = run.cell
    found = LabelledSet.open(data / cell.set)
    train = sample(found.train, cell.rows, run.seed)
    dev = sample(found.dev, MOST_DEV_ROWS, _DEV_SEED)
    # Not auto: lines of one table are made on several machines.
    loaded = load_encoder(encoder, dtype="bfloat16")
    # Tags are completed in training: every method has the same.
    labels = choose_labels(train, found.labels) if train.kind == "token" else found.labels
    problem = Problem(labels, train, dev, found.test, loaded, encoder)
    outcome = METHODS[cell.method].run(problem, run.learning_rate, run.seed)
    dev_score, test_score = scores(problem, outcome, found.metric)
    return {
        **cell._asdict(),
        "seed": run.seed,
        "learning_rate": run.learning_rate,
        "train_rows": len(train.rows),
        "dev_rows": len(dev.rows),
        "test_rows": len(found.test.rows),
        "metric": found.metric,
        "dev": round(dev_score, 5),
        "test": round(test_score, 5),
        "parameters": outcome.parameters,
        "share": round(outcome.share, 6),
        "seconds": round(outcome.meter.seconds, 1),
        "core_seconds": round(outcome.meter.core_seconds, 1),
        "peak_bytes": outcome.meter.peak_bytes,
        "file_bytes": outcome.file_bytes,
        "by_layer": [round(value, 4) for value in outcome.by_layer],
    }


def scores(problem: Problem, outcome: Outcome, metric: str) -> tuple[float, float]:
    """Dev's and test's. Thresholds of several labels, if the kind has them, are those of dev."""
    kind = problem.kind
    gold, test_gold = problem.gold(problem.dev), problem.gold(problem.test)
    dev, test = kind.logits(outcome.dev), kind.logits(outcome.test)
    if metric in SCORES:
        score = SCORES[metric]
        return score(gold, dev.argmax(1)), score(test_gold, test.argmax(1))
    calibration = kind.calibrate(gold, dev)
    on_dev, on_test = (
        kind.measure(wanted, found, problem.labels, calibration)
        for wanted, found in ((gold, dev), (test_gold, test))
    )
    return on_dev.score, on_test.score


def read_lines(path: Path) -> list[Line]:
    """The measurements so far."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _append(path: Path, line: Line) -> None:
    text = json.dumps(line)
    print(text, flush=True)
    with path.open("a") as out:
        out.write(text + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    every = Asked()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of labelled sets")
    parser.add_argument("--out", type=Path, required=True, help="file that lines are added to")
    parser.add_argument("--render", type=Path, metavar="FOLDER", help="write tables and pictures")
    parser.add_argument("--encoder", default="bundled", help="bundled, a folder or a hub id")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=every.tables)
    parser.add_argument("--sets", nargs="+", choices=every.sets, default=every.sets)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=every.methods)
    parser.add_argument("--rows", nargs="+", type=int, choices=every.rows, default=every.rows)
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS)
    parser.add_argument("--rates", type=int, help="learning rates that are tried; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="measurements at a time")
    given = parser.parse_args(arguments)
    asked = Asked(given.tables, given.sets, given.methods, given.rows, given.seeds, given.rates)
    if given.render is not None:
        render(read_lines(given.out), given.render)
    elif given.data is None:
        parser.error("--data: name the folder of labelled sets")
    else:
        measure(asked, given.data, given.out, given.encoder, given.jobs)


if __name__ == "__main__":
    main()
