"""One training run, as it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from labelmux_adapters.errors import shown
from labelmux_adapters.kinds import Pooling, TaskKind
from labelmux_adapters.manifest import MAX_NAME_CHARS, MAX_NOTE_CHARS, MAX_NOTES
from labelmux_adapters.methods import METHODS
from labelmux_encoder.tokenizer import TextInput
from labelmux_training.columns import Columns
from labelmux_training.errors import OptionsError
from labelmux_training.kinds import Kind
from labelmux_training.settings import TrainerSettings, settings_for

REPORT_NAME = "report.html"
#: Names of notes in a card.
TEST_NOTE, PROBE_NOTE = "test", "linear probe, test"
#: Token limit where none is asked for; the encoder's own limit where that is lower.
DEFAULT_MAX_TOKENS = 256


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
    #: How the adapter works: a name in ``methods.METHODS``.
    method: str = "ytuning"
    #: Sizes of the adapter by name; what is not among them is chosen.
    sizes: Mapping[str, int] = field(default_factory=dict)
    #: What a linear head reads of a text; None: the mean of its tokens.
    pooling: Pooling | None = None
    #: None: those of the method.
    settings: TrainerSettings | None = None
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
    #: Texts for the file's canaries, 4 to 8; None: short ones from dev, or parts of long ones. They
    #: can be read by anyone who has the file.
    canaries: tuple[TextInput, ...] | None = None

    def __post_init__(self) -> None:
        if self.out.suffix != ".safetensors":
            raise OptionsError("out", f"{str(self.out)!r}", "give a name ending in .safetensors")
        if self.method not in METHODS:
            raise OptionsError(
                "method", f"{self.method!r} is unknown", f"give {', '.join(METHODS)}"
            )
        if self.abstain_at_accuracy is not None and not 0 < self.abstain_at_accuracy <= 1:
            raise OptionsError(
                "abstain_at_accuracy", f"{self.abstain_at_accuracy!r}", "give a share, such as 0.95"
            )
        self._check_card()

    @property
    def trainer(self) -> TrainerSettings:
        """The settings that were asked for, or the method's."""
        return self.settings or settings_for(self.method)

    @property
    def report_path(self) -> Path:
        """The report that was asked for, or the one beside ``out``."""
        return self.report or self.out.with_name(REPORT_NAME)

    def check_kind(self, kind: Kind) -> None:
        """Raises OptionsError where an option is not one of this kind of task."""
        kind.check(self.trainer)
        if self.abstain_at_accuracy is not None and kind.name != "single_label":
            raise OptionsError(
                "abstain_at_accuracy",
                f"this is a {kind.name} task",
                "it is for tasks of single labels",
            )

    @property
    def scored_notes(self) -> tuple[str, ...]:
        """Names of the notes that test scores add to the card."""
        if self.test is None:
            return ()
        return (TEST_NOTE, PROBE_NOTE) if self.probe else (TEST_NOTE,)

    def _check_card(self) -> None:
        """A manifest must take the card as it is in the end."""
        notes = len({*self.card, *self.scored_notes})
        if notes > MAX_NOTES:
            problem = f"{notes} notes, those of test scores among them, not at most {MAX_NOTES}"
            raise OptionsError("note", problem, "give fewer")
        for name, text in self.card.items():
            if not 1 <= len(name) <= MAX_NAME_CHARS:
                problem = f"the name {shown(name)} has {len(name)} characters"
                raise OptionsError("note", problem, f"give 1 to {MAX_NAME_CHARS}")
            if len(text) > MAX_NOTE_CHARS:
                problem = f"the text of {shown(name)} has {len(text)} characters"
                raise OptionsError("note", problem, f"give at most {MAX_NOTE_CHARS}")
            _check_unicode(name, name)
            _check_unicode(name, text)


def _check_unicode(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"{shown(name)} has bytes that are no UTF-8"
        raise OptionsError("note", problem, "write it in UTF-8") from error
