"""``labelmux classify --input``: a file of any length, in runs that may break off.

The output says how far a run came: its rows are the input's, each with its answers, in order. The
next run reads them beside the input, cuts off a row that is not whole, and goes on behind them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from labelmux_cli.bars import Bars
from labelmux_cli.bulk_files import Row, Source, Target
from labelmux_cli.chunks import Question
from labelmux_cli.errors import UsageError
from labelmux_cli.output import tell
from labelmux_client import (
    Client,
    NotReadyError,
    OverloadedError,
    ServerFailureError,
    StatusError,
    TextResult,
)

#: What the next run may get an answer to; so it ends this one.
_PASSING = (NotReadyError, OverloadedError, ServerFailureError)


@dataclass(frozen=True, slots=True)
class Files:
    """From where to where; a column of None is guessed."""

    source: Path
    target: Path
    text_column: str | None = None
    pair_column: str | None = None


def classify_file(client: Client, files: Files, question: Question) -> bool:
    """Do the job, or what is left of it; whether every task could answer every row of it.

    Raises:
        UsageError: the files' names, the columns or the tasks make no sense.
        FailedError: a file cannot be read, or the output is not of this input and these tasks.
    """
    if files.target.exists() and files.source.exists() and files.target.samefile(files.source):
        raise UsageError(f"--output {files.target} is the input; name another file")
    with_pairs, names = _tasks(client, question, wants_pairs=bool(files.pair_column))
    if with_pairs and question.windows is not None:
        raise UsageError("--windows are of single texts; leave it out for tasks of pairs")
    source = Source(files.source, files.text_column, files.pair_column, with_pairs=with_pairs)
    target = Target(files.target, source, names)
    total = sum(1 for _ in source.rows())
    done, end = target.find_done()
    if done:
        tell(f"{files.target}: {done} of {total} rows are there; going on")
    rows = itertools.islice(source.rows(), done, None)
    with target.open(end) as write, Bars() as bars:
        bars.start("classify", total - done, "rows")
        complete = _run(client, replace(question, tasks=names, pair=with_pairs), rows, write, bars)
        bars.done()
    return complete


def _run(
    client: Client,
    question: Question,
    rows: Iterator[Row],
    write: Callable[[Row, TextResult], None],
    bars: Bars,
) -> bool:
    ahead, sent = itertools.tee(rows)
    texts = None if question.pair else (row.text for row in sent)
    pairs = ((row.text, row.pair or "") for row in sent) if question.pair else None
    results = client.classify_stream(
        texts,
        pairs=pairs,
        tasks=question.tasks,
        top_k=question.top_k,
        raw_scores=question.raw_scores,
        truncation=question.truncation,
        windows=question.windows,
    )
    complete = True
    # The results first: a row is taken from the file when it is sent.
    for result, row in zip(results, ahead, strict=False):
        _check_passing(result)
        write(row, result)
        complete = complete and result.error is None and not result.failures
        bars.advance()
    return complete


def _tasks(
    client: Client, question: Question, *, wants_pairs: bool
) -> tuple[bool, tuple[str, ...]]:
    """Whether the tasks read pairs, and their names, in the order of the columns."""
    if question.tasks == ("*",):
        names = tuple(info.task for info in client.tasks() if info.pair == wants_pairs)
        if not names:
            raise UsageError("no task reads such texts; `labelmux tasks` lists what there is")
        return wants_pairs, names
    names = tuple(dict.fromkeys(question.tasks))
    reads = {name: client.task(name.partition("@")[0]).pair for name in names}
    if len(set(reads.values())) > 1:
        raise UsageError("some of these tasks read two texts and some one; ask them apart")
    return reads[names[0]], names


def _check_passing(result: TextResult) -> None:
    """Raise what the next run may not meet, so that it never stands in the output."""
    if isinstance(result.error, _PASSING):
        raise result.error
    for name in result.failures:
        try:
            _ = result[name]
        except _PASSING:
            raise
        except StatusError:
            continue
