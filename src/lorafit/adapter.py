"""The verbs of LoRA, through PEFT: attach, count, trained weights."""

import math
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from transformers import PreTrainedModel

from lorafit import families, padfree, pooling
from lorafit.errors import EncoderError
from lorafit.runtime import Runtime

# PEFT makes these trainable for sequence classification whatever we say.
PEFT_HEADS = {"classifier", "score"}
# DeBERTa reads the weight of this module and never calls it, so that no hook of ours can cast its answer.
_NEVER_CALLED = "rel_embeddings"


# Starts for which PEFT makes factors of the base's weights, and takes their product out of those.
CHANGES_BASE = {"pissa", "olora"}


@dataclass(frozen=True)
class Count:
    """How many parameters train, of how many."""

    trainable: int
    total: int

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters ({self.trainable / self.total:.2%})"


def attach(
    model: PreTrainedModel,
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    targets: str | Sequence[str] = "all-linear",
    fresh: Sequence[str] = ("classifier",),
    name: str = "this encoder",
    *,
    layers: str = families.ALL,
    variant: str = "lora",
    init: str = "default",
    also_train: Sequence[str] = (),
) -> PeftModel:
    """Return the model with a LoRA adapter on `targets`; only adapter, fresh head and `also_train` train.

    The update of a layer is alpha / rank x B A, which starts at zero, so the answers are still the base's
    (Hu et al. 2021, arXiv:2106.09685).

    Args:
        model: an encoder with a fresh head.
        rank: inner width of the factors.
        alpha: scale of the update, divided by `rank`.
        dropout: dropout on the adapter's input.
        targets: "attention", "all-linear", or names of linear layers; see `families.choose_layers`.
        fresh: modules that the checkpoint did not hold; they train whole and are saved with the adapter.
        name: what an error calls the encoder.
        layers: "all", or "top:K" for the encoder's last K.
        variant: "lora"; "rslora", which divides alpha by the root of `rank`; or "dora".
        init: how A and B start: "default", "gaussian", "orthogonal", "pissa" or "olora". The last two change the base's
            weights: see `as_plain_lora`.
        also_train: modules of the encoder that train whole too; see `families.choose_modules`.

    Raises:
        EncoderError: the encoder has no such layer or module, not as many layers, or layers too narrow for the start.

    >>> model = attach(encoder.model, rank=8, alpha=16)
    """
    whole = families.choose_modules(model, also_train, fresh, name)
    chosen = families.choose_layers(model, targets, fresh, name, layers=layers, whole=whole)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=chosen.names,
        exclude_modules=chosen.excluded or None,
        layers_to_transform=chosen.numbers,
        use_rslora=variant == "rslora",
        use_dora=variant == "dora",
        init_lora_weights=True if init == "default" else init,
        # By whole paths, for PEFT would take "embeddings" for the end of "word_embeddings" as well.
        modules_to_save=[*sorted(set(fresh) - PEFT_HEADS), *whole] or None,
    )
    attached = get_peft_model(model, config)
    assert isinstance(attached, PeftModel)
    if init in CHANGES_BASE:
        _refuse_narrow_layers(attached, rank, init, name)
    return attached


def _refuse_narrow_layers(model: PeftModel, rank: int, init: str, name: str) -> None:
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    narrowest = min(min(layer.in_features, layer.out_features) for layer in layers)
    if rank > narrowest:
        raise EncoderError(
            f'adapter.rank is {rank}, but adapter.init = "{init}" makes its factors of the weights, and {name} has '
            f"a layer that is {narrowest} wide. Set adapter.rank to {narrowest} at most."
        )


def as_plain_lora(trained: PeftModel, started: PeftModel, base: PreTrainedModel) -> PeftModel:
    """Return a model of `CHANGES_BASE` as an ordinary adapter of twice the rank on the base as it is stored.

    Such a start takes B A out of the base's weights (PiSSA, Meng et al. 2024, arXiv:2404.02948; OLoRA, Büyükakyüz 2024,
    arXiv:2406.01775). Training then changed them by B A less what B A was: the factors of both side by side, with one
    sign turned.

    Args:
        trained: from `attach`.
        started: the same adapter before training, attached anew.
        base: the encoder with its fresh head, without an adapter; changed by this.

    >>> model = as_plain_lora(model, attach(load().model, init="pissa"), load().model)
    """
    config = copy(trained.peft_config["default"])
    config.lora_alpha *= math.sqrt(2) if config.use_rslora else 2  # the scale of each factor stays
    config.r, config.init_lora_weights = 2 * config.r, True
    config.modules_to_save = [
        path for path in config.modules_to_save if path not in PEFT_HEADS
    ] or None  # PEFT adds them
    plain = get_peft_model(base, config)
    tensors = get_peft_model_state_dict(trained, save_embedding_layers=False)
    start = get_peft_model_state_dict(started, save_embedding_layers=False)
    for name, tensor in tensors.items():
        if ".lora_A." in name:
            tensors[name] = torch.cat([tensor, start[name].to(tensor)])
        elif ".lora_B." in name:
            tensors[name] = torch.cat([tensor, -start[name].to(tensor)], dim=1)
    set_peft_model_state_dict(plain, tensors)
    assert isinstance(plain, PeftModel)
    return plain


