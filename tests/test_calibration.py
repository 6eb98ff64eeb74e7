"""A known temperature is found again, calibration errors agree with scikit-learn, thresholds with brute force; and what
was fitted reaches plain PEFT.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification

from lorafit import (
    Classifier,
    adapter,
    calibration,
    families,
    intervals,
    manifest,
    pipeline,
    predict,
    proof,
    tasks,
)
from lorafit.errors import EncoderError, RecipeError
from tests.conftest import texts_and_labels, write_csv
from tests.small_encoders import CONFIGS, batch
from tests.test_families import classifier_of

pytestmark = pytest.mark.usefixtures("proved_in_this_process")


def drawn(texts: int, labels: int, task: str = "single_label", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that say the truth, and label ids drawn from their probabilities."""
    chance = np.random.default_rng(seed)
    logits = 2 * chance.normal(size=(texts, labels))
    odds = tasks.probabilities(logits, task)  # type: ignore[arg-type]
    if task == "multi_label":
        return logits, (chance.random(odds.shape) < odds).astype(np.int64)
    return logits, np.array([chance.choice(labels, p=row) for row in odds])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(("labels", "task"), [(2, "single_label"), (20, "single_label"), (6, "multi_label")])
def test_a_known_temperature_is_found_again(labels: int, task: str, temperature: float) -> None:
    logits, label_ids = drawn(5000, labels, task)
    assert calibration.fit_temperature(logits * temperature, label_ids) == pytest.approx(temperature, rel=0.05)


def test_on_300_texts_it_is_off_by_chance_more_than_by_our_doubt() -> None:
    found = [
        calibration.fit_temperature(2 * drawn(300, 2, seed=seed)[0], drawn(300, 2, seed=seed)[1]) for seed in range(40)
    ]
    assert abs(np.mean(found) - 2) < np.std(found) / 2


