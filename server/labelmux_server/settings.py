"""Every knob of the server, once: name with its unit, default, help.

Flags (``--max-wait-ms``), environment names (``LABELMUX_MAX_WAIT_MS``) and the table in the docs
derive from the fields below. Nothing here reads the environment by itself.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from labelmux_server.errors import SettingsError

ENV_PREFIX = "LABELMUX_"

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "int8"]
LogFormat = Literal["plain", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

#: What a header can carry, or a digest.
#: Clients send a key in a header, so it has printable ASCII alone.
_ADMIN_KEY = re.compile(r"(?!sha256:)[!-~]+|sha256:[0-9a-fA-F]{64}")

_URL = re.compile(r"https?://[^/\s]+")

#: Kubernetes gives each pod the address of every Service, by its name: LABELMUX_PORT for labelmux.
_SERVICE_LINK = (
    "; Kubernetes sets this for a Service called labelmux: give the pod enableServiceLinks: false"
)

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})

#: Room for the special tokens of a pair, and some words.
_LEAST_TEXT_TOKENS = 8

#: Pairs of settings of which the second may not be below the first, and why.
_ORDERED = (
    ("max_batch_tokens", "max_queue_tokens", "no batch could fill"),
    ("max_client_batch_size", "max_queue_rows", "a full call could never be taken"),
    ("max_client_batch_size", "max_queue_tokens", "a full call could never be taken"),
    ("max_text_chars", "max_body_bytes", "the longest text could never arrive"),
    ("max_queue_s", "request_timeout_s", "what waits that long is never answered"),
)


def _about(text: str, *, low: float | None = None, secret: bool = False) -> dict[str, Any]:
    return {"help": text, "low": low, "secret": secret}


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting as the outside names it."""

    name: str
    flag: str
    env: str
    default: Any
    help: str
    is_switch: bool
    secret: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """How this server is set up; built once at the edge and passed down."""

    host: str = field(
        default="127.0.0.1",
        metadata=_about("Address to bind. Beyond loopback, there must be a key."),
    )
    port: int = field(default=8000, metadata=_about("Port to bind; 0 takes a free one.", low=0))
    state_dir: Path = field(
        default=Path("state"), metadata=_about("Folder for adapters and their history.")
    )
    encoder: str = field(
        default="bundled", metadata=_about("The encoder: bundled, a folder, or a hub id.")
    )
    device: Device = field(
        default="auto", metadata=_about("Where the encoder runs; auto is a GPU if there is one.")
    )
    dtype: Dtype = field(
        default="auto",
        metadata=_about(
            "What the encoder multiplies in; auto is the fastest that is near enough to float32."
        ),
    )
    demo_dir: Path | None = field(
        default=None,
        metadata=_about("Demo adapters for a fresh state folder; those shipped by default."),
    )
    no_demo: bool = field(
        default=False, metadata=_about("Start a fresh state folder without the demo tasks.")
    )
    admin_key: str | None = field(
        default=None,
        repr=False,
        metadata=_about(
            "A key for everything, as it is or as sha256:HEX; `labelmux keys` makes others.",
            secret=True,
        ),
    )
    default_task: str | None = field(
        default=None,
        metadata=_about(
            "Task of requests that name none (TEI, vLLM, Infinity); the only one, if there is one."
        ),
    )
    max_requests_per_minute: int = field(
        default=0, metadata=_about("Most requests with one key in a minute; 0: no limit.", low=0)
    )
    max_tokens_per_minute: int = field(
        default=0,
        metadata=_about("Most tokens classified with one key in a minute; 0: no limit.", low=0),
    )
    max_batch_tokens: int = field(default=8192, metadata=_about("Most tokens in one batch.", low=1))
    max_batch_rows: int = field(default=256, metadata=_about("Most texts in one batch.", low=1))
    max_wait_ms: float = field(
        default=50.0,
        metadata=_about("How long a text may be passed over for nearer lengths.", low=0),
    )
    feature_cache_bytes: int = field(
        default=256 * 1024 * 1024,
        metadata=_about("Most bytes of features kept for texts that come again; 0: none.", low=0),
    )
    max_concurrent_requests: int = field(
        default=1024,
        metadata=_about("Most requests in work at once, probes aside; beyond, 429.", low=1),
    )
    max_queue_tokens: int = field(
        default=262_144, metadata=_about("Most tokens that may wait; beyond, 429.", low=1)
    )
    max_queue_rows: int = field(
        default=16_384,
        metadata=_about("Most rows (a text for a task) that may wait; beyond, 429.", low=1),
    )
    max_queue_s: float = field(
        default=5.0,
        metadata=_about("Longest wait that a new text may expect; beyond, 429.", low=0),
    )
    max_client_batch_size: int = field(
        default=256, metadata=_about("Most texts in one call.", low=1)
    )
    max_tasks_per_call: int = field(
        default=1024, metadata=_about("Most tasks in one call, all that `*` stands for too.", low=1)
    )
    max_text_chars: int = field(
        default=100_000, metadata=_about("Most characters in one text.", low=1)
    )
    max_text_tokens: int = field(
        default=0,
        metadata=_about(
            "Most tokens read of one text at a time, at least 8; 0: as many as its task reads.",
            low=0,
        ),
    )
    max_body_bytes: int = field(default=4_000_000, metadata=_about("Longest JSON body.", low=1))
    max_head_bytes: int = field(
        default=65_536, metadata=_about("Longest head of a request: its path and headers.", low=1)
    )
    stall_s: float = field(
        default=30.0,
        metadata=_about(
            "Longest time for a head, for the next 64 KiB of a body, and for a caller to go on "
            "reading its answer.",
            low=0.001,
        ),
    )
    stream_window_lines: int = field(
        default=512,
        metadata=_about(
            "Lines of one stream in work at once; meanwhile no more of it is read.", low=256
        ),
    )
    max_upload_bytes: int = field(
        default=64 * 1024 * 1024, metadata=_about("Longest adapter file.", low=1)
    )
    max_uploads: int = field(
        default=4,
        metadata=_about("Most uploads at once, each of which lies in memory; beyond, 429.", low=1),
    )
    max_adapter_labels: int = field(
        default=1000, metadata=_about("Most labels in one adapter; the format has 1000.", low=2)
    )
    max_adapter_header_bytes: int = field(
        default=1024 * 1024, metadata=_about("Longest header of an adapter file.", low=1)
    )
    max_adapter_tensors: int = field(
        default=256, metadata=_about("Most tensors in an adapter file.", low=1)
    )
    max_gate_bytes: int = field(
        default=4_000_000, metadata=_about("Longest labelled set of a task's gate.", low=1)
    )
    max_tasks: int = field(default=20_000, metadata=_about("Most tasks on the server.", low=1))
    max_adapters: int = field(
        default=100_000,
        metadata=_about("Most adapters on the server: versions of all tasks.", low=1),
    )
    max_resident_bytes: int = field(
        default=2 * 1024 * 1024 * 1024,
        metadata=_about(
            "Most bytes of adapters kept ready; the least recently used go first.", low=1
        ),
    )
    preload: str | None = field(
        default=None,
        metadata=_about(
            "Tasks brought into memory before the server is ready: names or patterns such as "
            "`shop-*`, separated by commas."
        ),
    )
    pin: str | None = field(
        default=None,
        metadata=_about("Tasks preloaded and never moved out of memory, named as for preload."),
    )
    request_timeout_s: float = field(
        default=30.0, metadata=_about("Longest time to answer a classification.", low=0.001)
    )
    watchdog_s: float = field(
        default=120.0,
        metadata=_about("Longest time of one batch; beyond, the server is not live.", low=0.001),
    )
    watchdog_grace_s: float = field(
        default=10.0,
        metadata=_about("Time to be seen as not live before the process exits with 70.", low=0),
    )
    shutdown_delay_s: float = field(
        default=0.0,
        metadata=_about("After SIGTERM, time to serve on as not ready.", low=0),
    )
    shutdown_grace_s: int = field(
        default=20, metadata=_about("After that, longest wait for running requests.", low=1)
    )
    tokenizer_threads: int = field(default=2, metadata=_about("Threads that tokenise.", low=1))
    task_metrics: int = field(
        default=100,
        metadata=_about("Most tasks with metrics of their own; the others share one name.", low=0),
    )
    log_format: LogFormat = field(
        default="plain", metadata=_about("Log lines as plain text or as JSON.")
    )
    log_level: LogLevel = field(default="info", metadata=_about("Least level that is logged."))
    log_texts: bool = field(
        default=False,
        metadata=_about("Log the texts of every call, and what unforeseen errors say of them."),
    )
    otlp_endpoint: str | None = field(
        default=None,
        metadata=_about(
            "Where traces go, such as `http://collector:4318`; needs `labelmux[otel]`. None: none."
        ),
    )
    trace_share: float = field(
        default=1.0,
        metadata=_about("The share of requests that are traced, of those without a trace.", low=0),
    )

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):
            _check(item.name, getattr(self, item.name), kinds[item.name], item.metadata["low"])
        if self.port > 65_535:
            raise SettingsError(f"port is {self.port}; a port is at most 65535")
        if self.admin_key is not None and not _ADMIN_KEY.fullmatch(self.admin_key):
            raise SettingsError(
                "admin_key is no key; set one of ASCII letters, digits and signs without spaces, "
                "or sha256: and the 64 hexadecimal digits of one's digest, or leave it out"
            )
        if self.otlp_endpoint is not None and not _URL.match(self.otlp_endpoint):
            raise SettingsError(
                f"otlp_endpoint is {self.otlp_endpoint!r}; give a collector's address, such as "
                "http://collector:4318"
            )
        if self.trace_share > 1:
            raise SettingsError(f"trace_share is {self.trace_share}; a share is at most 1")
        if 0 < self.max_text_tokens < _LEAST_TEXT_TOKENS:
            raise SettingsError(
                f"max_text_tokens is {self.max_text_tokens}, which leaves nothing to read; give at "
                f"least {_LEAST_TEXT_TOKENS}, or 0 for what each task reads"
            )
        self._refuse_mixes()

    def _refuse_mixes(self) -> None:
        for low, high, why in _ORDERED:
            least, found = getattr(self, low), getattr(self, high)
            if found < least:
                raise SettingsError(
                    f"{high} is {found}, below {low} {least}: {why}; raise the one or lower the "
                    "other"
                )
        if self.max_wait_ms / 1000 > self.max_queue_s:
            raise SettingsError(
                f"max_wait_ms is {self.max_wait_ms}, which is over max_queue_s {self.max_queue_s}: "
                "a text could be passed over for longer than it may wait; lower it"
            )

    def check_encoder(self, max_tokens: int, token_bytes: int) -> None:
        """Refuse an encoder whose longest row could never be served, or never be kept.

        Args:
            max_tokens: of that row.
            token_bytes: bytes of one token's features.

        Raises:
            SettingsError: a row of ``max_tokens`` does not fit into a batch, or into the cache.
        """
        if self.max_batch_tokens < max_tokens:
            raise SettingsError(
                f"max_batch_tokens is {self.max_batch_tokens}, but one row of this encoder may "
                f"have {max_tokens} tokens; raise it to at least that"
            )
        if 0 < self.feature_cache_bytes < max_tokens * token_bytes:
            raise SettingsError(
                f"feature_cache_bytes is {self.feature_cache_bytes}, but the features of one row "
                f"of this encoder may have {max_tokens * token_bytes}; raise it to at least that, "
                "or set 0 to keep none"
            )

    @classmethod
    def knobs(cls) -> Iterator[Knob]:
        """Every setting, in order, for flags, help and docs."""
        for item in dataclasses.fields(cls):
            yield Knob(
                name=item.name,
                flag="--" + item.name.replace("_", "-"),
                env=ENV_PREFIX + item.name.upper(),
                default=item.default,
                help=item.metadata["help"],
                is_switch=isinstance(item.default, bool),
                secret=item.metadata["secret"],
            )

    @classmethod
    def from_sources(
        cls, flags: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None
    ) -> Settings:
        """Settings from flags, then the environment, then defaults.

        Args:
            flags: by setting name; a value of None means that the flag was not given.
            environ: the process's environment; names that are no setting's are ignored.

        Raises:
            SettingsError: an unknown flag or a value that cannot work.
        """
        kinds = typing.get_type_hints(cls)
        given = {name: value for name, value in (flags or {}).items() if value is not None}
        unknown = given.keys() - {knob.name for knob in cls.knobs()}
        if unknown:
            raise SettingsError(f"no setting named {', '.join(sorted(unknown))}")
        values: dict[str, Any] = {}
        for knob in cls.knobs():
            if knob.name in given:
                values[knob.name] = _read(knob.flag, given[knob.name], kinds[knob.name])
            elif (environ or {}).get(knob.env):
                values[knob.name] = _read(knob.env, (environ or {})[knob.env], kinds[knob.name])
        return cls(**values)

    def describe(self) -> dict[str, str]:
        """Effective values for people, secrets masked."""
        return {
            knob.name: "set" if knob.secret and value is not None else str(value)
            for knob in self.knobs()
            for value in (getattr(self, knob.name),)
        }


