"""A merged model is an ordinary one, and every export's answers are those of base and adapter, or it is refused."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lorafit import Classifier, backends, bundle, encoders, export, exported, pipeline, predict
from lorafit.errors import BundleError, StorageError
from lorafit.export import agreement, convert
from lorafit.files import sha256_of
from lorafit.tokens import Tokens, pad
from tests import small_encoders
from tests.conftest import Said, texts_and_labels
from tests.test_bundle import other_weights, reseal, unlearned

TEXTS = texts_and_labels(6, seed=5)[0]


def test_the_merged_directory_works_in_a_pipeline_with_names(
    trained: Path, tmp_path: Path, cli: Callable[..., Said]
) -> None:
    from transformers import pipeline as ready_made

    said = cli("merge", trained, tmp_path / "merged")
    assert said.code == 0
    assert "largest logit gap" in said.out
    theirs = ready_made("text-classification", model=str(tmp_path / "merged"), truncation=True, top_k=None)
    expected = Classifier.load(trained, precision="fp32").predict(TEXTS)
    for scores, answer in zip(theirs(TEXTS), expected, strict=True):
        assert scores[0]["label"] == answer["label"]
        for score in scores:
            assert score["score"] == pytest.approx(answer[f"{score['label']}_prob"], abs=1e-5)


def test_nothing_of_the_adapter_or_of_our_settings_stays_in_a_merged_model(
    trained: Path, tiny: Path, tmp_path: Path
) -> None:
    made = export.export(trained, "merged", tmp_path / "merged")
    assert made.made.agreement.largest_logit_gap < 1e-5
    config, base = (json.loads((folder / "config.json").read_text()) for folder in (made.folder, tiny))
    assert config["hidden_dropout_prob"] == base["hidden_dropout_prob"] == 0.1
    assert config["id2label"] == {"0": "neg", "1": "pos"}
    weights, stored = load_file(made.folder / "model.safetensors"), load_file(tiny / "model.safetensors")
    assert not [name for name in weights if "lora" in name]
    same = [name for name in stored if torch.equal(weights[f"bert.{name}"], stored[name])]
    assert len(stored) - len(same) == 4  # query and value of two layers
    record = json.loads((made.folder / exported.FILE).read_text())
    assert record["different_base"] is None
    assert record["adapter"]["labels"] == ["neg", "pos"]


@unlearned
def test_a_run_in_bf16_is_merged_against_the_stored_weights(
    tiny: Path, tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    run = pipeline.train(tiny_recipe(encoder={"precision": "bf16"}, training={"epochs": 1}), tmp_path / "run")
    made = export.export(run.path, "merged", tmp_path / "merged")
    assert made.made.agreement.largest_logit_gap < 1e-5
    weights, stored = load_file(made.folder / "model.safetensors"), load_file(tiny / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(weights[f"bert.{name}"], stored[name])
    assert not torch.equal(stored[name], stored[name].bfloat16().float())


def test_what_stands_at_the_target_is_not_replaced_unasked(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for target in (tmp_path / "mine", tmp_path, trained):
        with pytest.raises(StorageError, match="holds something else than an export. Choose another place"):
            export.export(trained, "merged", target, overwrite=True)
    with pytest.raises(StorageError, match="lies inside the bundle itself"):
        export.export(trained, "merged", trained / "adapter", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert (trained / "adapter" / "lorafit.json").exists()
    made = export.export(trained, "merged", tmp_path / "merged")
    (made.folder / "model.safetensors").unlink()
    with pytest.raises(StorageError, match="merged is there already. Replace it with --overwrite"):
        export.export(trained, "merged", tmp_path / "merged")
    export.export(trained, "merged", tmp_path / "merged", overwrite=True)
    assert (made.folder / "model.safetensors").exists()


def test_what_a_merged_model_can_not_keep_is_said_on_the_terminal_and_on_its_card(
    trained: Path, tmp_path: Path, cli: Callable[..., Said]
) -> None:
    assert export.export(trained, "merged", tmp_path / "plain").lost == []
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
        export.export(trained, "merged", tmp_path / "merged", encoder=str(wrong))
    assert not (tmp_path / "merged").exists()
    with pytest.warns(UserWarning, match="--allow-different-base"):
        export.export(trained, "merged", tmp_path / "merged", encoder=str(wrong), allow_different_base=True)
    record = json.loads((tmp_path / "merged" / exported.FILE).read_text())
    assert record["different_base"] == encoders.locate(str(wrong)).sha256


@pytest.mark.parametrize("form", exported.FORMS)
def test_an_export_that_drifts_is_refused_and_not_left_behind(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """peft#2502: merging that changes the answers; and the same of every other form."""

    def drifting(model: Any, *rest: Any) -> list[str]:
        with torch.no_grad():
            if form.endswith("int8"):
                model.classifier.weight.mul_(-1.0)
            else:
                model.classifier.bias.add_(0.01)
        return faithful(model, *rest)

    faithful = convert.convert
    monkeypatch.setattr(convert, "convert", drifting)
    with pytest.raises(BundleError) as refused:
        export.export(trained, form, tmp_path / "out")
    assert str(refused.value).startswith("The export drifts: on 40 of the run's 40 test texts ")
    expected = (
        "points of accuracy are lost; the limit is 0.5"
        if form.endswith("int8")
        else "its logits differ from the original's by up to 0.01;"
    )
    assert expected in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("first", "all_of_them", "outcome"),
    [(1, 1, "refused on 40"), (1, 0, "kept"), (20, 20, "refused on 20")],
)
def test_a_loss_that_may_be_chance_is_settled_by_more_texts(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: int,
    all_of_them: int,
    outcome: str,
) -> None:
    """Of 20 texts one wrong is five points, and tells nothing."""
    monkeypatch.setattr(agreement, "TEXTS", 20)
    loaded = bundle.load(trained / "adapter")
    held_out = agreement.choose(trained, trained / "adapter", loaded, 20)
    right = agreement.ask_original(loaded, held_out).argmax(axis=1) == held_out.label_ids
    ids = [tuple(held_out.tokens[row].tolist()) for row in np.flatnonzero(right)]
    turned = iter([first, first, all_of_them])  # two passes over the first, of which one warms up

    def partly_wrong(folder: Path, form: Any, loaded: Any) -> Any:
        engine = faithful(folder, form, loaded)

        def run(batches: Any) -> Iterator[np.ndarray]:
            victims = set(ids[: next(turned)])
            kept = [dict(batch) for batch in batches]
            for batch, logits in zip(kept, engine(iter(kept)), strict=True):
                for row, tokens in enumerate(batch["input_ids"].tolist()):
                    if tuple(token for token in tokens if token != loaded.tokenizer.pad_token_id) in victims:
                        logits[row] *= -1
                yield logits

        return run

    faithful = agreement._open
    monkeypatch.setattr(agreement, "_open", partly_wrong)
    if outcome == "kept":
        found = export.export(trained, "onnx-int8", tmp_path / "out").made.agreement
        assert (found.texts, found.drawn_from) == (40, "40 of the run's 40 test texts")
        assert found.accuracy is not None
        assert found.accuracy.gap_points == 0
    else:
        with pytest.raises(BundleError, match=f"on {outcome.split()[-1]} of the run's 40 test texts"):
            export.export(trained, "onnx-int8", tmp_path / "out")


