"""An export on disk: its manifest, and every file's SHA-256 against it before anything of it is loaded."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from lorafit import bundle, checks, manifest
from lorafit.errors import BundleError
from lorafit.files import sha256_of
from lorafit.manifest import Manifest, Part, PlainFileName, Sha256, Shown

FILE = manifest.EXPORT_FILE
FORMAT_VERSION = 1
_SAFE = {".json", ".safetensors", ".onnx", ".xml", ".txt", ".model", ".jinja"}
_WEIGHTS = "openvino_model.bin"  # plain numbers; every other .bin may be a pickle

Form = Literal["merged", "onnx", "onnx-int8", "openvino", "openvino-int8"]
FORMS: tuple[Form, ...] = get_args(Form)
Share = Annotated[float, Field(ge=0, le=1)]


class Accuracy(Part):
    """How much of the accuracy an export keeps, on labelled texts that were not trained on."""

    original: Share
    export: Share
    gap_points: float
    """The export's minus the original's, in percentage points."""
    gap_interval: tuple[float, float]
    """Of the gap, 95%, in percentage points."""


class Agreement(Part):
    """What came of asking an export and the bundle it was made of the same texts."""

    texts: Annotated[int, Field(gt=0)]
    drawn_from: Shown
    """Where the texts come from."""
    largest_logit_gap: Annotated[float, Field(ge=0)]
    """Between the export's logits and those of the bundle in plain PEFT and fp32."""
    decided_otherwise: int
    """Texts that are given another label, or other labels."""
    accuracy: Accuracy | None
    """None: the texts have no labels."""
    texts_per_second: float
    """The export's rate, tokenizing left out."""
    lorafit_texts_per_second: float
    """The rate of lorafit's own engine on the same texts just after."""
    lorafit_precision: Shown
    threads: int


class Exported(Part):
    """What `lorafit_export.json` holds."""

    format_version: Literal[1] = 1
    form: Form
    bundle_sha256: Sha256
    """Of the bundle's own manifest; of the weights where a bundle has none."""
    different_base: Sha256 | None
    """The base's weights, where they are not those that the adapter was trained on."""
    adapter: Manifest
    """The bundle's manifest: labels, window, how it was trained."""
    fresh: list[Shown]
    """Modules of the head, which stay in fp32."""
    token_types: int
    inputs: list[Shown]
    """What the model is given: `input_ids`, `attention_mask`; of pairs `token_type_ids` too, where it looks at them."""
    agreement: Agreement
    bytes: int
    """What the model takes, without its tokenizer."""
    packages: dict[str, str]
    """Versions of torch, transformers and the runtime that it was made with."""
    processor: Shown
    """On which the export's rate was measured."""
    files: dict[PlainFileName, Sha256]
    """The SHA-256 of each file beside this one, but for the card, which may be edited."""


def write(folder: Path, made: Exported) -> None:
    """Write the manifest of an export into its folder.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    manifest.write_sealed(folder / FILE, made)


def read(folder: Path) -> Exported:
    """Return the manifest of an export; its files are not looked at.

    Raises:
        BundleError: it can't be read, or has been changed.
    """
    return manifest.read_sealed(folder / FILE, Exported, FORMAT_VERSION)


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 that tells exports and bundles apart: of the manifest, which holds all others.

    Raises:
        BundleError: neither an export nor a bundle.
    """
    return sha256_of(folder / FILE) if is_export(folder) else bundle.fingerprint(folder)


def is_export(folder: Path) -> bool:
    """Tell whether a folder holds an export."""
    return (folder / FILE).is_file()


def of_bundle(folder: Path, bundle_sha256: str, source: Path) -> Path:
    """Return the folder of an export once it is sure that it is one of this bundle.

    Raises:
        BundleError: it was made of another one.
    """
    found = check(folder)
    if found.bundle_sha256 != bundle_sha256:
        raise BundleError(
            f"{folder} was made of another bundle than {source}. Make one of this: "
            f"lorafit export {source} --to {found.form} OUT"
        )
    return folder


def check(folder: Path) -> Exported:
    """Return the manifest of an export whose files are all there and unchanged.

    Raises:
        BundleError: no export, a file that is missing or changed, or a symbolic link.
    """
    if not is_export(folder):
        raise BundleError(
            f"{folder} is no export: it has no {FILE}. Make one with: lorafit export BUNDLE --to FORM OUT"
        )
    try:
        found = read(folder)
        refuse_others(folder, found)
        for name, sha256 in found.files.items():
            file = folder / name
            if file.is_symlink():
                raise BundleError(f"{file} is a symbolic link; an export holds its files themselves.")
            if not file.is_file():
                raise BundleError(f"{folder} is not whole: {name} is missing.")
            if name.startswith("adapter_") or (file.suffix not in _SAFE and name != _WEIGHTS):
                raise BundleError(f"{file} is of no kind that an export holds.")
            if sha256_of(file) != sha256:
                raise BundleError(f"{file} has been changed since the export was made: its SHA-256 differs.")
    except OSError as error:
        raise BundleError(f"{folder} can't be read: {(error.strerror or str(error)).lower()}.") from None
    return found


def refuse_others(folder: Path, made: Exported) -> None:
    """Refuse a folder that holds more than its export: readers would take it for a part of it.

    Raises:
        BundleError: names the first such file; hidden ones are not read.
    """
    names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    for name in sorted(names - {FILE, checks.CARD} - made.files.keys()):
        raise BundleError(f"{folder} holds {name}, which is no part of this export. Take it out.")
