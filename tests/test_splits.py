"""Splits keep shares, identical texts and promises."""

from collections import Counter

import numpy as np
import pytest

from lorafit import splits
from lorafit.data import Texts
from lorafit.errors import DataError


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
    parts = splits.split(pool(20), 0.5, 0.5, 1.0, own={"test": test})
    assert not set(test.texts) & (set(parts["train"].texts) | set(parts["validation"].texts))
    assert sorted(parts["test"].texts) == sorted(test.texts)
    left_out = splits.overlaps(pool(20), {"test": test})
    assert (
        splits.describe(left_out)
        == "Texts of the training source that stand in validation or test too: 2. They are left out of training."
    )


def test_of_official_splits_what_stands_in_two_is_left_out_of_the_earlier() -> None:
    validation = Texts(["text 0", "mine", "yours", "both"], np.array([0, 1, 0, 1]), ["0", "1"])
    test = Texts(["text 1", "both", "other"], np.array([1, 1, 0]), ["0", "1"])
    both = {"validation": validation, "test": test}
    parts = splits.split(pool(20), 1.0, 1.0, 1.0, own=both)
    assert_no_text_in_two(parts)
    assert list(parts) == ["train", "validation", "test"]
    assert parts["train"].texts == [f"text {n}" for n in range(2, 20)]
    assert parts["validation"].texts == validation.texts[:3]
    assert parts["test"].texts == test.texts
    assert splits.overlaps(pool(20), both) == {"train": 2, "validation": 1}
    some = splits.split(pool(20), 10, 2, 2, own=both)
    assert {name: len(part) for name, part in some.items()} == {"train": 10, "validation": 2, "test": 2}


def test_beside_an_official_validation_the_test_is_split_from_the_training_source() -> None:
    validation = Texts(["text 0", "mine", "yours"], np.array([0, 1, 0]), ["0", "1"])
    parts = splits.split(pool(41), 0.75, 1.0, 0.25, own={"validation": validation})
    assert_no_text_in_two(parts)
    assert {name: len(part) for name, part in parts.items()} == {"train": 30, "validation": 3, "test": 10}


def test_an_official_split_that_is_another_one_is_refused() -> None:
    with pytest.raises(DataError, match="Every training text stands in the test too: nothing is left to train on"):
        splits.split(pool(20), 0.5, 0.5, 1.0, own={"test": pool(20)})
    both = {"validation": pool(10), "test": Texts([f"text {n}" for n in range(10, 20)], pool(10).label_ids, ["0", "1"])}
    with pytest.raises(
        DataError, match="in the validation or the test too: .* data.validation_source and data.test_so"
    ):
        splits.split(pool(20), 1.0, 1.0, 1.0, own=both)
    other = Texts(["a", "b"], np.array([0, 1]), ["0", "1"])
    with pytest.raises(DataError, match="Every validation text stands in the test too: .* data.validation_source, or"):
        splits.split(pool(20), 1.0, 1.0, 1.0, own={"validation": other, "test": other})


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


@pytest.mark.parametrize(("rare", "dealt"), [(5, [3, 1, 1]), (12, [8, 2, 2])])
def test_a_class_of_five_examples_and_more_stands_in_every_split(rare: int, dealt: list[int]) -> None:
    given = Texts([f"t{n}" for n in range(100)], (np.arange(100) < rare).astype(np.int64), ["a", "b"])
    parts = splits.split(given, 0.7, 0.15, 0.15)
    assert [sum(part.label_ids) for part in parts.values()] == dealt
    assert [len(part) for part in parts.values()] == [70, 15, 15]


def test_a_rare_class_is_never_missing_from_a_split_in_silence() -> None:
    names = [f"class {n}" for n in range(30)]
    given = Texts([f"t{n}" for n in range(300)], np.arange(300) % 30, names)
    with pytest.raises(DataError, match=r"Too few examples of 'class \d+': 20 (validation|test) texts would hold none"):
        splits.split(given, 260, 20, 20)


def tagged(count: int, seed: int = 0, labels: int = 5) -> Texts:
    """Return texts with labels of which each is rarer than the one before, some texts without any."""
    chance = np.random.default_rng(seed)
    label_ids = (chance.random((count, labels)) < 0.5 ** np.arange(1, labels + 1)).astype(np.int64)
    return Texts([f"text {n}" for n in range(count)], label_ids, [f"label {n}" for n in range(labels)])


def test_of_several_labels_each_split_has_its_share_of_each_and_its_size() -> None:
    whole = tagged(1000)
    parts = splits.split(whole, 500, 200, 100)
    assert {name: len(part) for name, part in parts.items()} == {"train": 500, "validation": 200, "test": 100}
    assert_no_text_in_two(parts)
    for part in parts.values():
        fair = whole.examples() * len(part) / len(whole)
        assert np.abs(part.examples() - fair).max() <= 3
    again = splits.split(whole, 500, 200, 100)
    assert [part.texts for part in again.values()] == [part.texts for part in parts.values()]
    assert [p.texts for p in splits.split(whole, 500, 200, 100, seed=1).values()] != [p.texts for p in parts.values()]


def test_a_label_of_five_texts_stands_in_every_split() -> None:
    rare = tagged(200)
    rare.label_ids[:, 4] = np.arange(200) < 5
    for seed in range(20):
        parts = splits.split(rare, 0.7, 0.15, 0.15, seed=seed)
        assert all(part.examples()[4] >= 1 for part in parts.values())


def test_identical_texts_with_several_labels_stay_together() -> None:
    whole = tagged(300)
    copies = Texts(whole.texts * 2, np.concatenate([whole.label_ids] * 2), whole.labels)
    parts = splits.split(copies, 0.7, 0.15, 0.15)
    assert_no_text_in_two(parts)
    assert set(Counter(text for part in parts.values() for text in part.texts).values()) == {2}


def test_fewer_than_five_examples_of_a_label_are_refused() -> None:
    few = Texts([f"t{n}" for n in range(100)], np.minimum(np.arange(100) // 4, 2), ["a", "b", "c"])
    with pytest.raises(DataError, match=r"Too few examples of 'a' .and 1 more.: there are 4, at least 5 are"):
        splits.split(few, 0.7, 0.15, 0.15)
    none = tagged(200, labels=4)
    none.label_ids[:, 3] = 0
    with pytest.raises(DataError, match="Too few examples of 'label 3': there are 0"):
        splits.split(none, 0.7, 0.15, 0.15)


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_label_that_an_official_split_lacks_is_refused(name: str) -> None:
    lacking = Texts(["other", "another"], np.array([0, 0]), ["0", "1"])
    with pytest.raises(DataError, match=f"No {name} text has the label '1', which the training texts have"):
        splits.split(pool(20), 0.5, 0.5, 0.5, own={name: lacking})
    several = f"The {name} texts have lists of labels, and the training texts one label each"
    with pytest.raises(DataError, match=several):
        splits.split(pool(20), 0.5, 0.5, 0.5, own={name: tagged(10)})
