"""Which known sliders an update is like: by their subspaces, and as a mixture of them by least squares."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sliders.algebra.edit import Translation
from sliders.algebra.pairs import pairwise
from sliders.algebra.slider import Slider
from sliders.errors import SliderError


@dataclass(frozen=True)
class Neighbour:
    """A known slider beside an update; all but the coefficient is as in `sliders.algebra.pairs`.

    Args:
        name: of the slider.
        cosine: signed, over all modules.
        columns: mean squared cosine of the principal angles between what both write.
        rows: the same of what they read.
        interference: of directions weighted by what goes there.
        coefficient: of the slider in the mixture that is nearest to the update.
    """

    name: str
    cosine: float
    columns: float
    rows: float
    interference: float
    coefficient: float


@dataclass(frozen=True)
class Nearest:
    """All known sliders, the likest first, and what the mixture of them leaves of the update, relative to it."""

    neighbours: tuple[Neighbour, ...]
    residual: float


def nearest(update: Translation, library: Sequence[Slider]) -> Nearest:
    """Compare an update with known sliders; nothing depends on how any of them is factored.

    Args:
        update: of weights alone.
        library: at least one; what of them changes other modules counts as unlike.

    Raises:
        SliderError: the library is empty, or two change one module by unlike shapes.
    """
    if not library:
        raise SliderError("there is no known slider to compare the update with; give some with --library")
    pairs = pairwise([Slider("", update), *library])
    gram = pairs.cosine * torch.outer(pairs.norms, pairs.norms)
    shares = torch.linalg.pinv(gram[1:, 1:], hermitian=True) @ gram[1:, 0]
    left = gram[0, 0] - shares @ gram[1:, 0]
    found = [
        Neighbour(
            name=slider.name,
            cosine=float(pairs.cosine[0, k]),
            columns=float(pairs.columns[0, k]),
            rows=float(pairs.rows[0, k]),
            interference=float(pairs.interference[0, k]),
            coefficient=float(shares[k - 1]),
        )
        for k, slider in enumerate(library, 1)
    ]
    whole = float(pairs.norms[0])
    residual = float(left.clamp_min(0)) ** 0.5 / whole if whole else 0.0
    return Nearest(tuple(sorted(found, key=lambda one: -abs(one.cosine))), residual)
