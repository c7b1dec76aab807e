"""Where a model runs and in which number format.

bfloat16 only where the hardware multiplies it: on a CPU without AMX or AVX512-BF16 it is several times *slower* than
float32 (measured: 19 against 145 GFLOP/s on two AVX2 cores).

>>> pick_device("float32").dtype
'float32'
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from anchorline.errors import MissingExtra, ModelError

DtypeName = Literal["auto", "float32", "bfloat16"]


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
    fast = torch.cuda.is_bf16_supported() if cuda else cpu_multiplies_bf16()
    name = "cuda" if cuda else "cpu"
    if cuda and not fast and dtype == "bfloat16":
        raise ModelError("dtype is bfloat16, but this CUDA device has none; set it to float32")
    return Device(name, ("bfloat16" if fast else "float32") if dtype == "auto" else dtype)


def exact_dtype(dtype: DtypeName = "auto") -> DtypeName:
    """For measuring: "auto" becomes float32 on a CPU.

    In bfloat16 a batch rounds otherwise than a prompt alone, which turns near ties: the answers that were measured would
    not be those that the saved model gives elsewhere.
    """
    return "float32" if dtype == "auto" and pick_device("float32").name == "cpu" else dtype


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has matrix instructions for bfloat16."""
    import torch

    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
