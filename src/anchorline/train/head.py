"""Log-probabilities of given tokens, in chunks, without ever holding the [tokens, vocabulary] matrix.

The scores are sums of products, states @ matrixᵀ: one for a plain head, one more for each adapter on it; then a bias, a
factor, a soft cap. The gradient of one token's log-prob in its states is W[y] - softmax(scores)·W. Where the head is
frozen, that row is formed in the forward, with the softmax at hand, and only scaled in the backward: the scores are
never computed twice. Where it is trained, each token's weight in the loss is needed, which is known in the backward
only. What the last chunk, often the only one, has by then stays in its memory; the others' scores are computed again, so
that never more than a chunk is held. native.cpp makes the log-probs of a plain head from float32 sums as they arise.

>>> logps = token_logps(hidden, head.weight, targets)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchorline.train.steady import TILE, made_here, native_for, tiled, toward_inputs, weight_gradient, whole_of

CHUNK_BYTES = 2**28
"""The products of so many tokens exist at one time as make this many bytes: 2,560 in bfloat16 at 49,152 words."""
CHUNK = 64
"""And so many tokens at least."""
BLOCK_BYTES = 3_000_000
"""Of those, on a CPU, this much is widened at one time, which stays in its caches: a pass over a whole chunk's memory
costs more than the exponentials."""
ROWS = 256
"""Words whose gradient is added at one time, likewise."""


class Scores(NamedTuple):
    """How the scores come from the products: cap · tanh((products + bias) · factor / cap)."""

    factor: float = 1.0
    cap: float | None = None

    def slope(self, scores: Tensor) -> Tensor | None:
        """How a capped score moves with what was capped; None where that is one for one."""
        return None if self.cap is None else (scores / self.cap).square_().neg_().add_(1)


class _TokenLogps(torch.autograd.Function):
    """Letters: R response tokens, C a chunk of them, B a block of a chunk, D width, V vocabulary. `terms`: states, matrix,
    in turn.
    """

    @staticmethod
    def forward(
        ctx: Any, how: Scores, backward: bool, targets_R: Tensor, bias_V: Tensor | None, *terms: Tensor
    ) -> Tensor:
        states, matrices = terms[::2], terms[1::2]
        # torch says that weights want their gradient under no_grad, too, where no backward comes
        of_bias, *wanted = (backward and one for one in ctx.needs_input_grad[3:])
        ctx.how, ctx.trained = how, of_bias or any(wanted[1::2])
        ahead = any(wanted) and not ctx.trained
        rows = [torch.empty_like(x_RD) for x_RD in states] if ahead else []
        logps_R = torch.empty(len(targets_R), dtype=_wide(states[0].dtype), device=targets_R.device)
        room = _Room.of(len(targets_R), matrices[0])
        head, pieces = _Head(how, targets_R, states, matrices, bias_V), _pieces_to(len(targets_R), len(room.products))
        for chunk in pieces:
            products_CV = head.scored(chunk, room, logps_R, back=ahead or (ctx.trained and chunk is pieces[-1]))
            for number, row_RD in enumerate(rows):
                row_RD[chunk] = toward_inputs(products_CV, matrices[number])
        ctx.products = room.products if ctx.trained else None
        ctx.whole = [whole_of(matrix) for matrix in matrices]
        ctx.save_for_backward(targets_R, bias_V, *(rows if ahead else terms))
        return logps_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_R,) = grads
        targets_R, bias_V, *saved = ctx.saved_tensors
        if not ctx.trained:
            flat = [g for row_RD in saved for g in (_weighted(row_RD, grad_R), None)]
            return None, None, None, None, *flat
        states, matrices = saved[::2], saved[1::2]
        wanted = ctx.needs_input_grad[4:]
        grad_states = [torch.empty_like(x) if w else None for x, w in zip(states, wanted[::2], strict=True)]
        grad_matrices: list[Tensor | None] = [None] * len(matrices)
        kept, ctx.products = ctx.products, None  # once: another backward finds nothing there
        room = _Room.of(len(targets_R), matrices[0], kept)
        grad_bias = None if bias_V is None else room.scores.new_zeros(bias_V.shape)
        head = _Head(ctx.how, targets_R, states, matrices, bias_V)
        *first, last = _pieces_to(len(targets_R), len(room.products)) or [slice(0, 0)]
        for number, chunk in enumerate((last, *first)):
            products_CV = room.products[: chunk.stop - chunk.start]
            if number or kept is None:
                head.scored(chunk, room, torch.empty_like(grad_R), back=True)
            for place, (x_RD, matrix_VD) in enumerate(zip(states, matrices, strict=True)):
                of_state = grad_states[place]
                if of_state is not None:
                    of_state[chunk] = _weighted(toward_inputs(products_CV, matrix_VD), grad_R[chunk])
                if wanted[2 * place + 1]:
                    made = weight_gradient(products_CV, _weighted(x_RD[chunk], grad_R[chunk]), ctx.whole[place])
                    grad_matrices[place] = _added(grad_matrices[place], made)
            if grad_bias is not None:
                for inner, block in _pieces_within(chunk, len(room.scores)):
                    grad_bias.addmv_(products_CV[inner].to(grad_bias.dtype).T, grad_R[block])
        made = zip(grad_states, grad_matrices, matrices, strict=True)
        flat = [g for x, m, matrix in made for g in (x, m if m is None else m.to(matrix.dtype))]
        return None, None, None, grad_bias if bias_V is None else grad_bias.to(bias_V.dtype), *flat  # pyright: ignore[reportOptionalMemberAccess]


class _Room(NamedTuple):
    """Memory that is used again and again: the system's pages are not free."""

    products: Tensor
    """[C, V] in the products' own format; later it holds their gradient, whose place they have left by then."""
    scores: Tensor
    """[B, V] in float32 (float64)."""
    probs: Tensor
    """Likewise."""

    @classmethod
    def of(cls, tokens: int, matrix_VD: Tensor, products: Tensor | None = None) -> _Room:
        words, dtype, wide = len(matrix_VD), matrix_VD.dtype, _wide(matrix_VD.dtype)
        chunk, block = _sizes(tokens, words, dtype, matrix_VD.device.type)
        scores, probs = matrix_VD.new_empty((2, block, words), dtype=wide)
        return cls(matrix_VD.new_empty((chunk, words)) if products is None else products, scores, probs)


