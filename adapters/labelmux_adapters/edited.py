"""Methods that change the pass: a list of parts, and a linear head on what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from labelmux_adapters.errors import shown
from labelmux_adapters.heads import head_shapes
from labelmux_adapters.parts import Dims, Part, Shapes

#: Sizes that every such method has: those of the encoder.
ENCODER_SIZES = ("layers", "hidden", "intermediate")
#: Width of a trained layer between the features and the head; only imported heads have one.
POOLER_SIZE = "pooler"

Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class EditMethod:
    """One method, declared."""

    name: str
    #: Its own sizes, and what its paper sets them to.
    defaults: Mapping[str, int]
    #: The parts of an adapter of these sizes; raises ValueError where they make none.
    parts: Callable[[Sizes], Sequence[Part]]
    #: Sizes that an adapter may lack, or have besides.
    optional: tuple[str, ...] = ()

    def read(self, sizes: Sizes) -> tuple[Dims, tuple[Part, ...]]:
        """The encoder's widths and the parts.

        Raises:
            ValueError: a size is unknown, missing or impossible; the message names it.
        """
        own = {*self.defaults, *self.optional}
        needed = {*ENCODER_SIZES, *own} - {*self.optional}
        named = f"{self.name} has {', '.join(sorted({*ENCODER_SIZES, *own}))}"
        for name in sorted(needed - set(sizes)):
            raise ValueError(f"size {name!r} is missing; {named}")
        for name in sorted(set(sizes) - {*needed, *own, POOLER_SIZE}):
            raise ValueError(f"size {shown(name)} is unknown; {named}")
        if sizes.get(POOLER_SIZE, sizes["hidden"]) != sizes["hidden"]:
            raise ValueError(f"size 'pooler' is {sizes['pooler']}; give that of 'hidden'")
        dims = Dims(*(sizes[name] for name in ENCODER_SIZES))
        return dims, tuple(self.parts(sizes))

    def shapes(self, sizes: Sizes, labels: int) -> Shapes:
        """Name and shape of each tensor of an adapter.

        Raises:
            ValueError: as ``read``.
        """
        dims, parts = self.read(sizes)
        found: Shapes = {}
        for part in parts:
            found |= part.shapes(dims)
        return found | head_shapes(dims.hidden, labels, pooler=POOLER_SIZE in sizes)

    def edit_values(self, sizes: Sizes) -> int:
        """Values in the edits of an adapter, the head not counted: what the papers state."""
        dims, parts = self.read(sizes)
        return sum(math.prod(shape) for part in parts for shape in part.shapes(dims).values())
