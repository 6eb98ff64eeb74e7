"""Attention over texts that lie one after the other, each looking at itself only."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lorafit.padfree import kernels
from lorafit.padfree.layout import Layout

NAME = "lorafit_padfree"  # what a config's attention implementation is called while it is on
LAYOUT = "padfree_layout"  # the keyword argument that carries a batch's layout
_LANES = 16  # numbers in one vector of the kernels


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return what transformers asks of an attention function: (1, tokens, heads, head size), and no weights.

    Without a layout (a batch that padfree left alone) it is SDPA.
    """
    layout: Layout | None = kwargs.pop(LAYOUT, None)
    if layout is None:
        mixed: tuple[torch.Tensor, torch.Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return mixed
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    out = attend(
        *(q, k, v, layout),
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        dropout=dropout,
        window=None if sliding_window is None else sliding_window - 1,  # theirs counts the token itself
        queries=1 if layout.first_only is module else None,
    )
    return out[None], None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    *,
    scale: float,
    dropout: float = 0.0,
    window: int | None = None,
    queries: int | None = None,
) -> torch.Tensor:
    """Return softmax(scale q k') v of every text by itself, (tokens, heads, head size).

    On the CPU in fp32 and bf16 by our kernels, on a GPU by flash attention's variable-length path if it is installed,
    else text by text by SDPA.

    Args:
        query: (tokens, heads, head size), as `key` and `value`.
        key: what is compared with the query.
        value: what is mixed.
        layout: where each text starts.
        scale: factor on the scores.
        dropout: share of the weights that is dropped.
        window: a token sees others at most so far away; None sees all of its text.
        queries: only the first so many tokens of each text ask, the rest of the answer is undefined; None = all.
    """
    inputs = (query, key, value)
    options = _Options(scale, dropout, window, queries, kernels.draw_seed() if dropout else 0)
    if query.is_cuda and importlib.util.find_spec("flash_attn") and query.dtype in (torch.bfloat16, torch.float16):
        return _flash(*inputs, layout, options)
    if kernels.usable(*inputs) and query.shape[-1] % _LANES == 0:
        out: torch.Tensor = _Compiled.apply(options, layout.starts, *map(_rows_in_place, inputs))
        return out
    return _text_by_text(*inputs, layout, options)


@dataclass(frozen=True)
class _Options:
    scale: float
    dropout: float
    window: int | None
    queries: int | None
    seed: int


class _Compiled(torch.autograd.Function):
    """Our kernels, forward and backward; the weights are made again in the backward pass, not kept."""

    @staticmethod
    def forward(ctx: Any, options: _Options, starts: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        query = inputs[0]
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        row_sums = None
        if any(ctx.needs_input_grad):
            row_sums = query.new_empty(query.shape[1], query.shape[0], dtype=torch.float32)
        _call(options, starts, inputs, out, row_sums)
        ctx.options = options
        ctx.save_for_backward(starts, out, row_sums, *inputs)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: torch.Tensor) -> Any:
        starts, out, row_sums, *inputs = ctx.saved_tensors
        tokens, heads, size = out.shape
        # One block, so that a product of all three projections at once can read it as it lies.
        grads = out.new_empty(tokens, 3, heads, size)
        _call(ctx.options, starts, inputs, out, row_sums, grad_out.contiguous(), grads)
        return None, None, *grads.unbind(dim=1)


def _call(
    options: _Options,
    starts: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    out: torch.Tensor,
    row_sums: torch.Tensor | None,
    grad_out: torch.Tensor | None = None,
    grads: torch.Tensor | None = None,
) -> None:
    compiled = kernels.available()
    assert compiled
    query, key, value = inputs
    grad_q, grad_k, grad_v = (None, None, None) if grads is None else grads.unbind(dim=1)
    compiled.attention(
        query.dtype,
        q=query,
        k=key,
        v=value,
        starts=starts,
        out=out,
        row_sums=row_sums,
        grad_out=grad_out,
        grad_q=grad_q,
        grad_k=grad_k,
        grad_v=grad_v,
        q_row=query.stride(0),
        k_row=key.stride(0),
        v_row=value.stride(0),
        grad_row=0 if grads is None else grads.stride(0),
        sequences=len(starts) - 1,
        tokens=query.shape[0],
        heads=query.shape[1],
        head=query.shape[2],
        window=-1 if options.window is None else options.window,
        queries=-1 if options.queries is None else options.queries,
        scale=options.scale,
        dropout=options.dropout,
        seed=options.seed,
    )


def _rows_in_place(x: torch.Tensor) -> torch.Tensor:
    """Return x as the kernels read it: the heads of one token without gaps, tokens at any even distance."""
    in_place = x.stride(2) == 1 and x.stride(1) == x.shape[2] and x.stride(0) % 2 == 0 and x.data_ptr() % 4 == 0
    return x if in_place else x.contiguous()


def _text_by_text(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, options: _Options
) -> torch.Tensor:
    lengths = layout.lengths()
    answers = []
    for q, k, v in zip(*(x.transpose(0, 1).split(lengths, dim=1) for x in (query, key, value)), strict=True):
        near = None
        if options.window is not None:
            positions = torch.arange(q.shape[1], device=q.device)
            near = (positions[:, None] - positions).abs() <= options.window
        answer = scaled_dot_product_attention(q[None], k[None], v[None], near, options.dropout, scale=options.scale)
        answers.append(answer[0])
    return torch.cat(answers, dim=1).transpose(0, 1)


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, options: _Options
) -> torch.Tensor:
    """Dao 2023, arXiv:2307.08691: the variable-length entry of the package flash-attn."""
    from flash_attn import flash_attn_varlen_func

    starts, longest = layout.starts.to(torch.int32), max(layout.lengths())
    reach = -1 if options.window is None else options.window
    out: torch.Tensor = flash_attn_varlen_func(
        *(query, key, value, starts, starts, longest, longest, options.dropout),
        softmax_scale=options.scale,
        window_size=(reach, reach),
    )
    return out


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
