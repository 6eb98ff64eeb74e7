"""Measure bulk prediction beside the engines that it drives, and its memory, into results/bulk.json.

    python benchmarks/bulk.py [RUN]          (make bench-full)

Without RUN the demo is trained first, in a folder of its own. In one process for each engine and kind of text, in turn,
medians of three:

* engine: token ids, sorted by length and ready in memory, through lorafit's own engine or OpenVINO's int8 export;
* runtime: of the export, OpenVINO's own compiled model asked about the very same batches one after the other, with its
  default settings;
* bulk: `bulk.score` of the same texts from Parquet to Parquet: look, hashes, tokenizing, answers kept, output written.

Then peak memory of a process that scores 10,000 and one that scores 1,000,000 short and distinct texts, CSV to CSV.
"""

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import workload

from lorafit import Classifier, bulk, console, data, pipeline, predict
from lorafit.backends import OPENVINO_MODEL, import_openvino
from lorafit.export import export
from lorafit.tokens import Tokens, encode, inputs_of, pad

ROOT = Path(__file__).parents[1]
ROUNDS = 3
REVIEWS = 2000
ROWS = (10_000, 1_000_000)


def rates(bundle: Path, texts_file: Path) -> dict[str, Any]:
    """Return texts a second of engine, runtime and bulk on the texts of a file."""
    classifier = Classifier.load(bundle)
    texts = pd.read_parquet(texts_file)["text"].tolist()
    tokens = encode(texts, classifier.tokenizer, 512)
    scored = texts_file.with_name("scored.parquet")
    candidates: dict[str, Callable[[], object]] = {
        "engine": lambda: classifier.logits(tokens),
        "bulk": lambda: bulk.score(lambda: classifier, texts_file, scored, overwrite=True),
    }
    if classifier.backend.startswith("openvino"):
        candidates["runtime"] = openvinos_own(bundle, tokens, classifier.tokenizer.pad_token_id)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(ROUNDS + 1):  # the first warms up
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            seconds[name] += [time.perf_counter() - start] if turn else []
    found = {name: len(texts) / statistics.median(some) for name, some in seconds.items()}
    return {
        "backend": classifier.backend,
        "texts": len(texts),
        "mean_tokens": round(float(tokens.lengths.mean()), 1),
        **{f"{name}_texts_per_second": round(rate, 1) for name, rate in found.items()},
        **{f"bulk_share_of_{name}": round(found["bulk"] / found[name], 3) for name in found if name != "bulk"},
    }


def openvinos_own(folder: Path, tokens: Tokens, pad_id: int) -> Callable[[], object]:
    """Return a run of OpenVINO's compiled model over the batches that lorafit makes of the texts."""
    compiled = import_openvino().Core().compile_model(folder / OPENVINO_MODEL, "CPU")
    batches = [
        {name: values.numpy() for name, values in inputs_of(pad(tokens, rows, pad_id)).items()}
        for rows in predict.batches(tokens.lengths)
    ]
    return lambda: [compiled(batch) for batch in batches]


def memory(bundle: Path, table: Path) -> dict[str, Any]:
    """Score a table of short texts; return this process's peak memory and the rate."""
    done = bulk.score(lambda: Classifier.load(bundle), table, table.with_suffix(".scored.csv"))
    status = Path("/proc/self/status").read_text()  # getrusage would count the process that started it too (Linux)
    return {
        "rows": done.rows,
        "seconds": round(done.seconds, 1),
        "rows_per_second": round(done.rows / done.seconds, 1),
        "peak_memory_bytes": int(status.split("VmHWM:")[1].split()[0]) * 1024,
    }


def write_texts(folder: Path) -> dict[str, Path]:
    """Write reviews, sentences, and tables of short texts that are all distinct."""
    files = {"reviews": folder / "reviews.parquet", "sentences": folder / "sentences.parquet"}
    reviews = data.open_source("bundled:imdb").table["text"].drop_duplicates().sample(REVIEWS, random_state=0)
    sentences = data.open_source("bundled:rotten-tomatoes").table["text"].drop_duplicates()
    for name, texts in (("reviews", reviews), ("sentences", sentences)):
        pd.DataFrame({"text": texts.tolist()}).to_parquet(files[name])
    chance, words = random.Random(0), ["good", "bad", "film", "plot", "dull", "warm", "slow", "fine"]
    for rows in ROWS:
        short = (f"{chance.choice(words)} {chance.choice(words)} {number}" for number in range(rows))
        files[str(rows)] = folder / f"{rows}.csv"
        files[str(rows)].write_text("text\n" + "\n".join(short) + "\n")
    return files


def in_fresh_process(what: str, bundle: Path, texts: Path) -> dict[str, Any]:
    """Return what `rates` or `memory` finds there."""
    command = [sys.executable, __file__, what, str(bundle), str(texts)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(said.splitlines()[-1]))


def main(given: str | None) -> None:
    """Measure, and write the results."""
    console.silence()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run = Path(given) if given else pipeline.train(workload.DEMO, folder / "demo").path
        in_int8 = export(run, "openvino-int8", folder / "openvino-int8").folder
        files = write_texts(folder)
        record = {
            **workload.circumstances(),
            "rates": {
                texts: [in_fresh_process("rates", bundle, files[texts]) for bundle in (run, in_int8)]
                for texts in ("reviews", "sentences")
            },
            "memory": [in_fresh_process("memory", run, files[str(rows)]) for rows in ROWS],
        }
    (ROOT / "results" / "bulk.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    console.silence()
    match sys.argv[1:]:
        case ["rates", bundle, texts]:
            workload.report(rates(Path(bundle), Path(texts)))
        case ["memory", bundle, texts]:
            workload.report(memory(Path(bundle), Path(texts)))
        case [run]:
            main(run)
        case _:
            main(None)
