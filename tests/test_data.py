"""Sources, labels and splits."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lorafit import bundled, data, splits
from lorafit.data import Source, Texts
from lorafit.errors import DataError


def source(texts: list[object], labels: list[object], names: list[str] | None = None) -> Source:
    return Source(
        pd.DataFrame({"text": texts, "label": labels}, dtype=object), "f.csv", "", {"label": names} if names else {}
    )


def test_label_names_are_found_declared_or_the_sources_own() -> None:
    assert data.clean(source(["a", "b"], ["pos", "neg"])).labels == ["neg", "pos"]
    assert data.clean(source(["a", "b"], ["pos", "neg"]), labels=["pos", "neg"]).label_ids.tolist() == [0, 1]
    assert data.clean(source(["a", "b", "c"], [10, 9, 9])).labels == ["9", "10"]
    integers = data.clean(source(["a", "b"], [1, 0], ["neg", "pos"]))
    assert (integers.labels, integers.label_ids.tolist()) == (["neg", "pos"], [1, 0])
    assert data.clean(source(["a", "b"], ["1", "0"]), labels=["neg", "pos"]).label_ids.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("texts", "labels", "options", "sentence"),
    [
        (
            ["a", "", None, "b"],
            [0, 1, 0, 1],
            {},
            "f.csv: 2 of 4 rows have no text (rows 2, 3, counted after the header)",
        ),
        (["a", "  "], [0, 1], {}, "1 of 2 rows have no text (row 2,"),
        (["", ""], [0, 1], {"on_empty": "drop"}, "every row's text is empty"),
        (["1", "2.5"], [0, 1], {}, "column 'text' holds numbers (such as 1), not texts"),
        ([1, 2], [0, 1], {}, "column 'text' holds numbers (such as 1), not texts"),
        (["a", ["b"]], [0, 1], {}, "row 2 of column 'text' holds a value of type list, not a text"),
        (["a", "b"], [0, None], {}, "1 rows have no label in column 'label' (row 2,"),
        (["a", "b"], ["x", "x"], {}, "every row has the label 'x'; a classifier needs two classes"),
        (["a", "b"], ["po", "neg"], {"labels": ["neg", "pos"]}, "'po' in row 1. Did you mean 'pos'?"),
        (["a", "b"], [0, 7], {"labels": ["neg", "pos"]}, "'7' in row 2"),
        (["a"], [0], {"text": "review"}, "f.csv has no column 'review'; its columns are text, label."),
    ],
)
def test_bad_data_is_named_by_column_and_row(
    texts: list[object], labels: list[object], options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(DataError) as error:
        data.clean(source(texts, labels), **options)
    assert sentence in str(error.value)


def test_a_label_that_breaks_a_line_is_no_name() -> None:
    table = pd.DataFrame({"text": ["a", "b"], "label": ["good\nfilm", "bad"]})
    with pytest.raises(DataError, match="can't be a name: it has a line break"):
        data.clean(data.Source(table, "here", "", {}))


def test_empty_rows_are_dropped_when_the_recipe_says_so() -> None:
    cleaned = data.clean(source(["a", "", "b"], [0, 0, 1]), on_empty="drop")
    assert (cleaned.texts, cleaned.label_ids.tolist()) == (["a", "b"], [0, 1])


def test_marks_stay_unless_the_recipe_says_strip() -> None:
    marked = source(["good<br /><br />film", "1 < 2 and 3 > 2"], [0, 1])
    assert data.clean(marked).texts[0] == "good<br /><br />film"
    assert data.clean(marked, html="strip").texts == ["good  film", "1 < 2 and 3 > 2"]


def assert_no_text_in_two(parts: dict[str, Texts]) -> None:
    homes = Counter(text for part in parts.values() for text in set(part.texts))
    assert set(homes.values()) == {1}


def pool(count: int, classes: int = 2, copies: int = 1) -> Texts:
    texts = [f"text {n // copies}" for n in range(count)]
    return Texts(texts, np.arange(count) // copies % classes, [str(n) for n in range(classes)])


def test_splits_have_their_sizes_and_their_shares_of_each_class() -> None:
    uneven = Texts([f"t{n}" for n in range(1000)], (np.arange(1000) % 10 == 0).astype(np.int64), ["a", "b"])
    parts = splits.split(uneven, 500, 200, 100)
    assert {name: len(part) for name, part in parts.items()} == {"train": 500, "validation": 200, "test": 100}
    assert {name: sum(part.label_ids) for name, part in parts.items()} == {"train": 50, "validation": 20, "test": 10}
    everything = splits.split(uneven, 0.7, 0.15, 0.15)
    assert sorted(text for part in everything.values() for text in part.texts) == sorted(uneven.texts)


def test_splits_are_a_function_of_the_seed() -> None:
    first, again, other = (
        {name: part.texts for name, part in splits.split(pool(100), 50, 20, 20, seed=seed).items()}
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_identical_texts_stay_together() -> None:
    parts = splits.split(pool(600, copies=3), 200, 101, 100, seed=3)
    assert_no_text_in_two(parts)
    assert len(parts["train"]) >= 198  # a class quota that 3 does not divide leaves at most 2 free
    every = Counter(text for part in parts.values() for text in part.texts)
    assert set(every.values()) == {3}


@pytest.mark.soak
def test_splits_keep_their_promises_whatever_the_data() -> None:
    for seed in range(2000):
        random = np.random.default_rng(seed)
        count = int(random.integers(100, 400))
        texts = [f"t{n}" for n in random.integers(0, count, count)]
        classes = int(random.integers(2, 4))
        whole = Texts(texts, np.array([int(text[1:]) % classes for text in texts]), list("abc")[:classes])
        sizes = [int(count * share) for share in (0.5, 0.2, 0.2)]
        parts = splits.split(whole, *sizes, seed=seed)
        assert_no_text_in_two(parts)
        assert all(len(part) <= size for part, size in zip(parts.values(), sizes, strict=True))


def test_texts_of_an_official_test_leave_the_training_pool() -> None:
    test = Texts(["text 0", "text 1", "other"], np.array([0, 1, 1]), ["0", "1"])
    parts = splits.split(pool(20), 0.5, 0.5, 1.0, test=test)
    assert not set(test.texts) & (set(parts["train"].texts) | set(parts["validation"].texts))
    assert sorted(parts["test"].texts) == sorted(test.texts)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ((80, 20, 20), "The splits ask for 120 texts (80 + 20 + 20); there are 100"),
        ((0.9, 0.2, 0.2), "The splits ask for 130 texts"),
        ((50, 1, 20), "Too few examples of '1': 1 validation texts would hold none"),
        ((97, 1, 2), "Too few examples of"),
    ],
)
def test_too_few_examples_for_the_split_are_refused(sizes: tuple[float, float, float], sentence: str) -> None:
    with pytest.raises(DataError) as error:
        splits.split(pool(100), *sizes)
    assert sentence in str(error.value)


def test_a_rare_class_is_never_missing_from_a_split_in_silence() -> None:
    rare, enough = (
        Texts([f"t{n}" for n in range(100)], (np.arange(100) < count).astype(np.int64), ["a", "b"]) for count in (5, 12)
    )
    with pytest.raises(DataError, match=r"Too few examples of 'b': 10 (validation|test) texts would hold none"):
        splits.split(rare, 0.8, 0.1, 0.1)
    parts = splits.split(enough, 0.7, 0.15, 0.15)
    assert [sum(part.label_ids) for part in parts.values()] == [8, 2, 2]
    assert sum(map(len, parts.values())) == 100


def test_label_names_are_those_of_the_label_column() -> None:
    table = pd.DataFrame({"text": ["a", "b"], "label": [0, 1], "topic": [0, 1]})
    declared = Source(table, "f", "", {"topic": ["art", "war"]})
    assert data.clean(declared).labels == ["0", "1"]
    assert data.clean(declared, label="topic").labels == ["art", "war"]


def test_the_bundled_reviews_are_the_ones_we_know() -> None:
    imdb = data.clean(data.open_source("bundled:imdb"), labels=["neg", "pos"])
    assert (len(imdb), sum(imdb.label_ids)) == (25_000, 12_500)
    assert len(imdb.texts) - len(set(imdb.texts)) == 96
    tomatoes = data.clean(data.open_source("bundled:rotten-tomatoes"))
    assert (len(tomatoes), tomatoes.labels) == (8_530, ["neg", "pos"])


def test_a_bundled_file_that_was_changed_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "reviews.csv"
    changed.write_text("text,label,source\n")
    monkeypatch.setattr(bundled, "_installed", lambda *_: changed)
    with pytest.raises(DataError, match=r"is not the file lorafit knows .its SHA-256"):
        data.open_source("bundled:imdb")


def test_a_source_that_does_not_exist_says_what_there_is() -> None:
    with pytest.raises(DataError, match="There is no bundled data set 'imbd'; .* Did you mean 'imdb'"):
        data.open_source("bundled:imbd")
    with pytest.raises(DataError, match="A data set of the Hub is written hub:stanfordnlp/imdb"):
        data.open_source("stanfordnlp/imdb")
