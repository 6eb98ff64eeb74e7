"""The directory we hand over: adapter and head in PEFT's own format, the tokenizer, and `lorafit.json`.

Any PEFT user can load it. We read it with care, for it may come from anywhere: only safetensors and JSON, no symbolic
links, every file's SHA-256 against the manifest, every tensor's shape before memory is taken.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from warnings import warn

from peft import LoraConfig, PeftModel
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from safetensors import SafetensorError, safe_open

from lorafit import adapter, encoders, manifest
from lorafit.data import strip_tags
from lorafit.encoders import Files
from lorafit.errors import BundleError, EncoderError, LorafitWarning
from lorafit.files import sha256_of, storing
from lorafit.manifest import Base, Manifest
from lorafit.tokens import Tokens, encode

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
UNSEALED = {manifest.FILE, CARD}
_SAFE = {".json", ".safetensors", ".md", ".txt"}  # .txt: a WordPiece vocabulary, or merges
_LARGEST_CONFIG_BYTES = 1_000_000
_LARGEST_JSON_BYTES = 200_000_000  # a tokenizer of 250,000 words takes 17 MB

_Suffix = Annotated[str, StringConstraints(pattern=r"^\w+(\.\w+)*$")]  # PEFT takes some of these as patterns
_Shapes = dict[str, tuple[int, ...]]


class _Lora(BaseModel):
    """What we read from `adapter_config.json`; everything else has to be as PEFT leaves it."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    peft_type: Literal["LORA"]
    task_type: Literal["SEQ_CLS"]
    r: Annotated[int, Field(gt=0)]
    lora_alpha: Annotated[float, Field(gt=0)]
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Annotated[list[_Suffix], Field(min_length=1)]
    exclude_modules: list[_Suffix] | None = None
    modules_to_save: list[_Suffix] | None = None
    layers_to_transform: list[int] | None = None
    use_rslora: bool = False
    use_dora: bool = False


# How the adapter was started and where its base came from: without meaning for an adapter that is trained.
_WITHOUT_MEANING = {
    "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "init_lora_weights", "peft_version",
}  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """What a bundle holds, without its base: `manifest` is None for a plain PEFT directory."""

    folder: Path
    manifest: Manifest | None
    lora: LoraConfig
    trained_whole: list[str]
    parameters: int
    bytes_by_file: dict[str, int]


@dataclass(frozen=True)
class Loaded:
    """A bundle in memory: the adapted model (its base with the untrained head underneath), tokenizer and manifest.

    `fresh` names the modules that the base's checkpoint did not hold. `different_base` is the SHA-256 of the weights
    underneath where they are not the ones that the adapter was trained on.
    """

    model: PeftModel
    fresh: list[str]
    tokenizer: Any
    manifest: Manifest
    different_base: str | None = None

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Return the token ids of texts, prepared and cut as in training."""
        if self.manifest.html == "strip":
            texts = [strip_tags(text) for text in texts]
        return encode(texts, self.tokenizer, self.manifest.max_tokens)


def folder_of(path: Path | str) -> Path:
    """Return the adapter directory that `path` is, or that the run folder `path` holds.

    Raises:
        BundleError: there is none.
    """
    folder = Path(path)
    inside = folder / "adapter"
    if inside.is_dir():
        return inside
    if (folder / "run.json").is_file():
        raise BundleError(f"{folder} holds no adapter yet. Go on with: lorafit train --resume {folder}")
    if not folder.is_dir():
        raise BundleError(f"There is no run folder or adapter directory {folder}.")
    return folder


def identity(files: Files) -> Base:
    """Return what identifies an encoder in a manifest: by its Hub id and weights, never by a path."""
    name = files.name
    if files.hub_id is None:
        name = files.folder.resolve().name
    elif name.startswith("hub:"):
        name = f"hub:{files.hub_id}@{files.revision}"
    return Base(name=name, id=files.hub_id, revision=files.revision, sha256=files.sha256, shape=encoders.shape(files))


def write(folder: Path, model: PeftModel, tokenizer: Any, made: Manifest) -> None:
    """Write PEFT's files, the tokenizer and the manifest into `folder`.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path = made.base.id or made.base.name  # never a path of the machine it was made on
    config.revision = made.base.revision
    with storing(folder):
        # "auto" would ask the Hub about the base's vocabulary; we never change it.
        model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        (folder / CARD).unlink(missing_ok=True)  # PEFT's is empty
        shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets nobody else read what it writes
        tokenizer.save_pretrained(folder)
    seal(folder, made)


