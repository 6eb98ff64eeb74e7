"""Labels are read in every form that data has them in, and a cell that can't be one is named."""

from typing import Any

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
        (["a|b", "", "a"], {"separator": "|"}, "f.csv: 1 rows have no label in column 'label' (row 2,"),
        (
            ["a|b", "|", "a"],
            {"separator": "|"},
            "row 2 of column 'label' holds '|', which has separators '|' and no label",
        ),
        ([["a", "b"], None], {}, "1 rows have no label in column 'label' (row 2,"),
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
        ([1, None], {"column": ["label", "label"]}, "1 rows have no label in column 'label' (row 2,"),
    ],
)
def test_a_cell_that_is_no_label_is_named(cells: list[Any], options: dict[str, Any], sentence: str) -> None:
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