def separated(margin: float, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Return logits of 300 texts that are all on the right side, about as far from the other one."""
    chance = np.random.default_rng(0)
    label_ids = np.eye(2, dtype=np.int64)[chance.integers(2, size=300)]
    logits = (2 * label_ids - 1) * margin * chance.uniform(0.8, 1.2, size=(300, 1))
    return (logits, label_ids) if task == "multi_label" else (logits / 2, label_ids.argmax(axis=1))


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
@pytest.mark.parametrize("margin", [0.5, 4.0])
def test_where_all_texts_are_right_probabilities_get_as_sure_as_so_few_texts_allow(margin: float, task: str) -> None:
    """300 texts without an error do not show that there is none in a million."""
    logits, label_ids = separated(margin, task)
    temperature = calibration.fit_temperature(logits, label_ids)
    found = tasks.probabilities(logits / temperature, tasks.task_of(label_ids))
    assert found.max(axis=1).mean() == pytest.approx(1 - 1 / (label_ids.size + 2), rel=1e-3)
    assert 1e-5 < found.min() < found.max() < 1 - 1e-5
    assert calibration.COLDEST < temperature < 1


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_a_temperature_that_lowers_no_loss_is_not_used(task: str) -> None:
    assert calibration.fit_temperature(*separated(40.0, task)) == 1
    logits, label_ids = separated(40.0, task)
    assert calibration.fit_temperature(np.zeros_like(logits), label_ids) == 1


def test_logits_that_are_worse_than_chance_end_at_the_limit() -> None:
    logits, label_ids = drawn(500, 2)
    assert calibration.fit_temperature(-logits, label_ids) == pytest.approx(calibration.HOTTEST, rel=1e-4)


def test_the_loss_is_the_one_of_training() -> None:
    for task in ("single_label", "multi_label"):
        logits, label_ids = drawn(50, 4, task)
        fitted = calibration.fit(3 * logits, label_ids)
        ids = torch.from_numpy(label_ids)
        assert fitted.loss_before == pytest.approx(tasks.loss(torch.from_numpy(3 * logits), ids).item())
        cooled = torch.from_numpy(3 * logits / fitted.temperature)
        assert fitted.loss == pytest.approx(tasks.loss(cooled, ids).item())
        assert fitted.loss < fitted.loss_before
        assert fitted.thresholds is None


def test_what_was_fitted_is_said_in_a_line() -> None:
    assert str(calibration.Calibration(1.3712, None, 0.3012, 0.2841)) == (
        "temperature 1.37 (validation loss 0.301 -> 0.284)"
    )
    assert str(calibration.Calibration(1.0, [0.31, 0.5, 0.6], 0.3, 0.3)).endswith("thresholds from 0.31 to 0.6")


def test_the_calibration_error_by_hand() -> None:
    """Two texts at 0.9 of which one is right, two at 0.6 that are right: (2 x 0.4 + 2 x 0.4) / 4."""
    odds = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.4, 0.6]])
    label_ids = np.array([0, 0, 0, 1])
    assert calibration.reliability(odds, label_ids, bins=10) == [
        {"confidence": pytest.approx(0.6), "accuracy": 1.0, "count": 2},
        {"confidence": pytest.approx(0.9), "accuracy": 0.5, "count": 2},
    ]
    assert calibration.expected_calibration_error(odds, label_ids, bins=10) == pytest.approx(0.4)
    several = np.array([[1, 0], [0, 0]])  # 0.9 there, 0.1 not, 0.1 not, 0.9 not
    assert calibration.expected_calibration_error(odds[:2], several) == pytest.approx((2 * 0.1 + 2 * 0.4) / 4)


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_the_bins_are_those_of_scikit_learn(task: str) -> None:
    logits, label_ids = drawn(2000, 3, task)
    odds = tasks.probabilities(3 * logits, tasks.task_of(label_ids))
    right, sure = (odds.argmax(axis=1) == label_ids, odds.max(axis=1)) if task == "single_label" else (label_ids, odds)
    accuracy, confidence = calibration_curve(right.ravel(), sure.ravel(), n_bins=15)
    rows = calibration.reliability(odds, label_ids)
    np.testing.assert_allclose([row["accuracy"] for row in rows], accuracy)
    np.testing.assert_allclose([row["confidence"] for row in rows], confidence)
    assert sum(row["count"] for row in rows) == right.size


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_the_calibration_error_is_that_of_the_bins(task: str) -> None:
    logits, label_ids = drawn(500, 3, task)
    odds = tasks.probabilities(2 * logits, tasks.task_of(label_ids))
    rows = calibration.reliability(odds, label_ids)
    gaps = [row["count"] * abs(row["accuracy"] - row["confidence"]) for row in rows]
    found = calibration.expected_calibration_error(odds, label_ids)
    assert found == pytest.approx(sum(gaps) / sum(row["count"] for row in rows))
    low, high = calibration.error_interval(odds, label_ids)
    assert low < found < high


def test_the_interval_of_the_calibration_error_by_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals.bootstrap, "__kwdefaults__", {"resamples": 100, "seed": 0})
    logits, label_ids = drawn(60, 2)
    odds = tasks.probabilities(3 * logits, "single_label")
    (counts,) = intervals._resampled(60, 100, seed=0)
    rows = [np.repeat(np.arange(60), drawn_.astype(int)) for drawn_ in counts.T]
    errors = [calibration.expected_calibration_error(odds[row], label_ids[row]) for row in rows]
    error = calibration.expected_calibration_error(odds, label_ids)
    low, high = calibration.error_interval(odds, label_ids)
    assert high == pytest.approx(max(error, 2 * error - np.quantile(errors, 0.025)))
    assert 0 <= low < error - (np.quantile(errors, 0.975) - error)


@pytest.mark.parametrize(("overconfidence", "true_error"), [(1.0, 0.0), (1.2, 0.0270), (2.5, 0.1165)])
def test_the_interval_covers_the_true_calibration_error_about_as_often_as_it_says(
    overconfidence: float, true_error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that is calibrated too, where the percentiles of the bootstrap never do."""
    monkeypatch.setattr(intervals.bootstrap, "__kwdefaults__", {"resamples": 200, "seed": 0})
    random, covered = np.random.default_rng(0), []
    for _ in range(300):
        margin = 2 * random.normal(size=300)
        label_ids = (
            random.random(300) < tasks.probabilities(np.column_stack([0 * margin, margin]), "single_label")[:, 1]
        )
        odds = tasks.probabilities(np.column_stack([0 * margin, overconfidence * margin]), "single_label")
        low, high = calibration.error_interval(odds, label_ids.astype(int))
        covered.append(low <= true_error <= high)
    assert 0.92 < np.mean(covered) < 0.995


@pytest.mark.parametrize(("labels", "task"), [(2, "single_label"), (5, "single_label"), (4, "multi_label")])
def test_the_calibration_error_of_an_overconfident_model_falls_on_texts_that_were_not_fitted_on(
    labels: int, task: str
) -> None:
    logits, label_ids = drawn(3300, labels, task)
    temperature = calibration.fit_temperature(3 * logits[:300], label_ids[:300])
    before, after = (
        calibration.expected_calibration_error(tasks.probabilities(of, tasks.task_of(label_ids)), label_ids[300:])
        for of in (3 * logits[300:], 3 * logits[300:] / temperature)
    )
    assert before > 0.08
    assert after < before / 3


def macro_f1(odds: np.ndarray, label_ids: np.ndarray, thresholds: list[float]) -> float:
    given = tasks.decide(odds, tasks.task_of(label_ids), thresholds)
    return float(f1_score(label_ids, given, average="macro", zero_division=0))


@pytest.mark.parametrize("seed", range(2))
def test_no_thresholds_have_a_better_macro_f1_on_validation(seed: int) -> None:
    grid = np.linspace(0.0025, 0.9975, 200)
    logits, label_ids = drawn(60, 2, seed=seed)
    logits[:, 0] += 1.5  # the second label is rare, and given too seldom
    odds = tasks.probabilities(logits, "single_label")
    found = calibration.fit_thresholds(odds, label_ids)
    assert found[0] + found[1] == pytest.approx(1)
    assert macro_f1(odds, label_ids, found) >= max(macro_f1(odds, label_ids, [1 - t, t]) for t in grid)
    logits, label_ids = drawn(60, 3, "multi_label", seed=seed)
    odds = tasks.probabilities(logits - 1, "multi_label").round(2)  # equal ones too
    found = calibration.fit_thresholds(odds, label_ids)
    for label in range(3):  # their macro F1 is the mean of what each has alone
        alone = [f1_score(label_ids[:, label], odds[:, label] >= t, zero_division=0) for t in grid]
        mine = f1_score(label_ids[:, label], odds[:, label] >= found[label], zero_division=0)
        assert mine == pytest.approx(max(alone))


def test_thresholds_lie_between_0_and_1_and_a_label_that_nobody_has_keeps_a_half() -> None:
    odds = np.array([[1.0, 0.0, 0.9], [1.0, 1.0, 0.8], [0.0, 1e-9, 0.7]])
    label_ids = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 0]])
    found = calibration.fit_thresholds(odds, label_ids)
    assert all(0 < threshold < 1 for threshold in found)
    assert all(round(threshold, 6) == threshold for threshold in found)
    assert found[2] == 0.5
    assert calibration.fit_thresholds(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])) == [0.55, 0.45]


