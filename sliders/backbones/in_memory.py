"""Models that are in memory already: a user's own, with whatever was done to them."""

from typing import Any

from sliders.backbones.base import AbstractBackbone
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.rehearsed.backbone import PipelineBackbone
from sliders.backbones.sdxl import SDXLBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.errors import SliderError

_PIPELINES = (UNetBackbone, SDXLBackbone)


def use(model: Any, tokenizer: Any = None) -> AbstractBackbone:
    """The backbone of a model in memory, which is not copied: what is done to one is done to the other.

    Its weights are frozen, and its layers are where they were; sliders attached to the backbone act on the model.

    Args:
        model: a pipeline of diffusers, or a causal language model of transformers.  A backbone is taken as it is.
        tokenizer: of a language model.

    Raises:
        SliderError: it is none of these, or no backbone is made for its family.
    """
    if isinstance(model, AbstractBackbone):
        return model
    name = str(getattr(model, "name_or_path", "") or type(model).__name__)
    if tokenizer is not None:
        language = CausalLMBackbone(name)
        language.use(model, tokenizer)
        return language
    if not hasattr(model, "components"):
        raise SliderError(
            f"a {type(model).__name__} is neither a backbone nor a pipeline of diffusers; give one, or a language "
            "model with its tokenizer"
        )
    parts = {name for name, part in model.components.items() if part is not None}
    if "unet" not in parts:
        rehearsed = PipelineBackbone(name)
        rehearsed.use(model)
        return rehearsed
    of_family = (kind for kind in _PIPELINES if parts & {"text_encoder", "text_encoder_2"} == set(kind.encoders))
    pictures = next(of_family, UNetBackbone)(name)
    pictures.use(model)
    return pictures
