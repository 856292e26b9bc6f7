"""Edits as the CPU kernels read them: right operands of products laid out once, ranks padded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from labelmux_encoder.batch import PackedRows
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.edits import (
    POSITION_SITES,
    Bottleneck,
    Edit,
    LowRank,
    Placed,
    Prefix,
    Scale,
    Shift,
    SpecialTokenShift,
    tensors_of,
    with_tensors,
)
from labelmux_encoder.kernels import interleave

#: Inner dimensions of products are multiples of it.
_TILE = 16
#: In the order of ``Kind`` in ``kernels/edits.h``, each with its tensors.
_KINDS: Mapping[type[Edit], tuple[str, ...]] = {
    SpecialTokenShift: ("vectors",),
    LowRank: ("down", "up"),
    Prefix: ("keys", "values"),
    Bottleneck: ("down", "down_bias", "up", "up_bias"),
    Shift: ("vectors",),
    Scale: ("factors",),
}
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}
#: In the order of ``Site`` there; the first stands for none.
_SITES = (
    *("", *POSITION_SITES, "query", "key", "value", "context", "attention_out", "attention_norm"),
    *("ffn_in", "inner", "ffn_out", "ffn_norm"),
)
#: Those into which the pass folds the scale of queries.
_SCALED_SITES = ("query", "position_query")
_OWN_TENSORS = 4


def lay_out(config: EncoderConfig, edit: Edit, dtype: torch.dtype) -> Edit:
    """The same edit, its tensors as the kernels read them.

    The scale of queries is folded in. Factors of products are of ``dtype``, all else is float32.
    """
    operands = _operands(config, dtype).get(type(edit), {})
    scale = config.query_scale if getattr(edit, "site", "") in _SCALED_SITES else 1.0
    scaled = {LowRank: "up", Shift: "vectors"}.get(type(edit))

    def laid(name: str, tensor: Tensor) -> Tensor:
        tensor = tensor.detach().float() * (scale if name == scaled else 1.0)
        return operands[name](tensor).contiguous() if name in operands else tensor.contiguous()

    if isinstance(edit, Prefix):
        edit = replace(edit, length=edit.keys.shape[2])
    return with_tensors(edit, laid)


def _operands(
    config: EncoderConfig, dtype: torch.dtype
) -> Mapping[type[Edit], Mapping[str, Callable[[Tensor], Tensor]]]:
    """How the right operands of products are laid out."""

    def heads(x: Tensor) -> Tensor:  # [S, L, P, H] -> [S, L, heads, P, D]
        parts: Tensor = x.unflatten(-1, (config.num_heads, -1))
        return parts.transpose(-3, -2)

    def operand(x: Tensor) -> Tensor:  # [.., in, out]
        return interleave(x.to(dtype))

    def narrow_out(x: Tensor) -> Tensor:  # [.., R, in] -> [.., in, padded R]
        return operand(_pad(x, -2).transpose(-1, -2))

    def narrow_in(x: Tensor) -> Tensor:  # [.., out, R] -> [.., padded R, out]
        return operand(_pad(x, -1).transpose(-1, -2))

    return {
        LowRank: {"down": narrow_out, "up": narrow_in},
        Bottleneck: {"down": narrow_out, "down_bias": lambda x: _pad(x, -1), "up": narrow_in},
        Prefix: {
            "keys": lambda x: operand(_pad(heads(x), -2).transpose(-1, -2)),  # [.., D, padded P]
            "values": lambda x: operand(_pad(heads(x), -2)),  # [.., heads, padded P, D]
        },
    }


def _pad(x: Tensor, dim: int) -> Tensor:
    """Zeros up to a multiple of the tile."""
    return functional.pad(x, (0, 0) * (-dim - 1) + (0, -x.shape[dim] % _TILE))


class KernelEdits(NamedTuple):
    """The edits of a batch as arguments of the operator, in its order."""

    kinds: list[int]
    sites: list[int]
    #: Of each edit: how many keys a prefix has, padding not counted; 0 for the others.
    lengths: list[int]
    #: Of each edit: four of its own, then its gate's weight and bias; empty for none.
    tensors: list[Tensor]
    #: Of each edit and row: which of the stack; -1: none.
    entries: list[int]
    #: Places of special tokens in their rows, row after row.
    special: list[int]
    #: Where each row's begin in ``special``, and the end.
    special_starts: list[int]

    @classmethod
    def of(cls, edits: Sequence[Placed], rows: PackedRows) -> KernelEdits:
        """The edits, whose tensors are as ``lay_out`` gives them."""
        special = rows.special if edits and rows.special else ((),) * len(rows.lengths)
        return cls(
            [_NUMBERS[type(edit)] for edit, _ in edits],
            [_SITES.index(getattr(edit, "site", "")) for edit, _ in edits],
            [getattr(edit, "length", 0) for edit, _ in edits],
            list(chain.from_iterable(_tensors(edit) for edit, _ in edits)),
            list(chain.from_iterable(entries for _, entries in edits)),
            list(chain.from_iterable(special)),
            list(accumulate(map(len, special), initial=0)),
        )


def _tensors(edit: Edit) -> list[Tensor]:
    found, nothing = tensors_of(edit), torch.empty(0)
    own = [found[name] for name in _KINDS[type(edit)]]
    own += [nothing] * (_OWN_TENSORS - len(own))
    return [*own, found.get("gate.weight", nothing), found.get("gate.bias", nothing)]
