"""The frozen layers below the lowest adapter, computed once: what they give each token is kept, and read ever after.

With adapters on the last layers only, the layers under them give the same answer in every epoch, in every trial of a
search, with and without the adapter. `of` looks whether a model has such a prefix, `states` computes or finds what it
gives, and within `standing_in` the model reads that: the "id" of a token is then the row in which its state stands.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock
from torch import nn
from transformers import PreTrainedModel

from lorafit import padfree, predict
from lorafit.console import bar, duration, say
from lorafit.encoders import Files
from lorafit.errors import RecipeError, StorageError
from lorafit.files import new_folder, remove_unfinished, storing
from lorafit.manifest import Base
from lorafit.runtime import Runtime, cache_dir
from lorafit.tokens import Tokens, inputs_of, pad

_FORMAT = 1
_TABLE, _FACTS = "states.bin", "states.json"
# Its layers are one and the same, so that none of them is frozen beside one with an adapter.
_SERVED = [family for family in padfree.FAMILIES if family != "albert"]


@dataclass(frozen=True)
class Prefix:
    """What of an encoder stays as it is: its embeddings, and its first layers.

    Attributes:
        encoder: the encoder itself.
        layers: all its layers.
        count: how many of them are below the lowest adapter.
    """

    encoder: PreTrainedModel
    layers: nn.ModuleList
    count: int

    @property
    def _passed(self) -> list[nn.Module]:
        """The modules behind the embeddings that give nothing new."""
        projected = getattr(self.encoder, "embeddings_project", None)  # ELECTRA's
        return [*([projected] if projected is not None else []), *self.layers[: self.count]]


@dataclass(frozen=True)
class States:
    """What a prefix gives for each token of some texts.

    Attributes:
        table: (tokens, width), mapped from disk.
        tokens: for each group of texts, the rows of its tokens in the table, in the place of ids.
        seconds: that computing took; 0 where the states were found.
    """

    table: torch.Tensor
    tokens: list[Tokens]
    seconds: float

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return int(self.table.nbytes)


def of(model: nn.Module, layers: str, name: str = "this encoder") -> Prefix:
    """Return the prefix of a model whose adapters are on the layers that `layers` names.

    Args:
        model: a classifier, with its adapter or merged with it.
        layers: "top:K".
        name: what an error calls the encoder.

    Raises:
        RecipeError: an encoder whose layers can't be passed by, or something below the lowest adapter that trains.

    >>> of(model, "top:3").count
    9
    """
    encoder = next(m for m in model.modules() if isinstance(m, PreTrainedModel) and hasattr(m, "embeddings"))
    kind, number = encoder.config.model_type, encoder.config.num_hidden_layers
    if kind not in _SERVED:
        raise RecipeError(
            f"training.cache_prefix = true does not serve {name} ({kind}), only {', '.join(_SERVED)}. "
            "Set training.cache_prefix = false."
        )
    stack = next(m for m in encoder.modules() if isinstance(m, nn.ModuleList) and len(m) == number)
    prefix = Prefix(encoder, stack, number - int(layers.removeprefix("top:")))
    below = {parameter for module in (encoder.embeddings, *prefix._passed) for parameter in module.parameters()}
    trained = next((path for path, p in encoder.named_parameters() if p in below and p.requires_grad), None)
    if trained is not None:
        raise RecipeError(
            f"training.cache_prefix = true keeps what lies below adapter.layers = {json.dumps(layers)} as it is, and "
            f"{trained} would train there. Take it out of adapter.also_train, or set training.cache_prefix = false."
        )
    return prefix


def key_of(prefix: Prefix, encoder: Files | Base, data: str, what: str, where: Runtime) -> str:
    """Return a short hash of all that decides the states.

    Args:
        prefix: of the model.
        encoder: which it is.
        data: the key of the prepared data, which stands for texts and tokens.
        what: the splits, such as "test".
        where: its precision decides the arithmetic.
    """
    identity = encoder.sha256, encoder.config_sha256
    decided_by = [_FORMAT, *identity, prefix.count, data, what, where.precision, where.device]
    return hashlib.sha256(json.dumps(decided_by).encode()).hexdigest()[:16]


def states(prefix: Prefix, key: str, many: Sequence[Tokens], pad_id: int, where: Runtime) -> States:
    """Return what the prefix gives for each token of each group of texts, computed now or found on disk.

    They are kept as the layers give them: in bf16 where that is the precision, else in fp32, for which bf16 would be
    another result. A second process waits for the first.

    Args:
        prefix: of a model that is ready to answer: see `adapter.speed_up`.
        key: from `key_of`.
        many: the groups.
        pad_id: the tokenizer's padding id.
        where: device and precision.

    Raises:
        StorageError: the disk has no room, or can't be written.
    """
    folder = cache_dir() / "prefix" / key
    dtype, seconds = _type(where), 0.0
    shape = sum(len(tokens.ids) for tokens in many), int(prefix.encoder.config.hidden_size)
    size = shape[0] * shape[1]
    with storing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not _is_whole(folder, size * dtype.itemsize):
                seconds = _make(folder, prefix, many, pad_id, where, size * dtype.itemsize)
        table = torch.from_file(str(folder / _TABLE), shared=False, size=size, dtype=dtype).view(shape)
    return States(table, rows_of(many), seconds)


def rows_of(many: Sequence[Tokens]) -> list[Tokens]:
    """Return groups of texts whose ids are the numbers of their tokens, counted through all groups."""
    firsts = np.cumsum([0, *(len(tokens.ids) for tokens in many)])
    return [
        replace(tokens, ids=np.arange(first, first + len(tokens.ids)))
        for first, tokens in zip(firsts, many, strict=False)
    ]


@contextmanager
def standing_in(prefix: Prefix, table: torch.Tensor) -> Iterator[None]:
    """Let the encoder read `table` where it had embeddings and frozen layers, and texts by their rows in it.

    Args:
        prefix: of the model.
        table: (tokens, width), from `states`.

    >>> with standing_in(prefix, found.table):
    ...     predict.logits(model, found.tokens[0], pad_id, where)
    """

    def look_up(input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return table[input_ids.cpu()].to(input_ids.device)

    with _forward(prefix.encoder.embeddings, look_up), _passing(prefix._passed):
        yield


def blank(prefix: Prefix, tokens: int, where: Runtime) -> torch.Tensor:
    """Return a table of zeros, which takes no memory, to measure the speed with."""
    return torch.zeros(1, prefix.encoder.config.hidden_size, dtype=_type(where)).expand(tokens, -1)


def _type(where: Runtime) -> torch.dtype:
    return torch.bfloat16 if where.precision == "bf16" else torch.float32


def _is_whole(folder: Path, size: int) -> bool:
    try:
        return (folder / _FACTS).is_file() and (folder / _TABLE).stat().st_size == size
    except OSError:
        return False


def _make(folder: Path, prefix: Prefix, many: Sequence[Tokens], pad_id: int, where: Runtime, size: int) -> float:
    """Compute the states and write them; returns the seconds that took."""
    start = time.perf_counter()
    remove_unfinished(folder.parent, folder.name)
    free = shutil.disk_usage(folder.parent).free
    if size > free:
        raise StorageError(
            f"What the frozen layers give takes {size / 1e6:,.1f} MB, and {folder.parent} has {free / 1e6:,.1f} MB "
            "free. Set LORAFIT_CACHE to a folder on a larger disk, or training.cache_prefix = false."
        )
    say(f"Frozen layers: {prefix.count} of {len(prefix.layers)} run once, {size / 1e6:,.0f} MB in {folder}.")
    with new_folder(folder, replace=True) as unfinished:
        with (unfinished / _TABLE).open("wb") as file:
            _write(file, prefix, many, pad_id, where)
        facts = {"layers": prefix.count, "width": prefix.encoder.config.hidden_size, "type": str(_type(where))}
        (unfinished / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
    seconds = time.perf_counter() - start
    say(f"Frozen layers: done in {duration(seconds)}.")
    return seconds


def _write(file: BinaryIO, prefix: Prefix, many: Sequence[Tokens], pad_id: int, where: Runtime) -> None:
    """Write the states row by row, not through a map of the file, where a full disk would be a kill."""
    taken: list[torch.Tensor] = []
    row_bytes = prefix.encoder.config.hidden_size * _type(where).itemsize

    def take(hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        taken.append(hidden_states[0])
        return hidden_states

    first = 0
    reached, above = prefix.layers[prefix.count], list(prefix.layers[prefix.count + 1 :])
    with _forward(reached, take), _passing(above), bar("Frozen layers", total=sum(map(len, many))) as advance:
        for tokens in many:
            starts = first + np.cumsum([0, *tokens.lengths])
            for texts in predict.batches(tokens.lengths):
                batch = inputs_of(pad(tokens, texts, pad_id))
                with torch.inference_mode(), where.autocast():
                    prefix.encoder(**{name: value.to(where.device) for name, value in batch.items()})
                found = taken.pop().to("cpu", _type(where)).view(torch.uint8).numpy()
                ends = np.cumsum(tokens.lengths[texts])  # behind which the row may be filled up
                for text, rows in zip(texts, np.split(found[: ends[-1]], ends[:-1]), strict=True):
                    file.seek(int(starts[text]) * row_bytes)
                    file.write(rows.data)
                advance(len(texts))
            first = int(starts[-1])


@contextmanager
def _forward(module: nn.Module, forward: Any) -> Iterator[None]:
    """Let a module do something else; its name, weights and hooks stay."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward  # the class's own is there again


@contextmanager
def _passing(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let modules give back what they are given."""
    for module in modules:
        module.forward = lambda hidden_states, *_, **__: hidden_states
    try:
        yield
    finally:
        for module in modules:
            del module.forward
