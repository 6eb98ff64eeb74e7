"""What we hand over can be read by everyone, comes back as what it was, and is refused when it is not."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorafit import Classifier, bundle, card, checks, encoders, export, manifest, pipeline
from lorafit.errors import BundleError, EncoderError, LorafitError, LorafitWarning, RecipeError
from tests.conftest import Said, texts_and_labels, write_csv

TEXTS = texts_and_labels(6, seed=5)[0]
unlearned = pytest.mark.filterwarnings("ignore:After epoch")  # a guard's, where training only has to come to its end


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A bundle to spoil."""
    return Path(shutil.copytree(trained / "adapter", tmp_path / "copy"))


def reseal(folder: Path, **changed: Any) -> None:
    """Make a spoiled bundle's hashes fit again, as somebody with bad intent would."""
    bundle.seal(folder, manifest.read(folder).model_copy(update=changed))


def change_json(file: Path, **changed: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def other_weights(tiny: Path, folder: Path, by: float = 1e-3) -> Path:
    """Return an encoder of the same shape whose weights are not the same."""
    from transformers import BertModel

    shutil.copytree(tiny, folder)
    model = BertModel.from_pretrained(folder)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.add_(by)
    model.save_pretrained(folder)
    return folder


def run_the_card(folder: Path, monkeypatch: pytest.MonkeyPatch, **replaced: str) -> list[dict[str, Any]]:
    """Run each Python block of the model card as it stands, in its folder; returns what each left in its variables."""
    monkeypatch.chdir(folder)
    left = []
    for code in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL):
        for old, new in replaced.items():
            code = code.replace(old, new)
        names: dict[str, Any] = {}
        exec(code.replace('["A text."]', repr(TEXTS)), names)
        left.append(names)
    return left


