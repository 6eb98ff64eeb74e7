"""What a million, a billion and a trillion reviews cost: a model of the pieces, from what was measured of each.

python benchmarks/capacity.py           (make bench-ray; some seconds: it measures nothing but lengths)

From results/ray_scoring.json and results/workers.json, and the lengths of the demo's training reviews; writes
results/capacity.json, which docs/capacity.md shows. The model is checked against runs of one
worker and of two.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import workload

from lorafit.batches import Batches, shares
from lorafit.bulk.shards import rows_a_shard
from lorafit.cluster.scoring import blocks_of

RESULTS = Path(__file__).parents[1] / "results"
REVIEWS = {"1 million": 10**6, "1 billion": 10**9, "1 trillion": 10**12}
CORES = (16, 1_000, 100_000)
MOST_WORKERS = 15_000  # actors that Ray's developers say they test a cluster with; above, a worker has several cores
BATCH = 16  # the demo's
# Assumed, not measured: what an exchange of gradients takes between machines.
HOP_SECONDS = 50e-6
BYTES_PER_SECOND = 1.25e9  # 10 Gbit/s


@dataclass(frozen=True)
class Scoring:
    """What answering costs: core-seconds a review, seconds before the first answer, blocks handed out a second."""

    core_seconds: float
    start_seconds: float
    blocks_per_second: float

    def seconds(self, reviews: int, cores: int) -> float:
        """Return the whole command's time: workers take blocks of shards in turns, as fast as they are handed out."""
        workers = min(cores, MOST_WORKERS)
        shards = math.ceil(reviews / rows_a_shard(reviews, workers))
        blocks = blocks_of(shards, workers)
        turns = math.ceil(blocks / workers)
        a_block = reviews / blocks * self.core_seconds / (cores // workers)
        return self.start_seconds + max(turns * a_block, blocks / self.blocks_per_second + a_block)


@dataclass(frozen=True)
class Training:
    """What one pass of training costs: core-seconds a review, and bytes of gradients exchanged at each step."""

    core_seconds: float
    bytes: int
    imbalance: dict[int, float]

    def rate(self, workers: int, batch: int, exchange_seconds: float) -> float:
        """Return reviews a second: a step lasts as long as whoever has most tokens in it, and the exchange."""
        step = batch / workers * self.core_seconds * self.imbalance[workers] + exchange_seconds
        return batch / step

    def exchange_seconds(self, workers: int) -> float:
        """Return what a ring of machines takes to add up their gradients, as assumed."""
        rounds = 2 * (workers - 1)
        return rounds * (HOP_SECONDS + self.bytes / workers / BYTES_PER_SECOND)


def imbalance(workers: int) -> float:
    """Return by how much the largest share of a batch exceeds the mean, in tokens, over the demo's batches."""
    lengths = workload.reviews().splits["train"].tokens.lengths
    largest = total = 0.0
    for rows in Batches(lengths, BATCH):
        tokens = [int(lengths[some].sum()) for some in shares(rows, lengths, workers)]
        largest, total = largest + max(tokens), total + sum(tokens)
    return largest * workers / total


def of_scoring(measured: dict[str, Any]) -> tuple[Scoring, dict[str, dict[str, float]]]:
    """Return the model, and seconds of whole commands: predicted, and measured.

    A core's time is taken where all cores are busy, as on a cluster: one alone is faster. The start is one worker's.
    """
    one, two = measured["medians"]["one worker"], measured["medians"]["two workers"]
    start = one["seconds"] - measured["reviews"]["one"] / one["rows_per_second"]
    found = Scoring(2 / two["rows_per_second"], start, measured["blocks_per_second"])
    return found, {
        "one worker, the other core idle": {
            "predicted": found.seconds(measured["reviews"]["one"], 1),
            "measured": one["seconds"],
        },
        "two workers": {"predicted": found.seconds(measured["reviews"]["two"], 2), "measured": two["seconds"]},
    }


def of_training(measured: dict[str, Any], mean_tokens: float) -> tuple[Training, dict[str, dict[str, float]]]:
    """Return the model from one process on both cores, and tokens a second: predicted, and measured."""
    of_each = {name: found["tokens_per_second"] for name, found in measured["training"].items()}
    factors = {workers: imbalance(workers) for workers in (1, 2, 4, 8, 16)}
    found = Training(2 * mean_tokens / of_each["one"], measured["exchange"]["bytes"], factors)
    one, two = (
        mean_tokens * found.rate(workers, BATCH, exchange_seconds)
        for workers, exchange_seconds in ((1, 0.0), (2, measured["exchange"]["seconds"]))
    )
    return found, {
        "one worker, the other core idle": {"predicted": one, "measured": of_each["one, one thread"]},
        "two workers": {"predicted": two, "measured": of_each["two"]},
    }


def main() -> None:
    """Compute and save."""
    scored, trained = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("ray_scoring", "workers"))
    scoring, check = of_scoring(scored)
    mean_tokens = float(np.mean(workload.reviews().splits["train"].tokens.lengths))
    training, check_training = of_training(trained, mean_tokens)
    costs = {
        name: {
            str(cores): {
                "hours": scoring.seconds(reviews, cores) / 3600,
                "core_hours": scoring.seconds(reviews, cores) * cores / 3600,
                "useful_core_hours": reviews * scoring.core_seconds / 3600,
                "rows_a_shard": rows_a_shard(reviews, min(cores, MOST_WORKERS)),
                "shards": math.ceil(reviews / rows_a_shard(reviews, min(cores, MOST_WORKERS))),
                "bytes_per_second": reviews
                * (scored["bytes_read_per_review"] + scored["bytes_written_per_review"])
                / scoring.seconds(reviews, cores),
            }
            for cores in CORES
        }
        for name, reviews in REVIEWS.items()
    }
    pass_hours = {
        str(workers): {
            "reviews_per_second": training.rate(workers, BATCH, training.exchange_seconds(workers)),
            "exchange_share": training.exchange_seconds(workers)
            * training.rate(workers, BATCH, training.exchange_seconds(workers))
            / BATCH,
            "imbalance": training.imbalance[workers],
        }
        for workers in training.imbalance
    }
    found = {
        "scored_at": scored["commit"],
        "trained_at": trained["commit"],
        "date": scored["date"],
        "cores": scored["machine"]["cores"],
        "mean_tokens": scored["mean_tokens"],
        "scoring": vars(scoring) | {"seconds of runs": check},
        "bytes_per_review": {
            "read": scored["bytes_read_per_review"],
            "written": scored["bytes_written_per_review"],
        },
        "training": {
            "core_seconds": training.core_seconds,
            "mean_tokens": mean_tokens,
            "bytes": training.bytes,
            "tokens a second of runs": check_training,
            "by_workers": pass_hours,
        },
        "costs": costs,
    }
    (RESULTS / "capacity.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
