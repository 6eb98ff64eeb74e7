"""Measure what accuracy the bundled encoder reaches; written to results/quality.json row by row.

    python benchmarks/quality.py [SIZE | long-texts | rotten-tomatoes]...      (two to three hours, two cores)

* IMDB with 1,400, 4,000 and 22,500 training reviews, three seeds each, the head on the first token and on the mean of
  all: recipes/imdb-one-pass.toml with the changes in SIZES. 2,500 of the bundled 25,000 reviews are held out, and
  no run trains on them (docs/quality.md says how settings were chosen). Each seed draws its training reviews, its
  1,000 validation reviews, its head and its order anew.
* what each policy for long texts gives at 128, 256 and 512 tokens, with 4,000 reviews and one seed;
* the recipe for Rotten Tomatoes, three seeds, each with its own test.

A row that stands in the file with the same recipe is not measured again: it may be stopped and gone on with. What is
published are accuracy and tokens; seconds stand beside them, with the threads they were taken with.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import workload

from lorafit import console, data, intervals, pipeline, recipe, runtime, splits
from lorafit.predict import Classifier
from lorafit.recipe import Recipe
from lorafit.runs import Run

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "quality.json"
SEEDS = (0, 1, 2)
POOLINGS = ("first", "mean")
HELD_OUT, VALIDATION = 2500, 1000  # 300 are enough to choose an epoch, but leave the temperature to chance
LEFT = 22_500  # without those held out; the largest size takes its validation reviews out of these
_WINDOWS = ("data.max_tokens=128", "data.long_text=windows:mean")  # better than 512 tokens read once (docs/log.md)
# What a size changes in the recipe.
SIZES: dict[int, tuple[str, ...]] = {
    1400: (
        "data.train_size=1400",
        "data.long_text=head+tail",
        "training.learning_rate=5e-4",
        "training.epochs=3",
        "training.average=0.5",
    ),
    4000: ("data.train_size=4000", *_WINDOWS),
    LEFT: (f"data.train_size={LEFT - VALIDATION}", *_WINDOWS),
}
WINDOWS, POLICIES = (128, 256, 512), ("head", "head+tail", "windows:mean", "windows:max")


def write_reviews(folder: Path) -> tuple[str, ...]:
    """Write the reviews to train on and those held out; returns the overrides that name them."""
    whole = data.clean(data.open_source("bundled:imdb"), labels=["neg", "pos"])
    parts = splits.split(whole, len(whole) - 2 * HELD_OUT, HELD_OUT, HELD_OUT, seed=2024)
    files = {"source": ("train", "validation"), "test_source": ("test",)}
    for key, names in files.items():
        texts = [text for name in names for text in parts[name].texts]
        label_ids = [int(label_id) for name in names for label_id in parts[name].label_ids]
        pq.write_table(pa.table({"text": texts, "label": label_ids}), folder / f"{key}.parquet")
    return (
        *(f"data.{key}={folder / key}.parquet" for key in files),
        f"data.validation_size={VALIDATION}",
        f"data.test_size={HELD_OUT}",
    )


def of_evaluation(run: Run) -> dict[str, Any]:
    """Evaluate a run, and return what is kept of it."""
    pipeline.evaluate(run)
    test = (run.scores or {})["test"]
    return {
        "accuracy": test["adapted"]["accuracy"],
        "accuracy_interval": test["adapted"]["accuracy_interval"],
        "tfidf_accuracy": test["baselines"]["tfidf"]["accuracy"],
        **{key: test["calibration"][key] for key in ("temperature", "ece_before", "ece_after")},
    }


def of_adapter_alone(run: Run) -> dict[str, Any]:
    """Return the adapter's accuracy on the test texts, without baselines: they read all of a text in every row."""
    test = pipeline.data_of(run).test
    right = Classifier.load(run.path).logits(test.tokens).argmax(axis=1) == test.label_ids
    return {"accuracy": float(right.mean()), "accuracy_interval": intervals.wilson(int(right.sum()), len(right))}


def of_training(run: Run) -> dict[str, Any]:
    """Return what is kept of a run's training."""
    record = run.record
    return {
        "validation_accuracy": record["best_validation_accuracy"],
        **{key: record[key] for key in ("best_epoch", "seconds", "tokens")},
        "precision": record["runtime"]["precision"],
        **{key: workload.circumstances()[key] for key in ("commit", "threads")},
    }


def measure_imdb(size: int, files: tuple[str, ...]) -> None:
    """Measure the rows of one number of training reviews."""
    for seed in SEEDS:
        for pooling in POOLINGS:
            measure(str(size), "imdb-one-pass", (*files, *SIZES[size], f"encoder.pooling={pooling}", f"seed={seed}"))


def measure_long_texts(files: tuple[str, ...]) -> None:
    """Measure a row for each window and policy."""
    for window in WINDOWS:
        for policy in POLICIES:
            reading = (f"data.max_tokens={window}", f"data.long_text={policy}")
            sizes = ("data.train_size=4000", "data.validation_size=300")
            measure("long-texts", "imdb-one-pass", (*files, *sizes, *reading), of_adapter_alone)


def measure_rotten_tomatoes(_files: tuple[str, ...]) -> None:
    """Measure a row for each seed."""
    for seed in SEEDS:
        measure("rotten-tomatoes", "rotten-tomatoes", (f"seed={seed}",))


def measure(
    part: str, name: str, changes: tuple[str, ...], figures: Callable[[Run], dict[str, Any]] = of_evaluation
) -> None:
    """Train a shipped recipe with changes, and save the row of its figures; do nothing where it stands already."""
    made = recipe.load(recipe.shipped(name), changes)
    described = recipe.without_folders(made)
    if any(row["part"] == part and _as_now(row["recipe"]) == described for row in results().get("rows", [])):
        return
    with tempfile.TemporaryDirectory() as folder:
        run = pipeline.train(made, Path(folder) / made.name)
        row = {"part": part} | figures(run) | of_training(run) | {"recipe": described}
    found = results()  # a second process may have added to it by now
    result = found | workload.circumstances() | {"rows": [*found.get("rows", []), row]}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(*changes[-2:], json.dumps({key: value for key, value in row.items() if key != "recipe"}), flush=True)


def _as_now(values: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe that was written down earlier with the keys that have come since, which did nothing then."""
    return recipe.without_folders(Recipe.model_validate(values))


def results() -> dict[str, Any]:
    """Return what the file holds."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    return found


def main() -> None:
    """Measure what is asked for, or all of it."""
    console.silence()
    runtime.choose("fp32")
    parts: dict[str, Any] = {str(size): partial(measure_imdb, size) for size in SIZES}
    parts |= {"long-texts": measure_long_texts, "rotten-tomatoes": measure_rotten_tomatoes}
    with tempfile.TemporaryDirectory() as folder:
        files = write_reviews(Path(folder))
        for part in sys.argv[1:] or parts:
            parts[part](files)


if __name__ == "__main__":
    main()
