"""What we hand over can be read by everyone, and comes back as what it was."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from lorafit import Classifier, adapter, bundle, encoders
from lorafit.errors import BundleError
from tests.conftest import make_tiny_encoder, texts_and_labels


def test_plain_peft_gives_the_same_probabilities_under_the_same_names(trained: Path, tiny: Path) -> None:
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoTokenizer

    ours = Classifier.load(trained, precision="fp32")
    texts, _ = texts_and_labels(6, seed=5)
    folder = trained / "adapter"
    theirs = AutoPeftModelForSequenceClassification.from_pretrained(
        folder, id2label={0: "neg", 1: "pos"}, label2id={"neg": 0, "pos": 1}
    ).eval()
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        probabilities = theirs(**batch).logits.softmax(-1).numpy()
    np.testing.assert_allclose(ours.probabilities(texts), probabilities, atol=1e-5)
    assert theirs.config.id2label == {0: "neg", 1: "pos"}


def test_the_directory_holds_peft_files_tokenizer_and_manifest_and_nothing_that_runs_code(trained: Path) -> None:
    names = {file.name for file in (trained / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "lorafit.json", "tokenizer.json"} <= names
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".txt"}
    assert "config.json" not in names


def test_the_base_of_an_adapter_is_named_by_its_hub_id_never_by_a_path(tmp_path: Path) -> None:
    files = encoders.locate("bundled:minilm")
    encoder = encoders.load(files, ["neg", "pos"])
    model = adapter.attach(encoder.model, fresh=encoder.fresh)
    base = bundle.Base(source=files.name, id=files.hub_id, revision=files.revision, sha256=files.sha256)
    manifest = bundle.Manifest(base=base, labels=["neg", "pos"], max_tokens=512, seed=0)
    bundle.save(tmp_path, model, encoders.load_tokenizer(files.folder, files.name), manifest)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert config["revision"] == "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
    written = "".join(file.read_text() for file in tmp_path.glob("*.json"))
    assert str(files.folder) not in written


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors", "lorafit.json"])
def test_a_directory_that_lacks_a_file_is_refused(missing: str, trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained / "adapter", tmp_path / "adapter"))
    (copy / missing).unlink()
    with pytest.raises(BundleError, match=f"is no adapter of lorafit: it has no {missing}"):
        Classifier.load(copy)


def test_a_wrong_base_is_refused_and_both_are_named(trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained / "adapter", tmp_path / "adapter"))
    other = make_tiny_encoder(tmp_path / "other")
    from transformers import BertModel

    model = BertModel.from_pretrained(other)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.add_(1e-3)
    model.save_pretrained(other)
    manifest = bundle.read_manifest(copy)
    manifest.base.source = str(other)
    (copy / "lorafit.json").write_text(manifest.model_dump_json())
    with pytest.raises(BundleError, match=rf"was trained on .* with weights {manifest.base.sha256[:12]}"):
        Classifier.load(copy)


def test_a_broken_manifest_and_broken_weights_are_refused(trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained / "adapter", tmp_path / "adapter"))
    (copy / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(BundleError, match="can't be loaded"):
        Classifier.load(copy)
    (copy / "lorafit.json").write_text('{"format_version": 9}')
    with pytest.raises(BundleError, match="format_version"):
        Classifier.load(copy)


@pytest.mark.slow
def test_with_rank_1_on_a_bert_base_shape_the_weights_are_about_150_kilobytes(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    model = adapter.attach(BertForSequenceClassification(BertConfig(num_labels=2)), rank=1, alpha=1)
    model.save_pretrained(tmp_path)
    assert 140_000 < (tmp_path / "adapter_model.safetensors").stat().st_size < 170_000
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as weights:
        assert len(list(weights.keys())) == 12 * 2 * 2 + 2
