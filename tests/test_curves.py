"""ROC and precision-recall curves: their areas and intervals against scikit-learn, resample by resample."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from lorafit import curves, intervals, tasks
from lorafit.manifest import Task

TASKS = ("single_label", "multi_label")


def answered(
    task: str, n: int = 300, labels: int = 4, signal: float = 1.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return probabilities, label ids and names; the probabilities are rounded, so that some are level."""
    random = np.random.default_rng(seed)
    if task == "multi_label":
        label_ids = random.integers(0, 2, (n, labels))
    else:
        label_ids = random.permutation(np.arange(n) % labels)
    logits = random.normal(size=(n, labels)) + signal * tasks.one_hot(label_ids, labels)
    probabilities = tasks.probabilities(logits, tasks.task_of(label_ids)).round(2)
    return probabilities, label_ids, [f"label {number}" for number in range(labels)]


def test_curves_are_thinned_but_their_areas_are_whole() -> None:
    probabilities, label_ids, labels = answered("single_label", n=5000, labels=2)
    probabilities = probabilities + np.random.default_rng(1).normal(size=probabilities.shape) / 1000
    found = curves.curves(probabilities, label_ids, labels)["curves"]
    for number, label in enumerate(labels):
        roc, pr = found[label]["roc"], found[label]["pr"]
        assert roc["auc"] == pytest.approx(roc_auc_score(label_ids == number, probabilities[:, number]))
        average = average_precision_score(label_ids == number, probabilities[:, number])
        assert pr["average_precision"] == pytest.approx(average)
        assert len(roc["fpr"]) == len(roc["tpr"]) == 102  # that of no false alarm twice: the line up from 0
        assert len(pr["recall"]) == len(pr["precision"]) == 101
        assert (roc["fpr"][0], roc["fpr"][-1], pr["recall"][0], pr["recall"][-1]) == (0, 1, 1, 0)
        assert np.trapezoid(roc["tpr"], roc["fpr"]) == pytest.approx(roc["auc"], abs=0.01)
        steps = -np.diff(pr["recall"]) @ pr["precision"][:-1]
        assert steps == pytest.approx(pr["average_precision"], abs=0.01)


@pytest.mark.parametrize("missed", [0, 1])
def test_the_curves_of_a_rare_label_have_the_areas_they_name(missed: int) -> None:
    """Of 270 texts two have it: all but a few of the curve's points stand where recall is 1."""
    label_ids = np.zeros(270, dtype=int)
    label_ids[[0, 1 + missed]] = 1  # first and second by probability, or first and third
    odds = np.linspace(0.99, 0.01, 270)
    found = curves.curves(np.column_stack([1 - odds, odds]), label_ids, ["common", "rare"])["curves"]["rare"]
    roc, pr = found["roc"], found["pr"]
    assert pr["average_precision"] == pytest.approx(5 / 6 if missed else 1.0)
    assert -np.diff(pr["recall"]) @ pr["precision"][:-1] == pytest.approx(pr["average_precision"], abs=0.005)
    assert np.trapezoid(roc["tpr"], roc["fpr"]) == pytest.approx(roc["auc"], abs=0.005)


def test_a_label_without_texts_has_no_curve() -> None:
    flat, all_one = np.full((4, 3), 1 / 3), np.zeros(4, dtype=int)
    assert set(curves.curves(flat, np.array([0, 1, 0, 1]), ["a", "b", "c"])["curves"]) == {"a", "b"}
    assert curves.curves(flat, all_one, ["a", "b", "c"]) == {"curves": {}, "macro_curves": None}


@pytest.mark.parametrize("task", TASKS)
def test_the_areas_of_a_resample_are_those_of_scikit_learn(task: Task) -> None:
    probabilities, label_ids, _ = answered(task, n=80)
    truth = tasks.one_hot(label_ids, 4) == 1
    counts = next(intervals._resampled(80, 50, seed=0))
    for of_label, has in zip(probabilities.T, truth.T, strict=True):
        assert len(np.unique(of_label)) < 80  # some are level
        areas, averages = curves.Ranking(has, of_label).areas(counts)
        for area, average, weights in zip(areas, averages, counts.T, strict=True):
            assert area == pytest.approx(roc_auc_score(has, of_label, sample_weight=weights))
            assert average == pytest.approx(average_precision_score(has, of_label, sample_weight=weights))


