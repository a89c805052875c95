"""What the commands use where nothing else is said: the models that come with this repository, and its judge."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import lazy_instance

from sliders.backbones.causal_lm import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.errors import SliderError

AVATARS = Path("data/avatars")
JUDGE = AVATARS / "judge.safetensors"
BASE = lazy_instance(UNetBackbone, model=str(AVATARS / "model"))
LANGUAGE = lazy_instance(CausalLMBackbone, model="smollm2")


def one_each(dial: float | list[float], sliders: Sequence[object]) -> Sequence[float]:
    """A position for every slider; one number turns them all.

    Raises:
        SliderError: there are several numbers, but not one for each.
    """
    dials = dial if isinstance(dial, list) else [dial] * len(sliders)
    if len(dials) != len(sliders):
        raise SliderError(f"--dial has {len(dials)} numbers for {len(sliders)} sliders; give one each")
    return dials
