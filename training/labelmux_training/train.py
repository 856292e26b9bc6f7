"""From labelled files to an adapter file and a report: the whole of ``labelmux train``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labelmux_adapters.files import Adapter, read_adapter
from labelmux_adapters.manifest import Calibration
from labelmux_adapters.scores import scores_of
from labelmux_encoder.tokenizer import TextInput
from labelmux_encoder.weights import LoadedEncoder, load_encoder
from labelmux_training.assemble import Assembly
from labelmux_training.calibration import fit_abstain
from labelmux_training.canary_texts import CanaryChooser
from labelmux_training.errors import OptionsError
from labelmux_training.kinds import Kind
from labelmux_training.loop import Fit
from labelmux_training.metrics import AnyMetrics
from labelmux_training.options import PROBE_NOTE, TEST_NOTE, TrainOptions
from labelmux_training.outputs import check_output, write_file
from labelmux_training.progress import NoProgress, Progress
from labelmux_training.recipes import Recipe, recipe_for
from labelmux_training.report import Report, render_report
from labelmux_training.settings import unused_settings
from labelmux_training.task_rows import read_task


@dataclass(frozen=True)
class TrainResult:
    """What a run made, and how good it is."""

    adapter: Adapter
    path: Path
    report: Path
    size_bytes: int
    dev: AnyMetrics
    test: AnyMetrics | None = None
    probe_dev: AnyMetrics | None = None
    probe_test: AnyMetrics | None = None

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
        OSError: the output cannot be written, though it could when training began.
    """
    progress = progress or NoProgress()
    _check_outputs(options)
    task = read_task(options, progress)
    options.check_kind(task.kind)
    loaded = loaded or load_encoder(options.encoder, cache_dir=options.cache_dir)
    recipe = recipe_for(options, loaded, task, progress)
    canaries = _canaries(recipe)
    result = _finish(recipe, canaries, recipe.fit())
    recipe.over()
    return result


def _check_outputs(options: TrainOptions) -> None:
    check_output(options.out, "out")
    report = options.report_path
    check_output(report, "report")
    others = (options.out, options.train, options.dev, options.test)
    if any(other is not None and report.resolve() == other.resolve() for other in others):
        problem = f"{str(report)!r} is another file of this run"
        raise OptionsError("report", problem, "name one that may be replaced")


def _canaries(recipe: Recipe) -> list[TextInput]:
    options, task = recipe.options, recipe.task
    chooser = CanaryChooser(recipe.loaded, task.kind.name, len(task.labels), recipe.max_tokens)
    return chooser.choose(options.canaries or [*task.dev.texts, *task.train.texts], options.train)


def _finish(recipe: Recipe, canaries: Sequence[TextInput], found: Fit) -> TrainResult:
    options, task = recipe.options, recipe.task
    assembly = Assembly(
        loaded=recipe.loaded,
        method=options.method,
        sizes=recipe.sizes,
        pooling=recipe.pooling,
        labels=task.labels,
        tensors=found.tensors,
        max_tokens=recipe.max_tokens,
        pair=task.train_file.pair,
        data_digest=task.train.digest,
        canaries=canaries,
        kind=task.kind.name,
    )
    gold, logits = recipe.gold(task.dev), recipe.answers(assembly.adapter(), task.dev)
    assembly = assembly.calibrated(_calibrate(options, task.kind, gold, logits))
    dev = task.kind.measure(gold, logits, task.labels, assembly.calibration)
    test = _test(recipe, assembly)
    probe_dev, probe_test = _probe(recipe)
    card = {**options.card, **_card(TEST_NOTE, test), **_card(PROBE_NOTE, probe_test)}
    data = assembly.file(dev.to_json(), card)
    adapter = read_adapter(data)
    result = TrainResult(
        adapter=adapter,
        path=options.out,
        report=options.report_path,
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
        gold=gold,
        logits=logits,
        labels=task.labels,
        calibration=assembly.calibration,
        fit=found,
        numbers=_report_numbers(result),
        settings=_report_settings(options, result),
    )
    write_file(result.report, render_report(page).encode())
    return result


def _test(recipe: Recipe, assembly: Assembly) -> AnyMetrics | None:
    task = recipe.task
    if task.test is None:
        return None
    logits = recipe.answers(assembly.adapter(), task.test)
    return task.kind.measure(recipe.gold(task.test), logits, task.labels, assembly.calibration)


def _calibrate(options: TrainOptions, kind: Kind, gold: Any, logits: Any) -> Calibration:
    found = kind.calibrate(gold, logits)
    if options.abstain_at_accuracy is None:
        return found
    scores = scores_of(logits, kind.name, found.temperature)
    abstain = fit_abstain(gold, scores, options.abstain_at_accuracy)
    return found.model_copy(update={"abstain": abstain})


def _card(name: str, metrics: AnyMetrics | None) -> dict[str, str]:
    if metrics is None:
        return {}
    return {
        name: ", ".join(
            f"{what[:1].lower()}{what[1:]} {value}" for what, value in metrics.shown().items()
        )
    }


def _probe(recipe: Recipe) -> tuple[AnyMetrics | None, AnyMetrics | None]:
    if not recipe.options.probe:
        return None, None
    probe, task = recipe.probe(), recipe.task
    dev, test = recipe.encoded.dev, recipe.encoded.test
    if test is None:
        return probe.dev, None
    calibration = task.kind.calibrate(dev.gold, probe.logits(dev.features))
    logits = probe.logits(test.features)
    return probe.dev, task.kind.measure(test.gold, logits, task.labels, calibration)


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
        "method": manifest.method,
        **({"pooling": manifest.pooling} if manifest.pooling else {}),
        **manifest.calibration.model_dump(exclude_none=True),
        **manifest.sizes,
        **{
            name.replace("_", " "): value
            for name, value in asdict(options.trainer).items()
            if name not in unused_settings(manifest.method)
        },
    }
    return {name: str(value) for name, value in shown.items()}
