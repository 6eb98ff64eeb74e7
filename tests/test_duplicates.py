"""Near duplicates: found at their exact likeness, whatever their number."""

import random
import time
from itertools import combinations

import numpy as np
import pytest

from lorafit import duplicates

WORDS = [f"word{number}" for number in range(20_000)]


def distinct_words(count: int, seed: int = 0) -> list[str]:
    return random.Random(seed).sample(WORDS, count)


def with_words_changed(words: list[str], places: range) -> list[str]:
    return [f"other{place}" if place in places else word for place, word in enumerate(words)]


@pytest.mark.parametrize("changed", [1, 3, 6, 7, 12])
def test_a_planted_pair_is_found_with_the_likeness_that_it_has(changed: int) -> None:
    words = distinct_words(300)
    planted = with_words_changed(words, range(10, 10 + 20 * changed, 20))  # each takes five shingles of 296 with it
    likeness = (296 - 5 * changed) / (296 + 5 * changed)
    found = duplicates.find([" ".join(words), "something else altogether, as it happens", " ".join(planted)])
    assert found.groups == ([[0, 2]] if likeness >= 0.8 else [])
    assert found.likeness.tolist() == ([pytest.approx(likeness)] if likeness >= 0.8 else [])


def test_case_punctuation_and_tags_make_no_difference() -> None:
    found = duplicates.find(["A film,<br />to remember: warm!", "<p>a FILM to remember - warm</p>", "a film to forget"])
    assert (found.pairs.tolist(), found.likeness.tolist()) == ([[0, 1]], [1.0])


def test_short_texts_are_alike_only_with_the_same_words_and_those_without_words_never() -> None:
    texts = ["good", "Good!", "good film", "", "!!", "?!", "film good", "good film."]
    assert duplicates.find(texts).groups == [[0, 1], [2, 7]]
    assert duplicates.find([]).groups == []


def test_the_groups_are_those_of_comparing_every_text_with_every_other() -> None:
    chance = random.Random(1)
    families = [distinct_words(chance.randint(30, 120), seed) for seed in range(40)]
    texts = []
    for words in families:
        for _ in range(5):
            changed = chance.sample(range(len(words)), chance.randint(0, 4))
            texts.append(" ".join("changed" if place in changed else word for place, word in enumerate(words)))
    shingles = [{tuple(text.split()[place : place + 5]) for place in range(len(text.split()) - 4)} for text in texts]
    group_of = list(range(len(texts)))
    for one, other in combinations(range(len(texts)), 2):
        if len(shingles[one] & shingles[other]) >= 0.8 * len(shingles[one] | shingles[other]):
            group_of = [group_of[one] if group == group_of[other] else group for group in group_of]
    members = [[text for text, of in enumerate(group_of) if of == group] for group in dict.fromkeys(group_of)]
    expected = sorted(group for group in members if len(group) > 1)
    assert 20 < len(expected) < 60
    assert sorted(duplicates.find(texts).groups) == expected


def test_many_texts_from_one_template_are_compared_in_proportion_to_their_number() -> None:
    words = distinct_words(100)
    texts = [" ".join([*words, f"number{place}"]) for place in range(500)]
    found = duplicates.find(texts)
    assert [len(group) for group in found.groups] == [500]
    assert len(found.pairs) < 20 * len(texts)  # all of them would be 125,000


def test_ten_thousand_short_texts_take_seconds() -> None:
    chance = random.Random(2)
    texts = [" ".join(chance.choices(WORDS, k=12)) for _ in range(10_000)]
    planted = [[place, place + 5_000] for place in range(50)]
    for one, other in planted:
        texts[other] = texts[one].upper()
    start = time.perf_counter()
    found = duplicates.find(texts)
    assert time.perf_counter() - start < 20  # measured: 1
    assert found.groups == planted
    assert np.array_equal(found.pairs, duplicates.find(texts).pairs)
