"""Measure what speed buys and what it costs in accuracy; written to results/accuracy.json.

    python benchmarks/accuracy.py          (part of make bench-full)

* seconds of training until a fixed schedule (recipes/imdb-one-pass.toml, chosen on validation) scores 0.8833 on 2,000
  untouched reviews, the mean of three seeds: the figure that project A reports on 300;
* lorafit beside transformers' Trainer with PEFT as it comes (fp32, padded, BERT's dropout), and lorafit with BERT's
  dropout, same texts, seeds and schedule: 1,700 reviews of up to 128 tokens once, because the plain loop is slow;
* cost per review from 2,000 to 23,000 reviews.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import workload
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from lorafit import adapter, console, encoders, evaluation, pipeline, predict, recipe, runs, runtime
from lorafit.recipe import Recipe

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
WANTED = 0.8833  # project A's accuracy
SHORT = (
    "data.train_size=1700", "data.validation_size=300", "data.max_tokens=128", "training.epochs=1",
)  # fmt: skip


def train_and_score(made: Recipe) -> dict[str, Any]:
    """Return accuracy on the test reviews, and the seconds of training steps, of one run in a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        run = pipeline.train(made, Path(folder) / made.name)
        test = pipeline.prepare(made).test
        logits = predict.Classifier.load(run.path).logits(test.tokens)
        return {
            "seed": made.seed,
            "accuracy": evaluation.score(logits, test.label_ids).accuracy,
            "training_seconds": round(_step_seconds(run), 1),
            "seconds_with_validation": run.record["seconds"],
            "tokens": run.record["tokens"],
        }


def _step_seconds(run: runs.Run) -> float:
    lines = map(json.loads, (run.path / "history.jsonl").read_text().splitlines())
    return float(sum(line["seconds"] for line in lines if "tokens" in line))


def one_pass() -> dict[str, Any]:
    """Return each seed's run of the one-pass recipe, and their mean."""
    path = recipe.shipped("imdb-one-pass")
    return _mean([train_and_score(recipe.load(path, (f"seed={seed}",))) for seed in SEEDS])


def _mean(results: list[dict[str, Any]]) -> dict[str, Any]:
    accuracies = [result["accuracy"] for result in results]
    return {
        "accuracy": round(statistics.mean(accuracies), 4),
        "accuracy_standard_deviation": round(statistics.stdev(accuracies), 4),
        "training_seconds": round(statistics.median(result["training_seconds"] for result in results), 1),
        "seeds": results,
    }


def plain_loop(made: Recipe) -> dict[str, Any]:
    """Return accuracy and seconds of transformers' Trainer with PEFT as it comes, on a recipe's texts and schedule."""
    found = pipeline.prepare(made)
    files = encoders.locate(made.encoder.name)
    encoder = encoders.load(files, found.labels, dropout="keep", seed=made.seed)
    lora = made.adapter
    model = adapter.attach(encoder.model, lora.rank, lora.alpha, targets=lora.targets, fresh=encoder.fresh)
    train = found.train
    rows = [{"input_ids": train.tokens[n].tolist(), "labels": int(train.label_ids[n])} for n in range(len(train))]
    settings = made.training
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.schedule,
            warmup_steps=settings.warmup,
            weight_decay=settings.weight_decay,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=made.seed,
        )
        collate = DataCollatorWithPadding(encoders.load_tokenizer(files.folder, files.name))
        start = time.perf_counter()
        Trainer(model, arguments, train_dataset=rows, data_collator=collate).train()
        seconds = time.perf_counter() - start
    where = runtime.choose("fp32")
    adapter.speed_up(model, encoder.fresh, where)  # the answers are the same, sooner
    logits = predict.logits(model, found.test.tokens, 0, where)
    accuracy = evaluation.score(logits, found.test.label_ids).accuracy
    return {"seed": made.seed, "accuracy": accuracy, "training_seconds": round(seconds, 1)}


def beside_the_plain_loop() -> dict[str, Any]:
    """Return accuracies over the seeds: ours, ours with the encoder's own dropout, the plain loop's."""
    path = recipe.shipped("imdb-one-pass")
    recipes = [recipe.load(path, (*SHORT, f"seed={seed}")) for seed in SEEDS]
    kept = [recipe.load(path, (*SHORT, "encoder.dropout=keep", f"seed={seed}")) for seed in SEEDS]
    ours = _mean([train_and_score(made) for made in recipes])
    plain = _mean([plain_loop(made) for made in recipes])
    return {
        "ours": ours,
        "ours_dropout_kept": _mean([train_and_score(made) for made in kept]),
        "plain": plain,
        "points": round(100 * (ours["accuracy"] - plain["accuracy"]), 2),
    }


def cost_per_review() -> dict[str, float]:
    """Return milliseconds a review of one epoch's training steps over 2,000 and over 23,000 reviews, at 64 tokens.

    Short texts show best what is not the encoder: the loader, the sampler, the log.
    """
    milliseconds = {}
    for reviews in (2000, 23000):
        sizes = (f"data.train_size={reviews}", "data.validation_size=100", "data.test_size=100", "data.max_tokens=64")
        made = recipe.load(recipe.shipped("imdb-one-pass"), sizes)
        milliseconds[str(reviews)] = round(1e3 * train_and_score(made)["training_seconds"] / reviews, 3)
    return milliseconds


def main() -> None:
    """Measure, print and save."""
    console.silence()
    runtime.choose("fp32")
    result = workload.circumstances() | {
        "recipe": recipe.load(recipe.shipped("imdb-one-pass")).model_dump(),
        "wanted_accuracy": WANTED,
    }
    for name, measure in (
        ("one_pass", one_pass),
        ("cost_per_review_milliseconds", cost_per_review),
        ("beside_the_plain_loop", beside_the_plain_loop),
    ):
        result[name] = measure()
        print(name, json.dumps(result[name]), flush=True)
        (ROOT / "results" / "accuracy.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
