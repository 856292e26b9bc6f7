from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from labelmux_adapters.errors import DuplicateKeyError, LabelsError, ManifestError
from labelmux_adapters.manifest import (
    MAX_CANARY_CHARS,
    MAX_LABEL_CHARS,
    MAX_LABELS,
    MAX_SIZE,
    Calibration,
    Canary,
    Manifest,
    parse_manifest,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "adapter-format.md"

MakeManifest = Callable[..., Manifest]


def edited(manifest: Manifest, **fields: Any) -> str:
    return json.dumps(json.loads(manifest.to_json()) | fields)


def refused(manifest: Manifest, **fields: Any) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(edited(manifest, **fields))
    return caught.value


def canary(**fields: Any) -> dict[str, Any]:
    return {"text": "a", "pair": None, "logits": [0.0, 1.0]} | fields


def test_a_manifest_survives_its_json(make_manifest: MakeManifest):
    manifest = make_manifest(
        labels=("née", '"quoted"', "日本"), calibration=Calibration(temperature=1.7)
    )
    assert parse_manifest(manifest.to_json()) == manifest


def test_equal_manifests_give_equal_json(make_manifest: MakeManifest):
    one = make_manifest(metrics={"a": 0.1, "b": 0.2}, card={"x": "1", "y": "2"})
    other = make_manifest(metrics={"b": 0.2, "a": 0.1}, card={"y": "2", "x": "1"})
    assert one.to_json() == other.to_json()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "0, not 2 to 1000"),
        (["only"], "1, not 2 to 1000"),
        ([f"l{i}" for i in range(MAX_LABELS + 1)], "1001, not 2 to 1000"),
        (["a", ""], "visible character"),
        (["a", " \t"], "visible character"),
        (["a", "b", "a"], "another label has that name"),
        (["a", "b" * (MAX_LABEL_CHARS + 1)], "201 characters, not 200"),
    ],
)
def test_labels_that_cannot_be_labels_have_their_own_error(
    make_manifest: MakeManifest, labels: list[str], message: str
):
    error = refused(make_manifest(), labels=labels)
    assert isinstance(error, LabelsError)
    assert message in str(error)


def test_a_repeated_label_is_named_by_place_and_value(make_manifest: MakeManifest):
    error = refused(make_manifest(), labels=["a", "b", "a"])
    assert (error.field, error.found) == ("labels.2", "'a'")


