"""``labelmux import-peft``: a LoRA or (IA)3 adapter of PEFT in, an adapter file out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from labelmux_cli.connection import AsJson
from labelmux_cli.output import print_json, print_line, reported, size, tell
from labelmux_cli.texts import open_input, rows_of_lines

if TYPE_CHECKING:
    from labelmux_encoder.tokenizer import TextInput
    from labelmux_training.import_peft import ImportResult


@reported
def import_peft(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="What PEFT's save_pretrained wrote.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="The adapter file; FOLDER.safetensors if left out."
        ),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(
            "--encoder",
            metavar="bundled|FOLDER|HUB-ID",
            help="What the adapter was trained on, and what will serve it.",
        ),
    ] = "bundled",
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="NAME,NAME,…",
            help="In the order of the logits; from a config.json if left out.",
        ),
    ] = None,
    task_kind: Annotated[
        Literal["single_label", "multi_label", "token"] | None,
        typer.Option("--task-kind", help="As the adapter says if left out."),
    ] = None,
    pair: Annotated[bool, typer.Option("--pair", help="It reads two texts.")] = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", metavar="N", min=4, help="Where texts are cut; 256 if left out."
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            "--texts",
            metavar="FILE",
            help="Texts, one a line or JSONL, by which a server checks the file; "
            "a few neutral sentences if left out.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn a LoRA or (IA)3 classifier of PEFT into an adapter file that answers the same.

    The folder has adapter_config.json, adapter_model.safetensors and the head that was trained with
    them. What an adapter file cannot carry is refused by its name.

    Example:
      labelmux import-peft my-lora --encoder microsoft/deberta-v3-base --labels ham,spam
      labelmux push my-lora.safetensors --task spam
    """
    from labelmux_training.import_peft import ImportOptions
    from labelmux_training.import_peft import import_peft as run
    from labelmux_training.outputs import write_file

    result = run(
        ImportOptions(
            folder,
            encoder=encoder,
            labels=None if labels is None else tuple(name.strip() for name in labels.split(",")),
            task_kind=task_kind,
            pair=pair,
            max_tokens=max_tokens,
            texts=() if texts is None else _texts(texts, pair=pair),
            texts_path=texts,
        )
    )
    path = out if out is not None else Path(f"{folder.resolve().name}.safetensors")
    write_file(path, result.data)
    for doubt in result.doubts:
        tell(f"note: {doubt}")
    if as_json:
        print_json(_as_object(path, result))
    else:
        _print_people(path, result)


def _texts(file: Path, *, pair: bool) -> tuple[TextInput, ...]:
    with open_input(file) as lines:
        rows = list(rows_of_lines(lines, file.name, pair=pair, form="auto"))
    return tuple((row.text, row.pair) if row.pair is not None else row.text for row in rows)


def _as_object(path: Path, result: ImportResult) -> dict[str, object]:
    return {
        "adapter": str(path),
        "digest": result.adapter.digest,
        "size_bytes": len(result.data),
        "labels_from": result.labels_from,
        "notes": list(result.doubts),
        "manifest": result.adapter.manifest.model_dump(mode="json"),
    }


def _print_people(path: Path, result: ImportResult) -> None:
    manifest = result.adapter.manifest
    print_line(f"labels   {', '.join(manifest.labels)} (from {result.labels_from})")
    print_line(
        f"adapter  {path} ({manifest.method}, {manifest.task_kind}, {size(len(result.data))}, "
        f"{manifest.parameters:,} parameters, {manifest.parameter_share:.2%} of the encoder's)"
    )
    print_line(f"next     labelmux push {path} --task {path.name.removesuffix('.safetensors')}")
