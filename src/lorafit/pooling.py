"""What the classification head reads: each text's first token, as its own code has it, or the mean of all of them."""

from typing import Any

import torch
from transformers import PreTrainedModel

from lorafit.padfree import LAYOUT, Layout


def read_the_mean(model: PreTrainedModel) -> None:
    """Let the head of a classifier read the mean over a text's real tokens where it would read the first token.

    A head of several layers stays as it is; an encoder's own pooler (BERT, ALBERT), which knows first tokens only, is
    passed by. The files of an adapter can't say so: in plain PEFT it would read first tokens (Reimers and Gurevych
    2019, arXiv:1908.10084, compare the two).

    >>> read_the_mean(AutoModelForSequenceClassification.from_pretrained("bert-base-uncased"))
    """
    model.base_model.register_forward_hook(_mean_for_the_first, with_kwargs=True)


def reads_the_mean(model: torch.nn.Module) -> bool:
    """Tell whether a classifier, wrapped by PEFT or not, reads the mean."""
    return any(_mean_for_the_first in module._forward_hooks.values() for module in model.modules())


def means(states: torch.Tensor, mask: torch.Tensor | None, layout: Layout | None) -> torch.Tensor:
    """Return the mean over each text's real tokens, (texts, width), of an encoder's last states.

    Args:
        states: (texts, longest, width).
        mask: (texts, longest), not 0 at real tokens; None: all are real.
        layout: of a batch whose padding was taken out and put back; the mask is not looked at then.
    """
    wide = states.to(torch.promote_types(states.dtype, torch.float32))  # hundreds of numbers of bf16 don't add up
    if layout is not None:  # whose padding is zeros
        lengths = layout.text_lengths
    elif mask is not None:
        wide, lengths = wide * (mask != 0)[..., None], (mask != 0).sum(dim=1)
    else:
        lengths = torch.full(states.shape[:1], states.shape[1], device=states.device)
    return (wide.sum(dim=1) / lengths[:, None]).to(states.dtype)


def _mean_for_the_first(_encoder: Any, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    """A forward hook on an encoder: states (texts, longest, width) become means (texts, 1, width)."""
    found = means(output["last_hidden_state"], kwargs.get("attention_mask"), kwargs.get(LAYOUT))
    output["last_hidden_state"] = found[:, None]
    if output.get("pooler_output") is not None:
        output["pooler_output"] = found
    return output
