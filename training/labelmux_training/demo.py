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

from labelmux_encoder.tokenizer import TextInput
from labelmux_encoder.weights import LoadedEncoder, load_encoder
from labelmux_training.assemble import write_file
from labelmux_training.metrics import Metrics
from labelmux_training.options import TrainOptions
from labelmux_training.progress import NoProgress
from labelmux_training.settings import TrainerSettings
from labelmux_training.train import TrainResult, train


@dataclass(frozen=True)
class Demo:
    """One demo task, its data set and what it needs beyond the default settings."""

    task: str
    data: str
    about: str
    settings: TrainerSettings = field(default_factory=TrainerSettings)


DEMOS = (
    Demo("sentiment", "sst2", "whether a sentence about a film is positive or negative"),
    Demo("question-type", "trec", "what kind of answer a question asks for"),
    Demo(
        "banking-intent",
        "banking77",
        "what a bank's customer wants",
        TrainerSettings(learning_rate=1e-3),
    ),
    Demo("spam", "sms_spam", "whether a text message is spam"),
    Demo("emotion", "emotion", "which emotion a short message shows"),
    Demo("paraphrase", "mrpc", "whether two sentences say the same"),
)

#: Longest text that a demo task reads, in tokens.
MAX_TOKENS = 128

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


@dataclass(frozen=True)
class Trained:
    """A demo task and what training it gave."""

    demo: Demo
    meta: Mapping[str, Any]
    result: TrainResult


def train_demo(
    demo: Demo,
    data: Path,
    out: Path,
    reports: Path,
    loaded: LoadedEncoder,
    cache_dir: Path | None = None,
    canaries: Mapping[bool, Sequence[TextInput]] | None = None,
) -> Trained:
    """Train one demo task, score it and the probe on its test split, and write its adapter."""
    folder = data / demo.data
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
    canaries = canaries or {True: PAIR_CANARIES, False: CANARIES}
    options = TrainOptions(
        task=demo.task,
        train=folder / "train.jsonl.gz",
        dev=folder / "dev.jsonl.gz",
        test=folder / "test.jsonl.gz",
        out=out / f"{demo.task}.safetensors",
        report=reports / f"{demo.task}.html",
        labels=tuple(meta["labels"]),
        max_tokens=min(MAX_TOKENS, loaded.encoder.config.max_tokens),
        settings=demo.settings,
        probe=True,
        cache_dir=cache_dir,
        canaries=tuple(canaries[meta["kind"] == "pair"]),
        card={
            "task": demo.about,
            "data": f"{demo.data}: {meta['source']}",
            "licence of the data": str(meta["license"]),
            "notes": str(meta.get("notes", "")),
        },
    )
    return Trained(demo, meta, train(options, loaded, _Lines(demo.task)))


def scores_table(trained: Sequence[Trained]) -> str:
    """Test scores beside the linear probe's on the same rows, in Markdown."""
    lines = [
        "| task | data | labels | rows | accuracy | linear probe | macro F1 | linear probe | ECE |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    ahead: list[float] = []
    for one in trained:
        test, probe = one.result.test, one.result.probe_test
        assert isinstance(test, Metrics) and isinstance(probe, Metrics)
        ahead.append(test.accuracy - probe.accuracy)
        labels = len(one.result.adapter.manifest.labels)
        lines.append(
            f"| {one.demo.task} | {one.demo.data} | {labels} | {test.rows} "
            f"| {test.accuracy:.1%} | {probe.accuracy:.1%} "
            f"| {test.macro_f1:.1%} | {probe.macro_f1:.1%} | {test.ece:.3f} |"
        )
    mean = sum(ahead) / len(ahead)
    lines += [
        "",
        (
            f"Y-Tuning is {100 * mean:+.1f} points from the linear probe on average, "
            f"{100 * min(ahead):+.1f} where it is least ahead."
        ),
    ]
    return "\n".join(lines)


def cards(trained: Sequence[Trained], encoder: str) -> str:
    """The demo tasks' cards in Markdown."""
    lead = (
        "Made by `python -m labelmux_training.demo`; do not edit by hand. "
        f"Encoder: {encoder}. Scores are on the test splits, which decided nothing; the linear "
        "probe is logistic regression on the mean of the last layer, trained on the same rows."
    )
    parts = ["# Demo tasks", "", lead, "", scores_table(trained)]
    for one in trained:
        manifest = one.result.adapter.manifest
        size = (
            f"{one.result.size_bytes:,} bytes, {manifest.parameters:,} parameters "
            f"({manifest.parameter_share:.2%} of the encoder's), width {manifest.sizes['width']}"
        )
        parts += [
            "",
            f"## {one.demo.task}",
            "",
            f"Says {one.demo.about}. Labels: {', '.join(f'`{x}`' for x in manifest.labels)}.",
            "",
            f"- Data: {manifest.card['data']}",
            f"- Licence of the data, as its source states it: {one.meta['license']}",
            f"- Notes: {manifest.card['notes']}",
            f"- Test: {manifest.card['test']}",
            f"- Linear probe, test: {manifest.card['linear probe, test']}",
            f"- Size: {size}",
        ]
    return "\n".join([*parts, ""])


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
    """Train the demo tasks and write their cards."""
    parser = argparse.ArgumentParser(description="Train the demo tasks.")
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapters")
    parser.add_argument("--docs", type=Path, help="cards; OUT/DEMO.md by default")
    parser.add_argument("--reports", type=Path, default=Path("build/demo-reports"))
    parser.add_argument("--encoder", default="bundled", help="bundled, a folder or a hub id")
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=[demo.task for demo in DEMOS])
    asked = parser.parse_args(arguments)
    loaded = load_encoder(asked.encoder)
    trained = [
        train_demo(demo, asked.data, asked.out, asked.reports, loaded, asked.cache_dir)
        for demo in DEMOS
        if asked.tasks is None or demo.task in asked.tasks
    ]
    sys.stdout.write(scores_table(trained) + "\n")
    write_file(asked.docs or asked.out / "DEMO.md", cards(trained, loaded.name).encode())


if __name__ == "__main__":
    main()
