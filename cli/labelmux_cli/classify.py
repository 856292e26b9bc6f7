"""``labelmux classify``: texts in, labels out."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from labelmux_cli.bulk import Files, classify_file
from labelmux_cli.chunks import Question, ask, chunked
from labelmux_cli.connection import DEFAULT_URL, AsJson, Key, Url, connect
from labelmux_cli.errors import FailedError, UsageError
from labelmux_cli.output import answers_json, plain, print_json, print_table, reported, tell
from labelmux_cli.texts import Format, Row, open_input, rows_of_arguments, rows_of_lines
from labelmux_client import Client, Prediction, Span, TextResult, Windows

#: Labels that people see of each answer, if they do not say how many.
_SHOWN_LABELS = 3
_SHOWN_CHARS = 60
_BOLD = ("", "bold")
_WINDOWS = Windows()
_FILES = "From file to file"


@reported
def classify(
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts to classify.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="TASK",
            help="Task to ask; may be given several times. NAME@2 asks version 2.",
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Ask every task that reads such texts.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", metavar="FILE", help="Take the texts from a file: one a line, or JSONL."
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            help="CSV, TSV or JSONL (+ .gz) of any length.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="Its rows with their answers; a run that broke off goes on here.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(
            "--text-column", metavar="NAME", help="Guessed if left out.", rich_help_panel=_FILES
        ),
    ] = None,
    pair_column: Annotated[
        str | None,
        typer.Option(
            "--pair-column",
            metavar="NAME",
            help="The second text, for tasks that read two. Guessed if left out.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="How the file or stdin is written.")
    ] = "auto",
    pair: Annotated[
        bool,
        typer.Option(
            "--pair",
            help='Each row is two texts: two arguments, a tab between, or "text" and "pair".',
        ),
    ] = False,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", metavar="N", min=1, help="Only so many labels, best first."),
    ] = None,
    raw_scores: Annotated[
        bool, typer.Option("--raw-scores", help="Logits instead of probabilities.")
    ] = False,
    no_truncation: Annotated[
        bool, typer.Option("--no-truncation", help="A text that is too long is an error.")
    ] = False,
    windows: Annotated[
        bool,
        typer.Option("--windows", help="Read a text that is too long in parts, none is cut."),
    ] = False,
    overlap_tokens: Annotated[
        int,
        typer.Option("--overlap-tokens", metavar="N", min=0, help="What two parts share."),
    ] = _WINDOWS.overlap_tokens,
    aggregation: Annotated[
        Literal["mean", "max"],
        typer.Option("--aggregation", help="What the scores of all parts become."),
    ] = _WINDOWS.aggregation,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Classify texts on a running server: labels, or the spans that a task finds.

    Texts are arguments, or lines of a file or of stdin; JSONL lines have them under "text".
    With --json, arguments give one JSON object, a file or stdin one JSON line per text.

    Example:
      labelmux classify "what a lovely film" --task sentiment
      labelmux classify "win a prize" --all
      labelmux classify --file reports.txt --task topic --windows
      labelmux classify "a man sleeps" "a man is asleep" --pair --task paraphrase
      labelmux classify --file texts.jsonl --task sentiment --json > out.jsonl
      labelmux classify --input big.csv --output answers.csv --task sentiment --task topic
    """
    if bool(task) == every:
        raise UsageError("name tasks with --task (`labelmux tasks` lists them), or give --all")
    if texts and file is not None:
        raise UsageError("give texts as arguments or with --file, not both")
    if (source is None) != (target is None):
        raise UsageError("--input and --output go together")
    if source is not None and (texts or file is not None or pair):
        raise UsageError("--input takes the texts from its columns; leave out TEXT, --file, --pair")
    question = Question(
        tasks=("*",) if every else tuple(task or ()),
        pair=pair,
        top_k=top_k if top_k is not None or as_json or source is not None else _SHOWN_LABELS,
        raw_scores=raw_scores,
        truncation=not no_truncation,
        windows=Windows(overlap_tokens, aggregation) if windows else None,
    )
    with connect(url, key) as client:
        if source is not None and target is not None:
            files = Files(source, target, text_column, pair_column)
            complete = classify_file(client, files, question)
        elif texts:
            answers = _answers(client, rows_of_arguments(texts, pair=pair), question)
            complete = _print_object(answers) if as_json else _print_people(answers)
        else:
            complete = _classify_stream(client, file, form, question, as_json)
    if not complete:
        raise FailedError("some tasks could not answer; what they said stands in their place")


