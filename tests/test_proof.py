"""No bundle stands in its place before a fresh process has read it back and answered as the trained model does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from lorafit import bundle, checks, manifest, pipeline, proof
from lorafit.errors import BundleError, RunError
from lorafit.recipe import Data
from tests.conftest import Said
from tests.test_training import FP32, attached


def test_the_proof_stands_in_the_manifest_and_can_be_repeated(trained: Path, cli: Callable[..., Said]) -> None:
    made = checks.check(trained / "adapter")
    assert made is not None
    assert made.proof is not None
    assert made.proof.texts == 32
    assert made.proof.gap <= 1e-5
    found = proof.verify(trained / "adapter")
    assert found.texts == 32
    assert found.gap_fp32 <= 1e-5
    said = cli("verify", trained)
    assert said.code == 0
    assert "is what was trained" in said.out


@pytest.mark.filterwarnings("ignore:After epoch")
def test_in_bf16_the_fresh_process_answers_on_the_engine_of_the_training_and_in_fp32(
    tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    run = pipeline.train(tiny_recipe(encoder={"precision": "bf16"}, training={"epochs": 1}), tmp_path / "run")
    made = checks.check(run.adapter)
    assert made is not None
    assert made.proof is not None
    assert made.proof.gap < made.proof.gap_fp32 < 0.5  # the same arithmetic, and what bf16 costs
    assert proof.verify(run.adapter).gap_fp32 <= 1e-5


def spoil_what_is_saved(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Let what PEFT writes be something else than what it was given, as its old faults did."""
    save = PeftModel.save_pretrained

    def save_and_spoil(model: PeftModel, folder: Path | str, **options: Any) -> None:
        save(model, folder, **options)
        tensors = load_file(Path(folder) / checks.WEIGHTS)
        spoil(tensors)
        save_file(tensors, Path(folder) / checks.WEIGHTS)

    monkeypatch.setattr(PeftModel, "save_pretrained", save_and_spoil)


@pytest.mark.filterwarnings("ignore:After epoch")
@pytest.mark.parametrize("tensor", ["classifier.weight", "layer.1.attention.self.value.lora_B.weight"])
def test_a_tensor_that_comes_back_otherwise_fails_the_run_and_is_named(
    tensor: str, tiny_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that is random after loading (peft#310), an adapter that is not the one trained."""

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in tensors if name.endswith(tensor))
        tensors[name] += 1e-6

    spoil_what_is_saved(monkeypatch, spoil)
    module = tensor.removesuffix(".weight").replace("lora_B", r"lora_B.default")
    with pytest.raises(BundleError, match=rf"does not come back as it was trained: .*{module}.* differs"):
        pipeline.train(tiny_recipe(training={"epochs": 1}), tmp_path / "run")
    monkeypatch.undo()
    assert not (tmp_path / "run" / "adapter").exists()
    assert not list((tmp_path / "run").glob(".adapter*"))
    resumed = pipeline.resume(tmp_path / "run")  # nothing of the training is lost
    assert proof.verify(resumed.adapter).texts == 32


@pytest.mark.filterwarnings("ignore:After epoch")
def test_a_tensor_that_is_lost_in_saving_fails_the_run_and_is_named(
    tiny_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_what_is_saved(monkeypatch, lambda tensors: tensors.pop("base_model.model.classifier.weight"))
    with pytest.raises(BundleError, match=r"A fresh process can't read the adapter back: .* lacks .*classifier.weight"):
        pipeline.train(tiny_recipe(training={"epochs": 1}), tmp_path / "run")


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "adapter", tmp_path / "copy"))


def test_verify_names_a_tensor_that_was_changed_with_all_hashes_made_to_fit(
    copy: Path, cli: Callable[..., Said]
) -> None:
    tensors = load_file(copy / checks.WEIGHTS)
    name = max(tensors)
    tensors[name] *= 1.001
    save_file(tensors, copy / checks.WEIGHTS)
    bundle.seal(copy, manifest.read(copy))
    said = cli("verify", copy)
    assert said.code == 2
    assert "does not come back as it was trained: " in said.err
    assert "differs" in said.err


def test_verify_sees_logits_that_are_not_the_ones_kept(copy: Path) -> None:
    evidence = json.loads((copy / proof.FILE).read_text())
    evidence["logits"][3][0] += 1e-3
    (copy / proof.FILE).write_text(json.dumps(evidence))
    bundle.seal(copy, manifest.read(copy))
    with pytest.raises(BundleError, match=r"its logits differ by up to 0.001, where fp32 explains"):
        proof.verify(copy)


@pytest.mark.parametrize(
    "changed",
    [
        {"texts": []},
        {"tensors": {}},
        {"logits": [[0.0], [0.0, 1.0]]},
        {"logits": [[float("inf"), 0.0]]},
        {"texts": ["x"] * 33},
    ],
)
def test_a_proof_that_proves_nothing_is_refused(changed: dict[str, Any], copy: Path) -> None:
    evidence = json.loads((copy / proof.FILE).read_text())
    (copy / proof.FILE).write_text(json.dumps(evidence | changed))
    bundle.seal(copy, manifest.read(copy))
    with pytest.raises(BundleError, match=r"proof.json can't be used"):
        proof.verify(copy)


def test_verify_refuses_what_has_no_proof(copy: Path) -> None:
    bundle.seal(copy, manifest.read(copy).model_copy(update={"proof": None}))
    with pytest.raises(BundleError, match="has no proof to repeat"):
        proof.verify(copy)
    (copy / proof.FILE).write_text('{"texts": 3}')
    bundle.seal(copy, manifest.read(copy).model_copy(update={"proof": manifest.Proof(texts=1, gap=0.0, gap_fp32=0.0)}))
    with pytest.raises(BundleError, match=r"proof.json can't be used: "):
        proof.verify(copy)


def test_the_texts_of_a_proof_are_short_but_for_one_that_has_to_be_cut() -> None:
    texts = ["x" * length for length in range(1, 101)] + ["long " * 10_000]
    chosen = proof.choose_texts(texts)
    assert [len(text) for text in chosen] == [*range(1, 32), proof.LONGEST_CHARACTERS]
    assert [len(text) for text in proof.choose_texts(["x" * 1000] * 3)] == [proof.CHARACTERS, proof.CHARACTERS, 1000]
    assert proof.choose_texts(["b", "a"]) == ["b", "a"]


def test_a_nan_is_no_match() -> None:
    with pytest.raises(BundleError, match="its logits differ"):
        proof._refuse_other_logits(Path("x"), np.zeros((2, 2)), np.full((2, 2), np.nan), "bf16")


def test_a_model_that_was_turned_and_answers_otherwise_is_refused(tiny: Path) -> None:
    model, tokenizer = attached(tiny)
    other, _ = attached(tiny)
    texts = ["a good film " * 200, "a bad film"]  # the first is longer than the encoder's window of 64
    proof.refuse_other_answers(model, other, texts, tokenizer, Data(max_tokens=64), FP32)
    with torch.no_grad():
        other.base_model.model.classifier.modules_to_save["default"].bias.add_(0.01)
    with pytest.raises(RunError, match="answers otherwise: its logits differ by up to 0.01, where fp32 explains"):
        proof.refuse_other_answers(model, other, texts, tokenizer, Data(max_tokens=64), FP32)
