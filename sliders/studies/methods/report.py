"""The table methods x properties in Markdown; in bold what was measured against what theory says."""

from collections.abc import Mapping, Sequence
from typing import Any

from sliders.evaluation.statistics import Estimate

PROPERTIES = ("invertible", "idempotent", "additive", "group", "closed", "commutative", "associative")
"""Of the weights, in the order of the table; each is yes or no."""

Cells = Mapping[str, Any]
"""What `sliders.studies.methods.study` measured, by the name of an edit, or of two joined by " | "."""


def mark(holds: Sequence[bool], expected: bool | None) -> str:
    """Whether something holds for all of several, and whether it was expected."""
    said = "yes" if all(holds) else "no" if not any(holds) else f"{sum(holds)} of {len(holds)}"
    if not holds or expected is None:
        return said if holds else "–"
    return said if (all(holds) if expected else not any(holds)) else f"**{said}**"


def weights_table(
    methods: Mapping[str, Sequence[str]], single: Cells, pairs: Cells, expected: Mapping[str, Mapping[str, bool]]
) -> str:
    """A line for every method.

    Args:
        methods: the names of the edits of each.
        single: of every edit.
        pairs: of pairs of one method, and others.
        expected: of each method what theory says of its properties.
    """
    lines = ["| method | edits | acts from | " + " | ".join(PROPERTIES) + " |", "|---" * (3 + len(PROPERTIES)) + "|"]
    for method, names in methods.items():
        own = [cell for pair, cell in pairs.items() if set(pair.split(" | ")) <= set(names)]
        row = [method, str(len(names)), _sides(single, names)]
        for law in PROPERTIES:
            found = [single[name]["laws"][law]["holds"] for name in names if law in single[name]["laws"]]
            found += [cell[law]["holds"] for cell in own if law in cell]
            row.append(mark(found, expected.get(method, {}).get(law)))
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _sides(single: Cells, names: Sequence[str]) -> str:
    return " and ".join(sorted({side for name in names for side in single[name]["sides"]})) or "neither side"


def pairs_table(pairs: Cells) -> str:
    """How far pairs are from commuting, from the factors."""
    lines = ["| pair | order, from the factors | kind of each and of both |", "|---|---|---|"]
    for pair, cell in pairs.items():
        a, b, both = (kind or "nothing" for kind in cell["closed"]["kinds"])
        kinds = f"{a}; {b}; {both}" if a != b else f"{a}; {both}"
        lines.append(f"| {pair.replace(' | ', ', ')} | {cell['commutative']['value']:.2g} | {kinds} |")
    return "\n".join(lines)


def gaps_table(cells: Cells, laws: Sequence[str]) -> str:
    """A line for each edit or pair, and for every law its gap, with its null and p where it has one."""
    lines = ["| of | " + " | ".join(laws) + " |", "|---" * (1 + len(laws)) + "|"]
    for name, cell in cells.items():
        found = {one["law"]: one for one in cell["laws"]}
        row = [_gap(found[law]) if law in found else "–" for law in laws]
        lines.append(f"| {name.replace(' | ', ', ')} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def _gap(one: Mapping[str, Any]) -> str:
    said = str(Estimate(**one["gap"]))
    return said if one["null"] is None else f"{said}; null {Estimate(**one['null'])}, p {one['p']:.2g}"


def refits_table(pairs: Cells) -> str:
    """How far a fit on an edited model is from the fit on the base."""
    lines = ["| fit | its distance from the fit on the base |", "|---|---|"]
    lines += [f"| {fit} | {gap:.2g} |" for cell in pairs.values() for fit, gap in cell["fitting"].items()]
    return "\n".join(lines)


def chain_list(chain: str, orders: Mapping[str, Any]) -> str:
    """How far a -> b and b -> c are from a -> c, in either order."""
    ab, bc, ac = chain.split(" | ")
    lines = [f"Are {ab} and {bc}, the second fitted on the first, the same as {ac}?", ""]
    return "\n".join([*lines, *(f"- {words}: {_gap(one)} away" for words, one in orders.items())])
