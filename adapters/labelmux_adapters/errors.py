"""What can be wrong with an adapter.

AdapterError
├── AdapterFileError                 the bytes are not a whole, well-formed adapter file
│   ├── FileTooLargeError            file_too_large
│   ├── NotSafetensorsError          not_safetensors
│   ├── TruncatedFileError           truncated_file
│   ├── HeaderTooLargeError          header_too_large
│   ├── HeaderBeyondFileError        header_beyond_file
│   ├── DuplicateKeyError            duplicate_key
│   ├── FormatVersionError           unknown_format
│   ├── ManifestError                bad_manifest
│   │   └── LabelsError              bad_labels
│   ├── UnexpectedTensorError        unexpected_tensor
│   ├── MissingTensorError           missing_tensor
│   ├── UnknownDtypeError            unknown_dtype
│   ├── TensorShapeError             wrong_shape
│   ├── TensorOffsetsError           bad_offsets
│   └── NonFiniteTensorError         non_finite
└── AdapterMisfitError               the file is well-formed, but not for this encoder
    ├── ForeignEncoderError          foreign_encoder
    ├── SizeMisfitError              size_misfit
    └── CanaryMismatchError          canary_mismatch

Each leaf carries a ``code``, stable across releases, and its facts as JSON-ready attributes. What
came from a file is kept as ``printable`` or ``shown`` give it, so no error grows with its file.
"""

from __future__ import annotations

import math
import reprlib
from typing import ClassVar

_SHOWN_CHARS = 80


def printable(name: str) -> str:
    """A name from a file as it may stand in a message: escaped, and at most a line long."""
    return repr(name[:_SHOWN_CHARS])[1:-1]


def shown(value: object) -> str:
    """A value from a file as Python writes it: escaped, and at most a line long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = _SHOWN_CHARS
    text = short.repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."


class AdapterError(Exception):
    """Base of every error this room raises."""

    code: ClassVar[str]


class AdapterFileError(AdapterError):
    """The bytes are not a whole, well-formed adapter file."""


class FileTooLargeError(AdapterFileError):
    """The file has more bytes than the reader takes."""

    code = "file_too_large"

    def __init__(self, found_bytes: int, limit_bytes: int) -> None:
        self.found_bytes = found_bytes
        self.limit_bytes = limit_bytes
        super().__init__(
            f"adapter file: {found_bytes} bytes, the limit is {limit_bytes}; "
            "train with a smaller width, or raise the reader's limit"
        )


class NotSafetensorsError(AdapterFileError):
    """The bytes do not begin as a safetensors file does."""

    code = "not_safetensors"

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(
            f"adapter file: not in the safetensors format: {problem}; "
            "give a file that `labelmux train` wrote"
        )


class TruncatedFileError(AdapterFileError):
    """The header promises more tensor bytes than follow it."""

    code = "truncated_file"

    def __init__(self, expected_bytes: int, found_bytes: int) -> None:
        self.expected_bytes = expected_bytes
        self.found_bytes = found_bytes
        super().__init__(
            f"adapter file: cut off: {found_bytes} of {expected_bytes} bytes are there; "
            "copy or send it again"
        )


class HeaderTooLargeError(AdapterFileError):
    """The header has more bytes, or lists more tensors, than the reader takes."""

    code = "header_too_large"

    def __init__(self, found: int, limit: int, unit: str = "bytes") -> None:
        self.found = found
        self.limit = limit
        self.unit = unit
        super().__init__(
            f"adapter file: the header has {found} {unit}, the limit is {limit}; "
            "give a file that `labelmux train` wrote"
        )


class HeaderBeyondFileError(AdapterFileError):
    """The header's stated length reaches past the end of the file."""

    code = "header_beyond_file"

    def __init__(self, header_bytes: int, available_bytes: int) -> None:
        self.header_bytes = header_bytes
        self.available_bytes = available_bytes
        super().__init__(
            f"adapter file: the header should have {header_bytes} bytes, {available_bytes} follow; "
            "copy or send the file again"
        )


class DuplicateKeyError(AdapterFileError):
    """A JSON object has a key twice, so two readers could take it for two different files."""

    code = "duplicate_key"

    def __init__(self, key: str, place: str) -> None:
        self.key = printable(key)
        self.place = place
        super().__init__(
            f"adapter file: the key '{self.key}' stands twice in one object of the {place}; "
            "write it once"
        )


class FormatVersionError(AdapterFileError):
    """A safetensors file, but not an adapter file of a version that this reader knows."""

    code = "unknown_format"

    def __init__(self, found: object, supported: str) -> None:
        self.found = None if found is None else shown(found)
        self.supported = supported
        problem = "there is no" if found is None else f"{self.found} is the"
        super().__init__(
            f"adapter file: {problem} labelmux.format in its metadata, {supported!r} is supported; "
            "give a file that `labelmux train` wrote, or update labelmux"
        )


