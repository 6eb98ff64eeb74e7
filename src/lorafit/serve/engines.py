"""What answers batches: an encoder that many adapters share, or a classifier that has its encoder for itself."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

import numpy as np
import torch

from lorafit import adapter, checks, encoders, padfree
from lorafit.bundle import Checked
from lorafit.encoders import Files
from lorafit.predict import Classifier
from lorafit.runtime import Runtime
from lorafit.serve import mixing
from lorafit.serve.mixing import Share, UnderWay, Weights
from lorafit.tokens import Tokens, inputs_of, join, pad, pool


class Item(NamedTuple):
    """A text to answer: by which adapter's weights (None where the engine has its own), and where its tokens stand."""

    weights: Weights | None
    tokens: Tokens
    text: int


class Engine(Protocol):
    """What answers batches of texts.

    `pads`: whether a batch costs as much as if all its texts were as long as the longest.
    """

    pads: bool

    def run(self, batches: Iterable[Sequence[Item]]) -> Iterator[list[np.ndarray]]:
        """Yield the logits of each text, (labels) and fp32, batch after batch; the next may be taken before."""
        ...


class SharedEncoder:
    """One copy of an encoder for any number of adapters, also within one batch.

    >>> shared = SharedEncoder(encoders.locate("bundled:minilm"), runtime.choose())
    """

    def __init__(self, files: Files, where: Runtime) -> None:
        # Its head only lends its form: each adapter brings its own.
        made = encoders.load(files, ["0", "1"], dropout="keep", own_head=True)
        self.files, self._where, self._fresh = files, where, set(made.fresh)
        self._under_way, self._heads = UnderWay(), mixing.head_paths(made.model, made.fresh)
        mixing.mix_head(made.model, self._heads, self._under_way)
        adapter.speed_up(made.model, [path.rpartition(".")[2] for path in self._heads], where)
        mixing.mix_layers(made.model, self._heads, self._under_way)
        self._model = made.model.to(where.device).eval().requires_grad_(False)
        self._pad_id = made.model.config.pad_token_id or 0
        self._first_only = True
        self.pads = not padfree.is_enabled(self._model)
        # Where all of a batch's tokens lie in one row. In others a layer may be given more than that: DeBERTa's read
        # its relative positions too, which are no adapter's.
        self._mixes = not self.pads

    @property
    def token_types(self) -> int:
        """How many parts of a text the encoder can tell apart; 0: it does not look."""
        return int(getattr(self._model.config, "type_vocab_size", 0))

    def why_alone(self, whole: Checked) -> str:
        """Return why a bundle on this encoder needs a copy of its own; "" if it does not."""
        return mixing.why_alone(whole, self._heads)

    def weights_of(self, whole: Checked) -> Weights:
        """Return what a bundle adds to this encoder.

        Raises:
            BundleError: it can't be read, or weights are missing.
        """
        passed_by = {"pooler"} if whole.manifest.pooling == "mean" else set()
        checks.refuse_random_modules(whole.folder, sorted(self._fresh - passed_by), whole.lora)
        return mixing.weights_of(whole, self._heads, self._where.base_dtype, self._where.device)

    def run(self, batches: Iterable[Sequence[Item]]) -> Iterator[list[np.ndarray]]:
        """See `Engine`."""
        yield from map(self._answer, batches)

    def _answer(self, items: Sequence[Item]) -> list[np.ndarray]:
        order = sorted(range(len(items)), key=lambda place: id(items[place].weights))
        answers: list[np.ndarray] = [np.empty(0)] * len(items)
        for together in [order] if self._mixes else _by_adapter(order, items):
            for place, answer in zip(together, self._answer_in_order([items[n] for n in together]), strict=True):
                answers[place] = answer
        return answers

    def _answer_in_order(self, items: Sequence[Item]) -> list[np.ndarray]:
        """Return the logits of texts that stand adapter by adapter."""
        tokens = join([(item.tokens, item.text) for item in items])
        batch = pad(tokens, range(len(items)), self._pad_id)
        shares = _shares(items, tokens, batch["windows"])
        self._under_way.begin(shares)
        # Its layers tell rows from tokens by how many there are.
        fewer = padfree.rounded(shares[-1].rows.stop) < shares[-1].tokens.stop
        self._read_first_tokens_only(fewer and not any(share.weights.reads_the_mean for share in shares))
        with torch.inference_mode(), self._where.autocast():
            inputs = {key: value.to(self._where.device) for key, value in inputs_of(batch).items()}
            logits = self._model(**inputs).logits.float().cpu()
        found: list[np.ndarray] = []
        for share in shares:
            own = logits[share.rows, : share.weights.labels]
            found.extend(pool(own, batch["windows"][share.texts], share.weights.long_text).numpy())
        return found

    def _read_first_tokens_only(self, wanted: bool) -> None:
        """Let the last layer compute first tokens only, or all of them; it is the whole last layer that changes."""
        if wanted != self._first_only and not self.pads:
            padfree.enable(self._model, first_token_only=wanted)
            self._first_only = wanted


def _shares(items: Sequence[Item], tokens: Tokens, windows: torch.Tensor) -> list[Share]:
    """Return who owns what of a batch whose texts stand adapter by adapter; a row is a window."""
    shares, text, row, token = [], 0, 0, 0
    for _, group in groupby(items, key=lambda item: id(item.weights)):
        weights, *others = [item.weights for item in group]
        assert weights is not None
        texts = slice(text, text + 1 + len(others))
        rows = slice(row, row + int(windows[texts].sum()))
        own = slice(token, token + int(tokens.lengths[texts].sum()))
        shares.append(Share(weights, texts, rows, own))
        text, row, token = texts.stop, rows.stop, own.stop
    return shares


def _by_adapter(order: Sequence[int], items: Sequence[Item]) -> list[list[int]]:
    return [list(group) for _, group in groupby(order, key=lambda place: id(items[place].weights))]


class OwnEncoder:
    """A classifier that has its encoder for itself: an export, an adapter that changed more than it can share, or the
    only one, merged.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        family = classifier.reader.manifest.base.shape.model_type
        self.pads = classifier.backend not in ("fp32", "bf16", "merged") or family not in padfree.FAMILIES

    def run(self, batches: Iterable[Sequence[Item]]) -> Iterator[list[np.ndarray]]:
        """See `Engine`."""
        pad_id = self._classifier.tokenizer.pad_token_id
        tokens = (join([(item.tokens, item.text) for item in items]) for items in batches)
        for logits in self._classifier.engine(pad(some, range(len(some)), pad_id) for some in tokens):
            yield list(self._classifier.refuse_others(logits))
