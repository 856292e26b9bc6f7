"""The recipe of the demo tasks: ``python -m labelmux_training.demo --data FOLDER --out FOLDER``.

``--data`` holds a folder per data set with ``train``, ``dev`` and ``test`` (``.jsonl.gz``) and a
``meta.json`` with ``source``, ``license`` and ``notes``. Each task is trained as ``labelmux train``
would; its card says what it was trained on, on which terms, and how it scores. Canaries are texts
of our own, so no row of a data set is in a file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labelmux_adapters.files import Adapter, read_adapter
from labelmux_encoder.tokenizer import TextInput
from labelmux_encoder.weights import BUNDLED, LoadedEncoder, load_encoder
from labelmux_training.options import TrainOptions
from labelmux_training.outputs import write_file
from labelmux_training.progress import NoProgress
from labelmux_training.settings import settings_for
from labelmux_training.train import TrainResult, train


@dataclass(frozen=True)
class Demo:
    """One demo task, its data set and what it needs beyond its method's own settings."""

    task: str
    data: str
    about: str
    method: str = "ytuning"
    settings: Mapping[str, Any] = field(default_factory=dict)


DEMOS = (
    Demo("sentiment", "sst2", "whether a sentence about a film is positive or negative"),
    Demo("question-type", "trec", "what kind of answer a question asks for"),
    Demo(
        "banking-intent",
        "banking77",
        "what a bank's customer wants",
        "ytuning",
        {"learning_rate": 1e-3},
    ),
    Demo("spam", "sms_spam", "whether a text message is spam"),
    Demo("emotion", "emotion", "which emotion a short message shows"),
    Demo("paraphrase", "mrpc", "whether two sentences say the same"),
    Demo(
        "feelings",
        "go_emotions",
        "which feelings a comment shows, any number of them",
        "ytuning",
        {"epochs": 4},
    ),
    Demo("voice-command", "snips", "what a spoken command wants done", "pasta", {"epochs": 4}),
    Demo(
        "entailment",
        "sick",
        "whether the second sentence follows from the first",
        "unipelt",
        {"epochs": 6},
    ),
    Demo(
        "names",
        "wnut17",
        "which people, places, groups and works a text names",
        "unipelt",
        {"epochs": 8},
    ),
)

#: Longest text that a demo task reads, in tokens.
MAX_TOKENS = 128

#: Of a card: scores on the test split.
_TEST, _PROBE = "test", "linear probe, test"

CANARIES: tuple[str, ...] = (
    "A quiet film that stays with you for days.",
    "Two hours of my life that nobody will give back.",
    "How many bridges cross the river in this town?",
    "My new card has not arrived yet, when will it come?",
    "Call now to claim your free prize before midnight!",
    "Running late, please start dinner without me.",
    "I feel so much lighter since we talked.",
    "Why was I charged twice for the same payment?",
)
PAIR_CANARIES: tuple[tuple[str, str], ...] = (
    ("The bridge was closed on Monday.", "On Monday, nobody could use the bridge."),
    ("The bridge was closed on Monday.", "The bridge will be painted blue."),
    ("A man is playing a guitar on stage.", "Someone makes music."),
    ("A man is playing a guitar on stage.", "Nobody is playing an instrument."),
    ("Sales rose by 4 percent in the third quarter.", "Third-quarter sales grew 4 percent."),
    ("Sales rose by 4 percent in the third quarter.", "Sales fell in the third quarter."),
    ("Two dogs run through the snow.", "Animals are outside in winter."),
    ("The council voted for the plan.", "The plan was approved by the council."),
)


