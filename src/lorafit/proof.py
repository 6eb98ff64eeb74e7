"""The proof that a bundle is the model that was trained: a fresh process reads it back and gives the same answers.

At save the answers are compared with the trained model's, in its own precision, and every tensor bit by bit; those of
plain PEFT in fp32 are kept in `proof.json`, so that `verify` can ask again on any machine.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from peft import PeftModel
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lorafit import adapter, bundle, card, checks, manifest, predict, ranks, runtime
from lorafit.data import Text, parts
from lorafit.errors import BundleError, LorafitError, RunError
from lorafit.files import new_folder, write_text
from lorafit.manifest import Manifest, Proof
from lorafit.recipe import Data
from lorafit.runtime import Runtime
from lorafit.tokens import encode

FILE = "proof.json"
TEXTS = 32
CHARACTERS = 400  # of a text that is kept: a bundle should stay small
LONGEST_CHARACTERS = 5000  # of one of them: more than 512 tokens, so that it has to be cut
LARGEST_BYTES = 10_000_000
# Largest gap between logits that count as equal, as a share of the largest logit or of 1: in fp32 what sums in another
# order give, in bf16 one rounding.
TOLERANCE = {"fp32": 1e-5, "bf16": 2**-8}
TURNED_TOLERANCE = {"fp32": 1e-4, "bf16": 2**-4}  # the same where the base's weights were made, or rounded, anew


class Evidence(BaseModel):
    """What `proof.json` holds: texts kept out of the training, and what there was to be seen when it ended."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    texts: Annotated[list[Text], Field(min_length=1, max_length=TEXTS)]
    """Or pairs. As they were trained on: tags are taken out already."""
    tensors: Annotated[dict[str, str], Field(min_length=1)]
    """A fingerprint of each trained tensor, by its name in the PEFT model."""
    logits: list[list[float]]
    """Of plain PEFT in fp32, (texts, labels)."""

    @model_validator(mode="after")
    def _rows_are_equal(self) -> "Evidence":
        if len({len(row) for row in self.logits}) > 1:
            raise ValueError("logits are no table")
        return self


@dataclass(frozen=True)
class Answers:
    """What a bundle gives once loaded: fingerprints of its tensors, and logits as plain PEFT and as in training."""

    tensors: dict[str, str]
    logits: list[list[float]]
    logits_as_trained: list[list[float]]


def save(
    folder: Path, model: PeftModel, tokenizer: Any, made: Manifest, held_out: Sequence[Text], where: Runtime
) -> Proof:
    """Write the bundle of a trained model into `folder`, once a fresh process has proved it.

    Args:
        folder: the adapter directory; nothing stands there until all is proved.
        model: as it was trained.
        tokenizer: of the training.
        made: the manifest, without files and proof.
        held_out: texts that were not trained on, prepared as in training.
        where: device and precision of the training.

    Raises:
        BundleError: what comes back differs from the model; names the tensor.
        StorageError: a disk that is full or not writable.
    """
    texts = choose_texts(held_out)
    tokens = encode(texts, tokenizer, made.max_tokens, made.long_text)
    logits = predict.logits(model, tokens, tokenizer.pad_token_id, where, "Proving")
    tensors = fingerprints(model, adapter.trained_weights(model))
    with new_folder(folder, replace=True) as unfinished:
        bundle.write(unfinished, model, tokenizer, made)
        _write(unfinished, Evidence(texts=texts, tensors=tensors, logits=[]))
        bundle.seal(unfinished, made)
        found = _ask_fresh_process(unfinished, where)
        _refuse_other_tensors(folder, tensors, found.tensors)
        gap = _refuse_other_logits(folder, logits, np.array(found.logits_as_trained), where.precision)
        proof = Proof(texts=len(texts), gap=gap, gap_fp32=_gap(logits, np.array(found.logits)))
        proved = made.model_copy(update={"proof": proof})
        _write(unfinished, Evidence(texts=texts, tensors=tensors, logits=found.logits))
        card.write(unfinished, proved)
        bundle.seal(unfinished, proved)
    return proof


def refuse_other_answers(
    trained: torch.nn.Module,
    turned: torch.nn.Module,
    held_out: Sequence[Text],
    tokenizer: Any,
    data: Data,
    where: Runtime,
) -> None:
    """Refuse a model that was turned into another form, and answers otherwise than it did.

    Raises:
        RunError: names the gap.
    """
    tokens = encode(choose_texts(held_out), tokenizer, data.max_tokens, data.long_text)
    before, after = (
        predict.logits(model, tokens, tokenizer.pad_token_id, where, "Comparing") for model in (trained, turned)
    )
    gap, limit = _gap(before, after), TURNED_TOLERANCE[where.precision] * max(1.0, float(np.abs(before).max()))
    if not gap <= limit:
        raise RunError(
            f"The adapter, turned into an ordinary LoRA, answers otherwise: its logits differ by up to {gap:.2g}, "
            f'where {where.precision} explains {limit:.2g}. Set adapter.init = "default".'
        )


