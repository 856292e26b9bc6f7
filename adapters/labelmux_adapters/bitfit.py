"""BitFit: every bias of every layer (Ben Zaken et al. 2022), as what is added to the frozen one.

Biases of the embeddings stay as they are, and those of the query and key projections act on content
alone: the position tables stay constant.
"""

from __future__ import annotations

from labelmux_adapters.edited import EditMethod
from labelmux_adapters.parts import BiasShift
from labelmux_encoder.edits import Site

_SITES: tuple[Site, ...] = (
    *("query", "key", "value", "attention_out", "attention_norm"),
    *("ffn_in", "ffn_out", "ffn_norm"),
)

BITFIT = EditMethod("bitfit", {}, lambda _: [BiasShift(False, site) for site in _SITES])