def train_demo(
    demo: Demo,
    data: Path,
    out: Path,
    reports: Path,
    loaded: LoadedEncoder,
    cache_dir: Path | None = None,
    encoder: str = BUNDLED,
) -> TrainResult:
    """Train one demo task, score it and the probe on its test split, and write its adapter."""
    folder = data / demo.data
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
    canaries: Sequence[TextInput] = PAIR_CANARIES if meta["kind"] == "pair" else CANARIES
    options = TrainOptions(
        task=demo.task,
        train=folder / "train.jsonl.gz",
        dev=folder / "dev.jsonl.gz",
        test=folder / "test.jsonl.gz",
        out=out / f"{demo.task}.safetensors",
        report=reports / f"{demo.task}.html",
        labels=tuple(meta["labels"]),
        encoder=encoder,
        max_tokens=min(MAX_TOKENS, loaded.encoder.config.max_tokens),
        method=demo.method,
        settings=settings_for(demo.method, **demo.settings),
        probe=True,
        cache_dir=cache_dir,
        canaries=tuple(canaries),
        card={
            "task": demo.about,
            "data": f"{demo.data}: {meta['source']}",
            "licence of the data": str(meta["license"]),
            "notes": str(meta.get("notes", "")),
        },
    )
    return train(options, loaded, _Lines(demo.task))


def cards(adapters: Mapping[str, Adapter], encoder: str) -> str:
    """The demo tasks' cards in Markdown, by what their files say."""
    lead = (
        "Made by `python -m labelmux_training.demo`; do not edit by hand. "
        f"Encoder: {encoder}. Scores are on the test splits, which decided nothing; the linear "
        "probe is a regression on the mean of the last layer (of a token task: on each token), "
        "trained on the same rows."
    )
    parts = ["# Demo tasks", "", lead, "", *_table(adapters)]
    for name, adapter in adapters.items():
        manifest, card = adapter.manifest, adapter.manifest.card
        size = (
            f"{manifest.parameters:,} parameters ({manifest.parameter_share:.2%} of the "
            f"encoder's), {', '.join(f'{size} {n}' for size, n in manifest.sizes.items())}"
        )
        parts += [
            "",
            f"## {name}",
            "",
            f"Says {card['task']}. Labels: {', '.join(f'`{x}`' for x in manifest.labels)}.",
            "",
            f"- Method: `{manifest.method}`; kind of task: `{manifest.task_kind}`",
            f"- Data: {card['data']}",
            f"- Licence of the data, as its source states it: {card['licence of the data']}",
            f"- Notes: {card['notes']}",
            f"- Test: {card[_TEST]}",
            f"- Linear probe, test: {card[_PROBE]}",
            f"- Size: {size}",
        ]
    return "\n".join([*parts, ""])


def _table(adapters: Mapping[str, Adapter]) -> list[str]:
    """The first number of each test, beside the linear probe's."""
    lines = [
        "| task | method | data | labels | test | linear probe |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for name, adapter in adapters.items():
        manifest, card = adapter.manifest, adapter.manifest.card
        data = card["data"].partition(":")[0]
        scores = " | ".join(card[said].partition(",")[0] for said in (_TEST, _PROBE))
        lines.append(f"| {name} | {manifest.method} | {data} | {len(manifest.labels)} | {scores} |")
    return lines


class _Lines(NoProgress):
    """Progress as a line per stage and epoch, on stderr."""

    def __init__(self, task: str) -> None:
        self._task = task

    def start(self, stage: str, total: int, unit: str) -> None:
        self.say(f"{stage}: {total:,} {unit}")

    def note(self, **values: float | str) -> None:
        shown = (f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        self.say(", ".join(shown))

    def say(self, message: str) -> None:
        sys.stderr.write(f"{self._task}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the demo tasks, or some of them, and write the cards of all that are there."""
    parser = argparse.ArgumentParser(description="Train the demo tasks.")
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapters")
    parser.add_argument("--docs", type=Path, help="cards; OUT/DEMO.md by default")
    parser.add_argument("--reports", type=Path, default=Path("build/demo-reports"))
    parser.add_argument("--encoder", default=BUNDLED, help="bundled, a folder or a hub id")
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=[demo.task for demo in DEMOS])
    asked = parser.parse_args(arguments)
    loaded = load_encoder(asked.encoder)
    for demo in DEMOS:
        if asked.tasks is None or demo.task in asked.tasks:
            train_demo(
                demo, asked.data, asked.out, asked.reports, loaded, asked.cache_dir, asked.encoder
            )
    made = {
        demo.task: read_adapter(path.read_bytes())
        for demo in DEMOS
        if (path := asked.out / f"{demo.task}.safetensors").exists()
    }
    write_file(asked.docs or asked.out / "DEMO.md", cards(made, loaded.name).encode())


if __name__ == "__main__":
    main()
