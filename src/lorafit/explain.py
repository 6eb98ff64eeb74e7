"""Which words carried a decision: integrated gradients (Sundararajan, Taly and Yan 2017, arXiv:1703.01365), checked.

The text is compared with padding in all its places: what each word adds to the decided label's log-odds on the way from
there to the text. The words named are then taken out, and as many others by chance, to see whose loss matters more.
"""

import html
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorafit import bundle, predict, tasks
from lorafit.bundle import Loaded
from lorafit.data import strip_tags
from lorafit.errors import DataError, LorafitError
from lorafit.files import write_text
from lorafit.tables import HALF_CHARACTER

STEPS = 64  # of the integral; Gauss-Legendre
_FINER = (1, 4, 16)  # times as many steps, one after the other, until the integral has settled
_MOST_GAP = 0.05  # of what all tokens' shares weigh together
_TOKENS_AT_ONCE = 2048
_MOST_NAMED = 5
_DRAWS = 20
_FOR, _AGAINST = "0, 114, 178", "213, 94, 0"  # blue and vermillion, which the colour-blind can tell apart
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title>
<style>body {{ font: 1rem/1.8 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem }}
p {{ white-space: pre-wrap }} span {{ border-radius: .2em; padding: .1em 0 }}</style>
<h1>{title}</h1>
<p>{words}</p>
<small>Blue words speak for {label}, orange ones against it; their numbers, in log-odds, show under the pointer.
{check}</small>
</html>
"""


@dataclass(frozen=True)
class Word:
    """A word of the text, from character `start` on, and what it adds to the decided label's log-odds."""

    word: str
    start: int
    attribution: float


@dataclass(frozen=True)
class Check:
    """What taking words out does to the decided label's probability: those named, and as many others by chance."""

    named: list[str]
    loss: float
    loss_by_chance: float  # mean over seeded draws

    def __str__(self) -> str:
        count = f"{len(self.named)} word{'s' if len(self.named) > 1 else ''}"
        named = ", ".join(map(repr, self.named))
        return (
            f"check: without {named} the probability falls by {self.loss:.3f}; without {count} taken "
            f"by chance by {self.loss_by_chance:.3f} (mean of {_DRAWS} draws)"
            + ("" if self.loss > self.loss_by_chance else ": these words do not account for the decision")
        )


