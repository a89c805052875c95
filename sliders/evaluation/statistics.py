"""Chance: intervals for what was measured on few things, and tests of whether it is more than chance."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import rankdata
from torch import Tensor

DRAWS = 2000
EXACT = 5040
"""Up to so many permutations all are tried; beyond, `DRAWS` are drawn."""


@dataclass(frozen=True)
class Estimate:
    """A value and its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def bootstrap(
    statistic: Callable[[Tensor], Tensor], units: int, draws: int = DRAWS, seed: int = 0, level: float = 0.95
) -> Estimate:
    """A statistic with its percentile interval over resampled units (Efron 1979).

    Args:
        statistic: from indices of units ``[draws, units]`` to ``[draws]``; what is not finite is left out.
        units: how many there are.
        draws: resamples.
        seed: of the resamples.
        level: share of the resamples in the interval.
    """
    own = float(statistic(torch.arange(units)[None])[0])
    index = torch.randint(units, (draws, units), generator=torch.Generator().manual_seed(seed))
    values = statistic(index).double()
    values = values[values.isfinite()]
    if not len(values):
        return Estimate(own, math.nan, math.nan)
    tail = (1 - level) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return Estimate(own, low, high)


def sign_flip(differences: Tensor, draws: int = DRAWS, seed: int = 0) -> float:
    """One-sided p of a mean above 0, where chance would give each of the differences ``[n]`` either sign.

    Exact up to 12 differences; otherwise signs are drawn, and the p can be no less than ``1 / (draws + 1)``.
    """
    n, values = len(differences), differences.double()
    if n <= 12:
        signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=n)), dtype=torch.float64)
        return float((signs @ values >= values.sum() - 1e-12 * values.abs().sum()).double().mean())
    drawn = torch.randint(2, (draws, n), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
    return float(1 + (drawn @ values >= values.sum() - 1e-12 * values.abs().sum()).sum()) / (draws + 1)


def between_groups(distances: Tensor, group: Tensor, seed: int = 0) -> tuple[float, float]:
    """How much further apart members of two groups are than members of one, and the p of its being chance.

    Labels are permuted over the members: all distinct ways where they are few, and draws of them otherwise.

    Args:
        distances: ``[n, n]``, symmetric.
        group: bool ``[n]``, with at least two members in one of the groups.
        seed: of the draws.
    """
    n, size = len(group), int(group.sum())
    table = distances.double()

    def gaps(labels: Tensor) -> Tensor:
        apart = (labels[:, :, None] != labels[:, None]).double()
        within = 1 - apart - torch.eye(n, dtype=torch.float64)
        means = [(table * pairs).sum((1, 2)) / pairs.sum((1, 2)) for pairs in (apart, within)]
        return means[0] - means[1]

    own = float(gaps(group[None])[0])
    if math.comb(n, size) <= EXACT:
        ways = torch.tensor(list(itertools.combinations(range(n), size)))
        labels = torch.zeros(len(ways), n, dtype=torch.bool).scatter(1, ways, True)
        return own, float((gaps(labels) >= own - 1e-12).double().mean())
    drawn = group[_orders(n, seed)]
    return own, float(1 + (gaps(drawn) >= own - 1e-12).sum()) / (len(drawn) + 1)


def _orders(n: int, seed: int) -> Tensor:
    """Random permutations ``[DRAWS, n]``."""
    draws = torch.rand(DRAWS, n, generator=torch.Generator().manual_seed(seed))
    return draws.argsort(1)


def _ranks(values: Tensor) -> Tensor:
    return torch.from_numpy(rankdata(values.numpy(), axis=-1))


def rank_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's, with mean ranks for ties, over the last dimension; nan where one is constant."""
    a, b = (_ranks(v.double()) for v in (x, y))
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    norms = (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    return torch.where(norms > 0, (a * b).sum(-1) / norms.clamp_min(1e-30), math.nan)


def spearman(x: Tensor, y: Tensor, seed: int = 0) -> Estimate:
    """Rank correlation of ``[n]`` and ``[n]`` with a bootstrap interval over the n."""
    return bootstrap(lambda index: rank_correlation(x[index], y[index]), len(x), seed=seed)


def upper(matrix: Tensor) -> Tensor:
    """What stands above the diagonal, row by row."""
    n = len(matrix)
    return matrix[torch.triu_indices(n, n, 1).unbind()]


def mantel(x: Tensor, y: Tensor, seed: int = 0) -> float:
    """One-sided p of the rank correlation of two tables of pairs ``[n, n]``, by permuting whose rows are whose.

    Pairs that share a member are not independent; permuting members and not pairs takes account of it (Mantel 1967).
    """
    n = len(x)
    i, j = torch.triu_indices(n, n, 1)
    ranks = torch.zeros(n, n, dtype=torch.float64)
    ranks[i, j] = ranks[j, i] = _ranks(upper(x).double())
    wanted = _ranks(upper(y).double())
    wanted = wanted - wanted.mean()
    exact = math.factorial(n) <= EXACT
    orders = torch.tensor(list(itertools.permutations(range(n)))) if exact else _orders(n, seed)
    found = ranks[orders[:, i], orders[:, j]] @ wanted  # permuting changes neither the mean nor the spread of ranks
    above = (found >= ranks[i, j] @ wanted - 1e-9).double()
    return float(above.mean()) if exact else float(1 + above.sum()) / (len(orders) + 1)
