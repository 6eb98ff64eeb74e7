"""The service as it is: a process that many clients ask over HTTP, on loopback."""

import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import InferenceClient
from prometheus_client.parser import text_string_to_metric_families
from untrained import write_bundle

from lorafit import Classifier, bundle, encoders
from lorafit.data import Text
from lorafit.export import export
from lorafit.files import sha256_of
from tests.conftest import BLAME, PRAISE, Said, texts_and_labels

SECONDS = 60  # for what takes a few
SECRET = "zanzibar"  # a word of texts, which nobody else may get to see
KEY, OTHER_KEY = "a-key-of-twenty-four-chars", "another-key-that-is-known-too"
TWO, THREE = ["no", "yes"], ["low", "middle", "high"]
ADAPTERS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "two": (TWO, {"lora": {"rank": 2, "targets": ["query", "value"]}}),
    "three": (THREE, {"lora": {"rank": 8}}),
    "seven": ([f"topic {n}" for n in range(7)], {"lora": {"rank": 5, "variant": "rslora"}}),
    "several": ([f"mark {n}" for n in range(4)], {"task": "multi_label", "lora": {"rank": 4}}),
    "pairs": (THREE, {"text_pair": True, "max_tokens": 32}),
    "mean": (TWO, {"pooling": "mean", "lora": {"rank": 16, "targets": "attention"}}),
    "windows": (THREE, {"long_text": "windows:mean", "max_tokens": 16}),
    "top.1-x_": (TWO, {"lora": {"rank": 3, "layers": "top:1"}, "max_tokens": 24}),
}
TEXTS: list[Text] = [*texts_and_labels(12, seed=3)[0], PRAISE, BLAME, "film", "it was good " * 40]
PAIRS: list[Text] = [(PRAISE, BLAME), ("a film", "music"), ("good", "it was a story"), ("people " * 30, "was it?")]


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Service:
    """A service in a process of its own, and what it has written to its log."""

    process: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)
    url: str = ""
    key: str = ""

    def read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in list(self.lines)]

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return str(parts.hostname), int(parts.port or 0)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self.address, timeout=SECONDS)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Send a request on a connection of its own; what is no bytes goes as JSON."""
        connection = self.connect()
        try:
            send(connection, method, path, body, self.key, headers)
            return receive(connection)
        finally:
            connection.close()

    def predict(self, **body: Any) -> Answer:
        return self.ask("POST", "/predict", body)

    def logged(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first line of the log that is wanted, once it is there."""
        return wait_for(lambda: next(filter(wanted, self.records), None))


def send(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any, key: str = "", headers: Any = ()
) -> None:
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    given = {name.replace("_", "-"): value for name, value in dict(headers).items()}
    kind = {} if body is None else {"Content-Type": "application/json"}
    connection.request(method, path, content, kind | ({"Authorization": f"Bearer {key}"} if key else {}) | given)


def receive(connection: http.client.HTTPConnection) -> Answer:
    response = connection.getresponse()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def wait_for(found: Callable[[], Any]) -> Any:
    end = time.monotonic() + SECONDS
    while not (value := found()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)
    return value


@contextmanager
def running(*arguments: object, key: str = "") -> Iterator[Service]:
    command = [sys.executable, "-m", "lorafit", "serve", *map(str, arguments), "--port", "0", "--threads", "1"]
    process = subprocess.Popen([*command, "--precision", "fp32"], stderr=subprocess.PIPE, text=True, encoding="utf-8")
    service = Service(process, key=key)
    reader = threading.Thread(target=service.read)
    reader.start()
    try:
        wait_for(lambda: process.poll() is not None or any('"listening"' in line for line in service.lines))
        assert process.poll() is None, "".join(service.lines)
        service.url = next(record["url"] for record in service.records if record["event"] == "listening")
        yield service
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


@dataclass(frozen=True)
class Bundles:
    """Bundles on the tiny encoder, and what their own classifiers answer."""

    folder: Path
    classifiers: dict[str, Classifier]
    sha256: dict[str, str]
    named: list[str]


