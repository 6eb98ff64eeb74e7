"""Which words carried a decision: they sum to it, the deciding one is named first, and the check tells."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit

from lorafit import bundle, pipeline, predict
from lorafit import explain as explaining
from lorafit.errors import DataError, LorafitError
from lorafit.explain import Explanation, explain
from tests.conftest import Said
from tests.test_bundle import reseal
from tests.test_tasks_end_to_end import topics_and_texts, write

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
    assert shown(explained) == TEXT


def test_a_word_of_many_tokens_is_one_word(trained: Path) -> None:
    found = explain(trained, "a film with zebras")
    assert [word.word for word in found.words] == ["a", "film", "with", "zebras"]


def shown(found: Explanation) -> str:
    """Return the text as page and terminal show it, without colours."""
    return "".join(between + (word.word if word else "") for between, word in explaining.pieces_of(found))


def bundle_like(trained: Path, folder: Path, **changed: Any) -> Path:
    """Return a copy of a trained bundle whose manifest says something else."""
    copy = Path(shutil.copytree(trained / "adapter", folder))
    reseal(copy, **changed)
    return copy


HEAD, TAIL = ["the", "good"], ["dull", "story", "zebras"]
LONG = " ".join([*HEAD, *["was", "awful", "music", "and", "it"] * 6, *TAIL])


@pytest.mark.parametrize(
    ("policy", "windows", "words"),
    [
        ("head", 1, LONG.split()[:14]),
        ("head+tail", 1, [*LONG.split()[:3], *LONG.split()[-6:]]),
        ("windows:mean", 4, LONG.split()),
        ("windows:max", 4, LONG.split()),
    ],
)
def test_of_a_long_text_the_decision_is_the_classifiers_own_and_what_it_reads_is_explained(
    policy: str, windows: int, words: list[str], trained: Path, tmp_path: Path
) -> None:
    folder = bundle_like(trained, tmp_path / "bundle", long_text=policy, max_tokens=16)
    found = explain(folder, LONG)
    answer = predict.Classifier.load(folder, precision="fp32").predict([LONG])[0]
    assert found.label == answer["label"]
    assert found.probability == pytest.approx(answer[f"{found.label}_prob"], abs=1e-5)
    assert [word.word for word in found.words] == words
    assert all(LONG[word.start :].startswith(word.word) for word in found.words)
    total = sum(word.attribution for word in found.words) + found.special_tokens
    assert total == pytest.approx(found.log_odds - found.log_odds_of_padding, abs=0.05 * abs(found.log_odds) + 0.02)
    assert found.log_odds == pytest.approx(logit(found.probability), abs=1e-3)
    assert (found.windows, found.text) == (windows, LONG)
    if policy.startswith("windows"):
        assert shown(found) == LONG
        assert found.reading == "The text is read in 4 windows; the decision is that of their pooled logits."
    else:
        cut = 14 if policy == "head" else 3
        assert shown(found).split() == [*words[:cut], "[...]", *words[cut:]]
        assert "characters are not read, and shown as [...]." in found.reading


def test_a_text_in_windows_has_the_same_shares_when_they_do_not_fit_into_memory_together(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundle_like(trained, tmp_path / "bundle", long_text="windows:mean", max_tokens=16)
    monkeypatch.setattr(explaining, "STEPS", 4)
    monkeypatch.setattr(explaining, "_FINER", (1,))
    together = explain(folder, LONG)
    monkeypatch.setattr(explaining, "_TOKENS_AT_ONCE", 40)
    for one, other in zip(together.words, explain(folder, LONG).words, strict=True):
        assert one.attribution == pytest.approx(other.attribution, abs=1e-4)


def test_what_is_taken_out_for_the_check_lets_nothing_else_move_in(trained: Path, tmp_path: Path) -> None:
    loaded = bundle.load(bundle_like(trained, tmp_path / "bundle", long_text="windows:mean", max_tokens=16))
    reading = explaining._read(loaded, LONG)
    kept = np.stack([np.ones(len(reading.word_ids), dtype=bool), reading.word_ids != 12])  # which two windows share
    copies = explaining._copies(reading.tokens, kept)
    first, second = copies.windows_of([0, 1])
    assert copies[0].tolist() == reading.tokens.ids.tolist()
    assert copies[1].tolist() == reading.tokens.ids[reading.word_ids != 12].tolist()
    lengths = np.diff(copies.offsets)
    assert (lengths[first] - lengths[second]).tolist() == [1, 1, 0, 0]


def test_page_and_terminal_say_how_a_long_text_is_read(trained: Path, tmp_path: Path, cli: Callable[..., Said]) -> None:
    for policy, sentence in (("head", "are not read, and shown as [...]"), ("windows:max", "is read in 4 windows")):
        folder = bundle_like(trained, tmp_path / policy, long_text=policy, max_tokens=16)
        assert sentence in cli("explain", folder, LONG, "--html", "page.html").out
        assert sentence in Path("page.html").read_text()


@pytest.mark.filterwarnings("ignore:After epoch")
def test_of_several_labels_the_most_probable_is_explained_by_itself(
    tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    texts, given = topics_and_texts(200)
    table = pd.DataFrame({"text": texts, "label": ["|".join(some) or "nothing" for some in given]})
    data = write(tmp_path, table) | {"label_separator": "|"}
    run = pipeline.train(tiny_recipe(data=data, training={"epochs": 4}), tmp_path / "run")
    text = "a story of people, music music and good good lovely film"
    found = explain(run.path, text)
    answer = predict.Classifier.load(run.path, precision="fp32").predict([text])[0]
    probabilities = {key.removesuffix("_prob"): value for key, value in answer.items() if key.endswith("_prob")}
    assert found.label == max(probabilities, key=lambda label: probabilities[label])
    assert found.probability == pytest.approx(probabilities[found.label], abs=1e-5)
    assert found.log_odds == pytest.approx(logit(found.probability), abs=1e-3)  # of the label, not over the others
    assert found.check.named[0] in {"kind": ("good", "lovely"), "musical": ("music",)}[found.label]


def test_decisions_on_pairs_are_refused(trained: Path, tmp_path: Path) -> None:
    folder = bundle_like(trained, tmp_path / "bundle", text_pair=True)
    with pytest.raises(DataError, match="reads pairs of texts; only decisions on single texts can be explained"):
        explain(folder, TEXT)


def test_on_a_terminal_with_colours_words_are_blue_or_orange_and_have_no_numbers(
    cli: Callable[..., Said], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a lovely lovely great story with bad music"
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    said = cli("explain", trained, text)
    words = explain(trained, text).words
    most, least = (choose(words, key=lambda word: word.attribution) for choose in (max, min))
    assert most.attribution > 0 > least.attribution
    assert "for it in blue, against it in orange" in said.out
    assert f"38;5;33m{most.word}\x1b[0m" in said.out
    assert f"38;5;208m{least.word}\x1b[0m" in said.out
    assert f"{most.word}(" not in said.out
    monkeypatch.setenv("NO_COLOR", "1")
    plain = cli("explain", trained, text)
    assert "38;5;" not in plain.out
    assert f"{least.word}({least.attribution:+.2f})" in plain.out


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