@pytest.mark.parametrize("family", CONFIGS)
def test_a_folded_temperature_divides_the_logits_and_changes_nothing_else(family: str) -> None:
    model = adapter.attach(classifier_of(family), targets="attention", fresh=families.FAMILIES[family].head).eval()
    trained = set(adapter.trained_weights(model))
    for name, weight in model.named_parameters():
        if name in trained:
            torch.nn.init.normal_(weight, std=0.2)
    inputs = {name: tensor for name, tensor in batch().items() if name != "labels"}
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with torch.inference_mode():
        before, base = model(**inputs).logits, _base_logits(model, inputs)
        adapter.fold_temperature(model, 1.7)
        torch.testing.assert_close(model(**inputs).logits, before / 1.7, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(_base_logits(model, inputs), base, atol=0, rtol=0)
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, weights[name])}
    assert len(changed) == 2
    assert changed < trained


def _base_logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with model.disable_adapter():
        return torch.Tensor(model(**inputs).logits)


@pytest.mark.parametrize("family", ["roberta", "deberta-v2", "distilbert", "modernbert"])
def test_of_two_layers_that_are_as_wide_as_there_are_labels_the_last_is_folded(family: str) -> None:
    config = CONFIGS[family]()
    config.num_labels = 64
    model = AutoModelForSequenceClassification.from_config(config)
    model = adapter.attach(model, targets="attention", fresh=families.FAMILIES[family].head).eval()
    inputs = {name: tensor for name, tensor in batch().items() if name != "labels"}
    with torch.inference_mode():
        before = model(**inputs).logits
        adapter.fold_temperature(model, 0.4)
        torch.testing.assert_close(model(**inputs).logits, before / 0.4, atol=1e-5, rtol=1e-5)