def fold_temperature(model: PeftModel, temperature: float) -> None:
    """Divide the logits of a trained model by a temperature: the weight and bias of its head's last layer.

    The head of the base beneath stays as it is. So the probabilities are calibrated wherever the adapter is loaded.

    Raises:
        EncoderError: the head has no linear layer that gives the labels; nothing was changed.

    >>> fold_temperature(model, 1.37)
    """
    last = _last_of_head(model)
    with torch.no_grad():
        for weight in last.parameters():
            weight.div_(temperature)


def _last_of_head(model: PeftModel) -> torch.nn.Linear:
    """Return the last linear layer that trains, lies beside the encoder, and is as wide as there are labels."""
    classifier = model.get_base_model()
    inside, labels = set(classifier.base_model.modules()), classifier.config.num_labels
    found = [
        module
        for module in classifier.modules()
        if isinstance(module, torch.nn.Linear)
        and module not in inside
        and module.weight.requires_grad
        and module.out_features == labels
    ]
    if not found:
        raise EncoderError(
            f"The head of this encoder ({classifier.config.model_type}) has no linear layer that gives its {labels} "
            "labels, so that no temperature can be folded into it. Set encoder.name to an encoder of a family that "
            f"lorafit knows: {', '.join(families.FAMILIES)}."
        )
    return found[-1]


def count(model: torch.nn.Module) -> Count:
    """Return the number of trainable parameters and of all the model's own."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Count(trainable, sum(p.numel() for p in model.parameters()))


def tensor_shapes(model: PreTrainedModel, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each tensor that PEFT would save for such an adapter.

    Args:
        model: a classifier, changed by this; one on torch's "meta" device takes no memory for it.
        config: PEFT's own.

    Raises:
        ValueError: no layer has one of the names, or a value is impossible.
    """
    with torch.device("meta"):
        attached = get_peft_model(model, config)
    saved = get_peft_model_state_dict(attached, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in saved.items()}


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of every trainable weight by its name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def speed_up(model: torch.nn.Module, fresh: Sequence[str], where: Runtime) -> None:
    """Cast the frozen weights once to the precision chosen, and let the encoder run over real tokens only.

    What trains stays in fp32: the adapter, fresh modules, and modules of the encoder that train whole, which get their
    input in fp32 and answer in the encoder's own type. Call it again for adapters that were attached later.

    Args:
        model: a classifier, with its adapter or merged with it.
        fresh: modules that the checkpoint did not hold.
        where: says the precision.

    Raises:
        EncoderError: a module that trains whole would have to work in bf16, and can't.
    """
    if where.base_dtype != torch.float32:
        whole = {path: module for path, module in model.named_modules() if _trains_whole(path, module, fresh)}
        _refuse_what_is_never_called(whole)
        for name, weight in model.named_parameters():
            if "lora_" not in name and not any(name.startswith(f"{path}.") for path in whole):
                weight.data = weight.data.to(where.base_dtype)
        for path, module in whole.items():
            module.register_forward_pre_hook(_in_fp32, with_kwargs=True)
            if path.rpartition(".")[2] not in fresh:
                module.register_forward_hook(_Cast(where.base_dtype))
    padfree.enable(model, first_token_only=not pooling.reads_the_mean(model))


def _trains_whole(path: str, module: torch.nn.Module, fresh: Sequence[str]) -> bool:
    return isinstance(module, ModulesToSaveWrapper) or path.rpartition(".")[2] in fresh


def _refuse_what_is_never_called(paths: Iterable[str]) -> None:
    for path in paths:
        if path.rpartition(".")[2] == _NEVER_CALLED:
            raise EncoderError(
                f"{_NEVER_CALLED} trains in fp32, and this encoder can't mix that with bf16. "
                'Set encoder.precision = "fp32", or take it out of adapter.also_train.'
            )


def _in_fp32(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return tuple(map(_float, args)), {key: _float(value) for key, value in kwargs.items()}


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class _Cast:
    """A forward hook: a module's answer in another type."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, _module: torch.nn.Module, _args: Any, answer: torch.Tensor) -> torch.Tensor:
        return answer.to(self.dtype)
