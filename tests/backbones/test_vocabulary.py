"""A tokenizer that is not the model's is known when both are loaded, not at the first index that is out of range."""

import copy
from typing import Any

import pytest

from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.sdxl import SDXLBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.errors import SliderError
from tests import tiny, tiny_lm


def larger(tokenizer: Any, known: int) -> Any:
    """The tokenizer with as many tokens more as reach beyond the model's."""
    more = copy.deepcopy(tokenizer)
    more.add_tokens([f"<new-{k}>" for k in range(known - len(more) + 1)])
    return more


def language() -> tuple[Any, Any]:
    """A tiny language model and its tokenizer."""
    made = tiny_lm.language_model("llama")
    return made.lm, made.tokenizer


def test_of_language() -> None:
    lm, tokenizer = language()
    CausalLMBackbone("tiny").use(lm, tokenizer)  # the control
    with pytest.raises(SliderError, match=r"the tokenizer of tiny has the token '<new-\d+>' with number \d+"):
        CausalLMBackbone("tiny").use(lm, larger(tokenizer, lm.get_input_embeddings().num_embeddings))


@pytest.mark.parametrize("encoder", ["text_encoder", "text_encoder_2"])
def test_of_pictures(encoder: str) -> None:
    pipe: Any = tiny.stable_diffusion_xl()
    SDXLBackbone("tiny").use(pipe)
    name = encoder.replace("text_encoder", "tokenizer")
    setattr(pipe, name, larger(getattr(pipe, name), getattr(pipe, encoder).get_input_embeddings().num_embeddings))
    with pytest.raises(SliderError, match=rf"the tokenizer of tiny \({encoder}\) has the token"):
        SDXLBackbone("tiny").use(pipe)
    UNetBackbone("tiny").use(tiny.stable_diffusion())


BROKEN = ["{% for m in messages %}", "{{ messages[0]['content'] + 1 }}", "{{ raise_exception('no') }}"]


@pytest.mark.parametrize("template", BROKEN)
def test_a_broken_template(template: str) -> None:
    lm, tokenizer = language()
    broken = copy.deepcopy(tokenizer)
    broken.chat_template = template
    with pytest.raises(SliderError, match=r"the chat template of tiny .*broken.*set chat to false") as caught:
        CausalLMBackbone("tiny").use(lm, broken)
    assert "\n" not in str(caught.value)
    CausalLMBackbone("tiny", chat=False).use(lm, broken)