def verify(folder: Path, *, encoder: str | None = None) -> Proof:
    """Repeat the proof of a bundle: its files' hashes, its labels, every tensor, the logits in plain PEFT and fp32.

    Returns:
        The number of texts and the gaps found now; `gap` is `gap_fp32`.

    Raises:
        BundleError: says what differs; or there is no proof to repeat.

    >>> verify(Path("runs/demo/adapter")).gap < 1e-5
    True
    """
    made = checks.check(folder)
    if made is None or made.proof is None:
        raise BundleError(f"{folder} has no proof to repeat: lorafit did not make it, or did not finish it.")
    evidence = read(folder)
    loaded = bundle.load(folder, encoder=encoder)
    _refuse_other_tensors(folder, evidence.tensors, fingerprints(loaded.model, evidence.tensors))
    tokens = loaded.encode_prepared(evidence.texts)
    logits = predict.plain_logits(loaded.model, tokens, loaded.tokenizer.pad_token_id)
    gap = _refuse_other_logits(folder, np.array(evidence.logits), logits, "fp32")
    return Proof(texts=len(evidence.texts), gap=gap, gap_fp32=gap)


def read(folder: Path) -> Evidence:
    """Return what `proof.json` holds.

    Raises:
        BundleError: it can't be read.
    """
    return manifest.parse(Evidence, manifest.read_json(folder / FILE, LARGEST_BYTES), folder / FILE)


def choose_texts(held_out: Sequence[Text]) -> list[Text]:
    """Return at most 32 texts: the beginnings of the shortest, and the longest, which has to be cut."""
    *others, longest = sorted(held_out, key=lambda text: sum(map(len, parts(text))))
    return [*(_beginning(text, CHARACTERS) for text in others[: TEXTS - 1]), _beginning(longest, LONGEST_CHARACTERS)]


def _beginning(text: Text, characters: int) -> Text:
    return text[:characters] if isinstance(text, str) else (text[0][:characters], text[1][:characters])


def fingerprints(model: torch.nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return the first 16 digits of the SHA-256 of each tensor called so; a name that the model lacks is left out."""
    weights = dict(model.named_parameters())
    return {name: _digest(weights[name]) for name in names if name in weights}


def _digest(weight: torch.Tensor) -> str:
    return hashlib.sha256(weight.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def answer(folder: Path, where: Runtime) -> Answers:
    """Return what a bundle gives: first as plain PEFT in fp32 on the CPU, then on the engine of the training."""
    loaded = bundle.load(folder)
    evidence = read(folder)
    tokens = loaded.encode_prepared(evidence.texts)
    pad_id = loaded.tokenizer.pad_token_id
    tensors = fingerprints(loaded.model, evidence.tensors)
    plain = predict.plain_logits(loaded.model, tokens, pad_id)
    adapter.speed_up(loaded.model, loaded.fresh, where)
    as_trained = predict.logits(loaded.model.to(where.device), tokens, pad_id, where)
    return Answers(tensors, plain.tolist(), as_trained.tolist())


def _write(folder: Path, evidence: Evidence) -> None:
    write_text(folder / FILE, json.dumps(evidence.model_dump(), ensure_ascii=False) + "\n")


def _ask_fresh_process(folder: Path, where: Runtime) -> Answers:
    """Let a new Python process, which knows nothing of ours, load the bundle and answer.

    Raises:
        BundleError: it could not.
    """
    order = json.dumps({"folder": str(folder.resolve()), "where": runtime.as_record(where)})
    done = subprocess.run(
        [sys.executable, "-P", "-m", "lorafit.proof"],
        env={name: value for name, value in os.environ.items() if name not in ranks.VARIABLES},
        input=order,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode != 0:
        last = (done.stderr.strip() or f"it ended with code {done.returncode}").splitlines()[-1]
        raise BundleError(f"A fresh process can't read the adapter back: {last}")
    return Answers(**json.loads(done.stdout.splitlines()[-1]))


def _refuse_other_tensors(folder: Path, trained: dict[str, str], found: dict[str, str]) -> None:
    differing = [name for name in trained if trained[name] != found.get(name)]
    if differing:
        raise BundleError(
            f"{folder} does not come back as it was trained: {differing[0]} differs"
            + (f", and {len(differing) - 1} more tensors." if len(differing) > 1 else ".")
        )


def _refuse_other_logits(folder: Path, trained: np.ndarray, found: np.ndarray, precision: str) -> float:
    """Return the largest gap between two arrays of logits.

    Raises:
        BundleError: it is larger than the precision explains.
    """
    if trained.shape != found.shape:
        raise BundleError(f"{folder} gives answers of the shape {found.shape}; its proof has {trained.shape}.")
    gap, limit = _gap(trained, found), TOLERANCE[precision] * max(1.0, float(np.abs(trained).max()))
    if not gap <= limit:  # a NaN is no match either
        raise BundleError(
            f"{folder} does not answer as it was trained: its logits differ by up to {gap:.2g}, where {precision} "
            f"explains {limit:.2g}. Its tensors are the trained ones; look at the encoder underneath."
        )
    return gap


def _gap(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


def main() -> None:
    """Be the fresh process: an order as JSON on standard input, `Answers` as JSON on standard output."""
    order = json.loads(sys.stdin.read())
    try:
        found = answer(Path(order["folder"]), runtime.restore(order["where"]))
    except LorafitError as error:
        sys.exit(str(error))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    main()
