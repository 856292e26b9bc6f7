"""PASTA: vectors added to the special tokens before every layer (Yang et al. 2023, section 3)."""

from __future__ import annotations

from labelmux_adapters.edited import EditMethod
from labelmux_adapters.parts import SpecialTokens

#: ``slots``: 2 where the task reads one text, 3 where it reads two.
PASTA = EditMethod("pasta", {"slots": 2}, lambda sizes: [SpecialTokens(False, sizes["slots"])])
