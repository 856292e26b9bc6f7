"""Y-Tuning adapters of one shape, stacked: the readout of a whole batch without a loop over tasks.

What does not depend on the text is computed when an adapter is added: the label self-attention,
and per head the queries with the key projection absorbed, so that keys of the text are never
formed: ``q_c.(W_k x_n) = (W_k^T q_c).x_n``. Rows are laid out by adapter in groups of equal size,
so that an adapter's matrices are read once for all its rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from labelmux_adapters.ytuning import YTuning, YTuningSizes, from_tensors

_FIRST_CAPACITY = 8


class YTuningStack:
    """Resident adapters that share ``sizes`` and have at most ``label_capacity`` labels.

    ``add`` and ``remove`` must not run at the same time as each other; either may run while another
    thread is in ``readout``, since a slot is written before any row can name it.
    """

    def __init__(self, sizes: YTuningSizes, label_capacity: int, device: torch.device) -> None:
        self._sizes = sizes
        self._label_capacity = label_capacity
        self._device = device
        self._tensors: dict[str, Tensor] = {}
        self._label_counts: list[int] = []
        self._free: list[int] = []

    @torch.no_grad()
    def add(self, labels: int, tensors: Mapping[str, Tensor]) -> int:
        """Make an adapter resident and return its slot."""
        constants = self._constants(from_tensors(self._sizes, labels, tensors))
        if not self._free:
            self._grow(constants)
        slot = self._free.pop()
        for name, value in constants.items():
            self._tensors[name][slot] = value
        self._label_counts[slot] = labels
        return slot

    def remove(self, slot: int) -> None:
        """Free a slot; no row may name it any more."""
        self._free.append(slot)

    @torch.no_grad()
    def readout(
        self, normalised: Tensor, mask: Tensor, texts: Sequence[int], slots: Sequence[int]
    ) -> list[Tensor]:
        """Logits of each (text, slot), in their order. Each [K of that slot]

        Args:
            normalised: ``normalise_states`` of the features. [L+1, B, T, H]
            mask: [B, T]
            texts: index into B, per row.
            slots: the adapter, per row.
        """
        groups = _Groups.of(slots, self._device)
        resident = {name: tensor[groups.slot] for name, tensor in self._tensors.items()}  # [G, …]
        text = torch.tensor(texts, device=self._device)[groups.row]  # [G, R]
        logits = self._logits(resident, normalised[:, text], mask[text])
        flat = logits.flatten(0, 1)[groups.place].cpu()
        counts = [self._label_counts[slot] for slot in slots]
        return [flat[row, :count] for row, count in enumerate(counts)]

    def _logits(self, slot: Mapping[str, Tensor], features: Tensor, mask: Tensor) -> Tensor:
        """[G, …], [L+1, G, R, T, H], [G, R, T] -> [G, R, C]"""
        mixed = torch.einsum("gl,lgrth->grth", slot["mix"], features)
        weights = mask.unsqueeze(-1).to(mixed.dtype)
        pooled = (mixed * weights).sum(2) / weights.sum(2)  # [G, R, H]
        bias = torch.zeros_like(weights).masked_fill(weights == 0, float("-inf")).squeeze(-1)
        # [G, R, heads * (C+1), T]
        attention = torch.einsum("gqh,grth->grqt", slot["queries"], mixed) + bias.unsqueeze(2)
        context = attention.softmax(-1) @ mixed  # [G, R, heads * (C+1), H]
        context = context.unflatten(2, (self._sizes.heads, -1))
        value = torch.einsum("grnch,gndh->grcnd", context, slot["value_weight"]).flatten(-2)
        attended = _affine(value, slot["out_weight"], slot["out_bias"])  # [G, R, C+1, W]
        states = slot["labels"].unsqueeze(1) + attended
        states[:, :, 0] += torch.einsum("grh,gwh->grw", pooled, slot["pooled_weight"])
        states[:, :, 0] += slot["pooled_bias"].unsqueeze(1)
        states = _normalise(states, slot["cross_norm_weight"], slot["cross_norm_bias"])
        inner = functional.gelu(_affine(states, slot["ffn_in_weight"], slot["ffn_in_bias"]))
        states = states + _affine(inner, slot["ffn_out_weight"], slot["ffn_out_bias"])
        states = _normalise(states, slot["ffn_norm_weight"], slot["ffn_norm_bias"])
        scores = (states[:, :, 1:] @ states[:, :, 0].unsqueeze(-1)).squeeze(-1)
        return scores / math.sqrt(self._sizes.width)

    def _constants(self, module: YTuning) -> dict[str, Tensor]:
        """What the readout needs of one adapter; label rows padded with zeros to the capacity."""
        heads, hidden, width = self._sizes.heads, self._sizes.hidden, self._sizes.width
        depth = width // heads
        labels = module.label_states()  # [K+1, W]
        query = module.cross_query(labels).unflatten(-1, (heads, depth)) / math.sqrt(depth)
        key = module.cross_key.weight.unflatten(0, (heads, depth))  # [heads, D, H]
        queries = torch.einsum("cnd,ndh->nch", query, key)  # [heads, K+1, H]
        padded = torch.zeros(heads, self._label_capacity + 1, hidden)
        padded[:, : queries.shape[1]] = queries
        rows = torch.zeros(self._label_capacity + 1, width)
        rows[: labels.shape[0]] = labels
        # The value bias passes through the softmax unchanged, so it joins the output's.
        out_bias = module.cross_out(module.cross_value.bias)
        return {
            "mix": module.mix.softmax(0) * module.mix_scale,
            "queries": padded.flatten(0, 1),
            "value_weight": module.cross_value.weight.unflatten(0, (heads, depth)),
            "out_weight": module.cross_out.weight,
            "out_bias": out_bias,
            "labels": rows,
            "pooled_weight": module.pooled.weight,
            "pooled_bias": module.pooled.bias,
            "cross_norm_weight": module.cross_norm.weight,
            "cross_norm_bias": module.cross_norm.bias,
            "ffn_in_weight": module.ffn_in.weight,
            "ffn_in_bias": module.ffn_in.bias,
            "ffn_out_weight": module.ffn_out.weight,
            "ffn_out_bias": module.ffn_out.bias,
            "ffn_norm_weight": module.ffn_norm.weight,
            "ffn_norm_bias": module.ffn_norm.bias,
        }

    def _grow(self, example: Mapping[str, Tensor]) -> None:
        """Double the slots. Running readouts keep the tensors they took."""
        old = len(self._label_counts)
        new = max(_FIRST_CAPACITY, 2 * old)
        grown: dict[str, Tensor] = {}
        for name, value in example.items():
            grown[name] = torch.zeros(new, *value.shape, device=self._device)
            if old:
                grown[name][:old] = self._tensors[name]
        self._tensors = grown
        self._label_counts = self._label_counts + [0] * (new - old)
        self._free = list(range(new - 1, old - 1, -1))


class _Groups:
    """Rows laid out as G groups of R rows of one slot each; a short group repeats a row."""

    def __init__(self, slot: Tensor, row: Tensor, place: Tensor) -> None:
        self.slot = slot  # [G]
        self.row = row  # [G, R]
        #: Where each row lies in the flattened [G * R] layout.
        self.place = place  # [rows]

    @classmethod
    def of(cls, slots: Sequence[int], device: torch.device) -> _Groups:
        """Groups of near ``rows / distinct slots`` rows: at most half of the layout is filler."""
        rows = torch.tensor(slots)
        order = torch.argsort(rows, stable=True)
        distinct, counts = torch.unique_consecutive(rows[order], return_counts=True)
        size = max(1, math.ceil(len(slots) / len(distinct)))
        per_slot = (counts + size - 1) // size  # groups of each distinct slot
        starts = counts.cumsum(0) - counts
        first_group = per_slot.cumsum(0) - per_slot
        rank = torch.arange(len(slots)) - torch.repeat_interleave(starts, counts)
        place = torch.repeat_interleave(first_group, counts) * size + rank
        groups = int(per_slot.sum())
        layout = torch.repeat_interleave(order[starts], per_slot * size)
        layout[place] = order
        by_row = torch.empty_like(place)
        by_row[order] = place
        return cls(
            torch.repeat_interleave(distinct, per_slot).to(device),
            layout.view(groups, size).to(device),
            by_row.to(device),
        )


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[G, R, C, in], [G, out, in], [G, out] -> [G, R, C, out]"""
    flat = torch.baddbmm(bias.unsqueeze(1), x.flatten(1, 2), weight.transpose(1, 2))
    return flat.view(*x.shape[:3], -1)


def _normalise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:]) * weight[:, None, None] + bias[:, None, None]
