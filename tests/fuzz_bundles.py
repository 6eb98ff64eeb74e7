"""Spoils copies of bundles and asks lorafit about each, in a process of its own that may die of it.

One mutation again, by its seed, with the folder of cases that tests/test_fuzz.py made:

    python -m tests.fuzz_bundles CASES --seed 123
"""

import argparse
import faulthandler
import io
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from lorafit import bundle, checks, encoders, export, manifest, predict, proof
from lorafit.cli import trained
from lorafit.errors import LorafitError
from lorafit.files import sha256_of
from tests.conftest import texts_and_labels

SECONDS_A_MUTATION = 30  # longer is a hang; most take a tenth of one
BYTES_OF_ADDRESSES = 8 * 2**30  # torch and its kin map three without using them
TEXTS = [*texts_and_labels(4, seed=9)[0], "a long story of the film " * 40, "\u2603 \u00e9\u4e16 <b>\x00\t!"]
NAN, INFINITY = float("nan"), float("inf")

HOSTILE: list[Any] = [
    None, True, -1, 0, 0.5, 10**9, 2**63, 10**40, 1e308, 1e-308, NAN, -INFINITY, "", [], {}, [[]], {"a": {"b": []}},
    "x" * 100_000, [None] * 1000, "(a+)+$", "__import__('os')", "hub:nobody/nothing",
    "../../etc/passwd", "/etc", "/etc/passwd", "/dev/zero", "file:///etc/passwd", "C:\\Windows", "~",
    "\ud800", "\x1b[2J\x1b[31mred", "two\nlines", "back\rto the start", "\x00", "\u2028", "\u202egnp.exe",
]  # fmt: skip

Mutation = Callable[[Path, random.Random], None]


def flip_bits(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(chance.choice([1, 1, 1, 8, 64])):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def cut_short(file: Path, chance: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: chance.choice([0, chance.randrange(len(content))])])


