"""Train one candidate for some steps and print its speed as JSON:  train_one.py CANDIDATE SHAPE BATCH_SIZE TEXTS.

plain       transformers' Trainer + PEFT as they come: fp32, padded to the longest of a random batch, BERT's own dropout
tuned       the same in bf16, batches of like length, no dropout, SDPA
tuned-fp32  that in fp32
ours        lorafit.training.fit with the precision that this machine measured, ours-fp32 in fp32
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import workload
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from lorafit import adapter, encoders, padfree, runtime, training

WARM_UP_STEPS = 1


class Clock(TrainerCallback):
    """Notes the end of every step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def peer(candidate: str, shape: str, batch_size: int, texts: int) -> tuple[list[int], list[float]]:
    """Return real tokens and seconds of every step of transformers' Trainer."""
    plain = candidate == "plain"
    runtime.choose("fp32")  # all cores; the precision below is Trainer's
    train = workload.reviews().train
    model, _ = workload.adapted(shape, "keep" if plain else 0.0)
    rows = [{"input_ids": train.tokens[text].tolist(), "labels": int(train.label_ids[text])} for text in range(texts)]
    pad = DataCollatorWithPadding(encoders.load_tokenizer(encoders.locate("bundled:minilm").folder, "minilm"))
    tokens: list[int] = []

    def collate(some: list[dict[str, Any]]) -> Any:
        tokens.append(sum(len(row["input_ids"]) for row in some))
        return pad(some)

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=batch_size,
            learning_rate=2e-3,
            bf16=candidate == "tuned",
            train_sampling_strategy="random" if plain else "group_by_length",
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
        )
        trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return tokens[1 : len(clock.ends)], np.diff(clock.ends).tolist()


def ours(candidate: str, shape: str, batch_size: int, texts: int) -> tuple[list[int], list[float]]:
    """Return real tokens and seconds of every step of lorafit."""
    where = runtime.choose("fp32" if candidate == "ours-fp32" else "auto")
    train = workload.reviews().train
    model, fresh = workload.adapted(shape, 0.0)
    adapter.speed_up(model, fresh, where)
    assert padfree.is_enabled(model)
    lines: list[dict[str, Any]] = []
    settings = workload.DEMO.training.model_copy(update={"epochs": 1, "batch_size": batch_size})
    with tempfile.TemporaryDirectory() as folder:
        training.fit(
            model,
            workload.head(train.tokens, texts),
            train.label_ids[:texts],
            settings,
            validate=lambda *_: {"accuracy": 1.0, "f1": 1.0, "recall": 1.0, "loss": 0.0},
            validation_label_ids=train.label_ids[:texts],
            log=lines.append,
            folder=Path(folder),
            pad_id=0,
            where=where,
        )
    steps = [line for line in lines if "tokens" in line]
    return [line["tokens"] for line in steps], [line["seconds"] for line in steps]


def main() -> None:
    """Run the candidate named on the command line."""
    candidate, shape, batch_size, texts = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    run = ours if candidate.startswith("ours") else peer
    tokens, seconds = run(candidate, shape, batch_size, texts)
    rate = sum(tokens[WARM_UP_STEPS:]) / sum(seconds[WARM_UP_STEPS:])
    lengths = workload.reviews().train.tokens.lengths[:texts]
    work = workload.flops(workload.SHAPES[shape], lengths, training=True) / lengths.sum()
    workload.report(
        {
            "tokens_per_second": rate,
            "reviews_per_second": rate / lengths.mean(),
            "gflops": rate * work / 1e9,
            "peak_memory_bytes": runtime.peak_memory_bytes(),
            "batch_size": batch_size,
            "steps": len(seconds) - WARM_UP_STEPS,
            "threads": torch.get_num_threads(),
        }
    )


if __name__ == "__main__":
    main()
