"""The one request builder, for the sync and the async client alike.

Each function below returns a ``Call``. No input or output happens here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal
from urllib.parse import quote

from labelmux_client import _answers
from labelmux_client._call import Call, Repeat, T
from labelmux_client._types import (
    Activation,
    Canary,
    ClassifyResult,
    GateInfo,
    HistoryEntry,
    PushResult,
    ServerInfo,
    Shadow,
    TaskInfo,
    Trials,
    VersionList,
    VersionRef,
    Windows,
)

__all__: list[str] = []

_JSON = {"Content-Type": "application/json"}


def classify(
    texts: str | Sequence[str] | None,
    *,
    pairs: Sequence[tuple[str, str]] | None,
    task: str | None,
    tasks: str | Sequence[str] | None,
    top_k: int | None,
    raw_scores: bool,
    truncation: bool,
    windows: Windows | None,
) -> Call[ClassifyResult]:
    """Scores of texts or pairs for one task or several."""
    if (texts is None) == (pairs is None):
        raise ValueError("give either texts or pairs")
    if (task is None) == (tasks is None):
        raise ValueError("give either task (one) or tasks (several)")
    body: dict[str, Any] = {}
    if task is not None:
        body["task"] = task
    else:
        assert tasks is not None
        body["tasks"] = [tasks] if isinstance(tasks, str) else list(tasks)
    if pairs is not None:
        body["pairs"] = [checked_pair(pair) for pair in pairs]
    else:
        assert texts is not None
        body["texts"] = [texts] if isinstance(texts, str) else list(texts)
    if top_k is not None:
        body["top_k"] = top_k
    if raw_scores:
        body["raw_scores"] = True
    if not truncation:
        body["truncation"] = False
    if windows is not None:
        if pairs is not None:
            raise ValueError("windows are of single texts, not of pairs")
        body["windows"] = asdict(windows)
    return Call(
        "POST",
        "/v1/classify",
        _answers.classify_result,
        content=json_bytes(body),
        headers=_JSON,
    )


def tasks(search: str | None, after: str | None, limit: int | None) -> Call[list[TaskInfo]]:
    """All tasks, or a page of those that ``search`` finds."""
    asked = {"search": search, "after": after, "limit": limit}
    return _json_call(
        "GET",
        "/v1/tasks",
        lambda answer: [_answers.task_info(item) for item in answer["tasks"]],
        params={name: value for name, value in asked.items() if value is not None},
    )


def task(name: str) -> Call[TaskInfo]:
    """One task."""
    return _json_call("GET", _task_path(name), _answers.task_info)


def push(name: str, data: bytes, *, create_only: bool, activate: Activation) -> Call[PushResult]:
    """Make a file a version of a task."""
    headers = {
        "Content-Type": "application/octet-stream",
        "X-Content-SHA256": hashlib.sha256(data).hexdigest(),
    }
    if create_only:
        headers["If-None-Match"] = "*"
    return Call(
        "PUT",
        _task_path(name, "/adapter"),
        _answers.push_result,
        # A gate begins anew each time, and one whose answer is late would be late again.
        repeat="refused" if create_only or activate == "gated" else "always",
        content=data,
        headers=headers,
        params={} if activate == "now" else {"activate": activate},
    )


def versions(name: str) -> Call[VersionList]:
    """All versions of a task."""
    return _json_call("GET", _task_path(name, "/versions"), _answers.versions)


def history(name: str) -> Call[tuple[HistoryEntry, ...]]:
    """Every change to a task."""
    return _json_call("GET", _task_path(name, "/history"), _answers.history)


def activate(name: str, version: int, *, gated: bool) -> Call[VersionRef]:
    """Make a version the active one."""
    body = {"version": version, "gated": True} if gated else {"version": version}
    return _json_call(
        "POST",
        _task_path(name, "/activate"),
        _answers.version_ref,
        body,
        repeat="refused" if gated else "always",
    )


def shadow(name: str, version: int, share: float) -> Call[Shadow]:
    """Let a version read along."""
    body = {"version": version, "share": share}
    return _json_call("POST", _task_path(name, "/shadow"), _answers.shadow, body)


def canary(name: str, version: int, share: float, by: str) -> Call[Canary]:
    """Let a version answer a share."""
    body = {"version": version, "share": share, "by": by}
    return _json_call("POST", _task_path(name, "/canary"), _answers.canary, body)


def end_trial(name: str, kind: Literal["shadow", "canary"]) -> Call[None]:
    """Leave the active version alone again."""
    return Call("DELETE", _task_path(name, f"/{kind}"), lambda _: None, repeat="refused")


def trials(name: str) -> Call[Trials]:
    """What runs beside the active version."""
    return _json_call("GET", _task_path(name, "/trials"), _answers.trials)


def put_gate(name: str, data: bytes) -> Call[GateInfo]:
    """Store a labelled set."""
    return Call(
        "PUT",
        _task_path(name, "/gate"),
        lambda response: _answers.gate(response.json()),
        content=data,
        headers={"Content-Type": "application/x-ndjson"},
    )


def gate(name: str) -> Call[GateInfo]:
    """What labelled set a task has."""
    return _json_call("GET", _task_path(name, "/gate"), _answers.gate)


def delete_gate(name: str) -> Call[None]:
    """Forget a labelled set."""
    return Call("DELETE", _task_path(name, "/gate"), lambda _: None, repeat="refused")


def rollback(name: str) -> Call[VersionRef]:
    """Make the previously active version the active one."""
    return _json_call("POST", _task_path(name, "/rollback"), _answers.version_ref, repeat="never")


def delete(name: str, version: int | None) -> Call[None]:
    """Delete a task, or one version of it."""
    tail = "" if version is None else f"/versions/{version}"
    return Call("DELETE", _task_path(name, tail), lambda _: None, repeat="refused")


def download(name: str, version: int | None) -> Call[bytes]:
    """The bytes of a version."""
    params = {} if version is None else {"version": version}
    return Call("GET", _task_path(name, "/adapter"), _answers.adapter_bytes, params=params)


def info() -> Call[ServerInfo]:
    """What the server is."""
    return _json_call("GET", "/v1/info", _answers.server_info)


def ready() -> Call[bool]:
    """Whether the server takes requests."""
    return Call("GET", "/health/ready", lambda _: True, repeat="never")


def _task_path(name: str, tail: str = "") -> str:
    return f"/v1/tasks/{quote(name, safe='')}{tail}"


def _json_call(
    method: str,
    path: str,
    read: Callable[[Any], T],
    body: Mapping[str, Any] | None = None,
    *,
    repeat: Repeat = "always",
    params: Mapping[str, int | str] | None = None,
) -> Call[T]:
    return Call(
        method,
        path,
        lambda response: read(response.json()),
        repeat=repeat,
        content=None if body is None else json_bytes(body),
        headers={} if body is None else _JSON,
        params=params or {},
    )


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """JSON in UTF-8, as short as the server counts it.

    Escapes alone are two or three times as long in most scripts, and limits are in bytes. Half of a
    surrogate pair has no UTF-8; it is escaped, for the server to refuse.
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    return text.encode(errors="backslashreplace")


def checked_pair(pair: Sequence[str]) -> list[str]:
    """Two texts.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(pair, str) or len(pair) != 2:
        raise ValueError(f"each of pairs is two texts, not {pair!r}")
    return list(pair)
