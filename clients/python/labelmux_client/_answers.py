"""The server's answers as the client's types.

What does not fit raises what Python raises then, and ``Call.parse`` says so as ``AnswerError``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

import httpx2

from labelmux_client._call import T
from labelmux_client._types import (
    Canary,
    ClassifyResult,
    EncoderInfo,
    GateInfo,
    GateScores,
    HistoryEntry,
    KeyInfo,
    LabelScore,
    Prediction,
    PushResult,
    ServerInfo,
    Shadow,
    Span,
    TaskFailure,
    TaskInfo,
    TextResult,
    Trials,
    VersionInfo,
    VersionList,
    VersionRef,
)

__all__: list[str] = []


def classify_result(response: httpx2.Response) -> ClassifyResult:
    answer = response.json()
    return ClassifyResult(
        results=tuple(text_result(item["predictions"]) for item in answer["results"]),
        encoder_rows=answer["encoder_rows"],
        tokens=answer["tokens"],
        request_id=response.headers.get("X-Request-Id"),
    )


def text_result(by_task: Mapping[str, Any]) -> TextResult:
    """What every task says of one text."""
    predictions = {}
    failures = {}
    for name, item in by_task.items():
        if "error" in item:
            error = item["error"]
            failures[name] = TaskFailure(name, error["code"], error["message"])
        else:
            predictions[name] = _prediction(item)
    return TextResult(predictions, failures)


def _prediction(item: Mapping[str, Any]) -> Prediction:
    return Prediction(
        task=item["task"],
        version=item["version"],
        digest=item["digest"],
        task_kind=item["task_kind"],
        truncated=item["truncated"],
        windows=item["windows"],
        calibrated=item["calibrated"],
        labels=_each(item.get("labels"), _label_score),
        abstained=item.get("abstained"),
        predicted=_each(item.get("predicted"), str),
        spans=_each(item.get("spans"), _span),
    )


def _each(items: Sequence[Any] | None, read: Callable[[Any], T]) -> tuple[T, ...] | None:
    return None if items is None else tuple(map(read, items))


def _label_score(item: Mapping[str, Any]) -> LabelScore:
    return LabelScore(item["label"], item["score"])


def _span(item: Mapping[str, Any]) -> Span:
    return Span(item["label"], item["start"], item["end"], item["text"], item["score"])


def task_info(item: Mapping[str, Any]) -> TaskInfo:
    return TaskInfo(
        task=item["task"],
        method=item["method"],
        task_kind=item["task_kind"],
        labels=tuple(item["labels"]),
        pair=item["pair"],
        max_tokens=item["max_tokens"],
        version=item["version"],
        digest=item["digest"],
        encoder_fingerprint=item["encoder_fingerprint"],
        metrics=dict(item["metrics"]),
        parameters=item["parameters"],
        parameter_share=item["parameter_share"],
        size_bytes=item["size_bytes"],
        created_at=datetime.fromisoformat(item["created_at"]),
        card=dict(item["card"]),
    )


def push_result(response: httpx2.Response) -> PushResult:
    answer = response.json()
    return PushResult(
        task=answer["task"],
        version=answer["version"],
        digest=answer["digest"],
        active=answer["active"],
        created=response.status_code == 201,
        gate=_gate_scores(answer),
    )


def version_ref(answer: Mapping[str, Any]) -> VersionRef:
    return VersionRef(answer["task"], answer["version"], answer["digest"], _gate_scores(answer))


def _gate_scores(answer: Mapping[str, Any]) -> GateScores | None:
    found = answer.get("gate")
    return None if found is None else _picked(GateScores, found)


def shadow(item: Mapping[str, Any]) -> Shadow:
    return _picked(Shadow, item, "since", "counted_since")


def canary(item: Mapping[str, Any]) -> Canary:
    return _picked(Canary, item, "since", "counted_since")


def trials(answer: Mapping[str, Any]) -> Trials:
    by_shadow, by_canary = answer["shadow"], answer["canary"]
    return Trials(
        task=answer["task"],
        active=answer["active"],
        shadow=None if by_shadow is None else shadow(by_shadow),
        canary=None if by_canary is None else canary(by_canary),
    )


def gate(answer: Mapping[str, Any]) -> GateInfo:
    return _picked(GateInfo, answer, "stored_at")


def _picked(kind: type[T], item: Mapping[str, Any], *times: str) -> T:
    """A flat value of this kind: its fields by name, those of ``times`` read as times."""
    values = {of.name: item[of.name] for of in fields(kind)}  # type: ignore[arg-type]
    return kind(**values | {name: datetime.fromisoformat(item[name]) for name in times})


def versions(answer: Mapping[str, Any]) -> VersionList:
    return VersionList(
        task=answer["task"],
        active=answer["active"],
        versions=tuple(
            VersionInfo(
                version=item["version"],
                digest=item["digest"],
                size_bytes=item["size_bytes"],
                created_at=datetime.fromisoformat(item["created_at"]),
                active=item["active"],
                metrics=dict(item["metrics"]),
            )
            for item in answer["versions"]
        ),
        history=history(answer),
    )


def history(answer: Mapping[str, Any]) -> tuple[HistoryEntry, ...]:
    return tuple(
        HistoryEntry(
            at=datetime.fromisoformat(item["at"]),
            action=item["action"],
            version=item["version"],
            digest=item["digest"],
            by=item["by"],
            share=item.get("share"),
        )
        for item in answer["history"]
    )


def adapter_bytes(response: httpx2.Response) -> bytes:
    """The body, which must be what its ETag says where that is a digest."""
    data = response.content
    stated = response.headers.get("ETag", "").removeprefix("W/").strip('"')
    found = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if stated.startswith("sha256:") and stated != found:
        raise ValueError(f"the bytes have the digest {found}, the server states {stated}")
    return data


def server_info(answer: Mapping[str, Any]) -> ServerInfo:
    encoder = answer["encoder"]
    return ServerInfo(
        name=answer["name"],
        version=answer["version"],
        encoder=EncoderInfo(
            name=encoder["name"],
            fingerprint=encoder["fingerprint"],
            hidden_size=encoder["hidden_size"],
            layers=encoder["layers"],
            parameters=encoder["parameters"],
            max_tokens=encoder["max_tokens"],
        ),
        tasks=answer["tasks"],
        limits=dict(answer["limits"]),
        access=answer["access"],
        key=None if answer["key"] is None else _key_info(answer["key"]),
    )


def _key_info(item: Mapping[str, Any]) -> KeyInfo:
    return KeyInfo(item["name"], tuple(item["scopes"]), tuple(item["tasks"]))
