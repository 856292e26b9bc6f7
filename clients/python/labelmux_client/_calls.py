"""The one request builder and the one answer parser, for the sync and the async client alike.

Each function below returns a ``Call``: what to send, how to read the answer, when to send it again.
No input or output happens here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx2

from labelmux_client._errors import AnswerError, StatusError, error_class
from labelmux_client._types import (
    Activation,
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
    Windows,
)

__all__: list[str] = []

T = TypeVar("T")

#: When a request may be sent again. ``refused``: only where the server said that it did nothing
#: (429, 503). ``always``: also where no answer came, as a second time changes nothing.
Repeat = Literal["never", "refused", "always"]

_SHOWN_CHARS = 200


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request and how to read its answer."""

    method: str
    path: str
    #: Takes an answer with a status below 300.
    read: Callable[[httpx2.Response], T]
    repeat: Repeat = "always"
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, int | str | Sequence[str]] = field(default_factory=dict)

    def parse(self, response: httpx2.Response) -> T:
        """What the answer says.

        Raises:
            StatusError: the server said no.
            AnswerError: the answer is not one that a labelmux server gives.
        """
        if response.status_code >= 400:
            raise status_error(response)
        if response.status_code >= 300:
            raise AnswerError(
                f"{self.method} {self.path}: answered with a redirect ({response.status_code}) to "
                f"{response.headers.get('Location', 'nowhere')}; use that address as base_url"
            )
        try:
            return self.read(response)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AnswerError(
                f"{self.method} {self.path}: the answer is not one of a labelmux server "
                f"({type(error).__name__}: {error}); check the address: "
                f"{response.text[:_SHOWN_CHARS]!r}"
            ) from error


def status_error(response: httpx2.Response) -> StatusError:
    """The error that an answer with a status of 400 or more stands for."""
    status = response.status_code
    request_id = response.headers.get("X-Request-Id")
    try:
        fields = dict(response.json()["error"])
        code, message = str(fields.pop("code")), str(fields.pop("message"))
    except (KeyError, TypeError, ValueError):
        shown = " ".join(response.text[:_SHOWN_CHARS].split())
        return error_class(status, "")(
            status=status,
            code=f"http_{status}",
            message=f"the server answered {status} {response.reason_phrase}: {shown!r}",
            request_id=request_id,
        )
    return error_class(status, code)(
        status=status,
        code=code,
        message=message,
        request_id=fields.pop("request_id", None) or request_id,
        fields=fields,
    )


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
    return _json_call("POST", "/v1/classify", _classify_result, body)


def tasks(search: str | None, after: str | None, limit: int | None) -> Call[list[TaskInfo]]:
    """All tasks, or a page of those that ``search`` finds."""
    asked = {"search": search, "after": after, "limit": limit}
    return _json_call(
        "GET",
        "/v1/tasks",
        lambda _, answer: [_task_info(item) for item in answer["tasks"]],
        params={name: value for name, value in asked.items() if value is not None},
    )


def task(name: str) -> Call[TaskInfo]:
    """One task."""
    return _json_call("GET", _task_path(name), lambda _, answer: _task_info(answer))


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
        _push_result,
        repeat="refused" if create_only else "always",
        content=data,
        headers=headers,
        params={} if activate == "now" else {"activate": activate},
    )


def versions(name: str) -> Call[VersionList]:
    """All versions of a task."""
    return _json_call("GET", _task_path(name, "/versions"), lambda _, answer: _versions(answer))


def history(name: str) -> Call[tuple[HistoryEntry, ...]]:
    """Every change to a task."""
    return _json_call("GET", _task_path(name, "/history"), lambda _, answer: _history(answer))


def activate(name: str, version: int, *, gated: bool) -> Call[VersionRef]:
    """Make a version the active one."""
    body = {"version": version, "gated": True} if gated else {"version": version}
    return _json_call("POST", _task_path(name, "/activate"), _version_ref, body)


def shadow(name: str, version: int, share: float) -> Call[Shadow]:
    """Let a version read along."""
    body = {"version": version, "share": share}
    return _json_call("POST", _task_path(name, "/shadow"), lambda _, found: _shadow(found), body)


def canary(name: str, version: int, share: float, by: str) -> Call[Canary]:
    """Let a version answer a share."""
    body = {"version": version, "share": share, "by": by}
    return _json_call("POST", _task_path(name, "/canary"), lambda _, found: _canary(found), body)


def end_trial(name: str, kind: Literal["shadow", "canary"]) -> Call[None]:
    """Leave the active version alone again."""
    return Call("DELETE", _task_path(name, f"/{kind}"), lambda _: None, repeat="refused")


def trials(name: str) -> Call[Trials]:
    """What runs beside the active version."""
    return _json_call("GET", _task_path(name, "/trials"), lambda _, answer: _trials(answer))


