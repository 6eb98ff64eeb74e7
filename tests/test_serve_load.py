"""Mixed load on the real service: right and wrong requests, hang-ups, adapters that come and go."""

import http.client
import json
import random
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from serve import SEVERAL, reviews, service
from untrained import write_bundle

from lorafit import Classifier, encoders

TEXTS = 40
ASKERS = 6
SETTLED = 0.25  # of the time, after which memory may not grow any more


@dataclass
class World:
    """What may be asked, and what then has to come: probabilities by the bundle's SHA-256 and the text."""

    port: int
    texts: list[str]
    expected: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    by_name: dict[str, set[str]] = field(default_factory=dict)
    answered: int = 0
    faults: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


def call(connection: http.client.HTTPConnection, method: str, path: str, body: object) -> tuple[int, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, content, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    said = answer.read()
    return answer.status, json.loads(said) if said else None


def ask_rightly(world: World, connection: http.client.HTTPConnection, chance: random.Random, name: str) -> None:
    numbers = chance.choices(range(len(world.texts)), k=chance.choice([1, 1, 1, 2, 4]))
    status, said = call(connection, "POST", "/predict", {"texts": [world.texts[n] for n in numbers], "adapter": name})
    if status != 200 or said["adapter"] != name or said["sha256"] not in world.by_name[name]:
        world.faults.append(f"{name}: {status} {said}")
        return
    for number, prediction in zip(numbers, said["predictions"], strict=True):
        wanted = world.expected[said["sha256"]][number]
        found = {score["label"]: score["score"] for score in prediction["scores"]}
        if found.keys() != wanted.keys() or max(abs(found[label] - wanted[label]) for label in wanted) > 0.02:
            world.faults.append(f"{name}, text {number}: {found} in place of {wanted}")
    world.answered += 1


WRONG: list[tuple[bytes | object, int]] = [
    ({"texts": "a", "adapter": "nobody"}, 404),
    ({"texts": "a"}, 400),
    ({"texts": 5}, 422),
    ({"texts": [" "], "adapter": "a0"}, 422),
    ({"texts": ["a"] * 300, "adapter": "a0"}, 413),
    (b"{", 400),
    (b'{"texts": "' + b"a" * 1_100_000 + b'"}', 413),
    (b'{"texts": "\xff"}', 400),
    (b"[" * 50_000, 400),
]


def ask(world: World, seed: int) -> None:
    chance = random.Random(seed)
    connection = http.client.HTTPConnection("127.0.0.1", world.port, timeout=60)
    names = [f"a{number}" for number in range(len(SEVERAL))] + ["changing"]
    while not world.over.is_set():
        what = chance.random()
        if what < 0.8:
            ask_rightly(world, connection, chance, chance.choice(names))
        elif what < 0.95:
            body, wanted = chance.choice(WRONG)
            status, said = call(connection, "POST", "/predict", body)
            if status != wanted or set(said) != {"error", "error_type"}:
                world.faults.append(f"{status} in place of {wanted}: {said}")
            if status == 413:  # after which the service closes
                connection.close()
        else:
            with socket.create_connection(("127.0.0.1", world.port)) as gone:
                body = json.dumps({"texts": world.texts[:8], "adapter": "a0"}).encode()
                head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
                gone.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
    connection.close()


def come_and_go(world: World) -> None:
    """One name is put again and again with one of two bundles; another comes and goes."""
    chance = random.Random(99)
    connection = http.client.HTTPConnection("127.0.0.1", world.port, timeout=60)
    while not world.over.is_set():
        for method, path, body, wanted in (
            ("PUT", "/adapters/changing", {"path": chance.choice(["a1", "a6"])}, {200}),
            ("PUT", "/adapters/passing", {"path": chance.choice(["a2", "a5"])}, {201}),
            ("PUT", "/adapters/passing", {"path": "../outside"}, {403}),
            ("PUT", "/adapters/passing", {"path": "nothing"}, {422}),
        ):
            status, said = call(connection, method, path, body)
            if status not in wanted:
                world.faults.append(f"{method} {path}: {status} {said}")
        ask_rightly(world, connection, chance, "passing")
        status, said = call(connection, "DELETE", "/adapters/passing", b"")
        if status != 204:
            world.faults.append(f"DELETE: {status} {said}")
        time.sleep(0.2)
    connection.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "minutes", [pytest.param(0.3, id="seconds"), pytest.param(30, id="half an hour", marks=pytest.mark.soak)]
)
def test_under_mixed_load_nothing_fails_grows_or_is_answered_by_another(minutes: float, tmp_path: Path) -> None:
    files, texts = encoders.locate("bundled:minilm"), [text[:2000] for text in reviews()[:TEXTS]]
    world, folders = World(0, texts), []
    for number, described in enumerate(SEVERAL):
        labels = [f"label {label}" for label in range(described["labels"])]
        other = {key: value for key, value in described.items() if key != "labels"}
        folder = write_bundle(tmp_path / f"a{number}", files, labels, number, max_tokens=256, **other)
        classifier = Classifier.load(folder)
        rows = classifier.probabilities(texts)
        folders.append((folder, [dict(zip(labels, map(float, row), strict=True)) for row in rows]))
    with service(*(folder for folder, _ in folders), f"changing={folders[1][0]}", "--adapters-dir", tmp_path) as (
        port,
        process,
    ):
        world.port = port
        connection = http.client.HTTPConnection("127.0.0.1", port)
        _, listed = call(connection, "GET", "/adapters", b"")
        known = {adapter["name"]: adapter["sha256"] for adapter in listed["adapters"]}
        for number, (_, expected) in enumerate(folders):
            world.expected[known[f"a{number}"]] = expected
            world.by_name[f"a{number}"] = {known[f"a{number}"]}
        world.by_name["changing"] = {known["a1"], known["a6"]}
        world.by_name["passing"] = {known["a2"], known["a5"]}
        connection.close()
        memory = under_load(world, process, minutes * 60)
        status, _ = call(connection, "GET", "/ready", b"")
        connection.close()
    assert world.faults == []
    assert status == 200
    assert world.answered > 2 * minutes * 60
    settled = memory[int(len(memory) * SETTLED) :]
    half = len(settled) // 2
    if minutes > 1:
        assert max(settled[half:]) < 1.05 * max(settled[:half])


def under_load(world: World, process: psutil.Process, seconds: float) -> list[int]:
    """Return the service's memory in bytes, each second."""
    threads = [threading.Thread(target=ask, args=(world, seed)) for seed in range(ASKERS)]
    threads.append(threading.Thread(target=come_and_go, args=(world,)))
    for thread in threads:
        thread.start()
    memory, end = [], time.monotonic() + seconds
    while time.monotonic() < end and all(thread.is_alive() for thread in threads):
        memory.append(process.memory_full_info().uss)
        time.sleep(1)
    died = not all(thread.is_alive() for thread in threads)
    world.over.set()
    for thread in threads:
        thread.join()
    if died:
        world.faults.append("a thread that asks has died")
    return memory