def test_labels_are_checked_where_a_manifest_is_made(make_manifest: MakeManifest):
    with pytest.raises(LabelsError):
        make_manifest(labels=("a", "a"))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"task_kind": "regression"}, "task_kind"),
        ({"method": "prompt"}, "method"),
        ({"labels": ["a", 1]}, "labels.1"),
        ({"sizes": {"width": 0}}, "sizes.width"),
        ({"sizes": {"width": -3}}, "sizes.width"),
        ({"sizes": {"width": 2.0}}, "sizes.width"),
        ({"sizes": {"width": True}}, "sizes.width"),
        ({"sizes": {"width": MAX_SIZE + 1}}, "sizes.width"),
        ({"encoder": ""}, "encoder"),
        ({"encoder_fingerprint": "1" * 64}, "encoder_fingerprint"),
        ({"encoder_fingerprint": "sha256:" + "A" * 64}, "encoder_fingerprint"),
        ({"data_digest": ""}, "data_digest"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "64"}, "max_tokens"),
        ({"pair": 1}, "pair"),
        ({"calibration": {"temperature": 0}}, "calibration.temperature"),
        ({"calibration": {"temperature": -1}}, "calibration.temperature"),
        ({"calibration": {"temperature": 1e-300}}, "calibration.temperature"),
        ({"calibration": {"heat": 1}}, "calibration.heat"),
        ({"metrics": {"accuracy": "high"}}, "metrics.accuracy"),
        ({"parameters": 0}, "parameters"),
        ({"parameter_share": -0.1}, "parameter_share"),
        ({"created_at": "yesterday"}, "created_at"),
        ({"created_at": "1700000000"}, "created_at"),
        ({"created_at": 1700000000}, "created_at"),
        ({"created_at": "2026-02-30T00:00:00Z"}, "created_at"),
        ({"created_at": "2026-01-01T00:00:00"}, "created_at"),
        ({"created_at": "2026-01-01T00:00:00+01:00"}, "created_at"),
        ({"canaries": [canary()] * 3}, "canaries"),
        ({"canaries": [canary()] * 9}, "canaries"),
        ({"canaries": [canary(text="")] * 4}, "canaries.0.text"),
        ({"canaries": [canary(text="x" * (MAX_CANARY_CHARS + 1))] * 4}, "canaries.0.text"),
        ({"canaries": [canary(logits=["a", 0])] * 4}, "canaries.0.logits.0"),
        ({"canaries": [canary()] * 3 + [canary(logits=[0.0])]}, "canaries.3.logits"),
        ({"canaries": [canary(pair="b")] + [canary()] * 3}, "canaries.0.pair"),
        ({"pair": True, "canaries": [canary()] * 4}, "canaries.0.pair"),
        ({"canary_tolerance": 0}, "canary_tolerance"),
        ({"canary_tolerance": 1e9}, "canary_tolerance"),
        ({"card": {"licence": None}}, "card.licence"),
        ({"card": {"notes": "x" * 4001}}, "card.notes"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_field_is_named(make_manifest: MakeManifest, fields: dict[str, Any], field: str):
    error = refused(make_manifest(), **fields)
    assert error.field == field
    assert error.code == "bad_manifest"
    assert field in str(error)


def test_the_wrong_value_is_named(make_manifest: MakeManifest):
    error = refused(make_manifest(), max_tokens=-7)
    assert error.found == "-7"
    assert str(error).startswith("adapter manifest: max_tokens is -7: ")


TAGS = ("O", "B-x", "I-x")


def test_a_token_task_has_tags_and_canaries_of_whole_tokens(make_manifest: MakeManifest):
    canaries = tuple(Canary(text="a", logits=(0.5,) * 3 * tokens) for tokens in (1, 2, 3, 4))
    manifest = make_manifest(labels=TAGS, task_kind="token", canaries=canaries)
    assert parse_manifest(manifest.to_json()) == manifest
    broken = [canary(logits=[0.5] * count) for count in (3, 6, 9, 4)]
    assert refused(manifest, canaries=broken).field == "canaries.3.logits"
    assert refused(manifest, canaries=[canary(logits=[])] * 4).field == "canaries.0.logits"
    assert refused(manifest, canaries=[canary(logits=[0.5] * 6000)] * 4).field == "canaries"
    assert refused(manifest, pair=True).field == "pair"


@pytest.mark.parametrize("labels", [["B-x", "I-x"], ["O", "B-x", "I-y"], ["O", "loose"]])
def test_labels_of_a_token_task_that_are_no_tags_are_named(
    make_manifest: MakeManifest, labels: list[str]
):
    with pytest.raises(LabelsError):
        make_manifest(labels=tuple(labels), task_kind="token")


def test_thresholds_belong_to_several_labels_and_abstaining_to_one(make_manifest: MakeManifest):
    several = make_manifest(
        task_kind="multi_label", calibration=Calibration(thresholds=(0.3, 0.9), temperature=2.0)
    )
    assert parse_manifest(several.to_json()) == several
    for thresholds in ([0.5], [0.5, 0.5, 0.5]):
        error = refused(several, calibration={"thresholds": thresholds})
        assert error.field == "calibration.thresholds"
    error = refused(several, calibration={"thresholds": [0.5, 1.0]})
    assert error.field == "calibration.thresholds.1"
    assert refused(several, calibration={"abstain": 0.5}).field == "calibration.abstain"
    single = make_manifest(calibration=Calibration(abstain=0.7))
    assert parse_manifest(single.to_json()) == single
    error = refused(single, calibration={"thresholds": [0.5, 0.5]})
    assert error.field == "calibration.thresholds"


def test_an_unknown_method_is_told_which_there_are(make_manifest: MakeManifest):
    error = refused(make_manifest(), method="magic")
    assert error.field == "method"
    assert "ytuning" in str(error)


def test_optional_fields_that_say_nothing_are_left_out(make_manifest: MakeManifest):
    fields = json.loads(make_manifest().to_json())
    assert not {"pooling"} & set(fields)
    assert set(fields["calibration"]) == {"temperature"}


def test_a_missing_field_is_named(make_manifest: MakeManifest):
    fields = json.loads(make_manifest().to_json())
    del fields["data_digest"]
    with pytest.raises(ManifestError) as caught:
        parse_manifest(json.dumps(fields))
    assert caught.value.field == "data_digest"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["parameter_share", "canary_tolerance"])
