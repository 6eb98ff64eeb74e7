"""A pretrained encoder with a fresh classification head, and what identifies it."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from lorafit import bundled, families, hub, runtime
from lorafit.errors import EncoderError, LorafitError, StorageError
from lorafit.files import sha256_of, write_text
from lorafit.manifest import Pooling, Shape, Task
from lorafit.pooling import read_the_mean
from lorafit.recipe import Recipe
from lorafit.runtime import cache_dir

_FILES = [
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
]
_SAYS_NOTHING = {  # of the arithmetic
    "_name_or_path", "architectures", "dtype", "gradient_checkpointing", "id2label", "label2id", "problem_type",
    "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "spm.model", "sentencepiece.bpe.model")


@dataclass(frozen=True)
class Files:
    """Where an encoder lies, and what it is: the Hub's id and revision where it has one, and two SHA-256.

    `sha256` is that of its weights, `config_sha256` that of what its configuration says of the arithmetic.
    """

    name: str
    folder: Path
    hub_id: str | None
    revision: str | None
    sha256: str
    config_sha256: str


@dataclass(frozen=True)
class Encoder:
    """An encoder with a fresh head; `fresh` names the modules that the checkpoint did not hold."""

    model: PreTrainedModel
    fresh: list[str]


def locate(name: str, *, refresh: bool = False) -> Files:
    """Return the files of an encoder, fetched if need be.

    Args:
        name: "bundled:minilm", "hub:NAME[@REVISION]", or the path of a folder.
        refresh: ask the Hub even for what is cached.

    Raises:
        EncoderError: no such encoder, or a folder that lacks a file.
        HubError: the Hub does not have it, or can't be reached.

    >>> locate("bundled:minilm").hub_id
    'sentence-transformers/all-MiniLM-L6-v2'
    """
    if name.startswith("bundled:"):
        found = bundled.encoder(name.removeprefix("bundled:"))
        return _files(name, found.folder, found.hub_id, found.revision)
    if name.startswith("hub:"):
        snapshot = hub.snapshot(name.removeprefix("hub:"), "model", _FILES, complete=_is_complete, refresh=refresh)
        return _files(name, snapshot.folder, snapshot.repo, snapshot.revision)
    folder = Path(name)
    if not folder.is_dir():
        raise EncoderError(
            f"There is no encoder folder {name!r}. An encoder of the Hub is written hub:{name}; "
            "bundled:minilm needs no network."
        )
    if not _is_complete(folder):
        raise EncoderError(
            f"{name} is no complete encoder: it needs config.json, weights as *.safetensors and a tokenizer."
        )
    files = _files(str(folder.resolve()), folder, None, None)
    _remember(files)
    return files


def find(sha256: str, config_sha256: str, hub_id: str | None, revision: str | None) -> Files | None:
    """Return the encoder on this machine that is this one: the bundled one, a folder seen before, or the Hub's.

    A folder whose content has changed since comes last, and so does what the Hub has now: compare them.

    Args:
        sha256: of its weights.
        config_sha256: of what its configuration says of the arithmetic.
        hub_id: its name on the Hub; None for one that is not there.
        revision: its commit there.

    Raises:
        HubError: it is neither here nor can it be fetched.
    """
    name = bundled.encoder_with(sha256)
    folder = _remembered().get(f"{sha256} {config_sha256}", "")
    names = [f"bundled:{name}"] if name else []
    names += [folder] if folder and _is_complete(Path(folder)) else []
    here = [locate(name) for name in names]
    for files in here:
        if (files.sha256, files.config_sha256) == (sha256, config_sha256):
            return files
    if hub_id is not None and revision is not None:
        return locate(f"hub:{hub_id}@{hub.cached_commit(hub_id, revision, sha256) or revision}")
    return here[-1] if here else None


def load_tokenizer(folder: Path, name: str) -> Any:
    """Return the fast tokenizer in a folder; truncation and padding that its file carries are reset by transformers.

    Raises:
        EncoderError: no fast tokenizer, or none with a padding token.
    """
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):  # transformers would make an empty one
        raise EncoderError(f"{name} has no tokenizer: it needs one of {', '.join(_TOKENIZER_FILES)}.")
    with refusing_what_does_not_load(name):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise EncoderError(f"{name} needs a fast tokenizer with a padding token; it has none.")
    return tokenizer


def refuse_long_window(files: Files, tokenizer: Any, max_tokens: int) -> None:
    """Refuse to read more tokens than the encoder has positions for.

    Raises:
        EncoderError: names both numbers.
    """
    limit = window(files, tokenizer)
    if max_tokens > limit:
        raise EncoderError(f"{files.name} reads at most {limit} tokens; data.max_tokens is {max_tokens}.")


def window(files: Files, tokenizer: Any) -> int:
    """Return how many tokens the encoder can read at once, special tokens included."""
    config = _read_config(files)
    with refusing_what_does_not_load(files.name):
        positions = families.window(config)
        longest = int(tokenizer.model_max_length)  # of a tokenizer that does not say, 10^30
    return longest if positions is None else min(positions, longest)


def largest_id(tokenizer: Any) -> int:
    """Return the largest id that a tokenizer gives; its length says less, for ids may have gaps."""
    return int(max([*tokenizer.get_vocab().values(), tokenizer.pad_token_id]))


def shape(files: Files) -> Shape:
    """Return an encoder's size, as its configuration says it."""
    config = _read_config(files)
    return Shape(
        model_type=config.model_type,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        vocabulary=config.vocab_size,
    )


