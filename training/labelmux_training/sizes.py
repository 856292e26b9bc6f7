"""How large an adapter is made."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from labelmux_adapters.edited import ENCODER_SIZES, EditMethod
from labelmux_adapters.lora import LORA
from labelmux_adapters.ytuning import YTuningSizes, parameter_count
from labelmux_encoder.weights import LoadedEncoder
from labelmux_training.errors import OptionsError

#: An adapter's values as a share of the encoder's, at most, where the width is chosen here.
LARGEST_SHARE = 0.02
#: Widths that are chosen here, the widest first.
_WIDTHS = (256, 224, 192, 160, 128, 96, 64, 48, 32, 16, 8)
DEFAULT_HEADS = 4
#: Inner width of the feed-forward block, in widths.
_FFN_WIDTHS = 2


def choose_sizes(
    loaded: LoadedEncoder,
    labels: int,
    asked: Mapping[str, int] = MappingProxyType({}),
    *,
    tokens: bool = False,
) -> YTuningSizes:
    """Sizes of a Y-Tuning adapter for this encoder; what is not asked for is chosen.

    A chosen width is the widest that keeps the adapter within ``LARGEST_SHARE`` of the encoder's
    parameters, and the narrowest there is where none does. ``tokens``: for a token task.

    Raises:
        OptionsError: a size that is asked for is unknown, or they do not go together.
    """
    _check_names("ytuning", asked, ("width", "heads", "ffn"))
    heads, ffn = asked.get("heads", DEFAULT_HEADS), asked.get("ffn")
    if "width" in asked:
        return _sizes(loaded, asked["width"], heads, ffn)
    candidates = [w for w in _WIDTHS if w % max(heads, 1) == 0] or [max(heads, 1)]
    for candidate in candidates:
        sizes = _sizes(loaded, candidate, heads, ffn)
        if share(loaded, sizes, labels, tokens=tokens) <= LARGEST_SHARE:
            return sizes
    return sizes


def share(
    loaded: LoadedEncoder, sizes: YTuningSizes, labels: int, *, tokens: bool = False
) -> float:
    """An adapter's values over the encoder's, embeddings counted."""
    return parameter_count(sizes, labels, tokens=tokens) / loaded.encoder.parameter_count


def _sizes(loaded: LoadedEncoder, width: int, heads: int, ffn: int | None) -> YTuningSizes:
    config = loaded.encoder.config
    try:
        return YTuningSizes(
            hidden=config.hidden_size,
            states=config.num_layers + 1,
            width=width,
            heads=heads,
            ffn=_FFN_WIDTHS * width if ffn is None else ffn,
        )
    except ValueError as error:
        raise OptionsError("width, heads, ffn", str(error), "change that one") from error


def choose_edit_sizes(
    method: EditMethod, loaded: LoadedEncoder, asked: Mapping[str, int], *, pair: bool
) -> dict[str, int]:
    """Sizes of an adapter that changes this encoder's pass: those of its paper, or as asked for.

    Args:
        method: how the adapter works.
        loaded: the encoder.
        asked: 0 leaves out a size that an adapter may lack; a ``rank`` of LoRA is that of each map.
        pair: whether the task reads two texts, which have one more special token.

    Raises:
        OptionsError: a size is not one of the method, or impossible.
    """
    config = loaded.encoder.config
    widths = (config.num_layers, config.hidden_size, config.intermediate_size)
    if method is LORA and "rank" in asked:
        asked = dict.fromkeys(LORA.defaults, asked["rank"])
    own = {**method.defaults}
    if "slots" in own:
        own["slots"] = 3 if pair else 2
    _check_names(method.name, asked, {**method.defaults, **dict.fromkeys(method.optional)})
    for name, size in asked.items():
        if size < 0 or (size == 0 and name not in method.optional):
            raise OptionsError(name, f"{size}", "give a size above 0")
    kept = {name: size for name, size in {**own, **asked}.items() if size}
    sizes = {**dict(zip(ENCODER_SIZES, widths, strict=True)), **kept}
    try:
        method.read(sizes)
    except ValueError as error:
        raise OptionsError(", ".join(asked), str(error), "change that one") from error
    return sizes


def _check_names(method: str, asked: Mapping[str, int], known: Collection[str]) -> None:
    for name in asked:
        if name not in known:
            problem = f"the method {method} has no such size"
            raise OptionsError(name, problem, f"its sizes: {', '.join(known) or 'none'}")