@dataclass(frozen=True)
class Explanation:
    """The decided label, its probability, and the words' shares in it.

    `log_odds` is the label's over all others, `log_odds_of_padding` that of the text made of padding. The words and
    `special_tokens` sum to their difference but for `gap`, the error of the integral.
    """

    text: str  # its head, where it is longer than the window
    label: str
    probability: float
    log_odds: float
    log_odds_of_padding: float
    words: list[Word]
    special_tokens: float
    gap: float
    settled: bool  # whether the gap is small beside the shares
    is_head: bool
    check: Check

    @property
    def caveat(self) -> str:
        """A sentence on an integral that has not settled; empty where it has."""
        if self.settled:
            return ""
        return f"The integral has not settled: the words' shares miss the decision's log-odds by {abs(self.gap):.2g}."

    def as_record(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return asdict(self)


def explain(
    path: Path | str, text: str, *, encoder: str | None = None, allow_different_base: bool = False
) -> Explanation:
    """Return which words of a text carried an adapter's decision, in fp32.

    Of a text longer than the window its head is explained, as a text of its own. Where a text may have several labels,
    it is the most probable one.

    Args:
        path: a run folder or an adapter directory.
        text: one text.
        encoder: see `Classifier.load`.
        allow_different_base: see `Classifier.load`.

    Raises:
        LorafitError: captum is not installed.
        DataError: an empty or damaged text, one without a word, or an adapter that reads pairs.
        BundleError: no adapter there, or one that is damaged.

    >>> explain("runs/demo", "A film to remember.").check.named
    ['remember']
    """
    folder = bundle.folder_of(path)
    loaded = bundle.load(folder, encoder=encoder, allow_different_base=allow_different_base)
    if loaded.manifest.text_pair:
        raise DataError(f"{folder} reads pairs of texts; only decisions on single texts can be explained.")
    read = strip_tags(text) if loaded.manifest.html == "strip" else text
    if not read.strip():
        raise DataError("The text is empty; there is nothing to explain.")
    if HALF_CHARACTER.search(read):
        raise DataError("The text holds half a character, a lone surrogate; it is damaged.")
    head, encoded = _head(loaded, read)
    if not _words(head, encoded, np.zeros(len(encoded["input_ids"]))):
        raise DataError("The tokenizer finds no word in the text; there is nothing to explain.")
    probabilities = _probabilities(loaded, [head])[0]
    label_id = _decided(loaded, probabilities)
    ids = torch.tensor([encoded["input_ids"]])
    attributions, log_odds, of_padding = _attributed(loaded, ids, encoded.sequence_ids(0), label_id)
    words = _words(head, encoded, attributions)
    total = sum(word.attribution for word in words)
    gap = float(attributions.sum()) - (log_odds - of_padding)
    return Explanation(
        text=head,
        label=loaded.manifest.labels[label_id],
        probability=float(probabilities[label_id]),
        log_odds=log_odds,
        log_odds_of_padding=of_padding,
        words=words,
        special_tokens=float(attributions.sum()) - total,
        gap=gap,
        settled=_is_settled(attributions, gap),
        is_head=len(head) < len(read),
        check=_checked(loaded, head, words, label_id, float(probabilities[label_id])),
    )


def write_page(explanation: Explanation, file: Path) -> None:
    """Write an explanation as one HTML page that needs nothing beside it.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    most = max((abs(word.attribution) for word in explanation.words), default=0.0) or 1.0
    pieces = []
    for between, word in pieces_of(explanation):
        colour = _FOR if word.attribution > 0 else _AGAINST
        style = f"background: rgba({colour}, {0.7 * abs(word.attribution) / most:.2f})"
        shown = f'<span style="{style}" title="{word.attribution:+.3f}">{html.escape(word.word)}</span>'
        pieces.append(html.escape(between) + shown)
    title = html.escape(f"{explanation.label} ({explanation.probability:.3f})")
    check = html.escape(" ".join(filter(None, [str(explanation.check), explanation.caveat])))
    label = html.escape(explanation.label)
    write_text(file, _PAGE.format(title=title, words="".join(pieces), label=label, check=check))


def pieces_of(explanation: Explanation) -> Iterable[tuple[str, Word]]:
    """Yield each word with the characters that stand before it."""
    end = 0
    for word in explanation.words:
        yield explanation.text[end : word.start], word
        end = word.start + len(word.word)


def _head(loaded: Loaded, text: str) -> tuple[str, Any]:
    """Return what the window holds of a text, and its tokens: with words taken out, nothing else must move in."""

    def encoded(some: str) -> Any:
        return loaded.tokenizer(
            some, truncation=True, max_length=loaded.manifest.max_tokens, return_offsets_mapping=True
        )

    found = encoded(text)
    if not found.encodings[0].overflowing:
        return text, found
    head = text[: max(end for _, end in found["offset_mapping"])]
    return head, encoded(head)


def _decided(loaded: Loaded, probabilities: np.ndarray) -> int:
    made = loaded.manifest
    if made.task == "multi_label":
        return int(probabilities.argmax())
    return int(tasks.decide(probabilities[None], made.task, made.thresholds)[0])


def _probabilities(loaded: Loaded, texts: Sequence[str]) -> np.ndarray:
    tokens = loaded.encode_prepared(texts)
    logits = predict.plain_logits(loaded.model, tokens, loaded.tokenizer.pad_token_id)
    return tasks.probabilities(logits, loaded.manifest.task)


def _attributed(
    loaded: Loaded, ids: torch.Tensor, sequence_ids: Sequence[int | None], label_id: int
) -> tuple[np.ndarray, float, float]:
    """Return each token's share, and the label's log-odds for the text and for padding between its special tokens."""
    integrated_gradients = _captum()
    mask = torch.ones_like(ids)
    special = torch.tensor([[place is None for place in sequence_ids]])
    padding = torch.where(special, ids, loaded.tokenizer.pad_token_id)
    several = loaded.manifest.task == "multi_label"

    def log_odds(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits = loaded.model(input_ids=input_ids, attention_mask=attention_mask).logits
        others = torch.cat([logits[:, :label_id], logits[:, label_id + 1 :]], dim=1)
        wanted: torch.Tensor = logits[:, label_id]
        return wanted if several else wanted - others.logsumexp(dim=1)

    embeddings = loaded.model.get_input_embeddings()
    with torch.inference_mode():
        of_text = log_odds(ids, mask).item()
        # Padding's embeddings in place of the text's: asked by its ids, RoBERTa would count its places otherwise.
        hook = embeddings.register_forward_hook(lambda module, *_: module.forward(padding))
        of_padding = log_odds(ids, mask).item()
        hook.remove()
    for finer in _FINER:
        found = integrated_gradients(log_odds, embeddings).attribute(
            ids,
            baselines=padding,
            additional_forward_args=(mask,),
            n_steps=STEPS * finer,
            internal_batch_size=max(1, _TOKENS_AT_ONCE // ids.shape[1]),
        )
        shares = found.detach().sum(dim=-1)[0].double().numpy()
        if _is_settled(shares, float(shares.sum()) - (of_text - of_padding)):
            break
    return shares, of_text, of_padding


def _is_settled(shares: np.ndarray, gap: float) -> bool:
    return abs(gap) <= _MOST_GAP * float(np.abs(shares).sum())


def _captum() -> Any:
    try:
        from captum.attr import LayerIntegratedGradients
    except ImportError:
        raise LorafitError("explain needs captum. Install it with: pip install 'lorafit[explain]'") from None
    return LayerIntegratedGradients


def _words(text: str, encoded: Any, attributions: np.ndarray) -> list[Word]:
    """Join tokens to the tokenizer's words; a space that a token holds in front is not part of the word."""
    spans: dict[int, list[int]] = {}
    shares: dict[int, float] = {}
    for word, (start, end), share in zip(encoded.word_ids(0), encoded["offset_mapping"], attributions, strict=True):
        if word is not None:
            spans[word] = [min(spans.get(word, [start])[0], start), end]
            shares[word] = shares.get(word, 0.0) + float(share)
    found = []
    for word, (start, end) in spans.items():
        shown = text[start:end]
        found.append(Word(shown.strip(), start + len(shown) - len(shown.lstrip()), shares[word]))
    return [word for word in found if word.word]


def _checked(loaded: Loaded, text: str, words: list[Word], label_id: int, probability: float) -> Check:
    count = max(1, min(_MOST_NAMED, len(words) // 4))
    named = sorted(words, key=lambda word: -word.attribution)[:count]
    chance = np.random.default_rng(0)
    draws = [chance.choice(len(words), size=count, replace=False) for _ in range(_DRAWS)]
    texts = [_without(text, named), *(_without(text, [words[place] for place in draw]) for draw in draws)]
    losses = probability - _probabilities(loaded, texts)[:, label_id]
    return Check([word.word for word in named], float(losses[0]), float(losses[1:].mean()))


def _without(text: str, words: Iterable[Word]) -> str:
    for word in sorted(words, key=lambda word: -word.start):
        text = text[: word.start] + text[word.start + len(word.word) :]
    return text
