"""`sliders export`: a slider for other programs."""

from pathlib import Path

from sliders.cli.defaults import Backbone
from sliders.errors import SliderError
from sliders.resources.paths import Source


def export(
    slider: Path, out: Path, base: Source | None = None, any_base: bool = False, backbone: Backbone | None = None
) -> None:
    """Write a slider of a language model as a GGUF file, which llama.cpp loads with its dial.

    Args:
        slider: the slider's folder; NAME= before it calls it otherwise.
        out: the .gguf file to write.
        base: name, folder or hub id of the model; the one that the slider says it was made on unless given.
        any_base: export a slider that was made for another base.
        backbone: the model as a class with settings, in place of the base.
    """
    from sliders import formats
    from sliders.algebra.slider import Hinge, Slider
    from sliders.backbones.base import of_class
    from sliders.backbones.language.model import CausalLMBackbone
    from sliders.cli.opening import load, model_for, read
    from sliders.console import say
    from sliders.files import check_place
    from sliders.formats import gguf
    from sliders.formats.given import given

    if out.suffix != ".gguf":
        raise SliderError(f"--out is {out}; give a file that ends with .gguf")
    check_place(out)
    files = given(slider, "slider")
    place = files[0].path
    if formats.modality_of(place) != "text":
        raise SliderError(f"{place} is for pictures; its file is what diffusers and others load already")
    (loaded,) = read(files)
    if not isinstance(loaded, Slider):
        raise SliderError(
            f"{place} is a hinge, and llama.cpp's dial has no bend; export its two sides apart"
            if isinstance(loaded, Hinge)
            else f"{place} is an edit that does more than add to weights, and a GGUF adapter holds no more than that"
        )
    found = model_for(files, [loaded], base, backbone, None, None)
    model = of_class(found, CausalLMBackbone, "llama.cpp runs", "give one with --base")
    load(model, [loaded], any_base)
    gguf.save(loaded, out, model.lm.config.to_dict())
    say(f"gguf    {out}", f"turn it llama-cli -m MODEL.gguf --lora-scaled {out} 1.0")
