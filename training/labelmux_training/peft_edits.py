"""The modules that a PEFT adapter changes, as the sizes and tensors of ``lora`` or ``ia3``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from labelmux_adapters.errors import printable
from labelmux_adapters.parts import Dims, LowRankMap, Rescaling
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.edits import LinearSite, Site
from labelmux_training.errors import PeftRefusedError
from labelmux_training.peft_settings import PeftSettings

POOLER = "pooler.dense"
#: Modules of a layer and their sites.
_SITES: Mapping[str, LinearSite] = {
    "attention.self.pos_query_proj": "position_query",
    "attention.self.pos_key_proj": "position_key",
    "attention.self.query_proj": "query",
    "attention.self.key_proj": "key",
    "attention.self.value_proj": "value",
    "attention.output.dense": "attention_out",
    "intermediate.dense": "ffn_in",
    "output.dense": "ffn_out",
}
#: What such a module reads, where that is a site too.
_READ: Mapping[str, Site] = {"attention_out": "context", "ffn_out": "inner"}
#: Tables that the same projection makes, where it is shared (``share_att_key``).
_SHARED: Mapping[str, LinearSite] = {"query": "position_query", "key": "position_key"}
_MODULE = re.compile(r"deberta\.encoder\.layer\.([0-9]{1,4})\.(.+)")
_PARTS = ("lora_A.weight", "lora_B.weight", "ia3_l")
#: What PEFT stores for variants, by a part of the name.
_VARIANTS = {
    "lora_magnitude_vector": "DoRA",
    "lora_embedding_": "LoRA of an embedding",
    "lora_B.bias": "a bias of LoRA",
}
_OTHER_ENCODER = "name the encoder that the adapter was trained on"


class LowRankChange(NamedTuple):
    """A low-rank map beside a module."""

    down: Tensor  # [R, in]
    #: With PEFT's scale folded in.
    up: Tensor  # [out, R]

    def merged(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The module's weight [out, in] and bias with the change in them."""
        return weight + self.up @ self.down, bias


