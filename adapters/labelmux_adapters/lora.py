"""LoRA: low-rank maps beside linear ones (Hu et al. 2022, section 4.1).

A size for each linear map that has one: its rank. What the paper calls alpha / r is folded into the
tensors. Maps at query and key see content alone: the position tables are sites of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from labelmux_adapters.edited import EditMethod, Sizes
from labelmux_adapters.parts import LowRankMap
from labelmux_encoder.edits import LinearSite

SITES: tuple[LinearSite, ...] = get_args(LinearSite)


def _parts(sizes: Sizes) -> Sequence[LowRankMap]:
    parts = [LowRankMap(False, site, sizes[site]) for site in SITES if site in sizes]
    if not parts:
        raise ValueError(f"no map has a rank; give one of {', '.join(SITES)}")
    return parts


LORA = EditMethod("lora", {"query": 8, "value": 8}, _parts, optional=SITES)
