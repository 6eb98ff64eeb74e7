"""Measure a folder answered on Ray beside a file answered by one process; writes results/ray_scoring.json.

    python benchmarks/ray_scoring.py [RUN]           (make bench-ray: about a quarter of an hour)

* 12,000 reviews by one process with two threads (`lorafit predict --input FILE`), and by two workers of one core each
  (`--ray --input DIR`), in turn; 6,000 by one worker of one core, for the model of docs/capacity.md to start from. Of
  each the whole command's seconds, and the rate while answers come: the slope of rows over time;
* how many shards a second Ray Data hands out, to workers that do nothing with them.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import workload

from lorafit import console, data, pipeline
from lorafit.bulk import Scored, score
from lorafit.cluster import connection
from lorafit.predict import Classifier
from lorafit.tokens import encode

ROOT = Path(__file__).parents[1]
ROUNDS = 3
REVIEWS = {"two": 12_000, "one": 6_000}
FILES = 4
BLOCKS = 2_000


def write_reviews(folder: Path, count: int) -> tuple[Path, Path]:
    """Return a file with so many distinct reviews, and a folder with the same in several files."""
    reviews = data.open_source("bundled:imdb").table["text"].drop_duplicates().sample(count, random_state=0)
    table = pd.DataFrame({"text": reviews.tolist()})
    file, parts = folder / f"{count}.parquet", folder / str(count)
    parts.mkdir()
    table.to_parquet(file)
    for place, rows in enumerate(np.array_split(table.index, FILES)):
        table.loc[rows].to_parquet(parts / f"{place}.parquet", index=False)
    return file, parts


def command(*words: object) -> float:
    """Return the seconds that a command takes from start to end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "lorafit", *map(str, words)], check=True, capture_output=True)
    return time.perf_counter() - start


def slope(target: Path) -> float:
    """Return rows a second while a folder's parts were written."""
    files = sorted(target.glob("part-*.parquet"), key=lambda file: file.stat().st_mtime_ns)
    rows = np.cumsum([pq.read_metadata(file).num_rows for file in files])
    return float(np.polyfit([file.stat().st_mtime for file in files], rows, 1)[0])


def alone(run: Path, source: Path, target: Path) -> dict[str, float]:
    """Return the rate and the seconds of one process on all cores."""
    seconds = command("predict", run, "--input", source, "--output", target, "--overwrite")
    rate = in_fresh_process("rate", run, source, target)["rows_per_second"]
    return {"seconds": seconds, "rows_per_second": rate}


def on_ray(run: Path, source: Path, target: Path, *where: object) -> dict[str, float]:
    """Return the rate and the seconds of workers on Ray."""
    seconds = command("predict", run, "--input", source, "--output", target, "--ray", *where)
    return {"seconds": seconds, "rows_per_second": slope(target)}


def rate(run: Path, source: Path, target: Path) -> dict[str, float]:
    """Return rows a second of `bulk.score` with a classifier that is loaded and has answered before."""
    classifier = Classifier.load(run)
    classifier.predict(["A film to remember."])
    found: Scored = score(lambda: classifier, source, target, overwrite=True)
    return {"rows_per_second": found.rows_per_second}


def in_fresh_process(what: str, *paths: Path) -> dict[str, float]:
    """Return what `rate` or `handed_out` finds there."""
    words = [sys.executable, __file__, what, *map(str, paths)]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(said.splitlines()[-1]))


@contextmanager
def cluster_of_one_core() -> Iterator[str]:
    """Yield the address of a Ray cluster with one core."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield str(cluster.address)
    finally:
        cluster.shutdown()


class Nothing:
    """A worker that gives back what it is handed."""

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the block."""
        return block


def handed_out() -> dict[str, float]:
    """Return how many blocks of one number Ray Data hands to two workers a second, once it has begun."""
    with connection.connected(connection.LOCAL):
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False
        blocks = ray.data.from_items(list(range(BLOCKS)), override_num_blocks=BLOCKS)
        given = blocks.map_batches(Nothing, batch_size=None, compute=ray.data.ActorPoolStrategy(size=2), num_cpus=1)
        times = [time.perf_counter() for _ in given.iter_batches(batch_size=None, prefetch_batches=0)]
    return {"blocks_per_second": (len(times) - 1) / (times[-1] - times[0])}


def measure(run: Path, folder: Path) -> dict[str, Any]:
    """Return all figures."""
    file, parts = write_reviews(folder, REVIEWS["two"])
    _, fewer = write_reviews(folder, REVIEWS["one"])
    found: dict[str, list[dict[str, float]]] = {"alone": [], "two workers": [], "one worker": []}
    for number in range(ROUNDS):
        found["alone"].append(alone(run, file, folder / "alone.parquet"))
        found["two workers"].append(on_ray(run, parts, folder / f"two-{number}"))
        print({name: rounds[-1:] for name, rounds in found.items()}, flush=True)
    with cluster_of_one_core() as address:
        found["one worker"].append(on_ray(run, fewer, folder / "one", address))
    print("one worker", found["one worker"], flush=True)
    middle = {
        name: {key: round(statistics.median(one[key] for one in rounds), 2) for key in rounds[0]}
        for name, rounds in found.items()
    }
    tokens = encode(pd.read_parquet(file)["text"].tolist(), Classifier.load(run).tokenizer, 512)
    two, by_itself = middle["two workers"], middle["alone"]
    return {
        "rounds": ROUNDS,
        "reviews": REVIEWS,
        "mean_tokens": round(float(tokens.lengths.mean()), 1),
        "bytes_read_per_review": round(sum(part.stat().st_size for part in parts.iterdir()) / REVIEWS["two"], 1),
        "bytes_written_per_review": round(
            sum(part.stat().st_size for part in (folder / "two-0").glob("*.parquet")) / REVIEWS["two"], 1
        ),
        "medians": middle,
        "of_rounds": found,
        "rate: two workers / alone": round(two["rows_per_second"] / by_itself["rows_per_second"], 3),
        "whole command: two workers / alone": round(by_itself["seconds"] / two["seconds"], 3),
        "blocks_per_second": round(in_fresh_process("handed_out")["blocks_per_second"], 1),
    }


def main(given: str | None) -> None:
    """Measure, and write the results."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run = Path(given) if given else pipeline.train(workload.DEMO, folder / "demo").path
        found = measure(run.absolute(), folder)
    (ROOT / "results" / "ray_scoring.json").write_text(json.dumps(workload.circumstances() | found, indent=2) + "\n")


if __name__ == "__main__":
    console.silence()
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    match sys.argv[1:]:
        case ["rate", run, source, target]:
            workload.report(rate(Path(run), Path(source), Path(target)))
        case ["handed_out"]:
            workload.report(handed_out())
        case [run]:
            main(run)
        case _:
            main(None)
