"""What an adapter may change inside the pass: six primitives, each per layer and optionally gated.

Every primitive holds the tensors of S adapters, stacked; a ``Placed`` edit says which of them each
row of a batch carries. Rows that carry none keep every bit. All of it is differentiable, so that
training and serving share this one form; the CPU kernels are held to it.

Sources of the primitives: ``SpecialTokenShift`` PASTA (Yang et al. 2023, section 3), ``LowRank``
LoRA (Hu et al. 2022, section 4), ``Prefix`` (Li and Liang 2021, section 4), ``Bottleneck``
(Pfeiffer et al. 2021, figure 3), ``Shift`` BitFit (Ben Zaken et al. 2022), ``Scale`` (IA)3 (Liu et
al. 2022, section 3.3), and their gates UniPELT (Mao et al. 2022, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

from torch import Tensor

#: What a layer computes, in its order; H wide, but for ``ffn_in`` and ``inner``.
Site = Literal[
    "position_query",  # DeBERTa's table for the p2c term, an entry per distance
    "position_key",  # that for the c2p term
    "query",
    "key",
    "value",
    "context",  # what attention gives, before its output projection
    "attention_out",
    "attention_norm",
    "ffn_in",
    "inner",  # ffn_in after the activation
    "ffn_out",
    "ffn_norm",
]
#: The sites that are linear maps.
LinearSite = Literal[
    "position_query", "position_key", "query", "key", "value", "attention_out", "ffn_in", "ffn_out"
]
#: The tables' sites: a row that carries an edit there attends with tables of its own.
POSITION_SITES: tuple[LinearSite, ...] = ("position_query", "position_key")


@dataclass(frozen=True, slots=True)
class Gate:
    """A factor per row and layer: the mean over real tokens of ``sigmoid(weight . x + bias)``.

    The published code averages over padding too; a masked mean keeps a row's answer its own.
    """

    weight: Tensor  # [S, L, H]
    bias: Tensor  # [S, L]


@dataclass(frozen=True, slots=True)
class SpecialTokenShift:
    """Added to a layer's input at a row's special tokens, by their order in the row."""

    vectors: Tensor  # [S, L, slots, H]
    gate: Gate | None = None
    #: Share of the added values that a training step leaves out; 0 where a row is served.
    dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class LowRank:
    """``up @ down @ x``, added to a linear map's output.

    At query and key it acts on content alone: the position tables are sites of their own.
    """

    site: LinearSite
    down: Tensor  # [S, L, R, in]
    up: Tensor  # [S, L, out, R]
    gate: Gate | None = None


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values that every token of a row attends to; they have no position.

    Its gate scales both.
    """

    keys: Tensor  # [S, L, P, H]
    values: Tensor  # [S, L, P, H]
    gate: Gate | None = None
    #: P, where a layout pads it.
    length: int = 0


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """A narrow relu network behind the feed-forward block, ahead of its residual and norm.

    It reads ``x = norm(ffn_out + attended)`` by the block's own frozen norm; so does its gate.
    """

    down: Tensor  # [S, L, M, H]
    down_bias: Tensor  # [S, L, M]
    up: Tensor  # [S, L, H, M]
    up_bias: Tensor  # [S, L, H]
    gate: Gate | None = None


@dataclass(frozen=True, slots=True)
class Shift:
    """Added to every token at a site."""

    site: Site
    vectors: Tensor  # [S, L, width of the site]
    gate: Gate | None = None


@dataclass(frozen=True, slots=True)
class Scale:
    """Multiplies every token at a site; a gate g leaves ``1 + g * (factor - 1)`` of it."""

    site: Site
    factors: Tensor  # [S, L, width of the site]
    gate: Gate | None = None


Edit = SpecialTokenShift | LowRank | Prefix | Bottleneck | Shift | Scale


def tensors_of(edit: Edit) -> dict[str, Tensor]:
    """An edit's tensors by field, its gate's as ``gate.weight``, ``gate.bias``. Each [S, L, …]"""
    found = {
        field.name: value
        for field in fields(edit)
        if isinstance(value := getattr(edit, field.name), Tensor)
    }
    if edit.gate is not None:
        found |= {"gate.weight": edit.gate.weight, "gate.bias": edit.gate.bias}
    return found


def with_tensors(edit: Edit, change: Callable[[str, Tensor], Tensor]) -> Edit:
    """The same edit with every tensor of ``tensors_of`` changed."""
    changed: dict[str, Any] = {name: change(name, of) for name, of in tensors_of(edit).items()}
    if edit.gate is not None:
        changed["gate"] = Gate(changed.pop("gate.weight"), changed.pop("gate.bias"))
    return replace(edit, **changed)


class Placed(NamedTuple):
    """An edit on a batch."""

    edit: Edit
    #: Which of the stack each row carries; -1: none. [B]
    entries: tuple[int, ...]
