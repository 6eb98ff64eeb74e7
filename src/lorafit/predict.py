"""A bundle -> probabilities. Evaluation, the service and the page all use this."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from lorafit import adapter, bundle, runtime, tasks
from lorafit.bundle import Loaded
from lorafit.console import bar
from lorafit.data import Text, fault, parts
from lorafit.errors import DataError
from lorafit.manifest import Manifest, Task
from lorafit.runtime import Runtime
from lorafit.tokens import Tokens, ask, pad

TOKENS_PER_BATCH = 4096  # a batch of 8 texts at 512 tokens, of 128 at 32
TEXTS_AT_ONCE = 4096  # of a stream: enough to sort by length, few enough to hold


def logits(
    model: torch.nn.Module,
    tokens: Tokens,
    pad_id: int,
    where: Runtime,
    doing: str = "Predicting",
    on_batch: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Return the logits of every text, (texts, labels) and fp32, in the order of `tokens`.

    Texts run sorted by length, longest first: what needs most memory comes at the start, and an ordinary path pads
    little. Training or not, dropout is off, and the model is left in the mode it was in.

    Args:
        model: a sequence classifier.
        tokens: the texts.
        pad_id: the tokenizer's padding id.
        where: device and precision.
        doing: what the progress bar says.
        on_batch: is called after each batch; what it raises breaks the prediction off.
    """
    was_training = model.training
    model.eval()
    rows_out: list[np.ndarray] = []
    order = np.argsort(-tokens.lengths, kind="stable")
    try:
        with bar(doing, total=len(order)) as advance, torch.inference_mode(), where.autocast():
            for rows in _batches(order, tokens.lengths):
                batch = {key: value.to(where.device) for key, value in pad(tokens, rows, pad_id).items()}
                rows_out.append(ask(model, batch, tokens.long_text).float().cpu().numpy())
                advance(len(rows))
                on_batch()
    finally:
        model.train(was_training)
    result = np.empty((len(order), rows_out[0].shape[1]), dtype=np.float32)
    result[order] = np.concatenate(rows_out)
    return result


def plain_logits(model: torch.nn.Module, tokens: Tokens, pad_id: int) -> np.ndarray:
    """Return what `logits` does, of a model as transformers and PEFT made it, in fp32 on the CPU."""
    return logits(model, tokens, pad_id, Runtime("cpu", "fp32", torch.get_num_threads(), "as asked for"))


