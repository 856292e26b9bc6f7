"""Y-Tuning adapters of one shape, stacked: the readout of a whole batch without a loop over tasks.

``ytuning_constants`` says what is computed once per adapter. The rows of a batch are laid out by
adapter; where every adapter reads the same texts, as in one text for many tasks and many texts for
one, nothing of a text is copied per task.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from labelmux_adapters.layout import Index, Layout, lay_out
from labelmux_adapters.slots import Constants
from labelmux_adapters.stack import Stack
from labelmux_adapters.texts import TextBatch, Texts
from labelmux_adapters.ytuning_constants import StackShape

#: Values of the largest intermediate of one chunk: it shall stay in the caches.
_CHUNK_VALUES = 1 << 20


class YTuningStack(Stack):
    """Resident adapters of one shape, read by torch's batched products over padded texts."""

    def __init__(self, shape: StackShape, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(shape, device, dtype)
        self._shape = shape

    @torch.no_grad()
    def readout(self, batch: TextBatch, rows: Index, slots: Index) -> list[NDArray[np.float32]]:
        """Logits of each (text, slot), in their order. Each [K of that slot]"""
        layout = lay_out(rows, slots)
        flat = self._grouped(batch.padded, layout).flatten(0, 1).cpu().numpy()[layout.places]
        counts = self._label_counts[slots].tolist()
        return [row[:count] for row, count in zip(flat, counts, strict=True)]

    def _grouped(self, texts: Texts, layout: Layout) -> Tensor:
        """Logits in the layout's order. [G, R, C - 1]"""
        groups, rows = layout.texts.shape
        shared = texts.pick(layout.texts[0]) if layout.is_shared else None
        chunk = max(1, _CHUNK_VALUES // self._largest(rows, texts, shared is not None))
        found = []
        for start in range(0, groups, chunk):
            part = slice(start, start + chunk)
            picked = shared or texts.pick(layout.texts[part].ravel())
            found.append(self._logits(self._take(layout.slots[part]), picked, rows))
        return torch.cat(found) if len(found) > 1 else found[0]

    def _largest(self, rows: int, texts: Texts, shared: bool) -> int:
        """Values of one group's largest intermediate."""
        layers, _, tokens, hidden = texts.states.shape
        of_texts = rows * tokens * hidden * (1 if shared else layers)
        return max(of_texts, rows * self._shape.vectors * self._shape.sizes.ffn)

    def _logits(self, slot: Constants, texts: Texts, rows: int) -> Tensor:
        """[G, R, C - 1], from R texts that all groups share, or from R texts for each group."""
        vectors, width = self._shape.vectors, self._shape.sizes.width
        mixed = mix_states(slot["mix"], texts.states, rows).to(self._dtype)  # [G, R, T, H]
        pooled = mix_states(slot["mix"], texts.means, rows).to(self._dtype)  # [G, R, H]
        bias = (
            None
            if texts.bias is None
            else texts.bias.view(-1, rows, texts.bias.shape[1]).to(self._dtype)
        )
        read = self._attend_features if self._shape.absorbs_keys else self._attend_keys
        attended = read(slot, mixed, bias)  # [G, R * C, W]
        # Sums, norms and what is added up stay in float32: they cost little and lose most.
        read_out = torch.bmm(attended, slot["out"]).view(-1, rows, vectors, width)
        states = slot["labels"].unsqueeze(1) + read_out
        states[:, :, 0] += torch.bmm(pooled, slot["pooled"])
        normal = functional.layer_norm(states, (width,)).flatten(1, 2)
        inner = torch.baddbmm(slot["ffn_in_bias"], normal.to(self._dtype), slot["ffn_in"])
        states = torch.addcmul(slot["cross_shift"], normal, slot["cross_scale"])
        states += torch.bmm(functional.gelu(inner), slot["ffn_out"])
        return _scores(slot, states.view(-1, rows, vectors, width))

    def _attend_features(self, slot: Constants, mixed: Tensor, bias: Tensor | None) -> Tensor:
        """What each vector of a row reads from its text, by absorbed queries. [G, R * C, W]"""
        groups, rows, tokens, _ = mixed.shape
        heads, vectors = self._shape.sizes.heads, self._shape.vectors
        logits = torch.bmm(slot["queries"], mixed.flatten(1, 2).transpose(1, 2))
        logits = logits.view(groups, -1, rows, tokens)  # [G, heads * C, R, T]
        if bias is not None:
            logits += bias.unsqueeze(1)
        weights = logits.softmax(-1).transpose(1, 2).flatten(0, 1)
        context = torch.bmm(weights, mixed.flatten(0, 1))  # [G * R, heads * C, H]
        by_head = context.view(groups, rows, heads, vectors, -1).transpose(1, 2)
        by_head = by_head.reshape(groups * heads, rows * vectors, -1)
        values: Tensor = torch.bmm(by_head, slot["values"].flatten(0, 1))
        by_row = values.view(groups, heads, rows * vectors, -1).transpose(1, 2)
        return by_row.reshape(groups, rows * vectors, -1)

    def _attend_keys(self, slot: Constants, mixed: Tensor, bias: Tensor | None) -> Tensor:
        """The same, by keys and values formed of the text."""
        groups, rows, tokens, _ = mixed.shape
        heads = self._shape.sizes.heads
        formed = torch.bmm(mixed.flatten(1, 2), slot["keys_values"])  # [G, R * T, 2W]
        key, value = (
            formed.view(groups * rows, tokens, 2, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )
        query = slot["queries"].unsqueeze(1).expand(-1, rows, -1, -1, -1).flatten(0, 1)
        if bias is not None:
            bias = bias.expand(groups, -1, -1).reshape(groups * rows, 1, 1, tokens)
        read = functional.scaled_dot_product_attention(query, key, value, bias, scale=1.0)
        return read.transpose(1, 2).reshape(groups, rows * self._shape.vectors, -1)


def mix_states(mix: Tensor, of: Tensor, rows: int) -> Tensor:
    """Each group's mix over layers of its R texts. [G, L+1], [L+1, R or G * R, …] -> [G, R, …]"""
    if of.shape[1] == rows:
        return (mix @ of.flatten(1)).view(len(mix), *of.shape[1:])
    own = of.flatten(2).unflatten(1, (len(mix), rows)).flatten(2).transpose(0, 1)
    return torch.bmm(mix.unsqueeze(1), own).view(len(mix), rows, *of.shape[2:])


def _scores(slot: Constants, states: Tensor) -> Tensor:
    """Dot products of the task's vector with each label's. [G, R, C, W] -> [G, R, C - 1]"""
    width = states.shape[-1]
    normal = functional.layer_norm(states, (width,))
    scale, shift = slot["final_scale"], slot["final_shift"]
    task = torch.addcmul(shift, normal[:, :, 0], scale) / math.sqrt(width)  # [G, R, W]
    scores = torch.matmul(normal, (task * scale).unsqueeze(-1)).squeeze(-1)[:, :, 1:]
    constant: Tensor = (task * shift).sum(-1, keepdim=True)
    return scores + constant
