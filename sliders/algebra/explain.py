"""What did this update change?  Its kind, its rank and the evidence, from weights alone or with inputs' covariances.

A verdict is made of parts: layers that are explained by one sentence.  First come what is no more than rounding and
what is random, judged by spectra; then the hypotheses of `sliders.algebra.kinds`; what none of them explains is a
translation.  Two more things are asked of translations: whether their directions have to do with the weights at all,
and, where the layers' inputs are known, whether they read as an optimiser's do or are a closed form's answer at keys.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sliders.algebra.change import Change
from sliders.algebra.edit import Translation
from sliders.algebra.kinds import Hypothesis, choose, fits, rivals
from sliders.algebra.lowrank import LowRank

METHODS = {
    "rounding": "weights that were stored in a lower precision",
    "random": "noise of this norm; no method that is known here",
    "bias shift": "a steering or function vector at a layer's output",
    "input shift": "a steering vector at an input, W v in every bias that reads it",
    "left orthogonal projection": "directional ablation of an output",
    "left orthogonal projection about a mean": "LEACE at an output whose covariance is isotropic",
    "left projection": "an oblique erasure of an output",
    "left projection about a mean": "LEACE at an output",
    "left factor": "a linear map after the layer",
    "right orthogonal projection": "directional ablation of an input",
    "right projection": "LEACE at an input",
    "right factor": "UCE, or another linear map before the layers",
    "write": "ROME or MEMIT: answers written at keys",
    "translation": "a slider, another low-rank adapter, or fine-tuning",
}
"""Each kind, and what makes such updates."""

_CHANCE_Z = 4.0
_ENOUGH = 16
"""So many directions can be called random from weights alone; one or two cannot."""
_NAMED = 12
"""Words that a sentence names at most."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a layer reads.

    Args:
        covariance: its second moment over text, ``C [in, in]``, without a zero eigenvalue.
        words: some words.
        keys: what it reads at each of them, ``[words, in]``.
    """

    covariance: Tensor
    words: tuple[str, ...]
    keys: Tensor


@dataclass(frozen=True)
class Alignment:
    """Do an update's directions have to do with the weight that it changes?  In standard deviations of chance.

    Args:
        writes: excess of the weight's energy along the directions written, over directions drawn at random.
        reads: the same of the directions read.
    """

    writes: float
    reads: float

    @property
    def by_chance(self) -> bool:
        """Whether random directions would do as well."""
        return max(abs(self.writes), abs(self.reads)) < _CHANCE_Z


@dataclass(frozen=True)
class Part:
    """Some layers and what was found of them.

    Args:
        kind: one of `METHODS`.
        modules: of the layers.
        ranks: of each.
        share: of the update's squared norm.
        evidence: sentences that say why.
        fit: the hypothesis that holds, where one does.
        also: kinds that the weights do not tell from this one.
    """

    kind: str
    modules: tuple[str, ...]
    ranks: tuple[int, ...]
    share: float
    evidence: str
    fit: Hypothesis | None = None
    also: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """What makes such updates."""
        return METHODS[self.kind]

    @property
    def rank(self) -> int:
        """Of the factor that is shared, and otherwise the largest of a layer."""
        return self.fit.rank if self.fit else max(self.ranks)


@dataclass(frozen=True)
class Verdict:
    """All parts, the largest first, and every hypothesis that was tried."""

    parts: tuple[Part, ...]
    tried: tuple[Hypothesis, ...] = field(repr=False, default=())
    alignment: Alignment | None = None

    @property
    def kind(self) -> str:
        """Of the largest part."""
        return self.parts[0].kind if self.parts else "rounding"


def diagnose(
    changes: Sequence[Change], inputs: Callable[[Sequence[str]], Mapping[str, Inputs]] | None = None
) -> Verdict:
    """What an update is.

    Args:
        changes: of each layer that differs.  Without the base's weights only spectra are judged.
        inputs: is asked for what layers read, of those that nothing else explains, the largest update first, and may
            answer for some; that alone tells a write at keys from another update of its rank.
    """
    whole = sum(change.spectrum.norm**2 for change in changes)
    found: list[Part] = []

    def add(
        kind: str, of: Sequence[Change], evidence: str, fit: Hypothesis | None = None, also: Sequence[str] = ()
    ) -> None:
        if of:
            share = sum(change.spectrum.norm**2 for change in of) / whole if whole else 0.0
            names, ranks = zip(*((change.module, change.update.rank) for change in of), strict=True)
            found.append(Part(kind, names, ranks, share, evidence, fit, tuple(also)))

    noise = [change for change in changes if not change.update.rank]
    stored = [change for change in noise if change.spectrum.norm == 0 or _is_rounding(change)]
    add("rounding", stored, "No singular value is larger than rounding to the stored precision can make.")
    add(
        "random",
        [change for change in noise if change not in stored],
        "No singular value stands out of the bulk: all lie below Gavish and Donoho's threshold, as those of "
        "independent random numbers do.",
    )
    rest = [change for change in changes if change.update.rank]
    tried = fits([change for change in rest if change.weight is not None])
    for fit in choose(tried):
        held = [change for change in rest if change.module in fit.modules]
        rest = [change for change in rest if change.module not in fit.modules]
        add(fit.kind, held, _sentence(fit), fit, [rival.kind for rival in rivals(fit, tried)])
    shifted = [change for change in rest if change.bias_alone]
    add("bias shift", shifted, "The weights stay; only the bias moves, by a vector that has nothing to do with W.")
    rest = [change for change in rest if not change.bias_alone]
    seen = [change for change in rest if change.weight is not None]
    aligned = alignment(seen) if seen else None
    asked = sorted(rest, key=lambda change: -change.spectrum.norm)
    known = inputs([change.module for change in asked]) if inputs and asked else {}
    read = [change for change in rest if change.module in known]
    found_at = {change.module: matches(change, known[change.module]) for change in read}
    written = [c for c in read if float(found_at[c.module].max()) > _by_chance(c.update.rank)]
    add("write", written, _at_keys([(c.update.rank, known[c.module].words, found_at[c.module]) for c in written]))
    rest = [change for change in rest if change not in written]

    def blind(change: Change) -> bool:
        """Whether it reads as random factors do; asked last, since it costs most."""
        found = powers(change, known[change.module].covariance) if change.module in known else {}
        return max(found, key=lambda p: found[p], default=1.0) == 0

    if aligned and aligned.by_chance and (sum(c.update.rank for c in rest) >= _ENOUGH or all(map(blind, rest))):
        add("random", rest, f"Of low rank, but its directions have nothing to do with the weights: {_said(aligned)}")
    else:
        why = "No factor of W explains it." if seen else "The base is not known, so no factor of W was looked for."
        add("translation", rest, f"{why} {_said(aligned)}" if aligned else why)
    return Verdict(tuple(sorted(found, key=lambda part: -part.share)), tuple(tried), aligned)


def _is_rounding(change: Change) -> bool:
    return float(change.spectrum.values[0]) <= change.spectrum.rounding


def _sentence(fit: Hypothesis) -> str:
    where = f"all {len(fit.modules)} layers share it" if len(fit.modules) > 1 else "in one layer"
    return (
        f"A {fit.kind} of rank {fit.rank} explains it to {fit.residual:.1e}, where it would leave {fit.chance:.2f} of "
        f"a random update; {where}, with {fit.numbers:,} free numbers, {fit.saved:,} fewer than without it."
    )


def _said(aligned: Alignment) -> str:
    return (
        f"The weights' energy along what is written is {aligned.writes:+.1f} standard deviations from that along "
        f"random directions, and {aligned.reads:+.1f} along what is read."
    )


def alignment(changes: Sequence[Change]) -> Alignment:
    """Of all layers together; their bases must be known."""
    writes, reads = [], []
    for change in changes:
        assert change.weight is not None
        weight = change.weight.double()
        update = change.of_weight
        writes.append(_excess(update.column_space(), weight))
        reads.append(_excess(update.row_space(), weight.T))
    return Alignment(*(sum(z) / max(len(z), 1) ** 0.5 for z in (writes, reads)))


def _excess(basis: Tensor, weight: Tensor) -> float:
    """``tr(Q^T M Q)`` for ``M = W W^T``, in standard deviations of that of a random subspace of as many dimensions.

    Of ``r`` dimensions of ``m`` the mean is ``r tr M / m``, and the variance ``2 r (m - r) / (m (m - 1) (m + 2))``
    times ``tr M^2 - (tr M)^2 / m``.
    """
    m, r = basis.shape
    gram = weight @ weight.T if m <= weight.shape[1] else None
    trace = float(weight.square().sum())
    square = float((gram if gram is not None else weight.T @ weight).square().sum())
    variance = 2 * r * (m - r) / (m * max(m - 1, 1) * (m + 2)) * (square - trace**2 / m)
    excess = float((weight.T @ basis).square().sum()) - r * trace / m
    return excess / math.sqrt(variance) if variance > 1e-12 * trace**2 else 0.0


def matches(change: Change, inputs: Inputs) -> Tensor:
    """How well each word's key ``k`` explains what an update reads, 1 for a random direction of one dimension.

    A closed form reads ``C^-1 K`` for its keys ``K``: in coordinates in which inputs are white, ``C^(1/2) V`` for a
    basis ``V [in, r]`` of the row space, it is the keys themselves.  So it is ``in`` times the squared cosine there
    between a key and the space, which is ``r`` on average for a random space and ``in`` for a key that was written at;
    the same for every basis.

    Args:
        change: of a layer.
        inputs: what it reads.

    Returns:
        A number for each word.
    """
    basis = change.of_weight.row_space()
    values, vectors = torch.linalg.eigh(inputs.covariance.to(basis))
    root = values.clamp_min(1e-12 * float(values[-1])).sqrt()
    space = torch.linalg.qr(root[:, None] * (vectors.T @ basis))[0]
    white = (vectors.T @ inputs.keys.to(basis).T) / root[:, None]
    return len(basis) * (space.T @ white).square().sum(0) / white.square().sum(0)


def _by_chance(rank: int) -> float:
    """More than the largest match of any word: ten times the mean, and 20 for the tail, below e-7 for one direction."""
    return 10 * rank + 20


def _at_keys(layers: Sequence[tuple[int, tuple[str, ...], Tensor]]) -> str:
    """The words whose keys stand out in any layer, the first the clearest."""
    over: dict[str, float] = {}
    for rank, words, found in layers:
        for word, value in zip(words, (found / _by_chance(rank)).tolist(), strict=True):
            over[word] = max(over.get(word, 0.0), value)
    names = [word for word in sorted(over, key=lambda word: -over[word]) if over[word] > 1][:_NAMED]
    return (
        f"The directions read are the inverse covariance times the keys of {', '.join(names)}: no optimiser's are, and "
        "random ones would not be by far."
    )


def powers(change: Change, covariance: Tensor) -> dict[float, float]:
    """Log-likelihoods, in nats, of the directions read being ``C^(p/2)`` times isotropic ones, for p from 0 to 1.

    A gradient is a sum of inputs: p > 0, and 1 if inputs were Gaussian.  Random factors have p = 0.  For a basis
    ``V [in, r]`` of the row space it is ``-r/2 log det C^p - in/2 log det V^T C^-p V``, the same for every basis.

    Args:
        change: of a layer.
        covariance: ``C [in, in]``.
    """
    basis = change.of_weight.row_space()
    values, vectors = torch.linalg.eigh(covariance.to(basis))
    seen, found = vectors.T @ basis, {}
    for p in (step / 4 for step in range(5)):
        inner = seen.T @ (seen * values.pow(-p)[:, None])
        found[p] = float(-0.5 * p * basis.shape[1] * values.log().sum() - 0.5 * len(values) * torch.logdet(inner))
    return found


def as_update(changes: Sequence[Change]) -> Translation:
    """What is added to the weights, in their own shapes, as sliders have it."""
    parts = ((change, change.of_weight) for change in changes)
    return Translation({change.module: LowRank(part.B, part.A, change.shape) for change, part in parts})
