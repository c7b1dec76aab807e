"""Where a model runs and in which number format.

bfloat16 only where the hardware multiplies it. A CPU is asked by a short measurement of both formats: without AMX or
AVX512-BF16, bfloat16 is several times *slower* than float32 (19 against 145 GFLOP/s on two AVX2 cores), with them two to
ten times faster, and a processor's flags do not say what its library makes of them.

>>> pick_device("float32").dtype
'float32'
"""

from __future__ import annotations

import ctypes
import os
import time
from functools import cache
from typing import Literal, NamedTuple

from anchorline.errors import MissingExtra, ModelError

DtypeName = Literal["auto", "float32", "bfloat16"]
MeasuringDtype = Literal["auto", "fast", "float32", "bfloat16"]

# torch reads it when it makes its first tensor. Pages of 2 MB where the system lets a program ask for them: a large tensor
# comes in one fault instead of 512, which took a quarter of a training's first steps
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


class Device(NamedTuple):
    """A torch device's name, and the name of the dtype in which weights are held and multiplied."""

    name: str
    dtype: str


def pick_device(dtype: DtypeName = "auto") -> Device:
    """CUDA if there is a device, else the CPU; "auto" becomes bfloat16 where the hardware has it."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("running a model", "train") from error
    cuda = torch.cuda.is_available()
    if cuda and dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
        raise ModelError("dtype is bfloat16, but this CUDA device has none; set it to float32")
    if dtype == "auto":
        fast = torch.cuda.is_bf16_supported() if cuda else cpu_multiplies_bf16()
        dtype = "bfloat16" if fast else "float32"
    return Device("cuda" if cuda else "cpu", dtype)


def measuring_dtype(dtype: MeasuringDtype = "auto") -> DtypeName:
    """For measuring: "auto" becomes float32 on a CPU, "fast" what training's "auto" is.

    In bfloat16 a batch rounds otherwise than a prompt alone, which turns near ties: the answers that were measured would
    not be those that the saved model gives elsewhere.
    """
    if dtype == "fast":
        return "auto"
    return "float32" if dtype == "auto" and pick_device("float32").name == "cpu" else dtype


@cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory that tensors have left, for the next ones; whether it does for every size (glibc).

    By default large blocks go back to the system and come again page by page, each page a fault: a quarter of a
    training step's time on a virtual machine, where faults are slow. The price is some memory lost between blocks.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # a program without a dynamic C library, or one whose library has no such call
        return False
    most = 2**31 - 4096  # of a C int, in bytes
    # by malloc.h: M_MMAP_THRESHOLD −3, M_TRIM_THRESHOLD −1, M_TOP_PAD −2
    every_size = mallopt(-3, most)
    if not every_size:
        mallopt(-3, 32 * 2**20)  # some glibc take no more than half of what they call a heap
    return all([every_size, mallopt(-1, most), mallopt(-2, 64 * 2**20)])


class Products(NamedTuple):
    """How many GFLOP/s this CPU reaches in matrix products of each format."""

    float32: float
    bfloat16: float


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 clearly faster than float32: else the better of two equals is the exact one."""
    speeds = product_speeds()
    return speeds.bfloat16 > 1.25 * speeds.float32


def measured_products() -> dict[str, float] | None:
    """The speeds by which a format was chosen, if they were measured in this process."""
    return product_speeds()._asdict() if product_speeds.cache_info().currsize else None


@cache
def product_speeds() -> Products:
    """Both formats in turn, the best of several each, so that a busy machine slows both: a tenth of a second."""
    import torch

    rows, width = 256, 1024
    products = [torch.ones(rows, width, dtype=d) for d in (torch.float32, torch.bfloat16)]
    matrices = [torch.ones(width, width, dtype=x.dtype) for x in products]
    best = [float("inf")] * 2
    for _ in range(5):
        for i, (x, matrix) in enumerate(zip(products, matrices, strict=True)):
            start = time.perf_counter()
            _ = x @ matrix
            best[i] = min(best[i], time.perf_counter() - start)
    return Products(*(round(2 * rows * width**2 / seconds / 1e9, 1) for seconds in best))
