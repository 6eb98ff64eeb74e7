"""What computes logits from batches of token ids: torch's model, or an export on its own runtime.

An engine takes batches as `tokens.pad` makes them and yields the logits of each, (texts, labels) and fp32, in their
order; it may work on several at a time.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorafit.errors import LorafitError
from lorafit.exported import Form
from lorafit.manifest import LongText
from lorafit.runtime import Runtime
from lorafit.tokens import ask, inputs_of, pool

Batch = dict[str, torch.Tensor]
Engine = Callable[[Iterable[Batch]], Iterator[np.ndarray]]

ONNX_MODEL = "model.onnx"
OPENVINO_MODEL = "openvino_model.xml"


def of_torch(model: torch.nn.Module, where: Runtime, long_text: LongText) -> Engine:
    """Return the engine of a model in torch, lorafit's own or any other."""

    def run(batches: Iterable[Batch]) -> Iterator[np.ndarray]:
        for batch in batches:
            with torch.inference_mode(), where.autocast():
                logits = ask(model, {key: value.to(where.device) for key, value in batch.items()}, long_text)
            yield logits.float().cpu().numpy()

    return run


def of_export(form: Form, folder: Path, threads: int, long_text: LongText) -> Engine:
    """Return the engine of an export on ONNX Runtime or OpenVINO.

    Args:
        form: what the export is; "merged" is torch's.
        folder: where it lies, checked.
        threads: of the processor.
        long_text: how the logits of windows become those of a text.

    Raises:
        LorafitError: its runtime is not installed.
    """
    run = (
        _onnx(folder, threads) if form.startswith("onnx") else _openvino(folder, threads, in_int8=form.endswith("int8"))
    )

    def pooled(batches: Iterable[Batch]) -> Iterator[np.ndarray]:
        windows: deque[torch.Tensor | None] = deque()  # of batches that are under way

        def inputs() -> Iterator[dict[str, np.ndarray]]:
            for batch in batches:
                windows.append(batch.get("windows"))
                yield {key: value.numpy() for key, value in inputs_of(batch).items()}

        for logits in run(inputs()):
            counts = windows.popleft()
            yield logits if counts is None else pool(torch.from_numpy(logits), counts, long_text).numpy()

    return pooled


def import_onnxruntime() -> Any:
    """Return the module, which sends no telemetry in this process.

    Raises:
        LorafitError: it is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read once, when it starts; its wheels come with telemetry on
    try:
        import onnxruntime
    except ImportError:
        raise _missing("ONNX Runtime") from None
    onnxruntime.disable_telemetry_events()  # where somebody imported it before us, and on Windows
    return onnxruntime


def import_openvino() -> Any:
    """Return the module, which sends no telemetry in this process.

    Raises:
        LorafitError: it is not installed.
    """
    # It and nncf count their users through this package, and do without it where it can't be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError:
        raise _missing("OpenVINO") from None
    return openvino


def _missing(what: str) -> LorafitError:
    return LorafitError(f"{what} is not installed. Install it with: pip install 'lorafit[export]'")


def _onnx(folder: Path, threads: int) -> Callable[[Iterable[dict[str, np.ndarray]]], Iterator[np.ndarray]]:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / ONNX_MODEL, options, providers=["CPUExecutionProvider"])

    def run(batches: Iterable[dict[str, np.ndarray]]) -> Iterator[np.ndarray]:
        for inputs in batches:
            yield session.run(["logits"], inputs)[0]

    return run


def _openvino(
    folder: Path, threads: int, *, in_int8: bool
) -> Callable[[Iterable[dict[str, np.ndarray]]], Iterator[np.ndarray]]:
    openvino = import_openvino()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "THROUGHPUT"}
    if not in_int8:  # left alone, it rounds to bf16 where the processor has that: of int8 that is the lesser rounding
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = openvino.Core().compile_model(folder / OPENVINO_MODEL, "CPU", settings)
    at_once = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")

    def run(batches: Iterable[dict[str, np.ndarray]]) -> Iterator[np.ndarray]:
        # Of this call alone: another thread's, or one that was broken off, must not be mistaken for it.
        free, working = deque(compiled.create_infer_request() for _ in range(at_once)), deque[Any]()

        def finished() -> np.ndarray:
            request = working.popleft()
            request.wait()
            free.append(request)
            return np.array(request.get_output_tensor(0).data)

        for inputs in batches:
            found = None if free else finished()
            request = free.popleft()
            request.start_async(inputs)
            working.append(request)
            if found is not None:  # only now, so that nothing stands idle while the caller has it
                yield found
        while working:
            yield finished()

    return run
