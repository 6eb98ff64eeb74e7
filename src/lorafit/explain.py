"""Which words carried a decision: integrated gradients (Sundararajan, Taly and Yan 2017, arXiv:1703.01365), checked.

The text, as the adapter reads it, is compared with padding in all its places: what each word adds to the decided
label's log-odds on the way from there to the text. Of a text in windows, those log-odds are of the pooled logits, and a
word's share is summed over the windows it stands in. The words named are then taken out of what is read, and as many
others by chance, to see whose loss matters more.
"""

import html
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from lorafit import bundle, predict, tasks
from lorafit.bundle import Loaded
from lorafit.data import strip_tags
from lorafit.errors import DataError, LorafitError
from lorafit.files import write_text
from lorafit.tables import HALF_CHARACTER
from lorafit.tokens import Tokens, pad, pool, words_of

STEPS = 64  # of the integral; Gauss-Legendre
_FINER = (1, 4, 16)  # times as many steps, one after the other, until the integral has settled
_MOST_GAP = 0.05  # of what all tokens' shares weigh together
_TOKENS_AT_ONCE = 2048
_MOST_NAMED = 5
_DRAWS = 20
_NO_WORD = -1
_GAP = "[...]"
_FOR, _AGAINST = "0, 114, 178", "213, 94, 0"  # blue and vermillion, which the colour-blind can tell apart
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title>
<style>body {{ font: 1rem/1.8 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem }}
p {{ white-space: pre-wrap }} span {{ border-radius: .2em; padding: .1em 0 }}</style>
<h1>{title}</h1>
<p>{words}</p>
<small>Blue words speak for {label}, orange ones against it; their numbers, in log-odds, show under the pointer.
{notes}</small>
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

    text: str  # without tags, where the adapter is to read none
    label: str
    probability: float
    log_odds: float
    log_odds_of_padding: float
    words: list[Word]
    special_tokens: float
    gap: float
    settled: bool  # whether the gap is small beside the shares
    windows: int  # in which the text is read
    unread: tuple[int, int]  # characters of the text, from and to; equal where all of it is read
    check: Check

    @property
    def reading(self) -> str:
        """A sentence on how a text is read that is longer than the window; empty where it is not."""
        start, end = self.unread
        if end > start:
            unread = f"{end - start:,} of its {len(self.text):,} characters"
            return f"The text is longer than the window: {unread} are not read, and shown as {_GAP}."
        if self.windows > 1:
            return f"The text is read in {self.windows} windows; the decision is that of their pooled logits."
        return ""

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

    The decision is the one of `Classifier.predict`: of a text longer than the window, on what the bundle's policy reads
    of it. Where a text may have several labels, the most probable one is explained.

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
    reading = _read(loaded, read)
    if not reading.words:
        raise DataError("The tokenizer finds no word in the text; there is nothing to explain.")
    probabilities = _probabilities(loaded, reading.tokens)[0]
    label_id = _decided(loaded, probabilities)
    attributions, log_odds, of_padding = _attributed(loaded, reading, label_id)
    shares = np.bincount(reading.word_ids - _NO_WORD, attributions)  # of no word, and of each
    words = [
        Word(read[start:end], start, float(shares[word_id - _NO_WORD]))
        for word_id, (start, end) in reading.words.items()
    ]
    total = float(attributions.sum())
    gap = total - (log_odds - of_padding)
    return Explanation(
        text=read,
        label=loaded.manifest.labels[label_id],
        probability=float(probabilities[label_id]),
        log_odds=log_odds,
        log_odds_of_padding=of_padding,
        words=words,
        special_tokens=total - sum(word.attribution for word in words),
        gap=gap,
        settled=_is_settled(attributions, gap),
        windows=len(reading.tokens.offsets) - 1,
        unread=reading.unread,
        check=_checked(loaded, reading, words, label_id, float(probabilities[label_id])),
    )


