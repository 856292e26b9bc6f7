"""The servers of the benchmark: how each is started, asked, and read."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers import Launch, Server

LABELMUX = "labelmux"
PEERS = ("infinity", "plain", "litserve", "peft")
_HERE = Path(__file__).parent

Fields = dict[str, Any]
#: Label to score, per text.
Scores = list[dict[str, float]]


@dataclass(frozen=True)
class Target:
    """One server, and the requests that a section sends it."""

    launch: Launch
    #: JSON fields beside the texts, round and round, by how many texts a request has.
    fields: Callable[[int], list[Fields]]
    #: Its scores in an answer, of one task.
    read: Callable[[Any], Scores]
    #: What these scores should be.
    expected: Callable[[Sequence[str]], Scores]
    path: str = "/classify"
    texts_field: str = "texts"
    #: Requests that one text needs: one, or one per model.
    requests_per_texts: int = 1
    #: Fields of the request that is checked; None: the first of ``fields``.
    check_fields: Callable[[int], Fields] | None = None
    #: Adapter files to upload once it is ready, by task.
    uploads: dict[str, bytes] | None = None

    @property
    def name(self) -> str:
        """As tables have it."""
        return self.launch.name


@dataclass
class Running:
    """A target that serves."""

    target: Target
    server: Server
    #: The first text that it has not seen; see ``load.Texts``.
    next_text: int = 0
    #: Not paused; see ``driver.awake``.
    awake: bool = False

    def upload(self) -> None:
        """Put the adapters in place."""
        for task, data in (self.target.uploads or {}).items():
            self.server.put_file(f"/v1/tasks/{task}/adapter", data)

    def difference(self, texts: Sequence[str]) -> float:
        """The greatest difference of its scores from what they should be."""
        target = self.target
        one = target.check_fields or (lambda count: target.fields(count)[0])
        answer = self.server.post(target.path, {**one(len(texts)), target.texts_field: [*texts]})
        return greatest_difference(target.read(answer), target.expected(texts))


@dataclass(frozen=True)
class Pythons:
    """The interpreters of the peers' environments; None where there is none."""

    infinity: Path | None
    peers: Path | None

    def of(self, peer: str) -> Path | None:
        """The one that runs this peer."""
        return self.infinity if peer == "infinity" else self.peers


def serve_labelmux(state: Path, *flags: str, encoder: str = "bundled") -> Launch:
    """``labelmux serve`` of this environment."""
    command = (
        *(sys.executable, "-m", "labelmux_cli.main", "serve", "--port", "{port}"),
        *("--state-dir", str(state), "--encoder", encoder, "--device", "cpu"),
        *("--log-level", "warning", *flags),
    )
    return Launch(LABELMUX, command, "/health/ready")


def serve_infinity(python: Path, folders: Sequence[Path]) -> Launch:
    """``infinity_emb``, one model per folder, each served under its folder's name."""
    models = [
        part
        for folder in folders
        for part in ("--model-id", str(folder), "--served-model-name", folder.name)
    ]
    command = (
        *(str(python.parent / "infinity_emb"), "v2", "--port", "{port}", *models),
        *("--engine", "torch", "--device", "cpu", "--no-bettertransformer"),
        *("--no-model-warmup", "--log-level", "warning"),
    )
    env = {"HF_HUB_OFFLINE": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    return Launch("infinity", command, "/health", env)


def serve_peer(python: Path, name: str, script: str, *arguments: str) -> Launch:
    """One of ``bench/peers``."""
    command = (str(python), str(_HERE / "peers" / script), "--port", "{port}", *arguments)
    return Launch(name, command, "/health", {"HF_HUB_OFFLINE": "1"})


def read_infinity(answer: Any) -> Scores:
    """Scores in an answer of Infinity."""
    return [_by_label(row) for row in answer["data"]]


def read_peer(answer: Any) -> Scores:
    """Scores in an answer of ``bench/peers``."""
    return [_by_label(row) for row in answer["results"]]


def read_labelmux(answer: Any) -> Scores:
    """Scores of the first task in an answer of ours."""
    first = next(iter(answer["results"][0]["predictions"]))
    return [_by_label(row["predictions"][first]["labels"]) for row in answer["results"]]


def greatest_difference(found: Scores, expected: Scores) -> float:
    """Over all texts and labels; infinite where texts or labels do not match."""
    if len(found) != len(expected):
        return math.inf
    return max(
        abs(got[label] - score) if got.keys() == want.keys() else math.inf
        for got, want in zip(found, expected, strict=True)
        for label, score in want.items()
    )


def _by_label(row: Sequence[Fields]) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in row}