@pytest.fixture(scope="module")
def bundles(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder = tmp_path_factory.mktemp("bundles")
    files = encoders.locate(str(tiny))
    for number, (name, (labels, described)) in enumerate(ADAPTERS.items()):
        write_bundle(folder / name, files, labels, seed=number, **described)
    for number, name in enumerate(("new", "newer"), start=20):
        write_bundle(folder / "allowed" / name, files, TWO, seed=number)
    paths = {name: folder / name for name in ADAPTERS} | {name: folder / "allowed" / name for name in ("new", "newer")}
    (folder / "outside").mkdir()
    (folder / "allowed" / "leads-out").symlink_to(folder / "two")
    (folder / "allowed" / "circle").symlink_to(folder / "allowed" / "circle")
    (folder / "allowed" / "no bundle").mkdir()
    (folder / "allowed" / "damaged").symlink_to(shutil.copytree(folder / "two", folder / "allowed" / ".damaged"))
    with (folder / "allowed" / "damaged" / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    return Bundles(
        folder,
        {name: Classifier.load(path, precision="fp32", threads=1) for name, path in paths.items()},
        {name: bundle.fingerprint(path) for name, path in paths.items()},
        [f"{name}={paths[name]}" for name in ADAPTERS],
    )


@pytest.fixture(scope="module")
def service(bundles: Bundles) -> Iterator[Service]:
    allowed = bundles.folder / "allowed"
    with running(*bundles.named, "--adapters-dir", allowed, "--max-tokens", 2000) as found:
        yield found


@pytest.fixture(scope="module")
def guarded(bundles: Bundles) -> Iterator[Service]:
    """A service that asks for a key, takes in four texts, and reads very long ones, which keep it busy for a while."""
    file = bundles.folder / "keys"
    file.write_text(f"# for the tests\n{OTHER_KEY}\n\n{KEY}\n")
    limits = ("--max-queue", 4, "--max-tokens", 10**7, "--max-body-bytes", 4_000_000, "--max-texts", 100)
    with running(*bundles.named, "--default", "three", "--api-key-file", file, *limits, key=KEY) as found:
        yield found


@pytest.fixture(scope="module")
def hasty(bundles: Bundles) -> Iterator[Service]:
    """A service of one adapter, which gives up soon; Ctrl-C ends it."""
    with running(bundles.folder / "windows", "--timeout", 0.5, "--max-tokens", 10**7) as found:
        idle = found.connect()
        send(idle, "GET", "/health", None)
        receive(idle)
        yield found
        found.process.send_signal(signal.SIGINT)
        assert found.process.wait(SECONDS) == 0
        wait_for(lambda: '"stopped"' in found.lines[-1])
        idle.close()


def long_text(words: int) -> str:
    return " ".join(["film"] * words)


def as_json(texts: Sequence[Text]) -> list[Any]:
    return [list(text) if isinstance(text, tuple) else text for text in texts]


def expected_of(classifier: Classifier, texts: Sequence[Text]) -> list[dict[str, Any]]:
    """Return what the service is to answer, scores as a mapping."""
    return [
        {key: answer[key] for key in ("label", "labels") if key in answer}
        | {"scores": {label: answer[f"{label}_prob"] for label in classifier.labels}}
        for answer in classifier.predict(texts)
    ]


def assert_predictions(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        values = [score["score"] for score in one["scores"]]
        assert values == sorted(values, reverse=True)
        scores = {score["label"]: score["score"] for score in one["scores"]}
        assert scores == pytest.approx(other["scores"], abs=1e-5)
        assert {key: value for key, value in one.items() if key != "scores"} == {
            key: value for key, value in other.items() if key != "scores"
        }


def assert_refused(answer: Answer, status: int | None = None, sentence: str = "") -> str:
    """Check that an answer is a refusal of one sentence that quotes no text, and return the sentence."""
    assert answer.status == status if status else 400 <= answer.status < 500, answer
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json) == ["error", "error_type"]
    assert re.search(sentence, answer.json["error"]), answer.json["error"]
    assert SECRET not in answer.body.decode()
    assert "\n" not in answer.json["error"]
    return str(answer.json["error"])


# What is asked and answered


@pytest.mark.parametrize("name", ADAPTERS)
def test_each_adapter_answers_as_its_classifier_does(service: Service, bundles: Bundles, name: str) -> None:
    texts = PAIRS if name == "pairs" else TEXTS
    answer = service.predict(texts=as_json(texts), adapter=name)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert (answer.json["adapter"], answer.json["sha256"]) == (name, bundles.sha256[name])
    assert_predictions(answer.json["predictions"], expected_of(bundles.classifiers[name], texts))
    assert answer.json["cut_texts"] == bundles.classifiers[name].reader.encode(texts).cut


def test_a_single_text_need_not_be_in_a_list(service: Service, bundles: Bundles) -> None:
    answer = service.predict(texts=PRAISE, adapter="seven")
    assert_predictions(answer.json["predictions"], expected_of(bundles.classifiers["seven"], [PRAISE]))


def test_the_most_probable_labels_alone_can_be_asked_for(service: Service) -> None:
    every = service.predict(texts=TEXTS[:3], adapter="seven").json["predictions"]
    few = service.predict(texts=TEXTS[:3], adapter="seven", top_k=2).json["predictions"]
    more = service.predict(texts=TEXTS[:3], adapter="seven", top_k=100).json["predictions"]
    for most, all_labels, found in zip(few, every, more, strict=True):
        assert most["label"] == all_labels["label"] == most["scores"][0]["label"]
        assert [score["label"] for score in most["scores"]] == [s["label"] for s in all_labels["scores"][:2]]
        assert len(found["scores"]) == 7


def test_pairs_are_for_an_adapter_that_reads_pairs_and_single_texts_for_others(service: Service) -> None:
    assert_refused(service.predict(texts=[SECRET], adapter="pairs"), 422, "reads pairs of texts")
    assert_refused(service.predict(texts=[[SECRET, "b"]], adapter="two"), 422, "reads single texts")
    assert_refused(service.predict(texts=[[SECRET, "b", "c"]], adapter="pairs"), 422, "list of lists of two")
    assert_refused(service.predict(texts=["good", "  "], adapter="two"), 422, "Text 2 is empty")


@pytest.mark.parametrize("name", ["three", "several"])
def test_the_shapes_of_text_embeddings_inference_are_answered(service: Service, bundles: Bundles, name: str) -> None:
    classifier = bundles.classifiers[name]
    expected = expected_of(classifier, [PRAISE, BLAME])
    single = service.predict(inputs=PRAISE, adapter=name).json
    assert_predictions([{"scores": single}], [{"scores": expected[0]["scores"]}])
    for inputs in ([[PRAISE], [BLAME]],):
        answer = service.predict(inputs=inputs, adapter=name).json
        assert_predictions(
            [{"scores": scores} for scores in answer], [{"scores": other["scores"]} for other in expected]
        )
    assert_predictions(
        [{"scores": scores} for scores in service.predict(inputs=[[BLAME]], adapter=name).json],
        [{"scores": expected[1]["scores"]}],
    )


def test_two_strings_in_a_list_are_one_pair_to_text_embeddings_inference(service: Service, bundles: Bundles) -> None:
    expected = expected_of(bundles.classifiers["pairs"], [(PRAISE, BLAME), ("a film", "music")])
    one = service.predict(inputs=[PRAISE, BLAME], adapter="pairs").json
    assert_predictions([{"scores": one}], [{"scores": expected[0]["scores"]}])
    two = service.predict(inputs=[[PRAISE, BLAME], ["a film", "music"]], adapter="pairs").json
    assert_predictions([{"scores": scores} for scores in two], [{"scores": other["scores"]} for other in expected])
    assert_refused(service.predict(inputs=["a", "b", "c"], adapter="pairs"), 422, "a pair of texts")


@pytest.mark.parametrize("asked", [{"raw_scores": True}, {"parameters": {"function_to_apply": "none"}}])
def test_raw_scores_are_logits(service: Service, bundles: Bundles, asked: dict[str, Any]) -> None:
    classifier = bundles.classifiers["seven"]
    logits = classifier.logits(classifier.reader.encode([PRAISE]))[0]
    said = service.predict(inputs=PRAISE, adapter="seven", **asked).json
    scores = said[0] if "parameters" in asked else said  # then as the Hub answers
    found = {score["label"]: score["score"] for score in scores}
    assert found == pytest.approx(dict(zip(classifier.labels, map(float, logits), strict=True)), abs=1e-5)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_a_text_that_would_be_cut_is_refused_where_truncate_is_false(service: Service) -> None:
    cut = f"{SECRET} {long_text(100)}"
    sentence = "1 of 1 texts are over the 24 tokens that are read, and truncate is false"
    assert_refused(service.predict(inputs=cut, truncate=False, adapter="top.1-x_"), 413, sentence)
    assert service.predict(inputs="film", truncate=False, adapter="top.1-x_").status == 200
    assert service.predict(inputs=cut, truncate=True, adapter="top.1-x_").status == 200
    assert service.predict(inputs=cut, truncate=False, adapter="windows").status == 200
    assert service.predict(texts=[cut, "film"], adapter="top.1-x_").json["cut_texts"] == 1


def test_the_inference_client_of_the_hub_reads_the_answer(guarded: Service, bundles: Bundles) -> None:
    client = InferenceClient(token=KEY, timeout=SECONDS)
    expected = expected_of(bundles.classifiers["three"], [PRAISE])[0]["scores"]
    found = client.text_classification(PRAISE, model=f"{guarded.url}/predict")
    assert {element.label: element.score for element in found} == pytest.approx(expected, abs=1e-5)
    best = max(expected, key=lambda label: expected[label])
    (logit,) = client.text_classification(PRAISE, model=f"{guarded.url}/predict", top_k=1, function_to_apply="none")
    assert logit.label == best
    assert logit.score != pytest.approx(expected[best], abs=1e-3)


@pytest.mark.slow
def test_an_export_answers_beside_adapters_that_share_an_encoder(
    bundles: Bundles, trained: Path, tmp_path: Path
) -> None:
    made = export(trained, "openvino-int8", tmp_path / "int8").folder
    expected = expected_of(Classifier.load(trained, backend=made), TEXTS)
    allowed = bundles.folder / "allowed"
    with running(f"exported={trained}", "--backend", made, "--adapters-dir", allowed) as found:
        assert found.ask("PUT", "/adapters/shared", {"path": "new"}).status == 201
        of_shared = expected_of(bundles.classifiers["new"], TEXTS)
        described = {adapter["name"]: adapter for adapter in found.ask("GET", "/adapters").json["adapters"]}
        assert described["exported"]["backend"] == "openvino-int8"
        assert described["exported"]["sha256"] == sha256_of(made / "lorafit_export.json")
        assert bool(described["exported"]["alone"]) > bool(described["shared"]["alone"])
        asked = [("exported", number) for number in range(len(TEXTS))] + [("shared", n) for n in range(len(TEXTS))]
        random.Random(0).shuffle(asked)
        with ThreadPoolExecutor(8) as several:
            answers = list(several.map(lambda one: found.predict(texts=TEXTS[one[1]], adapter=one[0]), asked))
    for (name, number), answer in zip(asked, answers, strict=True):
        (one,) = answer.json["predictions"]
        wanted = (expected if name == "exported" else of_shared)[number]
        scores = {score["label"]: score["score"] for score in one["scores"]}
        # int8 rounds to what a batch holds.
        assert scores == pytest.approx(wanted["scores"], abs=0.02 if name == "exported" else 1e-5)


# Which adapter


def test_without_a_name_where_there_are_several_all_names_are_listed(service: Service) -> None:
    said = assert_refused(service.predict(texts=SECRET), 400, 'Say which adapter is to answer, as "adapter"')
    assert all(name in said for name in ADAPTERS)


@pytest.mark.parametrize("name", ["tow", "TWO", "nobody"])
def test_an_unknown_adapter_is_not_answered_by_another(service: Service, name: str) -> None:
    said = assert_refused(service.predict(texts=SECRET, adapter=name), 404, f"There is no adapter '{name}'")
    assert "several" in said
    assert ("Did you mean 'two'?" in said) == (name == "tow")


@pytest.mark.parametrize("name", ["", " two", "../two", "a" * 65, "-two", "tw\u00f6", "two\x00", 2, ["two"]])
def test_a_name_that_no_adapter_can_have_is_refused(service: Service, name: Any) -> None:
    assert_refused(service.predict(texts=SECRET, adapter=name), 422)


def test_the_default_answers_where_none_is_named(guarded: Service, bundles: Bundles) -> None:
    answer = guarded.predict(texts=PRAISE)
    assert (answer.json["adapter"], answer.json["sha256"]) == ("three", bundles.sha256["three"])
    listed = {adapter["name"]: adapter for adapter in guarded.ask("GET", "/adapters").json["adapters"]}
    assert [name for name, adapter in listed.items() if adapter["default"]] == ["three"]


def test_adapters_are_listed_with_what_they_are(service: Service, bundles: Bundles) -> None:
    listed = {adapter["name"]: adapter for adapter in service.ask("GET", "/adapters").json["adapters"]}
    assert list(listed) == sorted(listed)
    for name, (labels, described) in ADAPTERS.items():
        about = listed[name]
        assert (about["labels"], about["sha256"]) == (labels, bundles.sha256[name])
        assert about["task"] == described.get("task", "single_label")
        assert about["text_pair"] == described.get("text_pair", False)
        assert about["long_text"] == described.get("long_text", "head")
        assert (about["default"], about["alone"], about["backend"]) == (False, "", "fp32")


def test_a_thousand_interleaved_requests_are_all_answered_by_the_adapter_they_named(
    service: Service, bundles: Bundles
) -> None:
    pool = {name: PAIRS if name == "pairs" else TEXTS for name in ADAPTERS}
    expected = {name: expected_of(bundles.classifiers[name], texts) for name, texts in pool.items()}

    def ask(thread: int) -> int:
        chance, connection = random.Random(thread), service.connect()
        for _ in range(125):
            name = chance.choice(list(ADAPTERS))
            some = chance.sample(range(len(pool[name])), chance.choice([1, 1, 2, 4]))
            body = {"texts": as_json([pool[name][n] for n in some]), "adapter": name}
            send(connection, "POST", "/predict", body)
            answer = receive(connection)
            assert (answer.status, answer.json["adapter"], answer.json["sha256"]) == (200, name, bundles.sha256[name])
            assert_predictions(answer.json["predictions"], [expected[name][n] for n in some])
        connection.close()
        return 125

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(ask, range(8))) == 1000


# Adapters that come and go


def test_an_adapter_is_taken_in_replaced_and_taken_out(service: Service, bundles: Bundles) -> None:
    made = service.ask("PUT", "/adapters/guest", {"path": "new"})
    assert (made.status, made.json["name"], made.json["sha256"]) == (201, "guest", bundles.sha256["new"])
    for version in ("new", "newer"):
        if version == "newer":
            replaced = service.ask("PUT", "/adapters/guest", {"path": "newer"})
            assert (replaced.status, replaced.json["sha256"]) == (200, bundles.sha256["newer"])
        answer = service.predict(texts=as_json(TEXTS), adapter="guest").json
        assert answer["sha256"] == bundles.sha256[version]
        assert_predictions(answer["predictions"], expected_of(bundles.classifiers[version], TEXTS))
    gone = service.ask("DELETE", "/adapters/guest")
    assert (gone.status, gone.body) == (204, b"")
    assert_refused(service.predict(texts="a", adapter="guest"), 404)
    assert_refused(service.ask("DELETE", "/adapters/guest"), 404)
    assert service.ask("PUT", "/adapters/unasked", {"path": "new"}).status == 201
    assert service.ask("DELETE", "/adapters/unasked").status == 204


@pytest.mark.parametrize(
    "path",
    [
        "../two",
        "..",
        "/etc",
        "leads-out",
        "new/../../two",
        "circle",
        "a\x00b",
        "//etc",
        "~/x/../../..",
    ],
)
def test_an_adapter_elsewhere_is_not_loaded(service: Service, path: str) -> None:
    answer = service.ask("PUT", "/adapters/intruder", {"path": path})
    assert_refused(answer, 403)
    assert_refused(service.predict(texts="a", adapter="intruder"), 404)


@pytest.mark.parametrize("path", ["x" * 999, "new/" + "x" * 256], ids=len)
def test_a_path_that_is_too_long_for_the_system_is_refused(service: Service, path: str) -> None:
    assert_refused(service.ask("PUT", "/adapters/intruder", {"path": path}))


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("y/" * 499, "no run folder or adapter directory"),
        ("no bundle", "no adapter that lorafit can load"),
        ("nowhere", "no run folder or adapter directory"),
        ("damaged", "damaged|SHA-256|changed"),
        ("", "path"),
        ("z" * 1001, "path"),
    ],
)
def test_what_is_no_bundle_is_refused_in_one_sentence(service: Service, path: str, why: str) -> None:
    assert_refused(service.ask("PUT", "/adapters/intruder", {"path": path}), 422, why)
    assert_refused(service.predict(texts="a", adapter="intruder"), 404)


