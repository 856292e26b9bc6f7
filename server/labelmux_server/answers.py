"""Logits and versions as the JSON that a caller gets. The shapes are those of ``schemas``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from fastapi import Response
from numpy.typing import NDArray

from labelmux_adapters.iob2 import OUTSIDE, Run, runs_of, words_of
from labelmux_adapters.manifest import Manifest
from labelmux_adapters.scores import thresholds_of, to_scores
from labelmux_encoder.tokenizer import TextInput
from labelmux_server.errors import ServerError
from labelmux_server.outcomes import Classified, Column, Outcome
from labelmux_server.registry import Version
from labelmux_server.schemas import ClassifyRequest
from labelmux_server.statuses import error_part
from labelmux_server.windows import aggregate, of_words


def json_answer(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """``body`` as JSON; UTC times end in Z."""
    content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z)
    return Response(content, status, headers, "application/json")


def classify_body(
    found: Classified, texts: Sequence[TextInput], wanted: ClassifyRequest
) -> dict[str, Any]:
    """The body of a classification."""
    columns = [_column(column, texts, wanted) for column in found.columns]
    names = [column.name for column in found.columns]
    return {
        "results": [
            {"predictions": {name: cells[at] for name, cells in zip(names, columns, strict=True)}}
            for at in range(len(texts))
        ],
        "encoder_rows": found.encoder_rows,
        "tokens": found.tokens,
    }


def server_timing(stages: Mapping[str, float], started_s: float) -> str:
    """The stages of a call and its whole time so far, as a ``Server-Timing`` header."""
    whole = {**stages, "total": time.monotonic() - started_s}
    return ", ".join([f"{name};dur={1000 * seconds:.2f}" for name, seconds in whole.items()])


def _column(
    column: Column, texts: Sequence[TextInput], wanted: ClassifyRequest
) -> list[dict[str, Any]]:
    """One task's part of every result."""
    if column.version is None:
        assert column.error is not None
        return [_error(column.error)] * len(texts)
    cells = [{} if outcome.error is None else _error(outcome.error) for outcome in column.outcomes]
    for version, places in _by_version(column.outcomes).items():
        answered = [(texts[at], column.outcomes[at]) for at in places]
        for at, cell in zip(places, predictions(version, answered, wanted), strict=True):
            cells[at] = cell
    return cells


def _by_version(outcomes: Sequence[Outcome]) -> dict[Version, list[int]]:
    """The places of what was answered, by who answered it."""
    places: dict[Version, list[int]] = {}
    for at, outcome in enumerate(outcomes):
        if outcome.error is None:
            places.setdefault(outcome.version, []).append(at)
    return places


Answered = Sequence[tuple[TextInput, Outcome]]


def predictions(
    version: Version, answered: Answered, wanted: ClassifyRequest
) -> list[dict[str, Any]]:
    """What a version says of texts; at least one."""
    manifest = version.manifest
    tokens = manifest.task_kind == "token"
    parts = _spans(manifest, answered) if tokens else _labels(manifest, answered, wanted)
    common = {
        "task": version.task,
        "version": version.number,
        "digest": version.digest,
        "task_kind": manifest.task_kind,
    }
    calibrated = not wanted.raw_scores and manifest.calibration.temperature != 1.0
    return [
        {
            **common,
            **own,
            "truncated": outcome.truncated,
            "windows": len(outcome.rows),
            "calibrated": calibrated,
        }
        for own, (_, outcome) in zip(parts, answered, strict=True)
    ]


