"""Padding taken out before an encoder and put back behind it: switched on and off."""

import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from lorafit.errors import EncoderError, LorafitWarning
from lorafit.padfree.attention import LAYOUT, NAME
from lorafit.padfree.layout import Layout
from lorafit.padfree.modules import FASTER, ProjectTogether


@dataclass(frozen=True)
class Family:
    """What differs between encoders.

    Args:
        stack: the module behind which the padding is put back, because a pooler may follow; "" is the encoder itself.
        projections: the attention's linear layers that read one input, where there are several.
        last_attention: the last layer's attention, from the encoder.
        after_attention: the module in the last layer behind which no token meets another; "" if there is none.
    """

    stack: str = "encoder"
    projections: tuple[str, ...] = ("query", "key", "value")
    last_attention: str = "encoder.layer.-1.attention.self"
    after_attention: str = "encoder.layer.-1.attention.output"


FAMILIES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), Family()),
    "distilbert": Family("", ("q_lin", "k_lin", "v_lin"), "", ""),
    "albert": Family(last_attention="", after_attention=""),  # its layers are one and the same
    "modernbert": Family("", (), "", ""),
}
_STATE = "_lorafit_padfree"  # the attribute of an encoder that holds what `disable` needs


@dataclass
class _State:
    handles: list[Any]
    attention: str  # the implementation that was set before


def enable(model: nn.Module, *, first_token_only: bool = False) -> bool:
    """Let every encoder in the model run over real tokens only; return whether there is one that can.

    An encoder of another family keeps its ordinary path, and a `LorafitWarning` says so. So does, silently, a call that
    needs what is not there without padding: a mask that is more than 0 and 1 a token, embeddings in place of ids,
    padding that is not on the right, a batch of several adapters (PEFT's `adapter_names`).

    Args:
        model: a transformers model, wrapped by PEFT or not. Layers that PEFT adds later run as PEFT's own until
            `enable` is called again.
        first_token_only: let the last layer compute each text's first token only. For models that look at nothing
            else, as classifiers with a pooler or a head on the first token do; `last_hidden_state` then holds one
            token a text. Exact; only BERT, RoBERTa and their like have it.

    >>> enable(AutoModelForSequenceClassification.from_pretrained("bert-base-uncased"))
    True
    """
    disable(model)
    found = [(encoder, _enable(encoder, first_token_only)) for encoder in _encoders(model)]
    names = [encoder.config.model_type for encoder, served in found if not served]
    for name in names if found else [type(model).__name__]:
        warnings.warn(
            f"padfree can't serve {name}, whose attention transformers does not let others compute; it keeps its "
            f"ordinary path. Served are {', '.join(FAMILIES)}.",
            LorafitWarning,
            stacklevel=2,
        )
    return any(served for _, served in found)


def disable(model: nn.Module) -> None:
    """Put everything in the model back to where it was before `enable`."""
    for encoder in _encoders(model):
        state: _State | None = encoder.__dict__.pop(_STATE, None)
        if state is None:
            continue
        for handle in state.handles:
            handle.remove()
        encoder.set_attn_implementation(state.attention)
        for module in encoder.modules():
            if type(module) in FASTER.values():
                module.__class__ = module.plain


def is_enabled(model: nn.Module) -> bool:
    """Tell whether an encoder in the model runs over real tokens only."""
    return any(_STATE in encoder.__dict__ for encoder in _encoders(model))


def _enable(encoder: PreTrainedModel, first_token_only: bool) -> bool:
    """Switch one encoder on; return whether that could be done."""
    family = FAMILIES.get(encoder.config.model_type)
    if family is None:
        return False
    attention = encoder.config._attn_implementation
    if attention == NAME:  # set by a model that shares the configuration
        attention = "sdpa"
    encoder.set_attn_implementation(NAME)
    if encoder.config._attn_implementation != NAME:  # a class that transformers does not know
        return False
    for module in encoder.modules():
        if type(module) in FASTER:
            module.__class__ = FASTER[type(module)]
    first_only = _at(encoder, family.last_attention) if first_token_only and family.last_attention else None
    handles = [
        encoder.register_forward_pre_hook(_TakePaddingOut(first_only), with_kwargs=True),
        # Before other people's hooks, which see what they always saw.
        _at(encoder, family.stack).register_forward_hook(_put_padding_back, with_kwargs=True, prepend=True),
        encoder.register_forward_hook(_pad_hidden_states, with_kwargs=True, prepend=True),
    ]
    for module in encoder.modules():
        if family.projections and all(hasattr(module, name) for name in family.projections):
            handles.append(module.register_forward_pre_hook(ProjectTogether(family.projections), with_kwargs=True))
    if first_only is not None:
        handles.append(first_only.register_forward_pre_hook(_leave_layout, with_kwargs=True))
        handles.append(_at(encoder, family.after_attention).register_forward_pre_hook(_keep_first_tokens))
    setattr(encoder, _STATE, _State(handles, attention))
    return True


