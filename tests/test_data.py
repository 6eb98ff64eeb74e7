"""Sources, and what is read from them."""

from pathlib import Path

import pandas as pd
import pytest

from lorafit import bundled, data
from lorafit.data import Source
from lorafit.errors import DataError


def source(texts: list[object], labels: list[object], names: list[str] | None = None) -> Source:
    return Source(
        pd.DataFrame({"text": texts, "label": labels}, dtype=object), "f.csv", "", {"label": names} if names else {}
    )


def test_label_names_are_found_declared_or_the_sources_own() -> None:
    assert data.clean(source(["a", "b"], ["pos", "neg"])).labels == ["neg", "pos"]
    assert data.clean(source(["a", "b"], ["pos", "neg"]), labels=["pos", "neg"]).label_ids.tolist() == [0, 1]
    assert data.clean(source(["a", "b", "c"], [10, 9, 9])).labels == ["9", "10"]
    own = data.clean(source(["a", "b"], ["pos", "neg"], ["pos", "neg"]))
    assert (own.labels, own.label_ids.tolist()) == (["pos", "neg"], [0, 1])
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
        (["a", "so\ud83d"], [0, 1], {}, "1 texts in column 'text' hold half a character, a lone surrogate such as"),
        (["a", "\udc00b"], [0, 1], {}, "(row 2, counted after the header). Mend them"),
        (["a", "b"], [0, None], {}, "1 of 2 rows have no label in column 'label' (row 2,"),
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
    for label in ("good\nfilm", "good\ud83d", "g" * 1001):
        with pytest.raises(DataError, match=r"f.csv: row 2: the label 'g.* can't be a name: it has a line break"):
            data.clean(source(["a", "b"], ["bad", label]))


def test_integers_in_a_test_do_not_stand_for_names_that_were_only_found() -> None:
    with pytest.raises(DataError, match=r"'1' in row 1, row 2, .* Integers stand for names only in the order that"):
        data.clean(source(["a", "b"], [1, 0]), known=["bad", "good"])
    assert data.clean(source(["a", "b"], [1, 0]), labels=["good", "bad"]).label_ids.tolist() == [1, 0]
    assert data.clean(source(["a", "b"], ["10", "9"]), known=["9", "10"]).label_ids.tolist() == [1, 0]


def test_empty_rows_are_dropped_when_the_recipe_says_so() -> None:
    cleaned = data.clean(source(["a", "", "b"], [0, 0, 1]), on_empty="drop")
    assert (cleaned.texts, cleaned.label_ids.tolist()) == (["a", "b"], [0, 1])


def test_marks_stay_unless_the_recipe_says_strip() -> None:
    marked = source(["good<br /><br />film", "1 < 2 and 3 > 2"], [0, 1])
    assert data.clean(marked).texts[0] == "good<br /><br />film"
    assert data.clean(marked, html="strip").texts == ["good  film", "1 < 2 and 3 > 2"]


def test_label_names_are_those_of_the_label_column() -> None:
    table = pd.DataFrame({"text": ["a", "b"], "label": [0, 1], "topic": ["art", "war"]})
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


def test_pairs_are_read_from_two_columns_and_checked_in_both() -> None:
    table = pd.DataFrame({"a": ["one<br />", "two", "three"], "b": ["uno", "dos", ""], "label": ["x", "y", "x"]})
    pairs = Source(table, "f.csv", "")
    read = data.clean(pairs, text="a", text_pair="b", on_empty="drop", html="strip")
    assert read.texts == [("one ", "uno"), ("two", "dos")]
    with pytest.raises(DataError, match=r"f.csv: 1 of 3 rows have no text .row 3,"):
        data.clean(pairs, text="a", text_pair="b")
    numbers = Source(table.assign(b=[1, 2, 3]), "f.csv", "")
    with pytest.raises(DataError, match=r"column 'b' holds numbers .such as 1., not texts. Set data.text_pair"):
        data.clean(numbers, text="a", text_pair="b")
