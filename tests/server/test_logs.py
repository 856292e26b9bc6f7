from __future__ import annotations

import json
import logging
import sys

from labelmux_server.logs import JsonLines, PlainLines


def record(**extra) -> logging.LogRecord:
    made = logging.LogRecord("labelmux_server.x", logging.INFO, "f", 1, "%d tasks", (3,), None)
    vars(made).update(extra)
    return made


def test_json_lines_carry_the_request():
    line = json.loads(JsonLines().format(record(request_id="r1", status=200, duration_ms=1.5)))
    assert line["message"] == "3 tasks"
    assert line["level"] == "info"
    assert (line["request_id"], line["status"], line["duration_ms"]) == ("r1", 200, 1.5)


def test_json_lines_stay_one_line_with_an_exception():
    made = record()
    try:
        raise ValueError("two\nlines")
    except ValueError:
        made.exc_info = sys.exc_info()
    text = JsonLines().format(made)
    assert "\n" not in text
    assert "ValueError" in json.loads(text)["exception"]


def test_plain_lines_end_with_the_request_id():
    assert PlainLines().format(record(request_id="r1")).endswith("3 tasks [r1]")
    assert PlainLines().format(record()).endswith("3 tasks")
