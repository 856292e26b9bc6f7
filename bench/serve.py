"""The server against the encoder in process, against its peers, under overload and swaps.

    python bench/serve.py --out serve.json --peers infinity,plain,litserve,peft \\
        --python-infinity ENV/bin/python --python-peers ENV/bin/python

Servers and clients are processes of their own on this machine; texts are real and no text is sent
to a server twice. Cells are interleaved, every figure is a median, and what counts are ratios
within one run. Markdown goes to stdout, one JSON object to ``--out``. ``bench/README.md`` says how
to make the peers' environments and how to read the tables.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from figures import bar_table, cell_table, table
from labelmux_encoder.weights import load_encoder
from machine import machine_facts, versions
from sections import base_size, many_tasks, mixed_adapters, one_task
from stress import open_loop, swaps
from targets import PEERS, Pythons
from workbench import FULL, SHORT, Results, Workbench

SECTIONS: Mapping[str, Callable[[Workbench], None]] = {
    "one-task": one_task,
    "many-tasks": many_tasks,
    "mixed-adapters": mixed_adapters,
    "open-loop": open_loop,
    "swaps": swaps,
    "base-size": base_size,
}


def main() -> None:
    """Measure, write after every section, print."""
    asked = _arguments()
    # As an exception, the signal passes through what stops the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    plan = FULL if asked.full else SHORT
    plan = replace(plan, repeats=asked.repeats or plan.repeats)
    pythons = Pythons(asked.python_infinity, asked.python_peers)
    facts = machine_facts() | {"torch_threads": torch.get_num_threads()}
    facts["versions"] = {
        "labelmux": versions(Path(sys.executable)),
        "infinity": versions(pythons.infinity),
        "peers": versions(pythons.peers),
    }
    settings = {
        "plan": asdict(plan),
        "sections": asked.sections,
        "peers": asked.peers,
        "texts": asked.texts.name,
    }
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="labelmux-bench-") as folder:
        bench = Workbench(
            plan, load_encoder(dtype="auto"), asked.texts, Path(folder), pythons, asked.peers
        )
        for name in asked.sections:
            print(f"== {name}", file=sys.stderr, flush=True)
            SECTIONS[name](bench)
            facts["load_average_after"] = machine_facts()["load_average"]
            facts["took_s"] = round(time.monotonic() - started)
            if asked.out:
                found = to_json(facts, settings, bench.results)
                asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(report(facts, bench.results))


def report(facts: Mapping[str, Any], results: Results) -> str:
    """The whole run as Markdown."""
    parts = [
        "## Figures",
        bar_table(results.bars),
        *(f"MISSING {what}" for what in results.missing),
    ]
    for section, cells in groupby(results.cells, key=lambda cell: cell.section):
        parts += [f"## {section}", cell_table(cells)]
    differences = ((name, float(value)) for name, value in results.differences.items())
    parts += [
        "## Answers",
        table(("server", "greatest difference of a score"), differences),
        "## Machine",
        table(("fact", "value"), ((name, str(value)) for name, value in facts.items())),
    ]
    return "\n\n".join(parts)


def to_json(
    facts: Mapping[str, Any], settings: Mapping[str, Any], results: Results
) -> dict[str, Any]:
    """The whole run as one object; what was not measured is null."""
    bars = [asdict(bar) | {"verdict": bar.verdict} for bar in results.bars]
    found: dict[str, Any] = _without_nan(
        {
            "machine": facts,
            "settings": settings,
            "bars": bars,
            "cells": [asdict(cell) for cell in results.cells],
            "differences": results.differences,
            "missing": results.missing,
        }
    )
    return found


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return value


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--full", action="store_true", help="long runs, more of them")
    parser.add_argument("--repeats", type=int, help="times that every cell is measured")
    parser.add_argument("--sections", type=_names(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--peers", type=_names(PEERS), default=list(PEERS))
    parser.add_argument("--python-infinity", type=Path, help="of requirements-infinity.txt")
    parser.add_argument("--python-peers", type=Path, help="of requirements-peers.txt")
    parser.add_argument(
        "--texts",
        type=Path,
        default=Path(__file__).parent / "texts.txt",
        help="distinct texts, one a line",
    )
    return parser.parse_args()


def _names(known: Mapping[str, object] | tuple[str, ...]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return read


if __name__ == "__main__":
    main()
