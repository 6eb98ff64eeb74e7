"""Every family goes the whole way: trained, saved, loaded elsewhere, merged; what we know of it is what is there."""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft.tuners.lora import LoraLayer
from scipy.special import softmax

from lorafit import adapter, encoders, families, padfree, pipeline, predict, recipe, runtime, tokens
from lorafit.errors import EncoderError, LorafitWarning, RecipeError
from tests.conftest import texts_and_labels, write_csv
from tests.small_encoders import CONFIGS, COUNT_FROM_PADDING, SHAPE, write_encoder

pytestmark = pytest.mark.usefixtures("proved_in_this_process")
ROOT = Path(__file__).parents[1]
UNKNOWN = "roberta-prelayernorm"  # as an encoder of a family that the table does not hold
TRAINED = [*CONFIGS, UNKNOWN]
POSITIONS = SHAPE["max_position_embeddings"]
PAGE = ROOT / "docs" / "families.md"


def config_of(family: str) -> Any:
    return transformers.RobertaPreLayerNormConfig(**SHAPE) if family == UNKNOWN else CONFIGS[family]()


def window_of(family: str) -> int:
    return POSITIONS - (2 if family in COUNT_FROM_PADDING else 0)


def classifier_of(family: str) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_config(config_of(family))


def adapted_layers(model: Any) -> set[str]:
    return {path.removeprefix("base_model.model.") for path, m in model.named_modules() if isinstance(m, LoraLayer)}


