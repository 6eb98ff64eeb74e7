"""Scores against worked examples; the run's record of them; figures that are pictures."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import image
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from lorafit import breakdown, encoders, evaluation, intervals, pipeline, predictions, report, runs, tasks
from lorafit.data import parts
from lorafit.errors import RunError
from lorafit.manifest import Task
from tests.conftest import texts_and_labels
from tests.test_tasks_end_to_end import write


def test_scores_of_a_worked_example() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [2.0, 0.0]])
    scores = evaluation.score(logits, np.array([0, 1, 0, 0]))
    assert scores.accuracy == 3 / 4
    assert scores.precision == pytest.approx((2 / 2 + 1 / 2) / 2)
    assert scores.recall == pytest.approx((2 / 3 + 1 / 1) / 2)
    assert scores.f1 == pytest.approx((4 / 5 + 2 / 3) / 2)
    right = np.log1p(np.exp(-2))
    assert scores.loss == pytest.approx((3 * right + right + 2) / 4)


def made_up(task: str, n: int = 300, labels: int = 4) -> evaluation.Test:
    """Return a test whose adapted answers are right more often than the base's."""
    random = np.random.default_rng(0)
    if task == "multi_label":
        label_ids = random.integers(0, 2, (n, labels))
        signal = 2.0 * label_ids - 1
    else:
        label_ids = random.permutation(np.arange(n) % labels)
        signal = np.eye(labels)[label_ids] * 3
    base, noise = random.normal(size=(2, n, labels))
    names = [f"label {number}" for number in range(labels)]
    lengths = random.integers(5, 500, n)
    return evaluation.Test([f"text {number}" for number in range(n)], lengths, label_ids, names, base, noise + signal)


TASKS = ("single_label", "multi_label")


@pytest.mark.parametrize("thresholds", [None, [0.3, 0.4, 0.5, 0.6]])
@pytest.mark.parametrize("task", TASKS)
def test_scores_are_those_of_scikit_learn(task: Task, thresholds: list[float] | None) -> None:
    test = made_up(task)
    given = tasks.decide(tasks.probabilities(test.adapted, task), task, thresholds)
    precision, recall, f1, _ = precision_recall_fscore_support(test.label_ids, given, average="macro")
    scores = evaluation.score(test.adapted, test.label_ids, thresholds)
    assert scores.accuracy == accuracy_score(test.label_ids, given)
    assert [scores.precision, scores.recall, scores.f1] == pytest.approx([precision, recall, f1])


def test_the_loss_is_that_which_training_lowers() -> None:
    for task in TASKS:
        test = made_up(task)
        expected = tasks.loss(torch.from_numpy(test.adapted), torch.from_numpy(test.label_ids)).item()
        assert evaluation.score(test.adapted, test.label_ids).loss == pytest.approx(expected)


def test_a_label_that_no_test_text_has_does_not_lower_the_averages() -> None:
    logits = np.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [2.0, 0.0, 0.0]])
    assert evaluation.score(logits, np.array([0, 1, 0])).f1 == 1
    assert evaluation.score(logits - 1, np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]])).f1 == 1


def test_improvement_is_in_points_and_relative_to_the_base() -> None:
    label_ids = np.zeros(300, dtype=int)
    base, adapted = (np.arange(300) >= right for right in (149, 265))  # the first so many are right
    gained = evaluation.gain(base.astype(int), adapted.astype(int), label_ids)
    assert (gained["improvement_points"], gained["relative_improvement"]) == (38.666667, 0.778523)
    assert gained["mcnemar"] == {"only_base_right": 0, "only_adapted_right": 116}
    assert gained["mcnemar_p"] == pytest.approx(2 * 0.5**116)
    assert evaluation.gain(label_ids + 1, label_ids, label_ids)["relative_improvement"] is None


