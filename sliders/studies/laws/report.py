"""Figures and tables of what was measured of laws."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from sliders.report.drawing import plt
from sliders.studies.behavioural_laws import STRAIGHT, DialPath, MeasuredLaw
from sliders.studies.interference import Forecast

_BLUE, _GREY = "#30638e", "#8d96a3"


def gaps_figure(measured: Sequence[MeasuredLaw]) -> Figure:
    """Each gap with its interval, and its null beside it."""
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.32 * len(measured)), layout="constrained")
    for k, one in enumerate(reversed(measured)):
        for estimate, colour, shift in ((one.gap, _BLUE, 0.0), (one.null, _GREY, -0.25)):
            if estimate is not None:
                axis.plot([estimate.low, estimate.high], [k + shift] * 2, color=colour, linewidth=3, alpha=0.5)
                axis.plot(estimate.value, k + shift, "o", color=colour)
    axis.set_yticks(range(len(measured)), [f"{one.law}: {', '.join(one.of)}" for one in reversed(measured)])
    axis.set(xlabel="gap (0: the law holds); grey: the same between twins", xlim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def paths_figure(paths: Sequence[DialPath]) -> Figure:
    """How far each dial moves predictions, and how far it is from a straight line."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    for path in paths:
        left.plot(path.dials, [s if d > 0 else -s for s, d in zip(path.size, path.dials, strict=True)], "o-", ms=3)
        right.plot(path.dials, path.bend, "o-", ms=3, label=path.name)
    right.axhline(STRAIGHT, color=_GREY, linestyle="--", linewidth=1)
    left.set(title="size of the change, sign of the dial", xlabel="dial", ylabel="relative to dial 1")
    right.set(title="distance from the line through 0", xlabel="dial", ylabel="share of the line", ylim=(0, None))
    right.legend(frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def scatter_figure(forecast: Forecast, pairs: Sequence[tuple[str, str]]) -> Figure:
    """Predicted against measured interference, a point a pair."""
    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    axis.plot(forecast.predicted, forecast.measured, "o", color=_BLUE)
    for x, y, (a, b) in zip(forecast.predicted, forecast.measured, pairs, strict=True):
        axis.annotate(f"{a} + {b}", (x, y), fontsize=7, xytext=(4, 3), textcoords="offset points", color="#57606a")
    axis.set(xlabel=f"predicted from factors: {forecast.by}", ylabel="measured interaction", ylim=(0, None))
    axis.set_title(f"Spearman {forecast.correlation}")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def gap_rows(measured: Sequence[MeasuredLaw]) -> list[list[str]]:
    """A line of a table for each; see `GAP_HEADINGS`."""

    def chance(p: float | None) -> str:
        return "" if p is None else f"{p:.2g}"

    return [
        [f"{m.law}: {', '.join(m.of)}", str(m.gap), str(m.null) if m.null else "none", chance(m.p), chance(m.p_runs)]
        for m in measured
    ]


GAP_HEADINGS = ("law", "gap [95 %]", "between twins [95 %]", "p over scenes", "p over runs")
