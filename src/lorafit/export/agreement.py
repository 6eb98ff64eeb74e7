"""How far an export's answers are from those of the bundle that it was made of, and whether that is near enough."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from lorafit import backends, evaluation, intervals, pipeline, predict, proof, runs, runtime, tasks
from lorafit.backends import Engine
from lorafit.bundle import Loaded
from lorafit.data import Text
from lorafit.errors import BundleError, LorafitError, LorafitWarning
from lorafit.export.convert import Samples
from lorafit.exported import Accuracy, Agreement, Form
from lorafit.runtime import Runtime
from lorafit.tokens import Tokens

TEXTS = 200
TEXTS_IN_DOUBT = 2000  # where a loss among so few as 200 may be chance
CALIBRATION_TEXTS = 100
LARGEST_LOGIT_GAP = 1e-3  # of a form in fp32
LARGEST_LOSS_POINTS = 0.5  # of one in int8: of accuracy, or where labels are unknown of texts decided otherwise
# Asked where a bundle brings no texts of its own.
_TEXTS = (
    "A film to remember.",
    "Two hours that I will not get back.",
    "The parcel came late, and it was the wrong one.",
)


@dataclass(frozen=True)
class HeldOut:
    """Texts that were not trained on, with their label ids where those are known; and others to convert by."""

    tokens: Tokens
    label_ids: np.ndarray | None
    drawn_from: str
    samples: Samples


def choose(source: Path, folder: Path, loaded: Loaded, most: int) -> HeldOut:
    """Return up to `most` of a run's test texts, and others to convert by; of an adapter alone those of its proof."""
    if (source / "run.json").is_file():
        try:
            return _of_run(source, loaded, most)
        except LorafitError as error:
            warn(f"The run's own test texts can't be asked: {error}", LorafitWarning, stacklevel=3)
    texts: Sequence[Text] = _TEXTS
    if loaded.manifest.text_pair:
        texts = [(text, text) for text in _TEXTS]
    whose = "of lorafit's own"
    if loaded.manifest.proof is not None:
        texts, whose = proof.read(folder).texts, "of the bundle's proof"
    tokens = loaded.encode_prepared(texts)
    return HeldOut(
        tokens=tokens,
        label_ids=None,
        drawn_from=f"{len(texts)} texts {whose}, which have no labels,",
        samples=Samples(tokens, tokens, loaded.tokenizer.pad_token_id),
    )


def _of_run(source: Path, loaded: Loaded, most: int) -> HeldOut:
    run = runs.open_run(source)
    found = pipeline.data_of(run)
    chance = np.random.default_rng(0)
    rows = chance.permutation(len(found.test))[:most]  # the first of them are those that fewer would be
    return HeldOut(
        tokens=loaded.encode_prepared([found.test.texts[row] for row in rows]),
        label_ids=found.test.label_ids[rows],
        drawn_from=f"{len(rows):,} of the run's {len(found.test):,} test texts",
        samples=Samples(
            calibration=loaded.encode_prepared(found.train.texts[:CALIBRATION_TEXTS]),
            validation=loaded.encode_prepared(found.validation.texts[:CALIBRATION_TEXTS]),
            pad_id=loaded.tokenizer.pad_token_id,
        ),
    )


def ask_original(loaded: Loaded, held_out: HeldOut) -> np.ndarray:
    """Return the logits of plain PEFT in fp32, the adapter not merged: (texts, labels)."""
    return predict.plain_logits(loaded.model, held_out.tokens, loaded.tokenizer.pad_token_id)


def measure(
    folder: Path, form: Form, loaded: Loaded, merged: PreTrainedModel, held_out: HeldOut, original: np.ndarray
) -> Agreement:
    """Return how an export, read back from its folder as others would, agrees with the original, and both their rates.

    Args:
        folder: of the export.
        form: what it is.
        loaded: the bundle.
        merged: its model, merged; lorafit's own engine takes it over.
        held_out: the texts.
        original: from `ask_original`.
    """
    pad_id = loaded.tokenizer.pad_token_id
    where = runtime.choose()
    with _refusing_what_fails():
        engine = _open(folder, form, loaded)
        logits, rate = _timed(engine, held_out, pad_id, f"Asking {form}")
    compared = _compared(loaded, held_out, original, logits)
    own = predict.lorafits_own(merged, loaded.fresh, where, loaded.manifest.long_text)
    _, own_rate = _timed(own, held_out, pad_id, "Asking lorafit")
    return Agreement(
        **compared,
        texts_per_second=rate,
        lorafit_texts_per_second=own_rate,
        lorafit_precision=where.precision if where.device == "cpu" else f"{where.precision} on {where.device}",
        threads=where.threads,
    )


