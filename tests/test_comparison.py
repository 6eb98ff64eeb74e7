"""Runs beside each other, paired on the same texts; what can't be compared is refused."""

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import image

from lorafit import comparison, evaluation, pipeline, predictions, runs
from lorafit.errors import RunError
from tests.test_cli import refused

pytestmark = pytest.mark.usefixtures("proved_in_this_process")


@pytest.fixture(scope="module")
def weak(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a smaller rank whose answers are wrong on ten texts that `trained` gets right."""
    run = runs.Run(Path(shutil.copytree(trained, tmp_path_factory.mktemp("weak") / "runs" / "weak")))
    changed = run.recipe.model_dump()
    changed["adapter"]["rank"] = 2
    run.update(recipe=changed, adapter_bytes=4000)
    kept = predictions.read(run.predictions)
    adapted = kept.given["adapted"].copy()
    adapted[np.flatnonzero(adapted == kept.label_ids)[:10]] ^= 1
    kept.given["adapted"] = adapted
    predictions.write(run.predictions, kept)
    scores = run.scores
    accuracy = float((adapted == kept.label_ids).mean())
    scores["test"]["adapted"] |= {"accuracy": accuracy, "accuracy_interval": [accuracy - 0.1, accuracy + 0.1]}
    run.write("scores.json", json.dumps(scores))
    return run.path


def with_another_test(trained: Path, copy: Path) -> Path:
    """Return a copy of a run with another seed, so with another split; test_seeds.py has a real one."""
    run = runs.Run(Path(shutil.copytree(trained, copy)))
    run.update(recipe=run.recipe.model_dump() | {"seed": 5})
    scores = run.scores
    scores["test"]["test_sha256"] = "0" * 64
    run.write("scores.json", json.dumps(scores))
    return run.path


def test_each_run_is_compared_with_the_first_text_by_text(trained: Path, weak: Path, tmp_path: Path) -> None:
    third = shutil.copytree(trained, tmp_path / "third")
    compared = comparison.compare([trained, weak, third], tmp_path / "out")
    first, second, same = compared["runs"]
    assert first["mcnemar_p_holm"] is first["difference_points"] is None
    assert second["difference_points"] == -25
    low, high = second["difference_interval"]
    assert low < -25 < high < 0
    answers = [predictions.read(runs.Run(run).predictions) for run in (trained, weak)]
    gained = evaluation.gain(*(one.given["adapted"] for one in answers), answers[0].label_ids)
    assert second["difference_interval"] == gained["improvement_interval"]  # whose coverage is simulated
    assert second["mcnemar_p"] == pytest.approx(2 * 0.5**10)
    assert second["mcnemar_p_holm"] == pytest.approx(2 * second["mcnemar_p"])  # of two comparisons
    assert (same["difference_points"], same["difference_interval"], same["mcnemar_p_holm"]) == (0, [0, 0], 1)
    assert second["recipe"] == {"adapter.rank": 2}
    assert second["adapter_bytes"] == 4000
    assert first["accuracy_interval"] == runs.Run(trained).scores["test"]["adapted"]["accuracy_interval"]
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == compared


def test_the_figure_is_a_picture_and_its_text_stays_text(trained: Path, weak: Path, tmp_path: Path) -> None:
    compared = comparison.compare([trained, weak], tmp_path)
    picture = image.imread(tmp_path / "comparison.png")
    assert picture.shape[1] > 1200
    assert picture.std() > 0.05
    said = "".join(ElementTree.parse(tmp_path / "comparison.svg").getroot().itertext())
    assert "weak" in said
    assert "Gain over tiny" in said
    accuracy, gain = comparison.figure(compared).axes
    assert list(gain.lines[-1].get_xdata()) == [-25]
    assert list(accuracy.lines[0].get_xdata()) == [row["accuracy"] for row in compared["runs"]]


def test_the_command_prints_one_row_a_run(cli: Any, trained: Path, weak: Path) -> None:
    said = cli("compare", trained, weak)
    assert said.code == 0, said.err
    row = next(line for line in said.out.splitlines() if line.startswith(str(weak)))
    assert "adapter.rank=2" in row
    assert "-25.00 (" in row
    assert "0.002" in row
    assert "Holm" in said.out
    assert sorted(file.name for file in Path("comparison").iterdir()) == [
        "comparison.json",
        "comparison.png",
        "comparison.svg",
    ]
    assert cli("compare", trained, weak, "--out", "there").code == 0
    assert Path("there/comparison.json").is_file()


def test_what_cannot_be_compared_is_refused(cli: Any, trained: Path, tmp_path: Path) -> None:
    elsewhere = with_another_test(trained, tmp_path / "elsewhere")
    bare = shutil.copytree(trained, tmp_path / "bare")
    (bare / "scores.json").unlink()
    assert f"{bare} is not evaluated yet. Do that first: lorafit evaluate {bare}" in refused(
        cli("compare", trained, bare)
    )
    assert "A comparison needs two runs or more" in refused(cli("compare", trained))
    assert "stands in the comparison twice" in refused(cli("compare", trained, trained / ".." / trained.name))
    sentence = refused(cli("compare", trained, elsewhere))
    assert "were tested on other texts (40 and 40), so their scores can't be compared" in sentence
    assert "Their recipes differ in seed." in sentence
    assert "nowhere is no run folder" in refused(cli("compare", trained, "nowhere"))
    assert not (tmp_path / "comparison").exists()


def test_a_run_whose_predictions_are_gone_is_evaluated_again(trained: Path, tmp_path: Path) -> None:
    run = runs.open_run(shutil.copytree(trained, tmp_path / "run"))
    run.predictions.unlink()
    with pytest.raises(RunError, match="is not evaluated yet"):
        comparison.compare([trained, run.path], tmp_path / "out")
    pipeline.evaluate(run)
    kept = predictions.read(run.predictions)
    assert evaluation.right(kept.given["adapted"], kept.label_ids).mean() == run.scores["test"]["adapted"]["accuracy"]
    comparison.compare([trained, run.path], tmp_path / "out")