@pytest.mark.parametrize("task", TASKS)
def test_intervals_of_areas_and_of_their_mean_are_percentiles_over_the_resamples(task: Task) -> None:
    probabilities, label_ids, labels = answered(task, n=80)
    truth = tasks.one_hot(label_ids, 4) == 1
    (counts,) = intervals._resampled(80, intervals.RESAMPLES, seed=0)
    areas = np.stack(
        [curves.Ranking(has, odds).areas(counts) for has, odds in zip(truth.T, probabilities.T, strict=True)]
    )
    found = curves.curves(probabilities, label_ids, labels)
    for one, (area, average) in zip(
        [*found["curves"].values(), found["macro_curves"]], [*areas, areas.mean(axis=0)], strict=True
    ):
        assert one["roc"]["auc_interval"] == pytest.approx(np.quantile(area, [0.025, 0.975]).tolist())
        assert one["pr"]["average_precision_interval"] == pytest.approx(np.quantile(average, [0.025, 0.975]).tolist())
        assert one["roc"]["auc_interval"][0] < one["roc"]["auc"] < one["roc"]["auc_interval"][1]


def test_resamples_without_the_label_say_nothing_of_it() -> None:
    """One text in ten has it: a third of the resamples have no area, and no number that is none reaches the record."""
    label_ids = np.array([1] + [0] * 9)
    probabilities = np.column_stack([1 - np.linspace(0.8, 0.1, 10), np.linspace(0.8, 0.1, 10)])
    counts = next(intervals._resampled(10, 50, seed=0))
    areas, averages = curves.Ranking(label_ids == 1, probabilities[:, 1]).areas(counts)
    assert (np.isnan(areas) == (counts[0] == 0)).all()
    assert (np.isnan(averages) == (counts[0] == 0)).all()
    found = curves.curves(probabilities, label_ids, ["neg", "pos"])
    assert found["curves"]["pos"]["roc"]["auc_interval"] == [1, 1]
    assert found["macro_curves"]["roc"]["auc_interval"] == [1, 1]


def test_the_mean_curve_has_the_mean_areas() -> None:
    probabilities, label_ids, labels = answered("single_label", n=3000, labels=5)
    found = curves.curves(probabilities, label_ids, labels)
    roc, pr = found["macro_curves"]["roc"], found["macro_curves"]["pr"]
    of_labels = found["curves"].values()
    assert roc["auc"] == pytest.approx(np.mean([one["roc"]["auc"] for one in of_labels]))
    assert pr["average_precision"] == pytest.approx(np.mean([one["pr"]["average_precision"] for one in of_labels]))
    assert np.trapezoid(roc["tpr"], roc["fpr"]) == pytest.approx(roc["auc"], abs=0.01)
    assert -np.trapezoid(pr["precision"], pr["recall"]) == pytest.approx(pr["average_precision"], abs=0.01)


@pytest.mark.parametrize("task", TASKS)
def test_each_of_150_labels_has_its_curves(task: str) -> None:
    found = curves.curves(*answered(task, n=2000, labels=150))
    assert len(found["curves"]) == 150


def test_the_interval_covers_the_true_area_about_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals.bootstrap_of_counts, "__kwdefaults__", {"resamples": 300, "seed": 0})
    random = np.random.default_rng(0)
    true_area = 0.8556  # how often a normal number with mean 1.5 is above one with mean 0
    covered = []
    for _ in range(300):
        label_ids = np.repeat([0, 1], [140, 60])
        odds = random.normal(size=200) + 1.5 * label_ids
        low, high = curves.curves(np.column_stack([-odds, odds]), label_ids, ["a", "b"])["curves"]["b"]["roc"][
            "auc_interval"
        ]
        covered.append(low <= true_area <= high)
    assert 0.91 < np.mean(covered) < 0.98
