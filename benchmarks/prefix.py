"""Measure what keeping the frozen layers' states is worth, and write it to results/prefix.json.

    python benchmarks/prefix.py            (make bench-prefix: about half an hour)

* the demo's recipe with adapters on the last 2, 3, 4 and 6 layers: seconds of training and validation without the
  cache, with an empty one, and with a full one as a later trial of a search finds it; bytes on disk; test accuracy;
* bert-base's shape (random weights), query and value of the last 3 layers, 10 epochs: the same seconds.

Each figure is the median of the rounds, three of bert-base and one of the demo, which take the candidates in turn. How
far the validation losses of a run with the cache are from those of one without stands beside them.
"""

import json
import os
import shutil
import statistics
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
    from transformers import BertConfig, BertModel

    bundled = encoders.locate("bundled:minilm").folder
    BertModel(BertConfig()).save_pretrained(folder / "bert-base")
    for file in bundled.glob("*token*"):
        shutil.copy(file, folder / "bert-base")
    name = {"name": "bert-base", "encoder.name": str(folder / "bert-base")}
    return measured(recipes.changed(workload.DEMO, BERT_BASE | name), folder / "base", ROUNDS["bert_base"])


def main() -> None:
    """Measure and save."""
    console.silence()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LORAFIT_CACHE"] = f"{folder}/cache"
        found = {"bert_base": of_bert_base(Path(folder)), "demo": of_demo(Path(folder))}
    figures = {"rounds": ROUNDS, "texts": {"demo": workload.DEMO.data.train_size, "bert_base": 200}} | found
    (RESULTS / "prefix.json").write_text(json.dumps(workload.circumstances() | figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