def test_a_bundle_that_can_not_take_anothers_place_leaves_it_there(service: Service, bundles: Bundles) -> None:
    assert_refused(service.ask("PUT", "/adapters/two", {"path": "damaged"}), 422)
    assert service.predict(texts="a", adapter="two").json["sha256"] == bundles.sha256["two"]


def test_a_service_without_a_folder_to_load_from_loads_nothing(guarded: Service, bundles: Bundles) -> None:
    answer = guarded.ask("PUT", "/adapters/intruder", {"path": str(bundles.folder / "two")})
    assert_refused(answer, 403, "started without --adapters-dir")


@pytest.mark.parametrize("name", ["-x", "a%20b", "%00", "a" * 65, "..%2Fx", "%C3%B6", "."])
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_an_adapters_name_has_letters_digits_and_few_marks(service: Service, method: str, name: str) -> None:
    assert_refused(service.ask(method, f"/adapters/{name}", {"path": "new"} if method == "PUT" else None))


def test_an_adapter_is_replaced_under_load_and_no_request_fails(service: Service, bundles: Bundles) -> None:
    assert service.ask("PUT", "/adapters/changing", {"path": "new"}).status == 201
    by_sha = {bundles.sha256[name]: expected_of(bundles.classifiers[name], TEXTS) for name in ("new", "newer")}
    stop, seen = threading.Event(), set()

    def ask(thread: int) -> int:
        chance, connection, count = random.Random(thread), service.connect(), 0
        while not stop.is_set():
            some = chance.sample(range(len(TEXTS)), 3)
            send(connection, "POST", "/predict", {"texts": [TEXTS[n] for n in some], "adapter": "changing"})
            answer = receive(connection)
            assert answer.status == 200, answer
            assert_predictions(answer.json["predictions"], [by_sha[answer.json["sha256"]][n] for n in some])
            seen.add(answer.json["sha256"])
            count += 1
        connection.close()
        return count

    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(ask, thread) for thread in range(4)]
        try:
            for turn in range(10):
                put = service.ask("PUT", "/adapters/changing", {"path": ("newer", "new")[turn % 2]})
                assert put.status == 200, put
        finally:
            stop.set()
        assert sum(future.result() for future in asked) > 20
    assert seen == set(by_sha)
    assert service.ask("DELETE", "/adapters/changing").status == 204


