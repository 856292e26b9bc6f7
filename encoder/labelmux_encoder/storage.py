"""Int8 storage of an encoder: each matrix row is 8-bit integers and one scale.

A quarter of the bytes of fp32, so that an encoder can ship inside a package. It is a way of storing
only: reading gives fp32 tensors, the same ones on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

#: Value of ``labelmux.storage`` in the metadata of a file that is stored this way.
INT8_ROWS = "int8-rows"
_SCALE_SUFFIX = ".row_scale"


def pack_int8_rows(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as int8 [N, M] with float32 scales [N, 1]; everything else as it is."""
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.dim() != 2:
            packed[name] = tensor.float().contiguous()
            continue
        packed[name], packed[name + _SCALE_SUFFIX] = int8_rows(tensor)
    return packed


def int8_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest int8 rows [N, M] and their float32 scales [N, 1].

    Rows that were stored this way come back as they were, whatever factor each has got since.
    """
    scale = matrix.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return (matrix / scale).round().clamp(-127, 127).to(torch.int8), scale.float()


def unpack_int8_rows(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The fp32 tensors that ``pack_int8_rows`` stored."""
    return {
        name: tensor.float() * packed[name + _SCALE_SUFFIX]
        if tensor.dtype == torch.int8
        else tensor
        for name, tensor in packed.items()
        if not name.endswith(_SCALE_SUFFIX)
    }
