"""The head reads the mean over a text's real tokens, with padding and without."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from lorafit import Classifier, export, padfree, pipeline, proof
from lorafit.errors import BundleError
from lorafit.pooling import read_the_mean, reads_the_mean
from lorafit.recipe import Recipe
from tests.conftest import texts_and_labels
from tests.small_encoders import CONFIGS, LENGTHS, adapted, batch, gap, step


def _means_by_hand(model: Any) -> torch.Tensor:
    """Return the mean of each text's last states, text by text and without any padding."""
    encoder, inputs = model.base_model.model.base_model, batch()
    texts = [row[None, :length] for row, length in zip(inputs["input_ids"], LENGTHS, strict=True)]
    return torch.cat([encoder(input_ids=text).last_hidden_state.mean(dim=1) for text in texts])


def _what_the_head_gets(model: Any) -> torch.Tensor:
    seen: list[Any] = []
    model.base_model.model.base_model.register_forward_hook(lambda _module, _args, output: seen.append(output))
    model(**batch())
    assert seen[0]["last_hidden_state"].shape[1] == 1
    return seen[0]["last_hidden_state"][:, 0]


@pytest.mark.parametrize("family", CONFIGS)
def test_the_head_gets_the_mean_of_the_real_tokens(family: str) -> None:
    model = adapted(family, torch.float64)
    by_hand = _means_by_hand(model)
    read_the_mean(model.base_model.model)
    assert reads_the_mean(model)
    torch.testing.assert_close(_what_the_head_gets(model), by_hand, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("family", [family for family in CONFIGS if family in padfree.FAMILIES])
def test_it_is_the_same_mean_without_padding(family: str) -> None:
    model = adapted(family, torch.float64)
    first = step(model)["logits"]
    read_the_mean(model.base_model.model)
    ordinary = step(model)
    assert (ordinary["logits"] - first).abs().max() > 1e-3
    padfree.enable(model)
    assert gap(ordinary, step(model)) < 1e-10
    assert gap(ordinary, step(model, batch(extra=9))) < 1e-10


def test_an_encoders_own_pooler_is_passed_by() -> None:
    model = adapted("bert", torch.float64).base_model.model
    by_hand = model.classifier(_means_by_hand(adapted("bert", torch.float64)))
    read_the_mean(model)
    torch.testing.assert_close(model(**batch()).logits, by_hand, atol=1e-10, rtol=1e-10)


def test_without_a_mask_every_token_counts() -> None:
    model = adapted("roberta", torch.float64)
    ids = batch()["input_ids"][5:6, : LENGTHS[5]]
    read_the_mean(model.base_model.model)
    expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-10, rtol=1e-10)


def test_an_adapter_trained_over_the_mean_is_read_back_over_the_mean(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = pipeline.train(tiny_recipe(encoder={"pooling": "mean"}), tmp_path / "mean")
    assert "Only lorafit reads such an adapter" in capfd.readouterr().err
    classifier = Classifier.load(run.path, precision="fp32")
    assert reads_the_mean(classifier.model)
    texts, _ = texts_and_labels(6, seed=5)
    inputs = AutoTokenizer.from_pretrained(run.adapter)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = classifier.model(**inputs).logits.softmax(-1).numpy()
    np.testing.assert_allclose(classifier.probabilities(texts), expected, atol=1e-5)
    manifest = json.loads((run.adapter / "lorafit.json").read_text())
    assert manifest["pooling"] == "mean"
    assert "its answers would be wrong" in (run.adapter / "README.md").read_text()
    assert proof.verify(run.adapter).gap < 1e-5
    with pytest.raises(BundleError, match="reads the mean of the tokens, which an ordinary model of its family can't"):
        export.export(run.path, "merged", tmp_path / "merged")
