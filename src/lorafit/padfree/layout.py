"""Where the real tokens of a padded batch lie."""

from dataclasses import dataclass

import torch

_SMALLEST_STEP = 8
_STEPS_TO_DOUBLE = 8
_FILLER_TOKENS = 16  # of a text that fills up: short, for attention takes the square of its length


@dataclass(frozen=True, eq=False)
class Layout:
    """A padded batch of `shape` (texts, longest) as one row of its real tokens, text after text.

    It travels through the encoder as a keyword argument, so that nothing about a batch is kept in a module.

    Behind the texts there may be others that fill up the row, which nobody reads: products of ever other sizes have to
    be prepared anew, and that takes as long as a short text does.
    """

    shape: torch.Size
    places: torch.Tensor  # (tokens,) int64: where each real token stands in the padded batch, flattened
    starts: torch.Tensor  # (texts + 1,) int64 and more: where each text starts in the row, those that fill it up too
    first_only: torch.nn.Module | None = None  # the attention of which only each text's first token is looked at
    fills_up: bool = False

    @classmethod
    def of(
        cls, attention_mask: torch.Tensor, first_only: torch.nn.Module | None = None, *, fill_up: bool = False
    ) -> "Layout":
        """Return the layout of a mask (texts, longest) that is not 0 at real tokens.

        Args:
            attention_mask: the mask.
            first_only: see the class.
            fill_up: to one of the sizes that `rounded` gives.
        """
        real = attention_mask != 0
        starts = torch.zeros(len(real) + 1, dtype=torch.int64, device=real.device)
        starts[1:] = real.sum(dim=1).cumsum(dim=0)
        places = real.flatten().nonzero().squeeze(1)
        size = rounded(len(places)) if fill_up else len(places)
        if size > len(places):
            starts = torch.cat([starts, torch.arange(len(places), size, _FILLER_TOKENS)[1:], torch.tensor([size])])
        return cls(attention_mask.shape, places, starts, first_only, fill_up)

    @property
    def tokens(self) -> int:
        """How many tokens the row has, those that fill it up too."""
        return int(self.starts[-1])

    @property
    def text_lengths(self) -> torch.Tensor:
        """The number of real tokens in each text, (texts)."""
        return self.starts[: self.shape[0] + 1].diff()

    def lengths(self) -> list[int]:
        """Return the number of tokens in each text of the row, those that fill it up too."""
        lengths: list[int] = self.starts.diff().tolist()
        return lengths

    def flatten(self, padded: torch.Tensor) -> torch.Tensor:
        """Return (texts, longest, ...) as (1, tokens, ...); what fills up is the first token again."""
        found = padded.expand(*self.shape, *padded.shape[2:]).flatten(0, 1)
        return found[_filled_up(self.places, self.tokens)][None]

    def first_tokens(self) -> torch.Tensor:
        """Return where the first token of each text is in the row, (texts); filled up if the row is."""
        first = self.starts[: self.shape[0]]
        return _filled_up(first, rounded(len(first))) if self.fills_up else first

    def pad(self, flat: torch.Tensor) -> torch.Tensor:
        """Return (1, tokens, width) as (texts, longest, width), zeros at the padding.

        Where only first tokens were computed, (1, texts, width) becomes (texts, 1, width).
        """
        texts, longest = self.shape
        if self.first_only is not None:
            return flat[0, :texts, None]
        rows = flat[0, : len(self.places)]
        padded = rows.new_zeros(texts * longest, rows.shape[-1])
        return padded.index_copy(0, self.places, rows).view(texts, longest, -1)


def rounded(count: int) -> int:
    """Return the next of the sizes that a row is filled up to: multiples of 8, from 64 on eight to each doubling.

    >>> [rounded(count) for count in (3, 27, 65, 1000, 3900)]
    [8, 32, 72, 1024, 4096]
    """
    step = max(_SMALLEST_STEP, (1 << count.bit_length() - 1) // _STEPS_TO_DOUBLE)
    return -(-count // step) * step


def _filled_up(places: torch.Tensor, size: int) -> torch.Tensor:
    return places if size == len(places) else torch.cat([places, places[:1].expand(size - len(places))])
