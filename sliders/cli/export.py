"""`sliders export`: a slider for other programs."""

from pathlib import Path

from sliders import formats
from sliders.algebra.slider import Hinge, Slider
from sliders.backbones.language.model import CausalLMBackbone
from sliders.cli.defaults import LANGUAGE
from sliders.console import say
from sliders.errors import SliderError
from sliders.files import check_place
from sliders.formats import gguf
from sliders.formats.given import given
from sliders.formats.metadata import check_base


def export(slider: Path, out: Path, language: CausalLMBackbone = LANGUAGE, any_base: bool = False) -> None:
    """Write a slider of a language model as a GGUF file, which llama.cpp loads with its dial.

    Args:
        slider: the slider's folder; NAME= before it calls it otherwise.
        out: the .gguf file to write.
        language: the language model.
        any_base: export a slider that was made for another base.
    """
    if out.suffix != ".gguf":
        raise SliderError(f"--out is {out}; give a file that ends with .gguf")
    check_place(out)
    (one,) = given(slider, "slider")
    slider = one.path
    if formats.modality_of(slider) != "text":
        raise SliderError(f"{slider} is for pictures; its file is what diffusers and others load already")
    loaded = one.load()
    if not isinstance(loaded, Slider):
        raise SliderError(
            f"{slider} is a hinge, and llama.cpp's dial has no bend; export its two sides apart"
            if isinstance(loaded, Hinge)
            else f"{slider} is an edit that does more than add to weights, and a GGUF adapter holds no more than that"
        )
    language.load()
    if not any_base:
        check_base(loaded, language)
    gguf.save(loaded, out, language.lm.config.to_dict())
    say(f"gguf    {out}", f"turn it llama-cli -m MODEL.gguf --lora-scaled {out} 1.0")
