"""The API as one HTML page, drawn from the OpenAPI document: no script, no font, no CDN."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c2330; background: #fff; }
h2 { font-size: 1rem; margin: 2rem 0 .25rem; }
h2 code { font-size: 1.05rem; }
pre { background: #f2f4f8; padding: .75rem 1rem; overflow-x: auto; border-radius: 6px; }
.method { display: inline-block; min-width: 4.5rem; font-weight: 700; color: #1a5fb4; }
table { border-collapse: collapse; } td { padding: .1rem 1rem .1rem 0; vertical-align: top; }
a { color: #1a5fb4; }
@media (prefers-color-scheme: dark) {
  body { color: #e4e8f0; background: #12161e; } pre { background: #1d2430; }
  .method, a { color: #7ab0f5; }
}
"""

_EXAMPLE_TASK = "sentiment"


def docs_page(openapi: Mapping[str, Any], base_url: str, *, with_key: bool) -> str:
    """The page.

    Args:
        openapi: the app's document.
        base_url: where this server was reached, for the curl lines.
        with_key: whether they need a key.
    """
    routes = [
        _route(path, method, operation, base_url, with_key)
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    ]
    info = openapi["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
        f"<p>{escape(info.get('description', ''))}</p>"
        '<p>The same as data: <a href="/openapi.json">/openapi.json</a></p>'
        f"{''.join(routes)}</body></html>"
    )


def _route(
    path: str, method: str, operation: Mapping[str, Any], base_url: str, with_key: bool
) -> str:
    text = escape(operation.get("description", ""))
    return (
        f'<section><h2><span class="method">{method.upper()}</span><code>{escape(path)}</code></h2>'
        f"<p>{text}</p><pre>{escape(_curl(path, method, operation, base_url, with_key))}</pre>"
        f"{_errors(operation)}</section>"
    )


def _errors(operation: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td>{status}</td><td>{escape(answer['description'].replace('`', ''))}</td></tr>"
        for status, answer in operation.get("responses", {}).items()
        if int(status) >= 400
    ]
    if not rows:
        return ""
    return f"<details><summary>Errors</summary><table>{''.join(rows)}</table></details>"


def _curl(
    path: str, method: str, operation: Mapping[str, Any], base_url: str, with_key: bool
) -> str:
    url = base_url + path.replace("{task}", _EXAMPLE_TASK).replace("{version}", "1")
    words = ["curl"]
    content = operation.get("requestBody", {}).get("content", {})
    if "application/x-ndjson" in content and method == "put":
        words += ["-T", "labelled.jsonl"]
    elif "application/x-ndjson" in content:
        words += ["-X", method.upper(), "-T", "texts.jsonl"]
        url += f"?task={_EXAMPLE_TASK}"
    elif "application/octet-stream" in content:
        words += ["-T", "adapter.safetensors"]
    elif method != "get":
        words += ["-X", method.upper()]
    if with_key and operation.get("security"):
        words += ["-H", "Authorization: Bearer KEY"]
    if "application/json" in content:
        example = content["application/json"]["schema"]["examples"][0]
        words += ["-H", "content-type: application/json", "-d", json.dumps(example)]
    if path.endswith("/adapter") and method == "get":
        words += ["-o", "adapter.safetensors"]
    return shlex.join([*words, url])
