"""A merged model in torch -> the files of a form, through torch's and the runtimes' own converters.

Batch and length stay dynamic. Nothing here is trusted: what was written is asked again, see `agreement`.
"""

import importlib.util
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lorafit.backends import ONNX_MODEL, OPENVINO_MODEL, import_onnxruntime, import_openvino
from lorafit.errors import BundleError, LorafitError
from lorafit.exported import Form
from lorafit.files import storing
from lorafit.tokens import Tokens, inputs_of, pad

CONFIG = "config.json"
OPSET = 18
SMOOTHINGS = (
    0.5,
    0.8,
)  # how much of the activations' range moves into the weights (Xiao et al. 2023, arXiv:2211.10438)
_PACKAGES: dict[Form, tuple[str, ...]] = {
    "merged": (),
    "onnx": ("onnx", "onnxruntime"),
    "onnx-int8": ("onnx", "onnxruntime"),
    "openvino": ("openvino",),
    "openvino-int8": ("openvino", "nncf"),
}


def refuse_missing(form: Form) -> None:
    """Refuse a form whose converter is not installed, before any work.

    Raises:
        LorafitError: says what to install.
    """
    if form.startswith("onnx"):
        import_onnxruntime()
    elif form.startswith("openvino"):
        import_openvino()
    for package in _PACKAGES[form]:
        if importlib.util.find_spec(package) is None:
            raise LorafitError(
                f"{form} needs {package}, which is not installed. Install it with: pip install 'lorafit[export]'"
            )


def versions(form: Form) -> dict[str, str]:
    """Return the versions of a form's converter and runtime."""
    return {package: str(importlib.import_module(package).__version__) for package in _PACKAGES[form]}


@dataclass(frozen=True)
class Samples:
    """Texts to trace a model by and to calibrate int8 on, others to choose a way to do that by, and the padding id."""

    calibration: Tokens
    validation: Tokens
    pad_id: int

    def inputs(self, of: Tokens) -> list[dict[str, np.ndarray]]:
        """Return what a model is given of each text."""
        batches = (inputs_of(pad(of, [text], self.pad_id)) for text in range(len(of)))
        return [{name: values.numpy() for name, values in batch.items()} for batch in batches]


def convert(model: PreTrainedModel, form: Form, folder: Path, samples: Samples, head: list[str]) -> list[str]:
    """Write the model's files into `folder`; returns the names of its inputs.

    Args:
        model: base and adapter, merged, in fp32.
        form: which.
        folder: where to.
        samples: texts.
        head: modules that stay in fp32 in OpenVINO's int8: they take no time, and their error is the answer's.

    Raises:
        BundleError: a converter that does not know the model.
    """
    texts = samples.calibration
    example = inputs_of(pad(texts, [0, min(1, len(texts) - 1)], samples.pad_id))
    with _quietly(), _attention_that_converts(model, form):
        try:
            _write(model, form, folder, example, samples, head)
        except LorafitError:
            raise
        except Exception as error:  # converters raise whatever they come across
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BundleError(f"This encoder can't be converted to {form}: {reason}") from error
    return list(example)


def _write(
    model: PreTrainedModel,
    form: Form,
    folder: Path,
    example: dict[str, torch.Tensor],
    samples: Samples,
    head: list[str],
) -> None:
    with storing(folder):
        if form == "merged":
            _write_merged(model, folder)
        elif form.startswith("onnx"):
            _write_onnx(model, folder, example, in_int8=form == "onnx-int8")
        else:
            _write_openvino(model, folder, example, samples if form == "openvino-int8" else None, head)


def bytes_of(folder: Path) -> int:
    """Return what the files in a folder take."""
    return sum(file.stat().st_size for file in folder.iterdir())


def _write_merged(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # which nobody else may read, as safetensors writes them
        shutil.copymode(folder / CONFIG, weights)


def _write_onnx(model: PreTrainedModel, folder: Path, example: dict[str, torch.Tensor], *, in_int8: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as scratch:
        file = (Path(scratch) if in_int8 else folder) / ONNX_MODEL
        torch.onnx.export(
            model,
            (),
            file,
            kwargs=example,
            input_names=list(example),
            output_names=["logits"],
            dynamic_axes={name: {0: "texts", 1: "tokens"} for name in example},
            opset_version=OPSET,
            dynamo=False,  # see docs/design/exports.md
        )
        if in_int8:
            quantize_dynamic(
                file,
                folder / ONNX_MODEL,
                per_channel=True,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=_narrowing(file),
            )


def _narrowing(file: Path) -> list[str]:
    """Return the products whose answer is narrower than their input: each second feed-forward layer, and the head.

    Their input has outliers that one scale a tensor, which is all that dynamic quantization has, rounds away.
    """
    import onnx

    graph = onnx.load(file).graph
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    products = (node for node in graph.node if node.op_type == "MatMul" and node.input[1] in shapes)
    return [node.name for node in products if shapes[node.input[1]][0] > shapes[node.input[1]][1]]


def _write_openvino(
    model: PreTrainedModel,
    folder: Path,
    example: dict[str, torch.Tensor],
    samples: Samples | None,
    head: list[str],
) -> None:
    openvino = import_openvino()
    converted = openvino.convert_model(model, example_input=example)
    if samples is not None:
        converted = _in_int8(converted, samples, head)
    openvino.save_model(converted, folder / OPENVINO_MODEL, compress_to_fp16=False)


def _in_int8(model: Any, samples: Samples, head: list[str]) -> Any:
    """Return an OpenVINO model quantized after training: int8 weights and activations, by the ranges of some texts.

    No one way to find those ranges is best: of several that one is taken whose logits are nearest on other texts.
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    estimators = nncf.quantization.range_estimator.RangeEstimatorParametersSet
    calibration = nncf.Dataset(samples.inputs(samples.calibration))
    texts = samples.inputs(samples.validation)
    original = _logits(model, texts)
    candidates = [
        nncf.quantize(
            model.clone(),
            calibration,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples.calibration),
            ignored_scope=nncf.IgnoredScope(patterns=[rf".*\b{name}\b.*" for name in head], validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=smoothing),
                activations_range_estimator_params=estimator,
            ),
        )
        for smoothing in SMOOTHINGS
        for estimator in (estimators.MEAN_MINMAX, estimators.HISTOGRAM)
    ]
    return min(candidates, key=lambda candidate: float(np.abs(_logits(candidate, texts) - original).mean()))


def _logits(model: Any, texts: list[dict[str, np.ndarray]]) -> np.ndarray:
    compiled = import_openvino().Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([compiled(text)[0] for text in texts])


@contextmanager
def _attention_that_converts(model: PreTrainedModel, form: Form) -> Iterator[None]:
    """Let attention be plain products where a converter would not get torch's fused one right.

    OpenVINO gives nan for a row of which a local window sees nothing but padding.
    """
    before = model.config._attn_implementation
    plain = form.startswith("onnx") or (form.startswith("openvino") and hasattr(model.config, "local_attention"))
    if plain:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what converters print and warn of off the terminal."""
    level = logging.root.level
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
            logging.root.setLevel(level)
