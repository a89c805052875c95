"""UCE on tiny diffusion models, against the published algorithm written out for one layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sliders.algebra.distance import distance
from sliders.algebra.edit import Affine
from sliders.algebra.laws import commutes, is_invertible
from sliders.backbones.unet import UNetBackbone
from sliders.editors.uce import UCE
from sliders.errors import SliderError
from sliders.runtime.baking import baked
from sliders.runtime.layers import layer_weights
from tests import tiny
from tests.factory import normal

HAPPY = UCE({"happy": "sad"}, ["a {} person", "a {} dog"], ["a person with a hat"], tokens="tail")


@pytest.fixture(scope="module")
def model() -> UNetBackbone:
    backbone = UNetBackbone("tiny")
    backbone.use(tiny.stable_diffusion())
    return backbone


def vectors(model: UNetBackbone, prompt: str) -> Tensor:
    with torch.no_grad():
        return model.encode([prompt])["prompt_embeds"][0].double()


def position(model: UNetBackbone, begin: str) -> int:
    """Of the last token of a text."""
    return int(model.pipeline.tokenizer(begin, return_tensors="pt").attention_mask.sum()) - 2


def published(model: UNetBackbone, weight: Tensor, tail: bool, scale: float = 1.0) -> Tensor:
    """`mat1 @ inverse(mat2)` of the published scripts, summed over one outer product after the other."""
    eye = torch.eye(weight.shape[1], dtype=torch.float64)
    mat1, mat2 = 0.5 * weight, 0.5 * eye
    for context in ("person", "dog"):
        old, new = vectors(model, f"a happy {context}"), vectors(model, f"a sad {context}")
        i, j = position(model, "a happy"), position(model, "a sad")
        count = len(old) - max(i, j) if tail else 1
        for c, g in zip(old[i : i + count], new[j : j + count], strict=True):
            mat1, mat2 = mat1 + scale * torch.outer(weight @ g, c), mat2 + scale * torch.outer(c, c)
    kept = vectors(model, "a person with a hat")
    last = position(model, "a person with a hat")
    for p in kept if tail else kept[last : last + 1]:
        mat1, mat2 = mat1 + torch.outer(weight @ p, p), mat2 + torch.outer(p, p)
    return mat1 @ torch.inverse(mat2)


@pytest.mark.parametrize("tokens", ["tail", "last"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_it_is_the_published_algorithm_on_every_layer(model: UNetBackbone, tokens: str, scale: float) -> None:
    edit = replace(HAPPY, tokens=tokens, erase_scale=scale).fit(model)
    assert list(edit) == model.select_targets(["xattn-strict"])
    for name in edit:
        weight = layer_weights(model, name)[0].double()
        wanted = published(model, weight, tokens == "tail", scale)
        assert_close(edit.apply(name, weight), wanted, atol=1e-5, rtol=1e-4)
        assert (wanted - weight).norm() > 0.1 * weight.norm()


def answers(model: UNetBackbone, edit: Affine, prompt: str) -> Tensor:
    """What the first edited layer answers to a prompt's vectors."""
    name = edit.modules[0]
    with baked(model, edit):
        return vectors(model, prompt) @ layer_weights(model, name)[0].double().T


def test_a_concept_is_answered_as_its_target_and_a_preserved_prompt_as_before(model: UNetBackbone) -> None:
    hard = UCE({"happy": "sad"}, ["a {} person"], ["a person with a hat"], 1e-8)
    edit, plain = hard.fit(model), Affine({})
    at, name = position(model, "a happy"), hard.fit(model).modules[0]
    before = vectors(model, "a sad person") @ layer_weights(model, name)[0].double().T
    assert_close(answers(model, edit, "a happy person")[at], before[position(model, "a sad")], atol=1e-4, rtol=1e-3)
    kept = position(model, "a person with a hat")
    base = vectors(model, "a person with a hat") @ layer_weights(model, name)[0].double().T
    assert_close(answers(model, edit, "a person with a hat")[kept], base[kept], atol=1e-4, rtol=1e-3)
    careless = replace(hard, preserve=[]).fit(model)  # control
    moved = answers(model, careless, "a person with a hat")[kept] - base[kept]
    assert moved.norm() > 1e-2 * base[kept].norm()
    assert plain.modules == ()


@contextmanager
def other_weights(model: UNetBackbone) -> Iterator[None]:
    """The same model with other weights in its cross-attention."""
    layers = [model.get_submodule(name) for name in model.select_targets(["xattn-strict"])]
    before = [layer.get_parameter("weight").data.clone() for layer in layers]
    for seed, layer in enumerate(layers):
        layer.get_parameter("weight").data = normal(*before[seed].shape, seed=seed, dtype=torch.float32)
    yield
    for layer, weight in zip(layers, before, strict=True):
        layer.get_parameter("weight").data = weight


def test_it_does_not_depend_on_the_weights_so_that_fitting_after_another_is_fitting_alone(model: UNetBackbone) -> None:
    alone, hat = HAPPY.fit(model), UCE({"hat": "dog"}, tokens="tail").fit(model)
    with other_weights(model):
        assert distance(HAPPY.fit(model), alone) < 1e-6
    with baked(model, hat):
        assert distance(HAPPY.fit(model), alone) < 1e-6
    assert distance(hat, alone) > 0.1  # control


def test_its_inverse_and_its_commutator_are_known_without_running_the_model(model: UNetBackbone) -> None:
    happy, hat = HAPPY.fit(model), UCE({"hat": "dog"}, tokens="tail").fit(model)
    name = happy.modules[0]
    weight = layer_weights(model, name)[0].double()
    assert is_invertible(happy)
    assert_close((happy.inverse() @ happy).apply(name, weight), weight, atol=1e-4, rtol=1e-4)
    m1, m2 = (torch.eye(16, dtype=torch.float64) + f[name].right.to(torch.float64).dense() for f in (happy, hat))
    commutator = float((m1 @ m2 - m2 @ m1).norm()) / 4  # the distance weighs a right factor by 1 / root of the width
    smaller = min(float((m - torch.eye(16)).norm()) for m in (m1, m2)) / 4
    shapes = [happy[name].shape[0] for name in happy]
    assert len(set(shapes)) == 1
    found = commutes(happy, hat)
    assert found.value == pytest.approx(commutator / smaller, rel=1e-3)
    assert not found
    assert commutes(happy, happy)


def test_contexts_are_drawn_by_the_seed(model: UNetBackbone) -> None:
    drawn = replace(HAPPY, draw=1)
    assert distance(drawn.fit(model, 0), drawn.fit(model, 0)) < 1e-6
    assert len({round(distance(drawn.fit(model, seed), HAPPY.fit(model)), 6) for seed in range(6)}) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"replace": {}}, "replace is empty"),
        ({"contexts": ["a person"]}, "'a person' needs one {}"),
        ({"draw": 3}, "draw is 3, but there are 2 contexts"),
        ({"targets": ["noxattn"]}, "does not read the text"),
        ({"replace": {"happy " * 40: "sad"}}, "more tokens than"),
        ({"contexts": "nowhere.txt"}, "cannot read the prompts nowhere.txt"),
    ],
)
def test_what_cannot_be_fitted_is_an_error(model: UNetBackbone, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SliderError, match=message):
        replace(HAPPY, **wrong).fit(model)
