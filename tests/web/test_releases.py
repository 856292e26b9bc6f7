"""A version's report, shadows and canaries, and uploads that do not serve at once."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from labelmux_adapters.manifest import Calibration

pytestmark = pytest.mark.slow

TEXTS = [f"the {noun} leaves at {hour}" for noun in ("train", "bus", "ship") for hour in range(8)]
LABELS = ("glad", "sad", "calm")


def test_a_shadow_is_started_watched_and_ended(moods, adapter_bytes):
    moods.put("mood", adapter_bytes(labels=LABELS, seed=5), activate="later")
    page = moods.go("tasks/mood")
    page.get_by_role("button", name="Trial of version 2").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_label("Shadow", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    shadow = page.get_by_role("region", name="Shadow: version 2")
    expect(shadow).to_contain_text("100 % of the texts")
    expect(shadow).to_contain_text("0 texts, 0 with the same answer")
    expect(page.get_by_role("region", name="Versions")).to_contain_text("v2 shadow")

    by_active, by_shadow = (moods.classify(name, TEXTS) for name in ("mood", "mood@2"))
    best = [[said["labels"][0]["label"] for said in each] for each in (by_active, by_shadow)]
    agreed = sum(one == other for one, other in zip(*best, strict=True))
    expect(shadow).to_contain_text(f"{len(TEXTS)} texts, {agreed} with the same answer")
    share = re.sub(r"\.0$", "", f"{100 * agreed / len(TEXTS):.1f}")
    expect(shadow.get_by_role("listitem")).to_have_text(f"Agrees with version 1{share} %")
    trials = moods.api.get("/v1/tasks/mood/trials").json()
    expect(shadow).to_contain_text(f"{trials['shadow']['score_difference']:.3f} on average")

    shadow.get_by_role("button", name="End the shadow").click()
    expect(shadow).to_have_count(0)
    assert moods.api.get("/v1/tasks/mood/trials").json()["shadow"] is None


def test_a_canarys_traffic_stands_beside_the_active_versions(moods, adapter_bytes):
    moods.put("mood", adapter_bytes(labels=LABELS, seed=5), activate="later")
    page = moods.go("tasks/mood")
    page.get_by_role("button", name="Trial of version 2").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Canary", exact=True).check()
    dialog.get_by_label("Share in %").fill("40")
    dialog.get_by_role("button", name="Start").click()
    canary = page.get_by_role("region", name="Canary: version 2")
    expect(canary).to_contain_text("40 % of the texts")

    versions = [said["version"] for said in moods.classify("mood", TEXTS)]
    assert set(versions) == {1, 2}
    for row, version in zip(("canary", "active"), (2, 1), strict=True):
        texts = versions.count(version)
        share = re.sub(r"\.0$", "", f"{100 * texts / len(TEXTS):.1f}")
        cells = canary.get_by_role("row").filter(has_text=row).get_by_role("cell")
        expect(cells.nth(0)).to_have_text(f"{texts}")
        expect(cells.nth(1)).to_have_text(f"{share} %")
        expect(cells.nth(3)).to_have_text(re.compile(r"^[\d.]+ m?s$"))
        expect(cells.nth(5)).to_have_text("0")

    canary.get_by_role("button", name="Let version 2 serve all").click()
    expect(canary).to_have_count(0)
    assert moods.active("mood") == 2


def test_a_trial_that_others_end_goes_from_the_page(moods, adapter_bytes):
    moods.put("mood", adapter_bytes(labels=LABELS, seed=5), activate="later")
    moods.start("mood", "canary", version=2, share=0.5, by="caller")
    page = moods.go("tasks/mood")
    canary = page.get_by_role("region", name="Canary: version 2")
    expect(canary).to_contain_text("50 % of the callers")
    assert moods.api.delete("/v1/tasks/mood/canary").status_code == 204
    expect(canary).to_have_count(0)
    expect(page.get_by_role("region", name="Versions")).not_to_contain_text("canary")
    page.get_by_text("History (4)").click()
    expect(page.get_by_text("end canary v2")).to_be_visible()
    expect(page.get_by_text("canary v2 with 50 %")).to_be_visible()


def test_a_version_that_cannot_be_a_trial_is_told_why(moods, adapter_bytes):
    moods.put("mood", adapter_bytes(labels=("no", "yes"), seed=3, pair=True), activate="later")
    page = moods.go("tasks/mood")
    page.get_by_role("button", name="Trial of version 2").click()
    page.get_by_role("dialog").get_by_role("button", name="Start").click()
    expect(page.get_by_role("alert").filter(has_text="trial_misfit")).to_be_visible()


def test_an_upload_can_wait_or_have_to_pass_the_gate(moods, adapter_bytes):
    page = moods.go("tasks/mood")
    then = page.get_by_label("Once it is checked")
    table = page.get_by_role("region", name="Versions").locator("tbody tr")
    then.select_option("later")
    moods.choose(adapter_bytes(labels=LABELS, seed=5))
    expect(page.get_by_text("Version 2 of mood is stored, not active.")).to_be_visible()
    expect(table).to_have_count(2)
    assert moods.active("mood") == 1

    then.select_option("gated")
    moods.choose(adapter_bytes(labels=LABELS, seed=6))
    expect(page.get_by_role("alert").filter(has_text="gate_not_found")).to_be_visible()

    said = moods.classify("mood", TEXTS)
    rows = [
        json.dumps({"text": text, "label": each["labels"][0]["label"]})
        for text, each in zip(TEXTS, said, strict=True)
    ]
    headers = {"content-type": "application/x-ndjson"}
    gate = moods.api.put("/v1/tasks/mood/gate", content="\n".join(rows), headers=headers)
    assert gate.status_code == 200, gate.text
    moods.choose(adapter_bytes(labels=LABELS, seed=6))
    expect(page.get_by_role("alert").filter(has_text="gate_failed")).to_be_visible()
    expect(table).to_have_count(3)
    assert moods.active("mood") == 1

    moods.choose(adapter_bytes(labels=LABELS, seed=1, card={"note": "as good"}))
    passed = "Version 4 of mood is active. On the gate's 24 texts it scores 1.000, version 1 1.000."
    expect(page.get_by_text(passed)).to_be_visible()
    assert moods.active("mood") == 4


def test_every_version_has_a_report(moods, adapter_bytes):
    several = Calibration(temperature=1.5, thresholds=(0.25, 0.5, 0.75))
    data = adapter_bytes(labels=LABELS, task_kind="multi_label", calibration=several, seed=5)
    moods.put("mood", data, activate="later")
    wanted = moods.api.get("/v1/tasks/mood/versions/2").json()
    page = moods.go("tasks/mood")
    report = page.get_by_role("region", name="Report")
    expect(report.get_by_role("heading", level=2)).to_have_text("Report of version 1 active")
    page.get_by_role("button", name="Report of version 2").click()
    expect(report.get_by_role("heading", level=2)).to_have_text("Report of version 2 ")
    expect(report.get_by_role("heading", level=2)).to_be_focused()
    expect(report).to_contain_text("1.500")
    expect(report).to_contain_text(wanted["data_digest"].removeprefix("sha256:")[:12])
    expect(report).to_contain_text(f"{wanted['canaries']} canaries")
    labels = report.locator(".labels").get_by_role("listitem")
    expect(labels).to_have_text(["glad0.250", "sad0.500", "calm0.750"])
