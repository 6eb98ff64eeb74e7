"""The data doctor: what is planted in a file is found from the recipe on, and clean data passes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lorafit import data, doctor, pipeline, recipe, runs, splits
from lorafit.errors import DataError, RunError
from lorafit.runs import Run
from tests.conftest import Said, texts_and_labels, write_csv, write_table
from tests.test_bundle import reseal
from tests.test_tasks_end_to_end import topics_and_texts, write

Cli = Callable[..., Said]


def recipe_for(source: Path, tiny: Path, **settings: object) -> recipe.Recipe:
    return recipe.from_values(
        {"data": {"source": str(source), "max_tokens": 64, **settings}, "encoder": {"name": str(tiny)}}
    )


def reviews_with(folder: Path, *planted: tuple[str, str], name: str = "planted.csv", seed: int = 0) -> Path:
    texts, ids = texts_and_labels(100, seed)
    labels: list[object] = [["neg", "pos"][label_id] for label_id in ids]
    return write_csv(folder / name, texts + [text for text, _ in planted], labels + [label for _, label in planted])


def by_about(found: doctor.Findings) -> dict[str, doctor.Finding]:
    return {finding.about: finding for finding in found.findings}


def test_clean_data_is_counted_and_nothing_stands_out(tiny_recipe: Callable[..., Any]) -> None:
    found = doctor.examine(tiny_recipe())
    assert found.findings == []
    assert found.texts == {"all": 200, "train": 120, "validation": 40, "test": 40}
    assert found.classes["neg"] == {"all": 100, "train": 60, "validation": 20, "test": 20}
    assert found.lengths is not None
    assert found.lengths.share_of_texts_longer == 0


def test_each_plant_is_found_with_its_row(tiny: Path, tmp_path: Path) -> None:
    texts, _ = texts_and_labels(100)
    file = reviews_with(tmp_path, (texts[0], "neg"), (texts[1], "neg"), (texts[2].upper(), "neg"), ("cafÃ©", "pos"))
    found = by_about(doctor.examine(recipe_for(file, tiny)))
    assert found["duplicates"].texts == 2
    assert "row 1 and row 101" in found["duplicates"].examples[0]
    assert "row 2 (pos) and row 102 (neg)" in found["contradictions"].examples[0]
    assert "row 3" in found["near duplicates"].examples[0]
    assert "row 104" in found["wrong encoding"].examples[0]


def test_empty_texts_are_an_error_where_training_refuses_them_and_rows_keep_their_numbers(
    tiny: Path, tmp_path: Path
) -> None:
    file = reviews_with(tmp_path, ("", "neg"), ("<br />", "pos"), ("a bell\x07", "pos"))
    found = by_about(doctor.examine(recipe_for(file, tiny, html="strip")))
    assert found["empty texts"].severity == "error"
    assert "2 of 103 rows have no text (rows 101, 102, counted after the header)" in found["empty texts"].sentence
    assert "row 103" in found["control characters"].examples[0]
    dropped = by_about(doctor.examine(recipe_for(file, tiny, on_empty="drop")))
    assert (dropped["empty texts"].severity, dropped["empty texts"].texts) == ("note", 1)


def test_half_a_character_is_an_error_and_the_rest_is_still_said(tiny: Path, tmp_path: Path) -> None:
    texts, ids = texts_and_labels(100)
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(texts, ids, strict=True)]
    file = tmp_path / "halves.jsonl"
    file.write_text("\n".join([*lines, '{"text": "so \\ud83d", "label": 1}', '{"text": null, "label": 1}']))
    found = by_about(doctor.examine(recipe_for(file, tiny, on_empty="drop")))
    assert (found["half characters"].severity, found["half characters"].texts) == ("error", 1)
    assert "1 rows hold half a character, a lone surrogate (row 101," in found["half characters"].sentence
    assert found["empty texts"].texts == 1


def test_a_test_file_that_overlaps_with_training_is_an_error(tiny: Path, tmp_path: Path) -> None:
    texts, _ = texts_and_labels(100)
    test = reviews_with(tmp_path, (texts[4], "neg"), name="test.csv", seed=1)
    file = reviews_with(tmp_path)
    found = doctor.examine(recipe_for(file, tiny, test_source=str(test), test_size=1.0))
    assert [finding.about for finding in found.errors] == ["leak"]
    assert f"{test} row 101 and row 5" in found.errors[0].examples[0]
    assert found.texts["test"] == 101
    apart = reviews_with(tmp_path, name="apart.csv", seed=1)
    assert doctor.examine(recipe_for(file, tiny, test_source=str(apart), test_size=1.0)).errors == []


def test_a_validation_file_that_overlaps_with_training_or_test_is_an_error(tiny: Path, tmp_path: Path) -> None:
    trained, tested = texts_and_labels(100)[0], texts_and_labels(100, seed=1)[0]
    file, test = reviews_with(tmp_path), reviews_with(tmp_path, name="test.csv", seed=1)
    validation = reviews_with(tmp_path, (trained[4], "neg"), (tested[6], "neg"), name="dev.csv", seed=2)
    own = {"validation_source": str(validation), "test_source": str(test)}
    found = doctor.examine(recipe_for(file, tiny, **own))
    assert [finding.about for finding in found.errors] == ["leak", "leak"]
    assert f"{validation} row 101 and row 5" in found.errors[0].examples[0]
    assert f"{test} row 7 and {validation} row 102" in found.errors[1].examples[0]
    assert found.texts == {"all": 302, "train": 99, "validation": 101, "test": 100}
    apart = reviews_with(tmp_path, name="apart.csv", seed=2)
    assert doctor.examine(recipe_for(file, tiny, **own | {"validation_source": str(apart)})).errors == []


def test_splits_that_training_refuses_are_an_error_and_the_rest_is_still_said(tiny: Path, tmp_path: Path) -> None:
    file = reviews_with(tmp_path, ("the odd one", "odd"), ("the odd one", "neg"))
    found = doctor.examine(recipe_for(file, tiny))
    assert [finding.about for finding in found.errors] == ["splits"]
    assert "Too few examples of 'odd'" in found.errors[0].sentence
    assert found.texts["train"] == 0
    assert {"rare classes", "contradictions"} <= by_about(found).keys()


def test_what_the_window_cuts_off_is_measured(tiny: Path, tmp_path: Path) -> None:
    texts, ids = ["film " * 18, "film " * 6] * 10, [0, 1] * 10
    file = write_csv(tmp_path / "long.csv", texts, list(ids))
    found = doctor.examine(recipe_for(file, tiny, max_tokens=10))  # 20 and 8 tokens with the two special ones
    assert found.lengths == doctor.Lengths(10, 14, 20, 20, 0.5, pytest.approx(100 / 280))
    assert by_about(found)["long texts"].severity == "warning"
    in_windows = doctor.examine(recipe_for(file, tiny, max_tokens=10, long_text="windows:mean"))
    assert by_about(in_windows)["long texts"].severity == "note"


def test_an_encoder_that_can_not_read_so_much_is_an_error_beside_the_others(reviews: Path, tiny: Path) -> None:
    found = doctor.examine(recipe_for(reviews, tiny, max_tokens=512))
    assert found.lengths is None
    assert "reads at most 64 tokens" in found.errors[0].sentence
    assert found.texts["all"] == 200


def test_data_that_are_no_texts_with_labels_are_refused_in_one_sentence(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rows have no label in column 'label'"):
        doctor.examine(recipe_for(reviews_with(tmp_path, ("a text", "")), tiny))
    with pytest.raises(DataError, match="has no column 'review'"):
        doctor.examine(recipe_for(reviews_with(tmp_path), tiny, text="review"))


def test_the_labels_of_a_text_are_named_for_either_task() -> None:
    assert doctor._names(1, ["neg", "pos"]) == ("pos",)
    assert doctor._names(np.array([1, 0, 1]), ["a", "b", "c"]) == ("a", "c")
    assert doctor._names(np.array([0, 0]), ["a", "b"]) == ()


def test_several_labels_and_pairs_are_read_as_training_reads_them(tiny: Path, tmp_path: Path) -> None:
    texts, ids = texts_and_labels(60)
    several = write_csv(tmp_path / "several.csv", [*texts, texts[0]], [["a", "b|a"][n] for n in ids] + ["b"])
    found = doctor.examine(recipe_for(several, tiny, label_separator="|"))
    assert (found.classes["a"]["all"], found.classes["b"]["all"]) == (60, 31)
    assert "row 1 (a) and row 61 (b)" in by_about(found)["contradictions"].examples[0]
    rows = [f'"{text}","{texts[0]}",{n}' for text, n in zip([*texts, ""], [*ids, 1], strict=True)]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("\n".join(["text,other,label", *rows, rows[3]]) + "\n")
    found = doctor.examine(recipe_for(pairs, tiny, text_pair="other"))
    assert by_about(found)["empty texts"].texts == 1
    assert "row 4 and row 62" in by_about(found)["duplicates"].examples[0]


def test_near_duplicates_across_our_splits_are_a_warning(tiny: Path, tmp_path: Path) -> None:
    texts, ids = texts_and_labels(60)
    file = write_csv(tmp_path / "twice.csv", texts + [text.upper() for text in texts], [*ids, *ids])
    found = doctor.examine(recipe_for(file, tiny))
    warning = next(finding for finding in found.findings if finding.severity == "warning")
    made = splits.split(data.clean(data.open_source(str(file))), 0.7, 0.15, 0.15)
    trained = {text.lower() for text in made["train"].texts}
    held_out = [text.lower() for name in ("validation", "test") for text in made[name].texts]
    assert warning.about == "near duplicates"
    assert warning.texts == sum(text in trained for text in held_out) > 0
    assert found.errors == []


@pytest.fixture(scope="module")
def mislabelled(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory, proved_in_this_process: None
) -> tuple[Run, list[str], list[str]]:
    """A run in whose validation and test some texts have a wrong label: the run, those, and all texts by their row."""
    folder = tmp_path_factory.mktemp("mislabelled")
    texts, ids = texts_and_labels(200)
    labels: list[object] = [["neg", "pos"][label_id] for label_id in ids]
    file = write_csv(folder / "clean.csv", texts, labels)
    parts = splits.split(data.clean(data.open_source(str(file))), 120, 40, 40)
    wrong = [text for name in ("validation", "test") for text in parts[name].texts[:2] + parts[name].texts[-2:]]
    flipped = [["neg", "pos"][(text in wrong) ^ label_id] for text, label_id in zip(texts, ids, strict=True)]
    made = recipe.from_values(
        {
            "data": {
                "source": str(write_csv(folder / "wrong.csv", texts, list(flipped))),
                "train_size": 120,
                "validation_size": 40,
                "test_size": 40,
                "max_tokens": 64,
            },
            "encoder": {"name": str(tiny), "precision": "fp32"},
            "training": {"epochs": 4, "learning_rate": 2e-2, "batch_size": 8},
        }
    )
    run = pipeline.train(made, folder / "run")
    held_out = {text for name in ("validation", "test") for text in run_texts(run, name)}
    return run, [str(text) for text in wrong if text in held_out], texts


def test_after_a_run_the_label_errors_planted_in_held_out_texts_are_named_likeliest_first(
    mislabelled: tuple[Run, list[str], list[str]],
) -> None:
    run, planted, texts = mislabelled
    found = by_about(doctor.examine_run(run))["label errors"]
    assert (found.severity, len(found.examples)) == ("warning", min(10, found.texts))
    named = [example.split('"')[1].removesuffix("...") for example in found.examples]
    assert sum(any(text.startswith(start) for text in planted) for start in named) >= 0.75 * len(planted) > 2
    assert "labelled neg, the adapter says pos" in "".join(found.examples)
    assert found.sentence.endswith("Read them, and mend those that are wrong.")
    for example, start in zip(found.examples, named, strict=True):
        row = int(example.removeprefix("row ").partition(",")[0])
        assert texts[row - 1].startswith(start)


@pytest.mark.filterwarnings("ignore:After epoch")
def test_of_several_labels_a_text_the_planted_errors_are_named_too(
    tiny_recipe: Callable[..., Any], tmp_path: Path, proved_in_this_process: None, recwarn: pytest.WarningsRecorder
) -> None:
    pytest.importorskip("cleanlab", reason="label errors need the extra doctor")
    texts, given = topics_and_texts(300)
    data = write(tmp_path, pd.DataFrame({"text": texts[:240], "label": given[:240]}), "jsonl")
    spoiled = [_with_or_without("musical", some) for some in given[240:244]] + given[244:]
    write_table(pd.DataFrame({"text": texts[240:], "label": spoiled}), tmp_path / "test.jsonl")
    data |= {"train_size": 180, "validation_size": 60, "test_source": str(tmp_path / "test.jsonl"), "test_size": 60}
    run = pipeline.train(tiny_recipe(data=data, training={"epochs": 5}), tmp_path / "run")
    found = by_about(doctor.examine_run(run))["label errors"]
    first = {
        int(example.split(" row ")[1].partition(",")[0]) for example in found.examples[:6] if "test.jsonl" in example
    }
    assert first >= {1, 2, 3, 4}
    assert found.texts < 20
    assert not [warning for warning in recwarn if "multi_label" in str(warning.message)]  # cleanlab's own, deprecated


def _with_or_without(label: str, labels: list[str]) -> list[str]:
    return [one for one in labels if one != label] if label in labels else [*labels, label]


def test_what_the_adapter_says_goes_by_its_thresholds(
    mislabelled: tuple[Run, list[str], list[str]], tmp_path: Path
) -> None:
    copy = runs.open_run(Path(shutil.copytree(mislabelled[0].path, tmp_path / "run")))
    reseal(copy.adapter, thresholds=[1 - 1e-9, 1e-9])
    found = by_about(doctor.examine_run(copy))["label errors"]
    assert all("the adapter says pos" in example for example in found.examples)
    assert "But the adapter itself contradicts" in found.sentence


def test_a_run_whose_data_has_changed_is_not_examined(
    mislabelled: tuple[Run, list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = mislabelled[0]
    file = Path(run.recipe.data.source)
    before = file.read_text()
    try:
        file.write_text(before + '"one more film",pos\n')
        with pytest.raises(RunError, match="has changed since it was started, or was prepared by an earlier lorafit"):
            doctor.examine_run(run)
    finally:
        file.write_text(before)


def test_an_adapter_that_knows_no_more_than_one_answer_to_everything_comes_with_a_caveat() -> None:
    labels = np.array([0, 1, 0, 1, 0])
    assert "contradicts 40.0% of the labels, and one answer to everything would contradict 40.0%" in doctor._caveat(
        np.zeros(5, dtype=np.int64), labels
    )
    assert doctor._caveat(labels, labels) == ""
    several = np.array([[0, 1], [1, 1], [0, 0], [0, 1]])
    assert "contradicts 25.0% of the labels" in doctor._caveat(np.array([[0, 1]] * 4), several)
    assert doctor._caveat(several, several) == ""


def run_texts(run: Run, split: str) -> list[str]:
    return pipeline.data_of(run).splits[split].texts


def test_a_run_keeps_its_own_recipe(cli: Cli, trained: Path) -> None:
    assert "A run has its own recipe" in cli("doctor", trained, "--small").err
    said = cli("doctor", trained)
    assert said.code == 0
    assert "median" in said.out


def test_the_command_prints_everything_and_leaves_with_2_where_something_has_to_be_mended(
    cli: Cli, tiny: Path, tmp_path: Path
) -> None:
    file = reviews_with(tmp_path, ("", "neg"), ("a bell\x07", "pos"))
    settings = ["-s", f"encoder.name={tiny}", "-s", "data.max_tokens=64"]
    said = cli("doctor", file, *settings)
    assert said.code == 2
    assert "Traceback" not in said.err
    assert all(
        word in said.out for word in ("error", "empty texts", "warning", "control characters", "50.5%", "median")
    )
    as_json = cli("doctor", file, "--json", "--quiet", *settings)
    assert (as_json.code, json.loads(as_json.out)["texts"]["all"]) == (2, 101)
    clean = cli("doctor", reviews_with(tmp_path, name="clean.csv"), *settings)
    assert (clean.code, "Nothing stands out." in clean.out) == (0, True)
    refused = cli("doctor", file, "--label-column", "nothing", "--text-column", "text", *settings)
    assert (refused.code, refused.err.count("Error: ")) == (2, 1)
