"""PEFT's pass over rows of many LoRA adapters, and of none, at the word of another process.

    python bench/peers/lora_pass.py --adapters 32 --dtype bfloat16 FOLDER ROWS.json

ROWS.json holds token ids, a list per row. A line ``plain`` or ``mixed`` on stdin is answered by one
line on stdout, the seconds that such a pass took.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mixed_lora import Model  # type: ignore[import-not-found]


class Passes:
    """One batch of rows, to be run with an adapter for each row or with none."""

    def __init__(self, model: Any, rows: Sequence[Sequence[int]], adapters: int) -> None:
        longest = max(map(len, rows))
        padded = [[*row, *[0] * (longest - len(row))] for row in rows]
        self._model = model
        self._ids = torch.tensor(padded)
        self._mask = torch.tensor([[n < len(row) for n in range(longest)] for row in rows]).long()
        self._names = [f"adapter-{place % adapters}" for place in range(len(rows))]

    @torch.inference_mode()
    def run(self, what: str) -> None:
        """One pass and its heads."""
        if what == "plain":
            with self._model.disable_adapter():
                self._model(input_ids=self._ids, attention_mask=self._mask)
        else:
            self._model(input_ids=self._ids, attention_mask=self._mask, adapter_names=self._names)


def main() -> None:
    """Answer until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("folder")
    parser.add_argument("rows", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model = Model(asked.folder, asked.adapters).module.to(getattr(torch, asked.dtype))
    passes = Passes(model, json.loads(asked.rows.read_text()), asked.adapters)
    print("ready", flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        passes.run(line.strip())
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
