"""The frozen base is cast once; what trains, and what is fresh, stays in fp32."""

import pytest
import torch

from lorafit import adapter, padfree
from lorafit.errors import LorafitWarning
from lorafit.runtime import Runtime
from tests.small_encoders import adapted, batch, gap, step

BF16 = Runtime("cpu", "bf16", 2, "as asked for")
FP32 = Runtime("cpu", "fp32", 2, "as asked for")
FRESH = {"bert": ["classifier", "pooler"], "roberta": ["classifier"], "distilbert": ["classifier", "pre_classifier"]}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_speeding_up_casts_the_frozen_weights_and_nothing_else(family: str) -> None:
    exact = step(adapted(family))
    model = adapted(family)
    adapter.speed_up(model, FRESH[family], BF16)
    assert padfree.is_enabled(model)
    for name, weight in model.named_parameters():
        stays = "lora_" in name or any(f".{fresh}." in name for fresh in FRESH[family])
        assert weight.dtype == (torch.float32 if stays else torch.bfloat16), name
    found = step(model)
    assert {grad.dtype for grad in found.values()} == {torch.float32}
    assert gap(exact, found) < 2 * gap(exact, step(adapted(family, torch.bfloat16)))


def test_in_fp32_nothing_is_cast_and_the_answers_are_the_same() -> None:
    model = adapted()
    exact = step(model)
    adapter.speed_up(model, FRESH["bert"], FP32)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert gap(exact, step(model)) < 1e-4


@pytest.mark.parametrize("family", ["mpnet", "deberta-v2"])
def test_an_encoder_that_padfree_cannot_serve_trains_in_bf16_on_its_ordinary_path(family: str) -> None:
    exact = step(adapted(family))
    model = adapted(family)
    with pytest.warns(LorafitWarning, match="keeps its ordinary path"):
        adapter.speed_up(model, ["classifier", "pooler"], BF16)
    assert gap(exact, step(model)) < 2 * gap(exact, step(adapted(family, torch.bfloat16)))


def test_merged_models_are_sped_up_too() -> None:
    model = adapted().eval()
    expected = model(**batch()).logits
    merged = model.merge_and_unload()
    adapter.speed_up(merged, FRESH["bert"], FP32)
    torch.testing.assert_close(merged(**batch()).logits, expected, atol=1e-4, rtol=1e-4)
