"""Measure the service beside bulk prediction and beside a plain service, into results/serve.json.

    python benchmarks/serve.py [RUN]          (make bench-serve)

Without RUN the demo is trained first, in a folder of its own. Everything on loopback, real IMDB reviews, one a request;
what asks runs on the same cores.

* saturated: 64 connections, each asks again at once. In turn with `bulk.score` of the same reviews, and with a plain
  FastAPI + transformers pipeline service on the merged model, also asked by one connection at a time.
* half load: half of the saturated rate for a minute, arriving by chance; seconds from the arrival on.
* eight adapters of other ranks, layers and labels, in turn with one of them.
* resident memory with one adapter and with 64 (r=8), after the same load, in turn, for it differs from start to start;
  seconds from PUT to the first answer.
* the same bundle's int8 export on OpenVINO, saturated.
"""

import itertools
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import load
import pandas as pd
import psutil
import workload
from untrained import write_bundle

from lorafit import Classifier, bulk, bundled, console, encoders, pipeline, tables
from lorafit.export import export

ROOT = Path(__file__).parents[1]
ROUNDS, SECONDS, CONNECTIONS = 3, 15.0, 64
REVIEWS = 1000
SEVERAL: list[dict[str, Any]] = [
    {"labels": 2, "lora": {"rank": 8, "targets": ["query", "value"]}},
    {"labels": 3, "lora": {"rank": 4, "targets": ["query", "value"]}},
    {"labels": 5, "lora": {"rank": 16, "targets": "attention"}},
    {"labels": 2, "lora": {"rank": 8, "targets": "all-linear"}},
    {"labels": 20, "lora": {"rank": 32, "targets": ["query", "value"]}},
    {"labels": 4, "lora": {"rank": 8, "targets": "all-linear"}, "task": "multi_label"},
    {"labels": 7, "lora": {"rank": 2, "targets": "all-linear"}},
    {"labels": 2, "lora": {"rank": 8, "targets": ["query", "value"], "layers": "top:3"}},
]


def reviews() -> list[str]:
    """Return the last of the bundled IMDB reviews."""
    found = bundled.reviews("imdb")
    table = tables.read(found.file)
    return [str(text) for text in table[table["source"] == found.source]["text"].tolist()[-REVIEWS:]]


@contextmanager
def service(*arguments: object) -> Iterator[tuple[int, psutil.Process]]:
    """Run `lorafit serve` on a free port; yields port and process."""
    command = [sys.executable, "-m", "lorafit", "serve", *map(str, arguments), "--port", "0"]
    with tempfile.NamedTemporaryFile("w+") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            while not (found := re.search(r'"listening", "url": "[^"]*:(\d+)"', Path(log.name).read_text())):
                if process.poll() is not None:
                    raise RuntimeError(Path(log.name).read_text())
                time.sleep(0.05)
            yield int(found[1]), psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


