"""What a Y-Tuning readout needs of one adapter that does not depend on the text.

The label self-attention is done, biases and norms are folded where they can be, weights lie as
[in, out]. Keys of the text take one of two forms. With few labels the label queries absorb the key
projection, ``q_c.(W_k x_n) = (W_k^T q_c).x_n``, and the values are projected after the attention;
with many, forming keys and values of the text is the smaller product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from labelmux_adapters.ytuning import YTuning, YTuningSizes

#: Queries over width, up to which absorbing them was the faster form: measured, both at one text
#: and at 32.
_ABSORB_UP_TO = 0.25


#: The mix is a product over so few layers that it is faster in float32.
_FACTORS = frozenset(
    ("queries", "values", "keys_values", "out", "pooled", "ffn_in", "ffn_in_bias", "ffn_out")
)


@dataclass(frozen=True, slots=True)
class StackShape:
    """What adapters of one stack share. C = ``label_capacity`` + 1, the task's vector first."""

    sizes: YTuningSizes
    label_capacity: int

    @property
    def vectors(self) -> int:
        """C: task and label vectors, padding counted."""
        return self.label_capacity + 1

    @property
    def depth(self) -> int:
        """D: width of one head."""
        return self.sizes.width // self.sizes.heads

    @property
    def absorbs_keys(self) -> bool:
        """Whether queries meet the features themselves, and not keys formed of them."""
        return self.vectors * self.sizes.heads <= _ABSORB_UP_TO * self.sizes.width

    def constants(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of what ``constants_of`` gives."""
        sizes, depth, vectors = self.sizes, self.depth, self.vectors
        hidden, width, heads = sizes.hidden, sizes.width, sizes.heads
        attention: dict[str, tuple[int, ...]] = (
            {"queries": (heads * vectors, hidden), "values": (heads, hidden, depth)}
            if self.absorbs_keys
            else {"queries": (heads, vectors, depth), "keys_values": (hidden, 2 * width)}
        )
        return attention | {
            "mix": (sizes.states,),
            "out": (width, width),
            "labels": (vectors, width),
            "pooled": (hidden, width),
            "ffn_in": (width, sizes.ffn),
            "ffn_in_bias": (1, sizes.ffn),
            "ffn_out": (sizes.ffn, width),
            "cross_scale": (1, width),
            "cross_shift": (1, width),
            "final_scale": (1, width),
            "final_shift": (1, width),
        }

    def factors(self) -> frozenset[str]:
        """Those that enter large products, and may be kept in fewer bits."""
        return _FACTORS

    def values(self) -> int:
        """Numbers in the constants of one adapter."""
        return sum(math.prod(shape) for shape in self.constants().values())


@torch.no_grad()
def constants_of(module: YTuning, shape: StackShape) -> dict[str, Tensor]:
    """The constants, label rows padded with zeros to the capacity."""
    labels = module.label_states()  # [K+1, W]
    rows = torch.zeros(shape.vectors, module.sizes.width)
    rows[: labels.shape[0]] = labels
    # The value bias passes through the softmax unchanged.
    rows += module.cross_out(module.cross_value.bias)
    rows[0] += module.pooled.bias
    scale, shift = module.cross_norm.weight, module.cross_norm.bias
    return _attention(module, shape, labels) | {
        "mix": module.mix.softmax(0) * module.mix_scale,
        "out": module.cross_out.weight.T,
        "labels": rows,
        "pooled": module.pooled.weight.T,
        "ffn_in": (module.ffn_in.weight * scale).T,
        "ffn_in_bias": module.ffn_in(shift).unsqueeze(0),
        "ffn_out": module.ffn_out.weight.T,
        "cross_scale": scale.unsqueeze(0),
        "cross_shift": (shift + module.ffn_out.bias).unsqueeze(0),
        "final_scale": module.ffn_norm.weight.unsqueeze(0),
        "final_shift": module.ffn_norm.bias.unsqueeze(0),
    }


def _attention(module: YTuning, shape: StackShape, labels: Tensor) -> dict[str, Tensor]:
    heads, depth = module.sizes.heads, shape.depth
    query = module.cross_query(labels).unflatten(-1, (heads, depth)) / math.sqrt(depth)
    key, value = module.cross_key.weight, module.cross_value.weight  # [W, H]
    if shape.absorbs_keys:
        query = torch.einsum("cnd,ndh->nch", query, key.unflatten(0, (heads, depth)))
    else:
        query = query.transpose(0, 1)
    padded = torch.zeros(heads, shape.vectors, query.shape[-1])
    padded[:, : query.shape[1]] = query
    if shape.absorbs_keys:
        values = value.unflatten(0, (heads, depth)).transpose(1, 2)
        return {"queries": padded.flatten(0, 1), "values": values}
    return {"queries": padded, "keys_values": torch.cat([key, value]).T}
