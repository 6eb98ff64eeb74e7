"""Device, precision and threads are chosen once, with the reason, and the same every time."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lorafit import pipeline, runtime

pytestmark = pytest.mark.usefixtures("proved_in_this_process")


@pytest.mark.parametrize(("seconds_fp32", "precision"), [(3.0, "bf16"), (1.1, "fp32"), (0.5, "fp32")])
def test_auto_takes_bf16_where_it_is_measured_faster_and_keeps_the_verdict(
    seconds_fp32: float, precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU answers without measuring")
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path))
    seconds = {torch.float32: seconds_fp32, torch.bfloat16: 1.0}
    monkeypatch.setattr(runtime, "_seconds_per_product", seconds.__getitem__)
    first = runtime.choose("auto", threads=1)
    assert (first.precision, first.reason) == (precision, f"bf16 measured {seconds_fp32:.1f}x fp32")

    def never(_: torch.dtype) -> float:
        raise AssertionError("measured again")

    monkeypatch.setattr(runtime, "_seconds_per_product", never)
    assert runtime.choose("auto", threads=1) == first
    runtime.choose("fp32")


def test_threads_are_what_was_asked_for() -> None:
    runtime.choose("fp32", threads=1)
    assert torch.get_num_threads() == 1
    assert runtime.choose("fp32").threads == torch.get_num_threads()


def test_one_process_can_train_in_both_precisions(tiny_recipe: Callable[..., Any], tmp_path: Path) -> None:
    runs = [
        pipeline.train(tiny_recipe(encoder={"precision": precision}), tmp_path / f"{place}")
        for place, precision in enumerate(["fp32", "bf16", "fp32"])
    ]
    fp32, bf16, again = ((run.adapter / "adapter_model.safetensors").read_bytes() for run in runs)
    assert fp32 == again != bf16


def test_the_record_of_a_machine_names_what_decides_a_number() -> None:
    described = runtime.describe_machine()
    assert described["packages"]["torch"] == torch.__version__
    assert described["cores"] >= 1
    assert described["processor"]
    assert runtime.peak_memory_bytes() > 50e6


class _Operators(TorchDispatchMode):
    """Notes what torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_on_a_processor_for_which_onednn_has_no_bf16_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = torch.randn(3, 4).bfloat16(), torch.randn(5, 4).bfloat16(), torch.randn(5).bfloat16()
    monkeypatch.setattr(runtime, "_onednn_has_bf16", lambda: False)
    with _Operators() as asked:
        found = runtime.multiply(x, weight, bias)
    torch.testing.assert_close(found, torch.nn.functional.linear(x, weight, bias))
    assert asked.names
    assert not any("mkldnn" in name for name in asked.names)


def test_what_is_freed_is_kept_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    glibc = SimpleNamespace(mallopt=lambda *given: asked.append(given))
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda _: glibc)
    monkeypatch.setattr(runtime.sys, "platform", "linux")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    runtime.keep_freed_memory()
    assert asked == [(-3, 2**25)]
