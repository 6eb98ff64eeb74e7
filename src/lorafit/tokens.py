"""Texts to token ids, once: a flat array with offsets, so that no text is padded before it has to be.

Of texts that are longer than the encoder's window, one policy decides what is read: their head; head and tail; or all
of them, in overlapping windows whose logits are pooled.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from lorafit.console import bar
from lorafit.data import Text
from lorafit.manifest import LongText

_TEXTS_AT_ONCE = 1000
_NEVER_CUT = 2**30  # tokens
_SPARE_TOKENS = 16  # beyond those that are read: a word that is cut in two may fall into other tokens
_HEAD_SHARE = 0.25  # of "head+tail": 128 of 512 tokens, the best of those that Sun et al. 2019 (arXiv:1905.05583) tried
_WHOLE = {"padding": False, "truncation": False, "verbose": False}  # what a tokenizer is told not to cut
_OVERLAP_SHARE = 0.25  # of a window, with the one before: what a cut tears apart stands whole in one of the two


@dataclass(frozen=True)
class Tokens:
    """Token ids of many texts; a text is one window, or with a policy of windows one or more.

    Window w holds ``ids[offsets[w]:offsets[w + 1]]``, and text n the windows from ``windows[n]`` to ``windows[n + 1]``;
    without `windows` text n is window n. `cut` counts the texts of which something is left out. `type_ids` say of each
    id whether it belongs to the first text of a pair or to the second.
    """

    ids: np.ndarray  # int32, all windows one after the other
    offsets: np.ndarray  # int64, one more than there are windows
    cut: int
    long_text: LongText = "head"
    windows: np.ndarray | None = None  # int64, one more than there are texts
    type_ids: np.ndarray | None = None  # int8, beside `ids`; None for single texts, and encoders that ask for none

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

    def take(self, texts: Sequence[int]) -> "Tokens":
        """Return some of the texts, one or more, by their numbers."""
        return replace(join([(self, text) for text in texts]), long_text=self.long_text)

    def windows_of(self, texts: Sequence[int]) -> list[list[int]]:
        """Return the windows of each of these texts."""
        if self.windows is None:
            return [[text] for text in texts]
        return [list(range(self.windows[text], self.windows[text + 1])) for text in texts]


def encode(texts: Sequence[Text], tokenizer: Any, max_tokens: int = 512, long_text: LongText = "head") -> Tokens:
    """Return the token ids of `texts`, special tokens included, in windows of at most `max_tokens`.

    Args:
        texts: any number of texts; or of pairs, of which the longer text is cut first.
        tokenizer: a fast tokenizer of transformers.
        max_tokens: the longest that a window may be.
        long_text: what is read of longer texts. "head": the first tokens. "head+tail": a quarter of the window from the
            head, the rest from the tail. "windows:mean", "windows:max": all, in windows that overlap by a quarter.
            Pairs have "head" only.

    >>> encode(["A film to remember."], tokenizer).lengths
    array([7])
    """
    ids: list[np.ndarray] = [np.empty(0, dtype=np.int32)]
    type_ids: list[np.ndarray] = []
    windows_per_text: list[int] = []
    cut = 0
    with bar("Tokenizing", total=len(texts)) as advance:
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            some = list(texts[start : start + _TEXTS_AT_ONCE])
            for read in _windows(some, tokenizer, max_tokens, long_text):
                ids += [np.asarray(window, dtype=np.int32) for window in read.windows]
                type_ids += [np.asarray(read.type_ids, dtype=np.int8)] if read.type_ids is not None else []
                windows_per_text.append(len(read.windows))
                cut += read.is_cut
            advance(len(some))
    lengths = [len(window) for window in ids[1:]]
    return Tokens(
        np.concatenate(ids),
        _offsets(lengths),
        cut,
        long_text,
        _offsets(windows_per_text) if long_text.startswith("windows") else None,
        np.concatenate(type_ids) if type_ids else None,
    )


def whole_lengths(texts: Sequence[Text], tokenizer: Any) -> np.ndarray:
    """Return how many tokens each text or pair has, special tokens included, however many of them are read: (texts).

    >>> whole_lengths(["A film to remember."], tokenizer)
    array([7])
    """
    return encode(texts, tokenizer, _NEVER_CUT).lengths


def words_of(text: str, tokenizer: Any, max_tokens: int = 512, long_text: LongText = "head") -> list[int | None]:
    """Return which of a text's words, as the tokenizer counts them, each token belongs to that `encode` reads.

    They stand window after window, as in `Tokens.ids`; None: a special token.

    >>> words_of("A film to remember.", tokenizer)
    [None, 0, 1, 2, 3, 4, None]
    """
    if long_text == "head+tail":
        return _head_and_tail(tokenizer(text, **_WHOLE).word_ids(0), _head_tokens(tokenizer, max_tokens), max_tokens)
    encoded = tokenizer([text], **_cutting(max_tokens, long_text))
    return [word for window in range(len(encoded["input_ids"])) for word in encoded.word_ids(window)]


def overlap(max_tokens: int) -> int:
    """Return how many tokens a window of `max_tokens` shares with the one before.

    >>> overlap(128)
    32
    """
    return int(max_tokens * _OVERLAP_SHARE)


def pad(tokens: Tokens, texts: Sequence[int], pad_id: int) -> dict[str, torch.Tensor]:
    """Return one batch: `input_ids` and `attention_mask`, both (windows, longest) and int64.

    With a policy of windows, `windows` says how many each text has: (texts) and int64; see `ask`. Of pairs
    `token_type_ids` are there too, where the encoder asks for them.
    """
    windows = tokens.windows_of(texts)
    rows = np.array([row for of_text in windows for row in of_text])
    starts, ends = tokens.offsets[rows], tokens.offsets[rows + 1]
    is_token = np.arange((ends - starts).max()) < (ends - starts)[:, None]

    def padded(values: np.ndarray, filling: int) -> torch.Tensor:
        batch = np.full(is_token.shape, filling, dtype=np.int64)
        batch[is_token] = np.concatenate([values[start:end] for start, end in zip(starts, ends, strict=True)])
        return torch.from_numpy(batch)

    batch = {
        "input_ids": padded(tokens.ids, pad_id),
        "attention_mask": torch.from_numpy(is_token.astype(np.int64)),
    }
    if tokens.type_ids is not None:
        batch["token_type_ids"] = padded(tokens.type_ids, 0)
    if tokens.windows is not None:
        batch["windows"] = torch.tensor([len(of_text) for of_text in windows])
    return batch


def join(texts: Sequence[tuple[Tokens, int]]) -> Tokens:
    """Return texts of several `Tokens`, each by its number there, as one; each may have windows.

    What is single among pairs is marked as a first text. The policy for long texts is each one's own: see `pool`.
    """
    windows = [(of, window) for of, text in texts for window in of.windows_of([text])[0]]
    bounds = [(of, of.offsets[window], of.offsets[window + 1]) for of, window in windows]
    type_ids = None
    if any(of.type_ids is not None for of, _ in texts):
        type_ids = np.concatenate(
            [
                np.zeros(end - start, np.int8) if of.type_ids is None else of.type_ids[start:end]
                for of, start, end in bounds
            ]
        )
    return Tokens(
        np.concatenate([of.ids[start:end] for of, start, end in bounds]),
        _offsets([end - start for _, start, end in bounds]),
        cut=0,
        windows=_offsets([len(of.windows_of([text])[0]) for of, text in texts]),
        type_ids=type_ids,
    )


def ask(model: torch.nn.Module, batch: dict[str, torch.Tensor], long_text: LongText) -> torch.Tensor:
    """Return the logits of each text of a batch from `pad`, (texts, labels): those of its windows, pooled.

    Args:
        model: a sequence classifier.
        batch: may hold `labels` too, which the model is not given.
        long_text: the policy; "windows:max" takes the largest logit of each label, anything else the mean.
    """
    logits: torch.Tensor = model(**inputs_of(batch)).logits
    return pool(logits, batch["windows"], long_text) if "windows" in batch else logits


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what an encoder is given of a batch."""
    return {key: value for key, value in batch.items() if key not in ("labels", "windows", "share")}