def write_page(explanation: Explanation, file: Path) -> None:
    """Write an explanation as one HTML page that needs nothing beside it.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    most = max((abs(word.attribution) for word in explanation.words), default=0.0) or 1.0
    pieces = []
    for between, word in pieces_of(explanation):
        pieces.append(html.escape(between))
        if word is not None:
            colour = _FOR if word.attribution > 0 else _AGAINST
            style = f"background: rgba({colour}, {0.7 * abs(word.attribution) / most:.2f})"
            pieces.append(f'<span style="{style}" title="{word.attribution:+.3f}">{html.escape(word.word)}</span>')
    title = html.escape(f"{explanation.label} ({explanation.probability:.3f})")
    notes = html.escape(" ".join(filter(None, [explanation.reading, str(explanation.check), explanation.caveat])))
    label = html.escape(explanation.label)
    write_text(file, _PAGE.format(title=title, words="".join(pieces), label=label, notes=notes))


def pieces_of(explanation: Explanation) -> Iterable[tuple[str, Word | None]]:
    """Yield each word with the characters that stand before it, and last what stands behind; what is unread is cut."""
    end = 0
    for word in (*explanation.words, None):
        start = len(explanation.text) if word is None else word.start
        is_cut = end <= explanation.unread[0] < explanation.unread[1] <= start
        yield f" {_GAP} " if is_cut else explanation.text[end:start], word
        end = start + len(word.word) if word else start


@dataclass(frozen=True)
class _Reading:
    """What the adapter reads of a text: tokens, and where the words stand that these are of."""

    tokens: Tokens
    word_ids: np.ndarray  # int64, beside `tokens.ids`: the word of each token, which may stand in two windows
    words: dict[int, tuple[int, int]]  # characters from and to
    unread: tuple[int, int]  # see `Explanation`


def _read(loaded: Loaded, text: str) -> _Reading:
    made = loaded.manifest
    found = loaded.encode_prepared([text])
    word_ids = words_of(text, loaded.tokenizer, made.max_tokens, made.long_text)
    whole = loaded.tokenizer(text, return_offsets_mapping=True, verbose=False)
    spans: dict[int, tuple[int, int]] = {}
    for word_id, (start, end) in zip(whole.word_ids(0), whole["offset_mapping"], strict=True):
        if word_id is not None:
            spans[word_id] = (min(spans.get(word_id, (start, end))[0], start), end)
    there = {word_id for word_id in word_ids if word_id is not None}
    gaps = [place for word_id, span in spans.items() if word_id not in there for place in span]
    words = {word_id: _stripped(text, *span) for word_id, span in spans.items() if word_id in there}
    return _Reading(
        tokens=found,
        word_ids=np.array([_NO_WORD if word_id is None else word_id for word_id in word_ids]),
        words={word_id: (start, end) for word_id, (start, end) in words.items() if end > start},
        unread=(min(gaps), max(gaps)) if gaps else (len(text), len(text)),
    )


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a word's place without the space that a token may hold in front."""
    shown = text[start:end]
    start += len(shown) - len(shown.lstrip())
    return start, start + len(shown.strip())


def _decided(loaded: Loaded, probabilities: np.ndarray) -> int:
    made = loaded.manifest
    if made.task == "multi_label":
        return int(probabilities.argmax())
    return int(tasks.decide(probabilities[None], made.task, made.thresholds)[0])


def _probabilities(loaded: Loaded, tokens: Tokens) -> np.ndarray:
    logits = predict.plain_logits(loaded.model, tokens, loaded.tokenizer.pad_token_id)
    return tasks.probabilities(logits, loaded.manifest.task)


