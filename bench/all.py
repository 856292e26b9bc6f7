"""Every speed benchmark in its short form, one after the other: ``make bench``.

Prints their tables and writes ``bench/results/<date>.json``, an object by script. One that fails
is reported and does not stop the others; the exit status tells.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent


def run(script: str, arguments: Sequence[str], out: Path) -> tuple[object, bool]:
    """What one script wrote to its ``--out``, and whether it ended well."""
    print(f"\n# {script}\n", flush=True)
    command = [sys.executable, str(FOLDER / script), "--out", str(out), *arguments]
    ended = subprocess.run(command, check=False).returncode
    return (json.loads(out.read_text()) if out.exists() else None), ended == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python-infinity", default=None)
    parser.add_argument("--python-peers", default=None)
    parser.add_argument("--results", type=Path, default=FOLDER / "results")
    asked = parser.parse_args()
    peers = [
        word
        for flag, value in (
            ("--python-infinity", asked.python_infinity),
            ("--python-peers", asked.python_peers),
        )
        if value
        for word in (flag, value)
    ]
    found: dict[str, object] = {}
    failed: list[str] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for script, arguments in (
            *(("encoder.py", []), ("readouts.py", [])),
            *(("methods.py", peers), ("serve.py", peers)),
        ):
            result, well = run(script, arguments, Path(folder) / f"{script}.json")
            found[script.removesuffix(".py")] = result
            if not well:
                failed.append(script)
    found["took_s"] = round(time.monotonic() - started)
    target = asked.results / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}.json"
    target.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nwrote {target} after {found['took_s']} s" + "".join(f"; {s} FAILED" for s in failed))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
