"""A classifier answers in order, with names, and only about texts."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from lorafit import Classifier, bundle, manifest, padfree, predict
from lorafit.errors import BundleError, DataError
from tests.conftest import BLAME, PRAISE, texts_and_labels


def test_an_answer_has_the_text_a_probability_a_label_and_the_label(trained: Path) -> None:
    answers = Classifier.load(trained, precision="fp32").predict([PRAISE, BLAME])
    assert [list(answer) for answer in answers] == [["text", "neg_prob", "pos_prob", "label"]] * 2
    assert [answer["label"] for answer in answers] == ["pos", "neg"]
    for answer in answers:
        assert answer["neg_prob"] + answer["pos_prob"] == pytest.approx(1)
        assert answer[f"{answer['label']}_prob"] > 0.5


def test_answers_come_in_the_order_of_the_texts_whatever_their_lengths(trained: Path) -> None:
    classifier = Classifier.load(trained / "adapter", precision="fp32")
    texts, _ = texts_and_labels(50, seed=9)
    alone = [classifier.predict([text])[0] for text in texts]
    together = classifier.predict(texts)
    assert [answer["text"] for answer in together] == texts
    np.testing.assert_allclose([a["pos_prob"] for a in together], [a["pos_prob"] for a in alone], atol=1e-5)


def test_a_stream_is_answered_in_order_and_read_only_as_far_as_needed(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "TEXTS_AT_ONCE", 8)
    classifier = Classifier.load(trained, precision="fp32")
    texts, _ = texts_and_labels(20, seed=3)
    read: list[str] = []

    def source() -> Iterator[str]:
        for text in texts:
            read.append(text)
            yield text

    answers = classifier.stream(source())
    first = next(answers)
    assert len(read) == 8
    together = classifier.predict(texts)
    for one, other in zip([first, *answers], together, strict=True):
        assert (one["text"], one["label"]) == (other["text"], other["label"])
        assert one["pos_prob"] == pytest.approx(other["pos_prob"], abs=1e-5)


def test_a_text_that_is_refused_in_a_stream_is_named_by_its_place_there(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "TEXTS_AT_ONCE", 4)
    classifier = Classifier.load(trained, precision="fp32")
    with pytest.raises(DataError, match="Text 6 is empty"):
        list(classifier.stream([PRAISE] * 5 + [" "]))


def test_the_merged_engine_gives_the_adapters_answers_and_leaves_peft_s_model_to_others(trained: Path) -> None:
    classifier = Classifier.load(trained, precision="fp32")
    texts, _ = texts_and_labels(10, seed=4)
    inputs = AutoTokenizer.from_pretrained(trained / "adapter")(texts, return_tensors="pt", padding=True)
    model = classifier.model
    assert not padfree.is_enabled(model)
    with torch.inference_mode():
        expected = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.softmax(1)
    np.testing.assert_allclose(classifier.probabilities(texts), expected.numpy(), atol=1e-5)


def test_the_base_answers_with_its_untrained_head_the_same_each_time(trained: Path) -> None:
    texts, _ = texts_and_labels(4)
    first = Classifier.load(trained, precision="fp32").predict(texts, base=True)
    second = Classifier.load(trained, precision="fp32").predict(texts, base=True)
    assert first == second
    assert first != Classifier.load(trained, precision="fp32").predict(texts)


def test_no_texts_give_no_answers_and_other_things_are_refused(trained: Path) -> None:
    classifier = Classifier.load(trained)
    assert classifier.predict([]) == []
    with pytest.raises(DataError, match="Text 2 is empty"):
        classifier.predict(["a", " "])
    with pytest.raises(DataError, match="Text 1 is of type int"):
        classifier.predict([3])  # type: ignore[list-item]
    with pytest.raises(DataError, match="Text 2 holds half a character"):
        classifier.predict(["a", "so \ud83d"])


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is no adapter that lorafit can load: it has no adapter_config.json"):
        Classifier.load(tmp_path)


def test_tags_are_stripped_in_prediction_as_they_were_in_training(trained: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(trained / "adapter", tmp_path / "adapter"))
    bundle.seal(copy, manifest.read(copy).model_copy(update={"html": "strip"}))
    marked, plain = "good<br />film", "good film"
    stripping, keeping = (Classifier.load(path, precision="fp32") for path in (copy, trained))
    assert np.array_equal(stripping.probabilities([marked]), stripping.probabilities([plain]))
    assert not np.array_equal(keeping.probabilities([marked]), keeping.probabilities([plain]))
    with pytest.raises(DataError, match="Text 2 is empty"):
        stripping.predict([marked, "<br />"])
    assert keeping.predict(["<br />"])
