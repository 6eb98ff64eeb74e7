"""Names -> adapters in service: loaded, replaced without a gap, taken out. Encoders and tokenizers are shared."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from lorafit import bundle, checks, exported, proof, tasks
from lorafit.bundle import Checked, Reader
from lorafit.data import Text
from lorafit.errors import nearest
from lorafit.predict import Classifier, refuse_non_texts
from lorafit.runtime import Runtime
from lorafit.serve.engines import Engine, OwnEncoder, SharedEncoder
from lorafit.serve.messages import AdapterInfo, Prediction, Score
from lorafit.serve.mixing import Weights
from lorafit.serve.refusals import RefusalError
from lorafit.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter in service. `alone` says why it does not share its encoder; "" if it does, or would."""

    name: str
    folder: Path
    sha256: str
    reader: Reader
    engine: Engine
    weights: Weights | None
    backend: str
    alone: str
    since: str

    @property
    def is_merged(self) -> bool:
        """Whether it is merged into an encoder that others will want to share."""
        return self.weights is None and not self.alone

    @property
    def encoder_sha256(self) -> tuple[str, str]:
        """Of the weights and the configuration of the encoder that it was trained on."""
        base = self.reader.manifest.base
        return base.sha256, base.config_sha256

    def encode(self, texts: Sequence[Text]) -> Tokens:
        """Return the tokens of texts, read as in training.

        Raises:
            DataError: something that is no text, or an empty one.
        """
        refuse_non_texts(texts, self.reader.manifest)
        return self.reader.encode(texts)

    def predictions(self, logits: np.ndarray, top_k: int | None = None) -> list[Prediction]:
        """Return the answer to each text, as `Classifier.predict` gives it."""
        made, probabilities = self.reader.manifest, self.probabilities(logits)
        decided = tasks.decide(probabilities, made.task, made.thresholds)
        found = []
        for scores, label_ids in zip(self.scores(probabilities, top_k), decided, strict=True):
            if made.task == "multi_label":
                given = [made.labels[label_id] for label_id in np.flatnonzero(label_ids)]
                found.append(Prediction(labels=given, scores=scores))
            else:
                found.append(Prediction(label=made.labels[int(label_ids)], scores=scores))
        return found

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the probability of each label, (texts, labels)."""
        return tasks.probabilities(logits, self.reader.manifest.task)

    def scores(self, values: np.ndarray, top_k: int | None = None) -> list[list[Score]]:
        """Return for each text its labels with their values, the largest first."""
        labels = self.reader.manifest.labels
        order = np.argsort(-values, axis=1, kind="stable")[:, :top_k]
        return [
            [Score(label=labels[label_id], score=float(row[label_id])) for label_id in best]
            for row, best in zip(values, order, strict=True)
        ]


class Adapters:
    """The adapters in service, by name.

    Args:
        where: device, precision and threads.
        default: the name of the one that answers where none is given.
    """

    def __init__(self, where: Runtime, default: str | None = None) -> None:
        self._where, self._default = where, default
        self._by_name: dict[str, Adapter] = {}
        self._encoders: WeakValueDictionary[str, SharedEncoder] = WeakValueDictionary()
        self._tokenizers: WeakValueDictionary[Any, Any] = WeakValueDictionary()
        self._loading = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def load(self, name: str, path: Path, backend: Path | None = None, *, merged: bool = False) -> Adapter:
        """Return an adapter, not in service yet; one is loaded at a time.

        Args:
            name: what it will be called.
            path: a run folder, an adapter folder or an export.
            backend: an export of it to run on.
            merged: merge it into its encoder, which is faster where it is the only one on it.

        Raises:
            LorafitError: see `Classifier.load`.
        """
        with self._loading:
            folder = bundle.folder_of(path)
            if backend is not None or exported.is_export(folder):
                alone = "an export has its encoder in it"
                return self._on_its_own(name, folder, backend, alone)
            if merged:
                return self._on_its_own(name, folder, None, "")
            whole = bundle.check(folder, at_hand=[encoder.files for encoder in self._encoders.values()])
            encoder = self._encoder(whole)
            if alone := encoder.why_alone(whole):
                return self._on_its_own(name, folder, None, alone)
            return Adapter(
                name=name,
                folder=folder,
                sha256=bundle.fingerprint(folder),
                reader=Reader(
                    tokenizer=self._tokenizer(whole),
                    manifest=whole.manifest,
                    token_types=encoder.token_types,
                    different_base=None,
                ),
                engine=encoder,
                weights=encoder.weights_of(whole),
                backend=self._where.precision,
                alone="",
                since=_now(),
            )

    def merged_beside(self, adapter: Adapter) -> list[Adapter]:
        """Return the adapters in service that are merged into the encoder of one that shares it."""
        if adapter.weights is None:
            return []
        others = [other for other in self._by_name.values() if other.is_merged and other.name != adapter.name]
        return [other for other in others if other.encoder_sha256 == adapter.encoder_sha256]

    def put(self, adapter: Adapter) -> bool:
        """Take an adapter into service; return whether it takes the place of one of its name.

        What that one has taken in already it still answers.
        """
        replaced = adapter.name in self._by_name
        self._by_name[adapter.name] = adapter
        return replaced

    def remove(self, name: str) -> None:
        """Take an adapter out of service; what it has taken in it still answers.

        Raises:
            RefusalError: there is none of this name.
        """
        self.find(name)
        del self._by_name[name]

    def find(self, name: str | None) -> Adapter:
        """Return the adapter of this name; without one the default, or the only one.

        Raises:
            RefusalError: 404, none of this name; 400, several and no default; 503, none at all.
        """
        names = sorted(self._by_name)
        if not names:
            raise RefusalError(503, "No adapter is in service.", {"Retry-After": "1"})
        there = f"There are: {', '.join(names)}."
        wanted = name or self._default or (names[0] if len(names) == 1 else None)
        if wanted is None:
            raise RefusalError(400, f'Say which adapter is to answer, as "adapter". {there}')
        if wanted not in self._by_name:
            raise RefusalError(404, f"There is no adapter {wanted!r}.{nearest(wanted, names)} {there}")
        return self._by_name[wanted]

    def described(self) -> list[AdapterInfo]:
        """Return what can be said of each adapter, by name."""
        return [self.describe(adapter) for _, adapter in sorted(self._by_name.items())]

    def describe(self, adapter: Adapter) -> AdapterInfo:
        """Return what can be said of one."""
        made = adapter.reader.manifest
        return AdapterInfo(
            name=adapter.name,
            default=adapter.name == self._default or (self._default is None and list(self._by_name) == [adapter.name]),
            labels=made.labels,
            task=made.task,
            text_pair=made.text_pair,
            max_tokens=made.max_tokens,
            long_text=made.long_text,
            sha256=adapter.sha256,
            encoder=made.base.name,
            backend=adapter.backend,
            alone=adapter.alone,
            since=adapter.since,
        )

    def _on_its_own(self, name: str, folder: Path, backend: Path | None, alone: str) -> Adapter:
        classifier = Classifier.load(
            folder,
            precision="auto" if backend or exported.is_export(folder) else self._where.precision,
            threads=self._where.threads,
            backend=backend,
        )
        runs = backend or folder
        return Adapter(
            name=name,
            folder=folder,
            sha256=exported.fingerprint(runs),
            reader=classifier.reader,
            engine=OwnEncoder(classifier),
            weights=None,
            backend=classifier.backend,
            alone=alone,
            since=_now(),
        )

    def _encoder(self, whole: Checked) -> SharedEncoder:
        key = f"{whole.files.sha256} {whole.files.config_sha256}"
        encoder = self._encoders.get(key)
        if encoder is None:
            self._encoders[key] = encoder = SharedEncoder(whole.files, self._where)
        return encoder

    def _tokenizer(self, whole: Checked) -> Any:
        """Return the bundle's tokenizer; one for all bundles whose tokenizer is the same, for it takes 10 MB."""
        others = {checks.CONFIG, checks.WEIGHTS, proof.FILE}
        key = frozenset((name, sha256) for name, sha256 in whole.manifest.files.items() if name not in others)
        tokenizer = self._tokenizers.get(key)
        if tokenizer is None:
            tokenizer = bundle.load_tokenizer(whole)
            if key:  # a plain PEFT directory's files have no sums
                self._tokenizers[key] = tokenizer
        checks.refuse_unfit_tokenizer(whole.folder, tokenizer, whole.files, whole.manifest)
        return tokenizer


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
