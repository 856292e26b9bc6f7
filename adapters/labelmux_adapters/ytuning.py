"""Y-Tuning: label vectors aligned with frozen features (Liu, An, Qiu, arXiv 2202.09817).

The encoder is never touched and gives no gradient. A task vector and one vector per label attend to
each other, then to the features of the text; a label's logit is the dot product of what became of
the task vector and of the label's (sections 3.1 to 3.3 there, as recalled in our design notes).

Three choices are ours. The features are a learned mix over all layers, each normalised. The task
vector also receives the mean-pooled features, so that the readout is never weaker than a probe on
them. Logits are divided by sqrt(width), which gives the margin a scale.

A token task has a form of its own, which the paper does not have: each token takes the place of the
pooled text, and nothing attends to the text, so that what the labels come to is one constant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from labelmux_adapters.errors import shown


@dataclass(frozen=True, slots=True)
class YTuningSizes:
    """The sizes that fix every tensor's shape, together with the number of labels."""

    #: H of the encoder.
    hidden: int
    #: Hidden states that are mixed: layers + 1.
    states: int
    #: Width of label vectors and of everything computed on them.
    width: int
    #: Attention heads; divides ``width``.
    heads: int
    #: Inner width of the feed-forward block.
    ffn: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"size {field.name!r} is {value!r}; give a whole number above 0")
        if self.width % self.heads:
            raise ValueError(f"size 'width' is {self.width}; give a multiple of heads={self.heads}")

    @classmethod
    def from_mapping(cls, sizes: Mapping[str, int]) -> YTuningSizes:
        """Read the sizes of a manifest.

        Raises:
            ValueError: a size is unknown, missing or impossible; the message names it.
        """
        known = {field.name for field in fields(cls)}
        for name in sorted(known ^ set(sizes)):
            state = "missing" if name in known else "unknown"
            named = ", ".join(sorted(known))
            raise ValueError(f"size {shown(name)} is {state}; ytuning has {named}")
        return cls(**sizes)

    def to_mapping(self) -> dict[str, int]:
        return asdict(self)


