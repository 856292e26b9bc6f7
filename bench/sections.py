"""What the server benchmark measures, a function per section."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from driver import Shape
from figures import Bar, Cell, Run, paired_ratio
from in_process import (
    BATCHES,
    SHARE,
    WINDOW,
    in_process_texts_per_s,
    row_p50_ms,
    side_by_side_texts_per_s,
)
from labelmux_encoder.weights import LoadedEncoder, load_encoder
from peer_weights import write_base_encoder
from targets import LABELMUX, Fields
from workbench import Measurement, Workbench, busiest, interleave

IN_PROCESS = "in process"
_ONE, _MANY = 1, 32
#: Texts under way that keep any of the peers busy.
_BUSY = 64
#: Texts that may be under way in the short form.
_SHORT_QUEUE = 256
#: Loads that keep our server busy: with fewer clients all of them wait for one batch, and the
#: encoder for them in turn. Peers are busy with ``_BUSY`` texts; more only take long to drain.
_SATURATING = (Shape(256, _ONE), Shape(48, _MANY))
_SATURATING_BASE_SIZE = (Shape(128, _ONE), Shape(16, _MANY))
#: Tasks of a text, adapters of a mixed batch.
TASKS, ADAPTERS = 8, 32

_SINGLE_PEERS = ("infinity", "plain", "litserve")
_MULTI_PEERS = ("infinity", "plain")


def one_task(bench: Workbench) -> None:
    """One task: against the encoder alone, and against the peers."""
    section = "one task"
    ours = bench.labelmux(bench.adapters(1), lambda _: [{"task": "task-0"}])
    peers = [target for name in _SINGLE_PEERS for target in bench.peer(name)]
    with bench.serving(ours, *peers) as ready:
        plans = [
            bench.load(section, found, shape)
            for shape in (Shape(c, t) for t in (_ONE, _MANY) for c in (1, 8, 64))
            for found in ready
            if bench.plan.full or _in_short(found.target.name, shape)
        ]
        own = next((found for found in ready if found.target.name == LABELMUX), None)
        plans += [bench.load(section, own, shape) for shape in _SATURATING if own]
        plans += _in_process(bench, section, bench.loaded, bench.plan.cell_s)
        interleave(plans, bench.plan.repeats)
    cells = _of(bench, section)
    _own_cost(bench, cells, {_ONE: 0.6, _MANY: 0.9}, "")
    _latency(bench, cells)
    for name, wanted in (("infinity", 5.0), ("plain", 5.0), ("litserve", None)):
        for texts in (_ONE, _MANY):
            what = f"texts/s over {name}, {_texts(texts)} a request"
            bench.bar(_ratio_bar(what, cells, name, texts, wanted))


def many_tasks(bench: Workbench) -> None:
    """Eight tasks for every text; peers need a model for each."""
    section = f"{TASKS} tasks a text"
    names = [f"task-{index}" for index in range(TASKS)]
    ours = bench.labelmux(bench.adapters(TASKS), lambda _: [{"tasks": names}])
    peers = [target for name in _MULTI_PEERS for target in bench.peer(name, TASKS)]
    with bench.serving(ours, *peers) as ready:
        shapes = (Shape(64, _ONE), Shape(_clients(bench), _MANY))
        interleave(
            [bench.load(section, found, shape) for shape in shapes for found in ready],
            bench.plan.long_repeats,
        )
    cells = _of(bench, section)
    for name in _MULTI_PEERS:
        for texts in (_ONE, _MANY):
            what = f"texts/s over {name}, {TASKS} tasks a text, {_texts(texts)} a request"
            bench.bar(_ratio_bar(what, cells, name, texts, 30.0))


def mixed_adapters(bench: Workbench) -> None:
    """Requests for any of 32 adapters; PEFT mixes them inside a request, we across requests."""
    section = f"{ADAPTERS} adapters"
    adapters = bench.adapters(ADAPTERS)
    fields: list[Fields] = [{"task": name} for name in adapters]
    ours = bench.labelmux(adapters, lambda _: fields)
    with bench.serving(ours, *bench.mixed_peer(ADAPTERS)) as ready:
        shapes = (Shape(64, _ONE), Shape(_clients(bench), _MANY))
        interleave(
            [bench.load(section, found, shape) for shape in shapes for found in ready],
            bench.plan.long_repeats,
        )
    cells = _of(bench, section)
    for texts in (_ONE, _MANY):
        what = f"texts/s over PEFT mixed batches, {ADAPTERS} adapters, {_texts(texts)} a request"
        bench.bar(_ratio_bar(what, cells, "peft", texts, 4.0))
    # PEFT cannot mix requests of one text: this sets our smallest against its largest.
    smallest = paired_ratio(busiest(cells, LABELMUX, _ONE), busiest(cells, "peft", _MANY))
    bench.bar(Bar("the same, one text a request against its 32", smallest, "at least", None))


def base_size(bench: Workbench) -> None:
    """An encoder of v3-base's shape: the share of the server's own cost where passes are long."""
    section = "base size"
    folder = write_base_encoder(bench.folder / "base")
    loaded = load_encoder(str(folder), dtype="auto")
    ours = bench.labelmux(
        bench.adapters(1, loaded),
        lambda _: [{"task": "task-0"}],
        encoder=str(folder),
        loaded=loaded,
    )
    seconds = bench.plan.base_s
    with bench.serving(ours) as ready:
        plans = [
            bench.load(section, found, shape, seconds)
            for found in ready
            for shape in _SATURATING_BASE_SIZE
        ]
        plans += _in_process(bench, section, loaded, seconds)[:-1]
        interleave(plans, bench.plan.repeats)
    _own_cost(bench, _of(bench, section), {_ONE: 0.9, _MANY: 0.9}, "base size, ")


def _clients(bench: Workbench) -> int:
    """Enough to keep a server busy with requests of many texts; more only take long to drain."""
    return 8 if bench.plan.full else 4


def _in_short(name: str, shape: Shape) -> bool:
    """The short form leaves out what takes half a minute to drain, and peers below saturation."""
    if shape.texts_per_request * shape.clients > _SHORT_QUEUE:
        return False
    return name == LABELMUX or shape.texts_per_request * shape.clients >= _BUSY


def _in_process(
    bench: Workbench, section: str, loaded: LoadedEncoder, seconds: float
) -> list[Measurement]:
    texts = bench.texts(WINDOW)

    def rate(batch: int) -> Callable[[], Run]:
        return lambda: Run(in_process_texts_per_s(loaded, texts, seconds, batch))

    def one() -> Run:
        p50_ms = row_p50_ms(loaded, texts, seconds)
        return Run(1000 / p50_ms, p50_ms)

    def side_by_side() -> Run:
        return Run(side_by_side_texts_per_s(loaded, texts, seconds))

    return [
        *(bench.here(section, f"batches of {b}", b, rate(b)) for b in BATCHES),
        bench.here(section, f"batches of {SHARE}, one a thread", SHARE, side_by_side),
        bench.here(section, "one text at a time", _ONE, one),
    ]


def _own_cost(
    bench: Workbench, cells: Sequence[Cell], wanted: dict[int, float], prefix: str
) -> None:
    encoder = max(
        (busiest(cells, IN_PROCESS, batch) for batch in BATCHES),
        key=lambda cell: cell.median("texts_per_s") if cell else math.nan,
    )
    side_by_side = busiest(cells, IN_PROCESS, SHARE)
    for how, alone in (("one pass at a time", encoder), ("a pass a thread", side_by_side)):
        for texts, share in wanted.items():
            ratio = paired_ratio(busiest(cells, LABELMUX, texts), alone)
            what = f"{prefix}texts/s over the encoder in process ({how}), {_texts(texts)} a request"
            bench.bar(Bar(what, ratio, "at least", share))


def _latency(bench: Workbench, cells: Sequence[Cell]) -> None:
    words = Shape(1, _ONE).words
    alone = next((c for c in cells if c.server == LABELMUX and c.load == words), None)
    inside = busiest(cells, IN_PROCESS, _ONE)
    added_ms = math.nan
    if alone and inside:
        added_ms = alone.median("p50_ms") - inside.median("p50_ms")
    bench.bar(Bar("one client, one text: p50 ms above in process", added_ms, "at most", 2.5))


def _ratio_bar(
    what: str, cells: Sequence[Cell], peer: str, texts: int, wanted: float | None
) -> Bar:
    ratio = paired_ratio(busiest(cells, LABELMUX, texts), busiest(cells, peer, texts))
    return Bar(what, ratio, "at least", wanted)


def _of(bench: Workbench, section: str) -> list[Cell]:
    return [cell for cell in bench.results.cells if cell.section == section]


def _texts(count: int) -> str:
    return f"{count} text{'s' * (count > 1)}"
