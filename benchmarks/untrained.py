"""Bundles that nobody trained: a real encoder, and an adapter and head of random numbers, in milliseconds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lorafit import adapter, bundle, encoders
from lorafit.encoders import Files
from lorafit.manifest import Manifest


def write_bundle(
    folder: Path,
    files: Files,
    labels: Sequence[str],
    seed: int = 0,
    *,
    lora: dict[str, Any] | None = None,
    **described: Any,
) -> Path:
    """Write an adapter that changes every answer by much, and return its folder.

    Args:
        folder: to make.
        files: its encoder.
        labels: their names.
        seed: of its random numbers.
        lora: what `adapter.attach` is given; by default r=8 on all linear layers.
        described: further keys of the manifest: `task`, `pooling`, `long_text`, `max_tokens`, `text_pair`, ...
    """
    made = Manifest(base=bundle.identity(files), labels=list(labels), seed=seed, **{"max_tokens": 64} | described)
    encoder = encoders.load(files, made.labels, task=made.task, seed=seed, pooling=made.pooling, own_head=True)
    model = adapter.attach(encoder.model, **{"fresh": encoder.fresh} | (lora or {}))
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05, generator=chance)
            elif "modules_to_save" in name and weight.ndim == 2:
                weight.normal_(std=weight.shape[1] ** -0.5, generator=chance)
    folder.mkdir(parents=True)
    bundle.write(folder, model, encoders.load_tokenizer(files.folder, files.name), made)
    return folder
