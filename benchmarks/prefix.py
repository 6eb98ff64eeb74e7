"""Measure what keeping the frozen layers' states is worth, and write it to results/prefix.json.

    python benchmarks/prefix.py            (make bench-prefix: about forty minutes)
    python benchmarks/prefix.py eight      (the last of these only; about six minutes)

* the demo's recipe with adapters on the last 2, 3, 4 and 6 layers: seconds of training and validation without the
  cache, with an empty one, and with a full one as a later trial of a search finds it; bytes on disk; test accuracy;
* bert-base's shape (random weights), query and value of the last 3 layers, 10 epochs: the same seconds;
* eight trainings on that shape, of other ranks and rates, 5 epochs over 100 reviews: all without the cache, and
  all with one that they share, which the first of them fills.

Each figure is the median of the rounds, three of bert-base and one of the demo, which take the candidates in turn. How
far the validation losses of a run with the cache are from those of one without stands beside them.
"""

import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import workload

from lorafit import console, encoders, pipeline
from lorafit import recipe as recipes
from lorafit.recipe import Recipe
from lorafit.runs import Run

RESULTS = Path(__file__).parents[1] / "results"
ROUNDS = {"bert_base": 3, "demo": 1}
TOPS = (2, 3, 4, 6)
CANDIDATES = ("without", "empty cache", "full cache")
EIGHT = [(2, 1e-3), (4, 1e-3), (8, 1e-3), (16, 1e-3), (2, 3e-3), (4, 3e-3), (8, 3e-3), (16, 3e-3)]
BERT_BASE = {
    "data.train_size": 200,
    "data.validation_size": 40,
    "data.test_size": 40,
    "adapter.layers": "top:3",
    "adapter.targets": workload.LORA["targets"],
    "training.epochs": 10,
}


def with_cache(recipe: Recipe, cached: bool) -> Recipe:
    """Return the recipe with the states kept, or not."""
    return recipes.changed(recipe, {"training.cache_prefix": cached})


@contextmanager
def folder_of_states() -> Iterator[Path]:
    """Yield the folder of the states, empty, within the cache that holds prepared data and measurements."""
    states = Path(os.environ["LORAFIT_CACHE"]) / "prefix"
    shutil.rmtree(states, ignore_errors=True)
    yield states
    shutil.rmtree(states, ignore_errors=True)


def one_round(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Return the seconds of each candidate, the bytes on disk, and the largest gap between validation losses."""
    seconds, losses = {}, []
    with folder_of_states() as states:
        for name in CANDIDATES:
            path = folder / name.replace(" ", "-")
            found = pipeline.try_out(with_cache(recipe, name != "without"), path, lambda _epoch, _scores: None)
            seconds[name] = Run(path).seconds
            losses.append([line["validation"]["loss"] for line in Run(path).validations])
        size = sum(file.stat().st_size for file in states.glob("*/states.bin"))
    gap = float(np.ptp(losses, axis=0).max())
    return {"seconds": seconds, "bytes": size, "validation": found.best, "loss_gap": gap}


def measured(recipe: Recipe, folder: Path, count: int) -> dict[str, Any]:
    """Return the medians over so many rounds."""
    rounds = [one_round(recipe, folder / str(number)) for number in range(count)]
    of_each = {name: [round(one["seconds"][name], 2) for one in rounds] for name in CANDIDATES}
    middle = {name: statistics.median(seconds) for name, seconds in of_each.items()}
    print(recipe.name, recipe.adapter.layers, middle, flush=True)
    return {
        "seconds": middle,
        "seconds_of_rounds": of_each,
        "bytes": rounds[0]["bytes"],
        "times_with_empty_cache": round(middle["without"] / middle["empty cache"], 2),
        "times_with_full_cache": round(middle["without"] / middle["full cache"], 2),
        "validation": rounds[0]["validation"],
        "largest_loss_gap": max(one["loss_gap"] for one in rounds),
    }


def of_demo(folder: Path) -> dict[str, Any]:
    """Return the figures of the demo's recipe for each number of adapted layers, with the test accuracy."""
    found = {}
    for top in TOPS:
        recipe = recipes.changed(workload.DEMO, {"adapter.layers": f"top:{top}"})
        figures = measured(recipe, folder / f"top-{top}", ROUNDS["demo"])
        run = pipeline.resume(folder / f"top-{top}" / "0" / "full-cache")
        pipeline.evaluate(run)
        assert run.scores is not None
        adapted = run.scores["test"]["adapted"]
        kept = {name: adapted[name] for name in ("accuracy", "accuracy_interval", "f1")}
        found[str(top)] = figures | {"test": kept, "parameters": run.record["parameters"]["trainable"]}
    return found


def of_bert_base(folder: Path) -> dict[str, Any]:
    """Return the figures of bert-base's shape."""
    name = {"name": "bert-base", "encoder.name": str(base_shape(folder))}
    return measured(recipes.changed(workload.DEMO, BERT_BASE | name), folder / "base", ROUNDS["bert_base"])


def base_shape(folder: Path) -> Path:
    """Return a folder with bert-base's shape, random weights, and the bundled encoder's tokenizer."""
    from transformers import BertConfig, BertModel

    BertModel(BertConfig()).save_pretrained(folder / "bert-base")
    for file in encoders.locate("bundled:minilm").folder.glob("*token*"):
        shutil.copy(file, folder / "bert-base")
    return folder / "bert-base"


def of_eight(folder: Path) -> dict[str, Any]:
    """Return the seconds of eight trainings without sharing and with it, and how far their losses are apart."""
    shape = {
        "name": "eight",
        "encoder.name": str(base_shape(folder)),
        "data.train_size": 100,
        "data.validation_size": 20,
    }
    shared = recipes.changed(workload.DEMO, BERT_BASE | shape | {"training.epochs": 5})
    seconds: dict[str, float] = {"without": 0.0, "shared": 0.0}
    gap = 0.0
    with folder_of_states():
        for number, (rank, rate) in enumerate(EIGHT):
            own = {"adapter.rank": rank, "adapter.alpha": 2 * rank, "training.learning_rate": rate}
            losses = []
            for name in seconds:
                path = folder / f"{name}-{number}"
                recipe = with_cache(recipes.changed(shared, own), name == "shared")
                pipeline.try_out(recipe, path, lambda _epoch, _scores: None)
                seconds[name] += Run(path).seconds
                losses.append([line["validation"]["loss"] for line in Run(path).validations])
            gap = max(gap, float(np.ptp(losses, axis=0).max()))
    return {
        "rank_and_rate": EIGHT,
        "seconds": {name: round(total, 1) for name, total in seconds.items()},
        "times": round(seconds["without"] / seconds["shared"], 2),
        "largest_loss_gap": gap,
    }


def main() -> None:
    """Measure and save."""
    console.silence()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LORAFIT_CACHE"] = f"{folder}/cache"
        if sys.argv[1:] == ["eight"]:
            found = json.loads((RESULTS / "prefix.json").read_text())
        else:
            found = {"bert_base": of_bert_base(Path(folder) / "one"), "demo": of_demo(Path(folder))}
            found |= {"rounds": ROUNDS, "texts": {"demo": workload.DEMO.data.train_size, "bert_base": 200}}
            found = workload.circumstances() | found
        found["eight"] = workload.circumstances() | of_eight(Path(folder) / "eight")
    (RESULTS / "prefix.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
