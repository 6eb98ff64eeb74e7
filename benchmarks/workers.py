"""Measure two processes with one thread each beside one process with two threads, and with one; writes
results/workers.json.

    python benchmarks/workers.py           (make bench-workers: about eight minutes)

The demo's recipe, one epoch of 600 reviews, under torchrun and alone, in turn. The exchange of gradients is timed by
itself: the same bytes, in the same processes, after all have waited for each other; its share is of the median step.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import workload

from lorafit import ranks
from lorafit import recipe as recipes
from lorafit.runs import Run

RESULTS = Path(__file__).parents[1] / "results"
ROUNDS = 3
WORKERS = 2
FIRST_STEPS = 3  # that warm up
EXCHANGES = 200
SMALLER = {"data.train_size": 600, "data.validation_size": 50, "data.test_size": 50, "training.epochs": 1}
UNDER_TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORKERS)]


def rate(
    recipe: Path, out: Path, launcher: list[str], environment: dict[str, str], more: list[str]
) -> dict[str, float]:
    """Return tokens a second in steady state, and the median step's seconds, of one training."""
    command = [sys.executable, *launcher, "-m", "lorafit", "train", str(recipe), "--out", str(out), "--quiet", *more]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    steps = [line for line in Run(out).history if "loss" in line][FIRST_STEPS:]
    seconds = [line["seconds"] for line in steps]
    return {
        "tokens_per_second": sum(line["tokens"] for line in steps) / sum(seconds),
        "seconds_per_step": statistics.median(seconds),
        "trained_parameters": Run(out).record["parameters"]["trainable"],
    }


def exchange(numbers: int) -> None:
    """Print the median seconds that the ranks take to add up so many fp32 numbers; run under torchrun."""
    ranks.begin()
    gradients, seconds = torch.ones(numbers), []
    for _ in range(EXCHANGES):
        torch.distributed.barrier()
        start = time.perf_counter()
        torch.distributed.all_reduce(gradients)
        seconds.append(time.perf_counter() - start)
        gradients.fill_(1)
    if ranks.is_first():
        workload.report({"seconds": statistics.median(seconds[EXCHANGES // 10 :])})
    ranks.end()


def exchange_seconds(numbers: int) -> float:
    """Return what `exchange` prints."""
    command = [sys.executable, *UNDER_TORCHRUN, __file__, "--exchange", str(numbers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def measure() -> dict[str, Any]:
    """Return both rates, their ratio, and the exchange's share of a step."""
    found: dict[str, list[dict[str, float]]] = {"one": [], "two": [], "one, one thread": []}
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "smaller.toml"
        recipe.write_text(recipes.to_toml(recipes.changed(workload.DEMO, SMALLER)))
        environment = os.environ | {"LORAFIT_CACHE": f"{folder}/cache"}
        for number in range(ROUNDS):
            for name, launcher in (("one", []), ("two", UNDER_TORCHRUN), ("one, one thread", [])):
                threads = ["-s", "training.threads=1"] if name.endswith("one thread") else []
                out = Path(folder) / f"{name[:3]}-{len(threads)}-{number}"
                found[name].append(rate(recipe, out, launcher, environment, threads))
                print(name, found[name][-1], flush=True)
    medians = {
        name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        for name, rounds in found.items()
    }
    numbers = int(medians["two"]["trained_parameters"])
    seconds = exchange_seconds(numbers)
    return {
        "rounds": ROUNDS,
        "training": medians,
        "tokens_per_second_of_rounds": {
            name: [round(one["tokens_per_second"], 1) for one in rounds] for name, rounds in found.items()
        },
        "two / one": round(medians["two"]["tokens_per_second"] / medians["one"]["tokens_per_second"], 3),
        "exchange": {
            "bytes": 4 * numbers,
            "seconds": seconds,
            "share_of_a_step": round(seconds / medians["two"]["seconds_per_step"], 4),
        },
    }


def main() -> None:
    """Measure and save, or exchange as one of the ranks."""
    if sys.argv[1:2] == ["--exchange"]:
        exchange(int(sys.argv[2]))
        return
    found = measure()
    (RESULTS / "workers.json").write_text(json.dumps(workload.circumstances() | found, indent=2) + "\n")


if __name__ == "__main__":
    main()
