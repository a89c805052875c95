"""Every closed-form method as an element, beside the dense weights that it must give, worked out on their own."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sliders.algebra import closed_forms as elements
from sliders.algebra.closed_forms import (
    erase_input,
    erase_output,
    onto,
    redirect,
    steer_input,
    steer_output,
    write,
)
from sliders.algebra.edit import Affine, Edit
from sliders.algebra.element import Element
from sliders.algebra.lowrank import LowRank
from sliders.errors import SliderError
from tests.factory import lowrank, normal

Oracle = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From an unfolded weight ``[out, in]`` and a bias to those after the edit."""
SHAPES = ((5, 4), (4, 2, 2, 1))


@dataclass(frozen=True)
class Method:
    """A kind of element: how to draw one, and what is claimed of it."""

    draw: Callable[[tuple[int, ...], int], tuple[Element, Oracle]]
    invertible: bool
    idempotent: bool


def width(shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:])


def covariance(n: int, seed: int) -> Tensor:
    """A symmetric positive definite matrix."""
    factor = normal(n, 3 * n, seed=seed + 77)
    return factor @ factor.T / (3 * n)


def oblique(n: int, k: int, seed: int) -> Tensor:
    """A projection of rank ``k`` that is not orthogonal, as LEACE fits it: ``W^+ P W`` with ``W = C^-1/2``."""
    values, vectors = torch.linalg.eigh(covariance(n, seed))
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    q = torch.linalg.qr(torch.linalg.solve(root, normal(n, k, seed=seed + 78))).Q
    return root @ q @ q.T @ torch.linalg.inv(root)


def factored(matrix: Tensor) -> LowRank:
    return LowRank.nearest(matrix, min(matrix.shape)).trim()


def translation(shape: tuple[int, ...], seed: int) -> tuple[Element, Oracle]:
    update = lowrank(shape, 2, seed)
    return Element.of(shape, shift=update), lambda w, b: (w + update.dense().flatten(1), b)


def steering(shape: tuple[int, ...], seed: int) -> tuple[Element, Oracle]:
    v = normal(shape[0], seed=seed)
    return steer_output(v, shape), lambda w, b: (w, b + v)


def input_steering(shape: tuple[int, ...], seed: int) -> tuple[Element, Oracle]:
    v = normal(width(shape), seed=seed)
    return steer_input(v, shape), lambda w, b: (w, b + w @ v)


def ablation(shape: tuple[int, ...], seed: int) -> tuple[Element, Oracle]:
    v = torch.nn.functional.normalize(normal(shape[0], seed=seed), dim=0)
    return erase_output(onto(v[:, None]), None, shape), lambda w, b: (w - torch.outer(v, v @ w), b - v * (v @ b))


def leace(shape: tuple[int, ...], seed: int) -> tuple[Element, Oracle]:
    p, mean = oblique(shape[0], 2, seed), normal(shape[0], seed=seed)
    return erase_output(factored(p), mean, shape), lambda w, b: (w - p @ w, b - p @ (b - mean))


def input_leace(shape: tuple[int, ...], seed: int) -> tuple[Element, Oracle]:
    p, mean = oblique(width(shape), 2, seed), normal(width(shape), seed=seed)
    return erase_input(factored(p), mean, shape), lambda w, b: (w - w @ p, b + w @ p @ mean)


