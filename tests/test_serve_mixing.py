"""One batch serves many adapters on one encoder, and each text is answered as by its own classifier."""

import asyncio
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from untrained import write_bundle

from lorafit import Classifier, bundle, encoders, manifest
from lorafit.checks import CONFIG
from lorafit.data import Text
from lorafit.encoders import Files
from lorafit.errors import LorafitWarning
from lorafit.runtime import Runtime
from lorafit.serve.adapters import Adapter, Adapters
from lorafit.serve.engines import Item, OwnEncoder, SharedEncoder
from lorafit.serve.limits import Limits
from lorafit.serve.service import Service
from tests.conftest import texts_and_labels
from tests.small_encoders import CONFIGS, write_encoder

FP32 = Runtime("cpu", "fp32", 1, "for the test")
BF16 = Runtime("cpu", "bf16", 1, "for the test")
FAMILIES = ["bert", "roberta", "distilbert", "albert", "electra", "modernbert", "mpnet", "deberta-v2"]
WITHOUT_PADFREE = ("mpnet", "deberta-v2")
LONG = " ".join(texts_and_labels(8, seed=7)[0])
TEXTS: list[Text] = [*texts_and_labels(7, seed=5)[0], "film", LONG, "a", "dull grim", LONG[: len(LONG) // 2]]
PAIRS: list[Text] = [("the film", "good"), ("a", "b"), (LONG, "was it good"), ("a story", LONG), ("music", "people")]
Made = tuple[list[str], dict[str, Any]]  # an adapter's labels, and what else `write_bundle` is given
TWO, THREE, SEVEN = ["no", "yes"], ["low", "middle", "high"], [f"topic {n}" for n in range(7)]
ON_BERT: dict[str, Made] = {
    "all-linear": (THREE, {"lora": {"rank": 8}}),
    "query-value": (TWO, {"lora": {"rank": 3, "targets": ["query", "value"], "alpha": 5}}),
    "attention": (SEVEN, {"lora": {"rank": 16, "targets": "attention"}}),
    "top": (TWO, {"lora": {"rank": 4, "layers": "top:1"}}),
    "rslora": (THREE, {"lora": {"rank": 9, "variant": "rslora"}}),
    "multi-label": (SEVEN, {"task": "multi_label", "lora": {"rank": 2}}),
    "mean": (THREE, {"pooling": "mean", "lora": {"rank": 5}}),
    "windows-mean": (TWO, {"long_text": "windows:mean", "max_tokens": 16}),
    "windows-max": (SEVEN, {"long_text": "windows:max", "max_tokens": 20, "pooling": "mean"}),
    "head-tail": (TWO, {"long_text": "head+tail", "max_tokens": 12}),
    "pairs": (THREE, {"text_pair": True, "max_tokens": 32}),
    "pairs-mean": (TWO, {"text_pair": True, "pooling": "mean", "max_tokens": 24}),
}
ON_EACH: dict[str, Made] = {
    "all-linear": (THREE, {"lora": {"rank": 8}}),
    "attention": (SEVEN, {"lora": {"rank": 3, "targets": "attention", "variant": "rslora"}, "task": "multi_label"}),
    "mean": (TWO, {"pooling": "mean", "lora": {"rank": 5}}),
    "windows": (THREE, {"long_text": "windows:max", "max_tokens": 16, "lora": {"rank": 4, "targets": "attention"}}),
}


@dataclass(frozen=True)
class Served:
    """Adapters of one encoder, and what each one's own classifier answers."""

    adapters: dict[str, Adapter]
    classifiers: dict[str, Classifier]
    answers: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def engine(self) -> SharedEncoder:
        engines = {adapter.engine for adapter in self.adapters.values()}
        assert len(engines) == 1
        return next(iter(engines))  # type: ignore[return-value]

    def mix(self, names: Sequence[str], texts: Callable[[str], list[Text]] | None = None, seed: int = 0) -> "Mixed":
        """Return the texts of these adapters in one shuffled line."""
        items: list[Item] = []
        expected: list[np.ndarray] = []
        for name in names:
            some = texts(name) if texts else texts_for(self.adapters[name])
            tokens = self.adapters[name].encode(some)
            items += [Item(self.adapters[name].weights, tokens, number) for number in range(len(some))]
            if texts or name not in self.answers:
                self.answers[name] = self.classifiers[name].logits(tokens)
            expected += list(self.answers[name] if not texts else self.answers.pop(name))
        order = random.Random(seed).sample(range(len(items)), len(items))
        return Mixed([items[place] for place in order], [expected[place] for place in order])


@dataclass(frozen=True)
class Mixed:
    """Texts of several adapters in one line, and the logits that each is to get."""

    items: list[Item]
    expected: list[np.ndarray]

    def answered_by(self, engine: SharedEncoder, at_once: int = 10**6) -> list[np.ndarray]:
        starts = range(0, len(self.items), at_once)
        batches = [self.items[start : start + at_once] for start in starts]
        return [answer for answers in engine.run(batches) for answer in answers]


def texts_for(adapter: Adapter) -> list[Text]:
    return PAIRS if adapter.reader.manifest.text_pair else TEXTS


def assert_equal(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float = 1e-5) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=tolerance * max(1.0, float(np.abs(other).max())), rtol=0)


def maybe_warned(family: str) -> AbstractContextManager[object]:
    return pytest.warns(LorafitWarning, match="padfree can't") if family in WITHOUT_PADFREE else nullcontext()


def serve(folder: Path, files: Files, made: dict[str, Made], where: Runtime = FP32, family: str = "bert") -> Served:
    for number, (name, (labels, described)) in enumerate(made.items()):
        write_bundle(folder / name, files, labels, seed=number, **described)
    with maybe_warned(family):
        adapters = Adapters(where)
        loaded = {name: adapters.load(name, folder / name) for name in made}
        return Served(
            loaded, {name: Classifier.load(folder / name, precision=where.precision, threads=1) for name in made}
        )


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def encoder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Files]:
    folder, found = tmp_path_factory.mktemp("encoders"), dict[str, Files]()

    def files(family: str) -> Files:
        if family not in found:
            config = CONFIGS[family]()
            config.initializer_range = 0.15  # 0.3 makes differences of 1e-5 of what summing in another order gives
            write_encoder(folder / family, config)
            found[family] = encoders.locate(str(folder / family))
        return found[family]

    return files


