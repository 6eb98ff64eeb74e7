"""The directory we hand over: adapter and head in PEFT's own format, the tokenizer, and `lorafit.json`.

Any PEFT user can load it. We read it with care, for it may come from anywhere: only safetensors and JSON, no symbolic
links, every file's SHA-256 against the manifest, every tensor's shape before memory is taken.
"""

import hashlib
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from lorafit import checks, encoders, manifest
from lorafit.checks import CARD, CONFIG, UNSEALED, WEIGHTS, Shapes
from lorafit.data import Text, strip_tags
from lorafit.encoders import Files
from lorafit.errors import BundleError, EncoderError, LorafitWarning, printable
from lorafit.files import sha256_of, storing
from lorafit.manifest import Base, Manifest
from lorafit.tokens import Tokens, encode

_HUB_ID, _REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?"), re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Contents:
    """What a bundle holds, without its base: `manifest` is None for a plain PEFT directory."""

    folder: Path
    manifest: Manifest | None
    lora: LoraConfig
    trained_whole: list[str]
    parameters: int
    bytes_by_file: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """What reads texts as in training: tokenizer and manifest.

    `token_types` is how many parts of a text the encoder can tell apart; 0: it does not look. `different_base` is the
    SHA-256 of the base's weights where they are not the ones that the adapter was trained on.
    """

    tokenizer: Any
    manifest: Manifest
    token_types: int
    different_base: str | None

    def encode(self, texts: Sequence[Text]) -> Tokens:
        """Return the token ids of texts or of pairs, prepared and cut as in training.

        Raises:
            EncoderError: the tokenizer fails.
            BundleError: it gives ids that the encoder does not embed.
        """
        strips = self.manifest.html == "strip"
        return self.encode_prepared([_without_tags(text) for text in texts] if strips else texts)

    def encode_prepared(self, texts: Sequence[Text]) -> Tokens:
        """Return what `encode` does, of texts whose tags are taken out already."""
        with encoders.refusing_what_does_not_load("The tokenizer"):
            tokens = encode(texts, self.tokenizer, self.manifest.max_tokens, self.manifest.long_text)
        rows = self.manifest.base.shape.vocabulary
        if len(tokens.ids) and not 0 <= tokens.ids.min() <= tokens.ids.max() < rows:
            raise BundleError(f"The tokenizer gives the id {tokens.ids.max():,}; its base embeds only {rows:,} tokens.")
        types = self.token_types
        if tokens.type_ids is not None and len(tokens.ids) and types and tokens.type_ids.max() >= types:
            raise BundleError(
                f"The tokenizer marks the second text of a pair, which its base can't; it has {types} mark."
            )
        return tokens


@dataclass(frozen=True, kw_only=True)
class Loaded(Reader):
    """A bundle in memory: the adapted model, its base with the untrained head underneath; and what reads its texts.

    `fresh` names the modules that the base's checkpoint did not hold.
    """

    model: PeftModel
    fresh: list[str]


def _without_tags(text: Text) -> Text:
    return strip_tags(text) if isinstance(text, str) else (strip_tags(text[0]), strip_tags(text[1]))


def folder_of(path: Path | str) -> Path:
    """Return the adapter directory that `path` is, or that the run folder `path` holds.

    Raises:
        BundleError: there is none.
    """
    folder = Path(path)
    inside = folder / "adapter"
    try:
        if inside.is_dir():
            return inside
        if (folder / "run.json").is_file():
            raise BundleError(f"{folder} holds no adapter yet. Go on with: lorafit train --resume {folder}")
        if not folder.is_dir():
            raise BundleError(f"There is no run folder or adapter directory {folder}.")
    except OSError as error:  # a name too long for the system
        raise BundleError(f"{folder} can't be read: {(error.strerror or str(error)).lower()}.") from None
    return folder


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 that tells bundles apart: of the manifest, which holds all others; of a plain PEFT directory
    that of its configuration's and its weights'.

    Raises:
        BundleError: not a bundle, or a damaged one.
    """
    if checks.check(folder) is not None:
        return sha256_of(folder / manifest.FILE)
    return hashlib.sha256("".join(sha256_of(folder / name) for name in (CONFIG, WEIGHTS)).encode()).hexdigest()


def identity(files: Files) -> Base:
    """Return what identifies an encoder in a manifest: by its Hub id and weights, never by a path."""
    name = files.name
    if files.hub_id is None:
        name = files.folder.resolve().name
    elif name.startswith("hub:"):
        name = f"hub:{files.hub_id}@{files.revision}"
    return Base(
        name=printable(name),
        id=files.hub_id,
        revision=files.revision,
        sha256=files.sha256,
        config_sha256=files.config_sha256,
        shape=encoders.shape(files),
    )


def write(folder: Path, model: PeftModel, tokenizer: Any, made: Manifest) -> None:
    """Write PEFT's files, the tokenizer and the manifest into `folder`.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    config = model.peft_config["default"]
    # Never a path of the machine it was made on, nor a folder's name, which the Hub may have for another encoder.
    config.base_model_name_or_path = made.base.id or ""
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


