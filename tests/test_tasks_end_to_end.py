"""Every kind of task from a file to an ordinary model: trained, evaluated, verified, asked, merged."""

import itertools
import json
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lorafit import (
    Classifier,
    bulk,
    checks,
    encoders,
    export,
    manifest,
    pipeline,
    predictions,
    proof,
    recipe,
    runs,
    runtime,
    tables,
    tasks,
    tokens,
)
from lorafit.data import Text
from lorafit.errors import BundleError, DataError, RecipeError
from lorafit.runs import Run
from tests.conftest import BAD, FILLER, GOOD, Said, texts_and_labels, write_table
from tests.test_bundle import reseal

pytestmark = [pytest.mark.usefixtures("proved_in_this_process"), pytest.mark.filterwarnings("ignore:After epoch")]

TOPICS = ("kind", "grim", "musical")
_WORDS = {"kind": GOOD, "grim": BAD, "musical": ("music",)}


def topics_and_texts(count: int) -> tuple[list[str], list[list[str]]]:
    """Return texts about none to three topics, whose words stand in them."""
    chance = random.Random(0)
    texts, given = [], []
    for number in range(count):
        topics = [topic for topic in TOPICS if chance.random() < 0.5]
        plain = [word for word in FILLER if word != "music"]
        words = chance.choices(plain, k=4) + [word for topic in topics for word in chance.choices(_WORDS[topic], k=4)]
        texts.append(" ".join([*words, str(number)]))
        given.append(topics)
    return texts, given


def rare_and_unsure(count: int) -> tuple[list[str], list[str]]:
    """Return texts of which one in six has the label "rare", and words that hint at it without telling."""
    chance = random.Random(0)
    texts, labels = [], []
    for number in range(count):
        is_rare = number % 6 == 0
        hints = chance.choices(GOOD, k=2) if chance.random() < (0.7 if is_rare else 0.15) else []
        texts.append(" ".join([*chance.choices(BAD, k=4), *hints, str(number)]))
        labels.append("rare" if is_rare else "common")
    return texts, labels


def pairs_and_labels(count: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Return pairs of one mood or of two, which no text tells by itself."""
    chance = random.Random(1)
    pairs, labels = [], []
    for number in range(count):
        moods = [chance.choice((GOOD, BAD)) for _ in range(2)]
        first, second = (" ".join(chance.choices(mood, k=3)) for mood in moods)
        pairs.append((f"{first} {number}", second))
        labels.append("same" if moods[0] is moods[1] else "other")
    return pairs, labels


def write(folder: Path, table: pd.DataFrame, kind: str = "csv") -> dict[str, Any]:
    """Write a table and return the part of a recipe that names it."""
    write_table(table, folder / f"data.{kind}")
    return {"source": str(folder / f"data.{kind}")}


def whole_way(made: Any, folder: Path, texts: list[Text]) -> tuple[Run, list[dict[str, Any]]]:
    """Train, evaluate, verify, predict and export; transformers' pipeline and ONNX Runtime have to agree."""
    from transformers import pipeline as ready_made

    run = pipeline.train(made, folder / "run")
    pipeline.evaluate(run)
    assert proof.verify(run.adapter).gap_fp32 <= 1e-5
    classifier = Classifier.load(run.path, precision="fp32")
    answers = classifier.predict(texts)
    merged = export.export(run.path, "merged", folder / "merged")
    assert merged.made.agreement.largest_logit_gap < 1e-5
    theirs = ready_made("text-classification", model=str(merged.folder), truncation=True, top_k=None)
    inputs = [text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]} for text in texts]
    for scores, answer in zip([theirs(one) for one in inputs], answers, strict=True):
        found = {score["label"]: score["score"] for score in (scores[0] if isinstance(scores[0], list) else scores)}
        assert found == pytest.approx({label: answer[f"{label}_prob"] for label in classifier.labels}, abs=1e-4)
    export.export(run.path, "onnx", folder / "onnx")
    np.testing.assert_allclose(
        Classifier.load(folder / "onnx").probabilities(texts), classifier.probabilities(texts), atol=1e-4
    )
    return run, answers


@pytest.mark.parametrize(("form", "names"), [("names", ["neg", "pos"]), ("integers", ["0", "1"])])
def test_two_classes(form: str, names: list[str], tiny_recipe: Callable[..., Any], tmp_path: Path) -> None:
    texts, label_ids = texts_and_labels(200)
    labels = label_ids if form == "integers" else [names[label_id] for label_id in label_ids]
    data = write(tmp_path, pd.DataFrame({"text": texts, "label": labels}), "jsonl")
    run, answers = whole_way(tiny_recipe(data=data), tmp_path, texts[:4])
    assert [answer["label"] for answer in answers] == [names[label_id] for label_id in label_ids[:4]]
    assert run.scores is not None
    assert run.scores["test"]["adapted"]["accuracy"] > 0.9


