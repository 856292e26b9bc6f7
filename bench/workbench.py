"""What the sections of the server benchmark share: the plan, the weights, the results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from driver import Driver, Shape, awake
from figures import Bar, Cell, Run
from in_process import MAX_TOKENS, run_encoder
from labelmux_adapters.canaries import serve_logits
from labelmux_adapters.files import read_adapter
from labelmux_adapters.scores import to_scores
from labelmux_encoder.weights import LoadedEncoder
from load import Texts
from peer_weights import Head, export_classifier, labels_of, make_adapter
from servers import Launch, ServerFailedError, running
from targets import (
    PEERS,
    Fields,
    Pythons,
    Running,
    Scores,
    Target,
    read_infinity,
    read_labelmux,
    read_peer,
    serve_infinity,
    serve_labelmux,
    serve_peer,
)

#: Labels of the k-th adapter and model, so that heads differ as tasks do.
_LABELS = (2, 3, 4, 6, 2, 5, 3, 4)
#: Scores further from the expected than this are wrong answers; bfloat16 stays within it.
TOLERANCE = 0.02
#: The check needs few texts: what could be wrong is wrong for all.
_CHECKED_TEXTS = 8

Measurement = tuple[Cell, Callable[[int], Run]]


@dataclass(frozen=True)
class Plan:
    """How long everything takes."""

    full: bool
    #: Of every cell; half as often, rounded up, where one run is long.
    repeats: int
    cell_s: float
    warm_up_s: float
    #: One run of the open loop.
    open_s: float
    #: One run with swaps, or without.
    swap_s: float
    #: One run at base size, where few requests take long.
    base_s: float

    @property
    def long_repeats(self) -> int:
        """Of cells whose one run is long."""
        return -(-self.repeats // 2)


SHORT = Plan(False, repeats=3, cell_s=1.5, warm_up_s=0.5, open_s=4.0, swap_s=4.0, base_s=4.0)
FULL = Plan(True, repeats=5, cell_s=5.0, warm_up_s=2.0, open_s=20.0, swap_s=60.0, base_s=15.0)


@dataclass
class Results:
    """Everything that the run found out."""

    cells: list[Cell] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    #: Server to the greatest difference of its scores from the expected.
    differences: dict[str, float] = field(default_factory=dict)
    #: What could not be measured, and why.
    missing: list[str] = field(default_factory=list)


class Workbench:
    """The common ground of the sections."""

    def __init__(
        self,
        plan: Plan,
        loaded: LoadedEncoder,
        texts_path: Path,
        folder: Path,
        pythons: Pythons,
        peers: Sequence[str],
    ) -> None:
        self.plan = plan
        self.loaded = loaded
        self.folder = folder
        self.results = Results()
        self._texts = Texts(texts_path)
        self._driver = Driver(texts_path)
        self._pythons = pythons
        self._peers = tuple(peers)
        self._states = 0
        for peer in PEERS:
            if peer not in self._peers:
                self.lacks(f"{peer}: not asked for")
            elif pythons.of(peer) is None:
                self.lacks(f"{peer}: no interpreter given for it")

    def texts(self, count: int) -> list[str]:
        """The first so many texts."""
        return self._texts.block(0, count)

    def lacks(self, what: str) -> None:
        """Note loudly what is not measured."""
        print(f"MISSING {what}", file=sys.stderr, flush=True)
        self.results.missing.append(what)

    def adapters(self, count: int, loaded: LoadedEncoder | None = None) -> dict[str, bytes]:
        """Adapter files by task."""
        return {
            f"task-{index}": make_adapter(
                loaded or self.loaded, _LABELS[index % len(_LABELS)], index, self.texts(8)
            )
            for index in range(count)
        }

    def labelmux(
        self,
        adapters: dict[str, bytes],
        fields: Callable[[int], list[Fields]],
        *flags: str,
        encoder: str = "bundled",
        loaded: LoadedEncoder | None = None,
    ) -> Target:
        """Our server with these adapters; the first is what is checked."""
        self._states += 1
        task, data = next(iter(adapters.items()))
        # What is fastest may change from process to process, and canaries know one precision.
        dtype = (loaded or self.loaded).encoder.precision
        return Target(
            serve_labelmux(
                self.folder / f"state-{self._states}",
                *("--no-demo", "--dtype", dtype, *flags),
                encoder=encoder,
            ),
            fields,
            read_labelmux,
            lambda texts: self._expect_adapter(data, texts, loaded or self.loaded),
            path="/v1/classify",
            check_fields=lambda _: {"task": task},
            uploads=adapters,
        )

    def peer(self, name: str, models: int = 1) -> Iterator[Target]:
        """The peer, if it was asked for and can be, with one model per task."""
        python = self._pythons.of(name)
        if name not in self._peers or python is None:
            return
        folders = [self._model(index) for index in range(models)]
        if name == "infinity":
            yield Target(
                serve_infinity(python, folders),
                lambda _: [{"model": folder.name} for folder in folders],
                read_infinity,
                self._expect_head,
                texts_field="input",
                requests_per_texts=models,
            )
        else:
            yield Target(
                self._peer_launch(python, name, folders),
                lambda _: [{"model": index} for index in range(models)],
                read_peer,
                self._expect_head,
                requests_per_texts=models,
            )

    def mixed_peer(self, adapters: int) -> Iterator[Target]:
        """PEFT with so many adapters; a request of many texts mixes them."""
        python = self._pythons.of("peft")
        if "peft" not in self._peers or python is None:
            return
        names = [f"adapter-{index}" for index in range(adapters)]
        yield Target(
            serve_peer(
                *(python, "peft", "mixed_lora.py", "--adapters", str(adapters)),
                str(self._model(0)),
            ),
            lambda texts: (
                [{"adapters": [name]} for name in names] if texts == 1 else [{"adapters": names}]
            ),
            read_peer,
            self._expect_head,
            check_fields=lambda texts: {"adapters": ["__base__"] * texts},
        )

    @contextmanager
    def serving(self, *targets: Target) -> Iterator[list[Running]]:
        """Those of the targets that start and answer rightly, warm, and paused."""
        with running([target.launch for target in targets], self.folder) as servers:
            ready = []
            for target, server in zip(targets, servers, strict=True):
                if isinstance(server, ServerFailedError):
                    self.lacks(str(server))
                elif (found := self._ready(Running(target, server))) is not None:
                    ready.append(found)
            yield ready

    def load(
        self, section: str, found: Running, shape: Shape, seconds: float | None = None
    ) -> Measurement:
        """A cell, and how to measure it once."""
        cell = Cell(section, found.target.name, shape.words, shape.texts_per_request)
        self.results.cells.append(cell)
        seconds = seconds or self.plan.cell_s

        def measure(repeat: int) -> Run:
            run = self._driver.measure(found, shape, seconds, repeat)
            if run.failed:
                self.lacks(f"{cell.server}, {cell.load}: {run.failed:.0f} requests failed")
            return run

        return cell, measure

    def here(self, section: str, words: str, texts: int, measure: Callable[[], Run]) -> Measurement:
        """A cell of this process."""
        cell = Cell(section, "in process", words, texts)
        self.results.cells.append(cell)
        return cell, lambda _: measure()

    def bar(self, bar: Bar) -> None:
        """Note a figure that something is asked of."""
        self.results.bars.append(bar)

    def _ready(self, found: Running) -> Running | None:
        name = found.target.name
        try:
            with awake(found):
                found.upload()
                difference = found.difference(self.texts(_CHECKED_TEXTS))
        except (ServerFailedError, OSError) as error:
            self.lacks(f"{name}: {error}")
            return None
        worst = max(difference, self.results.differences.get(name, 0.0))
        self.results.differences[name] = worst
        if not difference <= TOLERANCE:
            self.lacks(f"{name}: wrong answers, scores differ by {difference:.3g}")
            return None
        found.next_text = _CHECKED_TEXTS
        # Compiled peers compile again for other sizes of a batch.
        for shape in (Shape(32, 1), Shape(4, 32)):
            self._driver.measure(found, shape, self.plan.warm_up_s)
        return found

    def _peer_launch(self, python: Path, name: str, folders: Sequence[Path]) -> Launch:
        script = {"plain": "plain.py", "litserve": "lit.py"}[name]
        return serve_peer(python, name, script, *map(str, folders))

    def _model(self, index: int) -> Path:
        folder = self.folder / "models" / f"model-{index}"
        return folder if folder.exists() else export_classifier(folder, self._head(index))

    def _head(self, index: int) -> Head:
        hidden = self.loaded.encoder.config.hidden_size
        return Head.seeded(hidden, _LABELS[index % len(_LABELS)], index)

    def _expect_head(self, texts: Sequence[str]) -> Scores:
        rows = self.loaded.tokenizer.encode(texts, MAX_TOKENS)
        head = self._head(0)
        scores = head.scores(run_encoder(self.loaded, rows)).tolist()
        names = labels_of(len(head.classifier))
        return [dict(zip(names, row, strict=True)) for row in scores]

    def _expect_adapter(self, data: bytes, texts: Sequence[str], loaded: LoadedEncoder) -> Scores:
        adapter = read_adapter(data)
        manifest = adapter.manifest
        return [
            dict(zip(manifest.labels, map(float, to_scores(logits, manifest)), strict=True))
            for logits in serve_logits(adapter, loaded, texts)
        ]


def interleave(measurements: Sequence[Measurement], repeats: int) -> None:
    """Measure every cell once, then every cell again: what disturbs one round disturbs all."""
    for repeat in range(repeats):
        for cell, measure in measurements:
            run = measure(repeat)
            cell.runs.append(run)
            name = f"{cell.section}: {cell.server}, {cell.load}"
            print(f"{name}: {run.texts_per_s:.0f} texts/s", file=sys.stderr, flush=True)


def busiest(cells: Sequence[Cell], server: str, texts_per_request: int) -> Cell | None:
    """The cell in which a server does most: what it does at saturation."""
    found = [c for c in cells if c.server == server and c.texts_per_request == texts_per_request]
    return max(found, key=lambda cell: cell.median("texts_per_s"), default=None)