@pytest.mark.parametrize("task", TASKS)
def test_a_record_holds_all_that_a_report_needs(task: Task) -> None:
    test = made_up(task)
    record = evaluation.record(test)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert (record["n"], record["task"], record["labels"]) == (300, task, test.labels)
    for who in ("base", "adapted"):
        for name in ("accuracy", "f1", "precision", "recall", "loss"):
            low, high = record[who][f"{name}_interval"]
            assert low <= record[who][name] <= high
    assert record["improvement_points"] > 0
    low, high = record["improvement_interval"]
    assert low < record["improvement_points"] < high
    assert {label: found["support"] for label, found in record["per_class"].items()} == {
        label: int((test.label_ids == number).sum() if task == "single_label" else test.label_ids[:, number].sum())
        for number, label in enumerate(test.labels)
    }
    assert sum(np.sum(group["n"]) for group in record["by_length"]) == 300
    assert len(record["by_length"]) == 5
    for of_label in record["per_class"].values():
        for name in ("precision", "recall", "f1"):
            low, high = of_label[f"{name}_interval"]
            assert low < of_label[name] < high
    assert set(record["curves"]) == set(test.labels)
    for name in ("ece_before", "ece_after"):
        low, high = record["calibration"][f"{name}_interval"]
        assert low <= record["calibration"][name] <= high
    mean_f1 = np.mean([found["f1"] for found in record["per_class"].values()])
    assert record["adapted"]["f1"] == pytest.approx(mean_f1)
    assert evaluation.Comparison.from_record(record).adapted.accuracy == record["adapted"]["accuracy"]


@pytest.mark.parametrize("task", TASKS)
def test_a_labels_scores_and_intervals_are_those_of_scikit_learn_on_the_same_resamples(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals.bootstrap, "__kwdefaults__", {"resamples": 100, "seed": 0})
    test = made_up(task, n=30)  # so few that some resamples lack a label
    true, given = test.label_ids, test.given()["adapted"]

    def scores(rows: np.ndarray, undefined: float) -> np.ndarray:
        options = {"labels": range(4), "average": None, "zero_division": undefined}
        return np.array(precision_recall_fscore_support(true[rows], given[rows], **options)[:3])

    (counts,) = intervals._resampled(30, 100, seed=0)
    resampled = [scores(np.repeat(np.arange(30), drawn.astype(int)), np.nan) for drawn in counts.T]
    limits = np.nanquantile(resampled, [0.025, 0.975], axis=0)
    found, whole = breakdown.per_class(given, true, test.labels), scores(np.arange(30), 0)
    for number, label in enumerate(test.labels):
        for row, name in enumerate(("precision", "recall", "f1")):
            assert found[label][name] == pytest.approx(whole[row, number])
            assert found[label][f"{name}_interval"] == pytest.approx(limits[:, row, number].tolist())


def test_a_label_never_given_and_in_no_text_has_no_interval() -> None:
    found = breakdown.per_class(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2]), ["a", "b", "c", "d"])
    assert found["d"] == {"support": 0} | {
        key: value for name in ("precision", "recall", "f1") for key, value in ((name, 0), (f"{name}_interval", None))
    }
    assert (found["c"]["precision_interval"], found["c"]["recall_interval"]) == (None, [0, 0])  # one text, never given
    json.dumps(found, allow_nan=False)
    several = breakdown.per_class(np.array([[1, 0], [0, 0]]), np.array([[1, 0], [1, 0]]), ["a", "b"])
    assert several["a"]["recall"] == 0.5
    assert several["b"]["f1_interval"] is None


def test_the_confusion_has_a_row_a_true_label() -> None:
    assert breakdown.confusion(np.array([0, 1, 1]), np.array([0, 0, 1]), ["a", "b", "c"]) == [
        [1, 1, 0],
        [0, 1, 0],
        [0, 0, 0],
    ]
    found = breakdown.confusion(np.array([[1, 0], [1, 1]]), np.array([[1, 1], [0, 1]]), ["a", "b"])
    assert found == {"a": [[0, 1], [0, 1]], "b": [[0, 0], [1, 1]]}


def test_the_most_confident_errors_come_first() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.01, 0.99], [0.2, 0.8]])
    texts = ["right", "unsure", "x" * 5000, "sure"]
    found = breakdown.errors(texts, probabilities, np.array([0, 1, 1, 1]), np.array([0, 0, 0, 0]), ["neg", "pos"])
    assert [error["probability"] for error in found] == [0.99, 0.8, 0.6]
    assert found[0] == {"text": "x" * 1000, "label": "neg", "predicted": "pos", "probability": 0.99}


def test_errors_of_several_labels_and_of_pairs_are_lists() -> None:
    probabilities = np.array([[0.9, 0.2], [0.6, 0.05]])
    found = breakdown.errors(
        [("a", "b"), ("c", "d")], probabilities, np.array([[1, 0], [1, 0]]), np.array([[1, 0], [1, 1]]), ["x", "y"]
    )
    assert found == [{"text": ["c", "d"], "label": ["x", "y"], "predicted": ["x"], "probability": 0.95}]


