"""Products with frozen weights, and the low-rank adapters beside them, several projections of one input at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from lorafit.runtime import multiply

_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Part:
    """One projection: frozen weight and bias, and an adapter's factors where there is one."""

    weight: torch.Tensor  # (out, in)
    bias: torch.Tensor | None
    down: torch.Tensor | None = None  # LoRA's A, (rank, in)
    up: torch.Tensor | None = None  # LoRA's B, (out, rank)
    scale: float = 1.0
    dropout: nn.Module | None = None  # on the adapter's input, while training


def frozen_part(layer: nn.Linear, x: torch.Tensor) -> Part | None:
    """Return the layer as a part if it can be served: frozen, on the CPU, of one type with x, outside autocast."""
    weight, bias = layer.weight, layer.bias
    tensors = [weight] if bias is None else [weight, bias]
    served = (
        x.device.type == "cpu"
        and x.dtype in _DTYPES
        and all(t.dtype == x.dtype and t.device == x.device and not t.requires_grad for t in tensors)
        and not torch.is_autocast_enabled("cpu")
    )
    return Part(weight, bias) if served else None


def project(x: torch.Tensor, parts: Sequence[Part]) -> list[torch.Tensor]:
    """Return x W' + b + scale x A' B' of each part, in the type and shape of x but for the last axis."""
    wide = [part for part in parts if part.down is not None and part.dropout is None]
    factors = [factor for part in wide for factor in (part.down, part.up)]
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    outs = [out.view(*x.shape[:-1], out.shape[1]) for out in _Products.apply(rows, tuple(parts), *factors)]
    for place, part in enumerate(parts):
        if part.dropout is not None and part.down is not None and part.up is not None:
            low = linear(part.dropout(x), part.down.to(x.dtype))
            outs[place] = outs[place] + linear(low, (part.up * part.scale).to(x.dtype))
    return outs


class _Products(torch.autograd.Function):
    """Several projections of one input in one product; the adapters' share is added in place.

    The weights are frozen, so the backward pass makes gradients for the input and the adapters only.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, parts: tuple[Part, ...], *factors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = multiply(x, _stack([part.weight for part in parts]), _stack_biases(parts))
        # One alone is no view, so that whoever gets it may change it in place, as AdaLoRA does.
        outs = (y,) if len(parts) == 1 else y.split([len(part.weight) for part in parts], dim=1)
        low = x.new_empty(0)
        if factors:
            low = x @ torch.cat(factors[::2]).to(x.dtype).t()
            columns = low.split([len(down) for down in factors[::2]], dim=1)
            for out, part, of_part, up in zip(*_adapted(outs, parts), columns, factors[1::2], strict=True):
                out.addmm_(of_part, _scaled(up, part, x.dtype).t())
        ctx.parts = parts
        ctx.save_for_backward(x if factors else None, low, *factors)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        parts: tuple[Part, ...] = ctx.parts
        x, low, *factors = ctx.saved_tensors
        grad = _side_by_side(grads)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = multiply(grad, _stack([part.weight for part in parts]).t(), None)
        if not factors:
            return grad_x, None
        ups, grad_factors = [], []
        columns = low.split([len(down) for down in factors[::2]], dim=1)
        of_parts = grad.split([len(part.weight) for part in parts], dim=1)
        for grad_out, part, of_part, up in zip(*_adapted(of_parts, parts), columns, factors[1::2], strict=True):
            ups.append(grad_out @ _scaled(up, part, grad.dtype))
            grad_factors.append((grad_out.t() @ of_part).to(up.dtype) * part.scale)
        grad_low = torch.cat(ups, dim=1)
        downs = (grad_low.t() @ x).split([len(down) for down in factors[::2]])
        if grad_x is not None:
            grad_x.addmm_(grad_low, torch.cat(factors[::2]).to(grad.dtype))
        both = [
            g for down, grad_up in zip(downs, grad_factors, strict=True) for g in (down.to(factors[0].dtype), grad_up)
        ]
        return grad_x, None, *both


def _adapted(outs: Sequence[torch.Tensor], parts: Sequence[Part]) -> tuple[list[torch.Tensor], list[Part]]:
    pairs = [
        (out, part) for out, part in zip(outs, parts, strict=True) if part.down is not None and part.dropout is None
    ]
    return [out for out, _ in pairs], [part for _, part in pairs]


def _scaled(up: torch.Tensor, part: Part, dtype: torch.dtype) -> torch.Tensor:
    return (up * part.scale).to(dtype)


def _stack(weights: list[torch.Tensor]) -> torch.Tensor:
    return weights[0] if len(weights) == 1 else torch.cat(weights)


def _stack_biases(parts: Sequence[Part]) -> torch.Tensor | None:
    if all(part.bias is None for part in parts):
        return None
    return _stack([part.weight.new_zeros(len(part.weight)) if part.bias is None else part.bias for part in parts])


def _side_by_side(grads: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the gradients as columns of one matrix; those that our attention made stand like that already."""
    first = grads[0]
    if len(grads) == 1:
        return first.contiguous()
    width = sum(grad.shape[1] for grad in grads)
    places = [grad.storage_offset() - first.storage_offset() for grad in grads]
    wanted = [sum(grad.shape[1] for grad in grads[:n]) for n in range(len(grads))]
    storage = first.untyped_storage().data_ptr()
    together = places == wanted and all(
        grad.untyped_storage().data_ptr() == storage and grad.stride() == (width, 1) for grad in grads
    )
    return first.as_strided((len(first), width), (width, 1)) if together else torch.cat(list(grads), dim=1)
