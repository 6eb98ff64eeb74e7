"""Where the real tokens of a padded batch lie."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Layout:
    """A padded batch of `shape` (texts, longest) as one row of its real tokens, text after text.

    It travels through the encoder as a keyword argument, so that nothing about a batch is kept in a module.
    """

    shape: torch.Size
    places: torch.Tensor  # (tokens,) int64: where each real token stands in the padded batch, flattened
    starts: torch.Tensor  # (texts + 1,) int64: where each text starts among the real tokens
    first_only: torch.nn.Module | None = None  # the attention of which only each text's first token is looked at

    @classmethod
    def of(cls, attention_mask: torch.Tensor, first_only: torch.nn.Module | None = None) -> "Layout":
        """Return the layout of a mask (texts, longest) that is not 0 at real tokens."""
        real = attention_mask != 0
        starts = torch.zeros(len(real) + 1, dtype=torch.int64, device=real.device)
        starts[1:] = real.sum(dim=1).cumsum(dim=0)
        return cls(attention_mask.shape, real.flatten().nonzero().squeeze(1), starts, first_only)

    def lengths(self) -> list[int]:
        """Return the number of real tokens in each text."""
        lengths: list[int] = self.starts.diff().tolist()
        return lengths

    def flatten(self, padded: torch.Tensor) -> torch.Tensor:
        """Return (texts, longest, ...) as (1, tokens, ...)."""
        return padded.expand(*self.shape, *padded.shape[2:]).flatten(0, 1)[self.places][None]

    def pad(self, flat: torch.Tensor) -> torch.Tensor:
        """Return (1, tokens, width) as (texts, longest, width), zeros at the padding.

        Where only first tokens were computed, (1, texts, width) becomes (texts, 1, width).
        """
        rows = flat.squeeze(0)
        if self.first_only is not None:
            return rows[:, None]
        texts, longest = self.shape
        padded = rows.new_zeros(texts * longest, rows.shape[-1])
        return padded.index_copy(0, self.places, rows).view(texts, longest, -1)