class ManifestError(AdapterFileError):
    """A field of the manifest is missing, unknown, or has a value it cannot have."""

    code = "bad_manifest"

    def __init__(self, field: str, found: object, expected: str) -> None:
        self.field = printable(field)
        self.found = shown(found)
        self.expected = expected
        super().__init__(
            f"adapter manifest: {self.field} is {self.found}: {expected}; "
            "correct it where the file is written"
        )


class LabelsError(ManifestError):
    """The labels are too few, too many, blank, too long or repeated."""

    code = "bad_labels"


class UnexpectedTensorError(AdapterFileError):
    """The file has a tensor that its manifest does not imply."""

    code = "unexpected_tensor"

    def __init__(self, tensor: str, method: str) -> None:
        self.tensor = printable(tensor)
        self.method = method
        super().__init__(
            f"adapter file: tensor '{self.tensor}' is not one that method {method!r} has; remove it"
        )


class MissingTensorError(AdapterFileError):
    """The file lacks a tensor that its manifest implies."""

    code = "missing_tensor"

    def __init__(self, tensor: str, method: str) -> None:
        self.tensor = printable(tensor)
        self.method = method
        super().__init__(
            f"adapter file: tensor '{self.tensor}' of method {method!r} is missing; "
            "write all of the method's tensors"
        )


class UnknownDtypeError(AdapterFileError):
    """A tensor is stored in a dtype that adapters do not use."""

    code = "unknown_dtype"

    def __init__(self, tensor: str, found: object, supported: str) -> None:
        self.tensor = printable(tensor)
        self.found = shown(found)
        self.supported = supported
        super().__init__(
            f"adapter file: tensor '{self.tensor}' has dtype {self.found}; store it as {supported}"
        )


class TensorShapeError(AdapterFileError):
    """A tensor's shape is not the one that the manifest implies."""

    code = "wrong_shape"

    def __init__(self, tensor: str, found: object, expected: tuple[int, ...]) -> None:
        self.tensor = printable(tensor)
        self.found = shown(found)
        self.expected = list(expected)
        super().__init__(
            f"adapter file: tensor '{self.tensor}' has shape {self.found}, the manifest implies "
            f"{self.expected}; correct the sizes, the labels or the tensor"
        )


class TensorOffsetsError(AdapterFileError):
    """The tensors' byte ranges are not one run from the header to the end of the file."""

    code = "bad_offsets"

    def __init__(self, tensor: str, found: object, expected: str) -> None:
        self.tensor = printable(tensor)
        self.found = shown(found)
        self.expected = expected
        super().__init__(
            f"adapter file: tensor '{self.tensor}' has data_offsets {self.found}: {expected}; "
            "write the tensors one after the other, without a gap"
        )


class NonFiniteTensorError(AdapterFileError):
    """A tensor holds NaN or infinity."""

    code = "non_finite"

    def __init__(self, tensor: str, count: int) -> None:
        self.tensor = printable(tensor)
        self.count = count
        super().__init__(
            f"adapter file: tensor '{self.tensor}' has {count} values that are NaN or infinite; "
            "train again with a lower learning rate"
        )


class AdapterMisfitError(AdapterError):
    """The adapter file is well-formed, but not for this encoder."""


class ForeignEncoderError(AdapterMisfitError):
    """The adapter was trained on another encoder."""

    code = "foreign_encoder"

    def __init__(self, adapter_fingerprint: str, encoder_fingerprint: str) -> None:
        self.adapter_fingerprint = adapter_fingerprint
        self.encoder_fingerprint = encoder_fingerprint
        super().__init__(
            f"adapter: trained on the encoder {adapter_fingerprint}, this one is "
            f"{encoder_fingerprint}; train it again on this encoder, or serve it with that one"
        )


class SizeMisfitError(AdapterMisfitError):
    """A size in the manifest is not one that this encoder can serve."""

    code = "size_misfit"

    def __init__(self, size: str, found: int, expected: str) -> None:
        self.size = size
        self.found = found
        self.expected = expected
        super().__init__(
            f"adapter: {size} is {found}, this encoder needs {expected}; "
            "train it again on this encoder"
        )


class CanaryMismatchError(AdapterMisfitError):
    """A canary's logits here are not those that the trainer got."""

    code = "canary_mismatch"

    def __init__(self, canary: int, difference: float, tolerance: float) -> None:
        self.canary = canary
        #: None where the logits overflowed: JSON has no word for NaN.
        self.difference = difference if math.isfinite(difference) else None
        self.tolerance = tolerance
        super().__init__(
            f"adapter: canary {canary} gives logits that differ by {difference:.3g} from the "
            f"file's, its tolerance is {tolerance:g}; the tensors and the manifest are not of one "
            "training run, write both again"
        )
