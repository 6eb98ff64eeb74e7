"""A bundle -> probabilities. Evaluation, the service and the page all use this."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from lorafit import adapter, backends, bundle, checks, encoders, exported, ranks, runtime, tasks
from lorafit.backends import Batch, Engine
from lorafit.batches import shares
from lorafit.bundle import Loaded, Reader
from lorafit.console import bar
from lorafit.data import Text, fault, parts
from lorafit.errors import BundleError, DataError, LorafitWarning
from lorafit.exported import Form
from lorafit.manifest import LongText, Manifest, Task
from lorafit.runtime import Runtime
from lorafit.tokens import Tokens, pad

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
    try:
        return answers(backends.of_torch(model, where, tokens.long_text), tokens, pad_id, doing, on_batch)
    finally:
        model.train(was_training)


def logits_of_ranks(
    model: torch.nn.Module,
    tokens: Tokens,
    pad_id: int,
    where: Runtime,
    doing: str = "Predicting",
    on_batch: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Return what `logits` does, on every rank: each has asked about its share of the texts."""
    if ranks.count() == 1 or len(tokens) < ranks.count():
        return logits(model, tokens, pad_id, where, doing, on_batch)
    parts = shares(range(len(tokens)), tokens.lengths, ranks.count())
    own = logits(model, tokens.take(parts[ranks.rank()]), pad_id, where, doing)
    found = np.empty((len(tokens), own.shape[1]), dtype=np.float32)
    for rows, given in zip(parts, ranks.of_all(own), strict=True):
        found[rows] = given
    return found


