"""Many adapters in one batch over one encoder: ordered by adapter, each owns one contiguous slice of the rows.

PEFT's `adapter_names` stacks heads of equal size; here each slice has its own factors, head and number of labels, and
rows of logits are as wide as the widest head.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad as widen
from transformers import PreTrainedModel

from lorafit import bundle, checks, encoders, pooling
from lorafit.bundle import Checked
from lorafit.manifest import LongText
from lorafit.padfree import LAYOUT
from lorafit.padfree.modules import FrozenLinear

_PEFT_PREFIX = "base_model.model."
_RANK_STEP = 32  # of the factors side by side: products of few sizes
_Factors = tuple[torch.Tensor, torch.Tensor]  # A' (in, rank) and, scaled, B' (rank, out)


@dataclass(frozen=True, eq=False)
class Weights:
    """What one adapter adds to an encoder.

    `factors` are LoRA's, by the path of the layer they change, in the encoder's type; `head` the modules that trained
    whole, by their path, in fp32.
    """

    factors: dict[str, _Factors]
    head: dict[str, nn.Module]
    labels: int
    long_text: LongText
    reads_the_mean: bool


@dataclass(frozen=True)
class Share:
    """The slice of a batch that is one adapter's: of its texts, its rows, and its real tokens one after the other."""

    weights: Weights
    texts: slice
    rows: slice
    tokens: slice


class UnderWay:
    """The batch that an encoder works on, for the layers that have to know whose rows are whose."""

    def __init__(self) -> None:
        self.begin([])

    def begin(self, shares: Sequence[Share]) -> None:
        """Take the next batch."""
        self.shares = shares
        self._owned: dict[tuple[Any, ...], torch.Tensor] = {}

    def factors(self, path: str) -> tuple[list[int], torch.Tensor, torch.Tensor] | None:
        """Return the factors of all adapters for a layer side by side, and the rank of each adapter's; None: no adapter
        changes it.
        """
        found = [share.weights.factors.get(path) for share in self.shares]
        ranks = [0 if factors is None else len(factors[1]) for factors in found]
        here = [factors for factors in found if factors is not None]
        if not here:
            return None
        if len(self.shares) == 1:
            return ranks, *here[0]
        spare = -sum(ranks) % _RANK_STEP
        downs, ups = [down for down, _ in here], [up for _, up in here]
        downs.append(downs[0].new_zeros(len(downs[0]), spare))
        ups.append(ups[0].new_zeros(spare, ups[0].shape[1]))
        return ranks, torch.cat(downs, dim=1), torch.cat(ups)

    def owned(self, x: torch.Tensor, ranks: list[int], width: int) -> torch.Tensor:
        """Return 1 where a row of x and a column of the factors are one adapter's and else 0, (rows, width).

        x is (1, tokens, width) or, where only first tokens go on, (1, rows, width); behind a pooler (rows, width). What
        fills it up is nobody's.
        """
        key = (*x.shape[:-1], *ranks)
        if key not in self._owned:
            of_tokens = x.ndim == 3 and x.shape[1] >= self.shares[-1].tokens.stop
            mine, column = x.new_zeros(x.shape[-2], width), 0
            for share, rank in zip(self.shares, ranks, strict=True):
                mine[share.tokens if of_tokens else share.rows, column : column + rank] = 1
                column += rank
            self._owned[key] = mine
        return self._owned[key]


class MixedLinear(FrozenLinear):
    """A frozen layer of the encoder; each row of its answer gets what its own adapter adds.

    All adapters' factors stand side by side, so that two thin products serve however many there are; what an adapter
    would add to another's rows is taken out in between.
    """

    path: str
    under_way: UnderWay

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W' + b + scale x A' B', with each row's own A and B."""
        out = super().forward(x)
        factors = self.under_way.factors(self.path)
        if factors is not None:
            ranks, down, up = factors
            low = x.reshape(-1, x.shape[-1]) @ down
            if len(ranks) > 1:
                low *= self.under_way.owned(x, ranks, down.shape[1])
            rows = out.view(-1, out.shape[-1])
            rows.addmm_(low, up)
        return out


class MixedHead(nn.Module):
    """A module of the head; each slice of its input goes through its own adapter's."""

    def __init__(self, plain: nn.Module, path: str, under_way: UnderWay) -> None:
        super().__init__()
        self.plain, self.path, self.under_way = plain, path, under_way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return each slice's answer, (rows, ...); narrower ones are filled up with zeros."""
        found = [share.weights.head.get(self.path, self.plain)(x[share.rows]) for share in self.under_way.shares]
        widest = max(some.shape[-1] for some in found)
        return torch.cat([widen(some, (0, widest - some.shape[-1])) for some in found])


