"""UniPELT: prefix, bottleneck and low-rank maps under gates (Mao et al. 2022, section 3).

With a ``rank`` it is the paper's APL, without one its AP. Prefix and bottleneck by themselves,
ungated, are methods that the paper compares it with; so is LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence

from labelmux_adapters.edited import EditMethod, Sizes
from labelmux_adapters.parts import BottleneckLayers, LowRankMap, Part, PrefixKeys


def _parts(sizes: Sizes) -> Sequence[Part]:
    prefix, bottleneck = sizes["prefix"], sizes["bottleneck"]
    parts: list[Part] = [PrefixKeys(True, prefix), BottleneckLayers(True, bottleneck)]
    if "rank" in sizes:
        rank = sizes["rank"]
        parts += [LowRankMap(True, "query", rank), LowRankMap(True, "value", rank)]
    return parts


UNIPELT = EditMethod(
    "unipelt", {"prefix": 10, "bottleneck": 48, "rank": 8}, _parts, optional=("rank",)
)
PREFIX = EditMethod("prefix", {"prefix": 10}, lambda sizes: [PrefixKeys(False, sizes["prefix"])])
BOTTLENECK = EditMethod(
    "bottleneck", {"bottleneck": 48}, lambda sizes: [BottleneckLayers(False, sizes["bottleneck"])]
)
