"""A real Chromium before a real server. Nothing here runs where no Chromium is installed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Page

LIMIT_MS = 30_000

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip(f"THE CONSOLE IS NOT TESTED: no Chromium here; install one of {CHROMIUM}")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=LIMIT_MS)
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        chromium = playwright.chromium.launch(executable_path=found, args=flags)
        yield chromium
        chromium.close()


@dataclass
class Watch:
    """What a page may not do: log errors, break its policy, or ask anybody but its server."""

    url: str
    logged: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def page(self, context: BrowserContext) -> Page:
        page = context.new_page()
        page.on("console", lambda message: self._log(message))
        page.on("pageerror", lambda error: self.logged.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.set_default_timeout(LIMIT_MS)
        page.goto(self.url)
        return page

    def _log(self, message: ConsoleMessage) -> None:
        # A browser logs every refusal of the API by itself; those are part of what is tested.
        refused = message.text.startswith("Failed to load resource") and message.location[
            "url"
        ].startswith((f"{self.url}/v1/", f"{self.url}/metrics"))
        if message.type in ("error", "warning") and not refused:
            self.logged.append(message.text)

    def check(self) -> None:
        assert self.logged == []
        assert self.asked
        own = (f"{self.url}/", f"blob:{self.url}/")
        assert [url for url in self.asked if not url.startswith(own)] == []


class Console:
    """A server, its console in a page, and its API for comparison."""

    def __init__(self, server: Any, page: Page, key: str | None) -> None:
        self.server = server
        self.page = page
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.api = httpx2.Client(base_url=server.url, headers=headers, timeout=30)

    def go(self, place: str) -> Page:
        self.page.goto(f"{self.server.url}/#/{place}")
        return self.page

    def put(self, task: str, data: bytes, activate: str = "now") -> None:
        answer = self.api.put(
            f"/v1/tasks/{task}/adapter",
            content=data,
            params={"activate": activate},
            headers={"content-type": "application/octet-stream"},
        )
        assert answer.status_code in (200, 201), answer.text

    def start(self, task: str, kind: str, **wanted: Any) -> None:
        """Start a shadow or canary."""
        answer = self.api.post(f"/v1/tasks/{task}/{kind}", json=wanted)
        assert answer.status_code == 200, answer.text

    def classify(self, task: str, texts: list[str]) -> list[dict[str, Any]]:
        """What the active version, or the one that the name pins, says of each text."""
        answer = self.api.post("/v1/classify", json={"task": task, "texts": texts})
        assert answer.status_code == 200, answer.text
        return [result["predictions"][task] for result in answer.json()["results"]]

    @property
    def answers(self) -> Locator:
        return self.page.get_by_role("region", name="Answers")

    def choose(self, data: bytes, name: str = "mood.safetensors") -> None:
        """Choose a file in the place for uploads."""
        file = {"name": name, "mimeType": "application/octet-stream", "buffer": data}
        self.page.get_by_label("choose one").set_input_files(file)

    def drop(self, selector: str, data: bytes, name: str) -> None:
        """Let go of a file over an element."""
        transfer = self.page.evaluate_handle(
            """([bytes, name]) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(bytes)], name));
                return transfer;
            }""",
            [list(data), name],
        )
        for event in ("dragover", "drop"):
            self.page.dispatch_event(selector, event, {"dataTransfer": transfer})

    def enter_key(self, key: str) -> None:
        """Answer the dialog that asks for a key."""
        dialog = self.page.get_by_role("dialog", name="Access key")
        dialog.locator("input").fill(key)
        dialog.get_by_role("button", name="Use key").click()

    def active(self, task: str) -> int:
        return self.api.get(f"/v1/tasks/{task}").json()["version"]


@pytest.fixture
def console(browser, start_server) -> Iterator[Callable[..., Console]]:
    """An opener of consoles, each before a server of its own; what their pages did is checked."""
    opened: list[tuple[Console, BrowserContext, Watch]] = []

    def open_console(*flags: str, key: str | None = None, **options: Any) -> Console:
        server = start_server(*flags)
        context = browser.new_context(**options)
        watch = Watch(server.url)
        found = Console(server, watch.page(context), key)
        opened.append((found, context, watch))
        return found

    yield open_console
    for found, context, watch in opened:
        found.api.close()
        context.close()
        watch.check()


@pytest.fixture
def moods(console, adapter_bytes):
    """A console before a server with tasks that read a text, and one that reads a pair."""
    found = console()
    found.put("mood", adapter_bytes(labels=("glad", "sad", "calm"), seed=1))
    found.put("topic", adapter_bytes(labels=tuple(f"topic {at}" for at in range(12)), seed=2))
    found.put("same", adapter_bytes(labels=("no", "yes"), seed=3, pair=True))
    found.page.reload()
    return found