def inspect(folder: Path) -> Contents:
    """Return what a bundle holds; its base is neither needed nor looked at.

    Raises:
        BundleError: not a bundle, or a damaged one.
    """
    made = checks.check(folder)
    shapes = checks.read_shapes(folder / WEIGHTS)
    whole = {name.removeprefix("base_model.model.").rpartition(".")[0] for name in shapes if ".lora_" not in name}
    parameters = sum(math.prod(shape) for shape in shapes.values())
    sizes = {name: (folder / name).stat().st_size for name in sorted(checks.plain_files(folder))}
    return Contents(folder, made, checks.read_config(folder), sorted(whole), parameters, sizes)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A bundle that is whole, beside the encoder that it belongs to; nothing of either is in memory yet."""

    folder: Path
    manifest: Manifest
    lora: LoraConfig
    files: Files

    @property
    def different_base(self) -> str | None:
        """See `Reader`."""
        base = self.manifest.base
        return self.files.sha256 if _of(self.files) != (base.sha256, base.config_sha256) else None


def check(
    folder: Path, *, encoder: str | None = None, allow_different_base: bool = False, at_hand: Sequence[Files] = ()
) -> Checked:
    """Return a bundle once its files, its base and the shape of each tensor are sure.

    Args:
        folder: the adapter directory.
        encoder: take this one as the base; by default the bundled, cached or local copy that has its weights.
        allow_different_base: take a base with other weights, if shape and vocabulary fit; a warning says so.
        at_hand: encoders that are loaded already; they are neither looked for nor read again.

    Raises:
        BundleError: not a bundle, damaged, or a base that is not the one it was trained on.
        EncoderError: its base can't be found.
    """
    found = checks.check(folder)
    lora = checks.read_config(folder)
    shapes = checks.read_shapes(folder / WEIGHTS)
    if found is None:
        files = encoders.locate(encoder or _base_of_plain(folder))
        found = _plain_manifest(folder, files, lora, shapes)
    else:
        its_own = (found.base.sha256, found.base.config_sha256)
        same = [] if encoder else [files for files in at_hand if _of(files) == its_own]
        files = same[0] if same else _base_files(folder, found.base, encoder)
        _refuse_wrong_base(folder, found.base, files, allow_different_base)
    checks.refuse_wrong_shapes(folder, shapes, checks.expected_shapes(files, lora, len(found.labels)))
    return Checked(folder=folder, manifest=found, lora=lora, files=files)


def load(folder: Path, *, encoder: str | None = None, allow_different_base: bool = False) -> Loaded:
    """Return the model of a bundle on its own base, in fp32, not training.

    Args:
        folder: the adapter directory.
        encoder: see `check`.
        allow_different_base: see `check`.

    Raises:
        BundleError: not a bundle, damaged, or a base that is not the one it was trained on.
        EncoderError: its base can't be found.
    """
    whole = check(folder, encoder=encoder, allow_different_base=allow_different_base)
    made = encoders.load(
        whole.files,
        whole.manifest.labels,
        task=whole.manifest.task,
        dropout="keep",
        seed=whole.manifest.seed,
        pooling=whole.manifest.pooling,
        own_head=_may_have_begun_with_a_head(whole.manifest),
    )
    checks.refuse_random_modules(folder, made.fresh, whole.lora)
    try:
        model = PeftModel.from_pretrained(made.model, str(folder), config=whole.lora, local_files_only=True)
    except (SafetensorError, RuntimeError, ValueError, KeyError, OSError) as error:
        raise BundleError(f"{folder / WEIGHTS} can't be loaded: {str(error).splitlines()[0]}") from error
    model.eval()
    checks.refuse_other_than_numbers(
        folder,
        {name: p for name, p in model.named_parameters() if "lora_" in name or "modules_to_save" in name},
    )
    return Loaded(
        model=model,
        fresh=made.fresh,
        tokenizer=load_tokenizer(whole),
        manifest=whole.manifest,
        token_types=getattr(model.config, "type_vocab_size", 0),
        different_base=whole.different_base,
    )


def tensors(whole: Checked) -> dict[str, torch.Tensor]:
    """Return what a bundle's training changed, in fp32, by the names that PEFT saves it under.

    Raises:
        BundleError: it can't be read, or holds something that is no number.
    """
    try:
        found = {name: tensor.float() for name, tensor in load_file(whole.folder / WEIGHTS).items()}
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{whole.folder / WEIGHTS} can't be read: {str(error).splitlines()[0]}") from error
    checks.refuse_other_than_numbers(whole.folder, found)
    return found


def load_tokenizer(whole: Checked) -> Any:
    """Return the tokenizer of a bundle, which fits its base.

    Raises:
        BundleError: it gives ids that the base does not embed, or leads to other files.
        EncoderError: it can't be loaded.
    """
    tokenizer = _tokenizer_in(whole.folder, whole.files)
    checks.refuse_unfit_tokenizer(whole.folder, tokenizer, whole.files, whole.manifest)
    return tokenizer


def _may_have_begun_with_a_head(made: Manifest) -> bool:
    return made.training is None  # which only an adapter of somebody else's can


def _base_files(folder: Path, base: Base, encoder: str | None) -> Files:
    """Return the encoder that was named, or the one on this machine with the base's weights.

    Raises:
        EncoderError: it is not here.
    """
    if encoder is not None:
        return encoders.locate(encoder)
    known = encoders.find(base.sha256, base.config_sha256, base.id, base.revision)
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
    if _of(files) == (base.sha256, base.config_sha256):
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
    content = manifest.read_json(folder / CONFIG, checks.LARGEST_CONFIG_BYTES)
    name, revision = content.get("base_model_name_or_path"), content.get("revision")
    if not isinstance(name, str) or not name:
        raise BundleError(f"{folder / CONFIG} does not say which encoder it belongs to. Name it with --encoder.")
    if Path(name).is_dir():
        return name
    if not _HUB_ID.fullmatch(name) or not (revision is None or _REVISION.fullmatch(str(revision))):
        raise BundleError(
            f"{folder / CONFIG} names the encoder {name!r}, a folder that is not here. "
            "Say where it lies with --encoder FOLDER."
        )
    return f"hub:{name}@{revision}" if revision else f"hub:{name}"


def _plain_manifest(folder: Path, files: Files, lora: LoraConfig, shapes: Shapes) -> Manifest:
    """Return what can be found out about an adapter that lorafit did not make, and warn of the rest."""
    two, three = checks.expected_shapes(files, lora, 2), checks.expected_shapes(files, lora, 3)
    head = next((name for name in two if two[name] != three[name]), "")
    if not shapes.get(head):
        raise BundleError(f"{folder / WEIGHTS} holds no trained head ({head}): its answers would be random.")
    count = shapes[head][0]
    if not 2 <= count <= 100_000:
        raise BundleError(f"{folder / WEIGHTS}: {head} gives {count} answers, which is no classification.")
    window = encoders.window(files, _tokenizer_in(folder, files))
    warn(
        f"{folder} has no {manifest.FILE}: lorafit did not make it. Unknown are the names of its {count} labels, the "
        f"weights that its base had, and how long texts were cut ({window} tokens are taken).",
        LorafitWarning,
        stacklevel=3,
    )
    labels = [f"LABEL_{label_id}" for label_id in range(count)]
    return Manifest(base=identity(files), labels=labels, max_tokens=window, seed=0)


def _tokenizer_in(folder: Path, files: Files) -> Any:
    """Return the bundle's tokenizer; a plain PEFT directory may have left it to the encoder."""
    file = folder / "tokenizer_config.json"
    if not file.is_file() or not (folder / "tokenizer.json").is_file():
        return encoders.load_tokenizer(files.folder, files.name)
    checks.refuse_leading_elsewhere(file)
    return encoders.load_tokenizer(folder, str(folder))


def _of(files: Files) -> tuple[str, str]:
    return files.sha256, files.config_sha256
