"""What we know of encoder families: which layers an adapter goes on, what the head reads; the others by inspection."""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel

from lorafit.errors import EncoderError, nearest

ATTENTION, ALL_LINEAR, ALL = "attention", "all-linear", "all"
_NUMBERED = re.compile(r".*?\.[^.]*\.(\d+)\.")  # PEFT's own pattern: the first number is the layer's
_SAYS_ATTENTION = re.compile("attention|attn", re.IGNORECASE)


@dataclass(frozen=True)
class Family:
    """What a family's encoders have in common. A layer's name is the end of its path: "query", "attn.Wo".

    Args:
        attention: the linear layers of its attention.
        feed_forward: those of its feed-forward part; a layer of both names is one of the attention.
        usual: the pair that LoRA is most often put on.
        reads: what the classification head reads.
        head: the modules that a pretrained encoder comes without.
    """

    attention: tuple[str, ...]
    feed_forward: tuple[str, ...]
    usual: tuple[str, ...]
    reads: str
    head: tuple[str, ...] = ("classifier",)


_FEED_FORWARD = ("intermediate.dense", "output.dense")
_BERT = Family(
    attention=("query", "key", "value", "attention.output.dense"),
    feed_forward=_FEED_FORWARD,
    usual=("query", "value"),
    reads="first token, through the encoder's own pooler",
)
_ROBERTA = Family(_BERT.attention, _FEED_FORWARD, _BERT.usual, "first token")
FAMILIES = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": Family(
        attention=("q_lin", "k_lin", "v_lin", "out_lin"),
        feed_forward=("lin1", "lin2"),
        usual=("q_lin", "v_lin"),
        reads="first token",
        head=("classifier", "pre_classifier"),
    ),
    "electra": _ROBERTA,
    "albert": Family(
        attention=("query", "key", "value", "attention.dense"),
        feed_forward=("ffn", "ffn_output"),
        usual=("query", "value"),
        reads=_BERT.reads,
    ),
    "mpnet": Family(("q", "k", "v", "o"), _FEED_FORWARD, ("q", "v"), "first token"),
    "deberta-v2": Family(
        attention=("query_proj", "key_proj", "value_proj", "attention.output.dense"),
        feed_forward=_FEED_FORWARD,
        usual=("query_proj", "value_proj"),
        reads="first token",
        head=("classifier", "pooler"),
    ),
    "modernbert": Family(
        attention=("Wqkv", "attn.Wo"),
        feed_forward=("Wi", "mlp.Wo"),
        usual=("Wqkv", "attn.Wo"),
        reads="first token, or the mean of all: its classifier_pooling says which",
        head=("classifier", "head"),
    ),
}
"""By `model_type` of transformers' configuration; DeBERTa-v3 calls itself deberta-v2."""


@dataclass(frozen=True)
class Layers:
    """The layers that get an adapter, as PEFT takes them: by the ends of their paths.

    Args:
        names: each of the layers ends in one of these.
        excluded: the paths of modules that do so too and are none of them, such as a layer of the head.
        numbers: those of the encoder's layers in which they lie, from 0; None for all, and what has no number.
    """

    names: list[str]
    excluded: list[str]
    numbers: list[int] | None = None


def choose_layers(
    model: PreTrainedModel,
    targets: str | Sequence[str],
    fresh: Collection[str] = (),
    name: str = "this encoder",
    *,
    layers: str = ALL,
    whole: Sequence[str] = (),
) -> Layers:
    """Return the linear layers of the encoder that `targets` means; never one of the head or of a module that is whole.

    Args:
        model: an encoder with a classification head.
        targets: "attention", "all-linear", or the names of layers: the last part of a path, or more of it.
        fresh: modules that the checkpoint did not hold; they train whole.
        name: what an error calls the encoder.
        layers: "all", or "top:K" for the encoder's last K.
        whole: the paths of other modules that train whole, from `choose_modules`.

    Raises:
        EncoderError: no layer is called so, or there is none of the kind; says what to set.

    >>> choose_layers(model, "attention").names
    ['query', 'key', 'value', 'attention.output.dense']
    """
    paths = _linear_layers(model, fresh)
    if not paths:
        raise EncoderError(
            f"{name} ({_type(model)}) has no linear layer for an adapter to go on. "
            f"Set encoder.name to an encoder of a family that lorafit knows: {', '.join(FAMILIES)}."
        )
    names = _names(model, paths, targets, name)
    numbers = None if layers == ALL else _last_numbers(model, paths, layers, name)
    free = [path for path in paths if not any(_lies_in(path, module) for module in whole)]
    served = [path for path in free if numbers is None or _number(path) in numbers]
    lost = [end for end in names if _any_ends_in(paths, end) and not _any_ends_in(served, end)]
    if lost and (targets not in (ATTENTION, ALL_LINEAR) or len(lost) == len(names)):
        raise EncoderError(_left_out(lost[0], layers if _any_ends_in(free, lost[0]) else None, name))
    names = [end for end in names if end not in lost]
    others = [path for path, _ in model.named_modules() if path not in free]
    return Layers(names, [path for path in others if _ends_in(path, names)], numbers)


