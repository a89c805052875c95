"""`sliders.save`: each dial in its own layout, read back as it was."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import sliders
from sliders.algebra.edit import Affine, Translation
from sliders.algebra.element import Element
from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Interpolated, NamedDial, Slider
from sliders.backbones.language.model import CausalLMBackbone
from sliders.runtime.attach import attach
from tests import tiny, tiny_lm
from tests.factory import normal

PICTURE, WORDS = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", "lm.model.layers.0.mlp.up_proj"


def slider(name: str, module: str, shape: tuple[int, int] = (24, 16)) -> Slider:
    """On one layer."""
    seed = len(name)
    update = LowRank(normal(shape[0], 2, seed=seed).float(), normal(2, shape[1], seed=seed + 1).float(), shape)
    return Slider(name, Translation({module: update}), {"sliders.base_model": "somewhere"})


def edit() -> Interpolated:
    """That does more than add to a weight."""
    left = LowRank(normal(24, 1, seed=1).float(), normal(1, 24, seed=2).float(), (24, 24))
    zero = [LowRank.zero((16, 16)), LowRank.zero((24, 16))]
    return Interpolated("turned", Affine({PICTURE: Element((24, 16), left, *zero)}))


DIALS: dict[str, tuple[NamedDial, str]] = {
    "pictures": (slider("smile", PICTURE), "smile.safetensors"),
    "language": (slider("cheer", WORDS), "cheer"),
    "a hinge of pictures": (sliders.hinge(slider("sad", PICTURE), slider("smile", PICTURE)), "mood"),
    "a hinge of language": (sliders.hinge(slider("gloom", WORDS), slider("cheer", WORDS)), "mood"),
    "an edit": (edit(), "turned.safetensors"),
}


@pytest.mark.parametrize("kind", DIALS)
def test_what_is_written_is_read_as_it_was(kind: str, tmp_path: Path) -> None:
    dial, name = DIALS[kind]
    sliders.save(dial, str(tmp_path / name))
    read = sliders.load(str(tmp_path / name))
    assert (type(read), read.name) == (type(dial), dial.name)
    for position in (-1.5, 1.0):
        one, two = dial.at(position), read.at(position)
        assert one.modules == two.modules
        for module in one.modules:
            weight = normal(24, 16, seed=3).float()
            assert torch.equal(one.apply(module, weight), two.apply(module, weight))


@pytest.mark.parametrize(
    ("kind", "name"), [("pictures", "smile"), ("language", "a.safetensors"), ("an edit", "turned")]
)
def test_another_ending_than_the_layout_s_is_an_error(kind: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(sliders.SliderError):
        sliders.save(DIALS[kind][0], tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_peft_s_must_say_its_base(tmp_path: Path) -> None:
    with pytest.raises(sliders.SliderError, match=r"sliders\.base_model"):
        sliders.save(replace(slider("cheer", WORDS), metadata={}), tmp_path / "cheer")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # PEFT finds out which way round GPT-2's weights are
def test_peft_loads_it(kind: str, tmp_path: Path) -> None:
    base = tiny.save(tiny_lm.language_model(kind), tmp_path / "base")
    backbone = CausalLMBackbone(str(base))
    backbone.load()
    layer = next(name for name in backbone.select_targets(["mlp"]))
    weight = backbone.get_submodule(layer).get_parameter("weight")
    shape = tuple(weight.T.shape if backbone.transposed else weight.shape)
    made = replace(slider("cheer", layer, (shape[0], shape[1])), metadata={"sliders.base_model": str(base)})
    sliders.save(made, tmp_path / "cheer")
    ids = torch.arange(5, 11)[None]
    with torch.no_grad():
        with attach(backbone, [made], {"cheer": 1.0}):
            ours = backbone.lm(ids).logits
        theirs = PeftModel.from_pretrained(backbone.lm, tmp_path / "cheer")(ids).logits
    torch.testing.assert_close(theirs, ours)
