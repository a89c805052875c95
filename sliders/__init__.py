"""Concept sliders: low-rank updates of a frozen model with a dial, and their algebra."""

from sliders.algebra.slider import Slider
from sliders.attach import attach
from sliders.concept import Concept
from sliders.errors import SliderError

__version__ = "0.1.0"
__all__ = ["Concept", "Slider", "SliderError", "attach"]
