"""The elements that closed-form editing methods are made of.

What a method fits (keys, covariances, directions) comes from elsewhere; here is the form of what it then does.
"""

import torch
from torch import Tensor

from sliders.algebra.element import Element
from sliders.algebra.lowrank import LowRank
from sliders.errors import SliderError


def steer_output(vector: Tensor, shape: tuple[int, ...]) -> Element:
    """``y -> y + vector [out]`` on a layer's output: a translation of its bias (a steering or function vector)."""
    return Element.of(shape, shift=_bias_column(vector, _width(shape)))


def steer_input(vector: Tensor, shape: tuple[int, ...]) -> Element:
    """``x -> x + vector [in]`` on a layer's input: ``R = [[I, vector], [0, 1]]``, so that ``b -> b + W vector``."""
    return Element.of(shape, right=_bias_column(torch.nn.functional.pad(vector, (0, 1)), len(vector)))


def erase_output(projection: LowRank, mean: Tensor | None, shape: tuple[int, ...]) -> Element:
    """``y -> y - P (y - mean)`` on a layer's output: ``L = I - P``, ``D = [0, P mean]``.

    Args:
        projection: ``P (out, out)`` with ``P P = P``; orthogonal for an ablation, oblique for LEACE (2306.03819).
        mean: ``[out]``, or None for 0.
        shape: of the layer's weight.

    Raises:
        SliderError: ``P`` is no projection.
    """
    _check_projection(projection)
    shift = None if mean is None else _bias_column(projection.B @ (projection.A @ mean), _width(shape))
    return Element.of(shape, left=-projection, shift=shift)


def erase_input(projection: LowRank, mean: Tensor | None, shape: tuple[int, ...]) -> Element:
    """``x -> x - P (x - mean)`` on a layer's input: ``R = [[I - P, P mean], [0, 1]]``.

    Args:
        projection: ``P (in, in)`` with ``P P = P``.
        mean: ``[in]``, or None for 0.
        shape: of the layer's weight.

    Raises:
        SliderError: ``P`` is no projection.
    """
    _check_projection(projection)
    if mean is None:
        return Element.of(shape, right=-projection)
    up = torch.nn.functional.pad(projection.B, (0, 0, 0, 1))
    down = torch.cat([-projection.A, (projection.A @ mean)[:, None]], 1)
    return Element.of(shape, right=LowRank(up, down, (up.shape[0], up.shape[0])))


def onto(directions: Tensor) -> LowRank:
    """The orthogonal projection onto the span of the columns of ``directions [n, k]``, which may depend."""
    n = directions.shape[0]
    basis = LowRank(directions, torch.eye(directions.shape[1]).to(directions), tuple(directions.shape)).column_space()
    return LowRank(basis, basis.T, (n, n))


def rome_gains(key: Tensor, covariance: Tensor) -> Tensor:
    """``u^T / (u^T k)`` with ``u = C^-1 k`` (2202.05262, eq. 2): ``[1, in]`` for a key ``[in, 1]``."""
    u = torch.linalg.solve(covariance, key)
    return u.T / (u.T @ key)


def memit_gains(keys: Tensor, penalty: Tensor) -> Tensor:
    """``K^T (l C + K K^T)^-1`` (2210.07229, eq. 14): ``[m, in]`` for keys ``[in, m]`` and ``penalty = l C``."""
    return torch.linalg.solve(penalty + keys @ keys.T, keys).T


def write(keys: Tensor, gains: Tensor, values: Tensor, shape: tuple[int, ...]) -> Element:
    """``W -> W - (W K - V) G``: the layer's answers at the keys move to the values.

    ROME has one key and `rome_gains`; MEMIT has `memit_gains`.

    Args:
        keys: ``K [in, m]``, or ``[in + 1, m]`` with a last row for the bias, usually of ones.
        gains: ``G [m, in]`` or ``[m, in + 1]``.
        values: ``V [out, m]``.
        shape: of the layer's weight.
    """
    width = keys.shape[0]
    return Element.of(
        shape, right=LowRank(-keys, gains, (width, width)), shift=LowRank(values, gains, (shape[0], width))
    )


def redirect(concepts: Tensor, targets: Tensor, penalty: Tensor, shape: tuple[int, ...]) -> Element:
    """``W -> W M``: the layer's answers to the concepts become its answers to the targets (UCE, 2308.14761, eq. 7).

    ``M - I = (G - C) C^T (penalty + C C^T)^-1``, whatever ``W`` is.

    Args:
        concepts: ``C [in, m]``, each times the root of its weight.
        targets: ``G [in, m]``, the same.
        penalty: ``[in, in]``, of a change: ``lambda I`` plus ``p p^T`` of every preserved input.
        shape: of the layer's weight.
    """
    gains = torch.linalg.solve(penalty + concepts @ concepts.T, concepts).T
    return Element.of(shape, right=LowRank(targets - concepts, gains, (len(penalty), len(penalty))))


def _width(shape: tuple[int, ...]) -> int:
    return torch.Size(shape[1:]).numel()


def _bias_column(column: Tensor, width: int) -> LowRank:
    """``[0, column]``: zeros but for the column of the bias, after ``width`` others."""
    last = torch.nn.functional.one_hot(torch.tensor([width]), width + 1).to(column)
    return LowRank(column[:, None], last, (len(column), width + 1))


def _check_projection(projection: LowRank) -> None:
    error = float((projection @ projection - projection).norm())
    if error > torch.finfo(projection.B.dtype).eps ** 0.5 * max(1.0, float(projection.norm())):
        raise SliderError(f"P is no projection: P P differs from P by {error:.1e}; an eraser needs one")
