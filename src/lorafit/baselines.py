"""What any text classifier has to beat: cheap answers to the same test, trained on the same texts.

"majority" and "tfidf" stand beside every evaluation; "frozen" and "full" are made on request. All but "majority" give
probabilities, from which labels are decided as the adapter's are: by thresholds of its own where the recipe asks for
some, or the comparison would be unfair.
"""

import warnings
from collections.abc import Callable, Sequence
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

from lorafit import calibration, encoders, evaluation, padfree, predict, tasks, training
from lorafit.errors import LorafitWarning, RecipeError, nearest
from lorafit.prepared import Prepared, Split
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
        recipe: what the baseline is beside; its class weights hold for the baseline too, and so do its thresholds: the
            baseline's own are fitted on validation.
        found: the recipe's data.
        where: device and precision, for those that ask the encoder.

    >>> answer("tfidf", recipe, pipeline.prepare(recipe), runtime.choose())
    """
    if name == "majority":
        return majority(found.train.label_ids, len(found.test))
    probabilities = _trained(name, recipe, found, where)
    thresholds = None
    if recipe.training.thresholds == "f1":
        thresholds = calibration.fit_thresholds(probabilities(found.validation), found.validation.label_ids)
    return tasks.decide(probabilities(found.test), found.task, thresholds)


def _trained(name: str, recipe: Recipe, found: Prepared, where: Runtime) -> Callable[[Split], np.ndarray]:
    """Return what gives the texts of a split the probability of each label, (texts, labels)."""
    if name == "tfidf":
        balanced = recipe.training.class_weights == "balanced"
        probabilities = tfidf(found.train.texts, found.train.label_ids, balanced=balanced)
        return lambda split: probabilities(split.texts)
    return frozen(recipe, found, where) if name == "frozen" else full(recipe, found, where)


def majority(label_ids: np.ndarray, texts: int) -> np.ndarray:
    """Return the commonest label, or set of labels, for each of so many texts.

    >>> majority(np.array([0, 1, 1]), texts=2).tolist()
    [1, 1]
    """
    kinds, counts = np.unique(label_ids, axis=0, return_counts=True)
    return np.repeat(kinds[counts.argmax()][None], texts, axis=0)


def tfidf(
    texts: Sequence[Any], label_ids: np.ndarray, *, balanced: bool = False
) -> Callable[[Sequence[Any]], np.ndarray]:
    """Return what gives texts probabilities, (texts, labels): logistic regression on TF-IDF of words and word pairs.

    Wang and Manning 2012 (aclanthology.org/P12-2018) show how hard that is to beat. Of pairs of texts, the features of
    both stand side by side. Nothing in it is tuned: C is 10.

    Args:
        texts: the training texts, strings or pairs of strings.
        label_ids: theirs.
        balanced: rare labels count as much as common ones.

    >>> tfidf(["good", "bad"], np.array([1, 0]))(["good"]).argmax(axis=1).tolist()
    [1]
    """
    features, of_others = zip(*map(_features, _sides(texts)), strict=True)
    probabilities = _fitted(_regression(10.0, balanced), csr_array(hstack(features)), label_ids)

    def answers(asked: Sequence[Any]) -> np.ndarray:
        sides = zip(of_others, _sides(asked), strict=True)
        return probabilities(csr_array(hstack([of_side(side) for of_side, side in sides])))

    return answers


def frozen(recipe: Recipe, found: Prepared, where: Runtime) -> Callable[[Split], np.ndarray]:
    """Return what gives splits probabilities: logistic regression on what the head would read of the encoder as it is.

    That is each text's first token, the mean of its tokens, or what the encoder's own trained pooler makes of it. The
    strength of the regression's penalty is chosen on validation, by accuracy.
    """
    files = encoders.locate(recipe.encoder.name)
    encoder = encoders.of_recipe(recipe, files, found.labels, found.task)
    pad_id = encoders.load_tokenizer(files.folder, files.name).pad_token_id
    model = _Features(encoder).to(where.device, where.base_dtype)
    padfree.enable(model)

    def features(split: Split) -> np.ndarray:
        return predict.logits(model, split.tokens, pad_id, where, "Reading")

    train, validation = features(found.train), features(found.validation)
    balanced = recipe.training.class_weights == "balanced"
    candidates = [
        _fitted(make_pipeline(StandardScaler(), _regression(strength, balanced)), train, found.train.label_ids)
        for strength in _INVERSE_STRENGTHS
    ]

    def accuracy(probabilities: Callable[[Any], np.ndarray]) -> float:
        given = tasks.decide(probabilities(validation), found.task)
        return float(evaluation.right(given, found.validation.label_ids).mean())

    best = max(candidates, key=accuracy)
    return lambda split: best(features(split))


def full(recipe: Recipe, found: Prepared, where: Runtime) -> Callable[[Split], np.ndarray]:
    """Return what gives splits probabilities: the same encoder with all its weights trained.

    The settings are the recipe's own, but for the learning rate, which is `FULL_LEARNING_RATE`; the weights stay in
    fp32. The best epoch is chosen on validation, as it is for the adapter.
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
    return lambda split: tasks.probabilities(predict.logits(model, split.tokens, pad_id, where), found.task)


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


def _features(texts: Sequence[str]) -> tuple[Any, Callable[[Sequence[str]], Any]]:
    """Return TF-IDF of training texts, (texts, words), and what makes it of others.

    Of training texts that hold no word at all, it is one column of zeros.
    """
    for fewest_texts in (2, 1) if len(texts) >= _TEXTS_FOR_RARE_WORDS else (1,):
        vectorizer = TfidfVectorizer(
            ngram_range=(1, 2),
            sublinear_tf=True,
            min_df=fewest_texts,
            token_pattern=r"\w+|[^\w\s]",  # scikit-learn's own finds no word in "5 :)"
        )
        try:
            return vectorizer.fit_transform(texts), vectorizer.transform
        except ValueError:  # no word stands in as many texts
            continue
    return csr_array((len(texts), 1)), lambda others: csr_array((len(others), 1))


def _regression(inverse_strength: float, balanced: bool) -> LogisticRegression:
    return LogisticRegression(
        C=inverse_strength,
        class_weight="balanced" if balanced else None,
        solver="newton-cg",  # lbfgs stops half-way on such features, or takes ten times as long
        max_iter=200,
    )


def _fitted(model: Any, features: Any, label_ids: np.ndarray) -> Callable[[Any], np.ndarray]:
    """Return what gives features, (texts, features), the probability of each label, (texts, labels)."""
    if label_ids.ndim == 2:
        model = OneVsRestClassifier(model)
    probabilities: Callable[[Any], np.ndarray] = model.fit(features, label_ids).predict_proba
    return probabilities
