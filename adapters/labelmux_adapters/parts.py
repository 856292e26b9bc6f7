"""What methods are made of: an edit of the pass, as tensors of an adapter file.

A method that changes the pass is a list of parts. A part says which tensors an adapter has for it,
what they start from in training, and how they become the edit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from labelmux_encoder.edits import (
    Bottleneck,
    Edit,
    Gate,
    LinearSite,
    LowRank,
    Prefix,
    Scale,
    Shift,
    Site,
    SpecialTokenShift,
)

Shapes = dict[str, tuple[int, ...]]
Tensors = Mapping[str, Tensor]

#: Deviation of what starts at random, as in the published code of PASTA and UniPELT.
_START_DEVIATION = 0.02


class Dims(NamedTuple):
    """The widths of an encoder that shapes depend on."""

    layers: int
    hidden: int
    #: Of the feed-forward block.
    inner: int

    def width(self, site: str) -> int:
        """Values of a token at a site."""
        return self.inner if site in ("ffn_in", "inner") else self.hidden


@dataclass(frozen=True, slots=True)
class Part(ABC):
    """One edit of a method."""

    #: Whether a gate scales it.
    gated: bool

    @property
    @abstractmethod
    def name(self) -> str:
        """What its tensors' names begin with."""

    @abstractmethod
    def own_shapes(self, dims: Dims) -> Shapes:
        """Shape of each tensor but the gate's, by the rest of its name. Each [L, …]"""

    @abstractmethod
    def edit(self, own: Tensors, gate: Gate | None) -> Edit:
        """The edit of stacked tensors. Each [S, L, …]"""

    def start_values(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """What a tensor starts from in training."""
        return torch.zeros(shape) if "bias" in name else torch.randn(shape) * _START_DEVIATION

    def shapes(self, dims: Dims) -> Shapes:
        """Name and shape of each tensor. Each [L, …]"""
        shapes = {f"{self.name}.{name}": shape for name, shape in self.own_shapes(dims).items()}
        if self.gated:
            shapes[f"{self.name}.gate_weight"] = (dims.layers, dims.hidden)
            shapes[f"{self.name}.gate_bias"] = (dims.layers,)
        return shapes

    def start(self, dims: Dims) -> dict[str, Tensor]:
        """What the tensors start from in training, by name."""
        return {
            name: self.start_values(name.removeprefix(f"{self.name}."), shape)
            for name, shape in self.shapes(dims).items()
        }

    def place(self, tensors: Tensors) -> Edit:
        """The edit of an adapter's tensors, stacked alone. Differentiable in them."""
        prefix = f"{self.name}."
        own = {
            name.removeprefix(prefix): tensor.unsqueeze(0)
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        gate = Gate(own.pop("gate_weight"), own.pop("gate_bias")) if self.gated else None
        return self.edit(own, gate)


@dataclass(frozen=True, slots=True)
class SpecialTokens(Part):
    """Vectors added to special tokens."""

    slots: int

    @property
    def name(self) -> str:
        return "special_tokens"

    def own_shapes(self, dims: Dims) -> Shapes:
        return {"vectors": (dims.layers, self.slots, dims.hidden)}

    def edit(self, own: Tensors, gate: Gate | None) -> Edit:
        return SpecialTokenShift(own["vectors"], gate)


@dataclass(frozen=True, slots=True)
class LowRankMap(Part):
    """A low-rank map beside a linear map."""

    site: LinearSite
    rank: int

    @property
    def name(self) -> str:
        return f"lora_{self.site}"

    def own_shapes(self, dims: Dims) -> Shapes:
        read = dims.inner if self.site == "ffn_out" else dims.hidden
        return {
            "down": (dims.layers, self.rank, read),
            "up": (dims.layers, dims.width(self.site), self.rank),
        }

    def start_values(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name == "up":
            return torch.zeros(shape)
        if name == "down":  # Kaiming's uniform with a = sqrt(5), per layer
            return (2 * torch.rand(shape) - 1) / math.sqrt(shape[-1])
        return Part.start_values(self, name, shape)

    def edit(self, own: Tensors, gate: Gate | None) -> Edit:
        return LowRank(self.site, own["down"], own["up"], gate)


@dataclass(frozen=True, slots=True)
class PrefixKeys(Part):
    """Keys and values ahead of every row's own."""

    length: int

    @property
    def name(self) -> str:
        return "prefix"

    def own_shapes(self, dims: Dims) -> Shapes:
        shape = (dims.layers, self.length, dims.hidden)
        return {"keys": shape, "values": shape}

    def edit(self, own: Tensors, gate: Gate | None) -> Edit:
        return Prefix(own["keys"], own["values"], gate)


@dataclass(frozen=True, slots=True)
class BottleneckLayers(Part):
    """A narrow network behind each feed-forward block."""

    width: int

    @property
    def name(self) -> str:
        return "bottleneck"

    def own_shapes(self, dims: Dims) -> Shapes:
        return {
            "down": (dims.layers, self.width, dims.hidden),
            "down_bias": (dims.layers, self.width),
            "up": (dims.layers, dims.hidden, self.width),
            "up_bias": (dims.layers, dims.hidden),
        }

    def edit(self, own: Tensors, gate: Gate | None) -> Edit:
        return Bottleneck(own["down"], own["down_bias"], own["up"], own["up_bias"], gate)


@dataclass(frozen=True, slots=True)
class BiasShift(Part):
    """Added at a site."""

    site: Site

    @property
    def name(self) -> str:
        return f"shift_{self.site}"

    def own_shapes(self, dims: Dims) -> Shapes:
        return {"vectors": (dims.layers, dims.width(self.site))}

    def start_values(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape) if name == "vectors" else Part.start_values(self, name, shape)

    def edit(self, own: Tensors, gate: Gate | None) -> Edit:
        return Shift(self.site, own["vectors"], gate)


@dataclass(frozen=True, slots=True)
class Rescaling(Part):
    """Multiplies at a site."""

    site: Site

    @property
    def name(self) -> str:
        return f"scale_{self.site}"

    def own_shapes(self, dims: Dims) -> Shapes:
        return {"factors": (dims.layers, dims.width(self.site))}

    def start_values(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.ones(shape) if name == "factors" else Part.start_values(self, name, shape)

    def edit(self, own: Tensors, gate: Gate | None) -> Edit:
        return Scale(self.site, own["factors"], gate)
