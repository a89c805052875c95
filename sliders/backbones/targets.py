"""Which layers of a model a slider is put on: named groups, and regular expressions over the layers' names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from sliders.errors import SliderError
from sliders.runtime.layers import select_modules


@dataclass(frozen=True)
class TargetGroup:
    """A named set of layers: regular expressions of which one must be found, and those of which none may be."""

    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        """Whether a layer of this name is in it."""
        return any(re.search(p, name) for p in self.include) and not any(re.search(p, name) for p in self.exclude)

    def of(self, model: nn.Module, names: Sequence[str]) -> list[str]:
        """Those of a model's layers that are in it, in order.

        Raises:
            SliderError: there is none.
        """
        return [name for name in select_modules(model, self.include, names) if self.has(name)]


def select(
    model: nn.Module,
    targets: Sequence[str],
    names: Sequence[str],
    groups: Mapping[str, TargetGroup],
    unfit: Mapping[str, str],
) -> list[str]:
    """Layers for a slider, in the model's order.

    Args:
        model: that has the layers.
        targets: each is the name of a group or a regular expression.
        names: of the layers that a slider can be on.
        groups: named sets of them.
        unfit: what looks like a layer and cannot have a slider, with what is wrong with it.

    Raises:
        SliderError: a target is neither a group nor matches a layer, with the groups and the nearest layers.
    """
    chosen: set[str] = set()
    for target in targets:
        if target in groups:
            chosen.update(groups[target].of(model, names))
            continue
        try:
            chosen.update(select_modules(model, [target], names))
        except SliderError as error:
            why = _why_not(target, unfit)
            raise SliderError(f"{error}. {why}Groups of this model: {', '.join(groups)}") from None
    return [name for name in names if name in chosen]


def _why_not(pattern: str, unfit: Mapping[str, str]) -> str:
    """What is wrong with the first unfit thing that a pattern finds, as a sentence; or nothing."""
    try:
        name = next((name for name in unfit if re.search(pattern, name)), None)
    except re.error:  # which is what is said already
        return ""
    return "" if name is None else f"{name} cannot have a slider: {unfit[name]}. "