# Bodies


BODIES: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "a number": b"1",
    "nothing asked": b"{}",
    "no texts": b'{"texts": []}',
    "null texts": b'{"texts": null}',
    "texts of another kind": b'{"texts": [1, 2]}',
    "a deep pair": b'{"texts": [[["zanzibar"]]]}',
    "both shapes": b'{"texts": "zanzibar", "inputs": "zanzibar"}',
    "no JSON": b'{"texts": "zanzibar"',
    "two objects": b'{"texts": "a"}{"texts": "zanzibar"}',
    "not UTF-8": b'{"texts": "zanzibar \xff\xfe", "adapter": "two"}',
    "UTF-16": '{"texts": "zanzibar", "adapter": "two"'.encode("utf-16"),
    "NaN": b'{"texts": NaN, "adapter": "two"}',
    "NaN as a number": b'{"texts": "zanzibar", "top_k": NaN, "adapter": "two"}',
    "Infinity as a number": b'{"texts": "zanzibar", "top_k": Infinity, "adapter": "two"}',
    "a huge number": b'{"texts": "zanzibar", "adapter": "two", "top_k": ' + b"9" * 5000 + b"}",
    "no labels": b'{"texts": "zanzibar", "adapter": "two", "top_k": 0}',
    "a lone surrogate": b'{"texts": "zanzibar \\ud800", "adapter": "two"}',
    "a lone surrogate in a pair": b'{"texts": [["zanzibar", "\\udfff"]], "adapter": "pairs"}',
    "a lone surrogate as a name": b'{"texts": "zanzibar", "adapter": "\\ud800"}',
    "a lone surrogate as a key": b'{"\\ud800": "zanzibar", "texts": "zanzibar", "adapter": "two"}',
    "brackets": b'{"texts": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "braces": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "open brackets": b"[" * 100_000,
    "form": b"texts=zanzibar&adapter=two",
    "from the left": b'{"inputs": "zanzibar", "truncation_direction": "Left", "adapter": "two"}',
    "raw scores of another kind": b'{"inputs": "zanzibar", "raw_scores": "zanzibar", "adapter": "two"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_that_can_not_be_read_is_refused_and_not_quoted(service: Service, body: bytes) -> None:
    assert_refused(service.ask("POST", "/predict", body))
    assert service.predict(texts="good", adapter="two").status == 200


