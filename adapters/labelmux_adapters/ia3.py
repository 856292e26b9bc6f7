"""(IA)3: keys, values and inner activations rescaled (Liu et al. 2022, section 3.3).

A size of 1 for each site that is rescaled.
"""

from __future__ import annotations

from collections.abc import Sequence

from labelmux_adapters.edited import EditMethod, Sizes
from labelmux_adapters.parts import Rescaling
from labelmux_encoder.edits import Site

SITES: tuple[Site, ...] = (
    *("query", "key", "value", "context", "attention_out"),
    *("ffn_in", "inner", "ffn_out", "position_query", "position_key"),
)


def _parts(sizes: Sizes) -> Sequence[Rescaling]:
    for site in SITES:
        if sizes.get(site, 1) != 1:
            raise ValueError(f"size {site!r} is {sizes[site]}; give 1, or leave it out")
    parts = [Rescaling(False, site) for site in SITES if site in sizes]
    if not parts:
        raise ValueError(f"nothing is rescaled; give one of {', '.join(SITES)}")
    return parts


IA3 = EditMethod("ia3", {"key": 1, "value": 1, "inner": 1}, _parts, optional=SITES)