def in_doubt(form: Form, found: Agreement) -> bool:
    """Tell whether an export in int8 lost too much of `TEXTS` texts, yet not more than chance may have made of less."""
    if not form.endswith("int8") or found.accuracy is None or found.texts < TEXTS:
        return False
    return found.accuracy.gap_points < -LARGEST_LOSS_POINTS <= found.accuracy.gap_interval[1]


def on_more_texts(found: Agreement, folder: Path, form: Form, loaded: Loaded, held_out: HeldOut) -> Agreement:
    """Return the agreement on more texts than those of `found`, which keeps its rates.

    Args:
        found: from `measure`.
        folder: of the export.
        form: what it is.
        loaded: the bundle, as it was loaded.
        held_out: the texts.
    """
    original = ask_original(loaded, held_out)
    with _refusing_what_fails():
        engine = _open(folder, form, loaded)
        logits = predict.answers(engine, held_out.tokens, loaded.tokenizer.pad_token_id, f"Asking {form}")
    return found.model_copy(update=_compared(loaded, held_out, original, logits))


@contextmanager
def _refusing_what_fails() -> Iterator[None]:
    try:
        yield
    except LorafitError:
        raise
    except Exception as error:  # runtimes raise whatever they come across
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(f"The export can't answer: {reason}. Nothing was kept.") from error


def _compared(loaded: Loaded, held_out: HeldOut, original: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    """Return what `Agreement` says of two sets of logits.

    Raises:
        BundleError: the export's are no numbers.
    """
    if not np.isfinite(logits).all():
        raise BundleError(f"The export drifts: on {held_out.drawn_from} logits are no numbers. Nothing was kept.")
    before, after = (_decided(some, loaded) for some in (original, logits))
    accuracy = None
    if held_out.label_ids is not None:
        accuracy = _accuracy(*(evaluation.right(given, held_out.label_ids) for given in (before, after)))
    return {
        "texts": len(original),
        "drawn_from": held_out.drawn_from,
        "largest_logit_gap": float(np.abs(logits - original).max()),
        "decided_otherwise": int((~evaluation.right(after, before)).sum()),
        "accuracy": accuracy,
    }


def _open(folder: Path, form: Form, loaded: Loaded) -> Engine:
    """Return what everyone has: a merged model in plain transformers, the other forms on their runtime."""
    if form != "merged":
        return predict.open_export(folder, form, loaded.fresh, loaded.manifest.long_text)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
    )
    where = Runtime("cpu", "fp32", torch.get_num_threads(), "as exported")
    return backends.of_torch(model.eval(), where, loaded.manifest.long_text)


def refuse_drift(form: Form, found: Agreement) -> None:
    """Refuse an export that answers otherwise than the original.

    Raises:
        BundleError: names the gap and the limit.
    """
    if not form.endswith("int8"):
        if found.largest_logit_gap > LARGEST_LOGIT_GAP:
            raise BundleError(
                f"The export drifts: on {found.drawn_from} its logits differ from the original's by up to "
                f"{found.largest_logit_gap:.2g}; the limit is {LARGEST_LOGIT_GAP:g}. Nothing was kept."
            )
        return
    if found.accuracy is not None:
        lost, what = -found.accuracy.gap_points, "points of accuracy are lost"
    else:
        lost, what = 100 * found.decided_otherwise / found.texts, "percent of them are decided otherwise"
    if lost > LARGEST_LOSS_POINTS:
        raise BundleError(
            f"The export drifts: on {found.drawn_from} {lost:.1f} {what}; the limit is {LARGEST_LOSS_POINTS:g}. "
            "Nothing was kept. A form in fp32 stays closer."
        )


def _timed(engine: Engine, held_out: HeldOut, pad_id: int, doing: str) -> tuple[np.ndarray, float]:
    """Return an engine's logits, and texts a second once it has seen their lengths."""
    predict.answers(engine, held_out.tokens, pad_id, "Warming up")
    start = time.perf_counter()
    logits = predict.answers(engine, held_out.tokens, pad_id, doing)
    return logits, round(len(logits) / (time.perf_counter() - start), 1)


def _decided(logits: np.ndarray, loaded: Loaded) -> np.ndarray:
    made = loaded.manifest
    return tasks.decide(tasks.probabilities(logits, made.task), made.task, made.thresholds)


def _accuracy(before: np.ndarray, after: np.ndarray) -> Accuracy:
    gap, interval = intervals.paired_gap(before, after)
    return Accuracy(
        original=float(before.mean()),
        export=float(after.mean()),
        gap_points=round(100 * gap, 6),
        gap_interval=(100 * interval[0], 100 * interval[1]),
    )