def _encoders(model: nn.Module) -> Iterator[PreTrainedModel]:
    """Yield the transformers models in `model` that embed tokens themselves, not those that hold such a model."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and hasattr(module, "embeddings"):
            yield module


def _at(encoder: nn.Module, path: str) -> nn.Module:
    """Return the module at a path; "-1" is the last of a list."""
    module: Any = encoder
    for name in filter(None, path.split(".")):
        module = module[-1] if name == "-1" else getattr(module, name)
    assert isinstance(module, nn.Module)
    return module


class _TakePaddingOut:
    """A forward pre-hook on an encoder: (texts, longest) ids become (1, real tokens), with their positions."""

    def __init__(self, first_only: nn.Module | None) -> None:
        self.first_only = first_only

    def __call__(self, encoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        names = list(inspect.signature(encoder.forward).parameters)
        given = dict(zip(names, args, strict=False)) | kwargs
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        if ids is None or not _is_plain(encoder, given):
            return None
        if mask is None:
            mask = torch.ones_like(ids)
        shows_states = _asked(encoder, given, "output_hidden_states")
        fill_up = ids.device.type == "cpu" and not torch.is_grad_enabled()
        layout = Layout.of(mask.to(ids.device), None if shows_states else self.first_only, fill_up=fill_up)
        positions = given.get("position_ids")
        given["position_ids"] = layout.flatten(_positions(encoder, ids) if positions is None else positions)
        given["input_ids"] = layout.flatten(ids)
        if "token_type_ids" in names:
            types = given.get("token_type_ids")
            given["token_type_ids"] = layout.flatten(torch.zeros_like(ids) if types is None else types)
        # A dictionary keeps ModernBERT from making masks itself, one of them tokens x tokens.
        kinds = getattr(encoder.config, "layer_types", None)
        given["attention_mask"] = dict.fromkeys(kinds) if kinds else None
        return (), given | {LAYOUT: layout}


def _is_plain(encoder: PreTrainedModel, given: dict[str, Any]) -> bool:
    """Tell whether a call can do without padding: a mask of 0 and 1, padding on the right, one adapter for all texts.

    Raises:
        EncoderError: attention weights are asked for, of an encoder that gave them before.
    """
    if encoder.config._attn_implementation != NAME:  # somebody has set another since
        return False
    if _asked(encoder, given, "output_attentions"):
        if getattr(encoder, _STATE).attention == "eager":
            raise EncoderError(
                "padfree makes no attention weights. Call padfree.disable(model) before you ask for them."
            )
        return False
    if any(given.get(key) is not None for key in ("inputs_embeds", "encoder_hidden_states", "past_key_values")):
        return False
    if getattr(encoder.config, "is_decoder", False) or _mixes_adapters(encoder):
        return False
    if _asked(encoder, given, "output_hidden_states") and not _asked(encoder, given, "return_dict"):
        return False
    ids, mask = given["input_ids"], given.get("attention_mask")
    return mask is None or (isinstance(mask, torch.Tensor) and mask.shape == ids.shape and _is_on_the_right(mask == 0))


def _is_on_the_right(padding: torch.Tensor) -> bool:
    return not bool(padding[:, 0].any()) and bool((padding[:, :-1] <= padding[:, 1:]).all())


def _mixes_adapters(encoder: PreTrainedModel) -> bool:
    """Tell whether PEFT was given `adapter_names`, one for each text: it then hooks into its layers for this call."""
    return any(isinstance(module, BaseTunerLayer) and module._forward_pre_hooks for module in encoder.modules())


def _asked(encoder: PreTrainedModel, given: dict[str, Any], output: str) -> bool:
    asked = given.get(output)
    return bool(getattr(encoder.config, output, False) if asked is None else asked)


def _positions(encoder: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Return the positions that the encoder itself would have given to padded ids."""
    of_ids = getattr(encoder.embeddings, "create_position_ids_from_input_ids", None)
    if of_ids is not None:  # RoBERTa and its like count from the padding id on
        positions: torch.Tensor = of_ids(ids, encoder.embeddings.padding_idx)
        return positions
    return torch.arange(ids.shape[1], device=ids.device)[None]


def _put_padding_back(_stack: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    """A forward hook on what gives the last hidden state: (1, tokens, width) becomes (texts, longest, width)."""
    layout: Layout | None = kwargs.get(LAYOUT)
    if layout is None:
        return None
    if isinstance(output, tuple):
        return (layout.pad(output[0]), *output[1:])
    output["last_hidden_state"] = layout.pad(output["last_hidden_state"])
    return output


def _pad_hidden_states(_encoder: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    """A forward hook on the encoder: hidden states of every layer, where they were asked for, get their padding too."""
    layout: Layout | None = kwargs.get(LAYOUT)
    states = None if isinstance(output, tuple) else getattr(output, "hidden_states", None)
    if layout is None or states is None:
        return None
    flat = (1, layout.tokens)
    output["hidden_states"] = tuple(
        layout.pad(state) if state is not None and state.shape[:2] == flat else state for state in states
    )
    return output


def _leave_layout(_attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A forward pre-hook on the last attention: its input carries the layout to what comes behind."""
    x = args[0] if args else kwargs["hidden_states"]
    x._lorafit_layout = kwargs.get(LAYOUT)


def _keep_first_tokens(_output: nn.Module, args: tuple[Any, ...]) -> Any:
    """A forward pre-hook behind the last attention: of answers and residual only first tokens go on."""
    answers, residual = args
    layout: Layout | None = residual.__dict__.pop("_lorafit_layout", None)
    if layout is None or layout.first_only is None:
        return None
    first = layout.first_tokens()
    return answers[:, first], residual[:, first]
