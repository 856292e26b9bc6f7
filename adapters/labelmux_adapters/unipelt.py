"""UniPELT: prefix, bottleneck and low-rank maps under gates (Mao et al. 2022, section 3).

With a ``rank`` it is the paper's APL, without one its AP. The parts by themselves, ungated, are the
methods that the paper compares it with.
"""

from __future__ import annotations

from collections.abc import Sequence

from labelmux_adapters.edited import EditMethod, Sizes
from labelmux_adapters.parts import BottleneckLayers, LowRankMap, Part, PrefixKeys

_DEFAULTS = {"prefix": 10, "bottleneck": 48}
_RANK = {"rank": 8}


def _unipelt(sizes: Sizes) -> Sequence[Part]:
    parts: list[Part] = [
        PrefixKeys(True, sizes["prefix"]),
        BottleneckLayers(True, sizes["bottleneck"]),
    ]
    return parts + (_low_rank(sizes, gated=True) if "rank" in sizes else [])


def _low_rank(sizes: Sizes, *, gated: bool) -> list[Part]:
    return [LowRankMap(gated, "query", sizes["rank"]), LowRankMap(gated, "value", sizes["rank"])]


UNIPELT = EditMethod("unipelt", _DEFAULTS, _unipelt, optional=("rank",))
LORA = EditMethod("lora", _RANK, lambda sizes: _low_rank(sizes, gated=False))
PREFIX = EditMethod("prefix", {"prefix": 10}, lambda sizes: [PrefixKeys(False, sizes["prefix"])])
BOTTLENECK = EditMethod(
    "bottleneck", {"bottleneck": 48}, lambda sizes: [BottleneckLayers(False, sizes["bottleneck"])]
)