def head_paths(model: PreTrainedModel, fresh: Collection[str]) -> list[str]:
    """Return the paths of a classifier's modules that each adapter brings: all beside the encoder.

    A pooler in it that its checkpoint did not hold is one of them.

    >>> head_paths(AutoModelForSequenceClassification.from_pretrained("bert-base-uncased"), ["classifier"])
    ['classifier']
    """
    prefix = model.base_model_prefix
    inside = [f"{prefix}.pooler"] if "pooler" in fresh and hasattr(model.base_model, "pooler") else []
    beside = [
        name for name, child in model.named_children() if name != prefix and any(True for _ in child.parameters())
    ]
    return inside + beside


def mix_head(model: PreTrainedModel, heads: Sequence[str], under_way: UnderWay) -> None:
    """Let these modules of a classifier's head serve each slice its own adapter."""
    for path in heads:
        model.set_submodule(path, MixedHead(model.get_submodule(path), path, under_way))
    model.base_model.register_forward_hook(_Means(under_way), with_kwargs=True)


def mix_layers(model: PreTrainedModel, heads: Sequence[str], under_way: UnderWay) -> None:
    """Let every linear layer of the encoder do the same."""
    inside = set(model.base_model.modules())
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and module in inside and not _head_of(path, heads):
            module.__class__ = MixedLinear
            module.path, module.under_way = path, under_way  # type: ignore[assignment]


def why_alone(whole: Checked, heads: Sequence[str]) -> str:
    """Return why a bundle can't share an encoder with others, whose heads have these modules; "" if it can."""
    if whole.lora.use_dora:
        return "DoRA changes the encoder's own weights"
    for name in checks.read_shapes(whole.folder / checks.WEIGHTS):
        path = name.removeprefix(_PEFT_PREFIX)
        if ".lora_" not in path and not _head_of(path, heads):
            return f"its training changed {path.rpartition('.')[0]} of the encoder itself"
    return ""


def weights_of(whole: Checked, heads: Sequence[str], dtype: torch.dtype, device: str) -> Weights:
    """Return what a bundle adds to an encoder that it can share.

    Args:
        whole: the bundle.
        heads: see `head_paths`.
        dtype: of the encoder's frozen weights.
        device: where it computes.

    Raises:
        BundleError: it can't be read, or holds something that is no number.
    """
    found = bundle.tensors(whole)
    lora = whole.lora
    scale = lora.lora_alpha / (math.sqrt(lora.r) if lora.use_rslora else lora.r)
    factors: dict[str, _Factors] = {}
    own: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in found.items():
        path = name.removeprefix(_PEFT_PREFIX)
        if path.endswith(".lora_A.weight"):
            up = found[name.replace(".lora_A.", ".lora_B.")] * scale
            factors[path.removesuffix(".lora_A.weight")] = (
                tensor.t().to(device, dtype).contiguous(),
                up.t().to(device, dtype).contiguous(),
            )
        elif head := _head_of(path, heads):
            own.setdefault(head, {})[path.removeprefix(f"{head}.")] = tensor.to(device)
    return Weights(
        factors=factors,
        head=_modules(whole, own),
        labels=len(whole.manifest.labels),
        long_text=whole.manifest.long_text,
        reads_the_mean=whole.manifest.pooling == "mean",
    )


def _modules(whole: Checked, tensors: dict[str, dict[str, torch.Tensor]]) -> dict[str, nn.Module]:
    """Return the head's modules as the encoder's family has them, with these weights."""
    blank = encoders.blank(whole.files, len(whole.manifest.labels))
    modules = {}
    for path, weights in tensors.items():
        module = blank.get_submodule(path)
        module.load_state_dict(weights, assign=True)
        modules[path] = module.requires_grad_(False).eval()
    return modules


def _head_of(path: str, heads: Sequence[str]) -> str:
    return next((head for head in heads if path.startswith(f"{head}.")), "")


class _Means:
    """A forward hook on the encoder: of adapters that read the mean, each text's states become their mean."""

    def __init__(self, under_way: UnderWay) -> None:
        self.under_way = under_way

    def __call__(self, _encoder: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        asked = [share.rows for share in self.under_way.shares if share.weights.reads_the_mean]
        if not asked:
            return None
        states = output["last_hidden_state"]
        means = pooling.means(states, kwargs.get("attention_mask"), kwargs.get(LAYOUT))
        for rows in asked:
            states[rows] = means[rows, None]
            if output.get("pooler_output") is not None:
                output["pooler_output"][rows] = means[rows].to(output["pooler_output"].dtype)
        return output
