"""Commands about the tasks of a running server: push, list, switch, delete, download."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from labelmux_cli.connection import DEFAULT_URL, AsJson, Key, TaskName, Url, connect
from labelmux_cli.errors import FailedError, UsageError
from labelmux_cli.output import (
    print_json,
    print_line,
    print_table,
    reported,
    short_digest,
    size,
    tell,
    when,
)
from labelmux_cli.releases import store_gate
from labelmux_client import Activation, Client, GateScores, TaskInfo, TaskNotFoundError

_SHOWN_LABELS = 4

Gated = Annotated[
    bool,
    typer.Option("--gated", help="Only if it is as good as the active version on the task's gate."),
]
_FINDS = {"single_label": "a label", "multi_label": "labels", "token": "spans"}
#: By metric, what people call it; the first that a task has is its score.
_SCORES = {"accuracy": "accuracy", "macro_f1": "macro F1", "f1": "F1"}


@reported
def push(
    file: Annotated[
        Path, typer.Argument(metavar="ADAPTER.safetensors", help="A file that train wrote.")
    ],
    task: Annotated[
        str | None,
        typer.Option(
            "--task", metavar="TASK", help="Name of the task; the file's name if left out."
        ),
    ] = None,
    create_only: Annotated[
        bool, typer.Option("--create-only", help="Refuse if there is a task of that name.")
    ] = False,
    stage: Annotated[
        bool, typer.Option("--stage", help="Store it, and leave the active version as it is.")
    ] = False,
    gate: Annotated[
        Path | None,
        typer.Option(
            "--gate",
            metavar="DATA",
            help="Labelled rows: activate it only if it scores as high on them as the active one.",
        ),
    ] = None,
    gated: Gated = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Send an adapter file to a running server; it answers from then on.

    A new name makes a new task; a known one gets a new version, and no request is lost.

    Example:
      labelmux push spam.safetensors
      labelmux push new.safetensors --task spam --url http://127.0.0.1:8000
      labelmux push new.safetensors --task spam --gate dev.csv
    """
    if stage and (gate is not None or gated):
        raise UsageError("--stage activates nothing; leave out --gate and --gated, or --stage")
    name = task if task is not None else file.name.removesuffix(".safetensors")
    data = file.read_bytes()
    gated = gated or gate is not None
    with connect(url, key, gated=gated) as client:
        if gate is not None:
            _store_gate(client, name, gate)
        how: Activation = "later" if stage else "gated" if gated else "now"
        pushed = client.push(name, data, create_only=create_only, activate=how)
    if as_json:
        print_json(pushed)
        return
    what = "is active" if pushed.active else "is stored, not active"
    if not pushed.created:
        what = f"was there already and {what}"
    print_line(
        f"{pushed.task}: version {pushed.version} {what} "
        f"({short_digest(pushed.digest)}, {size(len(data))})"
    )
    _print_gate(pushed.gate)


def _store_gate(client: Client, name: str, file: Path) -> None:
    """A task that is not there has no version to beat, so its first one needs no gate."""
    try:
        info = client.task(name)
    except TaskNotFoundError:
        tell(f"{name} is a new task: there is nothing to compare with, and {file} is not kept")
        return
    rows = store_gate(client, info, file)
    tell(f"{name}: {rows} rows of {file} are its gate")


def _print_gate(gate: GateScores | None) -> None:
    if gate is not None:
        print_line(
            f"gate: {gate.measure} {gate.score:.4f} on {gate.rows} rows, "
            f"{gate.active_score:.4f} of version {gate.active_version}"
        )


