"""``labelmux train``: labelled rows in, an adapter file and a report out.

How it learns is set by the trainer's settings; their names and defaults stand there alone.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labelmux_adapters.kinds import Pooling, TaskKind
from labelmux_cli.bars import Bars
from labelmux_cli.connection import AsJson
from labelmux_cli.errors import UsageError
from labelmux_cli.labelled import (
    DEFAULT_DELIMITER,
    LabelColumn,
    LabelDelimiter,
    PairColumn,
    TextColumn,
    columns,
    needs_extra,
    print_metrics,
)
from labelmux_cli.output import print_json, print_line, reported, size
from labelmux_training.settings import METHOD_NAMES, TrainerSettings, settings_for

if TYPE_CHECKING:
    from labelmux_training.metrics import AnyMetrics
    from labelmux_training.train import TrainResult

_SIZES = "Size of the adapter"
_LEARNING = "How it learns"
_FILES = "Files"

#: By the name of the trainer's setting.
_LEARNING_HELP = {
    "epochs": "Most passes over the rows.",
    "least_steps": "Few rows are seen more often in an epoch, to make so many steps in all.",
    "batch_rows": "Rows a step.",
    "learning_rate": "At its peak.",
    "weight_decay": "Pull of the weights towards 0.",
    "warmup": "Share of the steps in which the rate climbs from 0.",
    "schedule": "How the rate falls after that.",
    "loss": "What it makes small.",
    "margin": "Lead that the right label should have; for --loss margin.",
    "label_smoothing": "Share of the target spread over all labels; for --loss cross_entropy.",
    "dropout": "Share of values that a step leaves out.",
    "token_dropout": "Share of a text's tokens that a step leaves out.",
    "label_start": "What label vectors start from.",
    "precision": "Of the encoder's products; auto: bfloat16 where that is faster.",
    "patience": "Epochs without a better dev score before it stops; 0: never.",
    "seed": "The same seed gives the same tensors.",
}


def _train(
    task: Annotated[
        str, typer.Option("--task", metavar="TASK", help="Name of the task, for the report.")
    ],
    train_file: Annotated[
        Path,
        typer.Option(
            "--train", metavar="FILE", help="Labelled rows: CSV, TSV, JSONL or CoNLL (or .gz)."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="The adapter file; TASK.safetensors if left out."
        ),
    ] = None,
    dev: Annotated[
        Path | None,
        typer.Option(
            "--dev",
            metavar="FILE",
            help="Rows that decide when to stop; a tenth of the others if left out.",
        ),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option("--test", metavar="FILE", help="Rows scored at the end; they decide nothing."),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Fit a linear probe too, to compare with.")
    ] = False,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    pair_column: PairColumn = None,
    label_delimiter: LabelDelimiter = DEFAULT_DELIMITER,
    kind: Annotated[
        TaskKind | None,
        typer.Option(
            "--kind",
            help="What a label is of: the text, one or several, or each of its words. Told by "
            "the rows if left out; CSV and TSV have one label a row unless this says otherwise.",
        ),
    ] = None,
    abstain_at_accuracy: Annotated[
        float | None,
        typer.Option(
            "--abstain-at-accuracy",
            metavar="X",
            help="Abstain from the least sure answers, so that on dev this share of the others "
            "is right; for single labels.",
        ),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(
            "--encoder",
            metavar="bundled|FOLDER|HUB-ID",
            help="The encoder that will serve; an adapter fits no other.",
        ),
    ] = "bundled",
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", metavar="N", min=4, help="Where texts are cut; 256 if left out."
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="|".join(METHOD_NAMES),
            help="How the adapter works. All but ytuning and linear send gradients through the "
            "encoder, which takes longer, and their rows cost a pass each.",
        ),
    ] = "ytuning",
    width: Annotated[
        int | None,
        typer.Option(
            "--width",
            metavar="N",
            min=1,
            help="Of ytuning: the widest within 2 % of the encoder's parameters if left out.",
            rich_help_panel=_SIZES,
        ),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(
            "--heads",
            metavar="N",
            min=1,
            help="Of ytuning; chosen if left out.",
            rich_help_panel=_SIZES,
        ),
    ] = None,
    ffn: Annotated[
        int | None,
        typer.Option(
            "--ffn",
            metavar="N",
            min=1,
            help="Of ytuning; chosen if left out.",
            rich_help_panel=_SIZES,
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            metavar="N",
            min=0,
            help="Of lora and unipelt: 8 if left out; 0 leaves the low-rank maps of unipelt out.",
            rich_help_panel=_SIZES,
        ),
    ] = None,
    prefix: Annotated[
        int | None,
        typer.Option(
            "--prefix",
            metavar="N",
            min=1,
            help="Keys and values of prefix and unipelt; 10 if left out.",
            rich_help_panel=_SIZES,
        ),
    ] = None,
    bottleneck: Annotated[
        int | None,
        typer.Option(
            "--bottleneck",
            metavar="N",
            min=1,
            help="Width, of bottleneck and unipelt; 48 if left out.",
            rich_help_panel=_SIZES,
        ),
    ] = None,
    pooling: Annotated[
        Pooling | None,
        typer.Option(
            "--pooling",
            help="What a linear head reads of a text: the mean of its tokens if left out, or the "
            "first; for methods other than ytuning.",
            rich_help_panel=_SIZES,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="The HTML report; report.html beside the adapter if left out.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            "--cache-dir",
            metavar="FOLDER",
            help="Where features are kept, so that a second run is fast.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    note: Annotated[
        list[str] | None,
        typer.Option(
            "--note",
            metavar="KEY=TEXT",
            help="Goes into the file's card, such as data=... or licence=...; any number.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    as_json: AsJson = False,
    **learning: Any,
) -> None:
    """Train an adapter on labelled rows; the encoder itself stays as it is.

    Prints how good it is on the dev rows, and writes the adapter file and a report.

    Example:
      labelmux train --task spam --train train.csv
      labelmux train --task spam --train train.csv --dev dev.csv --probe
      labelmux train --task moods --train moods.csv --kind multi_label
      labelmux train --task names --train names.conll
      labelmux train --task spam --train train.csv --method pasta
    """
    card = _card(note or ())
    sizes = {
        "width": width,
        "heads": heads,
        "ffn": ffn,
        "rank": rank,
        "prefix": prefix,
        "bottleneck": bottleneck,
    }
    with Bars() as bars, needs_extra():
        from labelmux_training.options import TrainOptions
        from labelmux_training.train import train as run

        options = TrainOptions(
            task=task,
            train=train_file,
            out=out if out is not None else Path(f"{Path(task).name}.safetensors"),
            dev=dev,
            test=test,
            columns=columns(text_column, label_column, pair_column, label_delimiter),
            kind=kind,
            abstain_at_accuracy=abstain_at_accuracy,
            encoder=encoder,
            max_tokens=max_tokens,
            method=method,
            sizes={name: size for name, size in sizes.items() if size is not None},
            pooling=pooling,
            settings=settings_for(method, **learning),
            probe=probe,
            cache_dir=cache_dir,
            report=report,
            card=card,
        )
        result = run(options, progress=bars)
    if as_json:
        print_json({"task": task, **result.to_json()})
    else:
        _print_people(task, result)


def _signature() -> inspect.Signature:
    """The options above, and one for each setting of the trainer; the method has the defaults."""
    kinds = typing.get_type_hints(TrainerSettings)
    own = inspect.signature(_train, eval_str=True).parameters.values()
    kept = [item for item in own if item.kind is not inspect.Parameter.VAR_KEYWORD]
    learning = [
        inspect.Parameter(
            item.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kinds[item.name] | None, _learning_option(item, kinds[item.name])],
        )
        for item in dataclasses.fields(TrainerSettings)
    ]
    return inspect.Signature([*kept, *learning])


def _learning_option(item: dataclasses.Field[Any], kind: Any) -> Any:
    values = {getattr(settings_for(method), item.name) for method in METHOD_NAMES}
    return typer.Option(
        "--" + item.name.replace("_", "-"),
        metavar={int: "N", float: "X"}.get(kind),
        show_default=f"{item.default}" if len(values) == 1 else f"{item.default}, or by method",
        help=_LEARNING_HELP[item.name],
        rich_help_panel=_LEARNING,
    )


def _card(notes: Sequence[str]) -> dict[str, str]:
    card = {}
    for note in notes:
        name, equals, text = note.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--note is {note!r}; write it as KEY=TEXT")
        card[name.strip()] = text.strip()
    return card


def _print_people(task: str, result: TrainResult) -> None:
    named: dict[str, AnyMetrics | None] = {
        "dev": result.dev,
        "test": result.test,
        "linear probe, dev": result.probe_dev,
        "linear probe, test": result.probe_test,
    }
    print_metrics({name: metrics for name, metrics in named.items() if metrics is not None})
    manifest = result.adapter.manifest
    print_line("")
    print_line(
        f"adapter  {result.path} ({size(result.size_bytes)}, {manifest.parameters:,} parameters, "
        f"{manifest.parameter_share:.2%} of the encoder's)"
    )
    print_line(f"report   {result.report}")
    print_line(f"next     labelmux push {result.path} --task {task}")


_train.__signature__ = _signature()  # type: ignore[attr-defined]
train = reported(_train)
