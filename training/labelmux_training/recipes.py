"""How the methods learn a task and answer its rows: from cached features, or through the pass."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

from typing_extensions import override

from labelmux_adapters.edited import EditMethod
from labelmux_adapters.files import Adapter
from labelmux_adapters.kinds import Pooling
from labelmux_adapters.linear import LINEAR
from labelmux_adapters.methods import METHODS
from labelmux_encoder.weights import LoadedEncoder, fingerprint_of, read_checkpoint
from labelmux_training.data import Dataset
from labelmux_training.edited_trainer import AdapterForm, Constants, LabelledTokens, fit_edited
from labelmux_training.errors import OptionsError
from labelmux_training.features import FeatureCache, Features
from labelmux_training.linear import Probe, fit_probe
from labelmux_training.loop import Fit
from labelmux_training.options import DEFAULT_MAX_TOKENS, TrainOptions
from labelmux_training.progress import Progress
from labelmux_training.run_folder import Checkpoint
from labelmux_training.serving import serve_features, serve_tokens
from labelmux_training.sizes import LARGEST_SHARE, choose_edit_sizes, choose_sizes, share
from labelmux_training.task_rows import TaskRows
from labelmux_training.trainer import LabelFeatures, Labelled, fit

#: What a linear head reads where nothing is asked for.
DEFAULT_POOLING: Pooling = "mean"


@dataclass(frozen=True)
class Encoded:
    """The rows of a task as features."""

    train: Labelled
    dev: Labelled
    test: Labelled | None


class Recipe(ABC):
    """How one adapter learns its task; everything it reads is read when it is asked for."""

    def __init__(
        self, options: TrainOptions, loaded: LoadedEncoder, task: TaskRows, progress: Progress
    ) -> None:
        self.options = options
        self.loaded = loaded
        self.task = task
        self.progress = progress
        self.max_tokens = _token_limit(options, loaded)

    #: As the manifest has it.
    pooling: Pooling | None = None

    @property
    @abstractmethod
    def sizes(self) -> Mapping[str, int]:
        """As the manifest has them."""

    @abstractmethod
    def fit(self) -> Fit:
        """Train."""

    @abstractmethod
    def answers(self, adapter: Adapter, dataset: Dataset) -> Any:
        """Logits of the task's dev or test rows by the path that serves, as their kind has them."""

    @abstractmethod
    def over(self) -> None:
        """The adapter is written: what was kept of the run may go."""

    def gold(self, dataset: Dataset) -> Any:
        """What rows say, as their kind has it."""
        return self.task.kind.gold(
            dataset, self.task.labels, self.loaded.tokenizer, self.max_tokens
        )

    @cached_property
    def encoded(self) -> Encoded:
        """The features of all rows."""
        task = self.task
        everything = self._features(task.train_file, "train")
        held_out = everything.subset(task.held_out) if task.held_out else None
        dev = held_out or self._features(task.dev, "dev")
        test = None if task.test is None else self._features(task.test, "test")
        return Encoded(
            train=self._labelled(everything.subset(task.train_rows), task.train),
            dev=self._labelled(dev, task.dev),
            test=None if test is None else self._labelled(test, task.test or task.dev),
        )

    def probe(self, pooling: Pooling = DEFAULT_POOLING) -> Probe:
        """A linear probe of the same rows."""
        self.progress.start("probe", total=1, unit="fit")
        found = fit_probe(self.task.labels, self.encoded.train, self.encoded.dev, pooling)
        self.progress.advance()
        self.progress.done()
        return found

    def _features(self, dataset: Dataset, name: str) -> Features:
        cache = FeatureCache(self.options.cache_dir)
        features = cache.features(
            self.loaded, dataset.texts, self.max_tokens, self.progress, f"encode {name}"
        )
        self._tell_truncated(int(features.truncated.sum()), dataset, name)
        return features

    def _labelled(self, features: Features, dataset: Dataset) -> Labelled:
        return Labelled(features, self.gold(dataset), self.task.kind)

    def _tell_truncated(self, cut: int, dataset: Dataset, name: str) -> None:
        if cut:
            self.progress.say(
                f"{cut} of {len(dataset.rows)} {name} texts cut to {self.max_tokens} tokens"
            )


class FromFeatures(Recipe):
    """A method that leaves the pass alone: the encoder is read once."""

    @override
    def answers(self, adapter: Adapter, dataset: Dataset) -> Any:
        rows = self.encoded.test if dataset is self.task.test else self.encoded.dev
        assert rows is not None
        return self.task.kind.logits(serve_features(adapter, rows.features))

    @override
    def over(self) -> None:
        """Nothing was kept but the features, which another run may read."""


