"""The strength to train with, as the training-free oracle suggests it."""

from collections.abc import Sequence

from sliders.evaluation.pictures.dose import DoseResponse

# What a dial may move beside its concept, in mean probability of any other attribute: at the dial's ends, and at twice.
DRIFT_AT_1, DRIFT_AT_2 = 0.08, 0.12


def suggest_eta(amounts: Sequence[float], dose: DoseResponse) -> tuple[float | None, str]:
    """The eta to train with, from the oracle's response over amounts (dial times eta), and the reason.

    Of the amounts whose drift at the dial's ends and at twice these is within bounds, the smallest that reaches nine
    tenths of the best effect.
    """
    amounts = list(amounts)

    def drift(amount: float) -> float:
        return max(dose.drift[amounts.index(a)].change for a in (amount, -amount))

    def effect(amount: float) -> float:
        return dose.response[amounts.index(amount)] - dose.response[amounts.index(-amount)]

    usable = [a for a in amounts if a > 0 and 2 * a in amounts]
    within = [a for a in usable if drift(a) <= DRIFT_AT_1 and drift(2 * a) <= DRIFT_AT_2]
    if not within:
        bounds = f"{DRIFT_AT_1} at dial 1 and {DRIFT_AT_2} at dial 2"
        return None, f"at no eta does the drift stay within {bounds}; try other positives and negatives"
    best = max(effect(a) for a in within)
    if best <= 0:
        return None, f"the effect is {best:.2f} at best: the judge's value does not rise with the dial"
    eta = next(a for a in within if effect(a) >= 0.9 * best)
    drifts = f"drift {drift(eta):.3f} there and {drift(2 * eta):.3f} at twice"
    return eta, f"effect {effect(eta):.2f} between dials -1 and 1, {drifts}"
