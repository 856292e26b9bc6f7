"""(IA)3: keys, values and inner activations rescaled (Liu et al. 2022, section 3.3)."""

from __future__ import annotations

from labelmux_adapters.edited import EditMethod
from labelmux_adapters.parts import Rescaling
from labelmux_encoder.edits import Site

_SITES: tuple[Site, ...] = ("key", "value", "inner")

IA3 = EditMethod("ia3", {}, lambda _: [Rescaling(False, site) for site in _SITES])