class YTuningRecipe(FromFeatures):
    """Y-Tuning."""

    def __init__(
        self, options: TrainOptions, loaded: LoadedEncoder, task: TaskRows, progress: Progress
    ) -> None:
        super().__init__(options, loaded, task, progress)
        if options.pooling is not None:
            problem = f"{options.pooling!r} means nothing to the method {options.method}"
            raise OptionsError("pooling", problem, "leave it out")
        labels, tokens = len(task.labels), task.kind.name == "token"
        self._sizes = choose_sizes(loaded, labels, options.sizes, tokens=tokens)
        found = share(loaded, self._sizes, labels, tokens=tokens)
        if found > LARGEST_SHARE:
            progress.say(
                f"the adapter (width {self._sizes.width}) has {found:.1%} of the encoder's "
                f"parameters, above {LARGEST_SHARE:.0%}"
            )

    @property
    @override
    def sizes(self) -> Mapping[str, int]:
        return self._sizes.to_mapping()

    @override
    def fit(self) -> Fit:
        return fit(
            self._sizes,
            self.task.labels,
            self.encoded.train,
            self.encoded.dev,
            self.options.trainer,
            self._label_features(),
            self.progress,
        )

    def _label_features(self) -> LabelFeatures | None:
        """What the label vectors start from."""
        start, labels = self.options.trainer.label_start, self.task.labels
        if start == "random":
            return None
        if start == "label_names":
            names = [label.replace("_", " ").replace("-", " ").strip() or label for label in labels]
            cache = FeatureCache(self.options.cache_dir)
            return cache.features(self.loaded, names, self.max_tokens).mixed_means
        return partial(self.encoded.train.class_means, len(labels))


class LinearRecipe(FromFeatures):
    """The linear probe."""

    def __init__(
        self, options: TrainOptions, loaded: LoadedEncoder, task: TaskRows, progress: Progress
    ) -> None:
        super().__init__(options, loaded, task, progress)
        self._sizes = choose_edit_sizes(LINEAR, loaded, options.sizes, pair=task.train_file.pair)
        self.pooling = pooling_of(options, task)

    @property
    @override
    def sizes(self) -> Mapping[str, int]:
        return self._sizes

    @override
    def fit(self) -> Fit:
        return self.probe(self.pooling or DEFAULT_POOLING).fit()


class ThroughPass(Recipe):
    """A method that changes the pass."""

    def __init__(
        self, options: TrainOptions, loaded: LoadedEncoder, task: TaskRows, progress: Progress
    ) -> None:
        super().__init__(options, loaded, task, progress)
        method = METHODS[options.method].edited
        assert method is not None
        self._method: EditMethod = method
        self._sizes = choose_edit_sizes(method, loaded, options.sizes, pair=task.train_file.pair)
        self.pooling = pooling_of(options, task)
        self._checkpoint = Checkpoint(options.out.with_suffix(".run"), self._digest())

    @property
    @override
    def sizes(self) -> Mapping[str, int]:
        return self._sizes

    @override
    def fit(self) -> Fit:
        return fit_edited(
            AdapterForm(self._method, self._sizes, self.task.labels, self.pooling),
            self._constants(),
            self._tokens(self.task.train, "train"),
            self._dev,
            self.options.trainer,
            self.progress,
            self._checkpoint,
        )

    @override
    def answers(self, adapter: Adapter, dataset: Dataset) -> Any:
        rows = self._tokens(dataset, "test") if dataset is self.task.test else self._dev
        return self.task.kind.logits(serve_tokens(adapter, self.loaded, rows.rows, self.progress))

    @override
    def over(self) -> None:
        self._checkpoint.remove()

    @cached_property
    def _dev(self) -> LabelledTokens:
        return self._tokens(self.task.dev, "dev")

    def _tokens(self, dataset: Dataset, name: str) -> LabelledTokens:
        rows = tuple(self.loaded.tokenizer.encode(dataset.texts, self.max_tokens))
        self._tell_truncated(sum(row.truncated for row in rows), dataset, name)
        return LabelledTokens(rows, self.gold(dataset), self.task.kind)

    def _constants(self) -> Constants:
        config, state = read_checkpoint(self.options.encoder)
        if fingerprint_of(config, state, self.loaded.tokenizer) != self.loaded.encoder.fingerprint:
            problem = f"{self.options.encoder!r} is not the encoder that is loaded"
            raise OptionsError("encoder", problem, f"name that one ({self.loaded.name})")
        return Constants.of(config, state, self.loaded.encoder)

    def _digest(self) -> str:
        """Of all that decides what the run makes."""
        said = {
            "method": self._method.name,
            "sizes": self._sizes,
            "pooling": self.pooling,
            "settings": asdict(self.options.trainer),
            "labels": self.task.labels,
            "rows": [self.task.train.digest, self.task.dev.digest],
            "max_tokens": self.max_tokens,
            "encoder": self.loaded.encoder.fingerprint,
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def recipe_for(
    options: TrainOptions, loaded: LoadedEncoder, task: TaskRows, progress: Progress
) -> Recipe:
    """The recipe of the method that is asked for."""
    of_features = {"ytuning": YTuningRecipe, "linear": LinearRecipe}
    return of_features.get(options.method, ThroughPass)(options, loaded, task, progress)


def pooling_of(options: TrainOptions, task: TaskRows) -> Pooling | None:
    """What a linear head of this task reads; None: every token.

    Raises:
        OptionsError: a pooling is asked for where tokens are read.
    """
    if task.kind.name != "token":
        return options.pooling or DEFAULT_POOLING
    if options.pooling is not None:
        problem = f"{options.pooling!r} means nothing to a token task"
        raise OptionsError("pooling", problem, "leave it out")
    return None


def _token_limit(options: TrainOptions, loaded: LoadedEncoder) -> int:
    limit = loaded.encoder.config.max_tokens
    asked = options.max_tokens
    max_tokens = min(DEFAULT_MAX_TOKENS, limit) if asked is None else asked
    if not 4 <= max_tokens <= limit:
        raise OptionsError("max_tokens", f"{max_tokens}", f"this encoder takes 4 to {limit}")
    return max_tokens
