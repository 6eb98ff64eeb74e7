"""Texts become ids once, uncut up to the window, and are padded only in a batch."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from lorafit import encoders, prepared, tokens
from lorafit.errors import EncoderError, StorageError
from tests.conftest import texts_and_labels


def test_ids_are_the_tokenizers_own(tiny: Path) -> None:
    tokenizer = encoders.load_tokenizer(tiny, "tiny")
    texts, _ = texts_and_labels(30)
    encoded = tokens.encode(texts, tokenizer, max_tokens=16)
    alone = [tokenizer(text, truncation=True, max_length=16)["input_ids"] for text in texts]
    assert [encoded[n].tolist() for n in range(30)] == alone
    assert encoded.lengths.tolist() == [len(ids) for ids in alone]
    assert encoded.cut == sum(len(tokenizer(text)["input_ids"]) > 16 for text in texts) > 0


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