@pytest.mark.filterwarnings("ignore:.*lorafit did not make it")
def test_a_plain_peft_directory_can_be_merged_too(trained: Path, tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained / "adapter", tmp_path / "copy"))
    for name in ("lorafit.json", "proof.json"):
        (copy / name).unlink()
    made = export.export(copy, "merged", tmp_path / "merged", encoder=str(tiny))
    assert made.made.agreement.texts == 3
    theirs = Classifier.load(trained, precision="fp32").probabilities(TEXTS)
    from transformers import pipeline as ready_made

    scores = ready_made("text-classification", model=str(made.folder), top_k=None)(TEXTS)
    found = np.array([{part["label"]: part["score"] for part in row}["LABEL_1"] for row in scores])
    np.testing.assert_allclose(found, theirs[:, 1], atol=1e-5)


LENGTHS = ["good", *TEXTS, " ".join(["the film was a story and its people"] * 20), "bad film"]


@pytest.mark.parametrize("form", exported.FORMS)
def test_an_export_answers_as_the_bundle_does_whatever_the_batch(
    trained: Path, tmp_path: Path, cli: Callable[..., Said], form: str
) -> None:
    said = cli("export", trained, tmp_path / "out", "--to", form)
    assert said.code == 0, said.err
    assert "accuracy gap" in said.out
    expected = Classifier.load(trained, precision="fp32").probabilities(LENGTHS)
    near = 0.1 if form.endswith("int8") else 1e-4
    precision = {"precision": "fp32"} if form == "merged" else {}
    found = Classifier.load(tmp_path / "out", **precision)
    assert found.backend == form
    np.testing.assert_allclose(found.probabilities(LENGTHS), expected, atol=near)
    one_by_one = np.concatenate([found.probabilities([text]) for text in LENGTHS])
    np.testing.assert_allclose(one_by_one, expected, atol=near)
    np.testing.assert_allclose(found.probabilities(LENGTHS * 30), np.tile(expected, (30, 1)), atol=near)
    asked = cli("predict", trained, TEXTS[0], "--json", "--backend", tmp_path / "out")
    assert json.loads(asked.out)[0]["neg_prob"] == pytest.approx(expected[1, 0], abs=near)
    assert f"Runs on {form}." in asked.err


