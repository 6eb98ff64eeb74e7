"""Which words carried a decision: they sum to it, the deciding one is named first, and the check tells."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lorafit import explain as explaining
from lorafit import predict
from lorafit.errors import DataError, LorafitError
from lorafit.explain import Explanation, explain
from tests.conftest import Said

pytestmark = pytest.mark.usefixtures("proved_in_this_process")
TEXT = "the film was a story of people, and lovely lovely music in it"


@pytest.fixture(scope="module")
def explained(trained: Path) -> Explanation:
    return explain(trained, TEXT)


def test_the_words_sum_to_what_sets_the_text_apart_from_padding(explained: Explanation) -> None:
    total = sum(word.attribution for word in explained.words) + explained.special_tokens
    difference = explained.log_odds - explained.log_odds_of_padding
    assert abs(difference) > 1
    assert total == pytest.approx(difference, abs=0.02 * abs(difference))
    assert explained.gap == pytest.approx(total - difference)


def test_the_answer_is_the_classifiers_own(explained: Explanation, trained: Path) -> None:
    answer = predict.Classifier.load(trained, precision="fp32").predict([TEXT])[0]
    assert explained.label == answer["label"] == "pos"
    assert explained.probability == pytest.approx(answer["pos_prob"], abs=1e-5)


@pytest.mark.parametrize("word", ["lovely", "great"])
def test_the_word_that_decides_is_named_first_and_its_loss_is_larger_than_by_chance(trained: Path, word: str) -> None:
    found = explain(trained, TEXT.replace("lovely", word))
    assert found.label == "pos"
    assert found.check.named[0] == word
    assert found.check.loss > found.check.loss_by_chance
    assert "do not account" not in str(found.check)


def test_words_whose_loss_matters_no_more_than_chance_are_said_not_to_account_for_the_decision() -> None:
    check = explaining.Check(["the"], loss=0.01, loss_by_chance=0.08)
    assert str(check).endswith("these words do not account for the decision")


def test_words_are_the_texts_own_and_stand_where_they_are(explained: Explanation) -> None:
    assert [word.word for word in explained.words] == TEXT.replace(",", " ,").split()
    assert all(TEXT[word.start :].startswith(word.word) for word in explained.words)
    assert "".join(between + word.word for between, word in explaining.pieces_of(explained)) == TEXT


def test_a_word_of_many_tokens_is_one_word(trained: Path) -> None:
    found = explain(trained, "a film with zebras")
    assert [word.word for word in found.words] == ["a", "film", "with", "zebras"]


def test_of_a_text_longer_than_the_window_its_head_is_explained(trained: Path) -> None:
    found = explain(trained, "the good film " * 40)
    assert found.is_head
    assert len(found.words) == 62
    assert found.text == ("the good film " * 40)[: len(found.text)]


def test_an_integral_of_too_few_steps_is_taken_finer_and_one_that_never_settles_is_said(
    trained: Path, cli: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explaining, "STEPS", 1)
    found = explain(trained, TEXT)
    assert (found.settled, found.caveat) == (True, "")
    assert abs(found.gap) <= 0.05 * (sum(abs(word.attribution) for word in found.words) + abs(found.special_tokens))
    monkeypatch.setattr(explaining, "_FINER", (1,))
    coarse = explain(trained, TEXT)
    assert not coarse.settled
    assert abs(coarse.gap) > abs(found.gap)
    assert "The integral has not settled: the words' shares miss the decision's log-odds by" in coarse.caveat
    assert coarse.caveat in cli("explain", trained, TEXT, "--html", "page.html").out
    assert "has not settled" in Path("page.html").read_text()


def test_what_can_not_be_explained_is_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="The tokenizer finds no word in the text; there is nothing to explain"):
        explain(trained, "\u200b")
    with pytest.raises(DataError, match="The text holds half a character"):
        explain(trained, "so \ud83d")
    with pytest.raises(DataError, match="The text is empty"):
        explain(trained, "  ")
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(LorafitError, match=r"Install it with: pip install 'lorafit\[explain\]'"):
        explain(trained, TEXT)


def test_the_command_prints_numbers_where_there_is_no_colour_and_writes_a_page(
    cli: Callable[..., Said], trained: Path, tmp_path: Path
) -> None:
    said = cli("explain", trained, TEXT, "--html", "page.html")
    assert said.code == 0
    assert "lovely(+" in said.out
    assert "check: without 'lovely'" in said.out
    page = (tmp_path / "page.html").read_text()
    assert page.count("<span") == len(TEXT.replace(",", " ,").split())
    assert "http" not in page
    assert json.loads(cli("explain", trained, TEXT, "--json").out)["check"]["named"][0] == "lovely"


def test_a_page_shows_marks_of_html_as_they_are(trained: Path, tmp_path: Path) -> None:
    explaining.write_page(explain(trained, "a good <script>film</script>"), tmp_path / "page.html")
    assert "<script>" not in (tmp_path / "page.html").read_text()