def put_gate(name: str, data: bytes) -> Call[GateInfo]:
    """Store a labelled set."""
    return Call(
        "PUT",
        _task_path(name, "/gate"),
        lambda response: _gate(response.json()),
        content=data,
        headers={"Content-Type": "application/x-ndjson"},
    )


def gate(name: str) -> Call[GateInfo]:
    """What labelled set a task has."""
    return _json_call("GET", _task_path(name, "/gate"), lambda _, answer: _gate(answer))


def delete_gate(name: str) -> Call[None]:
    """Forget a labelled set."""
    return Call("DELETE", _task_path(name, "/gate"), lambda _: None, repeat="refused")


def rollback(name: str) -> Call[VersionRef]:
    """Make the previously active version the active one."""
    return _json_call("POST", _task_path(name, "/rollback"), _version_ref, repeat="never")


def delete(name: str, version: int | None) -> Call[None]:
    """Delete a task, or one version of it."""
    tail = "" if version is None else f"/versions/{version}"
    return Call("DELETE", _task_path(name, tail), lambda _: None, repeat="refused")


def download(name: str, version: int | None) -> Call[bytes]:
    """The bytes of a version."""
    params = {} if version is None else {"version": version}
    return Call("GET", _task_path(name, "/adapter"), _adapter_bytes, params=params)


def info() -> Call[ServerInfo]:
    """What the server is."""
    return _json_call("GET", "/v1/info", lambda _, answer: _server_info(answer))


def ready() -> Call[bool]:
    """Whether the server takes requests."""
    return Call("GET", "/health/ready", lambda _: True, repeat="never")


def _task_path(name: str, tail: str = "") -> str:
    return f"/v1/tasks/{quote(name, safe='')}{tail}"


def _json_call(
    method: str,
    path: str,
    read: Callable[[httpx2.Response, Any], T],
    body: Mapping[str, Any] | None = None,
    *,
    repeat: Repeat = "always",
    params: Mapping[str, int | str] | None = None,
) -> Call[T]:
    return Call(
        method,
        path,
        lambda response: read(response, response.json()),
        repeat=repeat,
        content=None if body is None else json.dumps(body, allow_nan=False).encode(),
        headers={} if body is None else {"Content-Type": "application/json"},
        params=params or {},
    )


def checked_pair(pair: Sequence[str]) -> list[str]:
    """Two texts.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(pair, str) or len(pair) != 2:
        raise ValueError(f"each of pairs is two texts, not {pair!r}")
    return list(pair)


def _classify_result(response: httpx2.Response, answer: Any) -> ClassifyResult:
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


def _task_info(item: Mapping[str, Any]) -> TaskInfo:
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


def _push_result(response: httpx2.Response) -> PushResult:
    answer = response.json()
    return PushResult(
        task=answer["task"],
        version=answer["version"],
        digest=answer["digest"],
        active=answer["active"],
        created=response.status_code == 201,
        gate=_gate_scores(answer),
    )


def _version_ref(_: httpx2.Response, answer: Any) -> VersionRef:
    return VersionRef(answer["task"], answer["version"], answer["digest"], _gate_scores(answer))


def _gate_scores(answer: Mapping[str, Any]) -> GateScores | None:
    found = answer.get("gate")
    return None if found is None else _picked(GateScores, found)


def _shadow(item: Mapping[str, Any]) -> Shadow:
    return _picked(Shadow, item, "since", "counted_since")


def _canary(item: Mapping[str, Any]) -> Canary:
    return _picked(Canary, item, "since", "counted_since")


def _trials(answer: Mapping[str, Any]) -> Trials:
    shadow, canary = answer["shadow"], answer["canary"]
    return Trials(
        task=answer["task"],
        active=answer["active"],
        shadow=None if shadow is None else _shadow(shadow),
        canary=None if canary is None else _canary(canary),
    )


def _gate(answer: Mapping[str, Any]) -> GateInfo:
    return _picked(GateInfo, answer, "stored_at")


def _picked(kind: type[T], item: Mapping[str, Any], *times: str) -> T:
    """A flat value of this kind: its fields by name, those of ``times`` read as times."""
    values = {of.name: item[of.name] for of in fields(kind)}  # type: ignore[arg-type]
    return kind(**values | {name: datetime.fromisoformat(item[name]) for name in times})


def _versions(answer: Mapping[str, Any]) -> VersionList:
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
        history=_history(answer),
    )


def _history(answer: Mapping[str, Any]) -> tuple[HistoryEntry, ...]:
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


def _adapter_bytes(response: httpx2.Response) -> bytes:
    """The body, which must be what its ETag says where that is a digest."""
    data = response.content
    stated = response.headers.get("ETag", "").removeprefix("W/").strip('"')
    found = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if stated.startswith("sha256:") and stated != found:
        raise ValueError(f"the bytes have the digest {found}, the server states {stated}")
    return data


def _server_info(answer: Mapping[str, Any]) -> ServerInfo:
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
