"""Measure the figures of the main job and write them to results/main_job.json.

    python benchmarks/main_job.py          (make bench)

* the demo as a user runs it: a fresh process in an empty folder with an empty cache; wall time with start-up, peak
  memory, accuracy on the test reviews;
* tokenizing the 25,000 bundled reviews, then reading them from the cache: median of five in fresh folders;
* `lorafit --help`: median of five.

The demo's report and figures go to docs/demo/, with a picture of the report, which Chromium takes.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import workload

from lorafit import console, recipe
from lorafit.pipeline import prepare

ROOT = Path(__file__).parents[1]
REPEATS = 5
IN_THE_REPORT = ("curves", "macro_curves", "errors", "by_length", "per_class", "confusion")  # which is kept too
PICTURE_PIXELS = "860,1500"


def measure_demo() -> dict[str, Any]:
    """Return wall seconds, peak memory and scores of `lorafit demo` in an empty folder with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"LORAFIT_CACHE": f"{folder}/cache"}
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "lorafit", "demo"], cwd=folder, env=environment, check=True)
        seconds = time.perf_counter() - start
        run = Path(folder) / "runs" / "demo"
        record = json.loads((run / "run.json").read_text())
        scores = json.loads((run / "scores.json").read_text())
        shutil.copytree(run / "figures", ROOT / "docs" / "demo" / "figures", dirs_exist_ok=True)
        for name in ("report.md", "report.html"):
            shutil.copy(run / name, ROOT / "docs" / "demo")
        take_picture(ROOT / "docs" / "demo" / "report.html", ROOT / "docs" / "demo" / "report.png")
        validations = [line for line in map(json.loads, (run / "history.jsonl").open()) if "validation" in line]
    return {
        "wall_seconds": round(seconds, 1),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "training_seconds": record["seconds"],
        "parameters": record["parameters"],
        "adapter_bytes": record["adapter_bytes"],
        "runtime": record["runtime"],
        "test": {key: value for key, value in scores["test"].items() if key not in IN_THE_REPORT},
        "validation": validations,
    }


def take_picture(page: Path, picture: Path) -> None:
    """Save what a browser shows of the upper part of a page."""
    subprocess.run(
        [
            shutil.which("chromium") or "google-chrome",
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1.5"),
            *(f"--window-size={PICTURE_PIXELS}", f"--screenshot={picture}", page.as_uri()),
        ],
        check=True,
        capture_output=True,
    )


def measure_tokenizing() -> dict[str, Any]:
    """Return the seconds that 25,000 reviews take to prepare, and to come from the cache."""
    whole = recipe.from_values({"name": "whole", "data": {"source": "bundled:imdb"}})
    cold: list[float] = []
    cached: list[float] = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["LORAFIT_CACHE"] = folder
            for seconds in (cold, cached):
                start = time.perf_counter()
                found = prepare(whole)
                seconds.append(time.perf_counter() - start)
    return {
        "texts": sum(map(len, found.splits.values())),
        "tokens": sum(len(split.tokens.ids) for split in found.splits.values()),
        "seconds": round(statistics.median(cold), 2),
        "seconds_from_cache": round(statistics.median(cached), 2),
    }


def measure_help() -> float:
    """Return the seconds that `lorafit --help` takes."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "lorafit", "--help"], stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - start)
    return round(statistics.median(seconds), 3)


def main() -> None:
    """Measure, print and save."""
    console.silence()
    result: dict[str, Any] = workload.circumstances() | {
        "recipe": recipe.load(recipe.shipped("demo")).model_dump(),
        "help_seconds": measure_help(),
        "tokenizing": measure_tokenizing(),
        "demo": measure_demo(),
    }
    (ROOT / "results").mkdir(exist_ok=True)
    (ROOT / "results" / "main_job.json").write_text(json.dumps(result, indent=2) + "\n")
    demo, tokenizing = result["demo"], result["tokenizing"]
    print(f"demo: {demo['wall_seconds']:.0f} s, peak memory {demo['peak_memory_bytes'] / 1e9:.2f} GB")
    print(f"--help: {result['help_seconds']:.2f} s")
    print(f"accuracy on {demo['test']['n']} test reviews: {demo['test']['adapted']['accuracy']:.4f}")
    print(
        f"tokenizing {tokenizing['texts']:,} reviews: {tokenizing['seconds']:.1f} s, "
        f"then {tokenizing['seconds_from_cache']:.2f} s from the cache"
    )


if __name__ == "__main__":
    main()
