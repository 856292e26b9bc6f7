"""The methods by name, and the tensors that each one's sizes imply."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from labelmux_adapters import ytuning
from labelmux_adapters.bitfit import BITFIT
from labelmux_adapters.edited import EditMethod
from labelmux_adapters.errors import ManifestError
from labelmux_adapters.ia3 import IA3
from labelmux_adapters.kinds import TaskKind
from labelmux_adapters.linear import LINEAR
from labelmux_adapters.lora import LORA
from labelmux_adapters.pasta import PASTA
from labelmux_adapters.unipelt import BOTTLENECK, PREFIX, UNIPELT

#: Bytes of one value, by safetensors' name of the dtypes that an adapter may be stored in.
DTYPE_BYTES = {"F32": 4, "F16": 2}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What an adapter file must hold under one tensor's name."""

    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        """How many numbers the tensor has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Method:
    """What the adapter file needs to know of a method."""

    name: str
    #: Shapes by tensor name, from the manifest's sizes, the number of labels and the kind of task.
    #: Raises ValueError for sizes that the method cannot have. Its cost must not depend on the
    #: sizes' values.
    shapes: Callable[[Mapping[str, int], int, TaskKind], Mapping[str, tuple[int, ...]]]
    #: Its declaration, if a linear head reads what it makes of the pass.
    edited: EditMethod | None = None

    def expected_tensors(
        self, sizes: Mapping[str, int], labels: int, kind: TaskKind = "single_label"
    ) -> dict[str, TensorSpec]:
        """The tensors that an adapter with these sizes and ``labels`` labels has, by name.

        Raises:
            ManifestError: the sizes are not ones that the method can have.
        """
        try:
            shapes = self.shapes(sizes, labels, kind)
        except ValueError as exc:
            raise ManifestError("sizes", dict(sizes), str(exc)) from exc
        return {name: TensorSpec(shape) for name, shape in shapes.items()}


def _ytuning_shapes(
    sizes: Mapping[str, int], labels: int, kind: TaskKind
) -> Mapping[str, tuple[int, ...]]:
    read = ytuning.YTuningSizes.from_mapping(sizes)
    return ytuning.expected_tensors(read, labels, tokens=kind == "token")


def edited(method: EditMethod) -> Method:
    """The method of a declaration."""
    return Method(method.name, lambda sizes, labels, _: method.shapes(sizes, labels), method)


METHODS: dict[str, Method] = {"ytuning": Method("ytuning", _ytuning_shapes)} | {
    method.name: edited(method)
    for method in (PASTA, UNIPELT, LORA, PREFIX, BOTTLENECK, BITFIT, IA3, LINEAR)
}