def seal(folder: Path, made: Manifest) -> None:
    """Write the manifest with the SHA-256 of each file that stands beside it now."""
    sums = {file.name: sha256_of(file) for file in sorted(folder.iterdir()) if file.name not in UNSEALED}
    manifest.write(folder, made.model_copy(update={"files": sums}))


def check(folder: Path) -> Manifest | None:
    """Return the manifest of a bundle whose files are all there and unchanged; None for a plain PEFT directory.

    Raises:
        BundleError: a file is missing, changed, of a kind that could run code, or a symbolic link.
    """
    names = _plain_files(folder)
    sealed = manifest.FILE in names
    for needed in (CONFIG, WEIGHTS):
        if needed not in names:
            raise BundleError(f"{folder} is no adapter that lorafit can load: it has no {needed}.")
    if not sealed:
        return None
    found = manifest.read(folder)
    for name in names - UNSEALED - found.files.keys():
        raise BundleError(f"{folder} holds {name}, which is no part of this bundle. Take it out.")
    for name, sha256 in found.files.items():
        if name not in names:
            raise BundleError(f"{folder} is not whole: {name} is missing.")
        if sha256_of(folder / name) != sha256:
            raise BundleError(f"{folder / name} has been changed since the bundle was saved: its SHA-256 differs.")
    return found


def inspect(folder: Path) -> Contents:
    """Return what a bundle holds; its base is neither needed nor looked at.

    Raises:
        BundleError: not a bundle, or a damaged one.
    """
    made = check(folder)
    shapes = _read_shapes(folder / WEIGHTS)
    whole = {name.removeprefix("base_model.model.").rpartition(".")[0] for name in shapes if ".lora_" not in name}
    parameters = sum(math.prod(shape) for shape in shapes.values())
    sizes = {name: (folder / name).stat().st_size for name in sorted(_plain_files(folder))}
    return Contents(folder, made, _read_config(folder), sorted(whole), parameters, sizes)


def load(folder: Path, *, encoder: str | None = None, allow_different_base: bool = False) -> Loaded:
    """Return the model of a bundle on its own base, in fp32, not training.

    Args:
        folder: the adapter directory.
        encoder: take this one as the base; by default the bundled, cached or local copy that has its weights.
        allow_different_base: take a base with other weights, if shape and vocabulary fit; a warning says so.

    Raises:
        BundleError: not a bundle, damaged, or a base that is not the one it was trained on.
        EncoderError: its base can't be found.
    """
    found = check(folder)
    lora = _read_config(folder)
    shapes = _read_shapes(folder / WEIGHTS)
    if found is None:
        files = encoders.locate(encoder or _base_of_plain(folder))
        found = _plain_manifest(folder, files, lora, shapes)
    else:
        files = _base_files(folder, found.base, encoder)
        _refuse_wrong_base(folder, found.base, files, allow_different_base)
    _refuse_wrong_shapes(folder, shapes, _expected_shapes(files, lora, len(found.labels)))
    made = encoders.load(files, found.labels, dropout="keep", seed=found.seed)
    _refuse_random_modules(folder, made.fresh, lora)
    try:
        model = PeftModel.from_pretrained(made.model, str(folder), config=lora, local_files_only=True)
    except (SafetensorError, RuntimeError, ValueError, KeyError, OSError) as error:
        raise BundleError(f"{folder / WEIGHTS} can't be loaded: {str(error).splitlines()[0]}") from error
    model.eval()
    tokenizer = _load_tokenizer(folder, files)
    if len(tokenizer) > encoders.shape(files).vocabulary:
        raise BundleError(
            f"The tokenizer in {folder} knows {len(tokenizer):,} tokens; its base {files.name} embeds only "
            f"{encoders.shape(files).vocabulary:,}."
        )
    different = files.sha256 if files.sha256 != found.base.sha256 else None
    return Loaded(model, made.fresh, tokenizer, found, different)


