"""Frozen layers computed once give what they give each time: the same training, the same adapter, the same scores."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorafit import adapter, encoders, pipeline, predict, prefix, proof
from lorafit.errors import RecipeError, StorageError
from lorafit.runtime import Runtime
from lorafit.tokens import encode
from tests.conftest import Said, mount_small_disk, texts_and_labels
from tests.small_encoders import CONFIGS, write_encoder

FP32 = Runtime("cpu", "fp32", 2, "for the test")
TOP = {"layers": "top:1", "targets": "all-linear"}


@pytest.fixture(autouse=True)
def proved_in_this_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "_ask_fresh_process", proof.answer)
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def history(run: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if "second" not in key} for line in run.history]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "data",
    [{}, {"long_text": "windows:mean", "max_tokens": 16}],
    ids=["heads", "windows"],
)
def test_a_cached_run_is_the_uncached_one(
    precision: str, data: dict[str, Any], tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    def run(cached: bool) -> Any:
        recipe = tiny_recipe(
            data=data,
            encoder={"precision": precision},
            adapter=TOP,
            training={"cache_prefix": cached, "epochs": 2},
        )
        return pipeline.train(recipe, tmp_path / f"cached-{cached}")

    plain, cached = run(False), run(True)
    assert [line for line in history(cached) if "prefix" not in line] == history(plain)
    written = [(run.path / "adapter" / "adapter_model.safetensors").read_bytes() for run in (plain, cached)]
    assert written[0] == written[1]
    assert pipeline.evaluate(plain) == pipeline.evaluate(cached)
    assert len(list((tmp_path / "cache" / "prefix").glob("*/states.bin"))) == 2


def test_trials_above_the_same_layers_share_what_is_kept(
    tiny_recipe: Callable[..., Any], tmp_path: Path, own_cache: Path
) -> None:
    for number, rank in enumerate((2, 4)):
        recipe = tiny_recipe(adapter=TOP | {"rank": rank}, training={"cache_prefix": True, "epochs": 1})
        run = pipeline.train(recipe, tmp_path / str(number))
        assert [line["prefix"]["layers"] for line in run.history if "prefix" in line] == ([1] if number == 0 else [])
    assert len(list((own_cache / "prefix").glob("*/states.bin"))) == 1


@pytest.mark.parametrize("family", [name for name in CONFIGS if name not in ("albert", "mpnet", "deberta-v2")])
def test_every_family_that_is_served_answers_the_same(family: str, tmp_path: Path) -> None:
    files = encoders.locate(str(write_encoder(tmp_path / family, CONFIGS[family]())))
    tokenizer = encoders.load_tokenizer(files.folder, files.name)
    encoder = encoders.load(files, ["neg", "pos"])
    model = adapter.attach(encoder.model, fresh=encoder.fresh, layers="top:1", targets="all-linear")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    below = prefix.of(model, "top:1")
    adapter.speed_up(model, encoder.fresh, FP32)
    tokens = encode(texts_and_labels(9)[0], tokenizer, 32)
    expected = predict.logits(model, tokens, tokenizer.pad_token_id, FP32)
    model.eval()
    found = prefix.states(below, family, [tokens, tokens], tokenizer.pad_token_id, FP32)
    assert found.seconds > 0
    assert found.bytes == 2 * len(tokens.ids) * 64 * 4
    with prefix.standing_in(below, found.table):
        for rows in found.tokens:
            given = predict.logits(model, rows, tokenizer.pad_token_id, FP32)
            np.testing.assert_allclose(given, expected, atol=1e-5)
    np.testing.assert_array_equal(predict.logits(model, tokens, tokenizer.pad_token_id, FP32), expected)


def test_what_another_process_is_writing_is_left_alone(
    tiny_recipe: Callable[..., Any], tmp_path: Path, own_cache: Path
) -> None:
    others = own_cache / "prefix" / f".{'0' * 16}.{'a' * 12}"
    others.mkdir(parents=True)
    pipeline.train(tiny_recipe(adapter=TOP, training={"cache_prefix": True, "epochs": 1}), tmp_path / "run")
    assert others.is_dir()


def test_what_is_cut_short_or_gone_is_made_anew(
    tiny_recipe: Callable[..., Any], tmp_path: Path, own_cache: Path
) -> None:
    recipe = tiny_recipe(adapter=TOP, training={"cache_prefix": True, "epochs": 1})
    first = pipeline.train(recipe, tmp_path / "first")
    (table,) = (own_cache / "prefix").glob("*/states.bin")
    table.write_bytes(table.read_bytes()[:-64])
    second = pipeline.train(recipe, tmp_path / "second")
    assert history(first) == history(second)


def test_a_killed_run_goes_on_over_the_same_states(tiny_recipe: Callable[..., Any], tmp_path: Path) -> None:
    recipe = tiny_recipe(adapter=TOP, training={"cache_prefix": True, "epochs": 2})
    whole = pipeline.train(recipe, tmp_path / "whole")

    class Killed(Exception):  # noqa: N818
        pass

    def kill(epoch: int, _scores: dict[str, float]) -> None:
        if epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        pipeline.try_out(recipe, tmp_path / "killed", kill)
    resumed = pipeline.resume(tmp_path / "killed")
    assert resumed.validations[-1]["validation"] == whole.validations[-1]["validation"]


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({}, 'adapter.layers = "all" leaves none. Set adapter.layers to "top:K"'),
        (
            {"adapter": TOP, "encoder": {"dropout": 0.1}},
            "encoder.dropout = 0.1 changes that. Set encoder.dropout = 0.0",
        ),
        ({"adapter": TOP, "encoder": {"dropout": "keep"}}, 'encoder.dropout = "keep" changes that'),
    ],
)
def test_a_recipe_that_leaves_nothing_frozen_is_refused(
    tables: dict[str, Any], said: str, tiny_recipe: Callable[..., Any]
) -> None:
    with pytest.raises(RecipeError) as refused:
        tiny_recipe(training={"cache_prefix": True}, **tables)
    assert said in str(refused.value)


@pytest.mark.parametrize("module", ["LayerNorm", "embeddings"])
def test_what_would_train_below_a_kept_prefix_is_refused(
    module: str, tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = tiny_recipe(adapter=TOP | {"also_train": [module]}, training={"cache_prefix": True})
    with pytest.raises(RecipeError, match=r"would train there. Take it out of adapter.also_train"):
        pipeline.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("family", ["mpnet", "deberta-v2"])
def test_an_encoder_whose_layers_cannot_be_passed_by_is_refused(
    family: str, tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    encoder = {"name": str(write_encoder(tmp_path / family, CONFIGS[family]()))}
    recipe = tiny_recipe(encoder=encoder, adapter=TOP, training={"cache_prefix": True})
    with pytest.raises(RecipeError, match=rf"does not serve .* \({family}\), only bert, roberta"):
        pipeline.plan(recipe)


def test_a_dry_run_computes_and_keeps_nothing(
    tiny_recipe: Callable[..., Any], cli: Callable[..., Said], tmp_path: Path, own_cache: Path
) -> None:
    from lorafit import recipe as recipes

    file = tmp_path / "top.toml"
    file.write_text(recipes.to_toml(tiny_recipe(adapter=TOP, training={"cache_prefix": True})))
    said = cli("train", file, "--dry-run")
    assert said.code == 0
    assert "cache_prefix = true" in said.out
    assert not (own_cache / "prefix").exists()


def test_a_full_disk_is_said_before_and_while_it_fills(
    tiny_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(adapter=TOP, training={"cache_prefix": True, "epochs": 1})
    disk = tmp_path / "small"
    if not mount_small_disk(disk, 400):
        pytest.skip("needs to mount a small disk")
    monkeypatch.setenv("LORAFIT_CACHE", str(disk))
    with pytest.raises(StorageError, match=r"takes 0.5 MB, and .* has 0.\d MB free. Set LORAFIT_CACHE"):
        pipeline.train(recipe, tmp_path / "run")
    usage = shutil.disk_usage(disk)
    monkeypatch.setattr(prefix.shutil, "disk_usage", lambda _: usage._replace(free=10**12))
    with pytest.raises(StorageError, match="The disk is full"):
        pipeline.train(recipe, tmp_path / "run", overwrite=True)
    assert not list((disk / "prefix").glob("*/states.bin"))
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["state"] == "training"