Answer = tuple[Row, TextResult]


def _answers(client: Client, rows: Iterable[Row], question: Question) -> Iterator[Answer]:
    for chunk in chunked(rows):
        yield from zip(chunk, ask(client, chunk, question), strict=True)


def _classify_stream(
    client: Client, file: Path | None, form: Format, question: Question, as_json: bool
) -> bool:
    if file is None and sys.stdin.isatty():
        raise UsageError("no texts: give them as arguments, with --file, or on stdin")
    name = "stdin" if file is None or str(file) == "-" else str(file)
    with open_input(file) as stream:
        rows = rows_of_lines(stream, name, pair=question.pair, form=form)
        answers = _answers(client, rows, question)
        return _print_lines(answers) if as_json else _print_people(answers)


def _print_lines(answers: Iterable[Answer]) -> bool:
    complete = True
    for row, result in answers:
        print_json(_as_object(row, result))
        complete = complete and not result.failures
    return complete


def _print_object(answers: Iterable[Answer]) -> bool:
    found = list(answers)
    print_json({"results": [_as_object(row, result) for row, result in found]})
    return not any(result.failures for _, result in found)


def _as_object(row: Row, result: TextResult) -> dict[str, Any]:
    texts: dict[str, Any] = {"text": row.text}
    if row.pair is not None:
        texts["pair"] = row.pair
    return row.fields | texts | {"predictions": answers_json(result)}


def _print_people(answers: Iterable[Answer]) -> bool:
    table: list[tuple[object, ...]] = []
    complete = True
    try:
        for row, result in answers:
            table += _table_rows(row, result)
            complete = complete and not result.failures
    finally:
        # Also what was answered before a row that cannot be.
        if table:
            print_table(("Text", "Task", "Answer"), table)
    if not table:
        tell("nothing was asked: no rows, or no task that reads such texts")
    return complete


def _table_rows(row: Row, result: TextResult) -> list[tuple[object, ...]]:
    said = [(name, _answer(prediction)) for name, prediction in result.predictions.items()]
    said += [
        (name, Text(f"{plain(failure.message)}", style="red"))
        for name, failure in result.failures.items()
    ]
    texts = itertools.chain([_shorten(row)], itertools.repeat(""))
    return [(text, *answer) for text, answer in zip(texts, said, strict=False)]


def _answer(prediction: Prediction) -> Text:
    text = _spans(prediction.spans) if prediction.labels is None else _labels(prediction)
    if prediction.abstained:
        text.append(" (not sure)", style="yellow")
    return text.append(" (truncated)", style="yellow") if prediction.truncated else text


def _labels(prediction: Prediction) -> Text:
    """The likeliest labels; of a task that gives several, those that it gives."""
    labels = prediction.labels or ()
    if prediction.predicted is not None:
        scores = {item.label: f" {item.score:.3f}" for item in labels}
        return _listed(
            Text.assemble((plain(label).plain, "bold"), scores.get(label, ""))
            for label in prediction.predicted
        )
    sure = () if prediction.abstained else labels[:1]
    return _listed(
        Text.assemble(plain(item.label), f" {item.score:.3f}", style=_BOLD[item in sure])
        for item in labels
    )


def _spans(spans: Sequence[Span] | None) -> Text:
    return _listed(
        Text.assemble(
            (plain(span.label).plain, "bold"), " ", plain(span.text), f" {span.score:.3f}"
        )
        for span in spans or ()
    )


def _listed(items: Iterable[Text]) -> Text:
    return Text(", ").join(items) or Text("nothing", style="dim")


def _shorten(row: Row) -> str:
    text = row.text if row.pair is None else f"{row.text} | {row.pair}"
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."