def _plain_files(folder: Path) -> set[str]:
    """Return the names of the files in a bundle, after a look at what kind they are; hidden ones are not read."""
    names = set()
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_symlink():
            raise BundleError(f"{entry} is a symbolic link; a bundle holds its files themselves.")
        if entry.name == "config.json":
            raise BundleError(f"{entry} breaks the loading of the adapter, in PEFT too. Take it out.")
        if entry.name == "adapter_model.bin":
            raise BundleError(f"{entry} is a pickle, which can run code. lorafit reads safetensors only.")
        if not entry.is_file():
            continue
        if entry.suffix == ".json" and entry.stat().st_size > _LARGEST_JSON_BYTES:
            raise BundleError(f"{entry} takes {entry.stat().st_size:,} bytes, which no file of a bundle does.")
        names.add(entry.name)
    if manifest.FILE in names:
        for name in sorted(names):
            if Path(name).suffix not in _SAFE:
                raise BundleError(f"{folder / name} is neither safetensors nor JSON. A bundle holds nothing else.")
    return names


def _read_config(folder: Path) -> LoraConfig:
    """Return PEFT's configuration, made anew from the few values that a LoRA classifier has.

    Raises:
        BundleError: another kind of adapter, an impossible value, or a setting that lorafit does not serve.
    """
    file = folder / CONFIG
    content = manifest.read_json(file, _LARGEST_CONFIG_BYTES)
    lora = manifest.parse(_Lora, content, file)
    served = lora.model_dump()
    usual = LoraConfig().to_dict()
    for key, value in content.items():
        if key not in served and key not in _WITHOUT_MEANING and value and value != usual.get(key):
            raise BundleError(f"{file} sets {key}, which lorafit does not serve.")
    return LoraConfig(**served)


