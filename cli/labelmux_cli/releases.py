"""Commands that release a version with care: shadow, canary, and what came of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from labelmux_cli.connection import DEFAULT_URL, AsJson, Key, TaskName, Url, connect
from labelmux_cli.errors import UsageError
from labelmux_cli.labelled import needs_extra
from labelmux_cli.output import print_json, print_line, reported, when
from labelmux_client import Canary, Client, Shadow, TaskInfo, Trials

if TYPE_CHECKING:
    from labelmux_adapters.kinds import TaskKind
    from labelmux_training.rows import Row

_Version = Annotated[
    int | None, typer.Argument(metavar="VERSION", min=1, help="Its number; not with --end.")
]
_End = Annotated[bool, typer.Option("--end", help="Leave the active version alone again.")]


@reported
def shadow(
    task: TaskName,
    version: _Version = None,
    share: Annotated[
        float, typer.Option("--share", metavar="SHARE", help="Of the texts, up to 1.")
    ] = 1.0,
    end: _End = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Let a version read along, answer nobody, and be compared with the active one.

    Example:
      labelmux shadow spam 4
      labelmux shadow spam --end
    """
    number = _number(version, end=end)
    _check_share(share)
    with connect(url, key) as client:
        started = None if number is None else client.shadow(task, number, share=share)
        if started is None:
            client.end_shadow(task)
    _tell(task, "shadow", started, as_json=as_json)


@reported
def canary(
    task: TaskName,
    version: _Version = None,
    share: Annotated[
        float | None,
        typer.Option("--share", metavar="SHARE", help="What it answers, such as 0.05 for 5 %."),
    ] = None,
    by: Annotated[
        str, typer.Option("--by", metavar="text|caller", help="What the share is a share of.")
    ] = "text",
    end: _End = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Let a version answer a share of the texts, or of the callers: always the same ones.

    Example:
      labelmux canary spam 4 --share 0.05
      labelmux canary spam --end
    """
    number = _number(version, end=end)
    if by not in ("text", "caller"):
        raise UsageError(f"--by is {by!r}; give text or caller")
    if number is not None and share is None:
        raise UsageError("how much shall it answer? give --share, such as 0.05 for 5 %")
    _check_share(share)
    with connect(url, key) as client:
        started = None
        if number is None:
            client.end_canary(task)
        else:
            assert share is not None
            of = cast("Literal['text', 'caller']", by)
            started = client.canary(task, number, share=share, by=of)
    _tell(task, "canary", started, as_json=as_json)


@reported
def trials(
    task: TaskName, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False
) -> None:
    """Show what runs beside the active version, and what came of it so far.

    Example:
      labelmux trials spam
    """
    with connect(url, key) as client:
        found = client.trials(task)
    if as_json:
        print_json(found)
        return
    for line in _lines(found):
        print_line(line)


def store_gate(client: Client, task: TaskInfo, file: Path) -> int:
    """Make a labelled file the gate of a task; how many rows it has."""
    with needs_extra():
        from labelmux_training.columns import Columns
        from labelmux_training.data import read_rows

        kind = cast("TaskKind", task.task_kind)
        dataset = read_rows(file, Columns(pair=None if task.pair else ""), kind)
        lines = [json.dumps(_gate_row(row, kind), ensure_ascii=False) for row in dataset.rows]
    content = "\n".join(lines).encode(errors="backslashreplace")
    return client.put_gate(task.task, content).rows


def _gate_row(row: Row, kind: TaskKind) -> dict[str, object]:
    from labelmux_adapters.iob2 import runs_of, words_of

    if kind == "token":
        words = words_of(row.text)
        spans = [
            {"label": run.label, "start": words[run.first][0], "end": words[run.end - 1][1]}
            for run in runs_of(row.labels)
        ]
        return {"text": row.text, "spans": spans}
    text = {"text": row.text} if row.pair is None else {"text": row.text, "pair": row.pair}
    return text | ({"label": row.label} if kind == "single_label" else {"labels": row.labels})


def _number(version: int | None, *, end: bool) -> int | None:
    if (version is None) != end:
        raise UsageError("give the number of a version to begin with it, or --end to end it")
    return version


def _check_share(share: float | None) -> None:
    if share is not None and not 0 < share <= 1:  # so neither for nan
        raise UsageError(f"--share is {share:g}; give more than 0 and at most 1, which is all")


def _tell(task: str, kind: str, started: Shadow | Canary | None, *, as_json: bool) -> None:
    if as_json:
        print_json({"task": task, kind: started})
    elif started is None:
        print_line(f"{task}: no {kind} any more")
    else:
        print_line(f"{task}: version {started.version} is the {kind} of {started.share:.4g}")


def _lines(found: Trials) -> list[str]:
    lines = [f"{found.task}: version {found.active} is active"]
    if (shadow := found.shadow) is not None:
        said = f"shadow: version {shadow.version} since {when(shadow.since)}, "
        said += f"{shadow.compared} texts compared"
        if shadow.agreement is not None:
            said += (
                f", {shadow.agreement:.2%} agree, scores differ by {shadow.score_difference:.4f}"
            )
        lines.append(f"{said}; passed over: {shadow.dropped + shadow.unloaded}")
    if (canary := found.canary) is not None:
        lines.append(
            f"canary: version {canary.version} since {when(canary.since)}, "
            f"{canary.share:.4g} by {canary.by}; it answered {canary.answered} texts, the active "
            f"version {canary.active_answered}; {canary.fell_back} fell back"
        )
    if len(lines) == 1:
        lines.append("nothing runs beside it")
    return lines
