"""The console as people use it."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from labelmux_adapters.manifest import Calibration
from labelmux_server.keys import Rights, opened_keys

pytestmark = pytest.mark.slow

MARKUP = '<img src=x onerror="window.owned = true">'


def as_file(data: bytes, name: str = "mood.safetensors") -> dict:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": data}


def drop(page, selector: str, data: bytes, name: str) -> None:
    """Let go of a file over an element."""
    transfer = page.evaluate_handle(
        """([bytes, name]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], name));
            return transfer;
        }""",
        [list(data), name],
    )
    for event in ("dragover", "drop"):
        page.dispatch_event(selector, event, {"dataTransfer": transfer})


def enter_key(page, key: str) -> None:
    dialog = page.get_by_role("dialog", name="Access key")
    dialog.locator("input").fill(key)
    dialog.get_by_role("button", name="Use key").click()


@pytest.fixture
def moods(console, adapter_bytes):
    """A console before a server with tasks that read a text, and one that reads a pair."""
    found = console()
    found.put("mood", adapter_bytes(labels=("glad", "sad", "calm"), seed=1))
    found.put("topic", adapter_bytes(labels=tuple(f"topic {at}" for at in range(12)), seed=2))
    found.put("same", adapter_bytes(labels=("no", "yes"), seed=3, pair=True))
    found.page.reload()
    return found


def answers(page):
    return page.get_by_role("region", name="Answers")


def test_a_text_is_read_by_every_task_that_takes_one(moods):
    page = moods.page
    page.get_by_label("Text", exact=True).fill("a good film with a warm heart")
    page.get_by_role("button", name="Classify").click()
    cards = answers(page).get_by_role("article")
    expect(cards.get_by_role("heading")).to_have_text(["moodv1", "topicv1"])
    body = {"task": "mood", "texts": "a good film with a warm heart"}
    (result,) = moods.api.post("/v1/classify", json=body).json()["results"]
    rows = [
        f"{item['label']}{item['score']:.3f}" for item in result["predictions"]["mood"]["labels"]
    ]
    expect(cards.first.get_by_role("listitem")).to_have_text(rows)
    expect(answers(page)).to_contain_text("2 tasks")
    expect(answers(page)).to_contain_text("1 encoder row")
    cards.last.get_by_role("button", name="All 12 labels").click()
    expect(cards.last.get_by_role("listitem")).to_have_count(12)


def test_a_pair_goes_to_the_tasks_that_read_two_texts(moods):
    page = moods.page
    page.get_by_label("a pair of texts").check()
    page.get_by_label("First text").fill("the train leaves at nine")
    page.get_by_label("Second text").fill("the bus leaves at ten")
    page.get_by_role("button", name="Classify").click()
    expect(answers(page).get_by_role("heading")).to_have_text(["samev1"])


def test_chosen_tasks_answer_alone_and_a_misfit_says_why(moods):
    page = moods.page
    page.get_by_role("checkbox", name="topic").check()
    page.get_by_role("checkbox", name="same").check()
    page.get_by_role("button", name="Classify").click()
    expect(answers(page).get_by_role("article")).to_have_count(2)
    expect(answers(page)).to_contain_text("task_needs_pairs")
    page.get_by_role("button", name="Leave out same").click()
    page.get_by_role("button", name="Classify").click()
    expect(answers(page).get_by_role("heading")).to_have_text(["topicv1"])


def test_spans_are_marked_where_they_stand_in_the_text(console, adapter_bytes):
    found = console()
    tags = ("O", "B-place", "I-place", "B-time", "I-time")
    found.put("ner", adapter_bytes(labels=tags, task_kind="token", seed=3))
    text = "🚂🚂 the train to the coast leaves at nine"
    (result,) = found.api.post("/v1/classify", json={"task": "ner", "texts": text}).json()[
        "results"
    ]
    spans = result["predictions"]["ner"]["spans"]
    assert spans[-1]["start"] > 3
    page = found.page
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_role("button", name="Classify").click()
    marks = answers(page).locator("mark")
    expected = [f"{span['text']} {span['label']} {span['score']:.3f}" for span in spans]
    expect(marks).to_have_text(expected)
    marked = answers(page).locator(".marked")
    shown = marked.evaluate(
        "(node) => { node.querySelectorAll('.tag').forEach((tag) => tag.remove());"
        " return node.textContent; }"
    )
    assert shown == text


def test_each_kind_of_task_says_what_it_decided(console, adapter_bytes):
    found = console()
    several = Calibration(thresholds=(1e-6, 0.999999, 1e-6))
    found.put(
        "several",
        adapter_bytes(labels=("a", "b", "c"), task_kind="multi_label", calibration=several),
    )
    found.put("unsure", adapter_bytes(labels=("x", "y"), calibration=Calibration(abstain=0.9999)))
    page = found.page
    page.get_by_role("button", name="Classify").click()
    cards = answers(page).get_by_role("article")
    several_card, unsure_card = (cards.filter(has_text=name) for name in ("several", "unsure"))
    expect(several_card.locator(".chosen .label")).to_contain_text(["(predicted)"] * 2)
    expect(unsure_card).to_contain_text("abstains")


def test_the_curl_line_is_the_call_that_was_made(moods):
    page = moods.page
    page.get_by_label("Text", exact=True).fill("it's bad")
    page.get_by_text("As curl").click()
    shown = page.get_by_label("The same call with curl")
    expect(shown).to_contain_text(f"curl -s {moods.server.url}/v1/classify ")
    line = shown.inner_text()
    body = re.search(r"-d '(.*)'$", line).group(1).replace("'\\''", "'")
    assert json.loads(body) == {"tasks": ["*"], "texts": ["it's bad"]}


def test_a_new_task_is_uploaded_and_serves(console, adapter_bytes):
    found = console()
    page = found.go("tasks")
    expect(page.get_by_text("No task serves yet")).to_be_visible()
    page.get_by_role("button", name="New task").click()
    dialog = page.get_by_role("dialog", name="New task")
    dialog.get_by_label("choose one").set_input_files(as_file(adapter_bytes(labels=("x", "y"))))
    expect(dialog.get_by_label("Name of the new task")).to_have_value("mood")
    dialog.get_by_role("button", name="Upload").click()
    expect(page.get_by_role("heading", name="mood", level=1)).to_be_visible()
    expect(page.get_by_role("status")).to_contain_text(["mood serves, version 1."])
    assert found.active("mood") == 1


def test_a_new_task_never_replaces_one_that_is_there(moods, adapter_bytes):
    page = moods.go("tasks")
    expect(page.get_by_role("link", name="mood")).to_be_visible()
    drop(page, "main", adapter_bytes(seed=9), "mood.safetensors")
    dialog = page.get_by_role("dialog", name="New task")
    dialog.get_by_role("button", name="Upload").click()
    expect(dialog.get_by_role("alert")).to_contain_text("task_exists")
    assert moods.active("mood") == 1


def test_versions_are_uploaded_swapped_rolled_back_and_deleted(moods, adapter_bytes):
    page = moods.go("tasks/mood")
    table = page.get_by_role("region", name="Versions").locator("tbody tr")
    expect(table).to_have_count(1)
    drop(page, ".drop", adapter_bytes(labels=("glad", "sad"), seed=5), "second.safetensors")
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
    expect(answers(page).get_by_role("heading")).to_have_text(["moodv1"])


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
    page.get_by_label("choose one").set_input_files(as_file(data))
    alert = page.get_by_role("alert").filter(has_text=code)
    expect(alert).to_be_visible()
    assert [v["version"] for v in found.api.get("/v1/tasks/mood/versions").json()["versions"]] == [
        1
    ]
    page.get_by_label("choose one").set_input_files(as_file(good))
    if code != "file_too_large":
        expect(page.get_by_text("was here already, and is active")).to_be_visible()


def test_a_damaged_adapter_is_refused_with_the_servers_words(moods, adapter_bytes):
    page = moods.go("tasks/mood")
    page.get_by_label("choose one").set_input_files(as_file(adapter_bytes()[:-3]))
    expect(page.get_by_role("alert").filter(has_text="truncated_file")).to_contain_text("request")


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
    enter_key(page, reader)
    expect(page.get_by_role("heading", name="mood")).to_be_visible()
    page.get_by_label("choose one").set_input_files(as_file(adapter_bytes(seed=4)))
    expect(page.get_by_role("dialog")).to_contain_text("wrong_scope")
    enter_key(page, "right")
    expect(page.get_by_text("Version 2 of mood is active.")).to_be_visible()
    assert found.active("mood") == 2


def test_a_cancelled_key_leaves_all_as_it_was(console, adapter_bytes):
    found = console("--admin-key", "right", key="right")
    found.put("mood", adapter_bytes())
    found.put("mood", adapter_bytes(seed=4))
    with opened_keys(found.server.state_dir) as keys:
        reader = keys.create("reader", Rights(frozenset({"classify"})))
    page = found.go("tasks/mood")
    enter_key(page, reader)
    expect(page.get_by_role("alert").filter(has_text="wrong_scope")).to_be_visible()
    page.get_by_role("button", name="Delete task").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete mood").click()
    expect(page.get_by_role("dialog", name="Access key")).to_contain_text("wrong_scope")
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert").filter(has_text="wrong_scope")).to_have_count(2)
    assert found.active("mood") == 2


def test_without_a_key_the_page_waits_for_one(console):
    page = console("--admin-key", "right", key="right").page
    expect(page.get_by_role("dialog", name="Access key")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert").filter(has_text="unauthorized")).to_be_visible()
    page.get_by_role("button", name="Enter a key").click()
    enter_key(page, "right")
    expect(page.get_by_label("Text", exact=True)).to_be_visible()


def test_the_key_stays_in_its_tab(console):
    found = console("--admin-key", "right", key="right")
    page = found.page
    enter_key(page, "right")
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


def test_what_a_server_says_is_text_and_never_markup(console, adapter_bytes):
    found = console()
    found.put("mood", adapter_bytes(labels=(MARKUP, "<script>alert(1)</script>")))
    page = found.page
    page.reload()
    page.get_by_role("button", name="Classify").click()
    expect(answers(page).get_by_text(MARKUP)).to_be_visible()
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
    expect(answers(page).get_by_role("article")).to_have_count(2)
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
    page = found.page
    page.reload()
    page.get_by_role("button", name="Classify").click()
    expect(answers(page).get_by_role("article")).to_have_count(1)

    def check(place: str) -> None:
        report = Axe().run(page)
        assert report.violations_count == 0, f"{place}: {report.generate_report()}"

    check("try")
    found.go("tasks")
    expect(page.get_by_role("link", name="mood")).to_be_visible()
    check("tasks")
    found.go("tasks/mood")
    page.get_by_label("choose one").set_input_files(as_file(b"x"))
    expect(page.get_by_role("alert").filter(has_text="not_safetensors")).to_be_visible()
    check("task")
    page.get_by_role("button", name="Delete task").click()
    check("dialog")
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


def test_a_server_that_is_gone_is_told(moods):
    expect(moods.page.get_by_text("answers/s")).to_be_visible()
    moods.server.kill()
    expect(moods.page.get_by_text("no answer from the server", exact=True)).to_be_visible()
    moods.page.get_by_role("button", name="Classify").click()
    expect(answers(moods.page).get_by_role("alert")).to_contain_text("unreachable")


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
    expect(answers(page).get_by_role("heading")).to_have_text(["task-129v1"])
