"""Logits and versions as the JSON that a caller gets. The shapes are those of ``schemas``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from fastapi import Response

from labelmux_adapters.scores import to_scores
from labelmux_server.engine import Classified, Column, Outcome
from labelmux_server.errors import ServerError, error_part
from labelmux_server.registry import Version


def json_answer(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """``body`` as JSON; UTC times end in Z."""
    content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z)
    return Response(content, status, headers, "application/json")


def error_answer(
    error: BaseException, status: int, request_id: str, headers: dict[str, str] | None = None
) -> Response:
    """The one error body."""
    body = {"error": {**error_part(error), "request_id": request_id}}
    return json_answer(body, status, headers)


def classify_body(
    found: Classified, texts: int, top_k: int | None, *, raw_scores: bool
) -> dict[str, Any]:
    """The body of a classification."""
    columns = [_column(column, texts, top_k, raw_scores) for column in found.columns]
    names = [column.name for column in found.columns]
    return {
        "results": [
            {"predictions": {name: cells[at] for name, cells in zip(names, columns, strict=True)}}
            for at in range(texts)
        ],
        "encoder_rows": found.encoder_rows,
        "tokens": found.tokens,
    }


def server_timing(stages: Mapping[str, float], started_s: float) -> str:
    """The stages of a call and its whole time so far, as a ``Server-Timing`` header."""
    whole = {**stages, "total": time.monotonic() - started_s}
    return ", ".join(f"{name};dur={1000 * seconds:.2f}" for name, seconds in whole.items())


def _column(
    column: Column, texts: int, top_k: int | None, raw_scores: bool
) -> list[dict[str, Any]]:
    """One task's part of every result."""
    if column.version is None:
        assert column.error is not None
        return [_error(column.error)] * texts
    answered = [outcome for outcome in column.outcomes if outcome.error is None]
    labels = iter(_labels(column.version, answered, top_k, raw_scores) if answered else ())
    return [
        _cell(column.version, next(labels), outcome.truncated, raw_scores)
        if outcome.error is None
        else _error(outcome.error)
        for outcome in column.outcomes
    ]


def _labels(
    version: Version, answered: Sequence[Outcome], top_k: int | None, raw_scores: bool
) -> list[list[dict[str, Any]]]:
    """Labels and scores of each text, best first; all texts at once."""
    logits = np.array([outcome.logits for outcome in answered])  # [texts, K]
    scores = logits if raw_scores else to_scores(logits, version.manifest)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    names = version.manifest.labels
    return [
        [{"label": names[at], "score": values[at]} for at in places]
        for places, values in zip(order.tolist(), scores.tolist(), strict=True)
    ]


def _cell(
    version: Version, labels: list[dict[str, Any]], truncated: bool, raw_scores: bool
) -> dict[str, Any]:
    return {
        "task": version.task,
        "version": version.number,
        "digest": version.digest,
        "labels": labels,
        "truncated": truncated,
        "calibrated": not raw_scores and version.manifest.calibration.temperature != 1.0,
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
    }