def choose_modules(
    model: PreTrainedModel, wanted: Sequence[str], fresh: Collection[str] = (), name: str = "this encoder"
) -> list[str]:
    """Return the paths of the encoder's modules that `wanted` means; of one inside another, the outer one only.

    Args:
        model: an encoder with a classification head.
        wanted: the names of modules: the last part of a path, or more of it.
        fresh: modules that the checkpoint did not hold; they train whole anyway.
        name: what an error calls the encoder.

    Raises:
        EncoderError: no module is called so, it trains whole anyway, or it holds the attention.

    >>> choose_modules(model, ["pooler"])
    ['bert.pooler']
    """
    linear = _linear_layers(model, fresh)
    attention = [path for path in linear if _ends_in(path, _attention(model, linear))]
    paths = _modules_with_weights(model, fresh)
    large = [path for path in paths if any(_lies_in(layer, path) and layer != path for layer in attention)]
    found = []
    for module in wanted:
        if module in fresh:
            raise EncoderError(f"{module!r} of {name} trains whole already. Take it out of adapter.also_train.")
        called = [path for path in paths if _ends_in(path, [module])]
        if not called:
            known = [end for end in _last_parts(paths) if not _any_ends_in(large, end)]
            raise EncoderError(_no_module(known, module, name))
        if too_large := [path for path in called if path in large]:
            raise EncoderError(_too_large(too_large[0], module, attention, name))
        found += called
    return [path for path in dict.fromkeys(found) if not any(_lies_in(path, o) and path != o for o in found)]


def window(config: Any) -> int | None:
    """Return how many tokens an encoder has positions for; None if it does not count them.

    RoBERTa and its like count from behind the padding id on, so that 514 positions are a window of 512. Found from the
    encoder's embedding, made without memory in milliseconds: it holds for families that we do not know, too.

    >>> window(AutoConfig.from_pretrained("roberta-base"))
    512
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    with torch.device("meta"):
        encoder = AutoModel.from_config(config)
    padding = [
        module.padding_idx
        for path, module in encoder.named_modules()
        if _ends_in(path, ["position_embeddings"]) and getattr(module, "padding_idx", None) is not None
    ]
    return int(positions) - (max(padding) + 1 if padding else 0)


def _linear_layers(model: PreTrainedModel, fresh: Collection[str]) -> list[str]:
    """Return the paths of the encoder's linear layers, in their order; what lies beside the encoder is its head."""
    inside = set(model.base_model.modules())
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module in inside and not set(path.split(".")) & set(fresh)
    ]


def _modules_with_weights(model: PreTrainedModel, fresh: Collection[str]) -> list[str]:
    """Return the paths of the encoder's modules that are more than arithmetic, in their order."""
    inside = set(model.base_model.modules())
    return [
        path
        for path, module in model.named_modules()
        if module in inside and any(True for _ in module.parameters()) and not set(path.split(".")) & set(fresh)
    ]


