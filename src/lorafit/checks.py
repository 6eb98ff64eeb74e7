"""What a bundle has to be before it is loaded, for it may come from anywhere.

No symbolic links, nothing but safetensors, JSON and text; every file's SHA-256 against the manifest; PEFT's
configuration made anew from the few values that a LoRA classifier has; every tensor's name, type and shape before
memory is taken.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from peft import LoraConfig
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from safetensors import SafetensorError, safe_open

from lorafit import adapter, encoders, manifest
from lorafit.encoders import Files
from lorafit.errors import BundleError
from lorafit.files import sha256_of
from lorafit.manifest import Manifest

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
UNSEALED = {manifest.FILE, CARD}
_SAFE = {".json", ".safetensors", ".md", ".txt"}  # .txt: a WordPiece vocabulary, or merges
LARGEST_CONFIG_BYTES = 1_000_000
_LARGEST_BYTES = {".json": 10_000_000, ".txt": 10_000_000, ".safetensors": 4_000_000_000}
_LARGEST_TOKENIZER_BYTES = 64_000_000  # one of 250,000 words takes 17 MB
# Settings of a tokenizer that lead transformers to other files.
_LEADS_ELSEWHERE = re.compile(r".*_files?|vocab|merges|tokenizer_object|init_inputs|auto_map")

_Suffix = Annotated[str, StringConstraints(pattern=r"^\w+(\.\w+)*$", max_length=200)]  # PEFT takes some as patterns
_Suffixes = Annotated[list[_Suffix], Field(max_length=2000)]
Shapes = dict[str, tuple[int, ...]]


class _Lora(BaseModel):
    """What we read from `adapter_config.json`; everything else has to be as PEFT leaves it."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    peft_type: Literal["LORA"]
    task_type: Literal["SEQ_CLS"] | None
    r: Annotated[int, Field(gt=0)]
    lora_alpha: Annotated[float, Field(gt=0, le=1e6)]
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Annotated[_Suffixes, Field(min_length=1)]
    exclude_modules: _Suffixes | None = None
    modules_to_save: _Suffixes | None = None
    layers_to_transform: int | Annotated[list[int], Field(max_length=1000)] | None = None
    layers_pattern: _Suffix | _Suffixes | None = None
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True


_LEAVE_THE_BASE = {"gaussian", "orthogonal", "eva"}  # ways to start an adapter; PiSSA and its like change the base
# Where the adapter's base came from, and by whom it was written: without meaning for its arithmetic.
_WITHOUT_MEANING = {"auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version"}


def check(folder: Path) -> Manifest | None:
    """Return the manifest of a bundle whose files are all there and unchanged; None for a plain PEFT directory.

    Raises:
        BundleError: a file is missing, changed, of a kind that could run code, or a symbolic link.
    """
    try:
        return _check(folder)
    except OSError as error:
        raise BundleError(f"{folder} can't be read: {(error.strerror or str(error)).lower()}.") from None


def _check(folder: Path) -> Manifest | None:
    if (folder / manifest.EXPORT_FILE).is_file():
        raise BundleError(f"{folder} is an export, which holds no adapter: name the bundle that it was made of.")
    names = plain_files(folder)
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


def plain_files(folder: Path) -> set[str]:
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
        if entry.is_file():
            size, largest = entry.stat().st_size, _LARGEST_BYTES.get(entry.suffix, math.inf)
            if size > (_LARGEST_TOKENIZER_BYTES if entry.name == "tokenizer.json" else largest):
                raise BundleError(f"{entry} takes {size:,} bytes, which no file of a bundle does.")
        names.add(entry.name)
    if manifest.FILE in names:
        for name in sorted(names):
            if Path(name).suffix not in _SAFE or not (folder / name).is_file():
                raise BundleError(f"{folder / name} is neither safetensors nor JSON. A bundle holds nothing else.")
    return {name for name in names if (folder / name).is_file()}


