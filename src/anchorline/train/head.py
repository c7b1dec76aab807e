"""Log-probabilities of given tokens, in chunks, without ever holding the [tokens, vocabulary] matrix.

The scores are sums of products, states @ matrixᵀ: one for a plain head, one more for each adapter on it; then a bias, a
factor, a soft cap. The gradient of one token's log-prob in its states is W[y] - softmax(scores)·W. Where the head is
frozen, that row is formed in the forward, with the softmax at hand, and only scaled in the backward: the scores are
never computed twice. Where it is trained, each token's weight in the loss is needed, which is known in the backward
only: there the scores are computed again, and the forward makes no more than the log-probs.

>>> logps = token_logps(hidden, head.weight, targets)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 256
"""Tokens whose scores exist at one time: 50 MB in float32 at 49,152 words."""


ROWS = 2048
"""Words whose gradient is added at one time: 5 MB in float32 at a width of 576."""


class Scores(NamedTuple):
    """How the scores come from the products: cap · tanh((products + bias) · factor / cap)."""

    factor: float = 1.0
    cap: float | None = None


class _TokenLogps(torch.autograd.Function):
    """Letters: R response tokens, C a chunk of them, D width, V vocabulary. `terms`: states, matrix, in turn."""

    @staticmethod
    def forward(ctx: Any, how: Scores, targets_R: Tensor, bias_V: Tensor | None, *terms: Tensor) -> Tensor:
        states, matrices = terms[::2], terms[1::2]
        wanted = ctx.needs_input_grad[3:]
        ctx.how, ctx.trained = how, ctx.needs_input_grad[2] or any(wanted[1::2])
        ahead = any(wanted) and not ctx.trained
        rows = [torch.empty_like(x_RD) for x_RD in states] if ahead else []
        logps_R = torch.empty(len(targets_R), dtype=_wide(states[0].dtype), device=targets_R.device)
        room = _Room.for_chunks(len(targets_R), matrices[0], logps_R.dtype)
        for start in range(0, len(targets_R), CHUNK):
            chunk = slice(start, start + CHUNK)
            y_C1 = targets_R[chunk, None]
            scores_CV = _scores(how, [x_RD[chunk] for x_RD in states], matrices, bias_V, room)
            wanted_C1 = scores_CV.gather(-1, y_C1).to(logps_R.dtype) - scores_CV.amax(-1, keepdim=True)
            slope_CV = None if how.cap is None or not ahead else _slope(how.cap, scores_CV)
            # of the softmax, whose largest entry is at least 1 / V, its normaliser is read off without another pass
            probs_CV = torch.softmax(scores_CV, -1, dtype=logps_R.dtype, out=room.wide[: len(y_C1)])
            logps_R[chunk] = (wanted_C1 + probs_CV.amax(-1, keepdim=True).log()).squeeze(-1)
            if ahead:
                toward_CV = room.narrow[: len(y_C1)].copy_(_toward(probs_CV, y_C1, slope_CV, how.factor, None))
                for row_RD, matrix_VD in zip(rows, matrices, strict=True):
                    row_RD[chunk] = toward_CV @ matrix_VD
        ctx.save_for_backward(targets_R, bias_V, *(rows if ahead else terms))
        return logps_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_R,) = grads
        targets_R, bias_V, *saved = ctx.saved_tensors
        if not ctx.trained:
            scaled = [row_RD * grad_R[:, None].to(row_RD.dtype) for row_RD in saved]
            return None, None, None, *(g for row_RD in scaled for g in (row_RD, None))
        how, states, matrices = ctx.how, saved[::2], saved[1::2]
        wide = _wide(matrices[0].dtype)
        wanted = ctx.needs_input_grad[3:]
        grad_states = [torch.empty_like(x) if w else None for x, w in zip(states, wanted[::2], strict=True)]
        grad_matrices = [
            torch.zeros(m.shape, dtype=wide, device=m.device) if w else None
            for m, w in zip(matrices, wanted[1::2], strict=True)
        ]
        grad_bias = None if bias_V is None else torch.zeros(bias_V.shape, dtype=wide, device=bias_V.device)
        room = _Room.for_chunks(len(targets_R), matrices[0], wide)
        products = [None if m is None else torch.empty_like(x) for m, x in zip(grad_matrices, matrices, strict=True)]
        for start in range(0, len(targets_R), CHUNK):
            chunk = slice(start, start + CHUNK)
            parts = [x_RD[chunk] for x_RD in states]
            scores_CV = _scores(how, parts, matrices, bias_V, room)
            slope_CV = None if how.cap is None else _slope(how.cap, scores_CV)
            y_C1 = targets_R[chunk, None]
            probs_CV = torch.softmax(scores_CV, -1, dtype=wide, out=room.wide[: len(y_C1)])
            toward = _toward(probs_CV, y_C1, slope_CV, how.factor, grad_R[chunk, None])
            if grad_bias is not None:
                grad_bias += toward.sum(0)
            toward_CV = room.narrow[: len(y_C1)].copy_(toward)
            for part_CD, matrix_VD, of_state, of_matrix, product in zip(
                parts, matrices, grad_states, grad_matrices, products, strict=True
            ):
                if of_state is not None:
                    of_state[chunk] = toward_CV @ matrix_VD
                if of_matrix is not None:
                    _add(of_matrix, torch.mm(toward_CV.T, part_CD, out=product))
        made = zip(grad_states, grad_matrices, matrices, strict=True)
        flat = [g for x, m, matrix in made for g in (x, m if m is None else m.to(matrix.dtype))]
        return None, None, grad_bias if bias_V is None else grad_bias.to(bias_V.dtype), *flat  # pyright: ignore[reportOptionalMemberAccess]


class _Room(NamedTuple):
    """Memory for a chunk's scores, in the products' format and in float32 (float64): the system's pages are not free.

    `narrow` holds the scores, and later their gradient, whose place they have left by then.
    """

    narrow: Tensor
    wide: Tensor

    @classmethod
    def for_chunks(cls, tokens: int, matrix_VD: Tensor, wide: torch.dtype) -> _Room:
        shape = (min(tokens, CHUNK), len(matrix_VD))
        return cls(matrix_VD.new_empty(shape), matrix_VD.new_empty(shape, dtype=wide))


def _scores(
    how: Scores, states: Sequence[Tensor], matrices: Sequence[Tensor], bias_V: Tensor | None, room: _Room
) -> Tensor:
    """[C, V], in the products' own format where nothing follows them, else float32 (float64)."""
    scores_CV = torch.mm(states[0], matrices[0].T, out=room.narrow[: len(states[0])])
    if len(states) == 1 and bias_V is None and how == Scores():
        return scores_CV
    scores_CV = scores_CV.to(_wide(scores_CV.dtype))
    for x_CD, matrix_VD in zip(states[1:], matrices[1:], strict=True):
        scores_CV += x_CD @ matrix_VD.T
    if bias_V is not None:
        scores_CV += bias_V
    scores_CV *= how.factor
    return scores_CV if how.cap is None else scores_CV.div_(how.cap).tanh_().mul_(how.cap)


def _add(total_VD: Tensor, product_VD: Tensor) -> None:
    """Add in blocks: torch adds another format by way of a copy in the sum's own, as large as the matrix."""
    for total, product in zip(total_VD.split(ROWS), product_VD.split(ROWS), strict=True):
        total.add_(product)


def _slope(cap: float, scores_CV: Tensor) -> Tensor:
    """How a capped score moves with what was capped."""
    return (scores_CV / cap).square_().neg_().add_(1)


def _toward(probs_CV: Tensor, y_C1: Tensor, slope_CV: Tensor | None, factor: float, weight_C1: Tensor | None) -> Tensor:
    """The gradient of the log-probs (times their weights) in the products; made in place of the probabilities."""
    toward_CV = probs_CV.neg_()
    toward_CV.scatter_add_(-1, y_C1, torch.ones_like(y_C1, dtype=toward_CV.dtype))
    if slope_CV is not None:
        toward_CV *= slope_CV
    if weight_C1 is not None:
        toward_CV *= weight_C1 * factor
    elif factor != 1:
        toward_CV *= factor
    return toward_CV


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
        return _TokenLogps.apply(how, targets, bias, *terms)  # pyright: ignore[reportReturnType]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
