"""Our C++ kernels: built on first use with the machine's own compiler, and called on tensors.

Without a compiler everything still runs, on torch's operators, and `status` says why.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import torch

from lorafit import runtime
from lorafit.errors import StorageError
from lorafit.files import write_atomically

SOURCE = Path(__file__).parent / "native" / "kernels.cpp"
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-std=c++17", "-shared", "-fPIC", "-Wno-psabi")
_SUFFIX = {torch.float32: "fp32", torch.bfloat16: "bf16"}
_BUILD_SECONDS = 300
_LOADING = threading.Lock()  # threads that come at once wait for one build


class _Attention(ctypes.Structure):
    """`struct Attention` of native/kernels.cpp; the comments stand there."""

    _pointers = ("q", "k", "v", "starts", "out", "row_sums", "grad_out", "grad_q", "grad_k", "grad_v")
    _numbers = ("q_row", "k_row", "v_row", "grad_row", "sequences", "tokens", "heads", "head", "window", "queries")
    _fields_ = (
        *((name, ctypes.c_void_p) for name in _pointers),
        *((name, ctypes.c_int64) for name in _numbers),
        ("scale", ctypes.c_float),
        ("dropout", ctypes.c_float),
        ("seed", ctypes.c_uint64),
        ("threads", ctypes.c_int32),
        ("launcher", ctypes.c_void_p),
    )


class _Dropped(ctypes.Structure):
    """`struct Dropped` of native/kernels.cpp."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("share", ctypes.c_float),
        ("seed", ctypes.c_uint64),
        ("threads", ctypes.c_int32),
        ("launcher", ctypes.c_void_p),
    )


class Kernels:
    """The loaded library. Tensors are read and written where they lie: the caller sees to shapes and types."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        # torch's own OpenMP threads are up already; where there are none to be found, C++ starts threads of its own.
        launcher = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
        self._launcher = ctypes.cast(launcher, ctypes.c_void_p).value if launcher else None

    def attention(self, dtype: torch.dtype, **call: torch.Tensor | float | None) -> None:
        """Run `attention_*`, forward, or backward where `grad_out` is given."""
        self._run("attention", _Attention, dtype, call)

    def dropout(self, x: torch.Tensor, share: float, seed: int) -> torch.Tensor:
        """Return x with a share of its numbers zero and the rest scaled up; the same seed drops the same ones."""
        out = torch.empty_like(x)
        self._run("dropout", _Dropped, x.dtype, {"x": x, "out": out, "count": x.numel(), "share": share, "seed": seed})
        return out

    def _run(
        self,
        name: str,
        structure: type[ctypes.Structure],
        dtype: torch.dtype,
        call: dict[str, torch.Tensor | float | None],
    ) -> None:
        values = {key: value.data_ptr() if isinstance(value, torch.Tensor) else value for key, value in call.items()}
        filled = structure(**values, threads=torch.get_num_threads(), launcher=self._launcher)
        getattr(self._library, f"{name}_{_SUFFIX[dtype]}")(ctypes.byref(filled))


def usable(*tensors: torch.Tensor) -> Kernels | None:
    """Return the kernels if they can work on these tensors (of one type, fp32 or bf16, on the CPU), else None."""
    first = tensors[0]
    if first.dtype not in _SUFFIX or any(x.device.type != "cpu" or x.dtype != first.dtype for x in tensors):
        return None
    return available()


def available() -> Kernels | None:
    """Return the kernels, built now if this machine has not built them yet; None where they can't be had."""
    kernels, _ = _loaded()
    return kernels


def draw_seed() -> int:
    """Return a seed for dropout from torch's own generator, so that its seed and its saved state decide."""
    return int(torch.randint(2**62, ()).item())


def status() -> str:
    """Say in a few words what an encoder's attention runs on.

    >>> status()
    'compiled kernels'
    """
    kernels, reason = _loaded()
    return "compiled kernels" if kernels else f"torch's own operators, because {reason}"


def _loaded() -> tuple[Kernels | None, str]:
    """Return the kernels, or None and the reason."""
    with _LOADING:
        return _load()


@functools.cache
def _load() -> tuple[Kernels | None, str]:
    """Look once, because the answer can't change in a process."""
    asked = os.environ.get("CXX")
    compiler = next(filter(None, map(shutil.which, [asked] if asked else ["c++", "g++", "clang++"])), None)
    if compiler is None:
        return None, f"there is no {asked or 'C++ compiler (c++, g++ or clang++)'} here"
    try:
        return _built(compiler), ""
    except (subprocess.SubprocessError, OSError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return None, f"{compiler} did not build them ({said[0] if said else 'it said nothing'})"


def _built(compiler: str) -> Kernels:
    """Return the kernels for this source, compiler and processor; they are built if they are not there yet."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    sources = [file.read_text(encoding="utf-8") for file in sorted(SOURCE.parent.iterdir())]
    key = "\n".join((*sources, version, runtime.processor(), runtime.instruction_sets(), *_FLAGS))
    name = f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    library = runtime.cache_dir() / name
    try:
        if not library.is_file():
            write_atomically(library, lambda unfinished: _build(compiler, unfinished))
    except StorageError:  # built again by the next process
        with tempfile.TemporaryDirectory(prefix="lorafit-", ignore_cleanup_errors=True) as folder:
            library = Path(folder) / name
            _build(compiler, library)
            return Kernels(library)
    return Kernels(library)


def _build(compiler: str, library: Path) -> None:
    command = [compiler, *_FLAGS, str(SOURCE), "-o", str(library), "-lpthread", "-lm"]
    subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=True)
