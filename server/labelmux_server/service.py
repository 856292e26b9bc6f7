"""Everything that serves, put together and taken apart in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from labelmux_adapters.bank import Bank
from labelmux_adapters.files import FileLimits
from labelmux_encoder.weights import LoadedEncoder, load_encoder
from labelmux_server.batcher import Batcher, Limits
from labelmux_server.caller import Caller
from labelmux_server.changes import Changes, UploadLimits
from labelmux_server.engine import Engine
from labelmux_server.errors import OverloadedError, StateError, StorageError
from labelmux_server.feature_cache import FeatureCache
from labelmux_server.gate import Gate
from labelmux_server.keyring import Keyring
from labelmux_server.keys import EVERY_RIGHT
from labelmux_server.library import Library
from labelmux_server.metrics import Metrics, Reading
from labelmux_server.pins import Pins
from labelmux_server.rates import Rates
from labelmux_server.registry import Registry
from labelmux_server.replica import Replica
from labelmux_server.residency import Residency
from labelmux_server.settings import Settings
from labelmux_server.shadows import Shadows
from labelmux_server.store import Store
from labelmux_server.threads import CHANGE_NICENESS, give_way
from labelmux_server.tokenizer_pool import TokenizerPool
from labelmux_server.turns import Turns

Result = TypeVar("Result")

#: Preloaded tasks that answer once before the server is ready: about one of each shape will do.
_WARM_UP_TASKS = 64

SHIPPED_DEMO = Path(__file__).parent / "demo"

_log = logging.getLogger(__name__)


class Service:
    """One running server without its HTTP side."""

    def __init__(
        self,
        settings: Settings,
        loaded: LoadedEncoder,
        metrics: Metrics,
        store: Store,
        keyring: Keyring,
    ) -> None:
        """Load what the state folder holds. Slow; not for the event loop."""
        self.settings = settings
        self.loaded = loaded
        self.metrics = metrics
        #: From the signal to stop on: requests should go elsewhere, and are still answered.
        self.draining = False
        #: Set once no more come: what runs is to end.
        self.stopping = asyncio.Event()
        self._uploads = 0
        self._bank = Bank.beside(loaded.encoder)
        self.registry = Registry()
        self.store = store
        self.keyring = keyring
        self.rates = Rates(metrics)
        self.library = library = Library(store, self.registry, loaded.encoder)
        self.residency = Residency(
            self._bank,
            library.adapter,
            settings.max_resident_bytes,
            metrics,
            begin=partial(loaded.encoder.use_threads, 1),
        )
        pins = Pins(self.residency, settings.pin)
        self._changes = Changes(
            store,
            self.registry,
            library,
            self._bank,
            self.residency,
            pins,
            loaded,
            _upload_limits(settings),
        )
        self._changes.load_stored()
        self._seed()
        self._preloaded = pins.load(self.registry, settings.preload)
        self._changer = ThreadPoolExecutor(1, "labelmux-changes", self._begin_changing)
        shares = loaded.encoder.shares
        self.batcher = Batcher(
            Limits(
                settings.max_batch_tokens,
                settings.max_batch_rows,
                settings.max_queue_tokens,
                settings.max_queue_rows,
                settings.max_queue_s,
                settings.max_wait_ms,
                max_shares=shares.passes,
                min_share_tokens=shares.least_tokens,
                max_share_tokens=shares.most_tokens,
            )
        )
        self._tokenizers = TokenizerPool(loaded.tokenizer, settings.tokenizer_threads)
        self._shadows = Shadows(self.batcher, self.residency, settings.request_timeout_s)
        self.engine = Engine(
            self.registry,
            self.residency,
            self.batcher,
            self._tokenizers,
            metrics,
            self._shadows,
            max_rows=settings.max_queue_rows,
            max_tokens=settings.max_queue_tokens,
            max_text_tokens=settings.max_text_tokens,
            timeout_s=settings.request_timeout_s,
            log_texts=settings.log_texts,
        )
        self.gate = Gate(store, self.engine, settings.max_text_chars)
        self._cache = FeatureCache[Any](settings.feature_cache_bytes)
        self._replica: Replica | None = None
        self._turns = Turns(self._tell_of_loop)
        metrics.watch_trials(self.registry.every_trials)
        self._watch(pins)

    @classmethod
    async def start(
        cls, settings: Settings, loaded: LoadedEncoder | None, metrics: Metrics
    ) -> Service:
        """A service that answers.

        Raises:
            EncoderError: the encoder cannot be loaded.
            SettingsError: the settings and this encoder do not go together.
            StateError: the state folder cannot be used.
        """
        loop = asyncio.get_running_loop()

        def build() -> Service:
            encoder = loaded or load_encoder(
                settings.encoder, device=settings.device, dtype=settings.dtype
            )
            settings.check_encoder(encoder.encoder.config.max_tokens, _token_bytes(encoder))
            with ExitStack() as undo:
                store = Store(settings.state_dir)
                undo.callback(store.close)
                keyring = Keyring(settings)
                undo.callback(keyring.close)
                try:
                    service = cls(settings, encoder, metrics, store, keyring)
                except StorageError as error:
                    raise StateError(str(error)) from error
                service._replica = Replica(
                    encoder,
                    service._bank,
                    service.batcher,
                    service._cache,
                    metrics,
                    loop,
                    settings.watchdog_s,
                )
                service._replica.start()
                undo.pop_all()
                return service

        service = await asyncio.to_thread(build)
        await service._warm_up()
        service._turns.start()
        return service

    async def _warm_up(self) -> None:
        """Answer once as requests will be; the first answer takes three times as long as others."""
        caller = Caller(None, EVERY_RIGHT, self.rates, self.settings)
        for pair in (False, True):
            names = [each.task for each in self._preloaded if each.pair == pair]
            text = ("warm", "up") if pair else "warm up"
            if names:
                await self.engine.classify(names[:_WARM_UP_TASKS], [text], caller)

    async def stop(self) -> None:
        """Finish what runs and let go of the state folder."""
        self._turns.stop()
        await asyncio.to_thread(self._changer.shutdown)
        if self._replica is not None:
            await self._replica.stop()
        await asyncio.to_thread(self._shadows.close)
        await asyncio.to_thread(self._tokenizers.close)
        await asyncio.to_thread(self.residency.close)
        self.keyring.close()
        self.store.close()

    @property
    def ready(self) -> bool:
        """Whether a request sent now would be answered."""
        return not self.draining and self.alive

    @property
    def alive(self) -> bool:
        """Whether the replica takes batches and gets on with them."""
        return self._replica is not None and self._replica.alive

    @property
    def failed(self) -> bool:
        """Whether the replica is down for good, though nobody stopped it."""
        return self._replica is not None and self._replica.failed

    async def change(self, action: str, work: Callable[[Changes], Result]) -> Result:
        """Run one change, after those before it. It completes even if the caller leaves."""

        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._changer, work, self._changes)
        self.metrics.record_change(action)
        return result

    @contextmanager
    def upload_place(self) -> Iterator[None]:
        """A place among the few uploads that may lie in memory at once.

        Raises:
            OverloadedError: none is free.
        """
        if self._uploads == self.settings.max_uploads:
            raise OverloadedError(f"{self._uploads} uploads are running already", retry_after_s=1)
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    def _tell_of_loop(self, wait_s: float, share: float) -> None:
        self.batcher.loop_s = wait_s
        self.batcher.loop_share = share

    def _begin_changing(self) -> None:
        """On the thread of changes: canaries are few, and the cores are the traffic's."""
        give_way(CHANGE_NICENESS)
        self.loaded.encoder.use_threads(1)

    def _watch(self, pins: Pins) -> None:
        """Show in the metrics what is counted here and beneath."""
        batcher, cache = self.batcher, self._cache
        self.metrics.describe(
            version=version("labelmux"),
            encoder=self.loaded.name,
            fingerprint=self.loaded.encoder.fingerprint,
            device=str(self.loaded.encoder.device),
            dtype=self.loaded.encoder.precision,
        )
        self.metrics.tasks.watch(lambda task: task in self.registry)
        self.metrics.watch(
            Reading("ready", "Whether requests should come here.", lambda: self.ready),
            Reading("tasks", "Tasks that serve.", lambda: len(self.registry)),
            Reading("pinned_tasks", "Tasks whose adapter stays in the bank.", lambda: len(pins)),
            Reading("queue_tokens", "Tokens that wait.", lambda: batcher.queued_tokens),
            Reading("queue_rows", "Rows that wait.", lambda: batcher.queued_rows),
            Reading(
                "queue_expected_wait_seconds",
                "How long a text that comes now may expect to wait.",
                lambda: batcher.wait_s,
            ),
            Reading("feature_cache_bytes", "Bytes of features kept.", lambda: cache.kept_bytes),
            Reading(
                "feature_cache_hits",
                "Texts whose features were at hand.",
                lambda: cache.hits,
                counts=True,
            ),
            Reading(
                "feature_cache_misses",
                "Texts whose features were not at hand.",
                lambda: cache.misses,
                counts=True,
            ),
            Reading(
                "feature_cache_evictions",
                "Texts whose features gave way to others.",
                lambda: cache.evictions,
                counts=True,
            ),
        )

    def _seed(self) -> None:
        if self.store.is_fresh:
            folder = self.settings.demo_dir or SHIPPED_DEMO
            if not self.settings.no_demo and folder.is_dir():
                self._changes.seed(folder)
            self.store.mark_started()
        _log.info("%d tasks serve from %s", len(self.registry), self.settings.state_dir)


def _upload_limits(settings: Settings) -> UploadLimits:
    return UploadLimits(
        FileLimits(
            max_bytes=settings.max_upload_bytes,
            max_header_bytes=settings.max_adapter_header_bytes,
            max_labels=settings.max_adapter_labels,
            max_tensors=settings.max_adapter_tensors,
        ),
        max_tasks=settings.max_tasks,
        max_adapters=settings.max_adapters,
    )


def _token_bytes(loaded: LoadedEncoder) -> int:
    """Bytes of one token's features."""
    config = loaded.encoder.config
    return (config.num_layers + 1) * config.hidden_size * loaded.encoder.dtype.itemsize