def _attributed(loaded: Loaded, reading: _Reading, label_id: int) -> tuple[np.ndarray, float, float]:
    """Return each token's share, and the label's log-odds for the text and for padding between its special tokens."""
    integrated_gradients = _captum()
    pad_id, several = loaded.tokenizer.pad_token_id, loaded.manifest.task == "multi_label"
    batch = pad(reading.tokens, [0], pad_id)
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    padding = torch.full_like(ids, pad_id)
    padding[real] = torch.where(torch.from_numpy(reading.word_ids) == _NO_WORD, ids[real], pad_id)

    def log_odds(embedded: torch.Tensor) -> torch.Tensor:
        """Return those of each copy of the text, of which `embedded` holds all windows."""
        copies = len(embedded) // len(ids)
        logits = _logits(loaded.model, embedded, ids.repeat(copies, 1), batch["attention_mask"].repeat(copies, 1))
        logits = pool(logits, torch.full((copies,), len(ids)), loaded.manifest.long_text)
        others = torch.cat([logits[:, :label_id], logits[:, label_id + 1 :]], dim=1)
        wanted: torch.Tensor = logits[:, label_id]
        return wanted if several else wanted - others.logsumexp(dim=1)

    embeddings = loaded.model.get_input_embeddings()
    with torch.no_grad():
        start, end = embeddings(padding), embeddings(ids)
        of_padding, of_text = log_odds(start).item(), log_odds(end).item()
    for finer in _FINER:
        found = integrated_gradients(log_odds).attribute(
            end,
            baselines=start,
            n_steps=STEPS * finer,
            internal_batch_size=max(len(ids), _TOKENS_AT_ONCE // ids.shape[1]),
        )
        shares = found.detach().sum(dim=-1)[real].double().numpy()
        if _is_settled(shares, float(shares.sum()) - (of_text - of_padding)):
            break
    return shares, of_text, of_padding


def _logits(model: Any, embedded: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the logits of windows with these embeddings in the place of their ids' own, however many there are.

    The ids are given all the same: by them RoBERTa counts its places.
    """

    def ask(embedded: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hook = model.get_input_embeddings().register_forward_hook(lambda *_: embedded)
        try:
            logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
        finally:
            hook.remove()
        return logits

    at_once = max(1, _TOKENS_AT_ONCE // ids.shape[1])
    if len(ids) <= at_once:
        return ask(embedded, ids, mask)
    parts = zip(*(torch.split(tensor, at_once) for tensor in (embedded, ids, mask)), strict=True)
    # Computed again for its gradient: many windows at once would not fit into memory.
    return torch.cat([checkpoint(ask, *part, use_reentrant=False) for part in parts])


def _is_settled(shares: np.ndarray, gap: float) -> bool:
    return abs(gap) <= _MOST_GAP * float(np.abs(shares).sum())


def _captum() -> Any:
    try:
        from captum.attr import IntegratedGradients
    except ImportError:
        raise LorafitError("explain needs captum. Install it with: pip install 'lorafit[explain]'") from None
    return IntegratedGradients


def _checked(loaded: Loaded, reading: _Reading, words: list[Word], label_id: int, probability: float) -> Check:
    count = max(1, min(_MOST_NAMED, len(words) // 4))
    named = sorted(range(len(words)), key=lambda place: -words[place].attribution)[:count]
    chance = np.random.default_rng(0)
    draws = [chance.choice(len(words), size=count, replace=False).tolist() for _ in range(_DRAWS)]
    word_ids = list(reading.words)
    kept = [~np.isin(reading.word_ids, [word_ids[place] for place in taken]) for taken in (named, *draws)]
    losses = probability - _probabilities(loaded, _copies(reading.tokens, np.stack(kept)))[:, label_id]
    return Check([words[place].word for place in named], float(losses[0]), float(losses[1:].mean()))


def _copies(one: Tokens, kept: np.ndarray) -> Tokens:
    """Return copies of one text, each with the tokens that `kept` (copies, tokens) says; nothing else moves in."""
    copies, tokens = kept.shape
    starts = one.offsets[:-1] + tokens * np.arange(copies)[:, None]
    offsets = np.append(0, np.cumsum(kept))[np.append(starts, kept.size)]
    windows = None if one.windows is None else one.windows[1] * np.arange(copies + 1)
    return Tokens(np.tile(one.ids, copies)[kept.ravel()], offsets, 0, one.long_text, windows)
