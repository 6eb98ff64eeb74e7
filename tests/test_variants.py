"""The variants of LoRA go the whole way, and what can't be served is refused before any work."""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType
from transformers import AutoModelForSequenceClassification

from lorafit import Classifier, adapter, checkpoints, encoders, export, families, pipeline, predict, proof, recipe, runs
from lorafit.checkpoints import State
from lorafit.errors import EncoderError, LorafitWarning, RecipeError
from lorafit.recipe import Training
from lorafit.runtime import Runtime
from tests.conftest import texts_and_labels
from tests.small_encoders import AS_PUBLISHED, CONFIGS, gap, step
from tests.test_families import adapted_layers, classifier_of, linear_layers
from tests.test_training import attached, fit

pytestmark = pytest.mark.usefixtures("proved_in_this_process")
BF16 = Runtime("cpu", "bf16", 2, "for the test")
FP32 = Runtime("cpu", "fp32", 2, "for the test")
TEXTS = texts_and_labels(6, seed=5)[0]
TRAINED: dict[str, dict[str, dict[str, Any]]] = {
    "rslora": {"adapter": {"variant": "rslora"}},
    "dora": {"adapter": {"variant": "dora"}},
    "the top layer": {"adapter": {"layers": "top:1", "targets": "all-linear"}},
    "gaussian": {"adapter": {"init": "gaussian"}},
    "orthogonal": {"adapter": {"init": "orthogonal"}},
    "pissa": {"adapter": {"init": "pissa"}},
    "olora, rslora": {"adapter": {"init": "olora", "variant": "rslora"}},
    "pissa, dora, bf16": {"adapter": {"init": "pissa", "variant": "dora"}, "encoder": {"precision": "bf16"}},
    "modules that train whole": {"adapter": {"also_train": ["pooler", "LayerNorm", "embeddings"]}},
    "LoRA+": {"training": {"lora_plus_ratio": 16.0, "learning_rate": 1e-3}},
    "all at once, bf16": {
        "adapter": {"variant": "dora", "layers": "top:1", "init": "orthogonal", "also_train": ["LayerNorm", "pooler"]},
        "training": {"lora_plus_ratio": 4.0, "learning_rate": 5e-3},
        "encoder": {"precision": "bf16"},
    },
}


@pytest.fixture(autouse=True)
def proved_in_this_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """Bundles are proved in this process: a fresh one takes seconds, and has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "_ask_fresh_process", proof.answer)
        yield


def changed(tables: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the tables of a recipe of three steps, with those changes."""
    few = {
        "data": {"train_size": 24, "validation_size": 40, "test_size": 8},
        "training": {"epochs": 1, "learning_rate": 1e-2},
    }
    return {name: few.get(name, {}) | tables.get(name, {}) for name in few.keys() | tables.keys()}


def plain_logits(model: Any, run: runs.Run) -> np.ndarray:
    tokenizer = encoders.load_tokenizer(run.adapter, "x")
    return predict.plain_logits(model, proof.encode(TEXTS, tokenizer, 64), tokenizer.pad_token_id)


@pytest.mark.filterwarnings("ignore:After epoch")
@pytest.mark.parametrize("tables", TRAINED.values(), ids=TRAINED)
def test_each_variant_is_trained_read_back_by_us_and_by_plain_peft_and_merged(
    tables: dict[str, dict[str, Any]],
    tiny: Path,
    tiny_recipe: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live: list[PeftModel] = []
    attach = adapter.attach
    monkeypatch.setattr(adapter, "attach", lambda *a, **named: live.append(attach(*a, **named)) or live[-1])
    run = pipeline.train(tiny_recipe(**changed(tables)), tmp_path / "run")
    assert run.record["steps"] == 3
    made = export.export(run.path, "merged", tmp_path / "merged")
    base = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=2)
    expected = plain_logits(PeftModel.from_pretrained(base, run.adapter).eval(), run)
    merged = plain_logits(AutoModelForSequenceClassification.from_pretrained(made.folder).eval(), run)
    np.testing.assert_allclose(merged, expected, atol=1e-5)
    ours = Classifier.load(run.path, precision="fp32")
    np.testing.assert_allclose(ours.logits(ours._reader.encode(TEXTS)), expected, atol=1e-5)
    precision = run.record["runtime"]["precision"]
    as_trained = predict.logits(live[0], ours._reader.encode(TEXTS), 0, Runtime("cpu", precision, 2, "x"))
    np.testing.assert_allclose(as_trained, expected, atol={"fp32": 1e-5, "bf16": 0.1}[precision])
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    assert len(set(config["modules_to_save"])) == len(config["modules_to_save"])
    assert config["init_lora_weights"] not in adapter.CHANGES_BASE  # PEFT would take its product out of the base again