def overwrite_a_stretch(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    start = chance.randrange(len(content))
    content[start : start + chance.randrange(1, 200)] = chance.randbytes(chance.randrange(0, 200))
    file.write_bytes(content)


def remove(file: Path, chance: random.Random) -> None:
    file.unlink()


def replace_by_another_kind(file: Path, chance: random.Random) -> None:
    """Put a folder, a pipe that nobody writes to, or a link in the file's place."""
    kinds: list[Callable[[], object]] = [
        file.mkdir,
        lambda: os.mkfifo(file) if hasattr(os, "mkfifo") else file.mkdir(),
        lambda: file.symlink_to("/dev/zero"),
        lambda: file.symlink_to(file.name),
        lambda: file.symlink_to("/etc/passwd"),
    ]
    file.unlink()
    chance.choice(kinds)()


def swell(file: Path, chance: random.Random) -> None:
    """Make it far too large, without taking room on the disk."""
    with file.open("r+b") as stream:
        stream.truncate(250_000_000)


def change_a_value(file: Path, chance: random.Random) -> None:
    """Put a hostile value anywhere, deep or shallow, under a key that is there, a new one, or none."""
    content = json.loads(file.read_text(encoding="utf-8"))
    place, key = _wander(content, chance)
    if isinstance(place, dict) and chance.random() < 0.3:
        del place[key]
    elif isinstance(place, dict) and chance.random() < 0.1:
        place[chance.choice(["new", "\x1b[2J", "", "__class__"])] = chance.choice(HOSTILE)
    else:
        place[key] = chance.choice(HOSTILE)
    file.write_text(json.dumps(content), encoding="utf-8")


def _wander(content: Any, chance: random.Random) -> tuple[Any, Any]:
    place = content
    while True:
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not (isinstance(place[key], dict | list) and place[key] and chance.random() < 0.7):
            return place, key
        place = place[key]


def change_a_number(file: Path, chance: random.Random) -> None:
    """Put another number in the place of one: a token's id, a version, a count."""
    content = json.loads(file.read_text(encoding="utf-8"))
    numbers = list(_numbers(content))
    if not numbers:
        return
    place, key = chance.choice(numbers)
    place[key] = chance.choice([-1, 0, 1, place[key] + 1, 1000, 10**6, 2**31, 2**32 - 1, 2**63, 1e308])
    file.write_text(json.dumps(content), encoding="utf-8")


def _numbers(place: Any) -> Iterator[tuple[Any, Any]]:
    for key in place if isinstance(place, dict) else range(len(place)):
        if isinstance(place[key], dict | list):
            yield from _numbers(place[key])
        elif isinstance(place[key], int | float) and not isinstance(place[key], bool):
            yield place, key


NAMES = [
    "nobody/nothing",
    "/etc",
    "/dev/zero",
    "../..",
    "bundled:minilm",
    "hub:",
    "a b",
    "\x1b[2Jcleared",
    "two\nlines",
]
_TEMPLATE = [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
# Values of the right kind that can't be true, or that somebody with bad intentions would choose: by file and keys.
LIES: dict[str, list[tuple[tuple[str, ...], list[Any]]]] = {
    manifest.FILE: [
        (("max_tokens",), [1, 2, 3, 65, 10**6, 2**31, 2**63, 10**30]),
        (("labels",), [["neg"], ["neg", "pos", "meh"], ["neg", "\x1b[2J"], ["a\nb", "c"], [*map(str, range(5000))]]),
        (("seed",), [-1, 2**32, 2**64, 10**30]),
        (("temperature",), [1e-308, 1e308]),
        (("html",), ["strip"]),
        (("task",), ["multi_label"]),
        (("text_pair",), [True]),
        (("long_text",), ["head+tail", "windows:mean", "windows:max"]),
        (("pooling",), ["mean"]),
        (("thresholds",), [[0.5], [0.5, 0.5], [1e-300, 0.5], [0.0, 1.0]]),
        (("base", "sha256"), ["0" * 64]),
        (("base", "id"), NAMES),
        (("base", "revision"), NAMES),
        (("base", "name"), NAMES),
        (("base", "shape", "vocabulary"), [0, -1, 10**12]),
        (("base", "shape", "model_type"), NAMES),
        (("training",), [None]),
        (("training", "recipe"), [{}, {"data": {}}, {"data": None}, {"data": {"source": "\x1b[2J"}}]),
        (("training", "texts"), [{}, {"train": -1}]),
        (("training", "validation"), [{}, {"accuracy": 1e308}]),
        (("training", "best_epoch"), [-1, 10**30]),
        (("proof",), [None]),
        (("proof", "texts"), [0, -1, 10**30]),
        (("proof", "gap"), [-1.0, 1e308]),
    ],
    checks.CONFIG: [
        (("r",), [1, 9, 10**6, 2**40, 10**30]),
        (("lora_alpha",), [1e308, 1e38, 1e-308, 2**63, 10**400]),
        (("lora_dropout",), [0.5, 0.999999]),
        (("target_modules",), [["(a+)+$"], ["dense"], ["word_embeddings"], ["LayerNorm"], ["classifier"]]),
        (("exclude_modules",), [["query"], ["(a+)+$"]]),
        (("modules_to_save",), [[], ["encoder"], ["word_embeddings"], ["classifier", "pooler", "query"]]),
        (("layers_to_transform",), [[], [0], [-1], [10**30]]),
        (("use_rslora",), [True]),
        (("use_dora",), [True]),
        (("base_model_name_or_path",), NAMES),
        (("revision",), NAMES),
        (("task_type",), ["TOKEN_CLS", "\x1b[2J"]),
    ],
    "tokenizer_config.json": [
        (("model_max_length",), [-1, 0, 1, 1e308, 10**40]),
        (("padding_side",), ["left", "up"]),
        (("truncation_side",), ["left", "up"]),
        (("pad_token",), [None, "film", "[nothing]", "\x1b[2J", {"content": "x", "__type": "AddedToken"}]),
        (("tokenizer_class",), ["BertTokenizer", "T5Tokenizer", "LlamaTokenizer", "Wav2Vec2CTCTokenizer", "os.system"]),
        (("auto_map",), [{"AutoTokenizer": ["evil.Evil", None]}, {"AutoTokenizer": ["nobody/nothing--evil.Evil"] * 2}]),
        (("chat_template",), ["{% for n in range(10**9) %}{{ n }}{% endfor %}"]),
        (("extra_special_tokens",), [{"x": "y"}, ["\x1b[2J"] * 300, [f"new{n}" for n in range(500)]]),
        (("added_tokens_decoder",), [{"1000000000": {"content": "x", "special": True}}, {"-1": {"content": "x"}}]),
    ],
    "tokenizer.json": [
        (("truncation",), [{"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}]),
        (("padding",), [{"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None,
                         "pad_id": 10**6, "pad_type_id": 0, "pad_token": "[PAD]"}]),
        (("normalizer",), [None, {"type": "Prepend", "prepend": "film " * 1000}, {"type": "NFKC"}]),
        (("pre_tokenizer",), [None, {"type": "Digits", "individual_digits": True}]),
        (("post_processor",), [None, {"type": "BertProcessing", "sep": ["a", 10**6], "cls": ["b", 2**32 - 1]},
                               {"type": "TemplateProcessing", "pair": [], "single": _TEMPLATE,
                                "special_tokens": {"x": {"id": "x", "ids": [10**6], "tokens": ["x"]}}}]),
        (("added_tokens",), [[], [{"id": 10**6, "content": "film", "single_word": False, "lstrip": False,
                                   "rstrip": False, "normalized": False, "special": True}]]),
        (("model", "vocab"), [{}, [], {"[UNK]": 10**6, "film": 10**6}, [["<unk>", 0.0], ["film", -1.0]]]),
        (("model", "unk_token"), [None, "[nothing]"]),
        (("model", "unk_id"), [None, 10**6]),
        (("model", "merges"), [[], [["a", "b"]], ["a b"] * 1000]),
    ],
    proof.FILE: [
        (("texts",), [[], [""], ["\x00"], ["film " * 100_000] * 2, ["film"] * 10_000]),
        (("logits",), [[], [[]], [[0.0, 1.0], [1.0]], [[NAN, NAN]] * 32, [[INFINITY, 0.0]] * 32, [[1e308, 0.0]] * 32]),
        (("tensors",), [{}, {"x": "y"}, {"\x1b[2J": ""}]),
    ],
}  # fmt: skip


def lie_about_the_header(file: Path, chance: random.Random) -> None:
    """safetensors: eight bytes say how long the header is, the header where each tensor lies."""
    content = bytearray(file.read_bytes())
    content[: chance.randrange(1, 9)] = chance.randbytes(chance.randrange(1, 9))
    file.write_bytes(content)


def change_the_header(file: Path, chance: random.Random) -> None:
    """safetensors: keep the header's length true and its content not."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    name = chance.choice([name for name in header if name != "__metadata__"])
    header[name][chance.choice(["dtype", "shape", "data_offsets"])] = chance.choice(
        ["F64", "I64", "BOOL", "F8_E4M3", [], [0], [2**40, 2**40], [0, 4], [0, 2**62], [-1, 4], *HOSTILE]
    )
    if chance.random() < 0.2:
        header[chance.choice(["\x1b[2J", "base_model.model.new.weight", "__metadata__"])] = header.pop(name)
    made = json.dumps(header).encode()
    file.write_bytes(len(made).to_bytes(8, "little") + made + content[end:])


def poison_a_tensor(file: Path, chance: random.Random) -> None:
    """Write a sound file with numbers that are none or far too large, or with another shape, type or name."""
    tensors = load_file(file)
    name = chance.choice(sorted(tensors))
    changes: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda tensor: tensor * NAN,
        lambda tensor: tensor + INFINITY,
        lambda tensor: tensor * 0 + 3e38,
        lambda tensor: tensor * 0,
        lambda tensor: tensor.double(),
        lambda tensor: tensor.to(torch.int64),
        lambda tensor: tensor.half(),
        lambda tensor: tensor.T.contiguous() if tensor.dim() == 2 else tensor[None],
        lambda tensor: tensor[:1].clone(),
        lambda tensor: tensor[:0].clone(),
        lambda tensor: torch.cat([tensor, tensor]),
        lambda tensor: tensor.flatten()[0].clone(),
    ]
    if chance.random() < 0.1:
        tensors[chance.choice(["\x1b[2J", "two\nlines", "base_model.model.new.weight"])] = tensors.pop(name)
    else:
        tensors[name] = chance.choice(changes)(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})


def add_a_file(folder: Path, chance: random.Random) -> None:
    names: list[str | bytes] = [
        "config.json", "adapter_model.bin", "vocab.txt", "merges.txt", "spiece.model", "special_tokens_map.json",
        "added_tokens.json", "model.safetensors", "evil.py", ".hidden.json",
    ]  # fmt: skip
    if sys.platform == "linux":  # others don't take such names
        names += ["\x1b[2J.json", "two\nlines.json", "\u202enosj.json", b"not \xff utf-8.json"]
    content = chance.choice([b"", b"{}", b"[]", b"\x80\x04.", b'{"x": 1000000000}', chance.randbytes(100)])
    with open(os.path.join(os.fsencode(folder), os.fsencode(chance.choice(names))), "wb") as stream:  # noqa: PTH118, PTH123 - of bytes
        stream.write(content)


_BYTES: list[Mutation] = [flip_bits, flip_bits, cut_short, overwrite_a_stretch, remove, replace_by_another_kind, swell]
_JSON: list[Mutation] = [*[change_a_value] * 5, change_a_number, change_a_number, *_BYTES]
_TENSORS: list[Mutation] = [lie_about_the_header, change_the_header, change_the_header, *[poison_a_tensor] * 5, *_BYTES]
PLACES: dict[str, list[Mutation]] = {
    manifest.FILE: _JSON,
    checks.CONFIG: _JSON,
    checks.WEIGHTS: _TENSORS,
    proof.FILE: _JSON,
    "tokenizer.json": [*_JSON, change_a_number, change_a_number],
    "tokenizer_config.json": _JSON,
    checks.CARD: _BYTES,
    ".": [add_a_file],
}


@dataclass(frozen=True)
class Spoiled:
    """A bundle, what was done to which of its files, and whether its hashes were made to fit again."""

    folder: Path
    done: dict[str, str]
    sealed_anew: bool


def spoil(folder: Path, seed: int) -> Spoiled:
    """Spoil a bundle: by an accident or a crude forgery in one or two places, or by the next of the lies."""
    chance = random.Random(seed)
    if seed % 2:
        return Spoiled(folder, _lie(folder, seed // 2, chance), _seal(folder))
    done = {}
    for place in chance.sample(sorted(PLACES), k=chance.choice([1, 1, 2])):
        mutation = chance.choice(PLACES[place])
        mutation(folder / place, chance)
        done[place] = mutation.__name__
    return Spoiled(folder, done, chance.random() < 0.7 and _seal(folder))


def _lie(folder: Path, turn: int, chance: random.Random) -> dict[str, str]:
    every = [(name, keys, values) for name, lies in LIES.items() for keys, values in lies]
    name, keys, values = every[turn % len(every)]
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = chance.choice(values)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return {name: f"{'.'.join(keys)} = {json.dumps(place[keys[-1]])[:80]}"}


def _seal(folder: Path) -> bool:
    """Make the hashes fit; returns whether that can be done."""
    if not (folder / manifest.FILE).is_file():  # a pipe or a device would never end
        return False
    try:
        content = json.loads((folder / manifest.FILE).read_text(encoding="utf-8"))
        content.pop("seal", None)
        content["files"] = {
            name: sha256_of(folder / name) if (folder / name).is_file() else "0" * 64
            for name in _names_in(folder)
            if name not in checks.UNSEALED
        }
        sealed = content | {"seal": manifest._seal(content)}
    except (OSError, ValueError, TypeError, AttributeError):
        return False
    (folder / manifest.FILE).write_text(json.dumps(sealed), encoding="utf-8")
    return True


def _names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@dataclass(frozen=True)
class Case:
    """A bundle that is whole, with what it answers."""

    name: str
    folder: Path
    made: manifest.Manifest
    logits: np.ndarray


def load_case(folder: Path) -> Case:
    """Return the case in a folder that holds `encoder` and `adapter`; lorafit finds the encoder from then on."""
    encoders.locate(str(folder / "encoder"))
    made, logits = answers(folder / "adapter")
    return Case(folder.name, folder / "adapter", made, logits)


def answers(folder: Path) -> tuple[manifest.Manifest, np.ndarray]:
    loaded = bundle.load(folder)
    return loaded.manifest, predict.plain_logits(loaded.model, loaded.encode(TEXTS), loaded.tokenizer.pad_token_id)


def shown(folder: Path) -> str:
    """Return what `lorafit inspect` prints."""
    page = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with redirect_stdout(page):
        trained.inspect(folder)
    page.seek(0)
    return page.read()


def judge(case: Case, spoiled: Spoiled, target: Path, *, thorough: bool) -> tuple[str, str]:
    """Return how a spoiled bundle was received, and the sentence if there is one.

    "refused", "the same" as the whole one, or "sealed anew": as somebody else's adapter, which answers with numbers.

    Raises:
        AssertionError: in any other way.
    """
    page = attempt(lambda: shown(spoiled.folder))
    answered = attempt(lambda: answers(spoiled.folder))
    if thorough:
        prove_and_merge(spoiled.folder, target)
    if isinstance(answered, Refusal):
        return "refused", answered.sentence
    assert not isinstance(page, Refusal), f"load takes what inspect refuses: {page}"
    assert not controls(page.replace("\n", "")), f"inspect prints {controls(page)}"
    made, logits = answered
    if spoiled.sealed_anew or not (spoiled.folder / manifest.FILE).exists():
        assert logits.shape == (len(TEXTS), len(made.labels)), f"logits of the shape {logits.shape} for {made.labels}"
        assert np.isfinite(logits).all(), f"logits that are no numbers: {logits.tolist()}"
        return "sealed anew", ""
    assert made == case.made, "loads in silence as something else"
    assert np.array_equal(logits, case.logits), "answers in silence as something else"
    return "the same", ""


def prove_and_merge(folder: Path, target: Path) -> None:
    proved = attempt(lambda: proof.verify(folder))
    assert isinstance(proved, Refusal) or np.isfinite(proved.gap), f"a proof with a gap of {proved}"
    merged = attempt(lambda: export.export(folder, "merged", target))
    if isinstance(merged, Refusal):
        assert not list(target.parent.iterdir()), f"a refused merge leaves {list(target.parent.iterdir())}"
    else:
        assert np.isfinite(merged.made.agreement.largest_logit_gap), (
            f"merged with a gap of {merged.made.agreement.largest_logit_gap}"
        )


@dataclass(frozen=True)
class Refusal:
    """What lorafit said instead of an answer."""

    sentence: str


T = TypeVar("T")


def attempt(ask: Callable[[], T]) -> T | Refusal:
    """Return what `ask` does, or its refusal if it is as it should be: one line that any terminal can show."""
    try:
        return ask()
    except LorafitError as error:
        sentence = str(error)
    assert len(sentence.splitlines()) == 1, f"a refusal of more than a line: {sentence!r}"
    assert not controls(sentence), f"a refusal with control characters: {sentence!r}"
    return Refusal(sentence)


def controls(text: str) -> set[str]:
    """Return the characters that a terminal obeys (Cc), and halves of characters, which can't be printed (Cs)."""
    return {character for character in text if unicodedata.category(character) in {"Cc", "Cs"}}


def run(cases: list[Case], seed: int) -> None:
    """Make a mutation and print, a line of JSON each, that it begins, what it does, and how it was received.

    The lines are printed at once, so that they stand there if the process dies.
    """
    case = cases[seed % len(cases)]
    _print(seed=seed, case=case.name)
    faulthandler.dump_traceback_later(SECONDS_A_MUTATION, exit=True)  # from a thread: no library can hold it up
    with tempfile.TemporaryDirectory() as scratch:
        spoiled = spoil(Path(shutil.copytree(case.folder, Path(scratch) / "adapter")), seed)
        _print(seed=seed, done=spoiled.done, sealed_anew=spoiled.sealed_anew)
        target = Path(scratch) / "merged" / "model"
        target.parent.mkdir()
        thorough = seed // 2 % 10 == 0 or proof.FILE in spoiled.done
        try:
            with chdir(case.folder.parent):  # a plain PEFT directory finds its base there, by the name of its folder
                outcome, sentence = judge(case, spoiled, target, thorough=thorough)
        except BaseException as error:  # noqa: BLE001 - a panic of Rust and an exit are none that should come
            outcome, sentence = "failed", f"{type(error).__name__}: {error}"
            traceback.print_exc()
    faulthandler.cancel_dump_traceback_later()
    _print(seed=seed, outcome=outcome, sentence=sentence)


def _print(**facts: object) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201 - to the parent


def limit_memory() -> None:
    """Let what takes all memory end this process only."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (BYTES_OF_ADDRESSES, BYTES_OF_ADDRESSES))


def main() -> None:
    """Run the mutations asked for, on the cases in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", type=Path, help="a folder of folders that hold `encoder` and `adapter`")
    parser.add_argument("--seed", type=int, required=True, help="of the first mutation")
    parser.add_argument("--count", type=int, default=1, help="number of mutations")
    asked = parser.parse_args()
    faulthandler.enable()
    limit_memory()
    warnings.simplefilter("ignore")  # a lost manifest leaves a plain PEFT directory, which says so
    torch.set_num_threads(1)
    cases = [load_case(folder) for folder in sorted(asked.cases.resolve().iterdir())]
    for seed in range(asked.seed, asked.seed + asked.count):
        run(cases, seed)


if __name__ == "__main__":
    main()