def _read_shapes(file: Path) -> _Shapes:
    """Return the shape of each tensor from the file's header, without reading the tensors."""
    try:
        with safe_open(file, "pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - it is no mapping
            for name, part in slices.items():
                if part.get_dtype() not in ("F32", "F16", "BF16"):
                    raise BundleError(
                        f"{file}: {name} is of type {part.get_dtype()}, which no weight of an adapter is."
                    )
            return {name: tuple(part.get_shape()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{file} can't be read: {str(error).splitlines()[0]}") from None


def _expected_shapes(files: Files, lora: LoraConfig, labels: int) -> _Shapes:
    """Return the tensors that this configuration has on this encoder, from a model without memory."""
    try:
        return adapter.tensor_shapes(encoders.blank(files, labels), lora)
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:  # PEFT and torch over impossible values
        reason = str(error).splitlines()[0]
        raise BundleError(f"{CONFIG} does not fit the encoder {files.name}: {reason}") from error


def _refuse_wrong_shapes(folder: Path, shapes: _Shapes, expected: _Shapes) -> None:
    file = folder / WEIGHTS
    missing, extra = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    if missing:
        raise BundleError(f"{file} lacks {_first(missing)}, which {CONFIG} asks for.")
    if extra:
        raise BundleError(f"{file} holds {_first(extra)}, which {CONFIG} does not ask for.")
    for name, shape in expected.items():
        if shapes[name] != shape:
            hint = " (its labels don't match its head)" if ".lora_" not in name else ""
            raise BundleError(f"{file}: {name} has the shape {shapes[name]}; it should have {shape}{hint}.")


def _first(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more tensors" if len(names) > 1 else "")


def _refuse_random_modules(folder: Path, fresh: list[str], lora: LoraConfig) -> None:
    saved = adapter.PEFT_HEADS | set(lora.modules_to_save or ())
    lost = sorted(set(fresh) - saved)
    if lost:
        raise BundleError(
            f"{folder} does not hold {', '.join(lost)}, and neither does its base: trained weights were lost when it "
            "was saved, and random ones would take their place."
        )


def _base_files(folder: Path, base: Base, encoder: str | None) -> Files:
    """Return the encoder that was named, or the one on this machine with the base's weights.

    Raises:
        EncoderError: it is not here.
    """
    if encoder is not None:
        return encoders.locate(encoder)
    known = encoders.find(base.sha256, base.id, base.revision)
    if known is None:
        raise EncoderError(
            f"{folder} belongs to the encoder {base}, which was a folder and is not known here. "
            "Say where it lies with --encoder FOLDER."
        )
    return known


def _refuse_wrong_base(folder: Path, base: Base, files: Files, allow_different_base: bool) -> None:
    """Refuse an encoder that is not the one of the training.

    Raises:
        BundleError: names both.
    """
    if files.sha256 == base.sha256:
        return
    found = identity(files)
    both = f"{folder} belongs to the encoder {base}; this one is {found}."
    if found.shape != base.shape:
        raise BundleError(f"{both} Their shapes differ, so the adapter does not fit.")
    if not allow_different_base:
        raise BundleError(
            f"{both} Its answers would mean nothing. If you know better, say so with --allow-different-base."
        )
    warn(f"{both} It is used because --allow-different-base says so.", LorafitWarning, stacklevel=3)


def _base_of_plain(folder: Path) -> str:
    """Return the encoder that a plain PEFT directory names, as a source."""
    content = manifest.read_json(folder / CONFIG, _LARGEST_CONFIG_BYTES)
    name, revision = content.get("base_model_name_or_path"), content.get("revision")
    if not isinstance(name, str) or not name:
        raise BundleError(f"{folder / CONFIG} does not say which encoder it belongs to. Name it with --encoder.")
    if Path(name).is_dir():
        return name
    return f"hub:{name}@{revision}" if isinstance(revision, str) and revision else f"hub:{name}"


def _plain_manifest(folder: Path, files: Files, lora: LoraConfig, shapes: _Shapes) -> Manifest:
    """Return what can be found out about an adapter that lorafit did not make, and warn of the rest."""
    two, three = _expected_shapes(files, lora, 2), _expected_shapes(files, lora, 3)
    head = next(name for name in two if two[name] != three[name])
    if not shapes.get(head):
        raise BundleError(f"{folder / WEIGHTS} holds no trained head ({head}): its answers would be random.")
    count = shapes[head][0]
    if not 2 <= count <= 100_000:
        raise BundleError(f"{folder / WEIGHTS}: {head} gives {count} answers, which is no classification.")
    window = encoders.window(files, _load_tokenizer(folder, files))
    warn(
        f"{folder} has no {manifest.FILE}: lorafit did not make it. Unknown are the names of its {count} labels, the "
        f"weights that its base had, and how long texts were cut ({window} tokens are taken).",
        LorafitWarning,
        stacklevel=3,
    )
    labels = [f"LABEL_{label_id}" for label_id in range(count)]
    return Manifest(base=identity(files), labels=labels, max_tokens=window, seed=0)


def _load_tokenizer(folder: Path, files: Files) -> Any:
    """Return the bundle's tokenizer; a plain PEFT directory may have left it to the encoder."""
    if (folder / "tokenizer_config.json").is_file():
        return encoders.load_tokenizer(folder, str(folder))
    return encoders.load_tokenizer(files.folder, files.name)
