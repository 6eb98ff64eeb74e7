"""Texts to token ids, once: a flat array with offsets, so that no text is padded before it has to be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lorafit.console import bar

_TEXTS_AT_ONCE = 1000


@dataclass(frozen=True)
class Tokens:
    """Token ids of many texts: text n holds ``ids[offsets[n]:offsets[n + 1]]``. `cut` counts the texts cut short."""

    ids: np.ndarray  # int32, all texts one after the other
    offsets: np.ndarray  # int64, one more than there are texts
    cut: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, text: int) -> np.ndarray:
        return np.asarray(self.ids[self.offsets[text] : self.offsets[text + 1]])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each text, special tokens included."""
        return np.diff(self.offsets)


def encode(texts: Sequence[str], tokenizer: Any, max_tokens: int = 512) -> Tokens:
    """Return the token ids of `texts`, special tokens included, each cut to `max_tokens`.

    Args:
        texts: any number of texts.
        tokenizer: a fast tokenizer of transformers.
        max_tokens: the longest that a text may be.
    """
    ids: list[np.ndarray] = [np.empty(0, dtype=np.int32)]
    lengths: list[int] = []
    cut = 0
    with bar("Tokenizing", total=len(texts)) as advance:
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            some = list(texts[start : start + _TEXTS_AT_ONCE])
            encoded = tokenizer(some, truncation=True, max_length=max_tokens, padding=False)
            ids += [np.asarray(text, dtype=np.int32) for text in encoded["input_ids"]]
            lengths += [len(text) for text in encoded["input_ids"]]
            cut += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
            advance(len(some))
    return Tokens(np.concatenate(ids), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), cut)


def pad(tokens: Tokens, rows: Sequence[int], pad_id: int) -> dict[str, torch.Tensor]:
    """Return one batch: `input_ids` and `attention_mask`, both (texts, longest) and int64."""
    lengths = tokens.lengths
    width = int(max(lengths[row] for row in rows))
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
    for place, row in enumerate(rows):
        input_ids[place, : lengths[row]] = torch.from_numpy(tokens[row].astype(np.int64))
        attention_mask[place, : lengths[row]] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
