"""Concept sliders: low-rank updates of a frozen model with a dial, and their algebra.

The names below are imported when they are first asked for, so that `sliders.algebra` needs torch alone.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sliders.algebra.slider import Slider
    from sliders.batch import rows_of
    from sliders.concept import Concept
    from sliders.errors import SliderError
    from sliders.runtime.attach import attach

__version__ = "0.1.0"
__all__ = ["Concept", "Slider", "SliderError", "attach", "rows_of"]

_HOMES = {
    "Concept": "sliders.concept",
    "Slider": "sliders.algebra.slider",
    "SliderError": "sliders.errors",
    "attach": "sliders.runtime.attach",
    "rows_of": "sliders.batch",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
