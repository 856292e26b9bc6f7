"""Names in the environment that would be settings but for a slip."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping

from labelmux_server.settings import ENV_PREFIX, Settings

#: What the command and compose.yaml read, beside the settings.
_OTHERS = frozenset({"LABELMUX_URL", "LABELMUX_KEY", "LABELMUX_METRICS_KEY"})

#: What Kubernetes sets in every pod for a Service called labelmux, or labelmux-metrics.
_SERVICE_NAME = re.compile(
    r"LABELMUX_(PORT_\w+|(\w+_)?SERVICE_(HOST|PORT(_\w+)?)|\w+_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


def slips(environ: Mapping[str, str]) -> Iterator[str]:
    """Of each name with our prefix that nothing reads, what to tell; never its value."""
    known = [knob.env for knob in Settings.knobs()]
    for name, value in sorted(environ.items()):
        ours = name.startswith(ENV_PREFIX) and value
        if ours and not (name in known or name in _OTHERS or _of_service(name, value)):
            yield f"{name} is set, but there is no such setting: {_remedy(name, known)}"


def _of_service(name: str, value: str) -> bool:
    return bool(_SERVICE_NAME.fullmatch(name) or _SERVICE_ADDRESS.match(value))


def _remedy(name: str, known: list[str]) -> str:
    # The prefix, which all share, would make all of them near.
    ends = [each.removeprefix(ENV_PREFIX) for each in known]
    near = difflib.get_close_matches(name.removeprefix(ENV_PREFIX), ends, n=1)
    if near:
        return f"the nearest is {ENV_PREFIX}{near[0]}"
    return "`labelmux serve --help` lists those that there are"
