"""Texts to token ids, once: a flat array with offsets, so that no text is padded before it has to be.

Of texts that are longer than the encoder's window, one policy decides what is read: their head; head and tail; or all
of them, in overlapping windows whose logits are pooled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lorafit.console import bar
from lorafit.manifest import LongText

_TEXTS_AT_ONCE = 1000
HEAD_SHARE = 0.25  # of "head+tail": 128 of 512 tokens, the best of those that Sun et al. 2019 (arXiv:1905.05583) tried
OVERLAP_SHARE = 0.25  # of a window, with the one before: what a cut tears apart stands whole in one of the two


@dataclass(frozen=True)
class Tokens:
    """Token ids of many texts; a text is one window, or with a policy of windows one or more.

    Window w holds ``ids[offsets[w]:offsets[w + 1]]``, and text n the windows from ``windows[n]`` to ``windows[n + 1]``;
    without `windows` text n is window n. `cut` counts the texts of which something is left out.
    """

    ids: np.ndarray  # int32, all windows one after the other
    offsets: np.ndarray  # int64, one more than there are windows
    cut: int
    long_text: LongText = "head"
    windows: np.ndarray | None = None  # int64, one more than there are texts

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, text: int) -> np.ndarray:
        return np.asarray(self.ids[self._bounds[text] : self._bounds[text + 1]])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each text, special tokens included, those of all its windows."""
        return np.diff(self._bounds)

    @property
    def _bounds(self) -> np.ndarray:
        return self.offsets if self.windows is None else self.offsets[self.windows]

    def windows_of(self, texts: Sequence[int]) -> list[list[int]]:
        """Return the windows of each of these texts."""
        if self.windows is None:
            return [[text] for text in texts]
        return [list(range(self.windows[text], self.windows[text + 1])) for text in texts]


def encode(texts: Sequence[str], tokenizer: Any, max_tokens: int = 512, long_text: LongText = "head") -> Tokens:
    """Return the token ids of `texts`, special tokens included, in windows of at most `max_tokens`.

    Args:
        texts: any number of texts.
        tokenizer: a fast tokenizer of transformers.
        max_tokens: the longest that a window may be.
        long_text: what is read of longer texts. "head": the first tokens. "head+tail": a quarter of the window from the
            head, the rest from the tail. "windows:mean", "windows:max": all, in windows that overlap by a quarter.

    >>> encode(["A film to remember."], tokenizer).lengths
    array([7])
    """
    ids: list[np.ndarray] = [np.empty(0, dtype=np.int32)]
    windows_per_text: list[int] = []
    cut = 0
    with bar("Tokenizing", total=len(texts)) as advance:
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            some = list(texts[start : start + _TEXTS_AT_ONCE])
            for windows, is_cut in _windows(some, tokenizer, max_tokens, long_text):
                ids += [np.asarray(window, dtype=np.int32) for window in windows]
                windows_per_text.append(len(windows))
                cut += is_cut
            advance(len(some))
    lengths = [len(window) for window in ids[1:]]
    return Tokens(
        np.concatenate(ids),
        _offsets(lengths),
        cut,
        long_text,
        _offsets(windows_per_text) if long_text.startswith("windows") else None,
    )


def pad(tokens: Tokens, texts: Sequence[int], pad_id: int) -> dict[str, torch.Tensor]:
    """Return one batch: `input_ids` and `attention_mask`, both (windows, longest) and int64.

    With a policy of windows, `windows` says how many each text has: (texts) and int64; see `pool`.
    """
    windows = tokens.windows_of(texts)
    rows = [row for of_text in windows for row in of_text]
    lengths = [int(tokens.offsets[row + 1] - tokens.offsets[row]) for row in rows]
    input_ids = torch.full((len(rows), max(lengths)), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        start = tokens.offsets[row]
        input_ids[place, :length] = torch.from_numpy(tokens.ids[start : start + length].astype(np.int64))
        attention_mask[place, :length] = 1
    batch = {"input_ids": input_ids, "attention_mask": attention_mask}
    if tokens.windows is not None:
        batch["windows"] = torch.tensor([len(of_text) for of_text in windows])
    return batch


def ask(model: torch.nn.Module, batch: dict[str, torch.Tensor], long_text: LongText) -> torch.Tensor:
    """Return the logits of each text of a batch from `pad`, (texts, labels): those of its windows, pooled.

    Args:
        model: a sequence classifier.
        batch: may hold `labels` too, which the model is not given.
        long_text: the policy; "windows:max" takes the largest logit of each label, anything else the mean.
    """
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "windows")}
    logits: torch.Tensor = model(**inputs).logits
    if "windows" not in batch:
        return logits
    how = "max" if long_text == "windows:max" else "mean"
    return torch.segment_reduce(logits.float(), how, lengths=batch["windows"], axis=0)


def _windows(
    texts: list[str], tokenizer: Any, max_tokens: int, long_text: LongText
) -> list[tuple[list[list[int]], bool]]:
    """Return for each text its windows of token ids, and whether something of it was left out."""
    if long_text == "head+tail":
        whole = tokenizer(texts, padding=False, truncation=False, verbose=False)["input_ids"]
        before, behind = _special_tokens(tokenizer)
        head = before + int((max_tokens - before - behind) * HEAD_SHARE)
        return [
            ([ids] if len(ids) <= max_tokens else [ids[:head] + ids[head - max_tokens :]], len(ids) > max_tokens)
            for ids in whole
        ]
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=max_tokens,
        padding=False,
        stride=int(max_tokens * OVERLAP_SHARE) if long_text != "head" else 0,
        return_overflowing_tokens=long_text != "head",
    )
    if long_text == "head":
        cut = [bool(encoding.overflowing) for encoding in encoded.encodings]
        return [([ids], is_cut) for ids, is_cut in zip(encoded["input_ids"], cut, strict=True)]
    found: list[tuple[list[list[int]], bool]] = [([], False) for _ in texts]
    for ids, text in zip(encoded["input_ids"], encoded["overflow_to_sample_mapping"], strict=True):
        found[text][0].append(ids)
    return found


def _special_tokens(tokenizer: Any) -> tuple[int, int]:
    """Return how many special tokens stand before a text, and how many behind it."""
    mask = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    before = mask.index(0)
    return before, len(mask) - before - mask.count(0)


def _offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
