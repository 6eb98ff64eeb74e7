"""The verbs of LoRA, through PEFT: attach, count, trained weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from transformers import PreTrainedModel

from lorafit import families, padfree
from lorafit.runtime import Runtime

# PEFT makes these trainable for sequence classification whatever we say.
PEFT_HEADS = {"classifier", "score"}


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
    targets: str | Sequence[str] = ("query", "value"),
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
        init: how A and B start: "default", "gaussian" or "orthogonal".
        also_train: modules of the encoder that train whole too; see `families.choose_modules`.

    Raises:
        EncoderError: the encoder has no such layer or module, or not as many layers.

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
    return attached


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
    """
    if where.base_dtype != torch.float32:
        whole = {path: module for path, module in model.named_modules() if _trains_whole(path, module, fresh)}
        for name, weight in model.named_parameters():
            if "lora_" not in name and not any(name.startswith(f"{path}.") for path in whole):
                weight.data = weight.data.to(where.base_dtype)
        for path, module in whole.items():
            module.register_forward_pre_hook(_in_fp32, with_kwargs=True)
            if path.rpartition(".")[2] not in fresh:
                module.register_forward_hook(_Cast(where.base_dtype))
    padfree.enable(model, first_token_only=True)


def _trains_whole(path: str, module: torch.nn.Module, fresh: Sequence[str]) -> bool:
    return isinstance(module, ModulesToSaveWrapper) or path.rpartition(".")[2] in fresh


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