def test_a_text_that_was_sent_as_a_key_is_not_quoted(service: Service) -> None:
    answer = service.ask("POST", "/predict", {"texts": "a", "xylophone music": "a", "adapter": "two"})
    assert_refused(answer, 422)
    assert "xylophone" not in answer.body.decode() + "".join(service.lines)


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b'{"path": 1}', b'{"path": "\\ud800"}', b"[" * 100_000])
def test_a_place_that_can_not_be_read_is_refused(service: Service, body: bytes) -> None:
    assert_refused(service.ask("PUT", "/adapters/intruder", body))


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "\u00ff", ""]
)
def test_a_body_of_another_type_is_refused(service: Service, kind: str) -> None:
    body = {"texts": SECRET, "adapter": "two"}
    assert_refused(service.ask("POST", "/predict", body, Content_Type=kind), 422)


@pytest.mark.parametrize("body", [b"null", b'"zanzibar"', b"[]"])
def test_what_is_no_object_is_told_so(service: Service, body: bytes) -> None:
    assert_refused(service.ask("POST", "/predict", body), 422, "The body is no JSON object")


def ask_with_much(service: Service, size: int, *, chunked: bool) -> Answer:
    """Send a body of so many bytes, and read the answer; the service may stop to read more than 8 MB."""
    connection = service.connect()
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Type", "application/json")
    if service.key:
        connection.putheader("Authorization", f"Bearer {service.key}")
    connection.putheader(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(size))))
    connection.endheaders()
    piece = b" " * 100_000
    try:
        for _ in range(0, size, len(piece)):
            connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            connection.send(b"0\r\n\r\n")
    except (BrokenPipeError, ConnectionResetError):
        assert size > 8_000_000
    try:
        return receive(connection)
    finally:
        connection.close()


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
@pytest.mark.parametrize("size", [1_100_000, 5_000_000, 20_000_000])
def test_a_body_that_is_too_large_is_refused_and_its_sender_reads_why(
    service: Service, size: int, chunked: bool
) -> None:
    for _ in range(3):
        assert_refused(ask_with_much(service, size, chunked=chunked), 413, "larger than 1,000,000 bytes")
    assert service.predict(texts="good", adapter="two").status == 200


