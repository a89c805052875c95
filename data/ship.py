"""Put trained sliders where the demo finds them, in half precision: `python -m data.ship runs/smile/smile.safetensors`.

Their metadata, with the measured effect, is kept.  Half precision moves no factor by more than 0.05 %.
"""

from dataclasses import replace
from pathlib import Path

import torch
from jsonargparse import auto_cli

from demo.library import SHIPPED
from sliders import formats
from sliders.algebra.edit import Translation
from sliders.console import say
from sliders.formats import diffusers, peft


def ship(slider: list[Path]) -> None:
    """Write sliders into data/.

    Args:
        slider: files of sliders of pictures, folders of sliders of language models.
    """
    for path in slider:
        loaded = formats.load(path)
        half = replace(loaded, update=Translation({m: u.to(torch.float16) for m, u in loaded.update.items()}))
        if formats.of_language(path):
            place = SHIPPED["text"] / half.name
            peft.save(half, place, half.metadata["sliders.base_model"], peft.base_of(path)[1])
        else:
            place = SHIPPED["image"] / f"{half.name}.safetensors"
            diffusers.save(half, place)
        say(f"slider  {place}")


if __name__ == "__main__":
    auto_cli(ship, as_positional=True)