def test_numbers_must_be_finite(make_manifest: MakeManifest, value: str, field: str):
    text = edited(make_manifest(), **{field: "HERE"}).replace('"HERE"', value)
    with pytest.raises(ManifestError):
        parse_manifest(text)


def test_canary_logits_must_be_finite(make_manifest: MakeManifest):
    text = edited(make_manifest(), canaries=[canary(logits=["HERE", 0])] * 4)
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text.replace('"HERE"', "-1e999"))
    assert caught.value.field == "canaries.0.logits.0"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        "{",
        '{"a": 1} trailing',
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"parameters": ' + "9" * 5000 + "}",
        '{"labels": ["\\ud800", "b"]}',
        json.dumps({str(index): 0 for index in range(10_001)}),
    ],
    ids=lambda text: text[:12] or "empty",
)
def test_text_that_is_no_json_object_is_refused(text: str):
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text)
    assert len(str(caught.value)) < 1000


def test_a_lone_surrogate_in_a_label_is_refused(make_manifest: MakeManifest):
    refused(make_manifest(), labels=["\ud800", "b"])


@pytest.mark.parametrize(
    "text", ['{"labels": 1, "labels": 2}', '{"calibration": {"t": 1, "u": {"t": 1, "t": 2}}}']
)
def test_a_key_twice_is_refused_at_any_depth(text: str):
    with pytest.raises(DuplicateKeyError) as caught:
        parse_manifest(text)
    assert caught.value.place == "manifest"


def test_an_error_does_not_grow_with_its_value(make_manifest: MakeManifest):
    error = refused(make_manifest(), max_tokens="x" * 500_000)
    assert len(str(error)) < 400
    error = refused(make_manifest(), **{"k" * 500_000: 1})
    assert len(str(error)) < 400


def test_a_task_of_pairs_has_canaries_of_pairs(make_manifest: MakeManifest):
    manifest = make_manifest(pair=True)
    assert parse_manifest(manifest.to_json()).canaries[0].pair == "b"


def test_a_time_that_is_not_utc_cannot_be_written(make_manifest: MakeManifest):
    moved = datetime.fromisoformat("2026-01-01T00:00:00+02:00")
    with pytest.raises(ManifestError):
        make_manifest(created_at=moved)


def test_a_time_keeps_its_microseconds(make_manifest: MakeManifest):
    moment = datetime(2026, 1, 1, 1, 2, 3, 456789, tzinfo=UTC)
    assert parse_manifest(make_manifest(created_at=moment).to_json()).created_at == moment


def documented_fields(heading: str) -> set[str]:
    section = DOCUMENT.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([a-z_.]+)`", section, re.MULTILINE))


def test_the_document_lists_every_manifest_field_and_no_other():
    fields = set(Manifest.model_fields)
    fields |= {f"calibration.{name}" for name in Calibration.model_fields}
    fields |= {f"canaries.{name}" for name in Canary.model_fields}
    assert documented_fields("Manifest") == fields