def test_too_many_texts_are_refused(service: Service) -> None:
    assert service.predict(texts=["a"] * 256, adapter="two").status == 200
    said = assert_refused(service.predict(texts=["a"] * 256 + [SECRET], adapter="two"), 413)
    assert said == "The request holds 257 texts; at most 256 are taken at once."
    assert_refused(service.predict(inputs=[["a"]] * 257, adapter="two"), 413)


def test_a_text_of_too_many_tokens_in_all_its_windows_is_refused(service: Service) -> None:
    text = f"{SECRET} {long_text(3000)}"
    said = assert_refused(service.predict(texts=["a", text], adapter="windows"), 413, "at most 2,000 are read of one")
    assert said.startswith("Text 2 has ")
    assert service.predict(texts=[text], adapter="two").status == 200  # of which only the head is read


# Limits


def test_without_a_key_or_with_another_nobody_is_answered(guarded: Service) -> None:
    for header in (
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Basic {KEY}",
        KEY,
        "Bearer \u00ff",
    ):
        for method, path in (("POST", "/predict"), ("GET", "/adapters"), ("GET", "/metrics"), ("GET", "/openapi.json")):
            body = {"texts": SECRET} if method == "POST" else None
            answer = guarded.ask(method, path, body, Authorization=header)
            assert_refused(answer, 401, "needs a key")
            assert answer.headers["www-authenticate"] == "Bearer"
    for method, path in (("DELETE", "/adapters/two"), ("PUT", "/adapters/two"), ("GET", "/nowhere")):
        assert_refused(guarded.ask(method, path, Authorization="Bearer wrong-and-long-enough"), 401)
    for header in (f"Bearer {KEY}", f"bearer {OTHER_KEY}"):
        assert guarded.ask("POST", "/predict", {"texts": "good"}, Authorization=header).status == 200


@pytest.mark.parametrize(("path", "status"), [("/health", "ok"), ("/ready", "ready")])
def test_probes_need_no_key(guarded: Service, path: str, status: str) -> None:
    answer = guarded.ask("GET", path, Authorization="")
    assert (answer.status, answer.json) == (200, {"status": status})


def slow_body(texts: int = 1, words: int = 120_000) -> dict[str, Any]:
    """Return a request that takes a second or two."""
    return {"texts": [f"{SECRET} {long_text(words // texts)}"] * texts, "adapter": "windows"}


def test_when_too_many_wait_more_are_refused_with_the_time_to_try_again(guarded: Service) -> None:
    with ThreadPoolExecutor(8) as threads:
        busy = [threads.submit(guarded.predict, **slow_body(2)) for _ in range(6)]
        answers = [future.result() for future in busy]
    refused = [answer for answer in answers if answer.status != 200]
    assert 0 < len(refused) < 6
    for answer in refused:
        assert_refused(answer, 429, r"texts wait already, and at most 4 may\. Try again in \d+ s\.")
        assert answer.json["error_type"] == "Overloaded"
        assert int(answer.headers["retry-after"]) >= 1
    assert guarded.predict(texts="good").status == 200


def test_a_request_larger_than_the_queue_is_answered_where_nobody_waits(guarded: Service) -> None:
    assert guarded.predict(texts=["good"] * 9).status == 200


