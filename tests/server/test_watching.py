"""The dashboard, the alerts and the page of metrics, against a server and a Prometheus."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from labelmux_adapters.bank import Bank
from labelmux_server.blobs import digest_of

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus"
PAGE = (ROOT / "docs/metrics.md").read_text()
DASHBOARD = json.loads((ROOT / "deploy/grafana/labelmux.json").read_text())
EXPRESSIONS = [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())
]
METRIC = re.compile(r"\b(?:labelmux|process)_[a-z_]+\b")
LIMIT_S = 60


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"NOT TESTED: {name} is missing; Debian has it in the package prometheus")
    return found


def check(*arguments: str, folder: Path = RULES) -> None:
    done = subprocess.run(
        [tool("promtool"), *arguments], capture_output=True, text=True, timeout=60, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr


def filled_in(expression: str) -> str:
    """An expression of the dashboard as Grafana sends it."""
    expression = expression.replace("$__rate_interval", "5s")
    return expression.replace("$instance", ".*").replace("$task", ".*")


class Busy:
    """A server of two tasks with room for one of them, and calls that end in every kind of way."""

    def __init__(self, url: str, state: Path, files: dict[str, bytes]) -> None:
        self.url = url
        self._files = files
        self._damaged = digest_of(files["u"]).removeprefix("sha256:")
        self._blobs = state / "blobs/sha256"
        self._client = httpx2.Client(base_url=url, timeout=60)

    def close(self) -> None:
        self._client.close()

    def traffic(self) -> None:
        """Calls that are answered, refused, and met by an adapter whose file is damaged."""
        for task, data in self._files.items():
            self._client.put(f"/v1/tasks/{task}/adapter", content=data).raise_for_status()
        for task in ("t", "u", "t"):
            self.ask(task)
        path = self._blobs / self._damaged[:2] / self._damaged
        path.write_bytes(b"x")
        assert self.ask("u").json()["error"]["code"] == "adapter_damaged"
        assert self.ask("nobody").status_code == 404

    def ask(self, task: str) -> httpx2.Response:
        return self._client.post("/v1/classify", json={"task": task, "texts": "the train"})

    def metrics(self) -> str:
        return self._client.get("/metrics").text


@pytest.fixture
def busy(start_server, tmp_path, tiny_encoder, make_adapter, adapter_bytes) -> Iterator[Busy]:
    one = Bank.beside(tiny_encoder.encoder).bytes_of(make_adapter().manifest)
    server = start_server("--max-resident-bytes", str(one))
    files = {"t": adapter_bytes(seed=0), "u": adapter_bytes(seed=1)}
    with contextlib.closing(Busy(server.url, tmp_path / "state", files)) as found:
        yield found


@pytest.mark.slow
def test_every_metric_that_is_named_is_there_and_the_page_has_them_all(busy):
    busy.traffic()
    text = busy.metrics()
    there = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line[0] != "#"}
    named = set(METRIC.findall((RULES / "alerts.yml").read_text()))
    named |= {name for expression in EXPRESSIONS for name in METRIC.findall(expression)}
    named |= set(METRIC.findall(json.dumps(DASHBOARD["templating"])))
    assert len(named) > 30
    assert named - there == set()

    kinds = dict(re.findall(r"^# TYPE (labelmux_\w+) (\w+)$", text, re.MULTILINE))
    shown = {
        name: (kinds[name], meaning)
        for name, meaning in re.findall(r"^# HELP (labelmux_\w+) (.+)$", text, re.MULTILINE)
    }
    documented = {
        name: (kind, meaning)
        for name, kind, meaning in re.findall(
            r"^\| `(labelmux_\w+)` \| (\w+) \|[^|]*\| ([^|]+) \|$", PAGE, re.MULTILINE
        )
    }
    assert documented == shown


@pytest.mark.slow
def test_the_page_has_the_labels_of_every_metric(busy):
    busy.traffic()
    own = re.findall(r"^(labelmux_\w+)\{(.*?)\} ", busy.metrics(), re.MULTILINE)
    documented = {
        name: set(re.findall(r"`(\w+)`", labels))
        for name, labels in re.findall(
            r"^\| `(labelmux_\w+)` \| \w+ \|([^|]*)\|", PAGE, re.MULTILINE
        )
    }
    for name, labels in own:
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        found = set(re.findall(r"(\w+)=", labels)) - {"le"}
        assert documented.get(name, documented.get(base)) == found, name


def test_the_rules_hold_and_fire_where_they_should() -> None:
    check("check", "rules", "alerts.yml")
    check("test", "rules", "alerts_test.yml")
    check("check", "config", "--syntax-only", "prometheus.yml")


def test_every_alert_is_tried_in_the_tests_of_the_rules() -> None:
    names = re.findall(r"- alert: (\w+)", (RULES / "alerts.yml").read_text())
    tests = (RULES / "alerts_test.yml").read_text()
    assert len(names) == len(set(names))
    assert set(re.findall(r"alertname: (\w+)", tests)) == set(names)
    assert f"value: {len(names)}" in tests


def test_the_dashboards_panels_are_whole() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [tuple(panel["gridPos"][side] for side in "xywh") for panel in panels]
    for at, (x, y, w, h) in enumerate(places):
        assert x + w <= 24
        for x2, y2, w2, h2 in places[at + 1 :]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y


@pytest.mark.slow
def test_every_panel_and_rule_has_something_to_show(busy, tmp_path):
    with prometheus(tmp_path, busy.url) as url, httpx2.Client(base_url=url) as client:
        empty = set(EXPRESSIONS)
        deadline = time.monotonic() + LIMIT_S
        while empty:
            assert time.monotonic() < deadline, empty
            busy.traffic()
            empty = {each for each in empty if not results(client, filled_in(each))}
        rules = client.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
        assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
        assert results(client, 'up{job="labelmux"}')[0]["value"][1] == "1"


def results(client: httpx2.Client, expression: str) -> list:
    answer = client.get("/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", (expression, answer)
    return answer["data"]["result"]


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """A Prometheus that scrapes the server every second, and has our rules."""
    shutil.copy(RULES / "alerts.yml", folder)
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n"
        "rule_files: [alerts.yml]\n"
        "scrape_configs:\n"
        "  - job_name: labelmux\n"
        f"    static_configs: [{{targets: ['{target.removeprefix('http://')}']}}]\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/tsdb",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + LIMIT_S
        while True:
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            assert time.monotonic() < deadline
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"http://{address}/-/ready").status_code == 200:
                    break
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)