def _last_numbers(model: PreTrainedModel, paths: list[str], layers: str, name: str) -> list[int]:
    """Return the numbers of the encoder's last layers, as many as "top:K" says.

    Raises:
        EncoderError: it has fewer, or they share their weights.
    """
    there = sorted({number for path in paths if (number := _number(path)) is not None})
    runs = int(getattr(model.config, "num_hidden_layers", len(there)))
    if len(there) < runs:
        raise EncoderError(
            f"adapter.layers is {json.dumps(layers)}, but {name} ({_type(model)}) runs {runs} layers on the weights of "
            f'{len(there)}, so that none of them can be adapted alone. Set adapter.layers = "all".'
        )
    count = int(layers.removeprefix("top:"))
    if count > len(there):
        raise EncoderError(
            f"adapter.layers is {json.dumps(layers)}, but {name} has {len(there)} layers. "
            f'Set adapter.layers = "all", or "top:{len(there)}" at most.'
        )
    return there[-count:]


def _number(path: str) -> int | None:
    found = _NUMBERED.match(path)
    return int(found[1]) if found else None


def _left_out(target: str, layers: str | None, name: str) -> str:
    """Say why a target gets no adapter: `layers` keeps it out, or if that is None, it trains whole."""
    if layers is not None:
        return (
            f"No layer of {name} that is called {target!r} is among those that adapter.layers = {json.dumps(layers)} "
            'leaves. Take it out of adapter.targets, or set adapter.layers = "all".'
        )
    return (
        f"Each layer of {name} that is called {target!r} trains whole, and then gets no adapter. "
        "Take it out of adapter.targets or out of adapter.also_train."
    )


def _no_module(known: list[str], module: str, name: str) -> str:
    return (
        f"No module of {name} is called {module!r}.{nearest(module, known)} Those that can train whole are "
        f"{', '.join(known)}. Set adapter.also_train to some of them."
    )


def _too_large(path: str, module: str, attention: list[str], name: str) -> str:
    return (
        f"{module!r} of {name} means {path}, which holds layers of the attention; padfree takes those one by one. "
        f"Set adapter.also_train to smaller modules, such as {_last_parts(attention)[0]!r}."
    )


def _names(model: PreTrainedModel, paths: list[str], targets: str | Sequence[str], name: str) -> list[str]:
    if targets == ALL_LINEAR:
        return _last_parts(paths)
    if targets == ATTENTION:
        found = _attention(model, paths)
        if not found:
            raise EncoderError(
                f"No linear layer of {name} ({_type(model)}) is called attention. "
                f'Set adapter.targets = "{ALL_LINEAR}", or names among {", ".join(_last_parts(paths))}.'
            )
        return found
    names = [targets] if isinstance(targets, str) else list(targets)
    for target in names:
        if not any(_ends_in(path, [target]) for path in paths):
            raise EncoderError(_no_layer(model, paths, target, name))
    return names


def _attention(model: PreTrainedModel, paths: list[str]) -> list[str]:
    """Return the names of the attention's layers: the family's, or each path from where it says attention."""
    family = FAMILIES.get(_type(model))
    return list(family.attention) if family else found_attention(paths)


def found_attention(paths: Sequence[str]) -> list[str]:
    """Return the names of the attention's layers by inspection, each once.

    A name begins with the part that says attention, so that no other layer can end in it.

    >>> found_attention(["encoder.layer.0.attention.self.query", "encoder.layer.0.output.dense"])
    ['attention.self.query']
    """
    found = []
    for path in paths:
        parts = path.split(".")
        says = [place for place, part in enumerate(parts) if _SAYS_ATTENTION.search(part)]
        if says:
            found.append(".".join(parts[says[-1] :]))
    return list(dict.fromkeys(found))


def _no_layer(model: PreTrainedModel, paths: list[str], target: str, name: str) -> str:
    family, attention, known = FAMILIES.get(_type(model)), _attention(model, paths), _last_parts(paths)
    usual = list(family.usual) if family else ATTENTION if attention else ALL_LINEAR
    return (
        f"No layer of {name} is called {target!r}.{nearest(target, known)} "
        f"Its {'attention' if attention else 'linear'} layers are {', '.join(attention or known)}. "
        f"Set adapter.targets = {json.dumps(usual)}."
    )


def _last_parts(paths: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(path.rpartition(".")[2] for path in paths))


def _ends_in(path: str, names: Sequence[str]) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)  # as PEFT compares them


def _any_ends_in(paths: Sequence[str], name: str) -> bool:
    return any(_ends_in(path, [name]) for path in paths)


def _lies_in(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


def _type(model: PreTrainedModel) -> str:
    return str(model.config.model_type)