def test_who_hangs_up_leaves_his_place_to_others(guarded: Service) -> None:
    before = len(guarded.records)
    connection = guarded.connect()
    send(connection, "POST", "/predict", slow_body(4, 400_000), KEY, {"X-Request-Id": "who-hangs-up"})
    wait_for(lambda: figures(guarded)["lorafit_waiting_texts"].samples[0].value > 0)
    assert guarded.predict(texts="good").status == 429
    connection.close()
    start = time.monotonic()
    wait_for(lambda: guarded.predict(texts="good").status == 200)
    line = guarded.logged(lambda record: record.get("id") == "who-hangs-up")
    assert (line["status"], line["texts"], line["adapter"]) == (499, 4, "windows")
    assert time.monotonic() - start < 10
    assert not any(record["level"] == "error" for record in guarded.records[before:])


def test_an_answer_that_takes_too_long_is_broken_off(hasty: Service) -> None:
    answer = hasty.predict(**slow_body(4, 150_000))
    assert (answer.status, list(answer.json)) == (504, ["error", "error_type"])
    assert answer.json["error"] == "The answer took longer than 0.5 seconds."
    wait_for(lambda: hasty.predict(texts="good").status == 200)


def test_the_only_adapter_answers_and_is_called_as_its_folder(hasty: Service, bundles: Bundles) -> None:
    answer = wait_for(lambda: next(filter(lambda found: found.status == 200, [hasty.predict(texts="good")]), None))
    assert (answer.json["adapter"], answer.json["sha256"]) == ("windows", bundles.sha256["windows"])


def begin_a_body(service: Service, size: int, start: bytes) -> http.client.HTTPConnection:
    """Send the head of a request and less of its body than the head says."""
    connection = service.connect()
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(size))
    connection.putheader("X-Request-Id", f"begun-{size}-{len(start)}")
    connection.endheaders()
    connection.send(start)
    return connection


def test_a_body_that_does_not_arrive_is_not_waited_for(hasty: Service) -> None:
    connection = begin_a_body(hasty, 100, b'{"texts": "zanzibar')
    assert_refused(receive(connection), 408, "The body took longer than 0.5 seconds to arrive")
    connection.close()


def test_a_body_that_is_too_large_and_does_not_arrive_is_refused_too(hasty: Service) -> None:
    connection = begin_a_body(hasty, 5_000_000, b'{"texts": "zanzibar')
    assert_refused(receive(connection))
    connection.close()


@pytest.mark.parametrize("size", [100, 500_000])
def test_who_hangs_up_amid_his_body_is_no_fault_of_the_service(service: Service, size: int) -> None:
    before = len(service.records)
    begin_a_body(service, size, b'{"texts": "zanzibar').close()
    line = service.logged(lambda record: record.get("id") == f"begun-{size}-19")
    assert 400 <= line["status"] < 500
    assert not any(record["level"] == "error" for record in service.records[before:])


# What it says of itself


def test_the_log_is_json_and_holds_no_text_and_no_key(service: Service, guarded: Service) -> None:
    for one in (service, guarded):
        one.predict(texts=[f"{SECRET} film"], adapter="two")
        one.ask("POST", f"/predict/{SECRET}", {"texts": SECRET})
        one.ask("GET", f"/{SECRET}?{SECRET}={SECRET}")
        one.ask("POST", "/predict", {"texts": f"{SECRET} \ud800", "adapter": "two"})
        one.ask("POST", "/predict", f'{{"texts": "{SECRET}'.encode())
        one.logged(lambda record: record.get("refused") == "The body is no JSON.")
        everything = "".join(one.lines)
        assert not any(word in everything for word in (SECRET, KEY, OTHER_KEY))
        for record in one.records:
            assert {"time", "level", "event"} <= record.keys()
        answered = [record for record in one.records if record["event"] == "request" and record["status"] == 200]
        assert {"id", "method", "path", "seconds"} <= answered[0].keys()
        assert any(record.get("tokens", 0) > 0 and record["texts"] == 1 for record in answered)


def figures(service: Service) -> dict[str, Any]:
    content = service.ask("GET", "/metrics").body.decode()
    assert SECRET not in content
    return {family.name: family for family in text_string_to_metric_families(content)}


def texts_counted(service: Service) -> dict[str, float]:
    samples = figures(service)["lorafit_texts"].samples
    return {sample.labels["adapter"]: sample.value for sample in samples if sample.name.endswith("_total")}


def test_figures_are_what_prometheus_reads_and_count_texts(service: Service) -> None:
    service.predict(texts="a", adapter="two")
    before = texts_counted(service)
    service.predict(texts=["a", "b", "c"], adapter="two")
    service.predict(texts=["a", " "], adapter="two")  # refused
    after = texts_counted(service)
    assert after["two"] - before["two"] == 3
    wanted = {"lorafit_requests", "lorafit_request_seconds", "lorafit_waiting_texts", "lorafit_batch_tokens"}
    assert wanted <= figures(service).keys()
    kind = service.ask("GET", "/metrics").headers["content-type"]
    assert kind.startswith("text/plain; version=")


