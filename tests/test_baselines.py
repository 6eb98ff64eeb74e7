"""What has to be beaten: each baseline learns what it can learn, for every task, and later ones are added."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from lorafit import baselines, calibration, checkpoints, pipeline, predict, predictions, runs, runtime, tasks
from lorafit.errors import RecipeError
from tests.conftest import BAD, GOOD, texts_and_labels
from tests.evaluated_runs import seeds_record
from tests.test_tasks_end_to_end import rare_and_unsure, topics_and_texts, write

pytestmark = pytest.mark.usefixtures("proved_in_this_process")
FP32 = runtime.Runtime("cpu", "fp32", 2, "as asked for")


def test_the_commonest_label_or_set_of_labels_is_given_to_all() -> None:
    assert baselines.majority(np.array([2, 0, 2]), 3).tolist() == [2, 2, 2]
    sets = np.array([[1, 1], [1, 0], [1, 1], [0, 0]])
    assert baselines.majority(sets, 2).tolist() == [[1, 1], [1, 1]]


def tfidf(texts: list[Any], label_ids: np.ndarray, asked: list[Any], **settings: bool) -> np.ndarray:
    """Return the label ids that TF-IDF gives."""
    probabilities = baselines.tfidf(texts, label_ids, **settings)(asked)
    return tasks.decide(probabilities, tasks.task_of(label_ids))


def test_tfidf_learns_what_stands_in_the_words() -> None:
    texts, labels = texts_and_labels(200)
    given = tfidf(texts[:150], np.array(labels[:150]), texts[150:])
    assert (given == np.array(labels[150:])).mean() > 0.95
    assert given.dtype == np.int64


def test_tfidf_knows_which_of_a_pair_a_word_stands_in() -> None:
    texts, labels = texts_and_labels(200)
    pairs = [("a good film", text) if number % 3 else ("a bad film", text) for number, text in enumerate(texts)]
    given = tfidf(pairs[:150], np.array(labels[:150]), pairs[150:])
    assert (given == np.array(labels[150:])).mean() > 0.95


def test_tfidf_gives_several_labels_and_none() -> None:
    random = np.random.default_rng(0)
    label_ids = random.integers(0, 2, (300, 3))
    texts = ["the " + " ".join(f"w{number}" for number in np.flatnonzero(row)) for row in label_ids]
    given = tfidf(texts[:200], label_ids[:200], texts[200:])
    assert (given == label_ids[200:]).all(axis=1).mean() > 0.95
    assert (given.sum(axis=1) == 0).any()


def test_balanced_weights_find_more_of_a_rare_label() -> None:
    random = np.random.default_rng(0)
    label_ids = (random.random(400) < 0.05).astype(int)
    words = np.where(random.random(400) < 0.7, np.where(label_ids, "rare", "common"), "either")
    texts = [f"{word} {random.integers(0, 9)}" for word in words]
    plain, balanced = (tfidf(texts, label_ids, texts, balanced=weighed) for weighed in (False, True))
    assert balanced[label_ids == 1].sum() > plain[label_ids == 1].sum()


def test_texts_without_a_word_are_no_trouble() -> None:
    assert tfidf(["5 :)", "!"], np.array([1, 0]), ["!", "5"]).tolist() == [0, 1]


def test_words_that_stand_in_one_text_each_and_texts_of_blanks_are_no_trouble() -> None:
    texts = [f"word{number}" for number in range(1200)]
    label_ids = np.arange(1200) % 2
    given = tfidf(texts, label_ids, texts)
    assert (given == label_ids).all()
    assert tfidf([" "] * 5, np.array([0, 1, 1, 1, 0]), [" ", "good"]).tolist() == [1, 1]
    pairs = [("good", " ") if label_id else ("bad", " ") for label_id in label_ids]
    assert (tfidf(pairs, label_ids, pairs) == label_ids).all()


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_the_frozen_encoder_is_read_as_the_head_reads_it(pooling: str, tiny_recipe: Callable[..., Any]) -> None:
    recipe = tiny_recipe(encoder={"pooling": pooling})
    found = pipeline.prepare(recipe)
    assert (baselines.answer("frozen", recipe, found, FP32) == found.test.label_ids).mean() > 0.8


def moods(count: int) -> tuple[list[str], list[str]]:
    """Return texts in one of three moods, whose words stand in them."""
    chance, words = random.Random(0), {"kind": GOOD, "grim": BAD, "plain": ("music",)}
    labels = [chance.choice(list(words)) for _ in range(count)]
    return [" ".join([*chance.choices(words[mood], k=8), str(n)]) for n, mood in enumerate(labels)], labels


@pytest.mark.parametrize("name", baselines.ON_REQUEST)
@pytest.mark.parametrize("task", ["one of three labels", "several labels"])
def test_what_asks_the_encoder_learns_every_task(
    name: str, task: str, tiny_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "FULL_LEARNING_RATE", 3e-3)
    texts, labels = moods(200) if task == "one of three labels" else topics_and_texts(200)
    recipe = tiny_recipe(data=write(tmp_path, pd.DataFrame({"text": texts, "label": labels}), "jsonl"))
    found = pipeline.prepare(recipe)
    given = baselines.answer(name, recipe, found, FP32)
    assert given.shape == found.test.label_ids.shape
    assert set(np.unique(given)) == set(range(2 if task == "several labels" else 3))
    commonest = baselines.majority(found.train.label_ids, len(found.test))
    right, by_the_commonest = ((ids == found.test.label_ids).mean() for ids in (given, commonest))
    assert right > max(0.8, by_the_commonest + 0.1)


@pytest.mark.parametrize("name", ["tfidf", "frozen", "full"])
def test_beside_an_adapter_with_thresholds_a_baseline_has_its_own_from_validation(
    name: str, tiny_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "FULL_LEARNING_RATE", 3e-3)
    texts, labels = rare_and_unsure(600)
    sizes = {"train_size": 240, "validation_size": 180, "test_size": 180}
    data = write(tmp_path, pd.DataFrame({"text": texts, "label": labels}), "jsonl") | sizes
    recipe = tiny_recipe(data=data, training={"thresholds": "f1", "epochs": 1})
    found = pipeline.prepare(recipe)
    probabilities = baselines._trained(name, recipe, found, FP32)
    thresholds = calibration.fit_thresholds(probabilities(found.validation), found.validation.label_ids)
    tuned, plain = (tasks.decide(probabilities(found.test), "single_label", limits) for limits in (thresholds, None))
    given = baselines.answer(name, recipe, found, FP32)
    assert (given == tuned).all()
    of_given, of_plain = (f1_score(found.test.label_ids, ids, average="macro") for ids in (given, plain))
    assert of_given > of_plain


def test_all_weights_move_in_full_fine_tuning(tiny_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "FULL_LEARNING_RATE", 3e-3)  # what an encoder as small as this one needs
    recipe = tiny_recipe(training={"epochs": 2})
    found = pipeline.prepare(recipe)
    trained = []
    fit = baselines.training.fit

    def watched(model: Any, *args: Any, **kwargs: Any) -> Any:
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        outcome = fit(model, *args, **kwargs)
        trained.append({name for name, weight in model.named_parameters() if not weight.equal(before[name])})
        return outcome

    monkeypatch.setattr(baselines.training, "fit", watched)
    monkeypatch.setattr(checkpoints, "save", None)  # 0.4 GB each of the bundled encoder, for nobody
    assert (baselines.answer("full", recipe, found, FP32) == found.test.label_ids).mean() > 0.8
    assert any("layer.0.attention.self.query" in name for name in trained[0])
    assert any("word_embeddings" in name for name in trained[0])


def test_a_baseline_asked_for_later_is_added_to_what_is_there(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.open_run(shutil.copytree(trained, tmp_path / "run"))
    before = run.scores["test"]
    run.write("scores.json", json.dumps(run.scores | {"seeds": seeds_record()}))
    monkeypatch.setattr(predict.Classifier, "load", None)  # base and adapted are not asked again
    compared = pipeline.evaluate(run, ["frozen"])
    after = run.scores["test"]
    assert list(compared.baselines) == list(after["baselines"]) == ["majority", "tfidf", "frozen"]
    assert after | {"baselines": 0, "beaten_by": 0} == before | {"baselines": 0, "beaten_by": 0}
    assert {name: after["baselines"][name] for name in before["baselines"]} == before["baselines"]
    assert run.scores["seeds"] == seeds_record()
    assert "frozen" in predictions.read(run.predictions).given
    pipeline.evaluate(run)
    assert run.scores["test"] == after


def test_an_evaluation_that_is_broken_off_is_completed_by_the_next(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.open_run(shutil.copytree(trained, tmp_path / "run"))
    before = run.scores["test"]
    run.remove("scores.json")
    with monkeypatch.context() as patch:
        patch.setattr(baselines, "tfidf", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pipeline.evaluate(run)
    assert list(run.scores["test"]["baselines"]) == ["majority"]
    assert not (run.path / "report.md").exists()  # the old one, of other scores
    monkeypatch.setattr(predict.Classifier, "load", None)  # base and adapted are not asked again
    pipeline.evaluate(run)
    assert no_seconds(run.scores["test"]) == no_seconds(before)
    report = (run.path / "report.md").read_text()
    run.remove("report.md")
    monkeypatch.setattr(baselines, "answer", None)
    pipeline.evaluate(run)
    assert (run.path / "report.md").read_text() == report


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def no_seconds(test: dict[str, Any]) -> dict[str, Any]:
    return test | {"baselines": {name: found | {"seconds": 0} for name, found in test["baselines"].items()}}


def test_what_is_damaged_is_made_anew_and_the_seeds_stay_with_their_adapter(trained: Path, tmp_path: Path) -> None:
    run = runs.open_run(shutil.copytree(trained, tmp_path / "run"))
    before = run.scores["test"]
    run.write("scores.json", json.dumps(run.scores | {"seeds": seeds_record()}))
    run.predictions.write_bytes(b"PAR1")
    pipeline.evaluate(run)
    assert "tfidf" in predictions.read(run.predictions).given
    assert no_seconds(run.scores["test"]) == no_seconds(before)
    assert run.scores["seeds"] == seeds_record()
    run.write("scores.json", json.dumps(run.scores | {"adapter_sha256": "0" * 64}))
    pipeline.evaluate(run)
    assert "seeds" not in run.scores


def test_a_baseline_that_there_is_none_of_is_refused(trained: Path) -> None:
    sentence = "There is no baseline 'frozne'; on request there are frozen and full. Did you mean 'frozen'?"
    with pytest.raises(RecipeError) as refusal:
        pipeline.evaluate(runs.open_run(trained), ["frozne"])
    assert str(refusal.value) == sentence
