"""What any text classifier has to beat: cheap answers to the same test, trained on the same texts.

Each returns label ids for the test texts, in the form of those it was trained with. "majority" and "tfidf" stand beside
every evaluation; "frozen" and "full" are made on request.
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers.modeling_outputs import SequenceClassifierOutput

from lorafit import encoders, evaluation, padfree, predict, tasks, training
from lorafit.errors import LorafitWarning, RecipeError, nearest
from lorafit.prepared import Prepared
from lorafit.recipe import Recipe
from lorafit.runtime import Runtime
from lorafit.trainer import OnBatch

ALWAYS = ("majority", "tfidf")
ON_REQUEST = ("frozen", "full")
DESCRIBED = {
    "majority": "the majority class",
    "tfidf": "TF-IDF with logistic regression",
    "frozen": "the frozen encoder with logistic regression",
    "full": "full fine-tuning",
}
FULL_LEARNING_RATE = 3e-5  # in the middle of what Devlin et al. 2019 (arXiv:1810.04805, A.3) chose from, 2e-5 to 5e-5
_INVERSE_STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # of ties, the first
_TEXTS_FOR_RARE_WORDS = 1000  # with fewer, a word that stands in one text only may be all there is


def refuse_unknown(names: Sequence[str]) -> None:
    """Refuse a baseline that there is none of.

    Raises:
        RecipeError: names it, and those there are.
    """
    for name in names:
        if name not in (*ALWAYS, *ON_REQUEST):
            raise RecipeError(
                f"There is no baseline {name!r}; on request there are {' and '.join(ON_REQUEST)}."
                f"{nearest(name, ON_REQUEST)}"
            )


def answer(name: str, recipe: Recipe, found: Prepared, where: Runtime) -> np.ndarray:
    """Return the label ids that a baseline gives the test texts, trained on the training texts.

    Args:
        name: of `ALWAYS` or `ON_REQUEST`.
        recipe: what the baseline is beside; its class weights hold for the baseline too.
        found: the recipe's data.
        where: device and precision, for those that ask the encoder.

    >>> answer("tfidf", recipe, pipeline.prepare(recipe), runtime.choose())
    """
    balanced, train, test = recipe.training.class_weights == "balanced", found.train, found.test
    if name == "majority":
        return majority(train.label_ids, len(test))
    if name == "tfidf":
        return tfidf(train.texts, train.label_ids, test.texts, balanced=balanced)
    if name == "frozen":
        return frozen(recipe, found, where)
    return full(recipe, found, where)


def majority(label_ids: np.ndarray, texts: int) -> np.ndarray:
    """Return the commonest label, or set of labels, for each of so many texts.

    >>> majority(np.array([0, 1, 1]), texts=2).tolist()
    [1, 1]
    """
    kinds, counts = np.unique(label_ids, axis=0, return_counts=True)
    return np.repeat(kinds[counts.argmax()][None], texts, axis=0)


def tfidf(
    texts: Sequence[Any], label_ids: np.ndarray, test_texts: Sequence[Any], *, balanced: bool = False
) -> np.ndarray:
    """Return the answers of logistic regression on TF-IDF of words and of two words in a row.

    Wang and Manning 2012 (aclanthology.org/P12-2018) show how hard that is to beat. Of pairs of texts, the features of
    both stand side by side. Nothing in it is tuned: C is 10.

    Args:
        texts: the training texts, strings or pairs of strings.
        label_ids: theirs.
        test_texts: the texts to answer.
        balanced: rare labels count as much as common ones.

    >>> tfidf(["good", "bad"], np.array([1, 0]), ["good"]).tolist()
    [1]
    """
    sides = [_features(*side) for side in zip(_sides(texts), _sides(test_texts), strict=True)]
    train, test = (csr_array(hstack(matrices)) for matrices in zip(*sides, strict=True))
    return _answers(_regression(10.0, balanced), train, label_ids, test)


def frozen(recipe: Recipe, found: Prepared, where: Runtime) -> np.ndarray:
    """Return the answers of logistic regression on what the head would read of the encoder as it comes.

    That is each text's first token, the mean of its tokens, or what the encoder's own trained pooler makes of it. The
    strength of the regression's penalty is chosen on validation.
    """
    files = encoders.locate(recipe.encoder.name)
    encoder = encoders.of_recipe(recipe, files, found.labels, found.task)
    pad_id = encoders.load_tokenizer(files.folder, files.name).pad_token_id
    model = _Features(encoder).to(where.device, where.base_dtype)
    padfree.enable(model)
    train, validation, test = (
        predict.logits(model, split.tokens, pad_id, where, "Reading") for split in found.splits.values()
    )
    balanced = recipe.training.class_weights == "balanced"

    def answers(inverse_strength: float, features: np.ndarray) -> np.ndarray:
        regression = make_pipeline(StandardScaler(), _regression(inverse_strength, balanced))
        return _answers(regression, train, found.train.label_ids, features)

    def accuracy(inverse_strength: float) -> float:
        truth = found.validation.label_ids
        return float(evaluation.right(answers(inverse_strength, validation), truth).mean())

    return answers(max(_INVERSE_STRENGTHS, key=accuracy), test)


def full(recipe: Recipe, found: Prepared, where: Runtime) -> np.ndarray:
    """Return the answers of the same encoder with all its weights trained: the recipe's own, but for the learning rate.

    The rate is `FULL_LEARNING_RATE`, and the weights stay in fp32. The best epoch is chosen on validation, as it is for
    the adapter.
    """
    files = encoders.locate(recipe.encoder.name)
    pad_id = encoders.load_tokenizer(files.folder, files.name).pad_token_id
    model = encoders.of_recipe(recipe, files, found.labels, found.task).model
    padfree.enable(model)
    settings = recipe.training.model_copy(
        update={"learning_rate": FULL_LEARNING_RATE, "lora_plus_ratio": 1.0, "report_to": [], "thresholds": "none"}
    )

    def validate(trained: torch.nn.Module, on_batch: OnBatch) -> dict[str, float]:
        logits = predict.logits(trained, found.validation.tokens, pad_id, where, "Validating", on_batch)
        return asdict(evaluation.score(logits, found.validation.label_ids))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LorafitWarning)  # the guards speak of what LoRA needs
        training.fit(
            model,
            found.train.tokens,
            found.train.label_ids,
            settings,
            validate=validate,
            validation_label_ids=found.validation.label_ids,
            log=lambda _line: None,
            folder=None,
            pad_id=pad_id,
            where=where,
            seed=recipe.seed,
        )
    task = tasks.task_of(found.test.label_ids)
    return tasks.decide(tasks.probabilities(predict.logits(model, found.test.tokens, pad_id, where), task), task)


class _Features(torch.nn.Module):
    """An encoder whose logits are what a head would read."""

    def __init__(self, encoder: encoders.Encoder) -> None:
        super().__init__()
        self.encoder = encoder.model.base_model
        self.own_pooler = "pooler" not in encoder.fresh

    def forward(self, **inputs: torch.Tensor) -> SequenceClassifierOutput:
        """Return the features, (texts, width), as `logits`."""
        output = self.encoder(**inputs)
        pooled = output.get("pooler_output") if self.own_pooler else None
        return SequenceClassifierOutput(logits=output["last_hidden_state"][:, 0] if pooled is None else pooled)


def _sides(texts: Sequence[Any]) -> list[tuple[str, ...]]:
    """Return all first and all second texts of pairs; of single texts, one side."""
    return [tuple(texts)] if isinstance(texts[0], str) else list(zip(*texts, strict=True))


def _features(texts: Sequence[str], test_texts: Sequence[str]) -> tuple[Any, Any]:
    """Return TF-IDF of both, (texts, words); of training texts that hold no word at all, one column of zeros."""
    for fewest_texts in (2, 1) if len(texts) >= _TEXTS_FOR_RARE_WORDS else (1,):
        vectorizer = TfidfVectorizer(
            ngram_range=(1, 2),
            sublinear_tf=True,
            min_df=fewest_texts,
            token_pattern=r"\w+|[^\w\s]",  # scikit-learn's own finds no word in "5 :)"
        )
        try:
            return vectorizer.fit_transform(texts), vectorizer.transform(test_texts)
        except ValueError:  # no word stands in as many texts
            continue
    return csr_array((len(texts), 1)), csr_array((len(test_texts), 1))


def _regression(inverse_strength: float, balanced: bool) -> LogisticRegression:
    return LogisticRegression(
        C=inverse_strength,
        class_weight="balanced" if balanced else None,
        solver="newton-cg",  # lbfgs stops half-way on such features, or takes ten times as long
        max_iter=200,
    )


def _answers(model: Any, features: Any, label_ids: np.ndarray, test_features: Any) -> np.ndarray:
    if label_ids.ndim == 2:
        model = OneVsRestClassifier(model)
    return np.asarray(model.fit(features, label_ids).predict(test_features)).astype(np.int64)
