"""What `lorafit.json` holds: all that PEFT's files do not say, sealed with a sum of its own."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from lorafit.errors import BundleError
from lorafit.files import write_text

FILE = "lorafit.json"
EXPORT_FILE = "lorafit_export.json"  # of an export, which is no bundle
FORMAT_VERSION = 2  # the newest that is read; each change that an older lorafit would misread raises it
LARGEST_MANIFEST_BYTES = 4_000_000  # a thousand times what one takes

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PlainFileName = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*$", max_length=100)]  # of no other folder
HubId = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$", max_length=200)]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
# Shown on terminals: nothing there that moves a cursor, or ends a line.
Shown = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]+$", max_length=1000)]


Task = Literal["single_label", "multi_label"]
LongText = Literal["head", "head+tail", "windows:mean", "windows:max"]
Pooling = Literal["first", "mean"]
_READ_OF: dict[LongText, str] = {
    "head": "the rest is cut",
    "head+tail": "head and tail are read",
    "windows:mean": "all is read in overlapping windows, with the mean of their logits",
    "windows:max": "all is read in overlapping windows, with the largest of their logits",
}
Threshold = Annotated[float, Field(gt=0, lt=1)]
Model = TypeVar("Model", bound=BaseModel)


class Part(BaseModel):
    """A part of what lorafit keeps as JSON: no key more, no number that is none."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Shape(Part):
    """The size of an encoder, as its configuration says it."""

    model_type: Shown
    """The family: bert, roberta, ..."""
    layers: int
    width: int
    """Numbers a token in the last hidden state."""
    vocabulary: int
    """Rows of the token embedding."""

    def __str__(self) -> str:
        return f"{self.model_type}, {self.layers} layers of width {self.width}, {self.vocabulary:,} tokens"


class Base(Part):
    """The encoder that an adapter belongs to. It is found by its id or its weights, never by a path."""

    name: Shown
    """bundled:NAME, hub:ID@REVISION, or the name of the folder that it lay in."""
    id: HubId | None
    """Its id on the Hub; None for a folder."""
    revision: Commit | None
    """Its commit there."""
    sha256: Sha256
    """The SHA-256 of its weights."""
    config_sha256: Sha256
    """The SHA-256 of what its configuration says of the arithmetic."""
    shape: Shape

    @model_validator(mode="after")
    def _has_both_or_none(self) -> "Base":
        if (self.id is None) != (self.revision is None):
            raise ValueError("an id on the Hub goes with a revision")
        return self

    def __str__(self) -> str:
        return f"{self.name} (weights {self.sha256[:12]}..., {self.shape})"


class Texts(Part):
    """Number of texts of each split."""

    train: int
    validation: int
    test: int


class Validation(Part):
    """The best epoch's scores on the validation texts."""

    accuracy: float
    f1: float
    loss: float


class Trained(Part):
    """How the adapter came to be."""

    data: Shown
    """Where the texts came from; of a path, the last part."""
    recipe: dict[str, Any]
    """The resolved recipe, the folders of its files left out."""
    texts: Texts
    best_epoch: int
    validation: Validation
    precision: Shown
    packages: dict[str, str]
    """Versions of torch, transformers, peft and the rest."""


class Proof(Part):
    """What a fresh process found when it read the files back."""

    texts: int
    gap: float
    """Largest difference of its logits from the trained model's, in the precision of the training."""
    gap_fp32: float
    """The same difference for plain PEFT in fp32: what the precision of the training costs."""