def docs_table() -> str:
    """The settings as a Markdown table."""
    lines = ["| Flag | Environment | Default | Meaning |", "|---|---|---|---|"]
    for knob in Settings.knobs():
        default = "" if knob.default is None else f"`{knob.default}`"
        lines.append(f"| `{knob.flag}` | `{knob.env}` | {default} | {knob.help} |")
    return "\n".join(lines) + "\n"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _read(source: str, value: object, kind: Any) -> Any:
    """``value`` as the setting's type; text is parsed, anything else is taken as it is."""
    if not isinstance(value, str):
        return value
    options = [option for option in typing.get_args(kind) or (kind,) if option is not type(None)]
    target = options[0]
    if target is bool:
        return _read_switch(source, value)
    if target in (int, float):
        try:
            return target(value)
        except ValueError as error:
            whole = "a whole number" if target is int else "a number"
            hint = _SERVICE_LINK if value.startswith("tcp://") else ""
            raise SettingsError(f"{source} is {value!r}; it takes {whole}{hint}") from error
    return Path(value) if target is Path else value


def _read_switch(source: str, value: str) -> bool:
    word = value.strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise SettingsError(f"{source} is {value!r}; it takes true or false")


def _check(name: str, value: Any, kind: Any, low: float | None) -> None:
    choices = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        if value not in choices:
            raise SettingsError(f"{name} is {value!r}; it takes {' or '.join(choices)}")
        return
    allowed = choices or (kind,)
    if float in allowed:
        allowed = (*allowed, int)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise SettingsError(f"{name} is {value!r}, which has the wrong type for it")
    if low is not None and not value >= low:
        raise SettingsError(f"{name} is {value}; it takes at least {low:g}")