def pool(logits: torch.Tensor, windows: torch.Tensor, long_text: LongText) -> torch.Tensor:
    """Return the logits of each text, (texts, labels) and fp32, from those of its windows.

    Args:
        logits: (windows, labels), text after text.
        windows: how many each text has, (texts).
        long_text: see `ask`.
    """
    how = "max" if long_text == "windows:max" else "mean"
    return torch.segment_reduce(logits.float(), how, lengths=windows, axis=0)


class _Read(NamedTuple):
    """What is read of one text: windows of token ids, and whether something is left out; of a pair type ids too."""

    windows: list[list[int]]
    is_cut: bool
    type_ids: list[int] | None = None


def _windows(texts: list[Text], tokenizer: Any, max_tokens: int, long_text: LongText) -> list[_Read]:
    if long_text == "head+tail":
        whole = tokenizer(texts, **_WHOLE)["input_ids"]
        head = _head_tokens(tokenizer, max_tokens)
        return [_Read([_head_and_tail(ids, head, max_tokens)], len(ids) > max_tokens) for ids in whole]
    are_pairs = not isinstance(texts[0], str)
    encoded = tokenizer(
        _shortened(texts, tokenizer, max_tokens) if are_pairs else texts, **_cutting(max_tokens, long_text)
    )
    if long_text == "head":
        cut = [bool(encoding.overflowing) for encoding in encoded.encodings]
        type_ids = encoded["token_type_ids"] if are_pairs and "token_type_ids" in encoded else [None] * len(texts)
        return [_Read([ids], *more) for ids, *more in zip(encoded["input_ids"], cut, type_ids, strict=True)]
    found = [_Read([], is_cut=False) for _ in texts]
    for ids, text in zip(encoded["input_ids"], encoded["overflow_to_sample_mapping"], strict=True):
        found[text].windows.append(ids)
    return found


