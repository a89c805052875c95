"""The ways to put sliders together, and the numbers that they ask for; nothing here needs a model's libraries."""

from dataclasses import dataclass
from typing import Literal

from sliders.errors import check_at_least_1

How = Literal["sum", "compress", "orthogonalise", "ties", "dare", "knots", "hinge"]


@dataclass(frozen=True)
class Merging:
    """Numbers that ways to compose ask for.

    Args:
        rank: of every layer of the result, at least 1: for compress (or give one of the next two), and for ties and
            dare, where it is the sum of the ranks unless given.
        total_rank: for compress: the sum of ranks over all layers, at least 1.
        tolerance: for compress: the relative error that is allowed.
        keep: for ties and knots: the share of entries that survives the trimming.
        drop: for dare: the probability of dropping an entry.
        seed: for dare: of the draws.
        scale: for ties and knots: what the result is multiplied by.
        by: for orthogonalise: what becomes 0, the inner product of the updates, what both write, or what both read.

    Raises:
        SliderError: a rank is below 1.
    """

    rank: int | None = None
    total_rank: int | None = None
    tolerance: float | None = None
    keep: float = 0.5
    drop: float = 0.5
    seed: int = 0
    scale: float = 1.0
    by: Literal["inner", "columns", "rows"] = "columns"

    def __post_init__(self) -> None:
        check_at_least_1("--merging", self, "rank", "total_rank")