class ScaleChange(NamedTuple):
    """What a module reads, or gives, rescaled."""

    factors: Tensor  # [in] or [out]
    of_input: bool

    def merged(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The module's weight [out, in] and bias with the change in them."""
        if self.of_input:
            return weight * self.factors, bias
        return weight * self.factors[:, None], bias * self.factors


Change = LowRankChange | ScaleChange


@dataclass(frozen=True, slots=True)
class PeftEdits:
    """What changes the pass."""

    method: str
    #: The method's own sizes.
    sizes: Mapping[str, int]
    tensors: Mapping[str, Tensor]


def read_changes(
    tensors: Mapping[str, Tensor], settings: PeftSettings
) -> tuple[dict[str, Change], dict[str, Tensor]]:
    """The changed modules by name, and the tensors of modules that were saved whole.

    Raises:
        PeftRefusedError: a tensor is of something that an adapter file cannot carry.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for variant, meaning in _VARIANTS.items():
            if variant in name:
                raise PeftRefusedError(
                    f"tensor {printable(name)}", f"{meaning} cannot be carried over", "train LoRA"
                )
        part = next((part for part in _PARTS if name.endswith(f".{part}")), None)
        if part is None:
            whole[name] = tensor
        else:
            parts.setdefault(name.removesuffix(f".{part}"), {})[part] = tensor
    return {name: _change(name, own, settings) for name, own in parts.items()}, whole


def check_targets(changes: Mapping[str, Change], settings: PeftSettings, layers: int) -> None:
    """Return if the tensors are those of the modules that the settings name.

    Raises:
        PeftRefusedError: a module has tensors and is not named, or is named and has none.
    """
    for name in changes:
        if not settings.targets(name):
            raise PeftRefusedError(
                "target_modules", f"{printable(name)} has tensors and is not named", "save it again"
            )
    kinds = {kind for name in changes if (kind := _kind_of(name))}
    for layer in range(layers):
        for kind in sorted(kinds):
            name = f"deberta.encoder.layer.{layer}.{kind}"
            if name not in changes and settings.targets(name):
                raise PeftRefusedError(
                    "target_modules", f"{name} is named and has no tensors", "save it again"
                )


def to_edits(
    changes: Mapping[str, Change], settings: PeftSettings, config: EncoderConfig
) -> PeftEdits:
    """The edits of every module but the pooler; layers without a change get a neutral one.

    Raises:
        PeftRefusedError: a module is none of an encoder's layer, or has other shapes than it.
    """
    dims = Dims(config.num_layers, config.hidden_size, config.intermediate_size)
    by_site: dict[Site, dict[int, Change]] = {}
    for name, change in changes.items():
        if name == POOLER:
            continue
        layer, site = _place(name, config)
        for acted_on in _sites(name, site, change, config):
            by_site.setdefault(acted_on, {})[layer] = change
    if not by_site:
        raise PeftRefusedError("target_modules", "no module of the encoder is changed", "train one")
    sizes: dict[str, int] = {}
    tensors: dict[str, Tensor] = {}
    method, stack = ("lora", _low_rank) if settings.peft_type == "LORA" else ("ia3", _rescaling)
    for acted_on, of_layers in by_site.items():
        sizes[acted_on], own = stack(acted_on, of_layers, dims)
        tensors |= own
    return PeftEdits(method, sizes, tensors)


def _change(name: str, own: Mapping[str, Tensor], settings: PeftSettings) -> Change:
    wanted = {"ia3_l"} if settings.peft_type == "IA3" else {"lora_A.weight", "lora_B.weight"}
    if own.keys() != wanted:
        problem = f"its tensors are {', '.join(sorted(own))}, not {', '.join(sorted(wanted))}"
        raise PeftRefusedError(f"module {printable(name)}", problem, "save it again")
    if settings.peft_type == "IA3":
        of_input = settings.feeds_forward(name)
        factors = own["ia3_l"]
        if factors.shape != ((1, factors.numel()) if of_input else (factors.numel(), 1)):
            raise _shape_error(name, factors, "a row of factors" if of_input else "a column")
        return ScaleChange(factors.flatten(), of_input)
    down, up = own["lora_A.weight"], own["lora_B.weight"]
    if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1] or not len(down):
        raise _shape_error(name, up, f"columns for {tuple(down.shape)}")
    return LowRankChange(down, up * settings.low_rank_scale(name, len(down)))


def _kind_of(name: str) -> str | None:
    found = _MODULE.fullmatch(name)
    return found[2] if found else None


def _place(name: str, config: EncoderConfig) -> tuple[int, LinearSite]:
    found = _MODULE.fullmatch(name)
    if found is None or found[2] not in _SITES:
        raise PeftRefusedError(
            f"module {printable(name)}",
            "a change of it cannot be carried over",
            f"those of a layer can: {', '.join(_SITES)}",
        )
    if int(found[1]) >= config.num_layers:
        raise PeftRefusedError(
            f"module {name}", f"the encoder has {config.num_layers} layers", _OTHER_ENCODER
        )
    return int(found[1]), _SITES[found[2]]


def _sites(name: str, site: LinearSite, change: Change, config: EncoderConfig) -> Iterator[Site]:
    """Where a module's change acts."""
    if isinstance(change, ScaleChange) and change.of_input:
        if site not in _READ:
            raise PeftRefusedError(
                "feedforward_modules",
                f"what {name} reads is read by others too and cannot be rescaled for it alone",
                "leave it out of feedforward_modules",
            )
        yield _READ[site]
        return
    yield site
    terms = {"query": config.p2c, "key": config.c2p}
    if config.relative_attention and config.share_att_key and terms.get(site, False):
        yield _SHARED[site]


def _low_rank(
    site: Site, of_layers: Mapping[int, Change], dims: Dims
) -> tuple[int, dict[str, Tensor]]:
    changes = {at: one for at, one in of_layers.items() if isinstance(one, LowRankChange)}
    rank = max(len(one.down) for one in changes.values())
    part = LowRankMap(False, site, rank)  # type: ignore[arg-type]
    shapes = part.own_shapes(dims)
    down, up = torch.zeros(shapes["down"]), torch.zeros(shapes["up"])
    for layer, change in changes.items():
        own = len(change.down)
        _check(site, layer, change.down, (own, down.shape[2]))
        _check(site, layer, change.up, (up.shape[1], own))
        down[layer, :own], up[layer, :, :own] = change.down, change.up
    return rank, {f"{part.name}.down": down, f"{part.name}.up": up}


def _rescaling(
    site: Site, of_layers: Mapping[int, Change], dims: Dims
) -> tuple[int, dict[str, Tensor]]:
    part = Rescaling(False, site)
    factors = torch.ones(part.own_shapes(dims)["factors"])
    for layer, change in of_layers.items():
        assert isinstance(change, ScaleChange)
        _check(site, layer, change.factors, tuple(factors.shape[1:]))
        factors[layer] = change.factors
    return 1, {f"{part.name}.factors": factors}


def _check(site: Site, layer: int, found: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(found.shape) != wanted:
        raise _shape_error(f"{site} of layer {layer}", found, str(wanted))


def _shape_error(name: str, found: Tensor, wanted: str) -> PeftRefusedError:
    return PeftRefusedError(
        f"module {printable(name)}",
        f"a tensor has shape {tuple(found.shape)}, {wanted} is needed",
        _OTHER_ENCODER,
    )