def _cutting(max_tokens: int, long_text: LongText) -> dict[str, Any]:
    """Return what a tokenizer has to be told to read a head, or windows."""
    in_windows = long_text != "head"
    stride = overlap(max_tokens) if in_windows else 0
    how = {"truncation": True, "max_length": max_tokens, "padding": False}
    return how | {"stride": stride, "return_overflowing_tokens": in_windows}


def _head_tokens(tokenizer: Any, max_tokens: int) -> int:
    """Return how many tokens the head of "head+tail" has, the special ones before it included."""
    before, behind = _special_tokens(tokenizer)
    return before + int((max_tokens - before - behind) * _HEAD_SHARE)


def _head_and_tail(whole: list[Any], head: int, max_tokens: int) -> list[Any]:
    return whole if len(whole) <= max_tokens else whole[:head] + whole[head - max_tokens :]


def _shortened(pairs: list[Text], tokenizer: Any, max_tokens: int) -> list[Text]:
    """Return pairs of which the same tokens are read, without most of what is not.

    What tokenizers cuts off it keeps: of a pair each piece of the first text beside each of the second, a square.
    """
    found = list(pairs)
    long = [row for row, pair in enumerate(pairs) if max(map(len, pair)) > max_tokens]  # in characters
    if not long:
        return found
    firsts, seconds = (
        tokenizer(
            [pairs[row][side] for row in long],
            add_special_tokens=False,
            truncation=True,
            max_length=max_tokens + 2 * _SPARE_TOKENS,
            padding=False,
        ).encodings
        for side in (0, 1)
    )
    for row, first, second in zip(long, firsts, seconds, strict=True):
        lengths = _length(first), _length(second)
        found[row] = (
            _head(pairs[row][0], first, _most_read(*lengths, max_tokens)),
            _head(pairs[row][1], second, _most_read(*lengths[::-1], max_tokens)),
        )
    return found


def _most_read(own: int, other: int, max_tokens: int) -> int:
    """Return how many tokens of a text are kept beside another one; the longer stays so, for it is cut otherwise."""
    return max_tokens - min(other, max_tokens // 2) + _SPARE_TOKENS + (own > other)


def _length(encoding: Any) -> int:
    """Return the number of a text's tokens, those cut off too."""
    return len(encoding) + sum(map(len, encoding.overflowing))


def _head(text: str, encoding: Any, count: int) -> str:
    return text if len(encoding) <= count else text[: encoding.offsets[count - 1][1]]


def _special_tokens(tokenizer: Any) -> tuple[int, int]:
    """Return how many special tokens stand before a text, and how many behind it."""
    mask = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    before = mask.index(0)
    return before, len(mask) - before - mask.count(0)


def _offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
