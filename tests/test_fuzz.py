"""A damaged bundle never crashes, hangs, or loads in silence as something else."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, processors, trainers

from lorafit import pipeline
from tests.conftest import make_tiny_encoder, texts_and_labels

ROOT = Path(__file__).parents[1]
MOST_DEATHS = 10  # each costs a start of Python; what comes after so many is not worth the wait
MARKS = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}


def byte_level_bpe() -> tuple[Any, Any, Any]:
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[*MARKS.values()], show_progress=False)
    return models.BPE(), pre_tokenizers.ByteLevel(), trainer


def unigram() -> tuple[Any, Any, Any]:
    trainer = trainers.UnigramTrainer(
        vocab_size=100, special_tokens=[*MARKS.values()], unk_token="<unk>", show_progress=False
    )
    return models.Unigram(), pre_tokenizers.Metaspace(), trainer


def make_encoder(folder: Path, parts: tuple[Any, Any, Any], config: type[Any]) -> Path:
    """Write a tiny encoder of the family in `config`, with a tokenizer trained on our texts."""
    model, pre_tokenizer, trainer = parts
    trained = tokenizers.Tokenizer(model)
    trained.pre_tokenizer = pre_tokenizer
    trained.train_from_iterator(texts_and_labels(50)[0], trainer)
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(mark, trained.token_to_id(mark)) for mark in ("<s>", "</s>")]
    )
    names = {f"{name}_token": mark for name, mark in MARKS.items()}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=trained, model_max_length=64, **names)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    made = config(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=66,
        initializer_range=0.2,
    )
    transformers.AutoModel.from_config(made).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cases(tiny_recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle and its encoder for each kind of tokenizer."""
    root = tmp_path_factory.mktemp("cases")
    make_tiny_encoder(root / "wordpiece" / "encoder")
    make_encoder(root / "bpe" / "encoder", byte_level_bpe(), transformers.RobertaConfig)
    make_encoder(root / "unigram" / "encoder", unigram(), transformers.XLMRobertaConfig)
    for case in root.iterdir():
        recipe = tiny_recipe(encoder={"name": str(case / "encoder")}, training={"epochs": 1})
        shutil.copytree(pipeline.train(recipe, tmp_path_factory.mktemp("runs") / case.name).adapter, case / "adapter")
    return root


def fuzz(cases: Path, logs: Path, count: int, code: str = "fuzz_bundles.main()") -> dict[int, dict[str, Any]]:
    """Return what is known of each mutation, by its seed; one that ended the process "died", and a new one goes on."""
    known: dict[int, dict[str, Any]] = {}
    deaths = 0
    while len(known) < count and deaths < MOST_DEATHS:
        command = [sys.executable, "-c", f"from tests import fuzz_bundles\n{code}", str(cases)]
        span = ["--seed", str(len(known)), "--count", str(count - len(known))]
        said, complained = logs / f"{deaths}.jsonl", logs / f"{deaths}.err"
        with said.open("w") as out, complained.open("w") as err:
            ended = subprocess.run([*command, *span], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        lines = [json.loads(line) for line in said.read_text().splitlines() if line.startswith('{"seed": ')]
        assert lines, f"the process ended with code {ended.returncode} before the first mutation; see {complained}"
        for line in lines:
            known.setdefault(line["seed"], {}).update(line)
        last = known[max(known)]
        if "outcome" not in last:
            deaths += 1
            last |= {"outcome": "died", "sentence": f"with code {ended.returncode}; see {complained}"}
    return known


def refuse_failures(known: dict[int, dict[str, Any]], cases: Path) -> Counter[str]:
    """Return how many mutations had which outcome; fails with all that should not be, and how to see one again."""
    faults = [one for one in known.values() if one["outcome"] in {"failed", "died"}]
    told = "\n".join(f"{one['seed']} {one['outcome']}: {one.get('done')} {one['sentence'][:300]}" for one in faults)
    assert not faults, f"{told}\nOne again: python -m tests.fuzz_bundles {cases} --seed {faults[0]['seed']}"
    return Counter(one["outcome"] for one in known.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:After epoch")
def test_300_damaged_bundles_are_refused_in_one_sentence(cases: Path, tmp_path: Path) -> None:
    seen = refuse_failures(fuzz(cases, tmp_path, 300), cases)
    assert seen.total() == 300
    assert seen["refused"] > 120, seen
    assert seen["sealed anew"] > 30, seen  # forgeries go deep enough to load


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:After epoch")
def test_2000_damaged_bundles_are_refused_in_one_sentence(cases: Path, tmp_path: Path) -> None:
    seen = refuse_failures(fuzz(cases, tmp_path, 2000), cases)
    assert seen.total() == 2000
    assert seen["refused"] > 800, seen


ACCIDENTS = """
import os, re, sys
from lorafit.errors import LorafitError

def refuse(sentence):
    error = LorafitError("")
    error.args = (sentence,)  # past the care that its own text is given
    raise error

accidents = [
    os.abort,
    lambda: re.match("(a+)+$", "a" * 60 + "b"),  # for years, and no signal's handler would run
    lambda: bytearray(2**40),
    sys.exit,
    lambda: refuse("two\\nlines"),
    lambda: refuse("\\x1b[2J"),
]
run = fuzz_bundles.run

def run_with_accident(cases, seed):
    fuzz_bundles.shown = lambda folder: accidents[seed]()
    run(cases, seed)

fuzz_bundles.SECONDS_A_MUTATION = 2
fuzz_bundles.run = run_with_accident
fuzz_bundles.main()
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:After epoch")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
def test_a_mutation_that_crashes_or_hangs_is_named_and_the_rest_goes_on(cases: Path, tmp_path: Path) -> None:
    known = fuzz(cases, tmp_path, 6, ACCIDENTS)
    assert [known[seed]["outcome"] for seed in range(6)] == ["died", "died", "failed", "failed", "failed", "failed"]
    for seed, said in enumerate(["code -6", "code 1", "MemoryError", "SystemExit", "more than a line", "control"]):
        assert said in known[seed]["sentence"]
    assert "Timeout" in (tmp_path / "1.err").read_text()  # with the traceback of where it hung
    with pytest.raises(AssertionError, match=r"(?s)0 died.*--seed 0"):
        refuse_failures(known, cases)
