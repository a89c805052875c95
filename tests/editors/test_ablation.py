"""Directional ablation on tiny language models."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from torch.testing import assert_close

from sliders.algebra.distance import distance
from sliders.algebra.edit import Affine
from sliders.algebra.laws import commutes, is_idempotent, is_invertible
from sliders.backbones.language.model import CausalLMBackbone
from sliders.concept import Concept
from sliders.editors.ablation import Ablation, ablate
from sliders.editors.contrast import ResponseSampling, after_blocks, answer, mean_difference, writers
from sliders.errors import SliderError
from sliders.runtime.baking import baked
from tests.factory import normal


def hidden(model: CausalLMBackbone, edit: Affine) -> Tensor:
    """States ``[layers, response, width]`` after all three blocks."""
    with torch.no_grad(), baked(model, edit):
        said = model.responses(["a long day with a dog"], 12)
        return model.hidden(said, model.encode(["how was your day"]), [1, 2, 3])[0]


def test_no_block_writes_the_direction_so_that_it_stays_what_the_embedding_put_there(model: CausalLMBackbone) -> None:
    direction = normal(16, 1, seed=3, dtype=torch.float32)
    along = (hidden(model, ablate(model, direction)) @ direction / direction.norm())[..., 0]
    assert_close(along[1], along[0], atol=1e-4, rtol=1e-4)
    assert_close(along[2], along[0], atol=1e-4, rtol=1e-4)
    base = (hidden(model, Affine({})) @ direction / direction.norm())[..., 0]  # control
    assert (base[1] - base[0]).abs().max() > 0.1
    other = ablate(model, normal(16, 1, seed=4, dtype=torch.float32))  # control: another direction's ablation
    stays = (hidden(model, other) @ direction / direction.norm())[..., 0]
    assert (stays[1] - stays[0]).abs().max() > 0.1


def test_every_writer_of_every_block_is_edited(model: CausalLMBackbone) -> None:
    edit = ablate(model, normal(16, 1, seed=3))
    assert set(edit) == {name for part in ("attention", "mlp") for name in writers(model, part).values()}
    assert len(edit) == 6
    assert is_idempotent(edit)
    assert not is_invertible(edit)


def test_the_direction_is_the_difference_of_means(model: CausalLMBackbone, mood: Concept, tmp_path: Path) -> None:
    file = tmp_path / "mood.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in mood.to_dict().items() if v is not None}))
    edit = Ablation(file, 1, ResponseSampling(tokens=6)).fit(model, seed=2)
    direction = mean_difference(
        model, answer(model, mood, ResponseSampling(tokens=6), seed=2), after_blocks(model, [1])
    )
    assert distance(edit, ablate(model, direction.T)) < 1e-4
    assert distance(edit, ablate(model, normal(16, 1, seed=4))) > 0.1  # control


@pytest.mark.parametrize("block", [-1, 3, 99])
def test_a_block_that_is_not_there_is_an_error(model: CausalLMBackbone, block: int) -> None:
    """Before anything is said, or the concept is read."""
    with pytest.raises(SliderError, match=rf"no states after block {block}: .* has the blocks 0 to 2"):
        Ablation(Path("/no/concept"), block).fit(model)
    said = model.responses(["a dog"], 4)
    with pytest.raises(SliderError, match=f"no states after block {block}"):
        model.hidden(said, model.encode(["how was your day"]), [1, block + 1])


def test_two_of_them_commute_at_right_angles_alone(model: CausalLMBackbone) -> None:
    q = torch.linalg.qr(normal(16, 2, seed=5)).Q
    one, two = ablate(model, q[:, :1]), ablate(model, q[:, 1:])
    slanted = ablate(model, q.sum(1, keepdim=True))
    assert commutes(one, two)
    assert not commutes(one, slanted)
