"""``labelmux evaluate``: an adapter file, or a task of a running server, against labelled rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from labelmux_cli.bars import Bars
from labelmux_cli.chunks import Question, ask, chunked
from labelmux_cli.connection import DEFAULT_URL, AsJson, Key, Url, connect
from labelmux_cli.errors import FailedError, UsageError, about
from labelmux_cli.labelled import (
    DEFAULT_DELIMITER,
    LabelColumn,
    LabelDelimiter,
    PairColumn,
    TextColumn,
    columns,
    needs_extra,
    print_metrics,
)
from labelmux_cli.output import print_json, print_line, reported
from labelmux_cli.texts import Row
from labelmux_client import Client, Prediction, TaskInfo

if TYPE_CHECKING:
    from labelmux_adapters.kinds import TaskKind
    from labelmux_training.columns import Columns
    from labelmux_training.data import Dataset
    from labelmux_training.metrics import AnyMetrics


@reported
def evaluate(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="[ADAPTER.safetensors] DATA",
            help="The adapter file (not with --task), then the labelled rows.",
        ),
    ],
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="TASK",
            help="Ask a running server instead of an adapter file. NAME@2 asks version 2.",
        ),
    ] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    pair_column: PairColumn = None,
    label_delimiter: LabelDelimiter = DEFAULT_DELIMITER,
    encoder: Annotated[
        str,
        typer.Option(
            "--encoder", metavar="bundled|FOLDER|HUB-ID", help="The one it was trained on."
        ),
    ] = "bundled",
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Score a labelled file: accuracy, or F1 of several labels, or F1 of spans.

    Example:
      labelmux evaluate spam.safetensors test.csv
      labelmux evaluate --task spam --url http://127.0.0.1:8000 test.csv --json
    """
    wanted = 1 if task is not None else 2
    if len(files) != wanted:
        names = "the labelled file alone" if task is not None else "ADAPTER.safetensors and DATA"
        raise UsageError(f"{len(files)} files were given; give {names}")
    chosen = columns(text_column, label_column, pair_column, label_delimiter)
    with Bars() as bars, needs_extra():
        if task is None:
            from labelmux_training.evaluate import evaluate as run

            with about(files[0]):
                found = run(files[0], files[1], chosen, encoder, progress=bars)
            metrics, facts = found.metrics, found.to_json()
        else:
            with connect(url, key) as client:
                metrics, facts = _ask_server(client, task, files[0], chosen, bars)
    if as_json:
        print_json(facts)
        return
    print_metrics({str(files[-1]): metrics})
    if facts["truncated"]:
        print_line(f"{facts['truncated']} texts were longer than the task reads")


def _ask_server(
    client: Client, task: str, data: Path, chosen: Columns, bars: Bars
) -> tuple[AnyMetrics, dict[str, float]]:
    """Metrics of one version, even if another becomes active meanwhile."""
    from labelmux_training.evaluate import read_labelled_for

    name, _, version = task.partition("@")
    info = client.task(name)
    kind = cast("TaskKind", info.task_kind)
    dataset = read_labelled_for(info.labels, kind, info.pair, data, chosen)
    question = Question(tasks=(f"{name}@{version or info.version}",), pair=info.pair)
    rows = [Row(row.text, f"{data}, line {row.line}", row.pair) for row in dataset.rows]
    predictions: list[Prediction] = []
    bars.start("classify", total=len(rows), unit="rows")
    for chunk in chunked(rows):
        answers = ask(client, chunk, question)
        predictions += (answer[question.tasks[0]] for answer in answers)
        bars.advance(len(chunk))
    bars.done()
    metrics = _measure(dataset, predictions, info)
    truncated = sum(prediction.truncated for prediction in predictions)
    return metrics, {**metrics.to_json(), "truncated": truncated}


def _measure(dataset: Dataset, predictions: Sequence[Prediction], info: TaskInfo) -> AnyMetrics:
    import numpy as np

    from labelmux_training.evaluate import score_labels, score_predictions, score_spans

    if dataset.kind == "token":
        spans = [
            [(span.label, span.start, span.end) for span in prediction.spans or ()]
            for prediction in predictions
        ]
        return score_spans(dataset, spans)
    scores = np.array([_scores(prediction, info) for prediction in predictions])
    if dataset.kind == "multi_label":
        return score_labels(dataset, [found.predicted or () for found in predictions], info.labels)
    return score_predictions([row.label for row in dataset.rows], scores, info.labels)


def _scores(prediction: Prediction, info: TaskInfo) -> Sequence[float]:
    by_label = {item.label: item.score for item in prediction.labels or ()}
    if by_label.keys() != set(info.labels):
        raise FailedError(
            f"version {prediction.version} of task {info.task!r} has other labels than the active "
            "one; download it and evaluate the file"
        )
    return [by_label[label] for label in info.labels]