def rome_parts(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """``k [in]``, ``u = C^-1 k`` and ``v* [out]``."""
    k = normal(width(shape), seed=seed)
    return k, torch.linalg.solve(covariance(width(shape), seed), k), normal(shape[0], seed=seed + 1)


def rome_element(k: Tensor, u: Tensor, v: Tensor, shape: tuple[int, ...]) -> Element:
    return write(k[:, None], (u / (u @ k))[None], v[:, None], shape)


def rome(shape: tuple[int, ...], seed: int) -> tuple[Element, Oracle]:
    k, u, v = rome_parts(shape, seed)
    return rome_element(k, u, v, shape), lambda w, b: (w + torch.outer(v - w @ k, u) / (u @ k), b)


def memit_element(c: Tensor, keys: Tensor, values: Tensor, shape: tuple[int, ...]) -> Element:
    """``c`` is lambda C."""
    return write(keys, elements.memit_gains(keys, c), values, shape)


def least_squares(weight: Tensor, c: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The minimiser of ``tr (X - W) c (X - W)^T + |X K - V|^2``, by a general solver."""
    root = torch.linalg.cholesky(c)
    return torch.linalg.lstsq(torch.cat([root, keys], 1).T, torch.cat([weight @ root, values], 1).T).solution.T


def memit(shape: tuple[int, ...], seed: int) -> tuple[Element, Oracle]:
    c, keys = 0.7 * covariance(width(shape), seed), normal(width(shape), 2, seed=seed)
    values = normal(shape[0], 2, seed=seed + 1)
    return memit_element(c, keys, values, shape), lambda w, b: (least_squares(w, c, keys, values), b)


def uce(shape: tuple[int, ...], seed: int) -> tuple[Element, Oracle]:
    n = width(shape)
    concepts, targets, kept = (normal(n, 2, seed=seed + i) for i in range(3))
    c = 0.3 * torch.eye(n, dtype=torch.float64) + kept @ kept.T
    return redirect(concepts, targets, c, shape), lambda w, b: (least_squares(w, c, concepts, w @ targets), b)


def general(shape: tuple[int, ...], seed: int) -> tuple[Element, Oracle]:
    """All three factors, with the bias."""
    out, w = shape[0], width(shape) + 1
    left, right, shift = lowrank((out, out), 2, seed), lowrank((w, w), 2, seed + 1), lowrank((out, w), 2, seed + 2)
    left, right = left * (0.5 / float(left.norm())), right * (0.5 / float(right.norm()))  # so that they invert

    def oracle(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        layer = torch.cat([weight, bias[:, None]], 1)
        edited = (torch.eye(out) + left.dense()) @ layer @ (torch.eye(w) + right.dense()) + shift.dense()
        return edited[:, :-1], edited[:, -1]

    return Element.of(shape, left, right, shift), oracle


METHODS = {
    "translation": Method(translation, invertible=True, idempotent=False),
    "steering": Method(steering, invertible=True, idempotent=False),
    "input steering": Method(input_steering, invertible=True, idempotent=False),
    "ablation": Method(ablation, invertible=False, idempotent=True),
    "leace": Method(leace, invertible=False, idempotent=True),
    "input leace": Method(input_leace, invertible=False, idempotent=True),
    "rome": Method(rome, invertible=False, idempotent=True),
    "memit": Method(memit, invertible=True, idempotent=False),
    "uce": Method(uce, invertible=True, idempotent=False),
    "general": Method(general, invertible=True, idempotent=False),
}


def edit(method: str, shape: tuple[int, ...], seed: int) -> Affine:
    return Affine({"fc": METHODS[method].draw(shape, seed)[0]})


def in_gauge(part: LowRank, seed: int) -> LowRank:
    """The same update by other factors: ``B G`` and ``G^-1 A`` with a random, well-conditioned ``G``."""
    r = part.rank
    left, right = (torch.linalg.qr(normal(r, r, seed=seed + i)).Q for i in range(2))
    g = left @ torch.diag(torch.linspace(0.5, 2, r, dtype=torch.float64)) @ right
    return LowRank(part.B @ g, torch.linalg.solve(g, part.A), part.shape)


def element_in_gauge(element: Element, seed: int) -> Element:
    parts = (in_gauge(part, seed + i) for i, part in enumerate((element.left, element.right, element.shift)))
    return Element(element.shape, *parts)


class Rounding(Edit):
    """Rounds the weight of one layer to bfloat16: outside the monoid, and without an inverse."""

    @property
    def modules(self) -> tuple[str, ...]:
        return ("fc",)

    def apply_layer(self, module: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return (weight.bfloat16() if module in self.modules else weight.clone()).to(weight), bias

    def inverse(self) -> Edit:
        raise SliderError("an edit that rounds the weight to bfloat16 has no inverse")