def test_the_defaults_leave_the_file_of_plain_lora_as_it_was(trained: Path) -> None:
    config = json.loads((trained / "adapter" / "adapter_config.json").read_text())
    usual = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, inference_mode=True).to_dict()
    differing = {key for key, value in config.items() if value != usual[key]}
    assert differing == {"base_model_name_or_path", "modules_to_save", "target_modules"}
    assert sorted(config["target_modules"]) == ["query", "value"]
    assert config["modules_to_save"] == ["classifier", "score"]  # of PEFT's own doing


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "deberta-v2"])
def test_dora_in_bf16_has_gradients_as_good_as_plain_bf16(family: str) -> None:
    def dora(dtype: torch.dtype = torch.float32) -> Any:
        model = adapter.attach(classifier_of(family), targets="attention", fresh=families.FAMILIES[family].head,
                               variant="dora")  # fmt: skip
        torch.manual_seed(1)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        return model.to(dtype).train()

    exact, fast = step(dora()), dora()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LorafitWarning)  # padfree can't serve DeBERTa
        adapter.speed_up(fast, families.FAMILIES[family].head, BF16)
    found = step(fast)
    magnitudes = [name for name in found if "magnitude" in name]
    assert magnitudes
    assert {grad.dtype for grad in found.values()} == {torch.float32}
    assert without_key_bias(exact, found) < 2 * without_key_bias(exact, step(dora(torch.bfloat16)))


def without_key_bias(exact: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> float:
    """Return the gap, but for the bias of the keys: softmax does not see it, so that its gradient is noise."""
    keys = [name for name in exact if not ("key" in name and "bias" in name)]
    return gap({name: exact[name] for name in keys}, {name: found[name] for name in keys})


@pytest.mark.filterwarnings("ignore:After epoch")
@pytest.mark.parametrize("tables", [TRAINED["LoRA+"], TRAINED["pissa"], TRAINED["all at once, bf16"]])
def test_an_interrupted_run_of_a_variant_goes_on_to_the_very_same_weights(
    tables: dict[str, dict[str, Any]], tiny_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = changed(tables)
    values["training"] |= {"epochs": 2, "checkpoint_every": 2, "weight_decay": 0.1}
    made = tiny_recipe(**values)
    whole = pipeline.train(made, tmp_path / "whole")

    class KilledError(Exception):
        pass

    log = runs.Run.log

    def log_and_die(run: runs.Run, line: dict[str, Any]) -> None:
        log(run, line)
        if line.get("step") == 5:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "log", log_and_die)
        with pytest.raises(KilledError):
            pipeline.train(made, tmp_path / "killed")
    resumed = pipeline.resume(tmp_path / "killed")
    steps = [line["step"] for line in resumed.history if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 5, 6]
    weights = [(run.adapter / "adapter_model.safetensors").read_bytes() for run in (whole, resumed)]
    assert weights[0] == weights[1]


def groups_of(model: Any, ratio: float, tmp_path: Path, tokenizer: Any) -> list[dict[str, Any]]:
    """Return the optimizer's groups at the end of a training at a constant rate of 0.01."""
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "of_optimizer", lambda optimizer, model: seen.append(optimizer) or State())
        settings = Training(
            epochs=1, learning_rate=1e-2, schedule="constant", warmup=0.0, weight_decay=0.1, lora_plus_ratio=ratio
        )
        fit(model, tokenizer, tmp_path / str(ratio), settings)
    names = {weight: name for name, weight in model.named_parameters()}
    return [group | {"names": [names[weight] for weight in group["params"]]} for group in seen[0].param_groups]


