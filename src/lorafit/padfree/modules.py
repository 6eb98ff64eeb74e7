"""Drop-in subclasses of the layers an encoder is made of: the same parameters and the same answers, faster on a CPU.

`switch` gives a layer the class that stands here, and its own class back. Each looks at every call whether it can serve
it (on the CPU, frozen weights, one type, no autocast), and else does what its own class does.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.autograd.function import once_differentiable

from lorafit.padfree import kernels
from lorafit.padfree.products import Part, frozen_part, project


class FrozenLinear(nn.Linear):
    """A linear layer through oneDNN, without a gradient for the weights."""

    plain = nn.Linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W' + b."""
        ready = _taken(x, self)
        if ready is not None:
            return ready
        part = frozen_part(self, x)
        return super().forward(x) if part is None else project(x, [part])[0]


class AdaptedLinear(LoraLinear):
    """PEFT's LoRA layer with its frozen product and its two thin ones taken together."""

    plain = LoraLinear

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return x W' + b + scale x A' B'."""
        ready = _taken(x, self)
        if ready is not None:
            return ready
        part = None if args or kwargs else part_of(self, x)
        out: torch.Tensor = super().forward(x, *args, **kwargs) if part is None else project(x, [part])[0]
        return out


def part_of(layer: nn.Module, x: torch.Tensor) -> Part | None:
    """Return a layer, adapted or not, as a part of a product; None where its own class has to do it."""
    if layer._forward_pre_hooks:  # which may change its input
        return None
    if isinstance(layer, FrozenLinear):
        return frozen_part(layer, x)
    if not isinstance(layer, AdaptedLinear) or (layer.disable_adapters and layer.merged):
        return None
    base = layer.base_layer
    if not isinstance(base, FrozenLinear) or base._forward_hooks or base._forward_pre_hooks:
        return None  # somebody listens to the base layer: it has to be called
    part = frozen_part(base, x)
    active = [] if layer.disable_adapters or layer.merged else [n for n in layer.active_adapters if n in layer.lora_A]
    if part is None or not active:
        return part
    name = active[0]
    down, up = layer.lora_A[name], layer.lora_B[name]
    if len(active) > 1 or name in layer.lora_variant or up.bias is not None or down.weight.device != x.device:
        return None
    dropout = layer.lora_dropout[name]
    drops = layer.training and isinstance(dropout, nn.Dropout) and dropout.p > 0
    return Part(part.weight, part.bias, down.weight, up.weight, layer.scaling[name], dropout if drops else None)


class ProjectTogether:
    """A forward pre-hook on an attention layer: query, key and value in one product.

    The answers wait on the input tensor itself, under the layer that is going to ask for them.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def __call__(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compute what the layers of these names will answer."""
        x = args[0] if args else kwargs["hidden_states"]
        layers = [getattr(attention, name) for name in self.names]
        parts = [part_of(layer, x) for layer in layers]
        if all(part is not None for part in parts):
            outs = project(x, [part for part in parts if part is not None])
            x._lorafit_projected = dict(zip(map(id, layers), outs, strict=True))


def _taken(x: torch.Tensor, layer: nn.Module) -> torch.Tensor | None:
    """Take what `ProjectTogether` left for this layer; each answer is taken once, so that none outlives its call."""
    projected: dict[int, torch.Tensor] = getattr(x, "_lorafit_projected", {})
    return projected.pop(id(layer), None)


class Dropout(nn.Dropout):
    """Dropout that draws from a hash on all threads, where torch draws one number after the other."""

    plain = nn.Dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x with a share `p` of its numbers zero and the rest scaled up, while training."""
        if not self.training or self.p == 0:
            return x
        if self.inplace or self.p == 1 or not kernels.usable(x):
            return super().forward(x)
        out: torch.Tensor = _Dropout.apply(x.contiguous(), self.p, kernels.draw_seed())
        return out


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, share: float, seed: int) -> torch.Tensor:
        ctx.share, ctx.seed = share, seed
        return _drop(x, share, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return _drop(grad.contiguous(), ctx.share, ctx.seed), None, None


def _drop(x: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    compiled = kernels.available()
    assert compiled
    return compiled.dropout(x, share, seed)


FASTER: dict[type[nn.Module], type[nn.Module]] = {cls.plain: cls for cls in (FrozenLinear, AdaptedLinear, Dropout)}