class Manifest(Part):
    """What `lorafit.json` holds."""

    format_version: Literal[1, 2] = 2
    base: Base
    labels: Annotated[list[Shown], Field(min_length=2, max_length=100_000)]
    """Label names in the order of their ids."""
    task: Task = "single_label"
    """One label a text, or any number."""
    text_pair: bool = False
    """Whether a text is two: a pair."""
    max_tokens: Annotated[int, Field(gt=0)]
    """Longer texts are cut to this many tokens, special tokens included."""
    long_text: LongText = "head"
    """What is read of a longer text: see the recipe's `data.long_text`."""
    pooling: Pooling = "first"
    """What the head reads; PEFT knows "first" only."""
    html: Literal["keep", "strip"] = "keep"
    """"strip": tags are taken out of the texts first."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """What the logits were divided by in calibration. The head holds it already; 1: none was fitted."""
    thresholds: list[Threshold] | None = None
    """A probability for each label from which it is given; None: the most probable one is, of many those over 0.5."""
    seed: int
    """Makes the base's untrained head again."""
    training: Trained | None = None
    proof: Proof | None = None
    files: dict[PlainFileName, Sha256] = {}
    """The SHA-256 of each file beside this one, but for the model card, which may be edited."""

    @property
    def reading(self) -> str:
        """How much of a text is read, in words."""
        return reading_of(self.max_tokens, self.long_text)

    @model_validator(mode="after")
    def _labels_fit(self) -> "Manifest":
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels are not distinct")
        if self.thresholds is not None and len(self.thresholds) != len(self.labels):
            raise ValueError("there is not one threshold a label")
        if self.text_pair and self.long_text != "head":
            raise ValueError("pairs are read by their head only")
        return self


def reading_of(max_tokens: int, long_text: LongText) -> str:
    """Return in words how much of a text is read.

    >>> reading_of(512, "head")
    'up to 512 tokens; of longer texts the rest is cut'
    """
    return f"up to {max_tokens} tokens; of longer texts {_READ_OF[long_text]}"


def write(folder: Path, manifest: Manifest) -> None:
    """Write `lorafit.json` into `folder`, with the sum over its content as its last key, `seal`.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    write_sealed(folder / FILE, manifest)


def write_sealed(file: Path, made: BaseModel) -> None:
    """Write a model as JSON, with the sum over its content as its last key, `seal`.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    content = made.model_dump(mode="json")
    write_text(file, json.dumps(content | {"seal": _seal(content)}, indent=2, ensure_ascii=False) + "\n")


def read(folder: Path) -> Manifest:
    """Return what `lorafit.json` in `folder` holds.

    Raises:
        BundleError: it can't be read, its format is newer than this version knows, or its seal does not fit.
    """
    return read_sealed(folder / FILE, Manifest, FORMAT_VERSION)


def read_sealed(file: Path, model: type[Model], newest_version: int) -> Model:
    """Return what `write_sealed` wrote.

    Raises:
        BundleError: see `read`.
    """
    content = read_json(file, LARGEST_MANIFEST_BYTES)
    version = content.get("format_version")
    if isinstance(version, int) and version > newest_version:
        raise BundleError(
            f"{file} has format version {version}; this lorafit reads versions up to {newest_version}. "
            "Update it with: pip install --upgrade lorafit"
        )
    seal = content.pop("seal", None)
    made = parse(model, content, file)
    if seal != _seal(content):
        raise BundleError(f"{file} has been changed since it was written: its seal does not fit its content.")
    return made


def read_json(file: Path, largest_bytes: int) -> dict[str, Any]:
    """Return the object in a JSON file that is no larger than it should be.

    Raises:
        BundleError: too large, not JSON, or no object.
    """
    try:
        if file.stat().st_size > largest_bytes:
            raise BundleError(f"{file} takes {file.stat().st_size:,} bytes; it should be far smaller.")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{file} can't be read: {str(error).splitlines()[0]}.") from None
    if not isinstance(content, dict):
        raise BundleError(f"{file} can't be read: it holds no JSON object.")
    return content


def parse(model: type[Model], content: dict[str, Any], file: Path) -> Model:
    """Return the content of a JSON file as a pydantic model; `file` names it in errors.

    Raises:
        BundleError: it has another form.
    """
    try:
        return model.model_validate_json(json.dumps(content))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise BundleError(f"{file} can't be used: {place + ': ' if place else ''}{fault['msg']}.") from None


def _seal(content: dict[str, Any]) -> str:
    """Return the SHA-256 of the content, however it was laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
