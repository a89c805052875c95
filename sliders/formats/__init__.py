"""Files of sliders: `diffusers` for pictures, `peft` for language, `load` for whichever it is."""

from pathlib import Path

from sliders.algebra.slider import Slider


def load(path: Path) -> Slider:
    """Read a slider: a PEFT folder, or a safetensors file in diffusers' layout.

    Raises:
        SliderError: it is neither.
    """
    from sliders.formats import diffusers, peft

    return peft.load(path) if path.is_dir() else diffusers.load(path)
