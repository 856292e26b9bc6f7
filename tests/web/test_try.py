"""Texts and pairs on tasks, and how each kind of answer is shown."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from labelmux_adapters.manifest import Calibration

pytestmark = pytest.mark.slow


def test_a_text_is_read_by_every_task_that_takes_one(moods):
    page = moods.page
    page.get_by_label("Text", exact=True).fill("a good film with a warm heart")
    page.get_by_role("button", name="Classify").click()
    cards = moods.answers.get_by_role("article")
    expect(cards.get_by_role("heading")).to_have_text(["moodv1", "topicv1"])
    body = {"task": "mood", "texts": "a good film with a warm heart"}
    (result,) = moods.api.post("/v1/classify", json=body).json()["results"]
    rows = [
        f"{item['label']}{item['score']:.3f}" for item in result["predictions"]["mood"]["labels"]
    ]
    expect(cards.first.get_by_role("listitem")).to_have_text(rows)
    expect(moods.answers).to_contain_text("2 tasks")
    expect(moods.answers).to_contain_text("1 encoder row")
    cards.last.get_by_role("button", name="All 12 labels").click()
    expect(cards.last.get_by_role("listitem")).to_have_count(12)


def test_a_pair_goes_to_the_tasks_that_read_two_texts(moods):
    page = moods.page
    page.get_by_label("a pair of texts").check()
    page.get_by_label("First text").fill("the train leaves at nine")
    page.get_by_label("Second text").fill("the bus leaves at ten")
    page.get_by_role("button", name="Classify").click()
    expect(moods.answers.get_by_role("heading")).to_have_text(["samev1"])


def test_chosen_tasks_answer_alone_and_a_misfit_says_why(moods):
    page = moods.page
    page.get_by_role("checkbox", name="topic").check()
    page.get_by_role("checkbox", name="same").check()
    page.get_by_role("button", name="Classify").click()
    expect(moods.answers.get_by_role("article")).to_have_count(2)
    expect(moods.answers).to_contain_text("task_needs_pairs")
    page.get_by_role("button", name="Leave out same").click()
    page.get_by_role("button", name="Classify").click()
    expect(moods.answers.get_by_role("heading")).to_have_text(["topicv1"])


def test_nothing_is_called_busy_where_no_task_is_chosen_while_a_call_runs(moods):
    page = moods.page
    page.route("**/v1/classify", lambda route: None)
    page.get_by_role("button", name="Classify").click()
    expect(moods.answers).to_have_attribute("aria-busy", "true")
    page.get_by_label("Chosen", exact=True).check()
    page.get_by_role("button", name="Classify").click()
    expect(moods.answers).to_have_text("Choose at least one task.")
    expect(moods.answers).to_have_attribute("aria-busy", "false")


def test_control_enter_checks_the_form_as_the_button_does(moods):
    page = moods.page
    text = page.get_by_label("Text", exact=True)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    text.fill("")
    text.press("Control+Enter")
    expect(moods.answers).to_contain_text("All tasks on a text share one pass")
    expect(moods.answers).to_have_attribute("aria-busy", "false")
    text.fill("a good film")
    text.press("Control+Enter")
    expect(moods.answers.get_by_role("article")).to_have_count(2)
    assert len([url for url in asked if url.endswith("/v1/classify")]) == 1


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
    marks = found.answers.locator("mark")
    expected = [f"{span['text']} {span['label']} {span['score']:.3f}" for span in spans]
    expect(marks).to_have_text(expected)
    marked = found.answers.locator(".marked")
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
    cards = found.answers.get_by_role("article")
    several_card, unsure_card = (cards.filter(has_text=name) for name in ("several", "unsure"))
    expect(several_card.locator(".chosen .label")).to_contain_text(["(predicted)"] * 2)
    expect(unsure_card).to_contain_text("abstains")


def test_a_long_text_is_read_in_windows_where_asked(moods):
    page = moods.page
    text = "the train leaves at nine and the bus at ten " * 30
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_role("button", name="Classify").click()
    cards = moods.answers.get_by_role("article")
    expect(cards.filter(has_text="cut")).to_have_count(2)

    page.get_by_label("a long text in windows").check()
    page.get_by_label("Tokens shared").fill("8")
    page.get_by_label("Together by").select_option("max")
    page.get_by_role("button", name="Classify").click()
    windows = {"overlap_tokens": 8, "aggregation": "max"}
    body = {"task": "mood", "texts": text, "windows": windows}
    (result,) = moods.api.post("/v1/classify", json=body).json()["results"]
    mood = result["predictions"]["mood"]
    expect(cards.first).to_contain_text(f"{mood['windows']} windows")
    rows = [f"{item['label']}{item['score']:.3f}" for item in mood["labels"]]
    expect(cards.first.get_by_role("listitem")).to_have_text(rows)
    page.get_by_text("As curl").click()
    shown = page.get_by_label("The same call with curl")
    expect(shown).to_contain_text(json.dumps(windows, separators=(",", ":")))

    page.get_by_label("Tokens shared").fill("32768")
    page.get_by_role("button", name="Classify").click()
    expect(cards.first.get_by_role("alert")).to_contain_text("overlap_too_long")

    page.get_by_label("a pair of texts").check()
    expect(page.get_by_label("a long text in windows")).to_be_hidden()
    page.get_by_label("Second text").fill("the bus leaves at ten")
    page.get_by_role("button", name="Classify").click()
    expect(moods.answers.get_by_role("heading")).to_have_text(["samev1"])


def test_the_curl_line_is_the_call_that_was_made(moods):
    page = moods.page
    page.get_by_label("Text", exact=True).fill("it's bad")
    page.get_by_text("As curl").click()
    shown = page.get_by_label("The same call with curl")
    expect(shown).to_contain_text(f"curl -s {moods.server.url}/v1/classify ")
    line = shown.inner_text()
    body = re.search(r"-d '(.*)'$", line).group(1).replace("'\\''", "'")
    assert json.loads(body) == {"tasks": ["*"], "texts": ["it's bad"]}
