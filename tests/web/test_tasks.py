"""The list of tasks, uploads, and every change to a task."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.slow


def test_a_new_task_is_uploaded_and_serves(console, adapter_bytes):
    found = console()
    page = found.go("tasks")
    expect(page.get_by_text("No task serves yet")).to_be_visible()
    page.get_by_role("button", name="New task").click()
    dialog = page.get_by_role("dialog", name="New task")
    found.choose(adapter_bytes(labels=("x", "y")))
    expect(dialog.get_by_label("Name of the new task")).to_have_value("mood")
    dialog.get_by_role("button", name="Upload").click()
    expect(page.get_by_role("heading", name="mood", level=1)).to_be_visible()
    expect(page.get_by_role("status")).to_contain_text(["mood serves, version 1."])
    assert found.active("mood") == 1


def test_a_new_task_never_replaces_one_that_is_there(moods, adapter_bytes):
    page = moods.go("tasks")
    expect(page.get_by_role("link", name="mood")).to_be_visible()
    moods.drop("main", adapter_bytes(seed=9), "mood.safetensors")
    dialog = page.get_by_role("dialog", name="New task")
    dialog.get_by_role("button", name="Upload").click()
    expect(dialog.get_by_role("alert")).to_contain_text("task_exists")
    assert moods.active("mood") == 1


def test_versions_are_uploaded_swapped_rolled_back_and_deleted(moods, adapter_bytes):
    page = moods.go("tasks/mood")
    table = page.get_by_role("region", name="Versions").locator("tbody tr")
    expect(table).to_have_count(1)
    moods.drop(".drop", adapter_bytes(labels=("glad", "sad"), seed=5), "second.safetensors")
    expect(page.get_by_text("Version 2 of mood is active.")).to_be_visible()
    expect(table).to_have_count(2)
    expect(table.first).to_contain_text("v2 active")
    assert moods.active("mood") == 2

    page.get_by_role("button", name="Activate version 1").click()
    expect(table.last).to_contain_text("v1 active")
    assert moods.active("mood") == 1

    page.get_by_role("button", name="Roll back").click()
    expect(table.first).to_contain_text("v2 active")
    assert moods.active("mood") == 2

    page.get_by_role("button", name="Delete version 1").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(table).to_have_count(2)
    page.get_by_role("button", name="Delete version 1").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete version 1").click()
    expect(table).to_have_count(1)
    page.get_by_text("History (5)").click()
    expect(page.get_by_text("rollback v2")).to_be_visible()

    expect(page.get_by_role("button", name="Roll back")).to_be_disabled()
    page.get_by_role("button", name="Delete task").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete mood").click()
    expect(page.get_by_role("heading", name="Tasks")).to_be_visible()
    expect(page.get_by_role("link", name="topic")).to_be_visible()
    assert moods.api.get("/v1/tasks/mood").status_code == 404


def test_a_version_that_is_not_active_can_be_tried_and_downloaded(moods, adapter_bytes):
    first = moods.api.get("/v1/tasks/mood/adapter").content
    moods.put("mood", adapter_bytes(labels=("glad", "sad"), seed=5))
    page = moods.go("tasks/mood")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download version 1").click()
    assert download.value.suggested_filename == "mood.v1.safetensors"
    assert download.value.path().read_bytes() == first
    page.get_by_role("link", name="Try version 1").click()
    page.get_by_role("button", name="Classify").click()
    expect(moods.answers.get_by_role("heading")).to_have_text(["moodv1"])


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"not an adapter at all", "not_safetensors"),
        (b"", "empty_file"),
        (b"x" * 5000, "file_too_large"),
    ],
)
def test_a_wrong_file_is_refused_with_a_reason_and_changes_nothing(
    console, adapter_bytes, data, code
):
    found = console()
    good = adapter_bytes()
    found.put("mood", good)
    page = found.go("tasks/mood")
    if code == "file_too_large":
        limits = found.api.get("/v1/info").json() | {"limits": {"max_upload_bytes": 4000}}
        page.route("**/v1/info", lambda route: route.fulfill(json=limits))
        page.reload()
    found.choose(data)
    alert = page.get_by_role("alert").filter(has_text=code)
    expect(alert).to_be_visible()
    assert [v["version"] for v in found.api.get("/v1/tasks/mood/versions").json()["versions"]] == [
        1
    ]
    found.choose(good)
    if code != "file_too_large":
        expect(page.get_by_text("was here already, and is active")).to_be_visible()


def test_a_damaged_adapter_is_refused_with_the_servers_words(moods, adapter_bytes):
    page = moods.go("tasks/mood")
    moods.choose(adapter_bytes()[:-3])
    expect(page.get_by_role("alert").filter(has_text="truncated_file")).to_contain_text("request")


def test_many_tasks_come_in_pages_and_are_found_by_name(console, adapter_bytes):
    found = console()
    data = adapter_bytes()
    for at in range(130):
        found.put(f"task-{at:03}", data)
    page = found.go("tasks")
    rows = page.get_by_role("region", name="Tasks").locator("tbody tr")
    expect(rows).to_have_count(100)
    expect(page.get_by_text("100 of 130")).to_be_visible()
    page.get_by_role("button", name="Show more").click()
    expect(rows).to_have_count(130)
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    page.get_by_label("Find a task by name").fill("K-12")
    expect(rows).to_have_count(10)
    found.go("")
    expect(page.get_by_label("All 130: too many at once")).to_be_disabled()
    page.get_by_label("Find a task", exact=True).fill("129")
    page.get_by_label("task-129").check()
    page.get_by_role("button", name="Classify").click()
    expect(found.answers.get_by_role("heading")).to_have_text(["task-129v1"])