@unlearned
@pytest.mark.parametrize("count", [2, 3])
def test_the_snippets_of_the_card_give_the_same_probabilities_under_the_same_names(
    count: int, tiny: Path, hub: Any, tiny_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hub.folder("models", "acme/carded").is_dir():
        shutil.copytree(tiny, hub.folder("models", "acme/carded"))
    texts, _ = texts_and_labels(60)
    names = ["Ärger", "fine", "so so"][:count]
    file = write_csv(tmp_path / "texts.csv", texts, [names[number % count] for number in range(60)])
    sizes = {"train_size": 40, "validation_size": 10, "test_size": 10}
    made = tiny_recipe(data={"source": str(file), **sizes}, encoder={"name": "hub:acme/carded"}, training={"epochs": 1})
    folder = pipeline.train(made, tmp_path / "run").adapter
    ours = Classifier.load(folder, precision="fp32")
    expected = ours.probabilities(TEXTS)
    auto, over_base, _ = run_the_card(folder, monkeypatch)
    for theirs in (auto, over_base):
        np.testing.assert_allclose(theirs["probabilities"].numpy(), expected, atol=1e-5)
        assert theirs["model"].config.id2label == dict(enumerate(ours.labels))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (
        "acme/carded",
        hub.revision("models", "acme/carded"),
    )


def test_the_card_of_several_labels_or_of_pairs_runs_too(
    trained: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers of one adapter, read as each task has them."""
    place = {"path/to/tiny": str(tiny)}
    forms: list[dict[str, Any]] = [
        {"task": "multi_label"},
        {"task": "multi_label", "thresholds": [0.3, 0.6]},
        {"thresholds": [0.9, 0.1]},
        {"text_pair": True, "html": "strip"},
    ]
    for number, changed in enumerate(forms):
        folder = Path(shutil.copytree(trained / "adapter", tmp_path / str(number)))
        reseal(folder, **changed)
        made = manifest.read(folder)
        card.write(folder, made)
        pairs = made.text_pair
        texts: list[Any] = [(f"{text}<br />", "a good film") for text in TEXTS] if pairs else TEXTS
        replaced = {'[("A text.", "Its second text.")]': repr(texts)} if pairs else {}
        over_base, _ = run_the_card(folder, monkeypatch, **place, **replaced)
        answers = Classifier.load(folder, precision="fp32")
        np.testing.assert_allclose(over_base["probabilities"].numpy(), answers.probabilities(texts), atol=1e-5)
        given = re.search(r"print\((.*), row.tolist", card.text(made))
        assert given is not None
        for row, answer in zip(over_base["probabilities"], answers.predict(texts), strict=True):
            found = eval(given[1], over_base | {"row": row})
            assert found == (answer["labels"] if made.task == "multi_label" else answer["label"])


@pytest.mark.parametrize("policy", ["windows:mean", "windows:max"])
def test_the_card_of_windows_reads_all_of_a_long_text_in_plain_peft(
    policy: str, trained: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(trained / "adapter", tmp_path / "adapter"))
    reseal(folder, long_text=policy, max_tokens=12)
    card.write(folder, manifest.read(folder))
    texts = [*TEXTS, " ".join(TEXTS) * 3]
    place = {"path/to/tiny": str(tiny), '["A text."]': repr(texts)}
    over_base, _ = run_the_card(folder, monkeypatch, **place)
    assert len(over_base["text_of_window"]) > len(texts)
    expected = Classifier.load(folder, precision="fp32").probabilities(texts)
    np.testing.assert_allclose(over_base["probabilities"].numpy(), expected, atol=1e-5)


def test_the_card_of_an_encoder_that_is_not_on_the_hub_runs_too(
    trained: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over_base, _ = run_the_card(trained / "adapter", monkeypatch, **{"path/to/tiny": str(tiny)})
    expected = Classifier.load(trained, precision="fp32").probabilities(TEXTS)
    np.testing.assert_allclose(over_base["probabilities"].numpy(), expected, atol=1e-5)


def test_the_card_has_the_hubs_header_and_the_scores_with_their_number_of_texts(trained: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(trained / "adapter" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "text-classification")
    scores = json.loads((trained / "scores.json").read_text())["test"]["adapted"]
    assert card.data.eval_results[0].metric_value == pytest.approx(scores["accuracy"])
    low, high = scores["accuracy_interval"]
    assert (
        f"| test, adapted | 40 | {scores['accuracy']:.4f} ({low:.3f} to {high:.3f}) | {scores['f1']:.4f} (" in card.text
    )
    assert "| validation, adapted | 40 |" in card.text


def test_the_directory_holds_peft_files_tokenizer_and_manifest_and_nothing_that_runs_code(trained: Path) -> None:
    names = {file.name for file in (trained / "adapter").iterdir()}
    assert {checks.CONFIG, checks.WEIGHTS, "lorafit.json", "proof.json", "tokenizer.json", "README.md"} <= names
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".md"}
    assert "config.json" not in names
    assert (trained / "adapter" / checks.WEIGHTS).stat().st_mode == (trained / "adapter" / checks.CONFIG).stat().st_mode


def test_no_path_of_the_machine_it_was_made_on_stands_in_a_bundle(trained: Path, tiny: Path, reviews: Path) -> None:
    written = "".join(file.read_text() for file in (trained / "adapter").iterdir() if file.suffix != ".safetensors")
    assert "reviews.csv" in written
    for folder in (trained, tiny, reviews):
        assert str(folder.parent) not in written


def test_the_bundled_encoder_is_named_by_its_hub_id_and_revision() -> None:
    base = bundle.identity(encoders.locate("bundled:minilm"))
    assert base.id == "sentence-transformers/all-MiniLM-L6-v2"
    assert base.revision == "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
    assert base.shape == manifest.Shape(model_type="bert", layers=6, width=384, vocabulary=30522)


def test_a_bundle_that_was_copied_to_another_machine_finds_its_base_or_says_how(
    copy: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Classifier.load(copy, precision="fp32").probabilities(TEXTS)
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "another machine"))
    with pytest.raises(
        EncoderError, match=r"belongs to the encoder tiny \(weights .* Say where it lies with --encoder"
    ):
        Classifier.load(copy)
    there = Path(shutil.copytree(tiny, tmp_path / "somewhere else"))
    found = Classifier.load(copy, precision="fp32", encoder=str(there)).probabilities(TEXTS)
    np.testing.assert_array_equal(found, expected)
    found = Classifier.load(copy, precision="fp32").probabilities(TEXTS)  # it is known from now on
    np.testing.assert_array_equal(found, expected)


def test_a_wrong_base_is_refused_and_both_are_named(copy: Path, tiny: Path, tmp_path: Path) -> None:
    wrong = other_weights(tiny, tmp_path / "wrong")
    ours, theirs = (encoders.locate(str(folder)).sha256[:12] for folder in (tiny, wrong))
    with pytest.raises(
        BundleError,
        match=rf"belongs to the encoder tiny \(weights {ours}.*; this one is wrong \(weights {theirs}.* mean nothing",
    ):
        Classifier.load(copy, encoder=str(wrong))


@unlearned
def test_an_encoder_that_was_changed_after_the_training_is_a_wrong_base(
    tiny: Path, tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    mine = Path(shutil.copytree(tiny, tmp_path / "mine"))
    other_weights(tiny, tmp_path / "new", by=2e-3)
    shutil.copy(tmp_path / "new" / "model.safetensors", mine)  # of its own, so that no other folder has these weights
    run = pipeline.train(tiny_recipe(encoder={"name": str(mine)}, training={"epochs": 1}), tmp_path / "run")
    other_weights(tiny, tmp_path / "newer", by=3e-3)
    shutil.copy(tmp_path / "newer" / "model.safetensors", mine)
    with pytest.raises(BundleError, match="Its answers would mean nothing"):
        Classifier.load(run.path)


def test_a_different_base_is_used_only_when_asked_for_and_every_answer_says_so(
    copy: Path, tiny: Path, tmp_path: Path, cli: Callable[..., Said]
) -> None:
    wrong = other_weights(tiny, tmp_path / "wrong")
    refused = cli("predict", copy, TEXTS[0], "--encoder", wrong)
    assert refused.code == 2
    assert "--allow-different-base" in refused.err
    allowed = cli("predict", copy, TEXTS[0], "--encoder", wrong, "--allow-different-base", "--json")
    assert allowed.code == 0
    assert "Warning:" in allowed.err
    assert json.loads(allowed.out)[0]["different_base"] == encoders.locate(str(wrong)).sha256
    usual = cli("predict", copy, TEXTS[0], "--json")
    assert "different_base" not in json.loads(usual.out)[0]


@pytest.mark.parametrize("change", [{"hidden_size": 48}, {"vocab_size": 90}, {"num_hidden_layers": 1}])
def test_a_base_of_another_shape_is_refused_even_when_a_different_one_is_allowed(
    change: dict[str, int], copy: Path, tiny: Path, tmp_path: Path
) -> None:
    from transformers import BertConfig, BertModel

    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    config = BertConfig.from_pretrained(other)
    config.update(change)
    BertModel(config).save_pretrained(other)
    with pytest.raises(BundleError, match="Their shapes differ, so the adapter does not fit"):
        Classifier.load(copy, encoder=str(other), allow_different_base=True)


@pytest.mark.parametrize("missing", [checks.CONFIG, checks.WEIGHTS])
def test_a_directory_that_lacks_a_file_is_refused(missing: str, copy: Path) -> None:
    (copy / missing).unlink()
    with pytest.raises(BundleError, match=f"is no adapter that lorafit can load: it has no {missing}"):
        Classifier.load(copy)


def test_a_file_that_was_lost_changed_or_added_is_refused(copy: Path) -> None:
    (copy / "special_tokens_map.json").write_text("{}")
    with pytest.raises(BundleError, match="holds special_tokens_map.json, which is no part of this bundle"):
        Classifier.load(copy)
    (copy / "special_tokens_map.json").unlink()
    tokenizer = (copy / "tokenizer.json").read_text()
    (copy / "tokenizer.json").write_text(tokenizer.replace("good", "bood"))
    with pytest.raises(BundleError, match=r"tokenizer.json has been changed since the bundle was saved"):
        Classifier.load(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match="is not whole: tokenizer.json is missing"):
        Classifier.load(copy)


def test_the_model_card_may_be_edited(copy: Path) -> None:
    (copy / "README.md").write_text("Mine.")
    assert Classifier.load(copy).labels == ["neg", "pos"]


def test_symbolic_links_pickles_and_code_are_refused(copy: Path, tmp_path: Path) -> None:
    for name in ("training_args.bin", "tokenizer.py", "weights.pkl"):
        (copy / name).write_bytes(b"")
        with pytest.raises(BundleError, match="is neither safetensors nor JSON. A bundle holds nothing else"):
            Classifier.load(copy)
        (copy / name).unlink()
    (copy / "config.json").write_text("{}")
    with pytest.raises(BundleError, match="breaks the loading of the adapter"):
        Classifier.load(copy)
    (copy / "config.json").unlink()
    outside = Path(shutil.move(copy / checks.WEIGHTS, tmp_path / "outside.safetensors"))
    (copy / checks.WEIGHTS).symlink_to(outside)
    with pytest.raises(BundleError, match="is a symbolic link; a bundle holds its files themselves"):
        Classifier.load(copy)


@pytest.mark.parametrize("name", ["../outside.json", "/etc/passwd", "folder/file.json", ".hidden"])
def test_no_name_in_a_manifest_leads_outside(name: str, copy: Path) -> None:
    content = json.loads((copy / "lorafit.json").read_text())
    del content["seal"]
    content["files"][name] = "0" * 64
    (copy / "lorafit.json").write_text(json.dumps(content | {"seal": manifest._seal(content)}))
    with pytest.raises(BundleError, match=r"can't be used: files\..* String should match pattern"):
        Classifier.load(copy)


def test_a_manifest_of_the_first_version_is_read(copy: Path) -> None:
    before = Classifier.load(copy, precision="fp32").probabilities(["a good film"])
    content = json.loads((copy / "lorafit.json").read_text())
    old = {key: value for key, value in content.items() if key not in ("text_pair", "pooling", "seal")}
    old["format_version"] = 1
    (copy / "lorafit.json").write_text(json.dumps(old | {"seal": manifest._seal(old)}))
    np.testing.assert_array_equal(Classifier.load(copy, precision="fp32").probabilities(["a good film"]), before)


def test_a_manifest_that_is_newer_broken_or_edited_is_refused(copy: Path) -> None:
    file = copy / "lorafit.json"
    kept = file.read_text()
    change_json(file, format_version=3)
    with pytest.raises(BundleError, match=r"has format version 3; this lorafit reads versions up to 2. Update it"):
        Classifier.load(copy)
    file.write_text(kept.replace('"pos"', '"neg2"', 1))
    with pytest.raises(BundleError, match="has been changed since it was written: its seal does not fit"):
        Classifier.load(copy)
    file.write_text(kept[:-20])
    with pytest.raises(BundleError, match="can't be read"):
        Classifier.load(copy)
    file.write_text("[" * 100_000)
    with pytest.raises(BundleError, match="can't be read"):
        Classifier.load(copy)
    file.write_text("[]")
    with pytest.raises(BundleError, match="holds no JSON object"):
        Classifier.load(copy)
    file.write_bytes(b" " * 5_000_000)
    with pytest.raises(BundleError, match="takes 5,000,000 bytes; it should be far smaller"):
        Classifier.load(copy)


def test_a_missing_an_extra_and_a_misshapen_tensor_are_refused_by_name(copy: Path) -> None:
    file = copy / checks.WEIGHTS
    whole = load_file(file)
    first = min(name for name in whole if "lora_A" in name)
    for tensors, said in (
        ({name: whole[name] for name in whole if name != first}, f"lacks {first}, which adapter_config.json asks for"),
        (whole | {"extra": torch.zeros(2)}, "holds extra, which adapter_config.json does not ask for"),
        (whole | {first: torch.zeros(7, 32)}, rf"{first} has the shape \(7, 32\); it should have \(8, 32\)"),
        (whole | {first: whole[first].to(torch.int32)}, f"{first} is of type I32, which no weight of an adapter is"),
    ):
        save_file(tensors, file)
        reseal(copy)
        with pytest.raises(BundleError, match=said):
            Classifier.load(copy)


def test_labels_that_do_not_match_the_head_are_refused(copy: Path) -> None:
    reseal(copy, labels=["neg", "so so", "pos"])
    with pytest.raises(BundleError, match=r"classifier.* has the shape .* \(its labels don't match its head\)"):
        Classifier.load(copy)


def test_a_tokenizer_that_does_not_match_the_vocabulary_is_refused(copy: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens([f"new{number}" for number in range(5)])
    tokenizer.save_pretrained(copy)
    reseal(copy)
    with pytest.raises(BundleError, match=r"The tokenizer in .* gives ids up to \d+; its base .* embeds only \d+"):
        Classifier.load(copy)


def test_a_size_that_no_memory_has_is_refused_before_it_is_taken(copy: Path) -> None:
    change_json(copy / checks.CONFIG, r=10**12)
    reseal(copy)
    with pytest.raises(BundleError, match=r"has the shape \(8, 32\); it should have \(1000000000000, 32\)"):
        Classifier.load(copy)
    change_json(copy / checks.CONFIG, r=10**30)
    reseal(copy)
    with pytest.raises(BundleError):
        Classifier.load(copy)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"task_type": "CAUSAL_LM"}, "task_type"),
        ({"target_modules": "(a+)+$"}, "target_modules"),
        ({"target_modules": ["(a+)+$"]}, "target_modules.0"),
        ({"modules_to_save": ["(a+)+$"]}, "modules_to_save.0"),
        ({"r": -1}, "r: "),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"layer_replication": [[0, 1000000]]}, "sets layer_replication, which lorafit does not serve"),
        ({"bias": "all"}, "sets bias, which lorafit does not serve"),
        ({"something_new": True}, "sets something_new, which lorafit does not serve"),
    ],
)
def test_what_an_adapter_of_ours_never_sets_is_refused(changed: dict[str, Any], said: str, copy: Path) -> None:
    change_json(copy / checks.CONFIG, **changed)
    reseal(copy)
    with pytest.raises(BundleError, match=re.escape(said)):
        Classifier.load(copy)


@pytest.mark.parametrize("max_tokens", [1, 2, 65, 10**30])
def test_a_window_that_the_encoder_does_not_have_is_refused(max_tokens: int, copy: Path) -> None:
    reseal(copy, max_tokens=max_tokens)
    with pytest.raises(BundleError, match=r"says that texts have up to .* tokens; its base .* reads from 3 to 64"):
        Classifier.load(copy)


@pytest.mark.parametrize(
    ("key", "value"), [("fast_tokenizer_files", ["../outside.json"]), ("vocab_file", "/etc/passwd"), ("auto_map", {})]
)
def test_a_tokenizer_that_leads_to_other_files_is_refused(key: str, value: object, copy: Path) -> None:
    change_json(copy / "tokenizer_config.json", **{key: value})
    reseal(copy)
    with pytest.raises(BundleError, match=f"sets {key}, which leads to other files"):
        Classifier.load(copy)


@pytest.mark.parametrize(
    "base",
    [
        {"id": "acme/tiny", "revision": "/dev/zero"},
        {"id": "../../etc", "revision": "0" * 40},
        {"id": "acme/tiny"},
        {"name": "two\nlines"},
    ],
)
def test_a_base_that_leads_to_other_files_or_moves_the_cursor_is_refused(base: dict[str, str], copy: Path) -> None:
    content = json.loads((copy / "lorafit.json").read_text())
    del content["seal"]
    content["base"] |= base
    (copy / "lorafit.json").write_text(json.dumps(content | {"seal": manifest._seal(content)}))
    with pytest.raises(BundleError, match="lorafit.json can't be used: base"):
        Classifier.load(copy)


def test_weights_that_are_no_numbers_are_refused_by_name(copy: Path) -> None:
    tensors = load_file(copy / checks.WEIGHTS)
    name = min(tensors)
    tensors[name][0] = float("nan")
    save_file(tensors, copy / checks.WEIGHTS)
    reseal(copy)
    with pytest.raises(BundleError, match="holds something that is no number"):
        Classifier.load(copy)


def test_a_folder_or_a_pipe_in_a_bundle_is_refused(copy: Path) -> None:
    (copy / "sub").mkdir()
    with pytest.raises(BundleError, match="sub is neither safetensors nor JSON"):
        Classifier.load(copy)
    (copy / "sub").rmdir()
    os.mkfifo(copy / "pipe.json")
    with pytest.raises(BundleError, match="pipe.json is neither safetensors nor JSON"):
        Classifier.load(copy)


def test_a_base_with_the_same_weights_and_other_arithmetic_is_a_wrong_one(
    copy: Path, tiny: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    change_json(other / "config.json", hidden_act="relu")
    expected = Classifier.load(copy, precision="fp32").probabilities(TEXTS)
    with pytest.raises(BundleError, match="Its answers would mean nothing"):
        Classifier.load(copy, encoder=str(other))
    np.testing.assert_array_equal(Classifier.load(copy, precision="fp32").probabilities(TEXTS), expected)
    change_json(other / "config.json", hidden_act="gelu", transformers_version="9.9", id2label={"0": "x"})
    Classifier.load(copy, encoder=str(other))  # which says nothing of the arithmetic


@unlearned
def test_tags_are_taken_out_once_in_training_proof_card_and_merged_model(
    tiny: Path, tiny_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, labels = texts_and_labels(60)
    texts = [text + " x <i<b>> y" for text in texts]  # of which one pass leaves another tag
    file = write_csv(tmp_path / "texts.csv", texts, [["neg", "pos"][label] for label in labels])
    sizes = {"train_size": 40, "validation_size": 10, "test_size": 10}
    made = tiny_recipe(data={"source": str(file), "html": "strip", **sizes}, training={"epochs": 1})
    folder = pipeline.train(made, tmp_path / "run").adapter
    marked = [f"{text} <i>good</i>" for text in TEXTS]
    code = (folder / "README.md").read_text().replace('["A text."]', repr(marked))
    (folder / "README.md").write_text(code)
    over_base, _ = run_the_card(folder, monkeypatch, **{"path/to/tiny": str(tiny)})
    expected = Classifier.load(folder, precision="fp32").probabilities(marked)
    np.testing.assert_allclose(over_base["probabilities"].numpy(), expected, atol=1e-5)
    export.export(folder, "merged", tmp_path / "merged")
    assert "take them out of yours" in (tmp_path / "merged" / "README.md").read_text()


def plain_peft(copy: Path, **config: Any) -> Path:
    """Turn a bundle into what PEFT's own save_pretrained leaves behind."""
    for name in ("lorafit.json", "proof.json", "README.md"):
        (copy / name).unlink()
    change_json(copy / checks.CONFIG, **config)
    return copy


def test_a_plain_peft_directory_works_and_a_warning_says_what_is_unknown(copy: Path, tiny: Path) -> None:
    expected = Classifier.load(copy, precision="fp32").probabilities(TEXTS)
    plain_peft(copy, base_model_name_or_path=str(tiny))
    (copy / "training_args.bin").write_bytes(b"left by Trainer, and not read")
    with pytest.warns(LorafitWarning, match=r"has no lorafit.json: .* Unknown are the names of its 2 labels"):
        theirs = Classifier.load(copy, precision="fp32")
    assert theirs.labels == ["LABEL_0", "LABEL_1"]
    np.testing.assert_allclose(theirs.probabilities(TEXTS), expected, atol=1e-6)


def test_a_plain_peft_directory_whose_pooler_was_lost_is_refused(tiny: Path, tmp_path: Path) -> None:
    """peft#2171: the layer is new in the classifier, was trained or drawn at random, and is not in the file."""
    from peft import LoraConfig, get_peft_model
    from transformers import BertForSequenceClassification, BertModel

    bare = Path(shutil.copytree(tiny, tmp_path / "bare"))
    BertModel.from_pretrained(tiny, add_pooling_layer=False).save_pretrained(bare)
    model = get_peft_model(
        BertForSequenceClassification.from_pretrained(bare),
        LoraConfig(task_type="SEQ_CLS", target_modules=["query"], base_model_name_or_path=str(bare)),
    )
    model.peft_config["default"].base_model_name_or_path = str(bare)
    model.save_pretrained(tmp_path / "plain")
    with (
        pytest.warns(LorafitWarning, match="lorafit did not make it"),
        pytest.raises(BundleError, match="does not hold pooler, and neither does its base"),
    ):
        Classifier.load(tmp_path / "plain")


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda"])
def test_a_plain_peft_directory_whose_start_changed_the_base_is_refused(start: str, copy: Path, tiny: Path) -> None:
    plain_peft(copy, base_model_name_or_path=str(tiny), init_lora_weights=start)
    with pytest.raises(BundleError, match=f"says init_lora_weights = '{start}', which changes the base"):
        Classifier.load(copy)


@pytest.mark.filterwarnings("ignore:.*lorafit did not make it")
def test_a_plain_peft_directory_over_a_checkpoint_with_a_head_of_its_own_works(tiny: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, BertForSequenceClassification

    headed = Path(shutil.copytree(tiny, tmp_path / "headed"))
    BertForSequenceClassification.from_pretrained(tiny, num_labels=3).save_pretrained(headed)
    base = BertForSequenceClassification.from_pretrained(headed)
    model = get_peft_model(
        base, LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights="gaussian")
    )
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].weight.mul_(3)
    model.save_pretrained(tmp_path / "plain")
    batch = AutoTokenizer.from_pretrained(tiny)(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model.eval()(**batch).logits.softmax(-1).numpy()
    found = Classifier.load(tmp_path / "plain", precision="fp32", encoder=str(headed)).probabilities(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*lorafit did not make it")
def test_a_plain_peft_directory_without_a_tokenizer_takes_its_bases(copy: Path, tiny: Path) -> None:
    expected = Classifier.load(copy, precision="fp32").probabilities(TEXTS)
    plain_peft(copy, base_model_name_or_path="/content/drive/bert")
    (copy / "tokenizer.json").unlink()  # but not its configuration, of which transformers would make an empty one
    with pytest.raises(BundleError, match="names the encoder '/content/drive/bert', a folder that is not here"):
        Classifier.load(copy)
    found = Classifier.load(copy, precision="fp32", encoder=str(tiny)).probabilities(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_plain_peft_directory_with_a_pickle_or_without_a_base_is_refused(copy: Path) -> None:
    plain_peft(copy, base_model_name_or_path="")
    with pytest.raises(BundleError, match="does not say which encoder it belongs to. Name it with --encoder"):
        Classifier.load(copy)
    (copy / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(BundleError, match="is a pickle, which can run code"):
        Classifier.load(copy)


def test_the_base_is_never_served_in_silence(copy: Path) -> None:
    """transformers#36480, peft#2115: what can't be loaded as an adapter gives no answers at all."""
    base = Classifier.load(copy, precision="fp32").probabilities(TEXTS, base=True)
    adapted = Classifier.load(copy, precision="fp32").probabilities(TEXTS)
    assert np.abs(base - adapted).max() > 0.05
    with pytest.raises(LorafitError, match="There is no run folder or adapter directory"):
        Classifier.load(copy / "mistyped")


def test_the_precision_is_the_callers_choice(copy: Path) -> None:
    exact, rounded = (Classifier.load(copy, precision=precision).probabilities(TEXTS) for precision in ("fp32", "bf16"))
    assert 0 < np.abs(exact - rounded).max() < 0.1
    with pytest.raises(RecipeError, match="There is no precision 'fp61'; there are auto, fp32 and bf16"):
        Classifier.load(copy, precision="fp61")


def test_inspect_shows_what_is_inside_without_the_base(
    trained: Path, copy: Path, cli: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "empty"))
    said = cli("inspect", trained)
    assert said.code == 0
    for expected in (
        "LoRA r=8",
        "query, value",
        "classifier",
        "neg, pos",
        "tiny (weights ",
        "on 120 texts of reviews.csv",
    ):
        assert expected in said.out
    plain = cli("inspect", plain_peft(copy))
    assert "lorafit did not make it" in plain.out


@unlearned
@pytest.mark.slow
def test_with_rank_1_on_a_bert_base_shape_a_bundle_without_its_tokenizer_takes_at_most_200_kilobytes(
    tiny: Path, tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    from transformers import BertConfig, BertModel

    shape = BertConfig(vocab_size=json.loads((tiny / "config.json").read_text())["vocab_size"])
    folder = Path(shutil.copytree(tiny, tmp_path / "base"))
    BertModel(shape).save_pretrained(folder)
    data = {"source": "bundled:imdb", "train_size": 8, "validation_size": 32, "test_size": 2, "max_tokens": 64}
    run = pipeline.train(
        tiny_recipe(data=data, encoder={"name": str(folder)}, adapter={"rank": 1}, training={"epochs": 1}),
        tmp_path / "run",
    )
    with safe_open(run.adapter / checks.WEIGHTS, "pt") as weights:
        assert len(list(weights.keys())) == 12 * 2 * 2 + 2
    sizes_bytes = {file.name: file.stat().st_size for file in run.adapter.iterdir()}
    assert sizes_bytes[checks.WEIGHTS] > 140_000
    assert sum(size for name, size in sizes_bytes.items() if "token" not in name) <= 200_000, sizes_bytes