def _labels(
    manifest: Manifest, answered: Answered, wanted: ClassifyRequest
) -> Iterator[dict[str, Any]]:
    """Labels and scores of each text, best first, and what they mean."""
    how = "mean" if wanted.windows is None else wanted.windows.aggregation
    logits = np.array([aggregate(outcome.logits, how) for _, outcome in answered])  # [texts, K]
    scores = to_scores(logits, manifest).tolist()
    shown = logits.tolist() if wanted.raw_scores else scores
    # Rounded as the scores are, so that one at the threshold does not fall below it.
    names, abstain = manifest.labels, np.float32(manifest.calibration.abstain or 0.0).item()
    several = manifest.task_kind == "multi_label"
    thresholds = thresholds_of(manifest).tolist() if several else ()
    for ranked, own, values in zip(_ranked(logits), scores, shown, strict=True):
        labels = [{"label": names[at], "score": values[at]} for at in ranked[: wanted.top_k]]
        if several:
            predicted = [names[at] for at in ranked if own[at] >= thresholds[at]]
            yield {"labels": labels, "predicted": predicted}
        else:
            yield {"labels": labels, "abstained": own[ranked[0]] < abstain}


def _ranked(logits: NDArray[np.float32]) -> list[list[int]]:
    """The places of each text's labels, best first; of equals the first. [texts, K]"""
    if len(logits) == 1:
        # numpy would give up Python's lock, and the loop wait for it, ten times as long.
        (one,) = logits.tolist()
        return [sorted(range(len(one)), key=one.__getitem__, reverse=True)]
    places: list[list[int]] = np.argsort(-logits, axis=1, kind="stable").tolist()
    return places


def _spans(manifest: Manifest, answered: Answered) -> Iterator[dict[str, Any]]:
    """The spans of each text."""
    for text, outcome in answered:
        assert isinstance(text, str)
        read_chars = max(end for _, end in outcome.rows[-1].offsets)
        words = words_of(text, read_chars)
        read, logits = of_words(words, outcome.rows, outcome.logits)
        scores = to_scores(logits, manifest)
        tags = [
            manifest.labels[at] if was_read else OUTSIDE
            for at, was_read in zip(scores.argmax(axis=1).tolist(), read.tolist(), strict=True)
        ]
        best = scores.max(axis=1).tolist()
        yield {"spans": [_span(text, words, run, best) for run in runs_of(tags)]}


def _span(
    text: str, words: Sequence[tuple[int, int]], run: Run, scores: Sequence[float]
) -> dict[str, Any]:
    start, end = words[run.first][0], words[run.end - 1][1]
    own = scores[run.first : run.end]
    return {
        "label": run.label,
        "start": start,
        "end": end,
        "text": text[start:end],
        "score": sum(own) / len(own),
    }


def _error(error: ServerError) -> dict[str, Any]:
    return {"error": error_part(error)}


def task_body(version: Version) -> dict[str, Any]:
    """A task, by its active version."""
    manifest = version.manifest
    return {
        "task": version.task,
        "method": manifest.method,
        "task_kind": manifest.task_kind,
        "labels": list(manifest.labels),
        "pair": manifest.pair,
        "max_tokens": manifest.max_tokens,
        "version": version.number,
        "digest": version.digest,
        "encoder_fingerprint": manifest.encoder_fingerprint,
        "metrics": manifest.metrics,
        "parameters": manifest.parameters,
        "parameter_share": manifest.parameter_share,
        "size_bytes": version.size_bytes,
        "created_at": version.created_at,
        "card": manifest.card,
    }


def report_body(version: Version, active: int) -> dict[str, Any]:
    """One version of a task, by all that its file says."""
    manifest = version.manifest
    return {
        **task_body(version),
        "active": version.number == active,
        "sizes": manifest.sizes,
        "pooling": manifest.pooling,
        "encoder": manifest.encoder,
        "calibration": manifest.calibration.model_dump(),
        "data_digest": manifest.data_digest,
        "trained_at": manifest.created_at,
        "canaries": len(manifest.canaries),
        "canary_tolerance": manifest.canary_tolerance,
    }


def active_body(version: Version) -> dict[str, Any]:
    """The version that serves now."""
    return {"task": version.task, "version": version.number, "digest": version.digest}


def version_body(version: Version, active: int) -> dict[str, Any]:
    """One version in a list of them."""
    return {
        "version": version.number,
        "digest": version.digest,
        "size_bytes": version.size_bytes,
        "created_at": version.created_at,
        "active": version.number == active,
        "metrics": version.manifest.metrics,
    }
