"""The directory we hand over: adapter and head in PEFT's own format, the tokenizer, and `lorafit.json`.

Any PEFT user can load it; `lorafit.json` holds what PEFT's files do not: label names, window, base identity, seed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError

from lorafit import encoders
from lorafit.errors import BundleError
from lorafit.files import storing, write_text

MANIFEST = "lorafit.json"
WEIGHTS = "adapter_model.safetensors"


class Base(BaseModel):
    """The encoder that an adapter belongs to."""

    model_config = ConfigDict(extra="forbid")

    source: str
    """What the recipe called it: bundled:minilm, hub:NAME@REVISION, or a path."""
    id: str | None
    """Its id on the Hub."""
    revision: str | None
    """Its commit there."""
    sha256: str
    """The SHA-256 of its weights."""


class Manifest(BaseModel):
    """What `lorafit.json` holds."""

    model_config = ConfigDict(extra="forbid")

    format_version: Literal[1] = 1
    base: Base
    labels: list[str]
    task: Literal["single_label"] = "single_label"
    max_tokens: int
    long_text: Literal["head"] = "head"
    html: Literal["keep", "strip"] = "keep"
    seed: int
    """Makes the base's untrained head again."""


@dataclass(frozen=True)
class Loaded:
    """A bundle in memory: the adapted model (its base with the untrained head underneath), tokenizer and manifest.

    `fresh` names the modules that the base's checkpoint did not hold.
    """

    model: PeftModel
    fresh: list[str]
    tokenizer: Any
    manifest: Manifest


def save(folder: Path, model: PeftModel, tokenizer: Any, manifest: Manifest) -> None:
    """Write a bundle into `folder`.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    config = model.peft_config["default"]
    if manifest.base.id is not None:  # never a path of the machine it was made on
        config.base_model_name_or_path, config.revision = manifest.base.id, manifest.base.revision
    with storing(folder):
        # "auto" would ask the Hub about the base's vocabulary; we never change it.
        model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        (folder / "README.md").unlink(
            missing_ok=True
        )  # PEFT's empty model card: ours comes with content, or not at all
        tokenizer.save_pretrained(folder)
        write_text(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Return what `lorafit.json` holds.

    Raises:
        BundleError: no adapter there, or a manifest that can't be read.
    """
    if (folder / "run.json").is_file():
        raise BundleError(f"{folder} holds no adapter yet. Go on with: lorafit train --resume {folder}")
    for file in ("adapter_config.json", WEIGHTS, MANIFEST):
        if not (folder / file).is_file():
            raise BundleError(f"{folder} is no adapter of lorafit: it has no {file}.")
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise BundleError(f"{folder / MANIFEST} can't be read: {place}: {fault['msg']}.") from None


def load(folder: Path) -> Loaded:
    """Return the model of a bundle on its own base, in fp32, not training.

    Raises:
        BundleError: not a bundle, broken weights, or a base that is not the one it was trained on.
        EncoderError: its base can't be found.
    """
    manifest = read_manifest(folder)
    base = manifest.base
    files = encoders.locate(base.source)
    if files.sha256 != base.sha256:
        raise BundleError(
            f"{folder} was trained on {base.source} with weights {base.sha256[:12]}..., "
            f"but the one here has {files.sha256[:12]}.... Its answers would mean nothing."
        )
    encoder = encoders.load(files, manifest.labels, seed=manifest.seed)
    try:
        model = PeftModel.from_pretrained(encoder.model, str(folder), local_files_only=True)
    except (SafetensorError, RuntimeError, ValueError, OSError) as error:
        raise BundleError(f"{folder / WEIGHTS} can't be loaded: {str(error).splitlines()[0]}") from error
    model.eval()
    tokenizer = encoders.load_tokenizer(folder, str(folder))
    return Loaded(model, encoder.fresh, tokenizer, manifest)
