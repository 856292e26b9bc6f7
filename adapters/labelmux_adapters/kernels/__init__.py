"""Fused CPU kernels of the readouts, compiled where the project is installed.

Built and loaded as the encoder's are (``labelmux_encoder.kernels``); without them the readouts are
the same by plain torch, slower.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from labelmux_encoder import kernels

#: The sources and builds of this room.
FOLDER = Path(__file__).parent


def serves(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels run on this device in this dtype."""
    if device.type != "cpu" or not kernels.load(FOLDER):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and kernels.has_bfloat16())


def state_statistics(features: Tensor) -> Tensor:
    """Each state's mean, and one over its deviation. [L+1, N, H] -> [L+1, N, 2]"""
    found: Tensor = torch.ops.labelmux.state_statistics(features)
    return found