def expected_tensors(
    sizes: YTuningSizes, labels: int, *, tokens: bool = False
) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of an adapter with ``labels`` labels.

    ``tokens``: of the form for token tasks, which has no attention to the text.
    """
    hidden, width = sizes.hidden, sizes.width
    shapes: dict[str, tuple[int, ...]] = {
        "mix": (sizes.states,),
        "mix_scale": (1,),
        "task_vector": (width,),
        "label_vectors": (labels, width),
    }
    for name, outputs, inputs in (
        ("self_query", width, width),
        ("self_key", width, width),
        ("self_value", width, width),
        ("self_out", width, width),
        ("cross_query", width, width),
        ("cross_value", width, hidden),
        ("cross_out", width, width),
        ("pooled", width, hidden),
        ("ffn_in", sizes.ffn, width),
        ("ffn_out", width, sizes.ffn),
    ):
        shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    shapes["cross_key.weight"] = (width, hidden)
    for name in ("self_norm", "cross_norm", "ffn_norm"):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    if tokens:
        attention = ("cross_query.", "cross_key.", "cross_value.", "cross_out.")
        return {name: shape for name, shape in shapes.items() if not name.startswith(attention)}
    return shapes


def parameter_count(sizes: YTuningSizes, labels: int, *, tokens: bool = False) -> int:
    """Values in an adapter of these sizes."""
    shapes = expected_tensors(sizes, labels, tokens=tokens)
    return sum(math.prod(shape) for shape in shapes.values())


def normalise_states(features: Tensor) -> Tensor:
    """Each layer's hidden states with mean 0 and variance 1 per token. [L+1, B, T, H] -> same

    Independent of the task, so one result serves all of them.
    """
    return functional.layer_norm(features, (features.shape[-1],))


def _near_zero(*shape: int) -> nn.Parameter:
    """Small random values; none on the meta device, where torch would import its compiler first."""
    values = torch.empty(shape)
    return nn.Parameter(values if values.is_meta else values.normal_(std=0.02))


class _Linear(nn.Linear):
    """Draws no random values on the meta device, where they would go nowhere and take the time."""

    @override
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Readout(nn.Module):
    """What both trainable forms share: the labels, the mix of features, the last block."""

    def __init__(self, sizes: YTuningSizes, labels: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.sizes = sizes
        hidden, width = sizes.hidden, sizes.width
        self.mix = nn.Parameter(torch.zeros(sizes.states))
        self.mix_scale = nn.Parameter(torch.ones(1))
        self.task_vector = _near_zero(width)
        self.label_vectors = _near_zero(labels, width)
        self.self_query = _Linear(width, width)
        self.self_key = _Linear(width, width)
        self.self_value = _Linear(width, width)
        self.self_out = _Linear(width, width)
        self.self_norm = nn.LayerNorm(width)
        self.pooled = _Linear(hidden, width)
        self.cross_norm = nn.LayerNorm(width)
        self.ffn_in = _Linear(width, sizes.ffn)
        self.ffn_out = _Linear(sizes.ffn, width)
        self.ffn_norm = nn.LayerNorm(width)
        self._dropout = nn.Dropout(dropout)

    def start_labels(self, label_features: Tensor) -> None:
        """Start the label vectors from features that stand for the labels, such as class means.

        After it, what is pooled from a text scores highest with the labels nearest to it.

        Args:
            label_features: one pooled feature vector per label, in label order; NaN of which
                nothing is known, such as a tag that only words beyond the token limit have. [K, H]
        """
        with torch.no_grad():
            nn.init.orthogonal_(self.pooled.weight)
            nn.init.zeros_(self.pooled.bias)
            centre = label_features.nanmean(0)
            centred = (label_features - centre).nan_to_num()
            projected = functional.linear(centred, self.pooled.weight)
            self.label_vectors.copy_(functional.layer_norm(projected, projected.shape[-1:]))
            self.pooled.bias.copy_(-functional.linear(centre, self.pooled.weight))

    def silence(self) -> None:
        """Let attention and feed-forward add nothing, so that the pooled features alone decide."""
        with torch.no_grad():
            self.task_vector.zero_()
            for layer in self._adding():
                layer.weight.zero_()
                layer.bias.zero_()

    def _adding(self) -> list[nn.Linear]:
        """The last layer of each block."""
        return [self.self_out, self.ffn_out]

    def mixed(self, features: Tensor) -> Tensor:
        """The features this task reads. [L+1, B, T, H] -> [B, T, H]"""
        weights = self.mix.softmax(0) * self.mix_scale
        return torch.einsum("l,lbth->bth", weights, normalise_states(features))

    def label_states(self) -> Tensor:
        """Task and label vectors after they attended to each other; no text in it. [K+1, W]"""
        vectors = torch.cat([self.task_vector.unsqueeze(0), self.label_vectors])
        query, key, value = (
            self._split(layer(vectors))
            for layer in (self.self_query, self.self_key, self.self_value)
        )
        attended = functional.scaled_dot_product_attention(query, key, value)
        attended = self.self_out(attended.transpose(0, 1).flatten(1))
        states: Tensor = self.self_norm(vectors + self._dropout(attended))
        return states

    def block(self, states: Tensor) -> Tensor:
        """What becomes of vectors once the text is in them. [..., W] -> same"""
        states = self.cross_norm(states)
        inner = self._dropout(functional.gelu(self.ffn_in(states)))
        found: Tensor = self.ffn_norm(states + self._dropout(self.ffn_out(inner)))
        return found

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.sizes.heads, -1))
        return heads.transpose(-3, -2)


class YTuning(Readout):
    """The trainable form; ``labelmux_adapters.ytuning_stack`` holds the serving form."""

    def __init__(self, sizes: YTuningSizes, labels: int, dropout: float = 0.1) -> None:
        super().__init__(sizes, labels, dropout)
        hidden, width = sizes.hidden, sizes.width
        self.cross_query = _Linear(width, width)
        # A key bias would add one constant to every token's logit and cancel in the softmax.
        self.cross_key = _Linear(hidden, width, bias=False)
        self.cross_value = _Linear(hidden, width)
        self.cross_out = _Linear(width, width)

    @override
    def _adding(self) -> list[nn.Linear]:
        return [*super()._adding(), self.cross_out]

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Logits, uncalibrated. [L+1, B, T, H], [B, T] -> [B, K]"""
        mixed = self._dropout(self.mixed(features))  # [B, T, H]
        labels = self.label_states()  # [K+1, W]
        query = self._split(self.cross_query(labels)).unsqueeze(0)  # [1, heads, K+1, D]
        key = self._split(self.cross_key(mixed))  # [B, heads, T, D]
        value = self._split(self.cross_value(mixed))
        attended = functional.scaled_dot_product_attention(
            query.expand(mixed.shape[0], -1, -1, -1), key, value, attn_mask=mask[:, None, None, :]
        )
        attended = self.cross_out(attended.transpose(1, 2).flatten(2))  # [B, K+1, W]
        weights = mask.unsqueeze(-1).to(mixed.dtype)
        pooled = self.pooled((mixed * weights).sum(1) / weights.sum(1))  # [B, W]
        states = labels + self._dropout(attended)
        task = states[:, :1] + pooled.unsqueeze(1)
        states = self.block(torch.cat([task, states[:, 1:]], dim=1))
        scores: Tensor = (states[:, 1:] @ states[:, 0].unsqueeze(-1)).squeeze(-1)
        return scores / math.sqrt(self.sizes.width)


