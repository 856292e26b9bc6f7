"""An adapter, or any scores, against a labelled file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from labelmux_adapters.files import Adapter, read_adapter
from labelmux_adapters.iob2 import OUTSIDE, words_of
from labelmux_adapters.kinds import TaskKind
from labelmux_encoder.weights import LoadedEncoder, load_encoder
from labelmux_training.columns import Columns
from labelmux_training.data import Dataset, read_rows
from labelmux_training.errors import DataFileError, OptionsError
from labelmux_training.kinds import KINDS
from labelmux_training.labels import check_known, label_flags
from labelmux_training.metrics import (
    AnyMetrics,
    LabelMetrics,
    Metrics,
    Scores,
    SpanMetrics,
    measure,
    measure_labels,
    measure_spans,
)
from labelmux_training.progress import Progress
from labelmux_training.serving import serve_texts


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found."""

    metrics: AnyMetrics
    #: How many texts were cut to the token limit.
    truncated: int

    def to_json(self) -> dict[str, float]:
        """As ``labelmux evaluate --json`` prints it."""
        return {**self.metrics.to_json(), "truncated": self.truncated}


def evaluate(
    adapter_path: Path,
    data_path: Path,
    columns: Columns | None = None,
    encoder: str = "bundled",
    loaded: LoadedEncoder | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a labelled file with an adapter file, by the path that serves requests.

    Args:
        adapter_path: the adapter file.
        data_path: rows with the adapter's labels, or some of them.
        columns: as for ``read_rows``.
        encoder: what to load where ``loaded`` is None.
        loaded: the encoder, if it is loaded already.
        progress: told of each batch.

    Raises:
        AdapterFileError: the file is not an adapter.
        ForeignEncoderError: the adapter belongs to another encoder.
        DataError: the labelled file is bad, or has labels that the adapter does not know.
        OSError: the adapter file cannot be read.
    """
    adapter = read_adapter(adapter_path.read_bytes())
    dataset = read_for(adapter, data_path, columns)
    loaded = loaded or load_encoder(encoder)
    served = serve_texts(adapter, loaded, dataset.texts, progress)
    manifest, kind = adapter.manifest, KINDS[adapter.manifest.task_kind]
    gold = kind.gold(dataset, manifest.labels, loaded.tokenizer, manifest.max_tokens)
    metrics = kind.measure(gold, kind.logits(served.logits), manifest.labels, manifest.calibration)
    return Evaluation(metrics, served.truncated)


def read_for(adapter: Adapter, path: Path, columns: Columns | None = None) -> Dataset:
    """A labelled file whose rows this adapter can answer; raises as ``read_labelled_for`` does."""
    manifest = adapter.manifest
    return read_labelled_for(manifest.labels, manifest.task_kind, manifest.pair, path, columns)


def read_labelled_for(
    labels: Sequence[str], kind: TaskKind, pair: bool, path: Path, columns: Columns | None = None
) -> Dataset:
    """A labelled file for a task of this kind with these labels, which reads two texts or one.

    Where the task reads one text, a column that looks like a second one is left alone.

    Raises:
        DataError: the file is bad, has other labels, or single texts where pairs are needed.
    """
    columns = columns or Columns()
    if not pair:
        if columns.pair:
            raise OptionsError(
                "pair column", f"{columns.pair!r}", "leave it out: the task reads one text"
            )
        columns = replace(columns, pair="")
    dataset = read_rows(path, columns, kind)
    if pair and not dataset.pair:
        raise DataFileError(
            path, "its rows have one text, the task reads two", "name the pair column by option"
        )
    check_known(dataset, labels)
    return dataset


def score_predictions(gold: Sequence[str], scores: Scores, labels: Sequence[str]) -> Metrics:
    """Metrics of scores that came from elsewhere, such as a running server.

    Args:
        gold: each row's label, one of ``labels``.
        scores: calibrated probabilities in the order of ``labels``. [rows, K]
        labels: in the order of the columns of ``scores``.
    """
    index = {label: position for position, label in enumerate(labels)}
    return measure(np.array([index[label] for label in gold], dtype=np.int64), scores)


def score_labels(
    dataset: Dataset, predicted: Sequence[Collection[str]], labels: Sequence[str]
) -> LabelMetrics:
    """The same of the labels that each row was given, for a multi_label task."""
    found = np.array([[label in given for label in labels] for given in predicted])
    return measure_labels(label_flags(dataset, labels), found)


def score_spans(dataset: Dataset, spans: Sequence[Sequence[FoundSpan]]) -> SpanMetrics:
    """The same of the spans that were found in each row, for a token task."""
    wanted = [[row.labels[at] for at in row.firsts] for row in dataset.rows]
    found = []
    for row, of_row in zip(dataset.rows, spans, strict=True):
        tags = tags_of_spans(row.text, of_row)
        found.append([tags[at] for at in row.firsts])
    return measure_spans(wanted, found)


#: Type, first character, and the character after the last.
FoundSpan = tuple[str, int, int]


def tags_of_spans(text: str, spans: Sequence[FoundSpan]) -> list[str]:
    """The tag of each word of the text."""
    words = words_of(text)
    tags = [OUTSIDE] * len(words)
    for label, start, end in spans:
        inside = [at for at, (first, last) in enumerate(words) if start <= first and last <= end]
        for at in inside:
            tags[at] = f"{'B' if at == inside[0] else 'I'}-{label}"
    return tags
