"""The verbs of LoRA, through PEFT: attach, count, trained weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

# PEFT makes these trainable for sequence classification whatever we say.
_PEFT_HEADS = {"classifier", "score"}


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
    targets: Sequence[str] = ("query", "value"),
    fresh: Sequence[str] = ("classifier",),
) -> PeftModel:
    """Return the model with a LoRA adapter on `targets`; only adapter and fresh head train.

    The update of a layer is alpha / rank x B A, with B at zero, so the answers are still the base's
    (Hu et al. 2021, arXiv:2106.09685).

    Args:
        model: an encoder with a fresh head.
        rank: inner width of the factors.
        alpha: scale of the update, divided by `rank`.
        dropout: dropout on the adapter's input.
        targets: names of linear layers.
        fresh: modules that the checkpoint did not hold; they train whole and are saved with the adapter.

    >>> model = attach(encoder.model, rank=8, alpha=16)
    """
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        modules_to_save=sorted(set(fresh) - _PEFT_HEADS) or None,
    )
    attached = get_peft_model(model, config)
    assert isinstance(attached, PeftModel)
    return attached


def count(model: torch.nn.Module) -> Count:
    """Return the number of trainable parameters and of all the model's own."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Count(trainable, sum(p.numel() for p in model.parameters()))


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of every trainable weight by its name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