def read_config(folder: Path) -> LoraConfig:
    """Return PEFT's configuration, made anew from the few values that a LoRA classifier has.

    Raises:
        BundleError: another kind of adapter, an impossible value, or a setting that lorafit does not serve.
    """
    file = folder / CONFIG
    content = manifest.read_json(file, LARGEST_CONFIG_BYTES)
    if isinstance(content.get("target_modules"), str):
        raise BundleError(f"{file} has a pattern as target_modules, which lorafit does not run. List the names.")
    start = content.get("init_lora_weights")
    if isinstance(start, str) and start not in _LEAVE_THE_BASE:
        raise BundleError(
            f"{file} says init_lora_weights = {start!r}, which changes the base. Let PEFT turn it "
            "into an ordinary LoRA first: save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        )
    lora = manifest.parse(_Lora, content, file)
    served = lora.model_dump()
    usual = LoraConfig().to_dict()
    for key, value in content.items():
        if key not in served and key not in _WITHOUT_MEANING and value and value != usual.get(key):
            raise BundleError(f"{file} sets {key}, which lorafit does not serve.")
    return LoraConfig(**served | {"task_type": "SEQ_CLS", "init_lora_weights": True})


def read_shapes(file: Path) -> Shapes:
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


def expected_shapes(files: Files, lora: LoraConfig, labels: int) -> Shapes:
    """Return the tensors that this configuration has on this encoder, from a model without memory."""
    try:
        return adapter.tensor_shapes(encoders.blank(files, labels), lora)
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:  # PEFT and torch over impossible values
        reason = str(error).splitlines()[0]
        raise BundleError(f"{CONFIG} does not fit the encoder {files.name}: {reason}") from error


def refuse_wrong_shapes(folder: Path, shapes: Shapes, expected: Shapes) -> None:
    """Refuse tensors that are missing, too many, or of another shape than the configuration has them.

    Raises:
        BundleError: names the first.
    """
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


def refuse_random_modules(folder: Path, fresh: list[str], lora: LoraConfig) -> None:
    """Refuse an adapter that lacks a module which the encoder's checkpoint lacks too.

    Raises:
        BundleError: names the modules.
    """
    saved = adapter.PEFT_HEADS | set(lora.modules_to_save or ())
    lost = sorted(set(fresh) - saved)
    if lost:
        raise BundleError(
            f"{folder} does not hold {', '.join(lost)}, and neither does its base: trained weights were lost when it "
            "was saved, and random ones would take their place."
        )


def refuse_other_than_numbers(folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that are infinite, or not a number.

    Raises:
        BundleError: names the tensor.
    """
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise BundleError(f"{folder / WEIGHTS}: {name} holds something that is no number.")


def refuse_unfit_tokenizer(folder: Path, tokenizer: Any, files: Files, made: Manifest) -> None:
    """Refuse a tokenizer with ids that the encoder does not embed, and a window that it does not have.

    Raises:
        BundleError: names both numbers.
    """
    largest, rows = encoders.largest_id(tokenizer), encoders.shape(files).vocabulary
    if largest >= rows:
        raise BundleError(
            f"The tokenizer in {folder} gives ids up to {largest:,}; its base {files.name} embeds only {rows:,} tokens."
        )
    special, window = tokenizer.num_special_tokens_to_add(pair=made.text_pair), encoders.window(files, tokenizer)
    if not special < made.max_tokens <= window:
        raise BundleError(
            f"{folder} says that texts have up to {made.max_tokens:,} tokens; its base {files.name} reads from "
            f"{special + 1} to {window:,}."
        )


def refuse_leading_elsewhere(file: Path) -> None:
    """Refuse a tokenizer's settings that let transformers read other files than those beside them.

    Raises:
        BundleError: names the setting.
    """
    for key in manifest.read_json(file, LARGEST_CONFIG_BYTES):
        if _LEADS_ELSEWHERE.fullmatch(key):
            raise BundleError(f"{file} sets {key}, which leads to other files; a tokenizer lies in tokenizer.json.")
