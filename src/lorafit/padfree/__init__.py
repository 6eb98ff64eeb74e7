"""An encoder that runs over real tokens only.

Padding, which is half of a batch of reviews, is taken out before the encoder and put back behind it, so that heads,
losses, PEFT and Trainer see what they always saw:

    from lorafit import padfree
    padfree.enable(model)      # any transformers model of a supported family, wrapped by PEFT or not
    ...                        # train or predict, in a Trainer or in a loop of your own
    padfree.disable(model)     # everything as it was

It goes through transformers' own extension points (the attention and mask registries, module hooks); no model code is
replaced, no weight changed, no dtype touched. On a CPU the encoder's layers get faster twins with the same parameters.
"""

from lorafit.padfree.attention import LAYOUT
from lorafit.padfree.kernels import status
from lorafit.padfree.layout import Layout, rounded
from lorafit.padfree.switch import FAMILIES, disable, enable, is_enabled

__all__ = ["FAMILIES", "LAYOUT", "Layout", "disable", "enable", "is_enabled", "rounded", "status"]