def test_a_request_keeps_its_id_and_a_hostile_one_is_replaced(service: Service) -> None:
    assert service.ask("GET", "/health", X_Request_Id="abc-DEF_123").headers["x-request-id"] == "abc-DEF_123"
    for given in ("a b", '"}{"', "x" * 129, "\u00e9", "<script>", ""):
        made = service.ask("GET", "/adapters", X_Request_Id=given).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", made)
    ids = {service.ask("GET", "/health").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_the_openapi_says_what_can_be_asked_with_examples(service: Service) -> None:
    schema = service.ask("GET", "/openapi.json").json
    assert set(schema["paths"]) == {"/predict", "/adapters", "/adapters/{name}", "/health", "/ready", "/metrics"}
    examples = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert len(examples) >= 4
    for example in examples.values():
        name = "pairs" if example["value"].get("adapter") == "entailment" else "two"
        assert service.ask("POST", "/predict", {**example["value"], "adapter": name}).status == 200, example


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/docs", 404),
        ("GET", "/predict", 405),
        ("DELETE", "/predict", 405),
        ("GET", "/x/../y", 404),
    ],
)
def test_what_is_not_there_is_refused_in_the_same_form(service: Service, method: str, path: str, status: int) -> None:
    assert_refused(service.ask(method, path), status)


# The end


def test_sigterm_lets_every_request_that_was_sent_have_its_answer(bundles: Bundles) -> None:
    classifier = bundles.classifiers["windows"]
    pool = [long_text(words) for words in (20, 200, 800)]
    expected = expected_of(classifier, pool)
    with running(*bundles.named, "--max-tokens", 10**6) as service:
        sent: list[float] = []
        answered: list[float] = []
        signalled, started = threading.Event(), threading.Barrier(9)

        def ask(thread: int) -> None:
            chance, connection = random.Random(thread), service.connect()
            send(connection, "GET", "/health", None)
            receive(connection)
            started.wait(SECONDS)
            while not signalled.is_set():
                some = chance.choices(range(len(pool)), k=8)
                send(connection, "POST", "/predict", {"texts": [pool[n] for n in some], "adapter": "windows"})
                written = time.monotonic()
                try:
                    answer = receive(connection)
                except (OSError, http.client.HTTPException):
                    answer = Answer(0, {}, b"")
                sent.append(written)
                if answer.status == 200:
                    assert_predictions(answer.json["predictions"], [expected[n] for n in some])
                    answered.append(written)
            connection.close()

        with ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(ask, thread) for thread in range(8)]
            started.wait(SECONDS)
            time.sleep(0.5)
            at = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            signalled.set()
            for future in asked:
                future.result()
        assert service.process.wait(SECONDS) == 0
        before = [written for written in sent if written < at]
        assert len(before) >= 8
        assert set(before) <= set(answered)
        wait_for(lambda: service.lines and '"stopped"' in service.lines[-1])
        assert service.records[-1]["event"] == "stopped"
        with pytest.raises(OSError):
            service.ask("GET", "/health")


# What it does not begin with


def serve_refused(cli: Callable[..., Said], *arguments: object) -> str:
    said = cli("serve", *arguments)
    assert said.code == 2
    assert "Traceback" not in said.err
    return said.err


def test_an_address_that_others_reach_needs_a_key_or_the_word_that_it_needs_none(
    cli: Callable[..., Said], bundles: Bundles
) -> None:
    said = serve_refused(cli, bundles.folder / "two", "--host", "0.0.0.0")
    assert "0.0.0.0 can be reached from other machines, and there is no key" in said
    assert "--without-key" in said


def test_a_port_that_is_taken_is_refused_before_anything_is_loaded(cli: Callable[..., Said]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = serve_refused(cli, "nowhere", "--port", port)
    assert f"127.0.0.1:{port} can't be listened on: address already in use" in said


def test_arguments_that_can_not_be_served_are_refused_in_one_sentence(
    cli: Callable[..., Said], bundles: Bundles, tmp_path: Path
) -> None:
    two, three = bundles.folder / "two", bundles.folder / "three"
    for name, content in {"empty": "# none\n\n", "short": f"{KEY}\nshort\n", "good": KEY}.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "not text").write_bytes(b"\xff\xfe")
    refused: list[tuple[str, tuple[object, ...]]] = [
        ("There is no run folder or adapter directory nowhere.", ("nowhere",)),
        ("Two adapters are called 'two'.", (two, f"two={three}")),
        ("'a b' can't be an adapter's name", (f"a b={two}",)),
        ("'' can't be an adapter's name", (f"={two}",)),
        ("--default four: there is no adapter of that name among two, three.", (two, three, "--default", "four")),
        ("--backend serves a single bundle", (two, three, "--backend", tmp_path)),
        ("empty holds no API key.", (two, "--api-key-file", tmp_path / "empty")),
        ("the API key in line 2 has fewer than 16 characters", (two, "--api-key-file", tmp_path / "short")),
        ("not text holds no API keys: it is not UTF-8", (two, "--api-key-file", tmp_path / "not text")),
        ("can't be read", (two, "--api-key-file", tmp_path / "missing")),
        ("There is no folder missing to load adapters from.", (two, "--adapters-dir", "missing")),
        ("exclude each other", (two, "--without-key", "--api-key-file", tmp_path / "good")),
        ("There is no precision 'fp8'", (two, "--precision", "fp8")),
        ("can't be listened on", (two, "--host", "no.such.host.invalid", "--without-key")),
        ("can't be listened on", (two, "--host", "203.0.113.1", "--without-key")),
    ]
    for sentence, arguments in refused:
        said = serve_refused(cli, *arguments, *(() if "--host" in arguments else ("--port", 0)))
        assert sentence in " ".join(said.split()), said
        assert "short\n" not in said