def test_lora_plus_gives_the_factors_b_a_rate_of_their_own_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = attached(tiny, also_train=["LayerNorm"], variant="dora")
    found = groups_of(model, 16.0, tmp_path, tokenizer)
    assert [group["lr"] for group in found] == pytest.approx([0.01, 0.01, 0.16])
    assert [group["weight_decay"] for group in found] == [0.1, 0.0, 0.1]
    assert all(("lora_B" in name) is (number == 2) for number, group in enumerate(found) for name in group["names"])
    assert {name for group in found for name in group["names"]} == set(adapter.trained_weights(model))


def test_a_ratio_of_1_is_the_optimizer_that_transformers_makes(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = attached(tiny)
    found = groups_of(model, 1.0, tmp_path, tokenizer)
    order = [name for name in adapter.trained_weights(model) if "bias" not in name]
    assert [group["names"] for group in found] == [order, [n for n in adapter.trained_weights(model) if "bias" in n]]
    assert [(group["lr"], group["weight_decay"]) for group in found] == [(0.01, 0.1), (0.01, 0.0)]


@pytest.mark.parametrize("family", [family for family in CONFIGS if family != "albert"])
@pytest.mark.parametrize("targets", ["attention", "all-linear"])
def test_the_top_layers_are_the_last_ones_without_what_has_no_number(family: str, targets: str) -> None:
    everywhere = adapted_layers(adapter.attach(classifier_of(family), targets=targets))
    model = adapter.attach(classifier_of(family), targets=targets, layers="top:2")
    expected = {path for path in everywhere if ".1." in path or ".2." in path}
    assert adapted_layers(model) == expected
    assert len(expected) == 2 * len([path for path in everywhere if ".0." in path])
    assert model.peft_config["default"].layers_to_transform == [1, 2]


def test_modules_that_train_whole_are_those_named_and_get_no_adapter() -> None:
    model = adapter.attach(
        classifier_of("bert"), targets="all-linear", also_train=["embeddings", "LayerNorm", "intermediate", "pooler"]
    )
    whole = model.peft_config["default"].modules_to_save
    layers = [f"bert.encoder.layer.{number}" for number in range(3)]
    assert [path for path in whole if path not in ("classifier", "score")] == [
        "bert.embeddings",  # with the LayerNorm in it
        *[f"{layer}.{part}" for layer in layers for part in ("attention.output.LayerNorm", "output.LayerNorm")],
        *[f"{layer}.intermediate" for layer in layers],
        "bert.pooler",
    ]
    ends = ("query", "key", "value", "output.dense")
    assert adapted_layers(model) == {path for path in linear_layers(classifier_of("bert")) if path.endswith(ends)}
    trained = {name.removeprefix("base_model.model.") for name in adapter.trained_weights(model)}
    assert {name.split(".modules_to_save")[0] for name in trained if "lora_" not in name} == {
        path for path in whole if path != "score"
    }


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_modules_that_train_whole_stay_in_fp32_where_the_rest_is_bf16(family: str) -> None:
    names = {"bert": ["embeddings", "LayerNorm", "intermediate", "pooler", "value"], "distilbert": ["ffn", "LayerNorm"],
             "modernbert": ["mlp", "final_norm", "Wo"]}[family]  # fmt: skip
    fresh = families.FAMILIES[family].head

    def made(dtype: torch.dtype = torch.float32) -> Any:
        targets = {"bert": ["query"], "distilbert": ["q_lin"], "modernbert": ["Wqkv"]}[family]
        return adapter.attach(classifier_of(family), targets=targets, fresh=fresh, also_train=names).to(dtype).train()

    exact, same, fast = step(made()), made(), made()
    adapter.speed_up(same, fresh, FP32)
    assert without_factor_a(exact, step(same)) < 1e-4
    adapter.speed_up(fast, fresh, BF16)
    assert {weight.dtype for weight in adapter.trained_weights(fast).values()} == {torch.float32}
    found = step(fast)
    assert {grad.dtype for name, grad in found.items() if name != "logits"} == {torch.float32}
    assert without_factor_a(exact, found) < 2 * without_factor_a(exact, step(made(torch.bfloat16)))


def without_factor_a(exact: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> float:
    """Return the gap, but for the factors A: as long as B is zero, so is their gradient."""
    names = [name for name in exact if "lora_A" not in name]
    return gap({name: exact[name] for name in names}, {name: found[name] for name in names})


def test_a_module_that_is_read_and_never_called_is_refused_in_bf16() -> None:
    config = CONFIGS["deberta-v2"]()
    for key, value in AS_PUBLISHED["deberta-v2"].items():
        setattr(config, key, value)
    model = AutoModelForSequenceClassification.from_config(config)
    model = adapter.attach(model, targets="attention", fresh=["classifier", "pooler"], also_train=["rel_embeddings"])
    with pytest.raises(EncoderError) as error:
        adapter.speed_up(model, ["classifier", "pooler"], BF16)
    assert str(error.value) == (
        "rel_embeddings trains in fp32, and this encoder can't mix that with bf16. "
        'Set encoder.precision = "fp32", or take it out of adapter.also_train.'
    )


@pytest.mark.parametrize(
    ("family", "settings", "says"),
    [
        (
            "bert",
            {"layers": "top:4"},
            'adapter.layers is "top:4", but x has 3 layers. Set adapter.layers = "all", or "top:3" at most.',
        ),
        (
            "albert",
            {"layers": "top:1"},
            'adapter.layers is "top:1", but x (albert) runs 3 layers on the weights of 1, so that none of them can be '
            'adapted alone. Set adapter.layers = "all".',
        ),
        (
            "bert",
            {"layers": "top:1", "targets": ["query", "pooler.dense"]},
            "No layer of x that is called 'pooler.dense' is among those that adapter.layers = \"top:1\" leaves. Take "
            'it out of adapter.targets, or set adapter.layers = "all".',
        ),
        (
            "bert",
            {"targets": ["query", "pooler.dense"], "also_train": ["pooler"]},
            "Each layer of x that is called 'pooler.dense' trains whole, and then gets no adapter. "
            "Take it out of adapter.targets or out of adapter.also_train.",
        ),
        (
            "bert",
            {"also_train": ["poler"]},
            "No module of x is called 'poler'. Did you mean 'pooler'? Those that can train whole are embeddings, "
            "word_embeddings, position_embeddings, token_type_embeddings, LayerNorm, query, key, value, dense, "
            "intermediate, pooler. Set adapter.also_train to some of them.",
        ),
        (
            "bert",
            {"also_train": ["classifier"]},
            "'classifier' of x trains whole already. Take it out of adapter.also_train.",
        ),
        (
            "bert",
            {"also_train": ["layer.1"]},
            "'layer.1' of x means bert.encoder.layer.1, which holds layers of the attention; padfree takes those one "
            "by one. Set adapter.also_train to smaller modules, such as 'query'.",
        ),
        (
            "bert",
            {"init": "pissa", "rank": 65},
            'adapter.rank is 65, but adapter.init = "pissa" makes its factors of the weights, and x has a layer that '
            "is 64 wide. Set adapter.rank to 64 at most.",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(family: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(EncoderError) as error:
        adapter.attach(classifier_of(family), name="x", **settings)
    assert str(error.value) == says


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"adapter": {"variant": "adalora"}}, "adapter.variant = \"adalora\": it can be 'lora', 'rslora' or 'dora'."),
        (
            {"adapter": {"init": "eva"}},
            "adapter.init = \"eva\": it can be 'default', 'gaussian', 'orthogonal', 'pissa' ",
        ),
        ({"adapter": {"layers": "top:0"}}, 'adapter.layers is "all" or "top:K", such as "top:3"; it is "top:0"'),
        (
            {"adapter": {"init": "orthogonal", "rank": 3}},
            'adapter.init = "orthogonal" needs an even adapter.rank; it is 3',
        ),
        (
            {"training": {"lora_plus_ratio": 0.5}},
            "training.lora_plus_ratio = 0.5: it should be greater than or equal to 1",
        ),
    ],
)
def test_a_recipe_says_which_variants_there_are(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe.from_values(values)
    assert sentence in str(error.value)