def _sizes(tokens: int, words: int, dtype: torch.dtype, device: str) -> tuple[int, int]:
    """Tokens of a chunk and of a block."""
    most = max(CHUNK_BYTES // (words * dtype.itemsize), CHUNK)
    chunk = max(min(tokens, most // TILE * TILE or most), 1)
    # a GPU is faster with few large steps
    block = chunk if device != "cpu" else min(chunk, max(BLOCK_BYTES // (words * _wide(dtype).itemsize), 1))
    return chunk, block


class _Head(NamedTuple):
    """What the scores are made of."""

    how: Scores
    targets_R: Tensor
    states: Sequence[Tensor]
    matrices: Sequence[Tensor]
    bias_V: Tensor | None

    def scored(self, chunk: slice, room: _Room, logps_R: Tensor, *, back: bool) -> Tensor:
        """The log-probs of a chunk's tokens; returns the products' place, where with `back` the gradient in the products is."""
        products_CV, (x_RD, matrix_VD) = room.products[: chunk.stop - chunk.start], (self.states[0], self.matrices[0])
        plain = self.bias_V is None and self.how.cap is None and len(self.matrices) == 1
        if plain and (compiled := native_for(products_CV)) is not None:
            given = (x_RD[chunk], matrix_VD, self.targets_R[chunk].contiguous(), logps_R[chunk], self.how.factor)
            compiled.token_logps(*given, grad=products_CV if back else None)
            return products_CV
        multiply = tiled if made_here(matrix_VD, matrix_VD.dtype) else _whole
        multiply(x_RD[chunk], matrix_VD, out=products_CV)
        for inner, block in _pieces_within(chunk, len(room.scores)):
            y_B1 = self.targets_R[block, None]
            scores_BV = self._scores(block, products_CV[inner], room)
            probs_BV = torch.softmax(scores_BV, -1, out=room.probs[: len(scores_BV)])
            wanted_B1 = scores_BV.gather(-1, y_B1) - scores_BV.amax(-1, keepdim=True)
            # of the softmax, whose largest entry is at least 1 / V, its normaliser is read off without another pass
            logps_R[block] = (wanted_B1 + probs_BV.amax(-1, keepdim=True).log()).squeeze(-1)
            if back:
                products_CV[inner].copy_(_toward(self.how, y_B1, scores_BV, probs_BV))
        return products_CV

    def _scores(self, block: slice, products_BV: Tensor, room: _Room) -> Tensor:
        """[B, V] in float32 (float64)."""
        scores_BV = room.scores[: len(products_BV)].copy_(products_BV)
        for x_RD, matrix_VD in zip(self.states[1:], self.matrices[1:], strict=True):
            scores_BV += x_RD[block] @ matrix_VD.T
        if self.bias_V is not None:
            scores_BV += self.bias_V
        if self.how.factor != 1:
            scores_BV *= self.how.factor
        return scores_BV if self.how.cap is None else scores_BV.div_(self.how.cap).tanh_().mul_(self.how.cap)


def _whole(x_CD: Tensor, matrix_VD: Tensor, *, out: Tensor) -> Tensor:
    return torch.mm(x_CD, matrix_VD.T, out=out)


def _pieces_to(stop: int, size: int) -> list[slice]:
    """The range from 0 in pieces of a size, of which the first may be smaller: the last one's scores are kept.

    >>> _pieces_to(7, 3)
    [slice(0, 1, None), slice(1, 4, None), slice(4, 7, None)]
    """
    return [slice(max(end - size, 0), end) for end in range(stop, 0, -size)][::-1]


def _pieces_within(chunk: slice, size: int) -> list[tuple[slice, slice]]:
    """A chunk's blocks: their places in the chunk, and in all."""
    blocks = [slice(first, min(first + size, chunk.stop)) for first in range(chunk.start, chunk.stop, size)]
    return [(slice(b.start - chunk.start, b.stop - chunk.start), b) for b in blocks]


def _added(total_VD: Tensor | None, made_VD: Tensor | None) -> Tensor | None:
    """The sum in float32 (float64), in blocks: torch adds another format by way of a copy in the sum's own."""
    if total_VD is None or made_VD is None:
        return made_VD
    wide = total_VD.to(_wide(total_VD.dtype))
    for total, made in zip(wide.split(ROWS), made_VD.split(ROWS), strict=True):
        total.add_(made)
    return wide


def _toward(how: Scores, y_B1: Tensor, scores_BV: Tensor, probs_BV: Tensor) -> Tensor:
    """The gradient of the log-probs in the products; made in place of the probabilities."""
    toward_BV, slope_BV = probs_BV.neg_(), how.slope(scores_BV)
    toward_BV.scatter_add_(-1, y_B1, torch.ones_like(y_B1, dtype=toward_BV.dtype))
    if slope_BV is not None:
        toward_BV *= slope_BV
    return toward_BV if how.factor == 1 else toward_BV.mul_(how.factor)


def _weighted(x_CD: Tensor, weight_C: Tensor) -> Tensor:
    return x_CD * weight_C[:, None].to(x_CD.dtype)


def token_logps(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " tokens"],
    *,
    bias: Float[Tensor, " vocabulary"] | None = None,
    more: tuple[tuple[Tensor, Tensor], ...] = (),
    how: Scores = Scores(),  # noqa: B008  (a constant)
) -> Float[Tensor, " tokens"]:
    """Log softmax(scores)[target] of each row, in nats, float32 (float64 where the inputs are).

    Args:
        hidden: the states that predict the targets.
        weight: the head's matrix.
        targets: token ids.
        bias: added to the products.
        more: further states and matrices whose products are added: adapters on the head.
        how: what becomes of the products.

    Raises:
        ValueError: the shapes do not fit.

    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"expected hidden [tokens, width], weight [vocabulary, width], targets [tokens]; "
            f"got {tuple(hidden.shape)}, {tuple(weight.shape)}, {tuple(targets.shape)}"
        )
    device = hidden.device.type
    auto = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if auto else hidden.dtype
    terms = [x.to(dtype) for pair in ((hidden, weight), *more) for x in pair]
    with torch.autocast(device, enabled=False):
        return _TokenLogps.apply(how, torch.is_grad_enabled(), targets, bias, *terms)  # pyright: ignore[reportReturnType]


def room_bytes(tokens: int, words: int, dtype: torch.dtype, device: str) -> int:
    """What the log-probs of so many tokens hold at one time, beside states and matrices."""
    chunk, block = _sizes(tokens, words, dtype, device)
    return words * (chunk * dtype.itemsize + 2 * block * _wide(dtype).itemsize)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
