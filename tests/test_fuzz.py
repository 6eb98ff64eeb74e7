"""A damaged bundle never crashes, hangs, or loads in silence as something else."""

import json
import random
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorafit import bundle, checks, files, manifest, predict
from lorafit.errors import LorafitError
from tests.conftest import texts_and_labels

SECONDS_A_LOAD = 20  # a hang; a load takes a tenth of one
TEXTS = texts_and_labels(4, seed=9)[0]
HOSTILE: list[Any] = [
    None, True, -1, 0, 10**9, 10**40, 1e308, "", "../../etc/passwd", "x" * 100_000, "(a+)+$", [], {}, [[]], "\ud800",
    {"a": {"b": []}}, [None] * 1000, "hub:nobody/nothing", "__import__('os')",
]  # fmt: skip


def flip_bits(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(chance.choice([1, 1, 1, 8, 64])):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def cut_short(file: Path, chance: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: chance.randrange(len(content))])


def overwrite_a_stretch(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    start = chance.randrange(len(content))
    content[start : start + chance.randrange(1, 200)] = chance.randbytes(chance.randrange(0, 200))
    file.write_bytes(content)


def lie_about_the_header(file: Path, chance: random.Random) -> None:
    """safetensors: eight bytes say how long the header is, the header where each tensor lies."""
    content = bytearray(file.read_bytes())
    content[: chance.randrange(1, 9)] = chance.randbytes(chance.randrange(1, 9))
    file.write_bytes(content)


def change_a_value(file: Path, chance: random.Random) -> None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # an earlier mutation has been here
        cut_short(file, chance)
        return
    place: Any = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = chance.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and chance.random() < 0.7:
            place = place[key]
            continue
        if isinstance(place, dict) and chance.random() < 0.3:
            del place[key]
        else:
            place[key] = chance.choice(HOSTILE)
        break
    file.write_text(json.dumps(content), encoding="utf-8")


def remove(file: Path, chance: random.Random) -> None:
    file.unlink()


BYTES: list[Callable[[Path, random.Random], None]] = [flip_bits, flip_bits, cut_short, overwrite_a_stretch, remove]
FILES = {
    "lorafit.json": [change_a_value, change_a_value, *BYTES],
    checks.CONFIG: [change_a_value, change_a_value, *BYTES],
    checks.WEIGHTS: [lie_about_the_header, flip_bits, *BYTES],
    "proof.json": [change_a_value, *BYTES],
    "tokenizer.json": [change_a_value, *BYTES],
    "tokenizer_config.json": [change_a_value, *BYTES],
}


def spoil(folder: Path, chance: random.Random) -> bool:
    """Spoil a bundle in one or two places; returns whether its hashes were made to fit again."""
    for _ in range(chance.choice([1, 1, 2])):
        name = chance.choice(list(FILES))
        if (folder / name).exists():
            chance.choice(FILES[name])(folder / name, chance)
    if chance.random() < 0.5:
        try:
            content = json.loads((folder / "lorafit.json").read_text(encoding="utf-8"))
            content.pop("seal", None)
            content["files"] = {
                file.name: files.sha256_of(file) for file in folder.iterdir() if file.name not in checks.UNSEALED
            }
            sealed = content | {"seal": manifest._seal(content)}
            (folder / "lorafit.json").write_text(json.dumps(sealed), encoding="utf-8")
        except (OSError, ValueError, TypeError, AttributeError):
            return False
        return True
    return False


def answers(folder: Path) -> np.ndarray:
    loaded = bundle.load(folder)
    return predict.plain_logits(loaded.model, loaded.encode(TEXTS), loaded.tokenizer.pad_token_id)


def fuzz(trained: Path, tmp_path: Path, count: int) -> dict[str, int]:
    """Load `count` spoiled bundles; returns how many were refused, were as before, or passed as somebody else's."""
    whole = trained / "adapter"
    expected, original = answers(whole), checks.check(whole)
    seen = {"refused": 0, "the same": 0, "sealed anew": 0}
    for seed in range(count):
        folder = tmp_path / "spoiled"
        shutil.copytree(whole, folder)
        sealed_anew, sentence = spoil(folder, random.Random(seed)), "one"
        start = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a lost manifest leaves a plain PEFT directory, which says so
                found = answers(folder)
        except LorafitError as error:
            sentence = str(error)
            seen["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"mutation {seed} crashed: {type(error).__name__}: {error}") from error
        else:
            if sealed_anew or not (folder / "lorafit.json").exists():
                seen["sealed anew"] += 1
            else:
                assert checks.check(folder) == original, f"mutation {seed} loads in silence"
                np.testing.assert_array_equal(found, expected, err_msg=f"mutation {seed} answers otherwise")
                seen["the same"] += 1
        assert "\n" not in sentence, f"mutation {seed}: {sentence}"
        assert time.monotonic() - start < SECONDS_A_LOAD, f"mutation {seed} hangs"
        shutil.rmtree(folder)
    return seen


@pytest.mark.slow
def test_300_damaged_bundles_are_refused_in_one_sentence(trained: Path, tmp_path: Path) -> None:
    seen = fuzz(trained, tmp_path, 300)
    assert sum(seen.values()) == 300
    assert seen["refused"] > 200, seen


@pytest.mark.soak
def test_2000_damaged_bundles_are_refused_in_one_sentence(trained: Path, tmp_path: Path) -> None:
    seen = fuzz(trained, tmp_path, 2000)
    assert sum(seen.values()) == 2000
    assert seen["refused"] > 1400, seen