def test_a_head_without_a_layer_that_gives_the_labels_is_refused() -> None:
    model = adapter.attach(classifier_of("bert"))
    model.get_base_model().config.num_labels = 5
    before = adapter.trained_weights(model)
    with pytest.raises(EncoderError) as error:
        adapter.fold_temperature(model, 2.0)
    assert str(error.value).startswith(
        "The head of this encoder (bert) has no linear layer that gives its 5 labels, so that no temperature can be "
        "folded into it. Set encoder.name to an encoder of a family that lorafit knows: bert, roberta, "
    )
    assert all(torch.equal(weight, before[name]) for name, weight in adapter.trained_weights(model).items())


@pytest.fixture(scope="module")
def overconfident(tiny_recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Build recipes of a training whose labels are wrong for every sixth text, which it learns by heart."""
    texts, labels = texts_and_labels(200)
    wrong = [1 - label if number % 6 == 0 else label for number, label in enumerate(labels)]
    noisy = write_csv(tmp_path_factory.mktemp("noisy") / "noisy.csv", texts, list(wrong))

    def build(**adapter: Any) -> Any:
        settings = {"thresholds": "f1", "threads": 1, "epochs": 6}
        return tiny_recipe(data={"source": str(noisy)}, training=settings, adapter=adapter)

    return build


@pytest.mark.filterwarnings("ignore:After epoch")
@pytest.mark.parametrize("init", ["default", "pissa"])
def test_what_is_fitted_on_validation_reaches_the_bundle_and_plain_peft_once(
    init: str,
    overconfident: Callable[..., Any],
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    made, save = overconfident(init=init), proof.save

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(proof, "save", die)
    with pytest.raises(KeyboardInterrupt):  # when the temperature is in the head already
        pipeline.train(made, tmp_path / "run")
    monkeypatch.setattr(proof, "save", save)
    run = pipeline.resume(tmp_path / "run")
    assert f"\nCalibrated: temperature {run.record['temperature']:.3g} (validation loss " in capfd.readouterr().err
    bundle = manifest.read(run.adapter)
    assert bundle.temperature == run.record["temperature"]
    assert abs(bundle.temperature - 1) > 0.05
    assert proof.verify(run.adapter).gap <= 1e-5

    held_out = pipeline.prepare(made).validation
    ours = Classifier.load(run.path, precision="fp32")
    base = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=2)
    plain = predict.plain_logits(PeftModel.from_pretrained(base, run.adapter).eval(), held_out.tokens, 0)
    calibrated = tasks.probabilities(plain, "single_label")
    np.testing.assert_allclose(ours.probabilities(held_out.texts), calibrated, atol=1e-5)
    before = run.validations[run.record["best_epoch"]]["validation"]["loss"]
    found = calibration.fit(plain * bundle.temperature, held_out.label_ids, thresholds=True)
    assert found.loss_before == pytest.approx(before, abs=1e-4)  # so the head holds it, and once
    assert found.loss == pytest.approx(run.record["calibrated_validation_loss"], abs=1e-4)
    assert found.loss < found.loss_before
    assert bundle.thresholds == pytest.approx(found.thresholds, abs=1e-3)


def test_thresholds_for_one_of_many_labels_are_refused_before_training(
    tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    texts, _ = texts_and_labels(200)
    three = write_csv(tmp_path / "three.csv", texts, ["abc"[number % 3] for number in range(200)])
    with pytest.raises(RecipeError) as error:
        pipeline.plan(tiny_recipe(data={"source": str(three)}, training={"thresholds": "f1"}))
    assert str(error.value) == (
        'training.thresholds = "f1" is for two labels, or for several labels a text; here a text has one of 3, and '
        'gets the most probable one. Set training.thresholds = "none".'
    )
