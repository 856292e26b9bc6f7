"""``python -m labelmux_server``: the server alone, with the flags of the settings."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from labelmux_server.errors import SettingsError
from labelmux_server.settings import Settings
from labelmux_server.sigterm import ends_on_sigterm


@ends_on_sigterm()
def main(arguments: list[str] | None = None) -> int:
    """Serve; the exit code: 0 after a drain, 1 if it cannot start, 2 for wrong settings."""
    try:
        settings = Settings.from_sources(vars(_parser().parse_args(arguments)), os.environ)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    from labelmux_encoder.errors import EncoderError
    from labelmux_server.errors import StartError
    from labelmux_server.serve import Serving, serve

    def announce(serving: Serving) -> None:
        sys.stdout.write(
            f"serving {len(serving.tasks)} tasks on {serving.url} "
            f"(encoder {serving.encoder}, access {serving.access})\n"
        )
        sys.stdout.flush()

    try:
        serve(settings, announce, os.environ)
    except (StartError, EncoderError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m labelmux_server", description=__doc__)
    for knob in Settings.knobs():
        extra: dict[str, Any] = {"action": "store_true"} if knob.is_switch else {}
        parser.add_argument(
            knob.flag, dest=knob.name, default=None, help=f"{knob.help} ({knob.env})", **extra
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
