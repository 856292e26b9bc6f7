"""An adapter, or any scores, against a labelled file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labelmux_adapters.files import Adapter, read_adapter
from labelmux_adapters.scores import to_scores
from labelmux_encoder.weights import LoadedEncoder, load_encoder
from labelmux_training.data import Columns, Dataset, read_rows
from labelmux_training.errors import DataFileError, OptionsError
from labelmux_training.labels import check_known, label_ids
from labelmux_training.metrics import Metrics, Scores, measure
from labelmux_training.progress import Progress
from labelmux_training.serving import serve_texts


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found."""

    metrics: Metrics
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
    scores = to_scores(served.logits, adapter.manifest)
    gold = label_ids(dataset, adapter.manifest.labels)
    return Evaluation(measure(gold, scores), served.truncated)


def read_for(adapter: Adapter, path: Path, columns: Columns | None = None) -> Dataset:
    """A labelled file whose rows this adapter can answer; raises as ``read_labelled_for`` does."""
    return read_labelled_for(adapter.manifest.labels, adapter.manifest.pair, path, columns)


def read_labelled_for(
    labels: Sequence[str], pair: bool, path: Path, columns: Columns | None = None
) -> Dataset:
    """A labelled file for a task with these labels, which reads two texts or one.

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
        columns = Columns(columns.text, columns.label, pair="")
    dataset = read_rows(path, columns)
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
    import numpy as np

    index = {label: position for position, label in enumerate(labels)}
    return measure(np.array([index[label] for label in gold], dtype=np.int64), scores)