def blank(files: Files, labels: int) -> PreTrainedModel:
    """Return the classifier with this many labels as shapes only, on torch's "meta" device."""
    config = _read_config(files)
    config.num_labels = labels
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    assert isinstance(model, PreTrainedModel)
    return model


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of everything that decides a text's token ids but for the truncation."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described |= {"truncation": None, "padding": None}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def of_recipe(recipe: Recipe, files: Files, labels: list[str], task: Task) -> Encoder:
    """Return the encoder that a recipe asks for, with a fresh head: see `load`.

    >>> of_recipe(recipe, locate(recipe.encoder.name), ["neg", "pos"], "single_label").fresh
    """
    wanted = recipe.encoder
    return load(files, labels, task=task, dropout=wanted.dropout, seed=recipe.seed, pooling=wanted.pooling)


def load(
    files: Files,
    labels: list[str],
    *,
    task: Task = "single_label",
    dropout: float | str = 0.0,
    seed: int = 0,
    pooling: Pooling = "first",
    own_head: bool = False,
) -> Encoder:
    """Return the encoder with a fresh head for `labels`, in fp32, ready for an adapter.

    Args:
        files: from `locate`.
        labels: label names in the order of their ids.
        task: one label a text, or any number; transformers' pipelines give probabilities by it.
        dropout: the encoder's own, everywhere in its configuration; "keep" leaves that alone.
        seed: decides the fresh head, which `predict --base` makes again.
        pooling: what the head reads: "first", or "mean", which lorafit alone can read back.
        own_head: take a checkpoint that brings a trained head, too.

    Raises:
        EncoderError: transformers knows no classifier for it, or its files are broken.
    """
    config = _read_config(files)
    with refusing_what_does_not_load(files.name):
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: label_id for label_id, label in enumerate(labels)}
        config.problem_type = f"{task}_classification"
        if dropout != "keep":
            for key in _dropout_keys(config):
                setattr(config, key, float(dropout))
        runtime.seed(seed)
        with _no_load_report():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                files.folder,
                config=config,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    # Found from what loading reports as new, not from a list of names: DistilBERT's pre_classifier, DeBERTa's pooler.
    fresh = {_fresh_module(key, model, files.name) for key in report["missing_keys"]}
    if not own_head and not fresh - {"pooler"}:
        raise EncoderError(
            f"{files.name} brings a trained classification head of its own; lorafit starts from an encoder without. "
            "Name the encoder that it was made from."
        )
    if pooling == "mean":
        read_the_mean(model)
        if hasattr(model.base_model, "pooler"):  # passed by
            fresh.discard("pooler")
    return Encoder(model, sorted(fresh))


def _read_config(files: Files) -> Any:
    """Return an encoder's configuration.

    Raises:
        EncoderError: transformers knows no classifier for it.
    """
    with refusing_what_does_not_load(files.name):
        config = AutoConfig.from_pretrained(files.folder, trust_remote_code=False, local_files_only=True)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise EncoderError(
            f"transformers has no text classifier for {files.name} ({config.model_type}). "
            f"Set encoder.name to an encoder of a family that lorafit knows: {', '.join(families.FAMILIES)}."
        )
    return config


@contextmanager
def _no_load_report() -> Iterator[None]:
    """Keep transformers from reporting a fresh head, which is what we ask for, and from drawing a bar."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _fresh_module(key: str, model: PreTrainedModel, name: str) -> str:
    """Return the outermost module of a weight that the checkpoint lacks: the head, or the encoder's own pooler."""
    prefix = f"{model.base_model_prefix}."
    module = key.removeprefix(prefix).split(".")[0]
    if key.startswith(prefix) and module != "pooler":
        raise EncoderError(f"{name} is no complete encoder: its weights lack {key}.")
    return module


def _dropout_keys(config: Any) -> list[str]:
    values = config.to_dict()
    return [key for key, value in values.items() if "dropout" in key and isinstance(value, float)]


@contextmanager
def refusing_what_does_not_load(name: str) -> Iterator[None]:
    """Turn whatever the readers below us raise over broken or unknown files into one sentence."""
    try:
        yield
    except LorafitError:
        raise
    except BaseException as error:  # tokenizers raises plain Exceptions, and panics that are not even those
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EncoderError(f"{name} can't be loaded as a text classifier: {reason}") from error


def _is_complete(folder: Path) -> bool:
    weights = _weight_files(folder)
    complete = bool(weights) and all(file.is_file() for file in weights)
    return complete and (folder / "config.json").is_file() and any((folder / f).is_file() for f in _TOKENIZER_FILES)


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers takes the weights from, one or those that an index names; [] for none."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return sorted({folder / Path(shard).name for shard in index["weight_map"].values()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


def _files(name: str, folder: Path, hub_id: str | None, revision: str | None) -> Files:
    return Files(name, folder, hub_id, revision, _weights_sha256(folder), _config_sha256(name, folder))


def _remember(files: Files) -> None:
    """Note where an encoder lies on this machine: a bundle names its base by its content, never by a path."""
    known, key, place = _remembered(), f"{files.sha256} {files.config_sha256}", str(files.folder.resolve())
    if known.get(key) != place:
        with suppress(StorageError):  # --encoder does it too
            write_text(_places_file(), json.dumps(known | {key: place}, indent=2))


def _remembered() -> dict[str, str]:
    try:
        known = json.loads(_places_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there yet, or damaged
        return {}
    return known if isinstance(known, dict) else {}


def _places_file() -> Path:
    return cache_dir() / "encoders.json"


def _weights_sha256(folder: Path) -> str:
    """Return the SHA-256 of the weights; of several files, that of their sums one after the other."""
    sums = [sha256_of(file) for file in _weight_files(folder)]
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


def _config_sha256(name: str, folder: Path) -> str:
    """Return the SHA-256 of the configuration, but for what names, labels and versions change in it."""
    with refusing_what_does_not_load(name):
        config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    said = {key: value for key, value in config.items() if key not in _SAYS_NOTHING}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
