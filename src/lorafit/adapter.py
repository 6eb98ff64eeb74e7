"""The verbs of LoRA, through PEFT: attach, count, trained weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
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
) -> PeftModel:
    """Return the model with a LoRA adapter on `targets`; only adapter and fresh head train.

    The update of a layer is alpha / rank x B A, with B at zero, so the answers are still the base's
    (Hu et al. 2021, arXiv:2106.09685).

    Args:
        model: an encoder with a fresh head.
        rank: inner width of the factors.
        alpha: scale of the update, divided by `rank`.
        dropout: dropout on the adapter's input.
        targets: "attention", "all-linear", or names of linear layers; see `families.choose_layers`.
        fresh: modules that the checkpoint did not hold; they train whole and are saved with the adapter.
        name: what an error calls the encoder.

    Raises:
        EncoderError: the encoder has no such layer.

    >>> model = attach(encoder.model, rank=8, alpha=16)
    """
    layers = families.choose_layers(model, targets, fresh, name)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=layers.names,
        exclude_modules=layers.excluded or None,
        modules_to_save=sorted(set(fresh) - PEFT_HEADS) or None,
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

    Adapter and fresh modules stay in fp32; a fresh module gets its input in fp32. Call it again for adapters that were
    attached later.

    Args:
        model: a classifier, with its adapter or merged with it.
        fresh: modules that the checkpoint did not hold.
        where: says the precision.
    """
    if where.base_dtype != torch.float32:
        for name, weight in model.named_parameters():
            if not ("lora_" in name or set(name.split(".")) & set(fresh)):
                weight.data = weight.data.to(where.base_dtype)
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in fresh:
                module.register_forward_pre_hook(_in_fp32)
    padfree.enable(model, first_token_only=True)


def _in_fp32(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(arg.float() for arg in args)
