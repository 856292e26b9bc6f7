"""The access key: asked for when needed, kept in its tab."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from labelmux_server.keys import Rights, opened_keys

pytestmark = pytest.mark.slow


def test_a_server_with_keys_asks_until_one_is_right(console, adapter_bytes):
    found = console("--admin-key", "right", key="right")
    found.put("mood", adapter_bytes())
    page = found.page
    dialog = page.get_by_role("dialog", name="Access key")
    expect(dialog).to_contain_text("unauthorized")
    dialog.get_by_role("textbox", name="Key").fill("wrong")
    dialog.get_by_role("button", name="Use key").click()
    dialog.get_by_label("Another key").fill("right")
    dialog.get_by_role("button", name="Use key").click()
    expect(page.get_by_role("checkbox", name="mood")).to_be_visible()
    expect(page.get_by_role("button", name="Key: (admin-key)")).to_be_visible()
    expect(page.get_by_role("link", name="API")).to_be_hidden()


def test_a_change_that_the_key_is_not_for_asks_for_another(console, adapter_bytes):
    found = console("--admin-key", "right", key="right")
    found.put("mood", adapter_bytes())
    with opened_keys(found.server.state_dir) as keys:
        reader = keys.create("reader", Rights(frozenset({"classify"})))
    page = found.go("tasks/mood")
    found.enter_key(reader)
    expect(page.get_by_role("heading", name="mood")).to_be_visible()
    found.choose(adapter_bytes(seed=4))
    expect(page.get_by_role("dialog")).to_contain_text("wrong_scope")
    found.enter_key("right")
    expect(page.get_by_text("Version 2 of mood is active.")).to_be_visible()
    assert found.active("mood") == 2


def test_a_cancelled_key_leaves_all_as_it_was(console, adapter_bytes):
    found = console("--admin-key", "right", key="right")
    found.put("mood", adapter_bytes())
    found.put("mood", adapter_bytes(seed=4))
    with opened_keys(found.server.state_dir) as keys:
        reader = keys.create("reader", Rights(frozenset({"classify"})))
    page = found.go("tasks/mood")
    found.enter_key(reader)
    expect(page.get_by_role("alert").filter(has_text="wrong_scope")).to_be_visible()
    page.get_by_role("button", name="Delete task").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete mood").click()
    expect(page.get_by_role("dialog", name="Access key")).to_contain_text("wrong_scope")
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert").filter(has_text="wrong_scope")).to_have_count(2)
    assert found.active("mood") == 2


def test_without_a_key_the_page_waits_for_one(console):
    found = console("--admin-key", "right", key="right")
    page = found.page
    expect(page.get_by_role("dialog", name="Access key")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert").filter(has_text="unauthorized")).to_be_visible()
    page.get_by_role("button", name="Enter a key").click()
    found.enter_key("right")
    expect(page.get_by_label("Text", exact=True)).to_be_visible()


def test_the_key_stays_in_its_tab(console):
    found = console("--admin-key", "right", key="right")
    page = found.page
    found.enter_key("right")
    expect(page.get_by_role("button", name="Key: (admin-key)")).to_be_visible()
    page.reload()
    expect(page.get_by_role("button", name="Key: (admin-key)")).to_be_visible()
    assert page.evaluate(
        "[document.cookie, localStorage.length, location.href.includes('right')]"
    ) == [
        "",
        0,
        False,
    ]
    other = page.context.new_page()
    other.goto(found.server.url)
    expect(other.get_by_role("dialog", name="Access key")).to_be_visible()
    other.close()
    page.get_by_role("button", name="Key: (admin-key)").click()
    page.get_by_role("button", name="Forget key").click()
    expect(page.get_by_role("button", name="Key", exact=True)).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