def test_four_classes_keep_their_own_names(tiny_recipe: Callable[..., Any], tmp_path: Path) -> None:
    """In an order that is neither the alphabet's nor the file's, and of unequal sizes: no two can be swapped unseen."""
    words = {"mirth": GOOD[:3], "zeal": GOOD[3:], "dread": BAD[:3], "awe": BAD[3:]}
    names = ["zeal", "dread", "awe", "mirth"]
    chance = random.Random(2)
    labels = [name for name, count in zip(names, (120, 90, 60, 30), strict=True) for _ in range(count)]
    chance.shuffle(labels)
    texts = [
        " ".join([*chance.choices(FILLER, k=4), *chance.choices(words[label], k=6), str(number)])
        for number, label in enumerate(labels)
    ]
    data = write(tmp_path, pd.DataFrame({"text": texts, "label": labels}))
    sizes = {"labels": names, "train_size": 200, "validation_size": 50, "test_size": 50}
    run = pipeline.train(tiny_recipe(data=data | sizes, training={"epochs": 5, "threads": 1}), tmp_path / "run")
    pipeline.evaluate(run)

    classifier = Classifier.load(run.path)
    assert classifier.labels == names
    test = pipeline.data_of(run).test
    truth = dict(zip(texts, labels, strict=True))
    answers = classifier.predict(test.texts)
    wrong = [answer for answer in answers if answer["label"] != truth[answer["text"]]]
    assert len(wrong) <= 5
    assert all(answer["label"] == max(names, key=lambda name: answer[f"{name}_prob"]) for answer in answers)

    assert run.scores is not None
    confusion = run.scores["test"]["confusion"]
    given = dict.fromkeys(itertools.product(names, names), 0)
    for answer in answers:
        given[truth[answer["text"]], answer["label"]] += 1
    assert confusion == [[given[true, said] for said in names] for true in names]
    assert [sum(row) for row in confusion] == [20, 15, 10, 5]
    assert sum(confusion[place][place] for place in range(4)) >= 45


def test_a_hundred_and_fifty_classes(tiny_recipe: Callable[..., Any], tmp_path: Path, cli: Callable[..., Said]) -> None:
    names = [f"{first}{second}" for first in "abcdefghijklmno" for second in "abcdefghij"]
    texts = [f"{' '.join(name)} {number}" for number in range(6) for name in names]
    data = write(tmp_path, pd.DataFrame({"text": texts, "label": names * 6}))
    sizes = {"train_size": 600, "validation_size": 150, "test_size": 150}
    made = tiny_recipe(data=data | sizes, training={"epochs": 1})
    run, answers = whole_way(made, tmp_path, texts[:2])
    assert Classifier.load(run.path).labels == sorted(names)
    assert sum(answers[0][f"{name}_prob"] for name in names) == pytest.approx(1)
    table = {"source": Path(data["source"]), "target": tmp_path / "scored.jsonl"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.PerformanceWarning)  # of a table that grows column by column
        bulk.score(lambda: Classifier.load(run.path), **table)
    assert tables.read(table["target"]).columns.tolist()[:3] == ["text", "label", "predicted_label"]
    said = cli("predict", run.path, texts[0])
    assert "most probable" in said.out
    assert answers[0]["label"] in said.out


def multi_label_forms(texts: list[str], given: list[list[str]]) -> dict[str, tuple[pd.DataFrame, str, dict[str, Any]]]:
    """Return the same labels in each form: a table, the file it goes into, and what the recipe says of it."""
    columns = {topic: [["0", "1"][topic in some] for some in given] for topic in TOPICS}
    return {
        "separator": (
            pd.DataFrame({"text": texts, "label": [" | ".join(some) or "nothing" for some in given]}),
            "csv",
            {"label_separator": "|"},
        ),
        "json": (
            pd.DataFrame({"text": texts, "label": [json.dumps(some) for some in given]}),
            "csv",
            {"label_separator": "json"},
        ),
        "columns": (pd.DataFrame({"text": texts, **columns}), "csv", {"label": list(TOPICS)}),
        "lists-jsonl": (pd.DataFrame({"text": texts, "label": given}), "jsonl", {}),
        "lists-parquet": (pd.DataFrame({"text": texts, "label": given}), "parquet", {}),
    }


