"""Token tasks of Y-Tuning, stacked: logits of every token of a batch, without a loop over tasks.

What the labels come to does not depend on the text, so an adapter keeps it as one matrix. The rows
that are laid out by adapter are tokens here, not texts: nothing is padded to the longest text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from labelmux_adapters.layout import Index, Layout, lay_out
from labelmux_adapters.slots import Constants
from labelmux_adapters.stack import Stack
from labelmux_adapters.texts import TextBatch
from labelmux_adapters.ytuning import TokenYTuning, YTuningSizes
from labelmux_adapters.ytuning_stack import mix_states

#: Values of the largest intermediate of one chunk: it shall stay in the caches.
_CHUNK_VALUES = 1 << 20

_FACTORS = frozenset(("pooled", "ffn_in", "ffn_in_bias", "ffn_out"))


@dataclass(frozen=True, slots=True)
class TokenShape:
    """What adapters of one stack share."""

    sizes: YTuningSizes
    label_capacity: int

    def constants(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of what ``token_constants_of`` gives."""
        sizes = self.sizes
        hidden, width, labels = sizes.hidden, sizes.width, self.label_capacity
        return {
            "mix": (sizes.states,),
            "pooled": (hidden, width),
            "task": (1, width),
            "ffn_in": (width, sizes.ffn),
            "ffn_in_bias": (1, sizes.ffn),
            "ffn_out": (sizes.ffn, width),
            "cross_scale": (1, width),
            "cross_shift": (1, width),
            "labels": (width, labels),
            "label_bias": (1, labels),
        }

    def factors(self) -> frozenset[str]:
        """Those that enter large products, and may be kept in fewer bits."""
        return _FACTORS

    def values(self) -> int:
        """Numbers in the constants of one adapter."""
        return sum(math.prod(shape) for shape in self.constants().values())


@torch.no_grad()
def token_constants_of(module: TokenYTuning, shape: TokenShape) -> dict[str, Tensor]:
    """The constants, labels padded with zeros to the capacity."""
    task, labels = module.label_states().split((1, module.label_vectors.shape[0]))
    # A token's last norm scales and shifts it: that is done to the labels instead.
    final = module.block(labels) / math.sqrt(shape.sizes.width)  # [K, W]
    padded = torch.zeros(shape.sizes.width, shape.label_capacity)
    padded[:, : len(final)] = (final * module.ffn_norm.weight).T
    bias = torch.zeros(1, shape.label_capacity)
    bias[0, : len(final)] = final @ module.ffn_norm.bias
    scale, shift = module.cross_norm.weight, module.cross_norm.bias
    return {
        "mix": module.mix.softmax(0) * module.mix_scale,
        "pooled": module.pooled.weight.T,
        "task": task + module.pooled.bias,
        "ffn_in": (module.ffn_in.weight * scale).T,
        "ffn_in_bias": module.ffn_in(shift).unsqueeze(0),
        "ffn_out": module.ffn_out.weight.T,
        "cross_scale": scale.unsqueeze(0),
        "cross_shift": (shift + module.ffn_out.bias).unsqueeze(0),
        "labels": padded,
        "label_bias": bias,
    }


class TokenStack(Stack):
    """Resident adapters of one shape."""

    def __init__(self, shape: TokenShape, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(shape, device, dtype)
        self._shape = shape

    @torch.no_grad()
    def readout(self, batch: TextBatch, rows: Index, slots: Index) -> list[NDArray[np.float32]]:
        """Logits of each (text, slot), in their order. Each [T of that text, K of that slot]"""
        tokens, owners, ends = batch.tokens_of(rows)
        layout = lay_out(tokens, slots[owners])
        logits = self._grouped(batch.normalised, layout).flatten(0, 1).cpu().numpy()[layout.places]
        counts = self._label_counts[slots].tolist()
        own = np.split(logits, ends[:-1])
        return [row[:, :count] for row, count in zip(own, counts, strict=True)]

    def _grouped(self, states: Tensor, layout: Layout) -> Tensor:
        """Logits in the layout's order. [L+1, N, H] -> [G, R, C]"""
        groups, tokens = layout.texts.shape
        shared = _pick(states, layout.texts[0]) if layout.is_shared else None
        largest = max(self._shape.sizes.states * states.shape[2], self._shape.sizes.ffn)
        chunk = max(1, _CHUNK_VALUES // (tokens * largest))
        found = []
        for start in range(0, groups, chunk):
            part = slice(start, start + chunk)
            picked = _pick(states, layout.texts[part].ravel()) if shared is None else shared
            found.append(self._logits(self._take(layout.slots[part]), picked, tokens))
        return torch.cat(found) if len(found) > 1 else found[0]

    def _logits(self, slot: Constants, states: Tensor, tokens: int) -> Tensor:
        """[G, R, C], from R tokens that all groups share, or from R tokens for each group."""
        width = (self._shape.sizes.width,)
        mixed = mix_states(slot["mix"], states, tokens).to(self._dtype)  # [G, R, H]
        # Sums, norms and what is added up stay in float32: they cost little and lose most.
        vectors = slot["task"] + torch.bmm(mixed, slot["pooled"])  # [G, R, W]
        normal = functional.layer_norm(vectors, width)
        inner = torch.baddbmm(slot["ffn_in_bias"], normal.to(self._dtype), slot["ffn_in"])
        vectors = torch.addcmul(slot["cross_shift"], normal, slot["cross_scale"])
        vectors += torch.bmm(functional.gelu(inner), slot["ffn_out"])
        final = functional.layer_norm(vectors, width)
        return torch.baddbmm(slot["label_bias"], final, slot["labels"])


def _pick(states: Tensor, index: Index) -> Tensor:
    """These tokens, in this order. The same tensor where that is all of them as they lie."""
    if len(index) == states.shape[1] and (index == np.arange(len(index))).all():
        return states
    return states.index_select(1, torch.from_numpy(index).to(states.device))
