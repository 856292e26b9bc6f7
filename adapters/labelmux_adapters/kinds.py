"""What kinds of question a task can ask of a text."""

from __future__ import annotations

from typing import Literal

#: ``single_label``: one of the labels. ``multi_label``: any number of them. ``token``: a tag for
#: each word, which together mark spans of the text.
TaskKind = Literal["single_label", "multi_label", "token"]
#: What of the features a linear head reads: the mean of a text's tokens, or its first token.
Pooling = Literal["mean", "first"]