@pytest.mark.parametrize(
    ("columns", "long_text", "said"),
    [
        ({}, "head", "of longer texts the rest is cut"),
        ({}, "windows:mean", "of longer texts all is read in overlapping windows"),
        ({"text_pair": "second"}, "head", "of longer texts the rest is cut"),
    ],
)
@pytest.mark.usefixtures("proved_in_this_process")
@pytest.mark.filterwarnings("ignore:After epoch")
def test_accuracy_by_length_is_by_the_whole_text_and_not_by_what_is_read_of_it(
    columns: dict[str, str], long_text: str, said: str, tiny: Path, tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    texts, labels = texts_and_labels(200)
    table = pd.DataFrame({"text": texts, "second": [text.upper() for text in reversed(texts)], "label": labels})
    data = columns | {"max_tokens": 16, "long_text": long_text} | write(tmp_path, table)
    run = pipeline.train(tiny_recipe(data=data, training={"epochs": 1}), tmp_path / "run")
    pipeline.evaluate(run)
    asked = pipeline.data_of(run).test.texts
    tokenizer = encoders.load_tokenizer(tiny, "tiny")
    lengths = np.array([len(tokenizer(*parts(text))["input_ids"]) for text in asked])
    groups = run.scores["test"]["by_length"]
    assert lengths.min() > 10
    assert (lengths > 16).sum() > 20
    assert (groups[0]["from_tokens"], groups[-1]["to_tokens"]) == (lengths.min(), lengths.max())
    for group in groups:
        within = (lengths >= group["from_tokens"]) & (lengths <= group["to_tokens"])
        assert 0 < group["n"] == within.sum() < len(asked)
    assert f"A text is read up to 16 tokens; {said}" in (run.path / "report.md").read_text()


def test_texts_of_one_length_are_one_group() -> None:
    found = breakdown.by_length(np.array([7, 7, 7]), np.array([True, False, True]))
    assert [(group["from_tokens"], group["to_tokens"], group["n"]) for group in found] == [(7, 7, 3)]


def test_what_makes_two_tests_the_same_is_texts_labels_and_their_order() -> None:
    test = made_up("single_label")
    others = [
        replace(test, texts=[*test.texts[1:], test.texts[0]]),
        replace(test, labels=[*test.labels[1:], test.labels[0]]),
        replace(test, label_ids=test.label_ids[::-1]),
    ]
    assert replace(test, adapted=test.base).sha256() == test.sha256()
    assert all(other.sha256() != test.sha256() for other in others)


def test_calibration_before_is_that_of_the_logits_as_they_were() -> None:
    test = made_up("single_label", n=3000)
    overconfident = replace(test, adapted=test.adapted * 9)  # three times what the noise in it deserves
    folded = replace(test, adapted=test.adapted * 3, temperature=3.0)
    before, after = (evaluation.record(found)["calibration"] for found in (overconfident, folded))
    assert after["ece_before"] == pytest.approx(before["ece_after"])
    assert after["ece_after"] < after["ece_before"]
    assert after["temperature"] == 3
    assert sum(part["count"] for part in after["bins_after"]) == 3000


def test_a_baseline_that_is_as_good_beats_and_one_that_is_worse_does_not() -> None:
    test = made_up("single_label")
    adapted = test.given()["adapted"]
    record = evaluation.record(test)
    for name, given in (("majority", np.zeros(300, dtype=int)), ("same", adapted)):
        record = evaluation.with_baseline(record, name, given, adapted, test.label_ids, seconds=1.23456)
    assert record["beaten_by"] == ["same"]
    assert record["baselines"]["same"] | {"seconds": 0} == {
        key: record["adapted"][key] for key in ("accuracy", "accuracy_interval", "f1", "f1_interval")
    } | {"mcnemar_p": 1.0, "mcnemar": {"only_baseline_right": 0, "only_adapted_right": 0}, "seconds": 0}
    assert record["baselines"]["majority"]["mcnemar_p"] < 1e-6


def test_where_thresholds_are_fitted_for_macro_f1_a_baseline_is_beaten_in_that() -> None:
    label_ids = np.array([0] * 8 + [1] * 2)
    adapted, majority = np.array([0] * 5 + [1] * 5), np.zeros(10, dtype=int)  # 0.7 against 0.8, F1 0.67 against 0.44
    logits = np.eye(2)[adapted] * 4.0
    test = evaluation.Test(["a"] * 10, np.arange(10), label_ids, ["x", "y"], logits, logits)
    for thresholds, by, beaten_by in ((None, "accuracy", ["majority"]), ([0.5, 0.5], "f1", [])):
        record = evaluation.record(replace(test, thresholds=thresholds))
        record = evaluation.with_baseline(record, "majority", majority, adapted, label_ids, seconds=0.1)
        assert (record["compared_by"], record["beaten_by"]) == (by, beaten_by)


def test_150_classes_and_25000_texts_take_seconds() -> None:
    test = made_up("single_label", n=25_000, labels=150)
    start = time.perf_counter()
    given = test.given()["adapted"]
    evaluation.score_intervals(given, test.label_ids, 150, tasks.losses(test.adapted, test.label_ids))
    breakdown.per_class(given, test.label_ids, test.labels)
    assert time.perf_counter() - start < 20  # 1 s, where no others work on the machine


def test_an_evaluated_run_holds_scores_report_and_figures(trained: Path) -> None:
    test = runs.open_run(trained).scores["test"]
    assert test["n"] == 40
    assert test["adapted"]["accuracy"] > 0.9 > test["base"]["accuracy"]
    assert test["improvement_points"] == pytest.approx(100 * (test["adapted"]["accuracy"] - test["base"]["accuracy"]))
    for name in ("report.md", "report.html"):
        written = (trained / name).read_text()
        assert f"Adapted accuracy:      {test['adapted']['accuracy']:.4f}" in written
        assert report.UNTRAINED in written
    for name in ("accuracy_bar", "accuracy_line"):
        picture = image.imread(trained / "figures" / f"{name}.png")
        assert picture.shape[1] > 800
        assert picture.std() > 0.05  # something is drawn on it


def test_the_line_starts_from_the_base_and_has_a_point_an_epoch(trained: Path) -> None:
    validations = runs.open_run(trained).validations
    assert [line["epoch"] for line in validations] == [0, 1, 2, 3, 4]
    axes = report.accuracy_line(validations, best_epoch=3).axes[0]
    base, adapted, best = axes.get_lines()
    assert set(base.get_ydata()) == {validations[0]["validation"]["accuracy"]}
    assert list(adapted.get_xdata()) == [0, 1, 2, 3, 4]
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([3], [validations[3]["validation"]["accuracy"]])


def test_a_finished_run_whose_adapter_is_gone_says_so(trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    shutil.rmtree(copy / "adapter")
    with pytest.raises(RunError, match="is finished, but its adapter is gone. Train it anew with --overwrite"):
        pipeline.evaluate(runs.open_run(copy))


def test_scores_of_an_earlier_version_are_made_anew(trained: Path, tmp_path: Path) -> None:
    run = runs.open_run(Path(shutil.copytree(trained, tmp_path / "copy")))
    scores = run.scores
    now = scores["test"]["macro_curves"]
    del scores["test"]["macro_curves"]
    run.write("scores.json", json.dumps(scores))
    pipeline.evaluate(run)
    assert run.scores["test"]["macro_curves"] == now


def test_predictions_are_kept_beside_the_scores(trained: Path) -> None:
    run = runs.open_run(trained)
    kept, test = predictions.read(run.predictions), run.scores["test"]
    for who in ("base", "adapted"):
        assert evaluation.right(kept.given[who], kept.label_ids).mean() == test[who]["accuracy"]
        assert (kept.probabilities[who].argmax(axis=1) == kept.given[who]).all()
    assert set(kept.given) == {"base", "adapted", "majority", "tfidf"}


@pytest.mark.parametrize("task", TASKS)
def test_predictions_read_back_what_was_written(task: Task, tmp_path: Path) -> None:
    test = made_up(task)
    written = predictions.Predictions(test.label_ids, test.given(), {"adapted": test.adapted})
    predictions.write(tmp_path / "predictions.parquet", written)
    found = predictions.read(tmp_path / "predictions.parquet")
    assert (found.label_ids == test.label_ids).all()
    assert all((found.given[who] == given).all() for who, given in written.given.items())
    assert (found.probabilities["adapted"] == test.adapted).all()
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"predictions.parquet can't be read. Make it again with: lorafit evaluate"):
        predictions.read(tmp_path / "predictions.parquet")
