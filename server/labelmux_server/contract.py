"""The wire contract: ``python -m labelmux_server.contract FILE`` writes the OpenAPI document."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from labelmux_server.app import create_app
from labelmux_server.settings import Settings


def openapi() -> dict[str, Any]:
    """The document; needs no encoder and no state folder."""
    return create_app(Settings()).openapi()


def render() -> str:
    """The document as it is committed: sorted, so that a difference is a change."""
    return json.dumps(openapi(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(render(), encoding="utf-8")
    else:
        sys.stdout.write(render())