class Classifier:
    """A trained adapter on its encoder, ready to answer.

    The adapter is merged into the encoder, which is then cast to the precision chosen and runs over real tokens only.

    >>> classifier = Classifier.load("runs/demo")
    >>> classifier.predict(["A film to remember."])[0]["label"]
    'pos'
    """

    def __init__(self, load: Callable[[], Loaded], where: Runtime) -> None:
        self._load, self._where = load, where
        self._loaded = load()
        adapted = self._loaded.model.merge_and_unload()
        self._engines = {"adapted": self._engine(adapted, self._loaded.fresh)}

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        precision: str = "auto",
        threads: int = 0,
        encoder: str | None = None,
        allow_different_base: bool = False,
    ) -> "Classifier":
        """Return the classifier in an adapter directory, or in the run folder that holds one.

        Args:
            path: a run folder or an adapter directory; a plain PEFT directory works too, with a warning.
            precision: "fp32", "bf16", or "auto": bf16 where this machine measures it faster.
            threads: CPU threads; 0 = all cores.
            encoder: the base, as a recipe names it; by default the one on this machine with the right weights.
            allow_different_base: take a base with other weights; a warning and each answer say so.

        Raises:
            BundleError: no adapter there, one that is damaged, or a base that it was not trained on.
            EncoderError: its base can't be found.
        """
        folder, where = bundle.folder_of(path), runtime.choose(precision, threads)
        return cls(lambda: bundle.load(folder, encoder=encoder, allow_different_base=allow_different_base), where)

    @property
    def model(self) -> PeftModel:
        """The adapted model, in fp32 and not merged, for those who want to go on with PEFT; loaded anew each time."""
        return self._load().model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, as transformers has it."""
        return self._loaded.tokenizer

    @property
    def labels(self) -> list[str]:
        """Label names in the order of their ids."""
        return self._loaded.manifest.labels

    @property
    def task(self) -> Task:
        """One label a text, or any number."""
        return self._loaded.manifest.task

    @property
    def text_pair(self) -> bool:
        """Whether it reads pairs of texts."""
        return self._loaded.manifest.text_pair

    @property
    def strips_tags(self) -> bool:
        """Whether tags such as <br /> are taken out of texts before they are read."""
        return self._loaded.manifest.html == "strip"

    @property
    def thresholds(self) -> list[float] | None:
        """A probability for each label from which it is given; None: none were fitted."""
        return self._loaded.manifest.thresholds

    @property
    def different_base(self) -> str | None:
        """The SHA-256 of the base's weights where they are not those that the adapter was trained on."""
        return self._loaded.different_base

    def logits(self, tokens: Tokens, *, base: bool = False) -> np.ndarray:
        """Return the logits of texts that are tokenized already, (texts, labels); `base` asks the untrained head."""
        if base and "base" not in self._engines:
            loaded = self._load()
            loaded.model.base_model.disable_adapter_layers()
            self._engines["base"] = self._engine(loaded.model, loaded.fresh)
        who = "base" if base else "adapted"
        return logits(self._engines[who], tokens, self._loaded.tokenizer.pad_token_id, self._where, who.capitalize())

    def probabilities(self, texts: Sequence[Text], *, base: bool = False) -> np.ndarray:
        """Return the probability of each label for each text, (texts, labels); of one label a text they sum to 1."""
        _refuse_non_texts(texts, self._loaded.manifest)
        if not texts:
            return np.empty((0, len(self.labels)))
        return tasks.probabilities(self.logits(self._loaded.encode(texts), base=base), self.task)

    def predict(self, texts: Sequence[Text], *, base: bool = False) -> list[dict[str, Any]]:
        """Return one object a text: `text`, one `<label>_prob` for each label, and `label`.

        Of a pair `text_pair` is there too. Where a text may have several labels, `labels` is there in place of `label`:
        the list of those given. On a base that the adapter was not trained on, `different_base` is its SHA-256.

        Args:
            texts: any number of texts, or of pairs such as ("a text", "its second text"), as the adapter was trained
                on; longer ones are cut as in training.
            base: ask the encoder with its untrained head, without the adapter.

        Raises:
            DataError: something that is not a text, or not a pair, an empty one, or one with half a character.
        """
        probabilities = self.probabilities(texts, base=base)
        thresholds = None if base else self.thresholds  # they were fitted to the adapter's answers
        decided = tasks.decide(probabilities, self.task, thresholds)
        return [
            dict(zip(("text", "text_pair"), parts(text), strict=False))
            | {f"{label}_prob": float(p) for label, p in zip(self.labels, row, strict=True)}
            | self._given(label_ids)
            | ({"different_base": self.different_base} if self.different_base else {})
            for text, row, label_ids in zip(texts, probabilities, decided, strict=True)
        ]

    def _given(self, label_ids: np.ndarray) -> dict[str, Any]:
        """Return the name of the label given, or the names of those given."""
        if self.task == "multi_label":
            return {"labels": [self.labels[label_id] for label_id in np.flatnonzero(label_ids)]}
        return {"label": self.labels[int(label_ids)]}

    def stream(self, texts: Iterable[Text], *, base: bool = False) -> Iterator[dict[str, Any]]:
        """Yield what `predict` returns, in the order of the texts, holding no more than a few thousand of them.

        >>> for answer in classifier.stream(line.strip() for line in open("reviews.txt")):
        ...     print(answer["label"])
        """
        waiting, answered = iter(texts), 0
        while some := list(islice(waiting, TEXTS_AT_ONCE)):
            _refuse_non_texts(some, self._loaded.manifest, answered)
            yield from self.predict(some, base=base)
            answered += len(some)

    def _engine(self, model: torch.nn.Module, fresh: list[str]) -> torch.nn.Module:
        adapter.speed_up(model, fresh, self._where)
        return model.to(self._where.device)


def _batches(order: np.ndarray, lengths: np.ndarray) -> Iterable[list[int]]:
    """Cut rows sorted by falling length into batches of at most `TOKENS_PER_BATCH` tokens, padding included."""
    start = 0
    while start < len(order):
        size = max(1, TOKENS_PER_BATCH // int(lengths[order[start]]))
        yield order[start : start + size].tolist()
        start += size


def _refuse_non_texts(texts: Sequence[Text], made: Manifest, before: int = 0) -> None:
    pairs = made.text_pair
    for number, text in enumerate(texts, start=before + 1):
        kind = type(text).__name__
        if pairs and not (isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text)):
            raise DataError(
                f'Text {number} is of type {kind}; this adapter reads pairs of texts, such as ("one", "another").'
            )
        if not pairs and isinstance(text, tuple):
            raise DataError(f"Text {number} is a pair; this adapter reads single texts.")
        found = (fault(part, strips_tags=made.html == "strip") for part in (text if pairs else (text,)))
        if reason := next(filter(None, found), ""):
            raise DataError(f"Text {number} {reason}.")
