"""Measure near duplicates among 100,000 reviews, and write it to results/duplicates.json.

    python benchmarks/duplicates.py          (make bench-full)

The bundled 25,000 reviews, each four times: as it is, and with 0.5%, 1.5% and 4% of its words replaced. Which pairs are
alike is known by comparing the four texts of each review, shingles as strings, by code of its own.

* seconds and peak memory of `duplicates.find` in a fresh process, and of the whole `lorafit doctor` in another;
* recall: of the planted pairs of likeness 0.8 and more, those that stand in one group; precision: of the pairs
  reported, those whose likeness is 0.8 and more.
"""

import json
import random
import re
import subprocess
import sys
import tempfile
import time
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import workload

from lorafit import data, doctor, duplicates, recipe

ROOT = Path(__file__).parents[1]
CHANGED = (0.0, 0.005, 0.015, 0.04)  # of the words
LIKENESS_BINS = (0.8, 0.85, 0.9, 0.95, 1.0 + 1e-9)


def planted() -> pd.DataFrame:
    """Return every bundled review four times, the copies of one 25,000 rows apart; seeded."""
    table = data.open_source("bundled:imdb").table
    chance = random.Random(0)
    vocabulary = sorted({word for text in table["text"].head(2000) for word in text.split()})

    def changed(text: str, share: float) -> str:
        return " ".join(chance.choice(vocabulary) if chance.random() < share else word for word in text.split())

    copies = [table.assign(text=[changed(text, share) for text in table["text"]]) for share in CHANGED]
    return pd.concat(copies, ignore_index=True)


def shingles(text: str) -> set[tuple[str, ...]]:
    """Return what lorafit's documentation says that a text is compared by."""
    words = re.findall(r"\w+", data.TAG.sub(" ", text).casefold())
    return {tuple(words[place : place + 5]) for place in range(max(1, len(words) - 4))}


def likeness(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    """Return the Jaccard index."""
    return len(one & other) / len(one | other)


def measure(file: Path, what: str) -> None:
    """Run one candidate in this process, and report its time and memory; `find` keeps what it found beside the file."""
    start = time.perf_counter()
    if what == "find":
        texts = pd.read_parquet(file)["text"].tolist()
        start = time.perf_counter()
        found = duplicates.find(texts)
        seconds = time.perf_counter() - start
        group_of = np.full(len(texts), -1)
        for number, group in enumerate(found.groups):
            group_of[group] = number
        np.savez(file.with_suffix(".npz"), pairs=found.pairs, group_of=group_of)
    else:
        doctor.examine(recipe.for_file(file, "text", "label"))
        seconds = time.perf_counter() - start
    workload.report({"seconds": round(seconds, 1), "peak_memory_bytes": peak_memory_bytes()})


def peak_memory_bytes() -> int:
    """Return the most memory this process has held; getrusage would count the process that started it too (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def in_fresh_process(file: Path, what: str) -> dict[str, Any]:
    """Return what `measure` reports there."""
    command = [sys.executable, __file__, str(file), what]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(said.splitlines()[-1]))


def judged(texts: list[str], found: Any) -> dict[str, Any]:
    """Return recall by likeness, and precision, of the pairs that were found."""
    reviews = len(texts) // len(CHANGED)
    group_of = found["group_of"]
    planted_likeness, together = [], []
    for review in range(reviews):
        rows = range(review, len(texts), reviews)
        sets = {row: shingles(texts[row]) for row in rows}
        for one, other in combinations(rows, 2):
            planted_likeness.append(likeness(sets[one], sets[other]))
            together.append(group_of[one] >= 0 and group_of[one] == group_of[other])
    exact, joined = np.array(planted_likeness), np.array(together)
    right = [
        likeness(shingles(texts[one]), shingles(texts[other])) >= duplicates.THRESHOLD for one, other in found["pairs"]
    ]
    return {
        "planted_pairs": int((exact >= duplicates.THRESHOLD).sum()),
        "recall": round(float(joined[exact >= duplicates.THRESHOLD].mean()), 5),
        "recall_by_likeness": {
            f"{low:.2f} to {min(high, 1):.2f}": round(float(joined[(exact >= low) & (exact < high)].mean()), 5)
            for low, high in pairwise(LIKENESS_BINS)
        },
        "reported_pairs": len(right),
        "precision": round(float(np.mean(right)), 5),
    }


def main() -> None:
    """Measure, judge, and write the results."""
    table = planted()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "reviews.parquet"
        table.to_parquet(file)
        record = {
            **workload.circumstances(),
            "texts": len(table),
            "mean_words": round(float(np.mean([len(text.split()) for text in table["text"]])), 1),
            "words_changed": list(CHANGED),
            "find": in_fresh_process(file, "find"),
            "doctor": in_fresh_process(file, "doctor"),
            "found": judged(table["text"].tolist(), np.load(file.with_suffix(".npz"))),
        }
    (ROOT / "results" / "duplicates.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:]:
        measure(Path(sys.argv[1]), sys.argv[2])
    else:
        main()