@pytest.fixture(scope="module")
def on_bert(encoder_of: Callable[[str], Files], tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve(tmp_path_factory.mktemp("on bert"), encoder_of("bert"), ON_BERT)


@pytest.fixture(scope="module", params=FAMILIES)
def on_family(
    request: pytest.FixtureRequest,
    encoder_of: Callable[[str], Files],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, Served]]:
    family = request.param
    folder = tmp_path_factory.mktemp(family)
    yield family, serve(folder, encoder_of(family), ON_EACH, family=family)
    shutil.rmtree(folder)


def test_adapters_of_one_encoder_share_one_copy_of_it_and_one_tokenizer(on_bert: Served) -> None:
    assert isinstance(on_bert.engine, SharedEncoder)
    assert not on_bert.engine.pads
    assert {adapter.alone for adapter in on_bert.adapters.values()} == {""}
    assert len({id(adapter.reader.tokenizer) for adapter in on_bert.adapters.values()}) == 1


@pytest.mark.parametrize("at_once", [10**6, 7, 1], ids=["all in one batch", "sevens", "one by one"])
def test_a_shuffled_mix_is_answered_as_by_each_adapters_own_classifier(on_bert: Served, at_once: int) -> None:
    mixed = on_bert.mix(list(ON_BERT))
    assert_equal(mixed.answered_by(on_bert.engine, at_once), mixed.expected)


@pytest.mark.parametrize("seed", range(6))
def test_an_answer_does_not_depend_on_what_it_is_batched_with(on_bert: Served, seed: int) -> None:
    chance = random.Random(seed)
    mixed = on_bert.mix(chance.sample(list(ON_BERT), chance.randint(2, 6)), seed=seed)
    some = chance.sample(range(len(mixed.items)), min(len(mixed.items), chance.randint(2, 11)))
    few = Mixed([mixed.items[place] for place in some], [mixed.expected[place] for place in some])
    assert_equal(few.answered_by(on_bert.engine), few.expected)


def test_adapters_differ_so_that_a_mix_up_would_be_seen(on_bert: Served) -> None:
    with_three = [name for name, (labels, made) in ON_BERT.items() if labels is THREE and "text_pair" not in made]
    answers = [on_bert.classifiers[name].probabilities(TEXTS[:7]) for name in with_three]
    assert len(answers) == 3
    for place, one in enumerate(answers):
        for other in answers[place + 1 :]:
            assert np.abs(one - other).max(axis=1).min() > 0.001


