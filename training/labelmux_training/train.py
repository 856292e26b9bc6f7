"""From labelled files to an adapter file and a report: the whole of ``labelmux train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from labelmux_adapters.files import Adapter, read_adapter
from labelmux_adapters.kinds import TaskKind
from labelmux_adapters.manifest import Calibration
from labelmux_adapters.scores import scores_of
from labelmux_adapters.ytuning import YTuningSizes
from labelmux_encoder.tokenizer import TextInput
from labelmux_encoder.weights import LoadedEncoder, load_encoder
from labelmux_training.assemble import Assembly, write_file
from labelmux_training.calibration import fit_abstain
from labelmux_training.data import Columns, Dataset, read_rows
from labelmux_training.errors import DataFileError, OptionsError
from labelmux_training.features import FeatureCache, Features
from labelmux_training.kinds import KINDS, Kind
from labelmux_training.labels import check_known, choose_labels, split_dev
from labelmux_training.metrics import AnyMetrics, Metrics
from labelmux_training.probe import fit_probe
from labelmux_training.progress import NoProgress, Progress
from labelmux_training.report import Report, render_report
from labelmux_training.serving import serve_features
from labelmux_training.settings import TrainerSettings
from labelmux_training.sizes import LARGEST_SHARE, choose_sizes, share
from labelmux_training.trainer import Fit, Labelled, fit

#: Token limit where none is asked for; the encoder's own limit where that is lower.
DEFAULT_MAX_TOKENS = 256
REPORT_NAME = "report.html"


@dataclass(frozen=True)
class TrainOptions:
    """One training run, as the user asks for it."""

    task: str
    train: Path
    #: The adapter file to write; must end in ``.safetensors``.
    out: Path
    #: None: a tenth of ``train`` becomes dev.
    dev: Path | None = None
    #: Scored at the end; decides nothing.
    test: Path | None = None
    columns: Columns = field(default_factory=Columns)
    #: None: told by the train file.
    kind: TaskKind | None = None
    #: The labels in logit order; None: those of ``train``, sorted.
    labels: tuple[str, ...] | None = None
    #: ``bundled``, a folder or a hub id.
    encoder: str = "bundled"
    max_tokens: int | None = None
    #: Sizes of the adapter; None is chosen.
    width: int | None = None
    heads: int | None = None
    ffn: int | None = None
    settings: TrainerSettings = field(default_factory=TrainerSettings)
    #: Whether to fit a linear probe on the same rows, to compare with.
    probe: bool = False
    #: Single labels only: abstain where dev says that those answered are right less often.
    abstain_at_accuracy: float | None = None
    #: None: ``features.default_cache_dir()``.
    cache_dir: Path | None = None
    #: None: ``report.html`` beside ``out``.
    report: Path | None = None
    #: Notes for the manifest's card; test scores, where there are any, are added to it.
    card: Mapping[str, str] = field(default_factory=dict)
    #: Texts for the file's canaries, 4 to 8; None: short ones from dev. They can be read by anyone
    #: who has the file.
    canaries: tuple[TextInput, ...] | None = None

    def __post_init__(self) -> None:
        if self.out.suffix != ".safetensors":
            raise OptionsError("out", f"{str(self.out)!r}", "give a name ending in .safetensors")
        if self.abstain_at_accuracy is not None and not 0 < self.abstain_at_accuracy <= 1:
            raise OptionsError(
                "abstain_at_accuracy", f"{self.abstain_at_accuracy!r}", "give a share, such as 0.95"
            )

    def check_kind(self, kind: Kind) -> None:
        """Raises OptionsError where an option is not one of this kind of task."""
        kind.check(self.settings)
        for option, asked in (
            ("abstain_at_accuracy", self.abstain_at_accuracy is not None),
            ("probe", self.probe),
        ):
            if asked and kind.name != "single_label":
                raise OptionsError(
                    option, f"this is a {kind.name} task", "it is for tasks of single labels"
                )


@dataclass(frozen=True)
class TrainResult:
    """What a run made, and how good it is."""

    adapter: Adapter
    path: Path
    report: Path
    size_bytes: int
    dev: AnyMetrics
    test: AnyMetrics | None = None
    probe_dev: Metrics | None = None
    probe_test: Metrics | None = None

    def to_json(self) -> dict[str, object]:
        """The dev metrics, as ``labelmux evaluate`` gives them, and what else is known."""
        result: dict[str, object] = dict(self.dev.to_json())
        for name in ("test", "probe_dev", "probe_test"):
            metrics: AnyMetrics | None = getattr(self, name)
            if metrics is not None:
                result[name] = metrics.to_json()
        manifest = self.adapter.manifest
        return result | {
            "task_kind": manifest.task_kind,
            **manifest.calibration.model_dump(exclude_none=True),
            "labels": list(manifest.labels),
            "parameters": manifest.parameters,
            "parameter_share": manifest.parameter_share,
            "adapter": str(self.path),
            "digest": self.adapter.digest,
            "size_bytes": self.size_bytes,
            "report": str(self.report),
        }


def train(
    options: TrainOptions, loaded: LoadedEncoder | None = None, progress: Progress | None = None
) -> TrainResult:
    """Train one adapter and write it, whole or not at all, with its report.

    Dev decides when to stop, which epoch is kept and the temperature, so dev metrics flatter a
    little; ``test`` decides nothing.

    Args:
        options: what to do.
        loaded: the encoder, if it is loaded already; else ``options.encoder`` is loaded.
        progress: told of each stage.

    Raises:
        TrainingError: something is wrong with a file or an option.
        EncoderError: the encoder cannot be loaded.
        OSError: the output cannot be written.
    """
    progress = progress or NoProgress()
    task = _read_task(options, progress)
    options.check_kind(task.kind)
    loaded = loaded or load_encoder(options.encoder, cache_dir=options.cache_dir)
    encoded = _encode(options, loaded, task, progress)
    sizes = _choose_sizes(options, loaded, task, progress)
    starts = _label_features(options, loaded, task.labels, encoded)
    found = fit(sizes, task.labels, encoded.train, encoded.dev, options.settings, starts, progress)
    return _finish(options, loaded, task, encoded, sizes, found, progress)


@dataclass(frozen=True)
class _Task:
    """The labelled files, read and checked."""

    labels: tuple[str, ...]
    #: All rows of the train file.
    train_file: Dataset
    #: Rows of ``train_file`` to learn from.
    train_rows: list[int]
    #: Rows of ``train_file`` held out as dev; empty where dev is a file.
    held_out: list[int]
    dev: Dataset
    test: Dataset | None

    @property
    def kind(self) -> Kind:
        return KINDS[self.train_file.kind]

    @property
    def train(self) -> Dataset:
        return self.train_file.subset(self.train_rows)


@dataclass(frozen=True)
class _Encoded:
    train: Labelled
    dev: Labelled
    test: Labelled | None
    max_tokens: int


def _read_task(options: TrainOptions, progress: Progress) -> _Task:
    rows = read_rows(options.train, options.columns, options.kind)
    labels = choose_labels(rows, options.labels)
    everything = list(range(len(rows.rows)))
    if options.dev is None:
        kept, held_out = split_dev(rows, options.settings.seed)
        dev = rows.subset(held_out)
        progress.say(
            f"no dev file: {len(held_out)} of {len(everything)} rows of {options.train} are held "
            f"out as dev (by label, seed {options.settings.seed})"
        )
    else:
        kept, held_out = everything, []
        dev = _read_beside(options.dev, options, rows, labels)
    test = None if options.test is None else _read_beside(options.test, options, rows, labels)
    return _Task(labels, rows, kept, held_out, dev, test)


def _read_beside(
    path: Path, options: TrainOptions, rows: Dataset, labels: tuple[str, ...]
) -> Dataset:
    """A file that goes with the train file."""
    found = read_rows(path, options.columns, rows.kind)
    check_known(found, labels)
    if found.pair != rows.pair:
        counts = ("one text", "two texts")
        raise DataFileError(
            path,
            f"its rows have {counts[found.pair]}, those of {rows.path} {counts[rows.pair]}",
            "name the pair column by option, or give files of one kind",
        )
    return found


def _encode(
    options: TrainOptions, loaded: LoadedEncoder, task: _Task, progress: Progress
) -> _Encoded:
    limit = loaded.encoder.config.max_tokens
    asked = options.max_tokens
    max_tokens = min(DEFAULT_MAX_TOKENS, limit) if asked is None else asked
    if not 4 <= max_tokens <= limit:
        raise OptionsError("max_tokens", f"{max_tokens}", f"this encoder takes 4 to {limit}")
    cache = FeatureCache(options.cache_dir)

    def encode(dataset: Dataset, name: str) -> Features:
        stage = f"encode {name}"
        features = cache.features(loaded, dataset.texts, max_tokens, progress, stage)
        cut = int(features.truncated.sum())
        if cut:
            progress.say(f"{cut} of {len(dataset.rows)} {name} texts cut to {max_tokens} tokens")
        return features

    def label(features: Features, dataset: Dataset) -> Labelled:
        gold = task.kind.gold(dataset, task.labels, loaded.tokenizer, max_tokens)
        return Labelled(features, gold, task.kind)

    everything = encode(task.train_file, "train")
    dev = everything.subset(task.held_out) if task.held_out else encode(task.dev, "dev")
    return _Encoded(
        train=label(everything.subset(task.train_rows), task.train),
        dev=label(dev, task.dev),
        test=None if task.test is None else label(encode(task.test, "test"), task.test),
        max_tokens=max_tokens,
    )


def _choose_sizes(
    options: TrainOptions, loaded: LoadedEncoder, task: _Task, progress: Progress
) -> YTuningSizes:
    labels, tokens = len(task.labels), task.kind.name == "token"
    sizes = choose_sizes(loaded, labels, options.width, options.heads, options.ffn, tokens=tokens)
    found = share(loaded, sizes, labels, tokens=tokens)
    if found > LARGEST_SHARE:
        progress.say(
            f"the adapter (width {sizes.width}) has {found:.1%} of the encoder's parameters, "
            f"above {LARGEST_SHARE:.0%}"
        )
    return sizes


def _label_features(
    options: TrainOptions, loaded: LoadedEncoder, labels: tuple[str, ...], encoded: _Encoded
) -> Tensor | None:
    """What the label vectors start from. [K, H]"""
    start = options.settings.label_start
    if start == "random":
        return None
    if start == "label_names":
        names = [label.replace("_", " ").replace("-", " ").strip() or label for label in labels]
        cache = FeatureCache(options.cache_dir)
        return cache.features(loaded, names, encoded.max_tokens).mixed_means()
    return encoded.train.class_means(len(labels))


def _finish(
    options: TrainOptions,
    loaded: LoadedEncoder,
    task: _Task,
    encoded: _Encoded,
    sizes: YTuningSizes,
    found: Fit,
    progress: Progress,
) -> TrainResult:
    assembly = Assembly(
        loaded=loaded,
        sizes=sizes,
        labels=task.labels,
        tensors=found.tensors,
        max_tokens=encoded.max_tokens,
        pair=task.train_file.pair,
        data_digest=task.train.digest,
        texts=options.canaries or [*task.dev.texts, *task.train.texts],
        path=options.train,
        kind=task.kind.name,
    )
    logits = _logits(assembly.adapter(), encoded.dev)
    assembly = assembly.calibrated(_calibrate(options, task.kind, encoded.dev.gold, logits))
    dev = _measure(assembly, encoded.dev, logits)
    test_logits = encoded.test and _logits(assembly.adapter(), encoded.test)
    test = None if encoded.test is None else _measure(assembly, encoded.test, test_logits)
    probe_dev, probe_test = _probe(options, encoded, progress)
    card = {**options.card, **_card("test", test), **_card("linear probe, test", probe_test)}
    data = assembly.file(dev.to_json(), card)
    adapter = read_adapter(data)
    result = TrainResult(
        adapter=adapter,
        path=options.out,
        report=options.report or options.out.with_name(REPORT_NAME),
        size_bytes=len(data),
        dev=dev,
        test=test,
        probe_dev=probe_dev,
        probe_test=probe_test,
    )
    write_file(options.out, data)
    page = Report(
        task=options.task,
        dev=task.dev,
        kind=task.kind,
        gold=encoded.dev.gold,
        logits=logits,
        labels=task.labels,
        calibration=assembly.calibration,
        history=found.history,
        best=found.best,
        numbers=_report_numbers(result),
        settings=_report_settings(options, result),
    )
    write_file(result.report, render_report(page).encode())
    return result


def _logits(adapter: Adapter, rows: Labelled) -> Any:
    return rows.kind.logits(serve_features(adapter, rows.features))


def _calibrate(options: TrainOptions, kind: Kind, gold: Any, logits: Any) -> Calibration:
    found = kind.calibrate(gold, logits)
    if options.abstain_at_accuracy is None:
        return found
    scores = scores_of(logits, kind.name, found.temperature)
    abstain = fit_abstain(gold, scores, options.abstain_at_accuracy)
    return found.model_copy(update={"abstain": abstain})


def _measure(assembly: Assembly, rows: Labelled, logits: Any) -> AnyMetrics:
    return rows.kind.measure(rows.gold, logits, assembly.labels, assembly.calibration)


def _card(name: str, metrics: AnyMetrics | None) -> dict[str, str]:
    if metrics is None:
        return {}
    return {
        name: ", ".join(
            f"{what[:1].lower()}{what[1:]} {value}" for what, value in metrics.shown().items()
        )
    }


def _probe(
    options: TrainOptions, encoded: _Encoded, progress: Progress
) -> tuple[Metrics | None, Metrics | None]:
    if not options.probe:
        return None, None
    progress.start("probe", total=1, unit="fit")
    train_rows, dev, test = encoded.train, encoded.dev, encoded.test
    probe = fit_probe(train_rows.features, train_rows.gold, dev.features, dev.gold)
    progress.advance()
    progress.done()
    return probe.dev, None if test is None else probe.measure(test.features, test.gold)


def _report_numbers(result: TrainResult) -> dict[str, AnyMetrics]:
    named: dict[str, AnyMetrics | None] = {
        "dev": result.dev,
        "test": result.test,
        "linear probe, dev": result.probe_dev,
        "linear probe, test": result.probe_test,
    }
    return {name: metrics for name, metrics in named.items() if metrics is not None}


def _report_settings(options: TrainOptions, result: TrainResult) -> dict[str, str]:
    manifest = result.adapter.manifest
    shown: dict[str, object] = {
        "train file": options.train.name,
        "dev file": options.dev.name if options.dev else "held out from the train file",
        "encoder": manifest.encoder,
        "encoder fingerprint": manifest.encoder_fingerprint,
        "data digest": manifest.data_digest,
        "max tokens": manifest.max_tokens,
        "parameters": f"{manifest.parameters:,} ({manifest.parameter_share:.2%} of the encoder's)",
        "file": f"{result.path.name}, {result.size_bytes:,} bytes",
        "digest": result.adapter.digest,
        "task kind": manifest.task_kind,
        **manifest.calibration.model_dump(exclude_none=True),
        **manifest.sizes,
        **{name.replace("_", " "): value for name, value in asdict(options.settings).items()},
    }
    return {name: str(value) for name, value in shown.items()}
