"""The merged model is an ordinary one, and its answers are those of base and adapter."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lorafit import Classifier, encoders, export, pipeline
from lorafit.errors import BundleError, StorageError
from tests.conftest import Said, texts_and_labels
from tests.test_bundle import other_weights, reseal, unlearned

TEXTS = texts_and_labels(6, seed=5)[0]


def test_the_merged_directory_works_in_a_pipeline_with_names(
    trained: Path, tmp_path: Path, cli: Callable[..., Said]
) -> None:
    from transformers import pipeline as ready_made

    said = cli("merge", trained, tmp_path / "merged")
    assert said.code == 0
    assert "Largest logit gap to the unmerged model: " in said.out
    theirs = ready_made("text-classification", model=str(tmp_path / "merged"), truncation=True, top_k=None)
    expected = Classifier.load(trained, precision="fp32").predict(TEXTS)
    for scores, answer in zip(theirs(TEXTS), expected, strict=True):
        assert scores[0]["label"] == answer["label"]
        for score in scores:
            assert score["score"] == pytest.approx(answer[f"{score['label']}_prob"], abs=1e-5)


def test_nothing_of_the_adapter_or_of_our_settings_stays_in_a_merged_model(
    trained: Path, tiny: Path, tmp_path: Path
) -> None:
    made = export.merge(trained, tmp_path / "merged")
    assert made.gap < 1e-5
    config, base = (json.loads((folder / "config.json").read_text()) for folder in (made.folder, tiny))
    assert config["hidden_dropout_prob"] == base["hidden_dropout_prob"] == 0.1
    assert config["id2label"] == {"0": "neg", "1": "pos"}
    weights, stored = load_file(made.folder / "model.safetensors"), load_file(tiny / "model.safetensors")
    assert not [name for name in weights if "lora" in name]
    same = [name for name in stored if torch.equal(weights[f"bert.{name}"], stored[name])]
    assert len(stored) - len(same) == 4  # query and value of two layers
    record = json.loads((made.folder / export.RECORD).read_text())
    assert record["different_base"] is None
    assert record["adapter"]["labels"] == ["neg", "pos"]


@unlearned
def test_a_run_in_bf16_is_merged_against_the_stored_weights(
    tiny: Path, tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    run = pipeline.train(tiny_recipe(encoder={"precision": "bf16"}, training={"epochs": 1}), tmp_path / "run")
    made = export.merge(run.path, tmp_path / "merged")
    assert made.gap < 1e-5
    weights, stored = load_file(made.folder / "model.safetensors"), load_file(tiny / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(weights[f"bert.{name}"], stored[name])
    assert not torch.equal(stored[name], stored[name].bfloat16().float())


def test_what_stands_at_the_target_is_not_replaced_unasked(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for target in (tmp_path / "mine", tmp_path, trained, trained / "adapter"):
        with pytest.raises(StorageError, match="holds something else than a merged model. Choose another place"):
            export.merge(trained, target, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert (trained / "adapter" / "lorafit.json").exists()
    made = export.merge(trained, tmp_path / "merged")
    (made.folder / "model.safetensors").unlink()
    with pytest.raises(StorageError, match="merged is there already. Replace it with --overwrite"):
        export.merge(trained, tmp_path / "merged")
    export.merge(trained, tmp_path / "merged", overwrite=True)
    assert (made.folder / "model.safetensors").exists()


def test_what_a_merged_model_can_not_keep_is_said_on_the_terminal_and_on_its_card(
    trained: Path, tmp_path: Path, cli: Callable[..., Said]
) -> None:
    assert export.merge(trained, tmp_path / "plain").lost == []
    copy = Path(shutil.copytree(trained / "adapter", tmp_path / "copy"))
    reseal(copy, long_text="windows:mean", thresholds=[0.7, 0.3])
    said = cli("merge", copy, tmp_path / "merged")
    card = (tmp_path / "merged" / "README.md").read_text()
    for sentence in (
        "A pipeline reads only the first 64 tokens of a longer text, where training and lorafit go by data.long_text",
        "lorafit gives a label from thresholds of its own (neg 0.7, pos 0.3); a pipeline does not.",
    ):
        assert sentence in said.out
        assert sentence in card


def test_a_different_base_is_recorded_in_what_is_merged(trained: Path, tiny: Path, tmp_path: Path) -> None:
    wrong = other_weights(tiny, tmp_path / "wrong")
    with pytest.raises(BundleError, match="Its answers would mean nothing"):
        export.merge(trained, tmp_path / "merged", encoder=str(wrong))
    assert not (tmp_path / "merged").exists()
    with pytest.warns(UserWarning, match="--allow-different-base"):
        export.merge(trained, tmp_path / "merged", encoder=str(wrong), allow_different_base=True)
    record = json.loads((tmp_path / "merged" / export.RECORD).read_text())
    assert record["different_base"] == encoders.locate(str(wrong)).sha256


def test_a_merged_model_that_answers_otherwise_is_not_left_behind(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peft#2502: merging that changes the answers."""
    read_back = export._read_back

    def changed(folder: Path) -> Any:
        model = read_back(folder)
        with torch.no_grad():
            model.classifier.bias.add_(0.01)
        return model

    monkeypatch.setattr(export, "_read_back", changed)
    with pytest.raises(BundleError, match=r"The merged model answers otherwise: its logits differ by up to 0.01"):
        export.merge(trained, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.filterwarnings("ignore:.*lorafit did not make it")
def test_a_plain_peft_directory_can_be_merged_too(trained: Path, tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained / "adapter", tmp_path / "copy"))
    for name in ("lorafit.json", "proof.json"):
        (copy / name).unlink()
    made = export.merge(copy, tmp_path / "merged", encoder=str(tiny))
    assert made.texts == 3
    theirs = Classifier.load(trained, precision="fp32").probabilities(TEXTS)
    from transformers import pipeline as ready_made

    scores = ready_made("text-classification", model=str(made.folder), top_k=None)(TEXTS)
    found = np.array([{part["label"]: part["score"] for part in row}["LABEL_1"] for row in scores])
    np.testing.assert_allclose(found, theirs[:, 1], atol=1e-5)