@pytest.mark.parametrize("name", ON_BERT)
def test_an_adapter_decides_and_names_labels_as_predict_does(on_bert: Served, name: str) -> None:
    adapter, classifier = on_bert.adapters[name], on_bert.classifiers[name]
    texts = texts_for(adapter)
    tokens = adapter.encode(texts)
    logits = np.stack(next(iter(adapter.engine.run([[Item(adapter.weights, tokens, n) for n in range(len(texts))]]))))
    for answer, expected in zip(adapter.predictions(logits), classifier.predict(texts), strict=True):
        assert (answer.label, answer.labels) == (expected.get("label"), expected.get("labels"))
        scores = {score.label: score.score for score in answer.scores}
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        assert scores == pytest.approx({label: expected[f"{label}_prob"] for label in classifier.labels}, abs=1e-5)
    few = adapter.predictions(logits, top_k=1)
    assert [answer.scores for answer in few] == [answer.scores[:1] for answer in adapter.predictions(logits)]


@pytest.mark.parametrize("seed", range(8))
def test_very_short_texts_are_not_mistaken_for_rows_that_fill_up(on_bert: Served, seed: int) -> None:
    chance = random.Random(seed)
    names = chance.sample([name for name in ON_BERT if not name.startswith("pairs")], chance.randint(1, 3))

    def short(_: str) -> list[Text]:
        return [" ".join(chance.choices(["film", "a", "good"], k=chance.randint(1, 2))) for _ in range(3 // len(names))]

    mixed = on_bert.mix(names, short, seed)
    assert_equal(mixed.answered_by(on_bert.engine), mixed.expected)


@pytest.mark.parametrize("texts", [2, 3, 8, 9, 21, 40, 64, 65])
@pytest.mark.parametrize("names", [("all-linear", "query-value"), ("top", "mean")], ids="+".join)
def test_any_number_of_one_word_texts_is_answered(on_bert: Served, names: tuple[str, str], texts: int) -> None:
    mixed = on_bert.mix(names, lambda name: ["film", "good", "a"][: 1 + (name < "n")] * (texts // 2 or 1))
    assert_equal(mixed.answered_by(on_bert.engine), mixed.expected)


def test_batches_that_read_first_tokens_and_such_that_read_all_may_alternate(on_bert: Served) -> None:
    both = [on_bert.mix(["mean", "all-linear"]), on_bert.mix(["top", "query-value"])] * 3
    answers = on_bert.engine.run([mixed.items for mixed in both])
    for mixed, answer in zip(both, answers, strict=True):
        assert_equal(answer, mixed.expected)


@pytest.mark.parametrize("at_once", [10**6, 7, 1], ids=["all in one batch", "sevens", "one by one"])
def test_every_family_mixes_adapters(on_family: tuple[str, Served], at_once: int) -> None:
    family, served = on_family
    assert served.engine.pads == (family in WITHOUT_PADFREE)
    mixed = served.mix(list(ON_EACH))
    assert_equal(mixed.answered_by(served.engine, at_once), mixed.expected)


def test_very_short_texts_of_every_family_are_answered(on_family: tuple[str, Served]) -> None:
    _, served = on_family
    for names in (["all-linear"], ["all-linear", "attention"], ["attention", "mean"], list(ON_EACH)):
        for texts in (["a"], ["a", "good film"], ["film", "a", "the film"]):
            mixed = served.mix(names, lambda _, texts=texts: list(texts))
            assert_equal(mixed.answered_by(served.engine), mixed.expected)


@pytest.mark.parametrize(
    ("lora", "why"),
    [
        ({"variant": "dora"}, "DoRA changes the encoder's own weights"),
        ({"also_train": ["LayerNorm"]}, "its training changed bert.embeddings.LayerNorm"),
        ({"also_train": ["embeddings"]}, "its training changed bert.embeddings"),
    ],
    ids=["dora", "LayerNorm", "embeddings"],
)
def test_an_adapter_that_changes_the_encoder_is_served_alone_with_its_own_answers(
    encoder_of: Callable[[str], Files], tmp_path: Path, lora: dict[str, Any], why: str
) -> None:
    folder = write_bundle(tmp_path / "alone", encoder_of("bert"), THREE, lora=lora)
    adapters = Adapters(FP32)
    shared = adapters.load("shared", write_bundle(tmp_path / "shared", encoder_of("bert"), TWO))
    alone = adapters.load("alone", folder)
    assert alone.alone.startswith(why)
    assert isinstance(alone.engine, OwnEncoder)
    assert isinstance(shared.engine, SharedEncoder)
    tokens = alone.encode(TEXTS)
    halves = [[Item(None, tokens, n) for n in part] for part in (range(5), range(5, len(TEXTS)))]
    found = [answer for answers in alone.engine.run(halves) for answer in answers]
    assert_equal(found, list(Classifier.load(folder, precision="fp32", threads=1).logits(tokens)))


def test_a_plain_peft_directory_shares_the_encoder_too(encoder_of: Callable[[str], Files], tmp_path: Path) -> None:
    files = encoder_of("bert")
    plain = write_bundle(tmp_path / "plain", files, THREE)
    (plain / manifest.FILE).unlink()
    config = json.loads((plain / CONFIG).read_text())
    (plain / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": str(files.folder)}))
    adapters = Adapters(FP32)
    ours = adapters.load("ours", write_bundle(tmp_path / "ours", files, TWO, seed=1))
    with pytest.warns(LorafitWarning, match=r"has no lorafit\.json"):
        loaded = adapters.load("plain", plain)
    with pytest.warns(LorafitWarning, match=r"has no lorafit\.json"):
        classifier = Classifier.load(plain, precision="fp32", threads=1)
    assert (loaded.alone, loaded.engine) == ("", ours.engine)
    assert loaded.sha256 == bundle.fingerprint(plain)
    served = Served(
        {"plain": loaded, "ours": ours},
        {"plain": classifier, "ours": Classifier.load(tmp_path / "ours", precision="fp32", threads=1)},
    )
    mixed = served.mix(["plain", "ours"])
    assert_equal(mixed.answered_by(served.engine), mixed.expected)


def test_in_bf16_clear_answers_keep_their_label_and_logits_stay_near(
    encoder_of: Callable[[str], Files], tmp_path: Path
) -> None:
    made = {name: made for name, made in ON_BERT.items() if made[1].get("task") != "multi_label"}
    served = serve(tmp_path, encoder_of("bert"), made, BF16)
    exact = {name: Classifier.load(tmp_path / name, precision="fp32", threads=1) for name in made}
    mixed = Served(served.adapters, exact).mix(list(made))
    clear = 0
    for found, expected in zip(mixed.answered_by(served.engine), mixed.expected, strict=True):
        np.testing.assert_allclose(found, expected, atol=0.05)
        second, first = np.sort(expected)[-2:]
        if first - second > 0.1:
            clear += 1
            assert found.argmax() == expected.argmax()
    assert clear > len(mixed.items) / 2


def test_an_adapter_that_is_loaded_twice_has_the_same_fingerprint_and_weights_of_its_own(
    encoder_of: Callable[[str], Files], tmp_path: Path
) -> None:
    folder = write_bundle(tmp_path / "one", encoder_of("bert"), TWO)
    adapters = Adapters(FP32)
    one, other = adapters.load("one", folder), adapters.load("other", folder)
    assert one.sha256 == other.sha256
    assert one.engine is other.engine
    assert one.weights is not other.weights


def test_an_adapter_that_was_merged_shares_its_encoder_once_another_comes(
    encoder_of: Callable[[str], Files], tmp_path: Path
) -> None:
    folders = {name: write_bundle(tmp_path / name, encoder_of("bert"), THREE, seed) for seed, name in enumerate("ab")}
    expected = {name: Classifier.load(folder, precision="fp32", threads=1) for name, folder in folders.items()}

    async def come() -> list[Adapter]:
        await service.load("a", folders["a"], merged=True)
        alone = service.adapters.find("a")
        assert not await service.load("b", folders["b"])
        return [alone, service.adapters.find("a"), service.adapters.find("b")]

    service = Service(Adapters(FP32), Limits())
    try:
        alone, a, b = asyncio.run(come())
    finally:
        service.close()
    assert (alone.is_merged, a.is_merged, b.is_merged) == (True, False, False)
    assert a.engine is b.engine
    assert alone.sha256 == a.sha256
    for adapter, name in ((alone, "a"), (a, "a"), (b, "b")):
        tokens = adapter.encode(TEXTS)
        (found,) = adapter.engine.run([[Item(adapter.weights, tokens, text) for text in range(len(TEXTS))]])
        np.testing.assert_allclose(found, expected[name].logits(tokens), atol=1e-5)


def test_an_adapter_that_is_taken_out_while_it_is_loaded_anew_stays_out(
    encoder_of: Callable[[str], Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: write_bundle(tmp_path / name, encoder_of("bert"), THREE, seed) for seed, name in enumerate("ab")}
    service = Service(Adapters(FP32), Limits())
    load = Adapters.load

    def taking_it_out(adapters: Adapters, name: str, *arguments: Any, **named: Any) -> Adapter:
        if name == "a" and not named["merged"]:
            adapters.remove("a")
        return load(adapters, name, *arguments, **named)

    async def come() -> None:
        await service.load("a", folders["a"], merged=True)
        monkeypatch.setattr(Adapters, "load", taking_it_out)
        await service.load("b", folders["b"])

    try:
        asyncio.run(come())
    finally:
        service.close()
    assert [adapter.name for adapter in service.adapters.described()] == ["b"]