@pytest.mark.parametrize("form", ["json", "columns", "lists-jsonl", "lists-parquet", "separator"])
def test_every_form_of_several_labels_a_text_is_the_same_task(
    form: str, tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    texts, given = topics_and_texts(200)
    table, kind, said = multi_label_forms(texts, given)[form]
    found = pipeline.prepare(tiny_recipe(data=write(tmp_path, table, kind) | said))
    expected = dict(zip(texts, given, strict=True))
    assert found.task == "multi_label"
    assert set(found.labels) == {*TOPICS, *(["nothing"] if form == "separator" else [])}
    for text, label_ids in zip(found.train.texts, found.train.label_ids, strict=True):
        names = {found.labels[label_id] for label_id in np.flatnonzero(label_ids)}
        assert names - {"nothing"} == set(expected[str(text)])


def test_several_labels_a_text(
    tiny_recipe: Callable[..., Any], tmp_path: Path, cli: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, given = topics_and_texts(200)
    data = write(tmp_path, pd.DataFrame({"text": texts, "label": given}), "jsonl")
    run, answers = whole_way(tiny_recipe(data=data, training={"epochs": 5}), tmp_path, list(texts[:8]))
    assert list(answers[0]) == ["text", *(f"{topic}_prob" for topic in sorted(TOPICS)), "labels"]
    for answer in answers:
        assert answer["labels"] == [topic for topic in sorted(TOPICS) if answer[f"{topic}_prob"] >= 0.5]
    right = [set(answer["labels"]) == set(some) for answer, some in zip(answers, given, strict=False)]
    assert sum(right) >= 6
    said = cli("predict", run.path, texts[0], "--json")
    assert json.loads(said.out)[0]["labels"] == answers[0]["labels"]
    assert "a text may have several" in cli("inspect", run.path).out

    for kind in ("csv", "jsonl"):
        target = tmp_path / f"scored.{kind}"
        bulk.score(lambda: Classifier.load(run.path), Path(data["source"]), target)
        written = tables.column(tables.read(target), "predicted_labels", "")[:8]
        lists = [json.loads(cell) for cell in written] if kind == "csv" else written
        assert lists == [answer["labels"] for answer in answers]

    reseal(run.adapter, thresholds=[0.001, 0.999, 0.5])
    answer = Classifier.load(run.path, precision="fp32").predict(texts[:1])[0]
    limits = dict(zip(sorted(TOPICS), [0.001, 0.999, 0.5], strict=True))
    assert answer["labels"] == [topic for topic, limit in limits.items() if answer[f"{topic}_prob"] >= limit]


@pytest.mark.parametrize("task", ["several labels", "one of two"])
def test_thresholds_from_validation_decide_alike_in_evaluation_python_and_the_command_line(
    task: str,
    tiny_recipe: Callable[..., Any],
    tmp_path: Path,
    cli: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "_bf16_gain", lambda _threads: 1.0)  # one arithmetic, the run's, for all three
    several = task == "several labels"
    texts, labels = topics_and_texts(600) if several else rare_and_unsure(600)
    sizes = {"train_size": 240, "validation_size": 180, "test_size": 180}
    data = write(tmp_path, pd.DataFrame({"text": texts, "label": labels}), "jsonl") | sizes
    run = pipeline.train(tiny_recipe(data=data, training={"thresholds": "f1", "epochs": 1}), tmp_path / "run")
    pipeline.evaluate(run)
    asked, evaluated = pipeline.data_of(run).test.texts, predictions.read(run.predictions)
    classifier = Classifier.load(run.path)
    assert run.scores is not None
    assert classifier.thresholds == manifest.read(run.adapter).thresholds == run.scores["test"]["thresholds"]
    probabilities = classifier.probabilities(asked)
    at_half = tasks.decide(probabilities, classifier.task)
    assert (at_half != evaluated.given["adapted"]).any()  # so that thresholds of 0.5 would be seen
    in_python = classifier.predict(asked)
    on_the_command_line = json.loads(cli("predict", run.path, "--json", stdin="\n".join(map(str, asked))).out)
    for answers in (in_python, on_the_command_line):
        given = [answer["labels"] if several else [answer["label"]] for answer in answers]
        label_ids = [[int(label in some) for label in classifier.labels] for some in given]
        expected = tasks.one_hot(evaluated.given["adapted"], len(classifier.labels))
        assert np.array_equal(label_ids, expected)


def right_answers(run: Run, answers: list[dict[str, Any]], truth: dict[Any, list[str]]) -> float:
    """Return the share of labels, over texts and topics, that are given where they are true and only there."""
    right = [(topic in answer["labels"]) == (topic in truth[answer["text"]]) for answer in answers for topic in TOPICS]
    assert run.scores is not None
    matrices = run.scores["test"]["confusion"]
    assert set(matrices) == set(TOPICS)
    for topic, matrix in matrices.items():
        counts = [[0, 0], [0, 0]]
        for answer in answers:
            counts[topic in truth[answer["text"]]][topic in answer["labels"]] += 1
        assert matrix == counts
    return sum(right) / len(right)


def test_several_labels_of_long_texts_are_found_in_every_window(
    tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    texts, given = topics_and_texts(300)
    start = " ".join(word for word in FILLER if word != "music")
    texts = [f"{start} {text}" for text in texts]  # what tells stands behind the first window
    data = write(tmp_path, pd.DataFrame({"text": texts, "label": given}), "jsonl")
    data |= {"max_tokens": 12, "long_text": "windows:mean", "train_size": 200, "validation_size": 50, "test_size": 50}
    run = pipeline.train(tiny_recipe(data=data, training={"epochs": 8, "threads": 1}), tmp_path / "run")
    pipeline.evaluate(run)
    answers = Classifier.load(run.path).predict(pipeline.data_of(run).test.texts)
    assert right_answers(run, answers, dict(zip(texts, given, strict=True))) > 0.85  # a guess has 0.5


def test_several_labels_of_pairs_are_found_in_both_texts(tiny_recipe: Callable[..., Any], tmp_path: Path) -> None:
    texts, given = topics_and_texts(300)
    chance = random.Random(3)
    seconds = [" ".join(chance.choices("0123456789", k=3)) for _ in texts]
    for number, topics in enumerate(given):  # of music the second text alone speaks
        texts[number] = texts[number].replace("music", "film")
        seconds[number] += " music music" if "musical" in topics else " film film"
    table = pd.DataFrame({"a": texts, "b": seconds, "label": given})
    data = write(tmp_path, table, "jsonl") | {"text": "a", "text_pair": "b"}
    data |= {"train_size": 200, "validation_size": 50, "test_size": 50}
    run = pipeline.train(tiny_recipe(data=data, training={"epochs": 8, "threads": 1}), tmp_path / "run")
    pipeline.evaluate(run)
    answers = Classifier.load(run.path).predict(pipeline.data_of(run).test.texts)
    assert right_answers(run, answers, dict(zip(texts, given, strict=True))) > 0.9
    pairs = [(answer["text"], answer["text_pair"]) for answer in answers]
    assert set(pairs) <= set(zip(texts, seconds, strict=True))


def test_what_stands_in_two_official_splits_is_warned_of_even_when_quiet_and_the_report_says_it(
    tiny_recipe: Callable[..., Any], tmp_path: Path, cli: Callable[..., Said]
) -> None:
    texts, labels = texts_and_labels(200)
    files = {}
    for name, rows in {"source": (0, 120), "validation_source": (118, 160), "test_source": (159, 200)}.items():
        table = pd.DataFrame({"text": texts[slice(*rows)], "label": labels[slice(*rows)]})
        write_table(table, tmp_path / f"{name}.csv")
        files[name] = str(tmp_path / f"{name}.csv")
    sizes = {f"{split}_size": 1.0 for split in ("train", "validation", "test")}
    made = tiny_recipe(data=files | sizes, training={"epochs": 1})
    (tmp_path / "official.toml").write_text(recipe.to_toml(made))
    said = cli("train", "official.toml", "--out", "run", "--quiet")
    sentences = (
        "Texts of the training source that stand in validation or test too: 2. They are left out of training.",
        "Texts of the validation source that stand in the test too: 1. They are left out of validation.",
    )
    assert said.err.startswith(f"Warning: {' '.join(sentences)}\n")
    run = runs.open_run(tmp_path / "run")
    assert run.record["overlaps"] == {"train": 2, "validation": 1}
    assert run.record["texts"] == {"train": 118, "validation": 41, "test": 41}
    pipeline.evaluate(run)
    assert all(sentence in (run.path / "report.md").read_text() for sentence in sentences)


def test_pairs(tiny_recipe: Callable[..., Any], tmp_path: Path, cli: Callable[..., Said]) -> None:
    pairs, labels = pairs_and_labels(300)
    firsts, seconds = (list(column) for column in zip(*pairs, strict=True))
    data = write(tmp_path, pd.DataFrame({"premise": firsts, "hypothesis": seconds, "label": labels}))
    data |= {"text": "premise", "text_pair": "hypothesis", "html": "strip"}
    sizes = {"train_size": 200, "validation_size": 50, "test_size": 50}
    run, answers = whole_way(tiny_recipe(data=data | sizes, training={"epochs": 2}), tmp_path, list(pairs[:4]))
    assert list(answers[0]) == ["text", "text_pair", "other_prob", "same_prob", "label"]
    classifier = Classifier.load(run.path, precision="fp32")
    apart, swapped = ([(f"{a}", f"{b}") for a, b in some] for some in (pairs[:4], [(b, a) for a, b in pairs[:4]]))
    assert not np.allclose(classifier.probabilities(apart), classifier.probabilities(swapped), atol=1e-4)
    assert np.array_equal(
        classifier.probabilities([("good<br />", "bad")]), classifier.probabilities([("good", "bad")])
    )

    asked = json.loads(cli("predict", run.path, *pairs[0], *pairs[1], "--json").out)
    assert [(answer["text"], answer["text_pair"]) for answer in asked] == pairs[:2]
    piped = json.loads(cli("predict", run.path, "--json", stdin="\t".join(pairs[0]) + "\n").out)[0]
    assert (piped["text"], piped["text_pair"], piped["label"]) == (*pairs[0], asked[0]["label"])
    columns = ("--text-column", "premise", "--pair-column", "hypothesis")
    assert cli("predict", run.path, "--input", data["source"], "--output", "scored.csv", *columns).code == 0
    assert tables.read(Path("scored.csv"))["predicted_label"][0] == asked[0]["label"]

    for arguments, stdin, sentence in (
        ((pairs[0][0],), None, "This adapter reads pairs: name texts two by two, not 1."),
        ((), "one text\n", "This adapter reads pairs: line 1 needs one tab, between its two texts."),
        (("--input", data["source"], "--output", "s.csv", *columns[:2]), None, "this adapter reads pairs: name the"),
    ):
        said = cli("predict", run.path, *arguments, stdin=stdin)
        assert (said.code, sentence in said.err) == (2, True)
    with pytest.raises(DataError, match="Text 1 is of type str; this adapter reads pairs of texts"):
        classifier.predict(["one"])
    with pytest.raises(DataError, match="Text 1 is empty"):
        classifier.predict([("one", " ")])


def test_an_adapter_for_single_texts_refuses_pairs(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Text 1 is a pair; this adapter reads single texts"):
        Classifier.load(trained).predict([("one", "two")])
    write(tmp_path, pd.DataFrame({"a": ["one"], "b": ["two"]}))
    with pytest.raises(DataError, match="this adapter reads single texts"):
        bulk.score(
            lambda: Classifier.load(trained),
            tmp_path / "data.csv",
            tmp_path / "out.csv",
            text_column="a",
            pair_column="b",
        )


def test_pairs_have_type_ids_and_the_longer_text_is_cut(tiny: Path) -> None:
    tokenizer = encoders.load_tokenizer(tiny, "tiny")
    pairs: list[Text] = [("good film", "bad " * 30), ("good", "bad")]
    encoded = tokens.encode(pairs, tokenizer, max_tokens=16)
    assert encoded.lengths.tolist() == [16, 5]
    assert encoded.cut == 1
    batch = tokens.pad(encoded, [1, 0], tokenizer.pad_token_id)
    theirs = tokenizer([pairs[1], pairs[0]], truncation=True, max_length=16, padding=True, return_tensors="pt")
    for name, tensor in batch.items():
        assert torch.equal(tensor, theirs[name])
    assert tokens.encode(["good film"], tokenizer).type_ids is None
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    assert tokens.encode(pairs, tokenizer).type_ids is None


def test_a_base_without_a_mark_for_second_texts_is_refused(trained: Path) -> None:
    from lorafit import bundle

    loaded = replace(bundle.load(trained / "adapter"), token_types=1)
    with pytest.raises(BundleError, match="marks the second text of a pair, which its base can't"):
        loaded.encode([("good", "bad")])


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"text_pair": "b", "long_text": "windows:mean"}, 'data.long_text = "windows:mean" is for single texts'),
        ({"text_pair": "text"}, "data.text and data.text_pair name the same column"),
        ({"label": ["a", "a"]}, "data.label names a column twice"),
        ({"label": ["a", "b"], "label_separator": "|"}, "leave out data.label_separator"),
        ({"label": ["a", "b"], "labels": ["a", "b"]}, "the names are the columns'"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(
    data: dict[str, Any], sentence: str, tiny_recipe: Callable[..., Any]
) -> None:
    with pytest.raises(RecipeError) as error:
        tiny_recipe(data=data)
    assert sentence in str(error.value)


def test_the_manifest_says_what_the_task_is(trained: Path) -> None:
    made = checks.check(trained / "adapter")
    assert made is not None
    assert (made.task, made.text_pair) == ("single_label", False)