@pytest.mark.parametrize("form", ["onnx-int8", "openvino"])
def test_logits_that_are_no_numbers_are_a_drift_and_a_runtime_that_fails_is_named(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    def one_is_none(*rest: Any) -> Any:
        def run(batches: Any) -> Iterator[np.ndarray]:
            for logits in faithful(*rest)(batches):
                logits[0] = np.nan
                yield logits

        return run

    def failing(*rest: Any) -> Any:
        def run(batches: Any) -> Iterator[np.ndarray]:
            raise RuntimeError("a baked shape\nand more")
            yield from batches

        return run

    faithful = agreement._open
    for engine, sentence in ((one_is_none, "logits are no numbers"), (failing, "can't answer: a baked shape. Nothing")):
        monkeypatch.setattr(agreement, "_open", engine)
        with pytest.raises(BundleError, match=sentence):
            export.export(trained, form, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


def test_two_threads_do_not_get_each_other_s_answers(trained: Path, tmp_path: Path) -> None:
    export.export(trained, "openvino", tmp_path / "out")
    classifier = Classifier.load(tmp_path / "out")
    texts = [LENGTHS[start:] + LENGTHS[:start] for start in range(len(LENGTHS))] * 6
    expected = [classifier.probabilities(some) for some in texts]
    half_read = classifier._engines["adapted"](pad(classifier._reader.encode(LENGTHS), [row], 0) for row in range(8))
    next(half_read)  # broken off, its requests under way
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(classifier.probabilities, texts))
    for given, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(given, wanted, atol=1e-6)


def test_an_export_over_another_base_says_so(trained: Path, tiny: Path, tmp_path: Path) -> None:
    wrong = other_weights(tiny, tmp_path / "wrong")
    with pytest.warns(UserWarning, match="--allow-different-base"):
        export.export(trained, "onnx", tmp_path / "out", encoder=str(wrong), allow_different_base=True)
    with pytest.warns(UserWarning, match="was made over an encoder that the adapter was not trained on"):
        answer = Classifier.load(trained, backend=tmp_path / "out").predict(["good"])[0]
    assert answer["different_base"] == encoders.locate(str(wrong)).sha256


def test_what_stands_beside_an_export_is_not_removed_with_it(onnx_export: Path, trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(onnx_export, tmp_path / "copy"))
    (copy / "serve.py").write_text("mine")
    with pytest.raises(BundleError, match="holds serve.py, which is no part of this export"):
        export.export(trained, "onnx", copy, overwrite=True)
    (copy / "serve.py").rename(copy / ".git")
    with pytest.raises(StorageError, match="holds .git beside the export"):
        export.export(trained, "onnx", copy, overwrite=True)
    assert (copy / ".git").read_text() == "mine"


def test_the_manifest_of_an_export_says_what_was_found(trained: Path, tmp_path: Path) -> None:
    made = export.export(trained, "onnx-int8", tmp_path / "out").made
    read = exported.check(tmp_path / "out")
    assert read == made
    assert read.adapter.labels == ["neg", "pos"]
    assert read.inputs == ["input_ids", "attention_mask"]
    assert read.bytes == (tmp_path / "out" / backends.ONNX_MODEL).stat().st_size
    found = read.agreement
    assert found.texts == 40
    assert 1e-5 < found.largest_logit_gap < 1
    assert found.accuracy is not None
    low, high = found.accuracy.gap_interval
    assert low < found.accuracy.gap_points < high
    assert found.texts_per_second > 0
    assert {"onnx", "onnxruntime", "torch"} <= read.packages.keys()


def test_an_export_of_a_bundle_alone_is_compared_on_the_texts_of_its_proof(trained: Path, tmp_path: Path) -> None:
    made = export.export(trained / "adapter", "onnx", tmp_path / "out").made
    assert made.agreement.accuracy is None
    assert made.agreement.drawn_from == "32 texts of the bundle's proof, which have no labels,"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "model.onnx").unlink(), r"is not whole: model.onnx is missing\."),
        (lambda folder: (folder / "model.onnx").write_bytes(b"x"), r"model.onnx has been changed since the export was"),
        (lambda folder: change(folder, '"onnx"', '"openvino"'), r"its seal does not fit its content\."),
        (lambda folder: change(folder, '"format_version": 1', '"format_version": 9'), r"reads versions up to 1\."),
        (lambda folder: (folder / exported.FILE).write_text("{"), r"lorafit_export.json can't be read: "),
        (lambda folder: link(folder / "model.onnx"), r"model.onnx is a symbolic link"),
        (
            lambda folder: (folder / "adapter_config.json").write_text("{}"),
            r"holds adapter_config.json, which is no part",
        ),
        (
            lambda folder: relisted(folder, "adapter_config.json", "{}"),
            r"adapter_config.json is of no kind that an export",
        ),
        (lambda folder: relisted(folder, "pytorch_model.bin", "x"), r"pytorch_model.bin is of no kind that an export"),
        (lambda folder: relisted(folder, "tokenizer_config.json", '{"vocab_file": "/etc/passwd"}'), r"sets vocab_file"),
    ],
)
def test_a_damaged_export_is_refused(
    onnx_export: Path, tmp_path: Path, damage: Callable[[Path], Any], sentence: str
) -> None:
    copy = Path(shutil.copytree(onnx_export, tmp_path / "copy"))
    damage(copy)
    with pytest.raises(BundleError, match=sentence):
        Classifier.load(copy)


