"""What is found out about a language model when it is loaded."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.language.predictions import check_layers
from sliders.backbones.language.trial import try_out
from sliders.errors import SliderError
from tests import tiny_lm
from tests.backbones.test_architectures import made


class Bare(nn.Module):
    """A model of its own making: a mean over the past, and a linear layer in a block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(100, 8)
        self.layers: Any = nn.ModuleList([nn.ModuleDict(self.block())])
        self.head = nn.Linear(8, 100)
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=100))

    def block(self) -> dict[str, nn.Module]:
        return {"mlp": nn.Linear(8, 8)}

    def mixed(self, x: Tensor, mask: Tensor) -> Tensor:
        return (x * mask).cumsum(1) / mask.cumsum(1).clamp_min(1)

    def inside(self, x: Tensor) -> Tensor:
        return self.layers[0]["mlp"](x)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.mixed(self.embed(input_ids), mask[..., None])
        return SimpleNamespace(logits=self.head(torch.tanh(self.inside(x))))


class Deaf(Bare):
    """To masks."""

    def mixed(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().mixed(x, torch.ones_like(mask))


class Seeing(Bare):
    """What is to come."""

    def mixed(self, x: Tensor, mask: Tensor) -> Tensor:
        return x.mean(1, keepdim=True).expand_as(x)


class Turned(Bare):
    """Tokens first."""

    def inside(self, x: Tensor) -> Tensor:
        return super().inside(x.transpose(0, 1)).transpose(0, 1)


class Flat(Bare):
    """All tokens behind one another."""

    def inside(self, x: Tensor) -> Tensor:
        return super().inside(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Experts(Bare):
    """Each of which sees some tokens; the second all of them, as an expert may."""

    def block(self) -> dict[str, nn.Module]:
        return {"experts": nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])}

    def inside(self, x: Tensor) -> Tensor:
        flat, (one, other) = x.flatten(0, 1), self.layers[0]["experts"]
        chosen = (flat[:, 0] > 0).nonzero()[:, 0]
        return other(flat).index_add(0, chosen, one(flat[chosen])).unflatten(0, x.shape[:2])


class ByWeight(Bare):
    """Reads the layer's weight."""

    def inside(self, x: Tensor) -> Tensor:
        return x @ self.layers[0]["mlp"].weight.T


@pytest.mark.parametrize(
    ("model", "pads", "unfit"),
    [
        (Bare, True, {}),
        (Deaf, False, {}),
        (Flat, True, {}),
        (Turned, True, {"layers.0.mlp": "(5, 3, 8)"}),
        (ByWeight, True, {"layers.0.mlp": "does not run"}),
        (Experts, True, {"layers.0.experts.0": "some tokens", "layers.0.experts.1": "some tokens"}),
    ],
)
def test_what_a_model_can_do(model: type[Bare], pads: bool, unfit: dict[str, str]) -> None:
    able = try_out(model(), "mine")
    assert (able.pads, able.cache) == (pads, None)
    assert able.unfit.keys() == unfit.keys()
    assert all(word in able.unfit[name] for name, word in unfit.items())


def test_a_model_that_sees_what_is_to_come_is_refused() -> None:
    with pytest.raises(SliderError, match=r"mine \(Seeing\) sees later tokens"):
        try_out(Seeing(), "mine")


def test_nothing_is_asked_of_a_model_without_numbers() -> None:
    assert try_out(Bare().to("meta"), "mine").pads


@pytest.mark.parametrize(
    ("kind", "target", "words"),
    [
        ("mixtral", "mlp", ["mlp.experts.gate_up_proj", "(4, 48, 16)", "attention, full"]),
        ("mamba", "dt_proj", ["mixer.dt_proj", "does not run it as a layer"]),
        ("mamba", "attention", ["'attention' matches no layer", "full"]),
    ],
)
def test_a_target_that_no_slider_can_be_on_says_why(kind: str, target: str, words: list[str]) -> None:
    with pytest.raises(SliderError) as caught:
        made(kind).select_targets([target])
    assert all(word in str(caught.value) for word in words), str(caught.value)


class Blockless(Bare):
    """Its layers lie elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = self.layers
        del self.layers

    def inside(self, x: Tensor) -> Tensor:
        return self.parts[0]["mlp"](x)

    def get_input_embeddings(self) -> nn.Embedding:
        return nn.Embedding(1000, 4)


def test_a_model_without_blocks_is_refused() -> None:
    backbone = CausalLMBackbone("mine")
    with pytest.raises(SliderError, match="no numbered blocks"):
        backbone.use(Blockless(), tiny_lm.tokenizer())
    assert backbone.lm is None


def test_blocks_are_those_of_the_text() -> None:
    """Not those that see pictures, which have the same numbers."""
    backbone = made("gemma3")
    assert [name for name, _ in backbone.network.blocks] == [f"model.language_model.layers.{k}" for k in range(2)]
    assert any("vision" in name for name, _ in backbone.lm.named_modules())
    assert not any("vision" in name for name in backbone.select_targets(["full"]))


def test_states_of_two_stacks_are_not_numbered() -> None:
    with pytest.raises(SliderError, match="several stacks"):
        check_layers(made("hrm_text").network, [1])


def test_layers_are_not_read_of_rows_that_run_in_parts() -> None:
    """Editors look into a run of all rows; in parts they would see the last part."""
    backbone = made("rwkv")
    asked = backbone.encode(["dog", "tell me about the dog and the day"])
    empty = {"tokens": asked["prefix"][:, :0], "mask": asked["prefix_mask"][:, :0]}
    with pytest.raises(SliderError, match="one length at a time"), torch.no_grad():
        backbone.hidden(empty, asked, [1])
