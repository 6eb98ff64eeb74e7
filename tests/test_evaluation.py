"""Scores against worked examples; the run's record of them; figures that are pictures."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from lorafit import evaluation, pipeline, report, runs
from lorafit.errors import RunError


def test_scores_of_a_worked_example() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [2.0, 0.0]])
    scores = evaluation.score(logits, np.array([0, 1, 0, 0]))
    assert scores.accuracy == 3 / 4
    assert scores.precision == pytest.approx((2 / 2 + 1 / 2) / 2)
    assert scores.recall == pytest.approx((2 / 3 + 1 / 1) / 2)
    assert scores.f1 == pytest.approx((4 / 5 + 2 / 3) / 2)
    right = np.log1p(np.exp(-2))
    assert scores.loss == pytest.approx((3 * right + right + 2) / 4)


def test_improvement_is_in_points_and_relative_to_the_base() -> None:
    def scores(accuracy: float) -> evaluation.Scores:
        return evaluation.Scores(accuracy, 0.5, 0.5, 0.5, 0.5)

    compared = evaluation.compare(scores(0.4967), scores(0.8833), 300)
    assert (compared.improvement_points, compared.relative_improvement) == (38.66, 0.778337)
    assert evaluation.compare(scores(0.0), scores(0.5), 10).relative_improvement is None
    assert evaluation.Comparison.from_record(json.loads(json.dumps(compared.as_record()))) == compared


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