def answers(
    engine: Engine, tokens: Tokens, pad_id: int, doing: str = "Predicting", on_batch: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Return what `logits` does, of any engine."""
    with bar(doing, total=len(tokens)) as advance:

        def count(texts: int) -> None:
            advance(texts)
            on_batch()

        (found,) = answers_to_each(engine, [tokens], pad_id, count)
    return found


def answers_to_each(
    engine: Engine, many: Iterable[Tokens], pad_id: int, on_batch: Callable[[int], None] = lambda _: None
) -> Iterator[np.ndarray]:
    """Yield what `answers` returns of each of many, none of them empty.

    An engine that works on several batches at a time has the next of `many` made while it works on those before.
    """
    under_way: deque[list[list[int]]] = deque()

    def padded() -> Iterator[Batch]:
        for tokens in many:
            rows = list(batches(tokens.lengths))
            under_way.append(rows)
            yield from (pad(tokens, texts, pad_id) for texts in rows)

    given: list[np.ndarray] = []
    for some in engine(padded()):
        given.append(some)
        on_batch(len(some))
        if len(given) == len(under_way[0]):
            order = np.concatenate(under_way.popleft())
            found = np.empty((len(order), some.shape[1]), dtype=np.float32)
            found[order] = np.concatenate(given)
            given = []
            yield found


def plain_logits(model: torch.nn.Module, tokens: Tokens, pad_id: int) -> np.ndarray:
    """Return what `logits` does, of a model as transformers and PEFT made it, in fp32 on the CPU."""
    return logits(model, tokens, pad_id, Runtime("cpu", "fp32", torch.get_num_threads(), "as asked for"))


class Classifier:
    """A trained adapter on its encoder, or an export of it, ready to answer.

    The adapter is merged into the encoder, which is then cast to the precision chosen and runs over real tokens only.
    An export runs on its own runtime.

    >>> classifier = Classifier.load("runs/demo")
    >>> classifier.predict(["A film to remember."])[0]["label"]
    'pos'
    """

    def __init__(
        self,
        reader: Reader,
        engine: Engine,
        backend: str,
        load: Callable[[], Loaded] | None = None,
        network: torch.nn.Module | None = None,
    ) -> None:
        self._reader, self._backend, self._load_adapter = reader, backend, load
        self._engines, self._networks = {"adapted": engine}, {"adapted": network}

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        precision: str = "auto",
        threads: int = 0,
        encoder: str | None = None,
        allow_different_base: bool = False,
        backend: Path | str | None = None,
    ) -> "Classifier":
        """Return the classifier in an adapter directory, in the run folder that holds one, or in an export.

        Args:
            path: a run folder, an adapter directory or an export; a plain PEFT directory works too, with a warning.
            precision: "fp32", "bf16", or "auto": bf16 where this machine measures it faster. Exports to other runtimes
                have their own.
            threads: CPU threads; 0 = all cores.
            encoder: the base, as a recipe names it; by default the one on this machine with the right weights.
            allow_different_base: take a base with other weights; a warning and each answer say so.
            backend: an export of the bundle at `path`, to run on in its place.

        Raises:
            BundleError: no adapter there, one that is damaged, a base that it was not trained on, or an export of
                another bundle.
            EncoderError: its base can't be found.
            LorafitError: the export's runtime is not installed.
        """
        folder = bundle.folder_of(path)
        if backend is not None:
            folder = exported.of_bundle(Path(backend), bundle.fingerprint(folder), folder)
        if not exported.is_export(folder):
            where = runtime.choose(precision, threads)
            return cls._of_adapter(
                lambda: bundle.load(folder, encoder=encoder, allow_different_base=allow_different_base), where
            )
        if encoder is not None or allow_different_base:
            raise BundleError(f"{folder} is an export: its encoder is part of it, and no other can be taken.")
        return cls._of_export(folder, precision, threads)

    @classmethod
    def _of_adapter(cls, load: Callable[[], Loaded], where: Runtime) -> "Classifier":
        loaded = load()
        network = loaded.model.merge_and_unload()
        engine = lorafits_own(network, loaded.fresh, where, loaded.manifest.long_text)
        return cls(loaded, engine, where.precision, load, network)

    @classmethod
    def _of_export(cls, folder: Path, precision: str, threads: int) -> "Classifier":
        made = exported.check(folder)
        checks.refuse_leading_elsewhere(folder / "tokenizer_config.json")
        if made.different_base:
            warn(
                f"{folder} was made over an encoder that the adapter was not trained on (weights "
                f"{made.different_base[:12]}...).",
                LorafitWarning,
                stacklevel=3,
            )
        if made.form != "merged" and precision != "auto":
            raise BundleError(f"{folder} is {made.form}, whose precision is its own; {precision} can't be chosen.")
        reader = Reader(
            tokenizer=encoders.load_tokenizer(folder, str(folder)),
            manifest=made.adapter,
            token_types=made.token_types,
            different_base=made.different_base,
        )
        engine = open_export(folder, made.form, made.fresh, made.adapter.long_text, precision, threads)
        return cls(reader, engine, made.form)

    @property
    def backend(self) -> str:
        """What computes: the precision of lorafit's own engine, "bf16" or "fp32", or an export's form."""
        return self._backend

    @property
    def engine(self) -> Engine:
        """What gives the logits of padded batches; see `backends`."""
        return self._engines["adapted"]

    @property
    def model(self) -> PeftModel:
        """The adapted model, in fp32 and not merged, for those who want to go on with PEFT; loaded anew each time.

        Raises:
            BundleError: an export has none.
        """
        return self._load().model

    def network(self, *, base: bool = False) -> torch.nn.Module:
        """Return what lorafit's own engine computes with, merged, cast and without padding; of `base` likewise.

        Raises:
            BundleError: an export has none.
        """
        self._engine(base)
        found = self._networks["base" if base else "adapted"]
        if found is None:
            raise _no_adapter()
        return found

    @property
    def reader(self) -> Reader:
        """What reads texts as in training."""
        return self._reader

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, as transformers has it."""
        return self._reader.tokenizer

    @property
    def labels(self) -> list[str]:
        """Label names in the order of their ids."""
        return self._reader.manifest.labels

    @property
    def task(self) -> Task:
        """One label a text, or any number."""
        return self._reader.manifest.task

    @property
    def text_pair(self) -> bool:
        """Whether it reads pairs of texts."""
        return self._reader.manifest.text_pair

    @property
    def strips_tags(self) -> bool:
        """Whether tags such as <br /> are taken out of texts before they are read."""
        return self._reader.manifest.html == "strip"

    @property
    def thresholds(self) -> list[float] | None:
        """A probability for each label from which it is given; None: none were fitted."""
        return self._reader.manifest.thresholds

    @property
    def different_base(self) -> str | None:
        """The SHA-256 of the base's weights where they are not those that the adapter was trained on."""
        return self._reader.different_base

    def logits(self, tokens: Tokens, *, base: bool = False) -> np.ndarray:
        """Return the logits of texts that are tokenized already, (texts, labels); `base` asks the untrained head."""
        doing = "Base" if base else "Adapted"
        return self.refuse_others(answers(self._engine(base), tokens, self.tokenizer.pad_token_id, doing))

    def probabilities(self, texts: Sequence[Text], *, base: bool = False) -> np.ndarray:
        """Return the probability of each label for each text, (texts, labels); of one label a text they sum to 1."""
        if not texts:
            return np.empty((0, len(self.labels)))
        return tasks.probabilities(self.logits(self._read(texts), base=base), self.task)

    def probabilities_of_each(self, many: Iterable[Sequence[Text]], *, base: bool = False) -> Iterator[np.ndarray]:
        """Yield what `probabilities` returns of each of many lists of texts, none of them empty.

        The next list is taken and tokenized while a runtime that can do so still works on the one before.
        """
        for logits in answers_to_each(self._engine(base), map(self._read, many), self.tokenizer.pad_token_id):
            yield tasks.probabilities(self.refuse_others(logits), self.task)

    def _engine(self, base: bool) -> Engine:
        if base and "base" not in self._engines:
            loaded = self._load()
            loaded.model.base_model.disable_adapter_layers()
            where = runtime.choose(self._backend, torch.get_num_threads())
            self._engines["base"] = lorafits_own(loaded.model, loaded.fresh, where, loaded.manifest.long_text)
            self._networks["base"] = loaded.model
        return self._engines["base" if base else "adapted"]

    def _read(self, texts: Sequence[Text]) -> Tokens:
        refuse_non_texts(texts, self._reader.manifest)
        return self._reader.encode(texts)

    def refuse_others(self, logits: np.ndarray) -> np.ndarray:
        """Return logits once it is sure that they are one a label.

        Raises:
            BundleError: the model gives another number.
        """
        if logits.shape[1] != len(self.labels):
            raise BundleError(
                f"The model gives {logits.shape[1]} answers to a text, and has {len(self.labels)} labels."
            )
        return logits

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
            refuse_non_texts(some, self._reader.manifest, answered)
            yield from self.predict(some, base=base)
            answered += len(some)

    def _load(self) -> Loaded:
        if self._load_adapter is None:
            raise _no_adapter()
        return self._load_adapter()


def _no_adapter() -> BundleError:
    return BundleError("An export holds no adapter and no untrained head: ask the bundle that it was made of.")


def open_export(
    folder: Path, form: Form, fresh: list[str], long_text: LongText, precision: str = "auto", threads: int = 0
) -> Engine:
    """Return the engine of an export; that of a merged model is lorafit's own.

    Args:
        folder: where its files lie, checked.
        form: what it is.
        fresh: modules of a merged model's head.
        long_text: what is read of longer texts.
        precision: see `Classifier.load`.
        threads: CPU threads; 0 = all cores.

    Raises:
        LorafitError: its runtime is not installed.
        EncoderError: its files can't be loaded.
    """
    where = runtime.choose(precision if form == "merged" else "fp32", threads)
    if form != "merged":
        with encoders.refusing_what_does_not_load(str(folder)):
            return backends.of_export(form, folder, where.threads, long_text)
    with encoders.refusing_what_does_not_load(str(folder)):
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    return lorafits_own(model, fresh, where, long_text)


def lorafits_own(model: torch.nn.Module, fresh: list[str], where: Runtime, long_text: LongText) -> Engine:
    """Return lorafit's own engine, which takes the model over: its frozen weights are cast, its padding is skipped."""
    adapter.speed_up(model, fresh, where)
    return backends.of_torch(model.to(where.device).eval(), where, long_text)


def batches(lengths: np.ndarray) -> Iterator[list[int]]:
    """Yield the rows of each batch, by falling length, so that what needs most memory comes first and little is padded.

    A batch has at most `TOKENS_PER_BATCH` tokens, padding included, or one text.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, TOKENS_PER_BATCH // int(lengths[order[start]]))
        yield order[start : start + size].tolist()
        start += size


def refuse_non_texts(texts: Sequence[Text], made: Manifest, before: int = 0) -> None:
    """Refuse what an adapter can't be asked about; `before` texts were counted already.

    Raises:
        DataError: names the first such text by its number.
    """
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
