"""Texts become ids once, uncut up to the window, and are padded only in a batch."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from scipy.special import softmax

from lorafit import Classifier, encoders, pipeline, prepared, tokens
from lorafit.data import Text
from lorafit.errors import EncoderError, StorageError
from lorafit.recipe import Recipe
from tests.conftest import texts_and_labels


def test_ids_are_the_tokenizers_own(tiny: Path) -> None:
    tokenizer = encoders.load_tokenizer(tiny, "tiny")
    texts, _ = texts_and_labels(30)
    encoded = tokens.encode(texts, tokenizer, max_tokens=16)
    alone = [tokenizer(text, truncation=True, max_length=16)["input_ids"] for text in texts]
    assert [encoded[n].tolist() for n in range(30)] == alone
    assert encoded.lengths.tolist() == [len(ids) for ids in alone]
    assert encoded.cut == sum(len(tokenizer(text)["input_ids"]) > 16 for text in texts) > 0


def test_whole_lengths_do_not_depend_on_a_window(tiny: Path) -> None:
    tokenizer = encoders.load_tokenizer(tiny, "tiny")
    texts: list[Text] = ["good film", "bad " * 3000]
    assert tokens.whole_lengths(texts, tokenizer).tolist() == [2 + 2, 3000 + 2]
    pairs: list[Text] = [("good film", "bad " * 3000), ("bad " * 400, "bad " * 500)]
    assert tokens.whole_lengths(pairs, tokenizer).tolist() == [2 + 3000 + 3, 400 + 500 + 3]


def test_truncation_and_padding_that_a_tokenizer_file_carries_change_nothing(tiny: Path, tmp_path: Path) -> None:
    carrying = Path(shutil.copytree(tiny, tmp_path / "carrying"))
    written = tokenizers.Tokenizer.from_file(str(carrying / "tokenizer.json"))
    written.enable_truncation(6)
    written.enable_padding(length=6)
    written.save(str(carrying / "tokenizer.json"))
    texts, _ = texts_and_labels(20)
    plain = tokens.encode(texts, encoders.load_tokenizer(tiny, "tiny"), 64)
    other = tokens.encode(texts, encoders.load_tokenizer(carrying, "tiny"), 64)
    assert other.ids.tolist() == plain.ids.tolist()
    assert plain.lengths.max() > 6


def test_a_batch_is_padded_to_its_longest_text() -> None:
    ragged = tokens.Tokens(np.arange(50, dtype=np.int32), np.array([0, 3, 10, 50]), 0)
    batch = tokens.pad(ragged, [0, 1], pad_id=99)
    assert batch["input_ids"].shape == (2, 7)
    assert batch["input_ids"][0, :4].tolist() == [0, 1, 2, 99]
    assert batch["attention_mask"].sum(1).tolist() == [3, 7]


def test_a_window_beyond_the_encoders_is_refused(tiny: Path) -> None:
    files = encoders.locate(str(tiny))
    with pytest.raises(EncoderError, match="reads at most 64 tokens; data.max_tokens is 512"):
        encoders.refuse_long_window(files, encoders.load_tokenizer(files.folder, "tiny"), 512)


def test_prepared_data_is_read_back_and_not_made_twice(
    tiny_recipe: Callable[..., object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lorafit import pipeline

    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path))
    first = pipeline.prepare(tiny_recipe())

    def never(*_: object) -> None:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(prepared, "encode", never)
    second = pipeline.prepare(tiny_recipe())
    assert second.key == first.key
    for one, other in zip(first.splits.values(), second.splits.values(), strict=True):
        assert one.texts == other.texts
        assert np.array_equal(one.tokens.ids, other.tokens.ids)
        assert np.array_equal(one.label_ids, other.label_ids)
    assert [len(split) for split in second.splits.values()] == [120, 40, 40]


def test_preparing_that_breaks_off_leaves_nothing_behind(
    tiny_recipe: Callable[..., object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import errno

    from lorafit import pipeline

    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepared, "_write", full)
    with pytest.raises(StorageError, match="The disk is full"):
        pipeline.prepare(tiny_recipe())
    assert not [path for path in (tmp_path / "prepared").rglob("*") if path.is_file()]


def test_every_setting_that_decides_the_data_decides_its_key(tiny_recipe: Callable[..., object]) -> None:
    from lorafit import pipeline

    keys = {
        pipeline.prepare(made).key
        for made in (
            tiny_recipe(),
            tiny_recipe(seed=1),
            tiny_recipe(data={"max_tokens": 32}),
            tiny_recipe(data={"train_size": 100}),
        )
    }
    assert len(keys) == 4
    assert pipeline.prepare(tiny_recipe(training={"epochs": 1})).key in keys


@pytest.mark.parametrize("damage", ["gone", "cut", "half"])
def test_a_damaged_cache_is_made_again(
    damage: str, tiny_recipe: Callable[..., object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lorafit import pipeline

    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path))
    file = pipeline.prepare(tiny_recipe()).train.file
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    else:
        (file.parent / "prepared.json").unlink()
    assert len(pipeline.prepare(tiny_recipe()).train) == 120
    assert [path.name for path in (tmp_path / "prepared").iterdir()] == [file.parent.name]


def test_long_pairs_are_cut_as_the_tokenizer_cuts_them_and_few_pieces_are_kept(tiny: Path) -> None:
    tokenizer = encoders.load_tokenizer(tiny, "tiny")
    chance = random.Random(0)
    lengths = [chance.choice([1, 4, 9, 10, 11, 19, 20, 21, 22, 60, 61, 62]) for _ in range(400)]
    words = [" ".join(chance.choices(["good", "zebras", "film", "x1y2"], k=length)) for length in lengths]
    pairs: list[Text] = list(zip(words[::2], words[1::2], strict=True))
    for max_tokens in (16, 17, 40):
        encoded = tokens.encode(pairs, tokenizer, max_tokens)
        theirs = tokenizer(pairs, truncation=True, max_length=max_tokens)
        assert [encoded[row].tolist() for row in range(len(pairs))] == theirs["input_ids"]
        assert encoded.cut == sum(bool(encoding.overflowing) for encoding in theirs.encodings)
    long: list[Text] = [("good film " * 3000, "bad film " * 3001)]
    pieces = tokenizer(tokens._shortened(long, tokenizer, 64), truncation=True, max_length=64).encodings[0].overflowing
    assert 0 < len(pieces) <= 3


LONG = " ".join(["the good film was a story with music and its people"] * 9)  # 99 words of one token each


def test_head_and_tail_keep_a_quarter_of_the_window_from_the_head_and_the_rest_from_the_tail(tiny: Path) -> None:
    tokenizer = encoders.load_tokenizer(tiny, "tiny")
    whole = tokenizer(LONG)["input_ids"]
    encoded = tokens.encode(["good film", LONG], tokenizer, 18, "head+tail")
    assert encoded[0].tolist() == tokenizer("good film")["input_ids"]
    assert encoded[1].tolist() == whole[: 1 + 4] + whole[-(12 + 1) :]
    assert (encoded.cut, encoded.lengths.tolist()) == (1, [4, 18])


def test_windows_hold_every_token_and_overlap_by_a_quarter(tiny: Path) -> None:
    tokenizer = encoders.load_tokenizer(tiny, "tiny")
    encoded = tokens.encode([LONG, "good film"], tokenizer, 18, "windows:mean")
    (first, second, *_), short = encoded.windows_of([0, 1])
    inner = [encoded.ids[encoded.offsets[row] + 1 : encoded.offsets[row + 1] - 1].tolist() for row in (first, second)]
    assert inner[0][-4:] == inner[1][:4]
    assert len(encoded.windows_of([0])[0]) == 8
    assert len(short) == 1
    assert (len(encoded), encoded.cut) == (2, 0)
    assert encoded.lengths.tolist() == [99 + 7 * 4 + 8 * 2, 4]


def test_a_batch_of_windows_pools_their_logits_text_by_text(tiny: Path) -> None:
    tokenizer = encoders.load_tokenizer(tiny, "tiny")
    model = encoders.load(encoders.locate(str(tiny)), ["neg", "pos"]).model.eval()
    words = LONG.split()
    texts = ["good film", LONG, "bad film"]
    # A text's windows by hand: 16 words each, from every 12th word on.
    parts = [[text] for text in texts]
    parts[1] = [" ".join(words[start : start + 16]) for start in range(0, 99 - 4, 12)]
    for policy, pooled in (("windows:mean", torch.Tensor.mean), ("windows:max", torch.Tensor.amax)):
        encoded = tokens.encode(texts, tokenizer, 18, policy)
        got = tokens.ask(model, tokens.pad(encoded, [2, 1, 0], 0), policy)
        for row, text in zip(got, [2, 1, 0], strict=True):
            alone = tokenizer(parts[text], padding=True, return_tensors="pt")
            torch.testing.assert_close(row, pooled(model(**alone).logits, dim=0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("policy", ["head+tail", "windows:mean", "windows:max"])
def test_prepared_windows_come_back_as_they_were_written(
    policy: str, tiny_recipe: Callable[..., Recipe], tiny: Path
) -> None:
    made = tiny_recipe(data={"max_tokens": 12, "long_text": policy})
    again = [pipeline.prepare(made).validation for _ in range(2)]
    alone = tokens.encode(again[0].texts, encoders.load_tokenizer(tiny, "tiny"), 12, policy)
    for split in again:
        assert split.tokens.long_text == policy
        assert split.tokens.windows_of(range(len(alone))) == alone.windows_of(range(len(alone)))
        np.testing.assert_array_equal(split.tokens.ids, alone.ids)
        np.testing.assert_array_equal(split.tokens.offsets, alone.offsets)


@pytest.mark.usefixtures("proved_in_this_process")
@pytest.mark.parametrize("policy", ["head+tail", "windows:mean", "windows:max"])
def test_one_policy_holds_for_training_evaluation_predict_and_the_bundle(
    policy: str, tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    run = pipeline.train(tiny_recipe(data={"max_tokens": 12, "long_text": policy}), tmp_path / "run")
    assert pipeline.evaluate(run).adapted.accuracy > 0.8
    classifier = Classifier.load(run.path, precision="fp32")
    test = pipeline.prepare(run.recipe).test
    from_ids = softmax(classifier.logits(test.tokens), axis=1)
    np.testing.assert_allclose(classifier.probabilities(test.texts), from_ids, atol=1e-6)
    inside = "the " * 30 + "awful " * 12 + "the " * 30  # which a head of 12 tokens never meets
    heads = Classifier.load(run.path, precision="fp32")
    heads._reader.manifest.long_text = "head"
    changed = abs(classifier.probabilities([inside]) - heads.probabilities([inside])).max()
    assert (changed > 0.01) == policy.startswith("windows")
    assert json.loads((run.adapter / "lorafit.json").read_text())["long_text"] == policy
    assert "longer texts" in (run.adapter / "README.md").read_text()