@contextmanager
def plain_service(merged: Path) -> Iterator[int]:
    """Run the plain peer on a free port; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(Path(__file__).with_name("serve_plain.py")), str(merged), str(port)]
    with subprocess.Popen(command) as process:
        try:
            for _ in range(300):
                time.sleep(0.2)
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
            yield port
        finally:
            process.terminate()
            process.wait()


def asking(texts: Sequence[str], names: Sequence[str | None] = (None,)) -> Callable[[], Iterator[bytes]]:
    """Return what gives requests without end: each text, each by the next of the names."""

    def requests() -> Iterator[bytes]:
        for text, name in zip(itertools.cycle(texts), itertools.cycle(names), strict=False):
            yield load.request({"texts": text} | ({"adapter": name} if name else {}))

    return requests


def bulk_rate(bundle: Path, texts_file: Path) -> float:
    """Return texts a second of bulk prediction, measured in a process of its own: the second time it runs."""
    command = [sys.executable, __file__, "--bulk", str(bundle), str(texts_file)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _bulk(bundle: Path, texts_file: Path) -> None:
    classifier = Classifier.load(bundle)
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        bulk.score(lambda: classifier, texts_file, texts_file.with_name("scored.parquet"), overwrite=True)
        seconds = time.perf_counter() - start
    print(len(pd.read_parquet(texts_file)) / seconds)


def beside_bulk_and_plain(run: Path, folder: Path, texts: list[str]) -> dict[str, Any]:
    """Return the rates of service, bulk and plain service, in turn, and the service's times at half load."""
    file = folder / "reviews.parquet"
    pd.DataFrame({"text": texts}).to_parquet(file)
    merged = folder / "merged"
    export(run, "merged", merged)
    rates: dict[str, list[float]] = {"bulk": [], "service": [], "plain": [], "plain_one_connection": []}
    seen: list[load.Seen] = []
    with service(run) as (port, _), plain_service(merged) as plain:
        for _ in range(ROUNDS):
            rates["bulk"].append(bulk_rate(run, file))
            seen.append(load.saturate(port, asking(texts), CONNECTIONS, SECONDS))
            rates["service"].append(seen[-1].per_second)
            rates["plain"].append(load.saturate(plain, asking(texts), CONNECTIONS, SECONDS).per_second)
            rates["plain_one_connection"].append(load.saturate(plain, asking(texts), 1, SECONDS / 2).per_second)
        found = {name: statistics.median(some) for name, some in rates.items()}
        half = [load.steady(port, asking(texts), found["service"] / 2, 4 * SECONDS) for _ in range(ROUNDS)]
    by_ratio = sorted((some.as_record() for some in half), key=lambda record: record["p99_share_of_median"])
    return {
        **{f"{name}_per_second": round(rate, 1) for name, rate in found.items()},
        "service_share_of_bulk": round(found["service"] / found["bulk"], 3),
        "service_times_plain": round(found["service"] / found["plain"], 2),
        "service_times_plain_one_connection": round(found["service"] / found["plain_one_connection"], 2),
        "saturated": seen[-1].as_record(),
        "half_load": by_ratio[len(by_ratio) // 2],
        "rounds": {name: [round(rate, 1) for rate in some] for name, some in rates.items()},
        "half_load_rounds": by_ratio,
    }


def mixed(folder: Path, texts: list[str]) -> dict[str, Any]:
    """Return the rate of eight adapters, requests going to each in turn, beside that of one of them."""
    files = encoders.locate("bundled:minilm")
    named = []
    for number, described in enumerate(SEVERAL):
        labels = [f"label {label}" for label in range(described["labels"])]
        other = {key: value for key, value in described.items() if key != "labels"}
        named.append(f"a{number}={write_bundle(folder / f'a{number}', files, labels, number, max_tokens=512, **other)}")
    names = [name.partition("=")[0] for name in named]
    rates: dict[str, list[float]] = {"one": [], "eight": []}
    with service(*named) as (port, _):
        for _ in range(ROUNDS):
            for which, asked in (("one", names[:1]), ("eight", names)):
                rates[which].append(load.saturate(port, asking(texts, asked), CONNECTIONS, SECONDS).per_second)
    one, eight = (statistics.median(some) for some in rates.values())
    return {
        "one_per_second": round(one, 1),
        "eight_per_second": round(eight, 1),
        "eight_share_of_one": round(eight / one, 3),
        "adapters": SEVERAL,
        "rounds": {name: [round(rate, 1) for rate in some] for name, some in rates.items()},
    }


def memory_and_new(folder: Path, texts: list[str]) -> dict[str, Any]:
    """Return the service's memory with one adapter and with 64, and how long a new one takes to be in service."""
    files = encoders.locate("bundled:minilm")
    for number in range(64):
        labels = [f"label {label}" for label in range(2 + number % 4)]
        write_bundle(folder / f"m{number}", files, labels, number, lora={"rank": 8, "targets": ["query", "value"]})
    held: dict[int, list[int]] = {1: [], 64: []}
    new: list[float] = []
    for turn in range(ROUNDS):
        for count, seen in held.items():
            names = [f"m{number}" for number in range(count)]
            with service(*(folder / name for name in names), "--adapters-dir", folder) as (port, process):
                load.saturate(port, asking(texts, names), CONNECTIONS, SECONDS)
                seen.append(process.memory_info().rss)
                if count == 64:
                    new.append(round(_put(port, "new", f"m{turn}"), 3))
    one, many = (statistics.median(seen) for seen in held.values())
    return {
        "bytes_with_1": one,
        "bytes_with_64": many,
        "memory_64_times_1": round(many / one, 3),
        "new_adapter_seconds": new,
        "rounds": held,
    }


def _put(port: int, name: str, path: str) -> float:
    """Return the seconds from a PUT to the first answer of the new adapter."""
    start = time.perf_counter()
    for method, where, body in (
        ("PUT", f"/adapters/{name}", {"path": path}),
        ("POST", "/predict", {"texts": "A film to remember.", "adapter": name}),
    ):
        asked = urllib.request.Request(f"http://127.0.0.1:{port}{where}", json.dumps(body).encode(), method=method)
        asked.add_header("Content-Type", "application/json")
        urllib.request.urlopen(asked).read()
    return time.perf_counter() - start


def on_int8(run: Path, folder: Path, texts: list[str]) -> dict[str, Any]:
    """Return the saturated rate of the bundle's int8 export."""
    out = folder / "int8"
    export(run, "openvino-int8", out)
    with service(run, "--backend", out) as (port, _):
        return load.saturate(port, asking(texts), CONNECTIONS, SECONDS).as_record()


def main(run: Path | None) -> None:
    """Measure, and write the results."""
    console.silence()
    texts = reviews()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        trained = run or pipeline.train(workload.DEMO, folder / "demo").path
        record = {
            **workload.circumstances(),
            "connections": CONNECTIONS,
            "seconds_each": SECONDS,
            "reviews": REVIEWS,
            "one_adapter": beside_bulk_and_plain(trained, folder, texts),
            "mixed": mixed(folder, texts),
            "many": memory_and_new(folder, texts),
            "int8": on_int8(trained, folder, texts),
        }
    (ROOT / "results" / "serve.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bulk"]:
        console.silence()
        _bulk(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
