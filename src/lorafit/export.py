"""A bundle in other forms, each with its measured agreement: merged weights."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from lorafit import bundle, card, predict, proof
from lorafit.data import Text
from lorafit.errors import BundleError, StorageError
from lorafit.files import new_folder, write_text

RECORD = "merged_from.json"
LARGEST_SHARE = 1e-4  # of the largest logit: sums in another order give a hundredth of it
# Asked where a bundle brings no texts of its own.
_TEXTS = (
    "A film to remember.",
    "Two hours that I will not get back.",
    "The parcel came late, and it was the wrong one.",
)


@dataclass(frozen=True)
class Merged:
    """What merging did: the folder, the largest difference between its logits and those of base with adapter, and what
    the merged model can't keep, a sentence each."""

    folder: Path
    gap: float
    texts: int
    lost: list[str]


def merge(
    source: Path | str,
    target: Path | str,
    *,
    encoder: str | None = None,
    allow_different_base: bool = False,
    overwrite: bool = False,
) -> Merged:
    """Write base and adapter as one ordinary transformers model in fp32, merged with the base's stored weights.

    The model is read back from `target` and asked before it stays there.

    Args:
        source: an adapter directory, or the run folder that holds one.
        target: the folder to make.
        encoder: take this one as the base.
        allow_different_base: take a base with other weights; the record in `target` says so.
        overwrite: replace a merged model that stands at `target`; anything else stays.

    Raises:
        BundleError: no bundle that can be used, one over the mean of the tokens, or the merged model answers otherwise.
        StorageError: `target` is there already, or can't be written.

    >>> merge("runs/demo", "merged").gap < 1e-4
    True
    """
    source, target = bundle.folder_of(source), Path(target).resolve()
    _refuse_to_replace(target, overwrite)
    loaded = bundle.load(source, encoder=encoder, allow_different_base=allow_different_base)
    if loaded.manifest.pooling == "mean":
        raise BundleError(
            f"{source} reads the mean of the tokens, which an ordinary model of its family can't; its adapter can't be "
            "merged into one. lorafit predicts with it as it is."
        )
    texts: Sequence[Text] = proof.read(source).texts if loaded.manifest.proof else _TEXTS
    tokens, pad_id = loaded.encode(texts), loaded.tokenizer.pad_token_id
    before = predict.plain_logits(loaded.model, tokens, pad_id)
    model = loaded.model.merge_and_unload()
    loaded.tokenizer.model_max_length = loaded.manifest.max_tokens
    with new_folder(target, replace=True) as unfinished:
        model.save_pretrained(unfinished)
        for weights in unfinished.glob("*.safetensors"):  # which nobody else may read, as safetensors writes them
            shutil.copymode(unfinished / "config.json", weights)
        loaded.tokenizer.save_pretrained(unfinished)
        after = predict.plain_logits(_read_back(unfinished), tokens, pad_id)
        gap = float(np.abs(before - after).max())
        if not gap <= LARGEST_SHARE * max(1.0, float(np.abs(before).max())):
            raise BundleError(f"The merged model answers otherwise: its logits differ by up to {gap:.2g}.")
        _write_record(unfinished, loaded, gap, texts)
        card.write_merged(unfinished, loaded.manifest)
    return Merged(target, gap, len(texts), card.lost_in_merging(loaded.manifest))


def _refuse_to_replace(target: Path, overwrite: bool) -> None:
    """Refuse a target that holds what nobody asked to remove.

    Raises:
        StorageError: says what to do.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / RECORD).is_file():
        raise StorageError(f"{target} holds something else than a merged model. Choose another place.")
    if not overwrite:
        raise StorageError(f"{target} is there already. Replace it with --overwrite.")


def _read_back(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
    ).eval()


def _write_record(folder: Path, loaded: bundle.Loaded, gap: float, texts: Sequence[Text]) -> None:
    record = {
        "adapter": loaded.manifest.model_dump(mode="json"),
        "different_base": loaded.different_base,
        "largest_logit_gap": gap,
        "texts": len(texts),
    }
    write_text(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
