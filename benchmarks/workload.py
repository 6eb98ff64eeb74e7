"""What every candidate of the speed benchmark works on: the same reviews, the same encoders, the same count of work."""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorafit import adapter, console, encoders, padfree, recipe, runtime
from lorafit.pipeline import prepare
from lorafit.prepared import Prepared
from lorafit.recipe import Recipe
from lorafit.tokens import Tokens

DEMO: Recipe = recipe.load(recipe.shipped("demo"))
LABELS = DEMO.data.labels
LORA: dict[str, Any] = {"rank": 8, "alpha": 16, "targets": ["query", "value"]}  # what most people train


@dataclass(frozen=True)
class Shape:
    """An encoder's size, and how many reviews a step of training takes."""

    layers: int
    width: int
    feed_forward: int
    batch_size: int


SHAPES = {"bundled": Shape(6, 384, 1536, 16), "bert-base": Shape(12, 768, 3072, 8)}


def reviews() -> Prepared:
    """Return the demo's splits as token ids."""
    console.silence()
    return prepare(DEMO)


def head(tokens: Tokens, texts: int) -> Tokens:
    """Return the first so many texts."""
    return Tokens(tokens.ids[: tokens.offsets[texts]], tokens.offsets[: texts + 1], 0)


def classifier(shape: str, dropout: float | str) -> tuple[Any, list[str]]:
    """Return a classifier without an adapter, and its fresh modules; bert-base's weights are random."""
    if shape == "bundled":
        encoder = encoders.load(encoders.locate("bundled:minilm"), LABELS, dropout=dropout)
        return encoder.model, encoder.fresh
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    rates = {} if dropout == "keep" else {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForSequenceClassification(BertConfig(**rates)), ["classifier"]


def adapted(shape: str, dropout: float | str) -> tuple[Any, list[str]]:
    """Return the same with an adapter, and its fresh modules."""
    model, fresh = classifier(shape, dropout)
    return adapter.attach(model, **LORA, fresh=fresh), fresh


def flops(shape: Shape, lengths: np.ndarray, *, training: bool) -> float:
    """Return the floating-point operations that texts need.

    Two a weight and token forward, as many again for the input's gradient in training (a frozen weight needs none of
    its own); attention's two products, and four more backward.
    """
    weights = shape.layers * (4 * shape.width**2 + 2 * shape.width * shape.feed_forward)
    attention = shape.layers * 4 * shape.width * float((lengths.astype(np.float64) ** 2).sum())
    linear = 2 * weights * float(lengths.sum())
    return 2 * linear + 3 * attention if training else linear + attention


def ceiling_gflops() -> float:
    """Return this machine's bf16 matrix products, 2048 x 768 x 3072, in GFLOP/s: the median of fifty."""
    left, right = torch.randn(2048, 768).bfloat16(), torch.randn(768, 3072).bfloat16()
    seconds = []
    for _ in range(60):
        start = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - start)
    return 2 * 2048 * 768 * 3072 / statistics.median(seconds[10:]) / 1e9


def circumstances() -> dict[str, Any]:
    """Return commit, date, machine, kernels and threads, for the record that stands beside every number."""
    return {
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": runtime.describe_machine(),
        "kernels": padfree.status(),
        "threads": torch.get_num_threads(),
    }


def _commit() -> str:
    """Return the commit's name, "-dirty" behind it where what decides a figure differs from it."""
    commit = _git("rev-parse", "--short", "HEAD").stdout.strip()
    same = _git("diff", "--quiet", "HEAD", "--", "src", "benchmarks", "recipes", "constraints.txt").returncode == 0
    return commit if same else f"{commit}-dirty"


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)


def report(result: dict[str, Any]) -> None:
    """Hand a candidate's result to the process that started it: the last line of its output."""
    sys.stdout.write("\n" + json.dumps(result) + "\n")
