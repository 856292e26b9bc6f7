"""What holds for every view: strings are text, the policy, the keyboard, accessibility, numbers."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.slow

MARKUP = '<img src=x onerror="window.owned = true">'


def test_what_a_server_says_is_text_and_never_markup(console, adapter_bytes):
    found = console()
    found.put("mood", adapter_bytes(labels=(MARKUP, "<script>alert(1)</script>")))
    page = found.page
    page.reload()
    page.get_by_role("button", name="Classify").click()
    expect(found.answers.get_by_text(MARKUP)).to_be_visible()
    found.go("tasks")
    expect(page.get_by_text(MARKUP)).to_be_visible()
    found.go("tasks/mood")
    expect(page.get_by_text(MARKUP).first).to_be_visible()
    found.go(f"tasks/{MARKUP.replace('/', '')}")
    expect(page.get_by_role("alert").filter(has_text="task_not_found")).to_be_visible()
    assert page.locator("main img, main script").count() == 0
    assert page.evaluate("window.owned") is None


def test_the_policy_holds_even_if_markup_got_in(console):
    found = console()
    tried = """() => new Promise((resolve, reject) => {
        const broken = new Set();
        setTimeout(() => reject([...broken].join()), 10_000);
        const script = document.createElement("script");
        for (const attempt of [
            () => { document.body.innerHTML = "<b>"; },
            () => { script.textContent = "window.ran = true"; },
            () => { document.body.setAttribute("style", "color: red"); },
            () => { script.append("window.ran = true"); document.body.append(script); },
            () => { new Image().src = "https://elsewhere.example/pixel.png"; },
        ]) try { attempt(); } catch {}
        document.addEventListener("securitypolicyviolation", (event) => {
            broken.add(event.effectiveDirective);
            if (broken.size === 3) resolve([...broken].sort());
        });
    })"""
    other = found.page.context.new_page()
    other.goto(found.server.url)
    directives = other.evaluate(tried)
    assert directives == ["img-src", "require-trusted-types-for", "style-src-attr"]
    assert other.evaluate("window.ran") is None
    assert other.evaluate("document.body.style.color") == ""
    other.close()


def test_everything_can_be_done_with_the_keyboard(moods, adapter_bytes):
    moods.put("mood", adapter_bytes(seed=7))
    page = moods.page
    press = page.keyboard.press

    def tab_to(name: str, limit: int = 40) -> None:
        for _ in range(limit):
            press("Tab")
            focused = page.evaluate(
                "(({ ariaLabel, labels, textContent }) =>"
                " (ariaLabel || labels?.[0]?.textContent || textContent).trim())"
                "(document.activeElement)"
            )
            if focused == name:
                return
        pytest.fail(f"{name!r} is not reached by Tab")

    press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    press("Enter")
    expect(page.locator("main")).to_be_focused()
    tab_to("Text")
    page.keyboard.type(" once more")
    press("Control+Enter")
    expect(moods.answers.get_by_role("article")).to_have_count(2)
    page.get_by_role("link", name="Tasks").focus()
    press("Enter")
    expect(page.get_by_role("heading", name="Tasks")).to_be_focused()
    expect(page.get_by_role("link", name="mood")).to_be_visible()
    tab_to("mood")
    press("Enter")
    expect(page.get_by_role("heading", name="mood")).to_be_focused()
    expect(page.get_by_role("button", name="Activate version 1")).to_be_visible()
    tab_to("Delete task")
    press("Enter")
    expect(page.get_by_role("dialog").get_by_role("button", name="Cancel")).to_be_focused()
    press("Escape")
    expect(page.get_by_role("button", name="Delete task")).to_be_focused()
    tab_to("Activate version 1")
    press("Enter")
    expect(page.get_by_role("region", name="Versions")).to_contain_text("v1 active")
    assert moods.active("mood") == 1
    expect(page.get_by_role("heading", name="mood")).to_be_focused()
    tab_to("choose one")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_view_breaks_a_rule_of_accessibility(console, adapter_bytes, scheme):
    from axe_playwright_python.sync_playwright import Axe

    found = console(color_scheme=scheme)
    found.put("mood", adapter_bytes(labels=("glad", "sad"), seed=1))
    found.put("mood", adapter_bytes(labels=("glad", "sad"), seed=2))
    found.start("mood", "shadow", version=1)
    found.start("mood", "canary", version=1, share=0.5)
    page = found.page
    page.reload()
    page.get_by_label("a long text in windows").check()
    page.get_by_role("button", name="Classify").click()
    expect(found.answers.get_by_role("article")).to_have_count(1)

    def check(place: str) -> None:
        report = Axe().run(page)
        assert report.violations_count == 0, f"{place}: {report.generate_report()}"

    check("try")
    found.go("tasks")
    expect(page.get_by_role("link", name="mood")).to_be_visible()
    check("tasks")
    found.go("tasks/mood")
    found.choose(b"x")
    expect(page.get_by_role("alert").filter(has_text="not_safetensors")).to_be_visible()
    expect(page.get_by_role("region", name="Canary: version 1")).to_be_visible()
    check("task")
    page.get_by_role("button", name="Delete task").click()
    check("dialog")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Trial of version 1").click()
    page.get_by_label("Canary", exact=True).check()
    check("trial")
    page.keyboard.press("Escape")
    found.go("live")
    expect(page.get_by_text("peak").first).to_be_visible()
    check("live")


def test_live_shows_what_the_server_does(moods):
    page = moods.go("live")
    panel = page.locator("figure").filter(has_text="Answers")
    expect(panel.get_by_text("peak")).to_be_visible()
    for at in range(8):
        body = {"tasks": ["*"], "texts": [f"the train {at}", f"the bus {at}"]}
        assert moods.api.post("/v1/classify", json=body).status_code == 200
    expect(panel.get_by_text(re.compile("peak (?!0/s)"))).to_be_visible()
    latency = page.locator("figure").filter(has_text="Latency of classify")
    expect(latency.get_by_role("status")).to_have_text(re.compile(r"^[\d.]+ m?s$"))
    batches = page.locator("figure").filter(has_text="Batches by texts")
    expect(batches.get_by_text(re.compile("^most: [1-9]"))).to_be_visible()
    moods.go("tasks")
    row = page.get_by_role("row").filter(has_text="mood")
    expect(row.get_by_title("16 answers since the server started")).to_be_visible()


def test_a_server_that_is_gone_is_told(moods):
    expect(moods.page.get_by_text("answers/s")).to_be_visible()
    moods.server.kill()
    expect(moods.page.get_by_text("no answer from the server", exact=True)).to_be_visible()
    moods.page.get_by_role("button", name="Classify").click()
    expect(moods.answers.get_by_role("alert")).to_contain_text("unreachable")
