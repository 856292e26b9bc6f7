"""How large an adapter is made."""

from __future__ import annotations

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
    width: int | None = None,
    heads: int | None = None,
    ffn: int | None = None,
    *,
    tokens: bool = False,
) -> YTuningSizes:
    """Sizes of an adapter for this encoder; what is None is chosen.

    A chosen width is the widest that keeps the adapter within ``LARGEST_SHARE`` of the encoder's
    parameters, and the narrowest there is where none does. ``tokens``: for a token task.

    Raises:
        OptionsError: the sizes that are given do not go together.
    """
    heads = DEFAULT_HEADS if heads is None else heads
    if width is not None:
        return _sizes(loaded, width, heads, ffn)
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