@reported
def tasks(url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """List the tasks of a running server.

    Example:
      labelmux tasks
      labelmux tasks --json
    """
    with connect(url, key) as client:
        found = client.tasks()
    if as_json:
        print_json({"tasks": found})
    elif not found:
        print_line("No tasks yet: make one with `labelmux train`, then `labelmux push`.")
    else:
        columns = ("Task", "Labels", "Reads", "Finds", "Method", "Version", "Score", "Size")
        print_table(columns, (_task_row(task) for task in found))


def _task_row(task: TaskInfo) -> tuple[object, ...]:
    labels = ", ".join(task.labels[:_SHOWN_LABELS])
    if len(task.labels) > _SHOWN_LABELS:
        labels += f" and {len(task.labels) - _SHOWN_LABELS} more"
    score = next((name for name in _SCORES if name in task.metrics), None)
    return (
        task.task,
        labels,
        "two texts" if task.pair else "a text",
        _FINDS.get(task.task_kind, task.task_kind),
        task.method,
        task.version,
        "" if score is None else f"{_SCORES[score]} {task.metrics[score]:.3f}",
        size(task.size_bytes),
    )


@reported
def versions(
    task: TaskName, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False
) -> None:
    """List the versions of a task; the active one answers.

    Example:
      labelmux versions spam
    """
    with connect(url, key) as client:
        found = client.versions(task)
    if as_json:
        print_json(found)
    else:
        print_table(
            ("Version", "Active", "Digest", "Size", "Since"),
            (
                (
                    version.version,
                    "active" if version.active else "",
                    short_digest(version.digest),
                    size(version.size_bytes),
                    when(version.created_at),
                )
                for version in found.versions
            ),
        )


@reported
def history(
    task: TaskName, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False
) -> None:
    """Show who changed a task, how and when; also of a task that was deleted.

    Example:
      labelmux history spam
    """
    with connect(url, key) as client:
        found = client.history(task)
    if as_json:
        print_json({"task": task, "history": found})
        return
    print_table(
        ("When", "What", "Version", "Digest", "By"),
        (
            (
                when(entry.at),
                entry.action,
                entry.version,
                short_digest(entry.digest),
                entry.by or "",
            )
            for entry in found
        ),
    )


@reported
def activate(
    task: TaskName,
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="Its number.")],
    gated: Gated = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Make a version of a task the one that answers; its shadow and its canary end.

    Example:
      labelmux activate spam 2
    """
    with connect(url, key, gated=gated) as client:
        active = client.activate(task, version, gated=gated)
    if as_json:
        print_json(active)
    else:
        print_line(f"{active.task}: version {active.version} is active")
        _print_gate(active.gate)


@reported
def rollback(
    task: TaskName, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False
) -> None:
    """Go back to the version that was active before.

    Example:
      labelmux rollback spam
    """
    with connect(url, key) as client:
        active = client.rollback(task)
    if as_json:
        print_json(active)
    else:
        print_line(f"{active.task}: back at version {active.version}")


@reported
def delete(
    task: TaskName,
    version: Annotated[
        int | None,
        typer.Option("--version", metavar="N", min=1, help="Only this version, if not active."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Delete a task with all its versions, or one version of it.

    Example:
      labelmux delete spam --version 1
      labelmux delete spam --yes
    """
    what = f"task {task!r} with all its versions"
    if version is not None:
        what = f"version {version} of task {task!r}"
    if not yes:
        _ask(f"Delete {what} from {url}?")
    with connect(url, key) as client:
        client.delete(task, version=version)
    if as_json:
        print_json({"task": task, "version": version, "deleted": True})
    else:
        print_line(f"deleted {what}")


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError("nobody can be asked here whether to delete; add --yes")
    if not typer.confirm(question, err=True):
        raise FailedError("nothing was deleted")


@reported
def download(
    task: TaskName,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where to; TASK.safetensors if left out."),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option("--version", metavar="N", min=1, help="Another one than the active."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Fetch the adapter file of a task from a running server.

    Example:
      labelmux download spam
      labelmux download spam --version 1 --out spam-1.safetensors
    """
    path = out if out is not None else Path(f"{Path(task).name}.safetensors")
    if not path.parent.is_dir():
        raise FailedError(f"{path.parent}: no such folder; make it, or name another --out")
    if path.exists() and not force:
        raise FailedError(f"{path} is there already; add --force to replace it, or name --out")
    with connect(url, key) as client:
        data = client.download(task, version=version)
    _write_whole(path, data)
    if as_json:
        print_json({"task": task, "file": str(path), "size_bytes": len(data)})
    else:
        print_line(f"{path}: {size(len(data))}")


def _write_whole(path: Path, data: bytes) -> None:
    """The file is there whole, or as it was before."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        draft.chmod(0o644)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