def linear_layers(model: Any) -> set[str]:
    return {path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {family: write_encoder(folder / family, config_of(family)) for family in TRAINED}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Return texts of which one is longer than any window."""
    return [*texts_and_labels(10, seed=1)[0], " ".join(["film"] * 2 * POSITIONS)]


@pytest.fixture(scope="module")
def answers(
    checkpoints: dict[str, Path], texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, np.ndarray]]:
    """Train each family for three steps; return its answers here and in a fresh process, merged and not."""
    folder, threads = tmp_path_factory.mktemp("runs"), torch.get_num_threads()
    pool, labels = texts_and_labels(40)
    pool[::3] = [" ".join([text] * 8) for text in pool[::3]]  # these reach the window's end
    reviews = write_csv(folder / "reviews.csv", pool, list(labels))
    trained = {family: trained_answers(folder / family, checkpoints[family], reviews, texts) for family in TRAINED}
    (folder / "texts.json").write_text(json.dumps(texts))
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, folder, *TRAINED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    elsewhere = json.loads((folder / "answers.json").read_text())
    torch.set_num_threads(threads)
    return {
        family: {
            where: softmax(logits, axis=1) for where, logits in {"here": trained[family], **elsewhere[family]}.items()
        }
        for family in TRAINED
    }


def trained_answers(out: Path, checkpoint: Path, reviews: Path, texts: list[str]) -> np.ndarray:
    """Train through the pipeline; return the logits of the model as it came out of training."""
    max_tokens = window_of(checkpoint.name)
    values = {
        "name": checkpoint.name,
        "data": {
            "source": str(reviews),
            "train_size": 24,
            "validation_size": 8,
            "test_size": 8,
            "max_tokens": max_tokens,
        },
        "encoder": {"name": str(checkpoint), "precision": "fp32"},
        "adapter": {"targets": "all-linear"},
        "training": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-2, "threads": 1},
    }
    live = []
    attach = adapter.attach
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(adapter, "attach", lambda *args, **named: live.append(attach(*args, **named)) or live[-1])
        warnings.simplefilter(
            "ignore", LorafitWarning
        )  # padfree can't serve them all; three steps are no better than chance
        run = pipeline.train(recipe.from_values(values), out)
    assert run.record["steps"] == 3
    tokenizer = encoders.load_tokenizer(checkpoint, checkpoint.name)
    encoded = tokens.encode(texts, tokenizer, max_tokens)
    return predict.logits(live[0], encoded, tokenizer.pad_token_id, runtime.choose("fp32", threads=1))


ELSEWHERE = """
import json, sys, warnings
from pathlib import Path
from lorafit import encoders, predict, runtime, tokens

warnings.simplefilter("ignore")  # padfree can't serve them all
folder, answers = Path(sys.argv[1]), {}
texts = json.loads((folder / "texts.json").read_text())
for family in sys.argv[2:]:
    bundle = folder / family / "adapter"
    classifier = predict.Classifier.load(bundle, precision="fp32", threads=1)
    tokenizer = encoders.load_tokenizer(bundle, family)
    encoded = tokens.encode(texts, tokenizer, json.loads((bundle / "lorafit.json").read_text())["max_tokens"])
    not_merged = predict.logits(classifier.model, encoded, tokenizer.pad_token_id, runtime.choose("fp32", threads=1))
    answers[family] = {
        "base": classifier.logits(encoded, base=True).tolist(),
        "merged": classifier.logits(encoded).tolist(),
        "not merged": not_merged.tolist(),
    }
(folder / "answers.json").write_text(json.dumps(answers))
"""


@pytest.mark.parametrize("family", TRAINED)
def test_trained_saved_loaded_in_another_process_and_merged_it_answers_the_same(
    family: str, answers: dict[str, Any]
) -> None:
    found = answers[family]
    np.testing.assert_allclose(found["not merged"], found["here"], atol=1e-5)
    np.testing.assert_allclose(found["merged"], found["here"], atol=1e-5)
    assert np.abs(found["here"] - found["base"]).max() > 1e-2  # and it has learned something


@pytest.mark.parametrize("family", TRAINED)
def test_the_encoder_is_read_up_to_its_last_position_and_no_further(family: str, checkpoints: dict[str, Path]) -> None:
    files = encoders.locate(str(checkpoints[family]))
    tokenizer = encoders.load_tokenizer(files.folder, family)
    encoders.refuse_long_window(files, tokenizer, window_of(family))
    with pytest.raises(
        EncoderError, match=f"reads at most {window_of(family)} tokens; data.max_tokens is {POSITIONS + 1}"
    ):
        encoders.refuse_long_window(files, tokenizer, POSITIONS + 1)


@pytest.mark.parametrize("family", TRAINED)
def test_what_a_pretrained_encoder_comes_without_trains_whole_and_beside_it_the_adapter_alone(
    family: str, checkpoints: dict[str, Path]
) -> None:
    encoder = encoders.load(encoders.locate(str(checkpoints[family])), ["neg", "pos"])
    if family != UNKNOWN:
        assert encoder.fresh == sorted(families.FAMILIES[family].head)
    expected = {
        path
        for path in linear_layers(encoder.model)
        if path.startswith(encoder.model.base_model_prefix) and path.split(".")[0] not in encoder.fresh
    }
    model = adapter.attach(encoder.model, targets="all-linear", fresh=encoder.fresh)
    assert adapted_layers(model) == expected
    for name, weight in model.named_parameters():
        fresh = any(f".{module}.modules_to_save." in name for module in encoder.fresh)
        assert weight.requires_grad == ("lora_" in name or fresh), name


@pytest.mark.parametrize(("family", "fresh"), [("bert", "pooler"), ("albert", "pooler"), ("modernbert", None)])
def test_a_checkpoint_of_masked_language_modelling_will_do(family: str, fresh: str | None, tmp_path: Path) -> None:
    """BERT's lacks the pooler, which then trains whole; ModernBERT's brings a layer of the head, which stays frozen."""
    folder = write_encoder(tmp_path, config_of(family), transformers.AutoModelForMaskedLM)
    encoder = encoders.load(encoders.locate(str(folder)), ["neg", "pos"])
    assert encoder.fresh == ["classifier", *([fresh] if fresh else [])]
    model = adapter.attach(encoder.model, targets="all-linear", fresh=encoder.fresh)
    assert not [path for path in adapted_layers(model) if "pooler" in path or "head" in path or "classifier" in path]
    trained = {re.sub(r"\.(lora_|modules_to_save).*", "", name) for name in adapter.trained_weights(model)}
    assert len(trained) == len(adapted_layers(model)) + len(encoder.fresh)


@pytest.mark.parametrize("family", TRAINED)
def test_attention_means_the_attentions_layers_and_no_other(family: str) -> None:
    model = classifier_of(family)
    expected = {path for path in linear_layers(model) if re.search("attention|attn", path)}
    layers = adapted_layers(adapter.attach(model, targets="attention"))
    assert layers == expected
    assert len(layers) in (4, 6, 12)  # ALBERT has one layer, ModernBERT two projections in each


@pytest.mark.parametrize("family", CONFIGS)
def test_the_table_is_what_inspection_finds(family: str) -> None:
    known, model = families.FAMILIES[family], classifier_of(family)
    paths = [path for path in linear_layers(model) if re.search(r"\.\d+\.", path)]  # those of the layers

    def called(names: tuple[str, ...]) -> set[str]:
        return {path for path in paths if any(path.endswith(f".{name}") for name in names)}

    assert called(known.attention) == called(tuple(families.found_attention(paths)))
    assert called(known.feed_forward) - called(known.attention) == set(paths) - called(known.attention)
    assert all(called((name,)) for name in (*known.attention, *known.feed_forward))
    assert set(known.usual) <= set(known.attention)


def test_only_encoders_whose_head_reads_the_first_token_compute_no_other_in_the_last_layer() -> None:
    """`adapter.speed_up` asks padfree for that in all of them."""
    short = [family for family, engine in padfree.FAMILIES.items() if engine.last_attention]
    assert short
    assert all(families.FAMILIES[family].reads.startswith("first token") for family in short)
    assert not padfree.FAMILIES["modernbert"].last_attention  # which may read the mean


def test_a_name_that_a_layer_of_the_head_has_too_is_the_encoders_alone(tmp_path: Path) -> None:
    model = adapter.attach(classifier_of("roberta"), targets=["dense"])
    assert adapted_layers(model) == {
        path for path in linear_layers(classifier_of("roberta")) if ".layer." in path and path.endswith("dense")
    }
    model.peft_config["default"].save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["target_modules"], saved["exclude_modules"]) == (
        ["dense"],
        ["classifier.dense"],
    )  # lists, no patterns


def test_the_recipes_that_say_all_linear_adapt_what_their_lists_of_names_did(tiny: Path) -> None:
    files = encoders.locate(str(tiny))
    named = adapter.attach(encoders.load(files, ["a", "b"]).model, targets=["query", "key", "value", "dense"])
    for name in ("demo", "imdb-one-pass"):
        targets = recipe.load(recipe.shipped(name)).adapter.targets
        model = adapter.attach(encoders.load(files, ["a", "b"]).model, targets=targets)
        assert adapted_layers(model) == adapted_layers(named)
        assert model.peft_config["default"].to_dict() == named.peft_config["default"].to_dict()


def test_a_word_that_means_no_layers_is_refused_with_those_that_do() -> None:
    with pytest.raises(
        RecipeError, match="adapter.targets = \"all_linear\": it can be 'attention' or 'all-linear', or it "
    ):
        recipe.from_values({"adapter": {"targets": "all_linear"}})


@pytest.mark.parametrize(
    ("family", "target", "says"),
    [
        (
            "distilbert",
            "query",
            "No layer of distilbert-base-uncased is called 'query'. Its attention layers are q_lin, k_lin, v_lin, "
            'out_lin. Set adapter.targets = ["q_lin", "v_lin"].',
        ),
        (
            "bert",
            "q_lin",
            "No layer of bert-base-uncased is called 'q_lin'. Its attention layers are query, key, value, "
            'attention.output.dense. Set adapter.targets = ["query", "value"].',
        ),
        (
            UNKNOWN,
            "querry",
            "No layer of x is called 'querry'. Did you mean 'query'? Its attention layers are attention.self.query, "
            "attention.self.key, attention.self.value, attention.output.dense. "
            'Set adapter.targets = "attention".',
        ),
        ("roberta", "out_proj", "No layer of x is called 'out_proj'."),  # it has one in its head
    ],
)
def test_a_name_that_no_layer_has_is_refused_with_the_names_there_are(family: str, target: str, says: str) -> None:
    name = {"distilbert": "distilbert-base-uncased", "bert": "bert-base-uncased"}.get(family, "x")
    with pytest.raises(EncoderError) as error:
        adapter.attach(classifier_of(family), targets=[target], name=name)
    assert str(error.value).startswith(says)


def test_an_encoder_without_attention_says_what_to_set() -> None:
    small = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}

    def fnet() -> Any:
        return transformers.FNetForSequenceClassification(transformers.FNetConfig(**small))

    with pytest.raises(EncoderError) as error:
        adapter.attach(fnet(), targets="attention", name="x")
    assert str(error.value) == (
        'No linear layer of x (fnet) is called attention. Set adapter.targets = "all-linear", or names among '
        "projection, dense."
    )
    assert adapted_layers(adapter.attach(fnet(), targets="all-linear"))


def test_an_encoder_without_a_linear_layer_or_a_classifier_says_what_to_set(tmp_path: Path) -> None:
    small = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    quantized = transformers.IBertForSequenceClassification(transformers.IBertConfig(**small))
    with pytest.raises(EncoderError, match=r"x \(ibert\) has no linear layer .* Set encoder.name to .*: bert, roberta"):
        adapter.attach(quantized, targets="all-linear", name="x")
    folder = write_encoder(tmp_path / "splinter", transformers.SplinterConfig(**small))
    with pytest.raises(EncoderError, match=r"no text classifier for .*splinter \(splinter\). Set encoder.name to "):
        encoders.load(encoders.locate(str(folder)), ["a", "b"])


def filled(page: str) -> str:
    """Return docs/families.md with the table as it should be."""
    heads = ["`model_type`", "attention", "feed-forward", "the head reads", "trains whole", "padding-free"]
    rows = [heads, ["---"] * len(heads)]
    for name, family in families.FAMILIES.items():
        layers = [
            ", ".join(f"`{layer}`" for layer in of) for of in (family.attention, family.feed_forward, family.head)
        ]
        served = "yes" if name in padfree.FAMILIES else "no"
        rows.append([name, layers[0], layers[1], family.reads, layers[2], served])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    begin, end = "<!-- families: made by tests/test_families.py -->", "<!-- /families -->"
    before, after = page.split(begin)[0], page.split(end)[1]
    return f"{before}{begin}\n{table}\n{end}{after}"


def test_the_page_about_families_shows_the_table() -> None:
    assert PAGE.read_text() == filled(PAGE.read_text()), "run: python -m tests.test_families"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