class TokenYTuning(Readout):
    """The trainable form of a token task; ``ytuning_token_stack`` holds the serving form."""

    def forward(self, features: Tensor) -> Tensor:
        """Logits of every token, uncalibrated; of padding too. [L+1, B, T, H] -> [B, T, K]"""
        task, labels = self.label_states().split((1, self.label_vectors.shape[0]))
        tokens = task + self.pooled(self._dropout(self.mixed(features)))  # [B, T, W]
        scores: Tensor = self.block(tokens) @ self.block(labels).T
        return scores / math.sqrt(self.sizes.width)


def margin_loss(logits: Tensor, gold: Tensor, margin: float) -> Tensor:
    """The paper's loss: mean of ``sum over wrong c of max(0, s_c - s_gold + margin) / K``.

    Args:
        logits: [B, K]
        gold: [B]
        margin: in units of the logits.
    """
    correct = logits.gather(1, gold.unsqueeze(1))
    violations = (logits - correct + margin).clamp(min=0)
    violations = violations.scatter(1, gold.unsqueeze(1), 0.0)
    return violations.sum(1).mean() / logits.shape[1]


def to_tensors(module: Readout) -> dict[str, Tensor]:
    """The adapter's tensors by name, detached. Shapes are those of ``expected_tensors``."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def from_tensors(sizes: YTuningSizes, labels: int, tensors: Mapping[str, Tensor]) -> YTuning:
    """The module that ``to_tensors`` came from, in eval mode."""
    with torch.device("meta"):
        module = YTuning(sizes, labels)
    return _loaded(module, tensors)


def token_from_tensors(
    sizes: YTuningSizes, labels: int, tensors: Mapping[str, Tensor]
) -> TokenYTuning:
    """The same of a token task."""
    with torch.device("meta"):
        module = TokenYTuning(sizes, labels)
    return _loaded(module, tensors)


Form = TypeVar("Form", bound=Readout)


def _loaded(module: Form, tensors: Mapping[str, Tensor]) -> Form:
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return module.eval()
