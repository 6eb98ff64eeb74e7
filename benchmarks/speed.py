"""Measure lorafit's speed beside its peers' and write it down.

    python benchmarks/speed.py           (part of make bench: a few minutes; prints only)
    python benchmarks/speed.py --full    (part of make bench-full: results/speed.json)

Each candidate runs in a process of its own, one at a time, in turn: A B A B. Threads are equal: all cores. The ceiling
(bf16 matrix products) is measured between them. Published are the medians of the rounds.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attention
import rich
import workload
from rich.table import Table

from lorafit import runtime

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"

# candidate, batch size, reviews: enough for a minute or so each. The peers' best batch size is looked for.
TRAINING = {
    "bundled": [
        ("plain", 16, 112),
        ("tuned", 8, 400),
        ("tuned", 16, 400),
        ("tuned-fp32", 8, 160),
        ("tuned-fp32", 16, 160),
        ("ours", 16, 640),
        ("ours-fp32", 16, 320),
    ],
    "bert-base": [
        ("plain", 16, 64),
        ("tuned", 8, 128),
        ("tuned", 16, 128),
        ("ours", 8, 192),
        ("ours", 16, 192),
    ],
}
SHORT = {"bundled": [("plain", 16, 64), ("tuned", 8, 320), ("ours", 16, 640), ("ours-fp32", 16, 320)]}
PREDICTION = [
    "pipeline",
    "torch-fp32",
    "torch-bf16",
    "onnxruntime-fp32",
    "onnxruntime-int8",
    "openvino-fp32",
    "openvino-bf16",
    "openvino-int8",
    "ours-fp32",
    "ours",
]
SHORT_PREDICTION = ["torch-fp32", "ours"]
TEXTS = 256


def run(script: str, *arguments: object) -> dict[str, Any]:
    """Return what one candidate reports from a process of its own."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(*arguments, {key: round(value, 1) for key, value in result.items() if "per_second" in key}, flush=True)
    return result


def rounds(
    jobs: Sequence[tuple[object, ...]], script: str, repeats: int
) -> tuple[dict[str, dict[str, Any]], list[float]]:
    """Return the median of each candidate's figures over the rounds, and the ceilings measured before each of them."""
    found: dict[str, list[dict[str, Any]]] = {}
    ceilings: list[float] = []
    for _ in range(repeats):
        for job in jobs:
            ceilings.append(round(workload.ceiling_gflops(), 1))
            found.setdefault(" ".join(map(str, job)), []).append(run(script, *job))
    return {name: _median(results) for name, results in found.items()}, ceilings


def _median(results: list[dict[str, Any]]) -> dict[str, Any]:
    middle = {key: statistics.median(result[key] for result in results) for key in results[0]}
    rate = "tokens_per_second" if "tokens_per_second" in middle else "reviews_per_second"
    return middle | {f"{rate}_of_rounds": [round(result[rate], 1) for result in results]}


def best(results: dict[str, dict[str, Any]], candidate: str) -> dict[str, Any]:
    """Return a candidate at its best batch size."""
    of_it = [result for name, result in results.items() if name.split()[0] == candidate]
    return max(of_it, key=lambda result: float(result["tokens_per_second"]))


def at_batch(results: dict[str, dict[str, Any]], candidate: str, batch_size: int) -> dict[str, Any] | None:
    """Return a candidate at one batch size, if it was run."""
    of_it = [r for name, r in results.items() if name.split()[0] == candidate and r["batch_size"] == batch_size]
    return of_it[0] if of_it else None


def training_ratios(results: dict[str, dict[str, Any]], ceiling: float) -> dict[str, float]:
    """Return ours beside the peers; more is better but for memory."""
    ours = best(results, "ours")
    ratios = {
        "ours / plain": ours["tokens_per_second"] / best(results, "plain")["tokens_per_second"],
        "ours / best-tuned": ours["tokens_per_second"] / best(results, "tuned")["tokens_per_second"],
        "share of the bf16 ceiling": ours["gflops"] / ceiling,
    }
    if any(name.startswith("tuned-fp32") for name in results):
        fp32 = best(results, "tuned-fp32")["tokens_per_second"]
        ratios["fp32: ours / best-tuned"] = best(results, "ours-fp32")["tokens_per_second"] / fp32
    equal = at_batch(results, "tuned", int(ours["batch_size"]))
    if equal is not None:
        ratios["peak memory: ours / tuned, equal batch"] = ours["peak_memory_bytes"] / equal["peak_memory_bytes"]
    return {name: round(value, 3) for name, value in ratios.items()}


def prediction_ratios(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return ours beside each peer, by reviews a second."""
    ours = results[f"ours {TEXTS}"]["reviews_per_second"]
    return {
        f"ours / {name.split()[0]}": round(ours / result["reviews_per_second"], 3)
        for name, result in results.items()
        if not name.startswith("ours")
    }


def show(title: str, results: dict[str, dict[str, Any]], ceiling: float) -> None:
    """Print one table."""
    table = Table("candidate", "tokens/s", "reviews/s", "GFLOP/s", "of the ceiling", "peak MB", title=title)
    for name, result in results.items():
        gflops = result.get("gflops")
        table.add_row(
            name,
            f"{result['tokens_per_second']:,.0f}" if "tokens_per_second" in result else "",
            f"{result['reviews_per_second']:.1f}",
            f"{gflops:.0f}" if gflops else "",
            f"{gflops / ceiling:.0%}" if gflops else "",
            f"{result['peak_memory_bytes'] / 1e6:,.0f}",
        )
    rich.print(table)


def main() -> None:
    """Measure, print, and save a full run."""
    parser = argparse.ArgumentParser(description="Measure lorafit's speed beside its peers'.")
    parser.add_argument("--full", action="store_true", help="all peers, three rounds, written to results/speed.json")
    full = parser.parse_args().full
    runtime.choose("fp32")
    repeats = 3 if full else 1
    training, ceilings = {}, {}
    for shape, jobs in (TRAINING if full else SHORT).items():
        of_shape = [(candidate, shape, batch_size, texts) for candidate, batch_size, texts in jobs]
        training[shape], ceilings[shape] = rounds(of_shape, "train_one.py", repeats)
    named = [(candidate, TEXTS) for candidate in (PREDICTION if full else SHORT_PREDICTION)]
    prediction, ceilings["prediction"] = rounds(named, "predict_one.py", repeats)
    kernels = attention.measure(full=full)
    ceiling = {section: statistics.median(each) for section, each in ceilings.items()}
    ratios = {shape: training_ratios(results, ceiling[shape]) for shape, results in training.items()}
    for shape, results in training.items():
        show(f"Training, {shape}", results, ceiling[shape])
    show("Prediction, bundled", prediction, ceiling["prediction"])
    rich.print({"bf16 ceiling, GFLOP/s": ceiling} | ratios | {"prediction": prediction_ratios(prediction)})
    if full:
        measured = {
            "rounds": repeats,
            "bf16_ceiling_gflops": ceiling,
            "bf16_ceiling_gflops_of_rounds": ceilings,
            "training": training,
            "training_ratios": ratios,
            "prediction": prediction,
            "prediction_ratios": prediction_ratios(prediction),
            "attention": kernels,
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "speed.json").write_text(json.dumps(workload.circumstances() | measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