def change(folder: Path, before: str, after: str) -> None:
    file = folder / exported.FILE
    content = file.read_text()
    assert before in content
    file.write_text(content.replace(before, after))


def relisted(folder: Path, name: str, content: str) -> None:
    """Put a file where the manifest has it with the right hash, as a stranger could."""
    (folder / name).write_text(content)
    made = exported.read(folder)
    exported.write(folder, made.model_copy(update={"files": made.files | {name: sha256_of(folder / name)}}))


def link(file: Path) -> None:
    moved = file.rename(file.parent.parent / file.name)
    file.symlink_to(moved)


@pytest.fixture(scope="module")
def onnx_export(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export.export(trained, "onnx", tmp_path_factory.mktemp("exports") / "onnx").folder


def test_what_an_export_can_not_do_is_said_in_one_sentence(
    onnx_export: Path,
    trained: Path,
    tiny: Path,
    tmp_path: Path,
    cli: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refusal(*arguments: object) -> str:
        said = cli(*arguments)
        assert said.code == 2
        assert "Traceback" not in said.err
        return said.err.splitlines()[-1]

    other = Path(shutil.copytree(trained / "adapter", tmp_path / "other"))
    reseal(other, thresholds=[0.6, 0.4])
    assert "was made of another bundle than" in refusal("predict", other, "good", "--backend", onnx_export)
    assert "is no export: it has no lorafit_export.json" in refusal("predict", other, "good", "--backend", trained)
    assert "An export holds no adapter and no untrained head" in refusal("predict", onnx_export, "good", "--base")
    assert "no other can be taken" in refusal("predict", onnx_export, "good", "--encoder", tiny)
    assert "There is no form 'onyx'" in refusal("export", trained, tmp_path / "out", "--to", "onyx")
    assert "holds something else than an export" in refusal("export", trained, other, "--to", "onnx", "--overwrite")
    inside = trained / "adapter" / "onnx"
    assert "lies inside the bundle itself" in refusal("export", trained, inside, "--to", "onnx")
    for command in ("inspect", "verify"):
        assert "is an export, which holds no adapter: name the bundle" in refusal(command, onnx_export)
    assert "is there already. Replace it with --overwrite" in refusal("export", trained, onnx_export, "--to", "onnx")
    with pytest.raises(BundleError, match="is onnx, whose precision is its own; bf16 can't be chosen"):
        Classifier.load(onnx_export, precision="bf16")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    missing = "ONNX Runtime is not installed. Install it with: pip install 'lorafit[export]'"
    assert missing in refusal("predict", trained, "good", "--backend", onnx_export)
    assert missing in refusal("export", trained, tmp_path / "out", "--to", "onnx-int8")
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "OpenVINO is not installed" in refusal("export", trained, tmp_path / "out", "--to", "openvino")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["onnx", "openvino"])
@pytest.mark.parametrize("long_text", ["head+tail", "windows:max"])
def test_an_export_reads_long_texts_and_means_as_the_bundle_does(
    read_otherwise: Callable[[str], Path], tmp_path: Path, form: str, long_text: str
) -> None:
    run = read_otherwise(long_text)
    export.export(run, form, tmp_path / "out")
    expected = Classifier.load(run, precision="fp32").probabilities(LENGTHS)
    np.testing.assert_allclose(Classifier.load(tmp_path / "out").probabilities(LENGTHS), expected, atol=1e-4)


@pytest.fixture(scope="module")
def read_otherwise(
    tiny_recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, proved_in_this_process: None
) -> Callable[[str], Path]:
    """Runs over the mean of the tokens, whose windows are short."""

    @cache
    def train(long_text: str) -> Path:
        data = {"max_tokens": 16, "long_text": long_text}
        made = tiny_recipe(data=data, encoder={"pooling": "mean"}, training={"epochs": 1})
        return pipeline.train(made, tmp_path_factory.mktemp("runs") / "run").path

    return train


@pytest.mark.slow
@pytest.mark.parametrize("family", small_encoders.CONFIGS)
@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_every_family_can_be_exported_and_batch_and_length_stay_dynamic(family: str, form: Any, tmp_path: Path) -> None:
    model = small_encoders.adapted(family, **small_encoders.AS_PUBLISHED.get(family, {})).merge_and_unload().eval()
    chance = np.random.default_rng(0)
    texts = [chance.integers(5, 200, size=length).astype(np.int32) for length in (7, 30, 90, 2, 1, 64)]
    tokens = Tokens(np.concatenate(texts), np.cumsum([0, *map(len, texts)]), 0)
    expected = predict.plain_logits(model, tokens, 1)
    assert convert.convert(model, form, tmp_path, convert.Samples(tokens, tokens, 1), []) == [
        "input_ids",
        "attention_mask",
    ]
    engine = backends.of_export(form, tmp_path, 1, "head")
    batches = [[0], [1, 4], [2, 3, 5], [2], [3, 0, 1, 4]]
    found = engine(pad(tokens, rows, 1) for rows in batches)
    for rows, logits in zip(batches, found, strict=True):
        np.testing.assert_allclose(logits, expected[rows], atol=2e-4)


ASK_NOBODY = """
import sys
asked = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        asked.append((event, arguments))
sys.addaudithook(watch)
from lorafit.export import export
from lorafit import Classifier
for form in ("openvino-int8", "onnx-int8"):
    export(sys.argv[1], form, form)
    Classifier.load(form).predict(["a good film"])
import time
time.sleep(1)  # senders work in threads of their own
assert not asked, asked
"""


@pytest.mark.slow
def test_converters_and_runtimes_tell_nobody(trained: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    in_ci = ("CI", "GITHUB_ACTIONS", "JENKINS_URL", "TF_BUILD", "PYTEST_CURRENT_TEST")
    unset = (*in_ci, "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "ORT_DISABLE_TELEMETRY")
    environment = {key: value for key, value in os.environ.items() if key not in unset} | {"HOME": str(home)}
    command = [sys.executable, "-c", ASK_NOBODY, str(trained)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # ONNX Runtime's own sockets are not Python's to see; what it would send is kept under .cache/Microsoft.
    assert [path for path in home.rglob("*") if path.name in ("Microsoft", "intel", "Intel Corporation")] == []
