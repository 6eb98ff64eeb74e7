"""Our attention beside SDPA's CPU kernel, the same tokens at every length.

python benchmarks/attention.py
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import rich
import torch
from rich.table import Table
from torch.nn.functional import scaled_dot_product_attention

from lorafit import runtime
from lorafit.padfree.attention import attend
from lorafit.padfree.layout import Layout

TOKENS = 4096
HEADS = 12


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Return the median time of a call."""
    taken = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def compare(dtype: torch.dtype, size: int, length: int, repeats: int) -> dict[str, Any]:
    """Return SDPA's time over ours, forward, and forward with backward."""
    texts = TOKENS // length
    layout = Layout.of(torch.ones(texts, length))
    ours = [torch.randn(texts * length, HEADS, size).to(dtype).requires_grad_() for _ in range(3)]
    theirs = [x.detach().view(texts, length, HEADS, size).transpose(1, 2).requires_grad_() for x in ours]
    grad = torch.randn(texts * length, HEADS, size).to(dtype)
    grad_theirs = grad.view(texts, length, HEADS, size).transpose(1, 2)

    def our_forward() -> torch.Tensor:
        return attend(ours[0], ours[1], ours[2], layout, scale=size**-0.5)

    def their_forward() -> torch.Tensor:
        return scaled_dot_product_attention(theirs[0], theirs[1], theirs[2])

    both = [
        (seconds(lambda: our_forward().backward(grad), repeats), seconds(our_forward, repeats)),
        (seconds(lambda: their_forward().backward(grad_theirs), repeats), seconds(their_forward, repeats)),
    ]
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "heads": HEADS,
        "head_size": size,
        "length": length,
        "milliseconds": round(1e3 * both[0][0], 2),
        "sdpa_milliseconds": round(1e3 * both[1][0], 2),
        "ratio": round(both[1][0] / both[0][0], 2),
        "ratio_forward": round(both[1][1] / both[0][1], 2),
    }


def measure(*, full: bool) -> list[dict[str, Any]]:
    """Return the comparison at every length, and print it."""
    runtime.choose("fp32")
    lengths = (16, 32, 64, 128, 256, 384, 512) if full else (16, 128, 512)
    rows = [
        compare(dtype, size, length, 15 if full else 5)
        for dtype in (torch.bfloat16, torch.float32)
        for size in (32, 64)
        for length in lengths
    ]
    table = Table("dtype", "heads x size", "length", "ours, ms", "SDPA, ms", "ratio", "ratio, forward only")
    for row in rows:
        table.add_row(
            *(row["dtype"], f"{row['heads']} x {row['head_size']}", str(row["length"])),
            *(str(row[key]) for key in ("milliseconds", "sdpa_milliseconds", "ratio", "ratio_forward")),
        )
    rich.print(table)
    return rows


if __name__ == "__main__":
    measure(full=True)
