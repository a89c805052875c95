"""Concept sliders: low-rank updates of a frozen model with a dial, and their algebra.

    slider = sliders.train(model, concept)          a pipeline or language model in memory, a concept in words
    with sliders.attach(sliders.use(model), [slider]) as dials:
        dials.set({slider.name: 1.5})               the model runs with the dial at 1.5, and is the base again after it

`Concept` says what to train on; `save` and `load` write and read a `Slider` as diffusers and PEFT do; `compose` and
`hinge` make one dial of several; an `Edit` is any change of layers, a `LowRank` that of one; `rows_of` declares the
rows of a batch whose dials differ; a `SliderError` says what to do.

The names are imported when they are first asked for, so that `sliders.algebra` needs torch alone.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sliders.algebra.compose import compose
    from sliders.algebra.edit import Edit
    from sliders.algebra.lowrank import LowRank
    from sliders.algebra.slider import Slider, hinge
    from sliders.backbones.in_memory import use
    from sliders.backbones.saving import save
    from sliders.batch import rows_of
    from sliders.concept import Concept
    from sliders.errors import SliderError
    from sliders.formats.dial_files import load_dial as load
    from sliders.runtime.attach import attach
    from sliders.training.call import train

__version__ = "0.1.0"
__all__ = [
    "Concept",
    "Edit",
    "LowRank",
    "Slider",
    "SliderError",
    "attach",
    "compose",
    "hinge",
    "load",
    "rows_of",
    "save",
    "train",
    "use",
]

_HOMES = {
    "Concept": "sliders.concept:Concept",
    "Edit": "sliders.algebra.edit:Edit",
    "LowRank": "sliders.algebra.lowrank:LowRank",
    "Slider": "sliders.algebra.slider:Slider",
    "SliderError": "sliders.errors:SliderError",
    "attach": "sliders.runtime.attach:attach",
    "compose": "sliders.algebra.compose:compose",
    "hinge": "sliders.algebra.slider:hinge",
    "load": "sliders.formats.dial_files:load_dial",
    "rows_of": "sliders.batch:rows_of",
    "save": "sliders.backbones.saving:save",
    "train": "sliders.training.call:train",
    "use": "sliders.backbones.in_memory:use",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, called = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(module), called)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
