"""Put trained sliders where the demo finds them, in half precision: `python -m data.ship runs/smile/smile.safetensors`.

Their metadata, with the measured effect, is kept.  Half precision moves no factor by more than 0.05 %.  Twins, trained
with another seed and called NAME_seed1, go into a folder of their own.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sliders import formats
from sliders.algebra.edit import Translation
from sliders.console import say
from sliders.errors import SliderError
from sliders.formats import diffusers, peft
from sliders.page.library import OF_FLOW, SHIPPED


def ship(sliders: Sequence[Path]) -> None:
    """Write sliders into data/.

    Args:
        sliders: files of sliders of pictures, folders of sliders of language models.
    """
    for path in sliders:
        loaded = formats.load(path)
        half = replace(loaded, update=Translation({m: u.to(torch.float16) for m, u in loaded.update.items()}))
        modality = formats.modality_of(path)
        folder = SHIPPED[modality]
        folder = OF_FLOW if half.metadata.get("sliders.base_model") == "avatars-flow" else folder
        folder = folder.with_name("twins") if half.name.endswith("_seed1") else folder
        folder.mkdir(exist_ok=True)
        if modality == "text":
            place = folder / half.name
            peft.save(half, place, half.metadata["sliders.base_model"], peft.base_of(path)[1])
        else:
            place = folder / f"{half.name}.safetensors"
            diffusers.save(half, place)
        say(f"slider  {place}")


if __name__ == "__main__":
    try:
        ship([Path(argument) for argument in sys.argv[1:]])
    except SliderError as error:
        sys.exit(f"error: {error}")
