"""Score reviews with one candidate and print its speed as JSON:  predict_one.py CANDIDATE TEXTS.

All candidates have the bundled encoder with the same merged adapter. pipeline is transformers' own on texts; the others
get token ids, sorted by length.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import workload

from lorafit import adapter, data, encoders, predict, runtime
from lorafit.backends import import_onnxruntime, import_openvino
from lorafit.tokens import Tokens, pad

BATCH_SIZE = 32
CALIBRATION_TEXTS = 100
Run = Callable[[Tokens], np.ndarray]


def merged() -> tuple[Any, list[str]]:
    """Return the classifier with an adapter that is not zero merged into it."""
    model, fresh = workload.adapted("bundled", 0.0)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    return model.merge_and_unload().eval(), fresh


def batches(tokens: Tokens) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """Yield rows and padded ids, sorted by falling length."""
    order = np.argsort(-tokens.lengths, kind="stable")
    for start in range(0, len(order), BATCH_SIZE):
        rows = order[start : start + BATCH_SIZE]
        yield rows, pad(tokens, rows.tolist(), 0)


def sorted_run(score: Callable[[dict[str, torch.Tensor]], np.ndarray]) -> Run:
    """Return a run that scores batch after batch."""

    def run(tokens: Tokens) -> np.ndarray:
        logits = np.empty((len(tokens), 2), dtype=np.float32)
        for rows, batch in batches(tokens):
            logits[rows] = score(batch)
        return logits

    return run


def ours(precision: str) -> Run:
    """Run lorafit's own engine."""
    model, fresh = merged()
    where = runtime.choose(precision)
    adapter.speed_up(model, fresh, where)
    return lambda tokens: predict.logits(model, tokens, 0, where)


def torch_padded(dtype: torch.dtype) -> Run:
    """Run transformers' model with SDPA."""
    runtime.choose("fp32")
    model, _ = merged()
    model.to(dtype)

    def score(batch: dict[str, torch.Tensor]) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(model(**batch).logits.float())

    return sorted_run(score)


def openvino(precision: str) -> Run:
    """Run OpenVINO's CPU plugin; int8 is nncf's post-training quantization."""
    ov = import_openvino()
    import nncf

    model, _ = merged()
    found = workload.reviews()
    example = next(batches(workload.head(found.train.tokens, 2)))[1]
    converted = ov.convert_model(model, example_input=example)
    if precision == "int8":
        samples = [pad(found.train.tokens, [row], 0) for row in range(CALIBRATION_TEXTS)]
        as_numpy = [{key: value.numpy() for key, value in sample.items()} for sample in samples]
        converted = nncf.quantize(converted, nncf.Dataset(as_numpy), model_type=nncf.ModelType.TRANSFORMER)
    hint = {"int8": "f32", "fp32": "f32", "bf16": "bf16"}[precision]
    compiled = ov.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    return sorted_run(lambda batch: np.asarray(compiled({key: value.numpy() for key, value in batch.items()})[0]))


def onnx(precision: str) -> Run:
    """Run onnxruntime; int8 is its dynamic quantization."""
    onnxruntime = import_onnxruntime()
    from onnxruntime.quantization import quantize_dynamic

    model, _ = merged()
    model.set_attn_implementation("eager")
    example = next(batches(workload.head(workload.reviews().train.tokens, 2)))[1]
    folder = Path(tempfile.mkdtemp())
    names = ["input_ids", "attention_mask"]
    torch.onnx.export(
        model,
        tuple(example[name] for name in names),
        folder / "model.onnx",
        input_names=names,
        output_names=["logits"],
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in names},
        dynamo=False,
    )
    file = folder / "model.onnx"
    if precision == "int8":
        quantize_dynamic(file, folder / "int8.onnx")
        file = folder / "int8.onnx"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return sorted_run(
        lambda batch: np.asarray(session.run(None, {key: value.numpy() for key, value in batch.items()})[0])
    )


def pipeline(texts: int) -> dict[str, Any]:
    """Time transformers' pipeline on texts, as its page shows it."""
    import transformers

    runtime.choose("fp32")
    model, _ = merged()
    tokenizer = encoders.load_tokenizer(encoders.locate("bundled:minilm").folder, "minilm")
    classify = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    some = data.open_source("bundled:imdb").table["text"].tolist()[:texts]
    classify(some[:4], truncation=True, max_length=512)
    start = time.perf_counter()
    classify(some, truncation=True, max_length=512)
    seconds = time.perf_counter() - start
    return {"reviews_per_second": texts / seconds, "peak_memory_bytes": runtime.peak_memory_bytes()}


CANDIDATES: dict[str, Callable[[], Run]] = {
    "ours": lambda: ours("auto"),
    "ours-fp32": lambda: ours("fp32"),
    "torch-fp32": lambda: torch_padded(torch.float32),
    "torch-bf16": lambda: torch_padded(torch.bfloat16),
    "onnxruntime-fp32": lambda: onnx("fp32"),
    "onnxruntime-int8": lambda: onnx("int8"),
    "openvino-fp32": lambda: openvino("fp32"),
    "openvino-bf16": lambda: openvino("bf16"),
    "openvino-int8": lambda: openvino("int8"),
}


def main() -> None:
    """Run the candidate named on the command line."""
    candidate, texts = sys.argv[1], int(sys.argv[2])
    if candidate == "pipeline":
        workload.report(pipeline(texts))
        return
    tokens = workload.head(workload.reviews().test.tokens, texts)
    run = CANDIDATES[candidate]()
    run(workload.head(tokens, BATCH_SIZE))
    start = time.perf_counter()
    logits = run(tokens)
    seconds = time.perf_counter() - start
    peak = runtime.peak_memory_bytes()
    model, _ = merged()
    exact = sorted_run(lambda batch: np.asarray(model(**batch).logits.detach()))(workload.head(tokens, 64))
    workload.report(
        {
            "reviews_per_second": texts / seconds,
            "gflops": workload.flops(workload.SHAPES["bundled"], tokens.lengths, training=False) / seconds / 1e9,
            "peak_memory_bytes": peak,
            "largest_logit_gap": float(np.abs(logits[:64] - exact).max()),
        }
    )


if __name__ == "__main__":
    main()
