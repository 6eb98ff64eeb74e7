"""Labels are read in every form that data has them in, and a cell that can't be one is named."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from lorafit import labels
from lorafit.errors import DataError, LorafitWarning


def read(cells: list[Any], column: str | list[str] = "label", **options: Any) -> tuple[list[str], list[Any]]:
    table = pd.DataFrame({"label": pd.Series(cells, dtype=object)})
    names, label_ids = labels.read(table, range(len(cells)), column, place="f.csv", **options)
    return names, label_ids.tolist()


BOTH = (["art", "war"], [[1, 1], [0, 1], [0, 0]])


def test_every_form_of_several_labels_says_the_same() -> None:
    assert read([["war", "art"], ["war"], []]) == BOTH
    assert read(['["art", "war", "art"]', '["war"]', "[]"], separator="json") == BOTH
    assert read([["art", "war"], ["war"], []], separator="json") == BOTH
    assert read(["art | war", " war|"], separator="|") == (["art", "war"], [[1, 1], [0, 1]])
    columns = pd.DataFrame({"art": [1, "0", "false"], "war": [True, 1.0, "False"]}, dtype=object)
    names, label_ids = labels.read(columns, [0, 1, 2], ["art", "war"])
    assert (names, label_ids.tolist()) == BOTH


def test_integers_are_labels_and_stand_for_declared_names() -> None:
    assert read([[10, 9], [9]]) == (["9", "10"], [[1, 1], [1, 0]])
    assert read(["1;0", "1"], separator=";", declared=["art", "war"]) == (["art", "war"], [[1, 1], [0, 1]])
    assert read([1, 0], declared=["neg", "pos"]) == (["neg", "pos"], [1, 0])


@pytest.mark.parametrize(
    ("cells", "options", "sentence"),
    [
        (["a|b", "", "a"], {"separator": "|"}, "f.csv: 1 of 3 rows have no label in column 'label' (row 2,"),
        (
            ["a|b", "|", "a"],
            {"separator": "|"},
            "row 2 of column 'label' holds '|', which has separators '|' and no label",
        ),
        ([["a", "b"], None], {}, "1 of 2 rows have no label in column 'label' (row 2,"),
        ([["a", "b"], "a"], {}, "row 2 of column 'label' holds 'a', where others hold lists of labels"),
        (
            [["a", "b"], ["a", None]],
            {},
            "row 2 of column 'label' holds ['a', None], in which not everything is a label",
        ),
        ([["a", "b"], ["a", ["b"]]], {}, "in which not everything is a label"),
        (
            ["[]", "a, b"],
            {"separator": "json"},
            "row 2 of column 'label' holds 'a, b', which is no JSON list of labels",
        ),
        (["[]", '{"a": 1}'], {"separator": "json"}, 'which is no JSON list of labels, such as ["a", "b"]'),
        (["a", "a"], {"separator": "|"}, "column 'label' holds only the label 'a'; a classifier needs two"),
        ([[], []], {}, "column 'label' holds no label; a classifier needs two"),
        (["a|b", "a"], {"separator": "|", "declared": ["a", "b|c"]}, "the label 'b|c' has the separator '|' in it"),
        ([["a;b"], ["c"]], {"separator": ";"}, "the label 'a;b' has the separator ';' in it"),
        ([["war"], ["wra"]], {"declared": ["art", "war"]}, "'wra' in row 2. Did you mean 'war'?"),
        (
            [1, 2],
            {"column": ["label", "label"]},
            "row 2 of column 'label' holds 2, where a label's own column holds 0 or",
        ),
        ([1, None], {"column": ["label", "label"]}, "1 of 2 rows have no label in column 'label' (row 2,"),
    ],
)
def test_a_cell_that_is_no_label_is_named(cells: list[Any], options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError) as error:
        read(cells, **options)
    assert sentence in str(error.value)


@pytest.mark.parametrize("cells", [["²", "①"], ["--1", "2"], ["1" * 999, "2"], ["1", "01", "001"], ["-1", "10", "9"]])
def test_labels_that_look_like_numbers_have_one_order(cells: list[str]) -> None:
    names, _ = read(cells)
    assert names == read(cells[::-1])[0]
    assert read(["-1", "10", "9", "09"])[0] == ["-1", "09", "9", "10"]
    assert read(["0", "1"], declared=["²", "①"])[1] == [0, 1]


def test_the_same_labels_everywhere_are_refused_and_lists_of_flags_are_named() -> None:
    with pytest.raises(DataError, match=r"every row has the very same labels, \['a', 'b'\]; there is nothing to tell"):
        read([["a", "b"], ["b", "a"]])
    for cells in ([[0, 1, 0], [1, 0, 0]], [[0, 1], [1, 0]], [[0, 0, 0], [0, 1, 0], [1, 0, 0]]):
        with pytest.raises(DataError, match="holds lists of 0 and 1, .* want a column for each label: data.label = "):
            read(cells)
    assert read([[0], [1], [0, 1]])[1] == [[1, 0], [0, 1], [1, 1]]
    with pytest.raises(DataError, match="every row has the very same labels, .'label'.; there is nothing"):
        labels.read(pd.DataFrame({"label": [1, 1], "b": [0, 0]}), [0, 1], ["label", "b"])


def test_the_name_of_a_labels_own_column_is_a_label_too() -> None:
    table = pd.DataFrame({"art\x1b": [0, 1], "war": [1, 1]})
    with pytest.raises(DataError, match=r"f.csv: the label 'art.x1b' can't be a name"):
        labels.read(table, [0, 1], ["art\x1b", "war"], place="f.csv")


@pytest.mark.parametrize(
    ("cells", "options", "sentence"),
    [
        (
            [[1.0, float("nan")], [1]],
            {},
            "row 1 of column 'label' holds [1.0, nan], in which not everything is a label",
        ),
        (["[NaN]", '["a"]'], {"separator": "json"}, "row 1 of column 'label' holds '[NaN]', in which not"),
        ([["a"], [{"b": 1}]], {}, "row 2 of column 'label' holds [{'b': 1}], in which not everything is a label"),
        ([["a"], [np.array([1, 2])]], {}, "row 2 of column 'label' holds"),
        (["a", {"b": 1}], {}, "1 of 2 rows have no label in column 'label' (row 2,"),
    ],
)
def test_what_is_no_label_is_refused_with_its_row(cells: list[Any], options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError) as error:
        read(cells, **options)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("cells", "suspected"),
    [
        (["a|b", "c|d"], True),  # nearly all
        (["a", "b", "a;b"], True),  # they share their parts
        (["arts, crafts", "war", "news"], False),
        (["news/art", "news/war"], False),
    ],
)
def test_labels_that_look_like_several_are_spoken_of(
    cells: list[str], suspected: bool, recwarn: pytest.WarningsRecorder
) -> None:
    if suspected:
        with pytest.warns(LorafitWarning, match="If they are several, set data.label_separator = "):
            read(cells)
    else:
        read(cells)
        assert not [warning for warning in recwarn if issubclass(warning.category, LorafitWarning)]
