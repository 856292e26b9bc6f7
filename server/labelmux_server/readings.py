"""What a version says of texts, to be compared: with what another says, or with the truth."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from labelmux_server.answers import Answered, predictions
from labelmux_server.registry import Version
from labelmux_server.schemas import ClassifyRequest

#: The best label; or the set of labels that a text has; or the set of its spans.
Verdict = str | frozenset[Hashable]

_PLAIN = ClassifyRequest.model_construct()


@dataclass(frozen=True, slots=True)
class Reading:
    """What a version says of a text."""

    verdict: Verdict
    #: By label, or by span.
    scores: Mapping[Hashable, float]

    def distance(self, other: Reading) -> float:
        """Mean difference of the scores of what both know; 0 where that is nothing."""
        both = self.scores.keys() & other.scores.keys()
        return sum(abs(self.scores[key] - other.scores[key]) for key in both) / max(len(both), 1)


def readings(version: Version, answered: Answered) -> list[Reading]:
    """What the callers of these texts are told."""
    return [_reading(found) for found in predictions(version, answered, _PLAIN)]


def _reading(prediction: Mapping[str, Any]) -> Reading:
    if prediction["task_kind"] == "token":
        spans: dict[Hashable, float] = {
            (span["label"], span["start"], span["end"]): span["score"]
            for span in prediction["spans"]
        }
        return Reading(frozenset(spans), spans)
    scores = {item["label"]: item["score"] for item in prediction["labels"]}
    if prediction["task_kind"] == "multi_label":
        return Reading(frozenset(prediction["predicted"]), scores)
    return Reading(prediction["labels"][0]["label"], scores)
