"""native.cpp: what a training in bfloat16 does on a CPU between its large products, compiled for the processor it runs on.

The compiler runs once, two seconds; what it made lies in the cache, named by the source, the compiler and the processor.
Where there is no compiler, or no AVX512 with bfloat16, `native()` is None, and torch's own operations do the same.

>>> native().name  # doctest: +SKIP
'AMX 3f2a9c…'
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import torch
from jaxtyping import BFloat16, Bool, Float, Int64
from torch import Tensor, autograd
from torch.profiler import record_function

from anchorline.llm.embedded import cache_folder

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-ffp-contract=off")
WITHOUT_TILES = ("-mno-amx-tile", "-mno-amx-bf16")
LANES = 16
"""Numbers of a vector: widths of norms and sizes of gates are multiples of it."""
WIDE = 32
"""Heads, and the inputs of linear layers, are filled up to a multiple of this width."""
PANEL = 32
"""And the outputs of linear layers to a multiple of this."""
OUTPUTS = 8192
"""Rows of a weight whose gradient is made at one time: what comes back is transposed for it."""
LISTED = "native::"
"""What its functions' names begin with in torch's profiler."""
KEPT = "_anchorline_packed"
"""The attribute under which a weight that does not change has its packed copies: by rows, across."""


class _Heads(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("head", ctypes.c_int64), ("token", ctypes.c_int64))

    @classmethod
    def of(cls, x_HTD: Tensor) -> _Heads:
        assert x_HTD.dtype == torch.bfloat16 and x_HTD.stride(2) == 1
        return cls(x_HTD.data_ptr(), x_HTD.stride(0), x_HTD.stride(1))


class _Shape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "key_heads", "groups", "width", "wide", "window")),
        ("scale", ctypes.c_float),
    )

    @classmethod
    def of(cls, q_HTD: Tensor, k_NTD: Tensor, scale: float, window: int | None) -> _Shape:
        heads, tokens, width = q_HTD.shape
        wide = width + -width % WIDE
        return cls(tokens, len(k_NTD), heads // len(k_NTD), width, wide, window or 0, scale)


class Native:
    """The compiled functions, on tensors of the CPU, bfloat16 where nothing else is said; each in torch's number of threads."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self._library = library
        self.name = name
        """What decides how results are rounded: the instructions, and which build of the source."""
        self.tiles = name.startswith("AMX")

    def attention(
        self,
        q: BFloat16[Tensor, "heads tokens width"],
        k: BFloat16[Tensor, "key_heads tokens width"],
        v: BFloat16[Tensor, "key_heads tokens width"],
        sequences: Int64[Tensor, "sequences 8"],
        scale: float,
        window: int | None,
    ) -> tuple[BFloat16[Tensor, "tokens heads width"], Float[Tensor, "heads tokens"]]:
        """Causal attention of a row's sequences.

        `sequences`: of each, three stretches [from, to) of the row, one behind the other, and how many of its last tokens
        ask. Each token of the row asks in one sequence. Returns the outputs, and the base-2 logarithms of softmax's sums.
        """
        heads, tokens, width = q.shape
        out, logs = q.new_empty(tokens, heads, width), q.new_empty(heads, tokens, dtype=torch.float32)
        self._call(
            "attention_forward",
            *map(_Heads.of, (q, k, v, out.transpose(0, 1))),
            logs,
            _Shape.of(q, k, scale, window),
            sequences,
            ctypes.c_int64(len(sequences)),
        )
        return out, logs

    def attention_backward(
        self,
        q: BFloat16[Tensor, "heads tokens width"],
        k: BFloat16[Tensor, "key_heads tokens width"],
        v: BFloat16[Tensor, "key_heads tokens width"],
        out: BFloat16[Tensor, "tokens heads width"],
        logs: Float[Tensor, "heads tokens"],
        grad: BFloat16[Tensor, "tokens heads width"],
        sequences: Int64[Tensor, "sequences 8"],
        scale: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients in q, k and v."""
        grad = grad if grad.stride(2) == 1 else grad.contiguous()
        # laid out token by token, as the layers before made q, k and v
        made = [x.new_empty(x.shape[1], x.shape[0], x.shape[2]).transpose(0, 1) for x in (q, k, v)]
        self._call(
            "attention_backward",
            *map(_Heads.of, (q, k, v, out.transpose(0, 1), grad.transpose(0, 1))),
            logs,
            *map(_Heads.of, made),
            _Shape.of(q, k, scale, window),
            sequences,
            ctypes.c_int64(len(sequences)),
        )
        return made[0], made[1], made[2]

    def answer(
        self,
        q: BFloat16[Tensor, "rows heads 1 width"],
        k: BFloat16[Tensor, "rows key_heads keys width"],
        v: BFloat16[Tensor, "rows key_heads keys width"],
        seen: Bool[Tensor, "rows 1 1 keys"] | None,
        scale: float,
    ) -> BFloat16[Tensor, "rows 1 heads width"]:
        """Attention of one token a row to the keys that it sees, all of them by default; the width is a multiple of `WIDE`."""
        q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
        rows, heads, _, width = q.shape
        seen = None if seen is None else seen.expand(rows, 1, 1, k.shape[2]).contiguous()
        out = q.new_empty(rows, 1, heads, width)
        sizes = (rows, k.shape[1], heads // k.shape[1], k.shape[2], width)
        number = ctypes.c_int64
        given = (
            q,
            number(q.stride(0)),
            number(q.stride(1)),
            k,
            *map(number, k.stride()[:3]),
            v,
            *map(number, v.stride()[:3]),
        )
        self._call("answer", *given, seen, number(k.shape[2]), out, *map(number, sizes), ctypes.c_float(scale))
        return out

    def linear(
        self,
        x: BFloat16[Tensor, "rows inputs"],
        weight: BFloat16[Tensor, "outputs inputs"],
        bias: BFloat16[Tensor, " outputs"] | None = None,
        *,
        out: BFloat16[Tensor, "rows outputs"] | None = None,
    ) -> BFloat16[Tensor, "rows outputs"]:
        """X @ weightᵀ + bias. The sums of a row do not hang on how many rows there are.

        Raises:
            ValueError: the weight is not as wide as x, as torch would find as well.

        """
        _fits(x, weight)
        out = x.new_empty((len(x), len(weight))) if out is None else out
        return self._product(x, self._packed(weight, across=False), bias, out)

    def linear_backward(
        self, grad: BFloat16[Tensor, "rows outputs"], weight: BFloat16[Tensor, "outputs inputs"]
    ) -> BFloat16[Tensor, "rows inputs"]:
        """Grad @ weight: the gradient in what a linear layer was given."""
        out = grad.new_empty((len(grad), weight.shape[1]))
        return self._product(grad, self._packed(weight, across=True), None, out)

    def _product(self, x: Tensor, packed: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
        x = _rows(x)
        sizes = (len(x), x.shape[1], out.shape[1], x.stride(0), 0, 0, out.stride(0))
        self._call("linear", x, packed, bias, None, None, ctypes.c_float(1), out, *map(ctypes.c_int64, sizes))
        return out

    def weight_gradient(
        self,
        grad: BFloat16[Tensor, "rows outputs"],
        x: BFloat16[Tensor, "rows inputs"],
        into: Float[Tensor, "outputs inputs"] | None = None,
    ) -> Float[Tensor, "outputs inputs"]:
        """Gradᵀ @ x in float32, a linear layer's gradient in its weight; added to `into`, contiguous, where that is given."""
        made = grad.new_empty((grad.shape[1], x.shape[1]), dtype=torch.float32) if into is None else into
        if not len(grad):
            return made.zero_() if into is None else made
        packed, rows = self._packed(x, across=True), len(grad) + -len(grad) % WIDE
        across = grad.new_empty((min(grad.shape[1], OUTPUTS), rows))
        for start in range(0, grad.shape[1], OUTPUTS):
            part = grad[:, start : start + OUTPUTS]
            self._transpose(part, across)
            sizes = (into is not None, part.shape[1], rows, x.shape[1], rows)
            self._call("linear_wide", across, packed, made[start:], *map(ctypes.c_int64, sizes))
        return made

    def adapted(
        self,
        x: BFloat16[Tensor, "rows inputs"],
        weight: BFloat16[Tensor, "outputs inputs"],
        bias: BFloat16[Tensor, " outputs"] | None,
        down: BFloat16[Tensor, "rank inputs"],
        up: BFloat16[Tensor, "outputs rank"],
        factor: float,
    ) -> tuple[BFloat16[Tensor, "rows outputs"], BFloat16[Tensor, "rows rank"]]:
        """X @ weightᵀ + factor · (x @ downᵀ) @ upᵀ + bias, and x @ downᵀ.

        Raises:
            ValueError: a weight is not as wide as x.

        """
        _fits(x, weight)
        _fits(x, down)
        x, (rank, inputs) = _rows(x), down.shape
        inner, out = x.new_empty((len(x), rank)), x.new_empty((len(x), len(weight)))
        given = (
            x,
            self._packed(weight, across=False),
            bias,
            down.contiguous(),
            up.contiguous(),
            ctypes.c_float(factor),
        )
        sizes = map(ctypes.c_int64, (len(x), inputs, len(weight), rank, x.stride(0)))
        self._call("adapted_forward", *given, inner, out, *sizes)
        return out, inner

    def adapted_backward(
        self,
        grad: BFloat16[Tensor, "rows outputs"],
        x: BFloat16[Tensor, "rows inputs"],
        inner: BFloat16[Tensor, "rows rank"],
        weight: BFloat16[Tensor, "outputs inputs"] | None,
        down: BFloat16[Tensor, "rank inputs"],
        up: BFloat16[Tensor, "outputs rank"],
        factor: float,
        into: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Grad @ up, the gradient in x where the weight is given, and in float32 those in down and up.

        The last two are added to `into`, contiguous, where that is given.
        """
        grad, x, (rank, inputs) = _rows(grad), _rows(x), down.shape
        of_inner = grad.new_empty((len(x), rank))
        of_x, packed = (None, None) if weight is None else (torch.empty_like(x), self._packed(weight, across=True))
        made = [
            thin.new_empty(thin.shape, dtype=torch.float32) if there is None else there
            for thin, there in zip((down, up), into, strict=True)
        ]
        given = (grad, x, inner, packed, down.contiguous(), up.contiguous(), ctypes.c_float(factor))
        add = [there is not None for there in into]
        sizes = (*add, len(x), inputs, len(up), rank, grad.stride(0), x.stride(0))
        self._call("adapted_backward", *given, of_inner, of_x, *made, *map(ctypes.c_int64, sizes))
        return of_inner, of_x, made[0], made[1]

    def token_logps(
        self,
        x: BFloat16[Tensor, "rows inputs"],
        weight: BFloat16[Tensor, "words inputs"],
        targets: Int64[Tensor, " rows"],
        out: Float[Tensor, " rows"],
        factor: float = 1.0,
        *,
        grad: BFloat16[Tensor, "rows words"] | None = None,
    ) -> None:
        """Log softmax(factor · x @ weightᵀ)[target] of each row, into `out`, from scores that are never rounded to bfloat16.

        `grad`, if it is given, becomes its gradient in x @ weightᵀ. It, `targets` and `out` are contiguous, and targets are
        less than the number of words.

        Raises:
            ValueError: the weight is not as wide as x.

        """
        _fits(x, weight)
        x, weight = _rows(x), _rows(weight)
        sizes = map(ctypes.c_int64, (*x.shape, len(weight), x.stride(0), weight.stride(0)))
        given = (x, self._packed(weight, across=False), weight, targets, out, grad)
        self._call("token_logps", *given, *sizes, ctypes.c_float(factor))

    def _packed(self, weight: Tensor, *, across: bool) -> Tensor:
        """The weight as `linear` reads it; kept beside it where it is known not to change (`unchanging`)."""
        kept = vars(weight).get(KEPT, {})
        if across in kept:
            return kept[across]
        outputs, inputs = reversed(weight.shape) if across else weight.shape
        packed = weight.new_empty((outputs + -outputs % PANEL) * (inputs + -inputs % WIDE))
        self._call("pack", weight.contiguous(), packed, *map(ctypes.c_int64, (inputs, outputs, across)))
        if KEPT in vars(weight):
            kept[across] = packed
        return packed

    def transposed(self, x: BFloat16[Tensor, "rows columns"]) -> BFloat16[Tensor, "columns rows"]:
        """A copy of xᵀ.

        Contiguous, although rows apart by whole lines would be written faster: oneDNN reads what lies between rows and
        multiplies it by 0, which is NaN where NaN was left there.
        """
        return self._transpose(x, x.new_empty((x.shape[1], x.shape[0])))

    def _transpose(self, x: Tensor, out: Tensor) -> Tensor:
        x = _rows(x)
        self._call("transposed", x, out, *map(ctypes.c_int64, (*x.shape, x.stride(0), out.stride(0))))
        return out

    def rotated(
        self,
        x: BFloat16[Tensor, "heads tokens width"],
        cos: Float[Tensor, "tokens width"],
        sin: Float[Tensor, "tokens width"],
        *,
        back: bool = False,
    ) -> BFloat16[Tensor, "heads tokens width"]:
        """Rotary embedding by halves: (a, b) · cos + (−b, a) · sin; with `back`, the gradient that it takes `x` to.

        `cos`, `sin`: float32, contiguous. Half a width is a multiple of `LANES`.
        """
        x = x if x.stride(2) == 1 else x.contiguous()
        heads, tokens, width = x.shape
        out = x.new_empty(tokens, heads, width).transpose(0, 1)
        sizes = map(ctypes.c_int64, (heads, tokens, width, back))
        self._call("rotate", _Heads.of(x), cos, sin, _Heads.of(out), *sizes)
        return out

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """SiLU(gate) · up, both contiguous and of one shape."""
        out = torch.empty_like(gate)
        self._call("gated_forward", gate, up, out, ctypes.c_int64(gate.numel()))
        return out

    def gated_backward(self, gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients in gate and up."""
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        self._call("gated_backward", gate, up, grad.contiguous(), of_gate, of_up, ctypes.c_int64(gate.numel()))
        return of_gate, of_up

    def norm(
        self, x: Float[Tensor, "*rows width"], weight: Float[Tensor, " width"], eps: float
    ) -> tuple[BFloat16[Tensor, "*rows width"], Float[Tensor, "*rows"]]:
        """Weight · x / sqrt(mean(x²) + eps) over the last dimension, and 1 / sqrt(…).

        `x`: bfloat16 or float32, contiguous; `weight`: float32.
        """
        out, inverse = torch.empty_like(x, dtype=torch.bfloat16), x.new_empty(x.shape[:-1], dtype=torch.float32)
        sizes = (ctypes.c_int64(inverse.numel()), ctypes.c_int64(len(weight)))
        self._call("norm_forward", x, weight, out, inverse, *sizes, ctypes.c_float(eps), _wide(x.dtype))
        return out, inverse

    def norm_of_sum(
        self,
        x: Float[Tensor, "*rows width"],
        more: BFloat16[Tensor, "*rows width"],
        weight: Float[Tensor, " width"],
        eps: float,
    ) -> tuple[Float[Tensor, "*rows width"], BFloat16[Tensor, "*rows width"], Float[Tensor, "*rows"]]:
        """X + more in float32, and what `norm` gives of that; both contiguous, `x` float32."""
        sums, out, inverse = torch.empty_like(x), torch.empty_like(more), x.new_empty(x.shape[:-1])
        sizes = (ctypes.c_int64(inverse.numel()), ctypes.c_int64(len(weight)))
        self._call("norm_of_sum", x, more, sums, weight, out, inverse, *sizes, ctypes.c_float(eps))
        return sums, out, inverse

    def norm_backward(
        self,
        out: BFloat16[Tensor, "*rows width"],
        weight: Float[Tensor, " width"],
        inverse: Float[Tensor, "*rows"],
        grad: BFloat16[Tensor, "*rows width"],
        dtype: torch.dtype,
        *,
        beside: Float[Tensor, "*rows width"] | None = None,
        narrow: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The gradients in x, which was of `dtype`, and in weight, none of which is 0: from what came out.

        What else came back to x, `beside`, is added; with `narrow` the gradient in x is there in bfloat16 as well.
        """
        of_x, of_weight = torch.empty_like(out, dtype=dtype), torch.empty_like(weight)
        of_more = torch.empty_like(out) if narrow else None
        sizes = (ctypes.c_int64(inverse.numel()), ctypes.c_int64(len(weight)))
        given = (out, weight, inverse, grad.contiguous(), None if beside is None else beside.contiguous())
        self._call("norm_backward", *given, of_x, of_more, of_weight, *sizes, _wide(dtype))
        return of_x, of_weight, of_more

    def added(self, x: Float[Tensor, "*shape"], y: BFloat16[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """X + y in float32, both contiguous; the last dimension is a multiple of `LANES`."""
        out = torch.empty_like(x)
        self._call("added", x, y, out, ctypes.c_int64(x.numel()))
        return out

    def _call(self, name: str, *arguments: Tensor | ctypes.Structure | ctypes.c_int64 | ctypes.c_float | None) -> None:
        given = [ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else x for x in arguments]
        with record_function(LISTED + name) if autograd.profiler._is_profiler_enabled else nullcontext():
            getattr(self._library, name)(*given, ctypes.c_int(torch.get_num_threads()))


@contextmanager
def unchanging(weights: Iterable[Tensor]) -> Iterator[None]:
    """Inside, these weights keep what `linear` makes of them: nothing may change them."""
    taken = [weight for weight in weights if KEPT not in vars(weight)]
    try:
        for weight in taken:
            setattr(weight, KEPT, {})
        yield
    finally:
        for weight in taken:
            vars(weight).pop(KEPT, None)


@cache
def native() -> Native | None:
    """The functions for this processor, or None. Without AMX's tiles where the system keeps them from programs."""
    try:
        compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]
        if "avx512_bf16" not in _processor().split() or not shutil.which(compiler[0]):
            return None
        for more in ((), WITHOUT_TILES):
            file = _compiled([*compiler, *more])
            library = ctypes.CDLL(str(file))
            if kind := (None, "AVX512", "AMX")[library.ready()]:
                return Native(library, f"{kind} {file.stem.partition('-')[0]}")
    except (OSError, ValueError, RuntimeError, subprocess.SubprocessError):  # CXX that is no command, no home folder
        pass
    return None


def _compiled(compiler: list[str]) -> Path:
    """The library, named by what it was made from and by what it holds: half a file would end the process that loads it."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=60).stdout  # noqa: S603  (the user's own compiler)
    content = (SOURCE.read_bytes(), version, _processor().encode(), " ".join([*compiler, *FLAGS]).encode())
    made_from, folder = _digest(b"|".join(content)), cache_folder() / "native"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for found in folder.glob(f"{made_from}-*.so"):
        if found.stem == f"{made_from}-{_digest(found.read_bytes())}":
            return found
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / "native.so"
        command = [*compiler, *FLAGS, str(SOURCE), "-o", str(made)]
        subprocess.run(command, capture_output=True, check=True, timeout=300)  # noqa: S603
        return made.replace(folder / f"{made_from}-{_digest(made.read_bytes())}.so")


def _rows(x: Tensor) -> Tensor:
    """The same, with rows in one piece."""
    return x if x.stride(1) == 1 else x.contiguous()


def _fits(x: Tensor, weight: Tensor) -> None:
    if x.shape[1] != weight.shape[1]:
        raise ValueError(f"expected a weight [outputs, {x.shape[1]}] for inputs {[*x.shape]}, got {[*weight.shape]}")


def _wide(dtype: torch.dtype) -> ctypes.c_int64:
    return ctypes.c_int64(dtype == torch.float32)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@cache
def _processor() -> str:
    """What Linux says that the processor can do; nothing elsewhere."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
