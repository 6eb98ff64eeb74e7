"""Device, precision, threads and seed: chosen once, with the reason; and what this machine is."""

import ctypes
import functools
import importlib.metadata
import json
import os
import platform
import sys
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import psutil
import torch

from lorafit import ranks
from lorafit.errors import RecipeError, RunError, StorageError
from lorafit.files import write_text

BF16_GAIN_NEEDED = 1.2  # bf16 rounds to 8 bits; below this gain fp32 is the better bargain


@dataclass(frozen=True)
class Runtime:
    """Where and how the arithmetic is done. `reason` says how the precision was found."""

    device: str
    precision: str
    threads: int
    reason: str

    @property
    def base_dtype(self) -> torch.dtype:
        """The type that frozen weights are cast to, once. On a GPU they stay fp32 and autocast does the casting."""
        return torch.bfloat16 if self.precision == "bf16" and self.device == "cpu" else torch.float32

    @property
    def autocasts(self) -> bool:
        """Whether forward passes run under bf16 autocast."""
        return self.precision == "bf16" and self.device != "cpu"

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which a forward pass runs."""
        return torch.autocast(self.device, torch.bfloat16) if self.autocasts else nullcontext()

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.device == "cpu" else ""
        return f"{self.device}{threads}, {self.precision} ({self.reason})"


def choose(precision: str = "auto", threads: int = 0) -> Runtime:
    """Choose the device, set the number of threads, and settle the precision.

    Args:
        precision: "fp32", "bf16", or "auto": bf16 where a short matrix product measures it faster.
        threads: CPU threads; 0 means one for each core that this process may use, its share of them beside other ranks.

    Raises:
        RecipeError: no such precision, or a GPU that does not have it.

    >>> choose(precision="fp32", threads=1).threads
    1
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise RecipeError(f"There is no precision {precision!r}; there are auto, fp32 and bf16.")
    keep_few_shapes()
    keep_freed_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = threads or max(1, usable_cores() // ranks.local_count())
    torch.set_num_threads(threads)
    if precision == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported():
        raise RecipeError('encoder.precision = "bf16": this GPU does not have it. Set it to "auto" or "fp32".')
    if precision != "auto":
        return Runtime(device, precision, threads, "as asked for")
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported()
        return Runtime(device, "bf16" if fast else "fp32", threads, "what this GPU supports")
    gain = _bf16_gain(threads)
    return Runtime(device, "bf16" if gain >= BF16_GAIN_NEEDED else "fp32", threads, f"bf16 measured {gain:.1f}x fp32")


def restore(record: dict[str, Any]) -> Runtime:
    """Return the choice that `as_record` wrote, made again: a resumed run goes on with the very same arithmetic.

    Raises:
        RunError: the device is not there any more.
    """
    keep_few_shapes()
    keep_freed_memory()
    where = Runtime(**record)
    if where.device == "cuda" and not torch.cuda.is_available():
        raise RunError("The run was started on a GPU, and there is none here. Train it anew with --overwrite.")
    if ranks.local_count() > 1:  # perhaps more than there were
        where = replace(where, threads=min(where.threads, max(1, usable_cores() // ranks.local_count())))
    torch.set_num_threads(where.threads)
    return where


def seed(number: int) -> None:
    """Seed Python's, NumPy's and torch's generators, so that a fresh head and an adapter start the same."""
    from transformers import set_seed

    set_seed(number)


def cache_dir() -> Path:
    """Return the folder for what can be made again: prepared data and measurements. `LORAFIT_CACHE` moves it."""
    return Path(os.environ.get("LORAFIT_CACHE") or platformdirs.user_cache_dir("lorafit"))


def peak_memory_bytes() -> int:
    """Return the most memory this process has held, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def describe_machine() -> dict[str, Any]:
    """Return versions and machine, for the record that stands beside every number."""
    packages = ("lorafit", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "system": platform.platform(),
        "processor": processor(),
        "cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def as_record(runtime: Runtime) -> dict[str, Any]:
    """Return the choice as plain values, for `run.json`."""
    return asdict(runtime)


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return x W' + b, (rows, out), without a gradient, through oneDNN where torch has it.

    In fp32 that is twice as fast on an AMD processor as `linear`, which asks MKL, and as exact. oneDNN refuses bf16 on
    processors without AVX-512, where `linear` has it.
    """
    if torch.backends.mkldnn.is_available() and (x.dtype != torch.bfloat16 or _onednn_has_bf16()):
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return torch.nn.functional.linear(x, weight, bias)


@functools.cache
def _onednn_has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def keep_few_shapes(products: int = 32) -> None:
    """Let oneDNN and torch's layer above it keep the last few products they have prepared, not the last thousand.

    Without padding every batch has another number of rows, and each kept product holds memory: 2 GB after 400 batches.
    Preparing one anew takes no measurable time. Read once, when the process does its first product.

    Args:
        products: how many; a step of training has some twenty kinds, prediction five.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(products))
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(products // 2))


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for what comes next, up to 2 GB; elsewhere nothing is done.

    Each batch frees what the next one needs again. Given back in between, its pages have to be made anew: up to 25,000
    faults a batch, and a tenth of the rate.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    for name, number, value in (("TRIM", -1, 2**31 - 1), ("MMAP", -3, 2**25)):  # glibc's malloc.h; 2**25 is its limit
        if mallopt is not None and f"MALLOC_{name}_THRESHOLD_" not in os.environ:
            mallopt(number, value)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    from joblib import cpu_count  # which sees a container's quota too

    return int(cpu_count())


def processor() -> str:
    """Return the processor's name as the system gives it."""
    described = _cpuinfo()
    name = " ".join(described.get(key, "") for key in ("model name", "cpu family", "model")).strip()
    return name or platform.processor() or platform.machine()


def instruction_sets() -> str:
    """Return what the processor can do, as the system lists it: code built for one list may not run on another."""
    described = _cpuinfo()
    return described.get("flags") or described.get("Features", "")  # x86, ARM


def _cpuinfo() -> dict[str, str]:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in fields.items()}


def _bf16_gain(threads: int) -> float:
    """Return how many times faster bf16 is; measured once for this processor, torch and number of threads.

    Kept on disk because the answer decides the arithmetic: two runs on one machine must not get two answers.
    """
    kept = cache_dir() / "bf16_gain.json"
    key = f"{processor()} | torch {torch.__version__} | {threads} threads"
    verdicts = _read_verdicts(kept)
    if key not in verdicts:
        verdicts[key] = round(_seconds_per_product(torch.float32) / _seconds_per_product(torch.bfloat16), 2)
        with suppress(StorageError):  # measured again next time
            write_text(kept, json.dumps(verdicts, indent=2))
    return float(verdicts[key])


def _read_verdicts(file: Path) -> dict[str, float]:
    try:
        verdicts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there yet, or damaged: it can be measured again
        return {}
    return verdicts if isinstance(verdicts, dict) else {}


def _seconds_per_product(dtype: torch.dtype) -> float:
    """Time the product at the heart of an encoder layer (tokens x width x feed-forward): the median of nine."""
    left, right = torch.randn(2048, 384).to(dtype), torch.randn(1536, 384).to(dtype)
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        multiply(left, right)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[3:]))
