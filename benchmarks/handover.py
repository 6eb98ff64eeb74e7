"""Measure what handing an adapter over costs, and write it to results/handover.json.

    python benchmarks/handover.py          (make bench)

* the size of a bundle with r=1 on bert-base's shape (random weights), its tokenizer left out;
* the bundled encoder: seconds of the proof at save, seconds and size of a checkpoint;
* from a cold process to the first answer: imports, hashes, encoder, adapter, one sentence. Median of five.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import workload

from lorafit import checkpoints, console, encoders, pipeline, proof, recipe
from lorafit.errors import LorafitWarning

ROOT = Path(__file__).parents[1]
REPEATS = 5
COLD = """
import time
start = time.perf_counter()
from lorafit import Classifier
classifier = Classifier.load({folder!r})
classifier.predict(["A film to remember."])
print(time.perf_counter() - start)
"""


class Stopwatch:
    """Wraps a function of lorafit, and keeps how long each call took."""

    def __init__(self, module: Any, name: str) -> None:
        self.seconds: list[float] = []
        plain = getattr(module, name)

        def timed(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return plain(*args, **options)
            finally:
                self.seconds.append(time.perf_counter() - start)

        setattr(module, name, timed)


def measure_bundled(folder: Path) -> dict[str, Any]:
    """Return the seconds of proof and checkpoints in a small run of the demo, and of a cold start from its bundle."""
    proofs, saves = Stopwatch(proof, "save"), Stopwatch(checkpoints, "save")
    small = recipe.load(recipe.shipped("demo"), ("training.checkpoint_every=5",), small=True)
    run = pipeline.train(small, folder / "small")
    last = checkpoints.last(run.checkpoints)
    assert last is not None
    code = COLD.format(folder=str(run.adapter))
    cold = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(REPEATS)
    ]
    return {
        "proof_seconds": round(proofs.seconds[0], 2),
        "checkpoint_seconds": round(statistics.median(saves.seconds), 3),
        "checkpoint_seconds_most": round(max(saves.seconds), 3),
        "checkpoints": len(saves.seconds),
        "checkpoint_bytes": sum(file.stat().st_size for file in last.iterdir()),
        "cold_seconds_to_first_answer": round(statistics.median(cold), 2),
    }


def measure_bundle_size(folder: Path) -> dict[str, Any]:
    """Return the bytes of each file of a bundle with r=1 on query and value of bert-base's shape."""
    from transformers import BertConfig, BertModel

    bundled = encoders.locate("bundled:minilm").folder
    encoder = folder / "bert-base"
    BertModel(BertConfig()).save_pretrained(encoder)
    for file in bundled.glob("*token*"):
        shutil.copy(file, encoder)
    made = recipe.from_values(
        {
            "name": "size",
            "data": {"train_size": 16, "validation_size": 64, "test_size": 16},
            "encoder": {"name": str(encoder)},
            "adapter": {"rank": 1, "alpha": 1, "targets": ["query", "value"]},
            "training": {"epochs": 1},
        }
    )
    adapter = pipeline.train(made, folder / "size").adapter
    sizes = {file.name: file.stat().st_size for file in sorted(adapter.iterdir())}
    without_tokenizer = sum(size for name, size in sizes.items() if not name.startswith("tokenizer"))
    return {"files": sizes, "bytes_without_tokenizer": without_tokenizer}


def main() -> None:
    """Measure, and write the results."""
    console.silence()
    warnings.simplefilter("ignore", LorafitWarning)  # a bert-base of random weights does not learn
    with tempfile.TemporaryDirectory() as folder:
        record = {
            **workload.circumstances(),
            "bundled": measure_bundled(Path(folder)),
            "bert_base_rank_1": measure_bundle_size(Path(folder)),
        }
    (ROOT / "results" / "handover.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
