"""Task vectors between checkpoints on disk, of which it is known what was changed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sliders.algebra.edit import Affine, Factored, Translation
from sliders.algebra.slider import Slider
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.editors.task_vector import TaskVector
from sliders.errors import SliderError
from sliders.formats import diffusers
from sliders.runtime.attach import attach
from sliders.runtime.baking import baked
from sliders.runtime.layers import layer_weights
from tests import tiny, tiny_lm
from tests.factory import slider

Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
CONV = "unet.conv_in"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> UNetBackbone:
    model = UNetBackbone(str(tiny.save(tiny.stable_diffusion(), tmp_path_factory.mktemp("base") / "model")))
    model.load()
    return model


def tuned(base: UNetBackbone, folder: Path, change: Callable[[UNetBackbone], object]) -> Path:
    """A checkpoint of the base with a change; the base itself stays."""
    other = UNetBackbone(base.model)
    other.load()
    with torch.no_grad():
        change(other)
    other.export(folder)
    return folder


def baking(edit: Factored, base: UNetBackbone, folder: Path) -> Path:
    with baked(base, edit):
        base.export(folder)
    return folder


def test_the_difference_to_a_merged_slider_is_the_slider(base: UNetBackbone, tmp_path: Path) -> None:
    wanted = slider(base, {Q: 2, CONV: 1}, scale=0.1)
    found = TaskVector(baking(wanted.update, base, tmp_path / "merged"), tolerance=1e-3).fit(base)
    assert isinstance(found, Translation)
    assert {name: part.rank for name, part in found.items()} == {CONV: 1, Q: 2}
    assert (found - wanted.update).norm() < 1e-3 * wanted.update.norm()
    assert found[CONV].shape == wanted.update[CONV].shape


def test_added_it_gives_the_tuned_model_and_taken_away_the_base(base: UNetBackbone, tmp_path: Path) -> None:
    folder = baking(slider(base, {Q: 2, CONV: 1}).update, base, tmp_path / "merged")
    found = TaskVector(folder).fit(base)
    other = UNetBackbone(str(folder))
    other.load()
    for name in found.modules:
        ours, theirs = layer_weights(base, name)[0], layer_weights(other, name)[0]
        assert_close(found.apply_layer(name, ours, None)[0], theirs, atol=1e-6, rtol=1e-5)
        assert_close(found.inverse().apply_layer(name, theirs, None)[0], ours, atol=1e-6, rtol=1e-5)
        assert (theirs - ours).norm() > 1e-2  # control


def test_as_a_slider_s_file_it_does_what_the_tuned_model_does(base: UNetBackbone, tmp_path: Path) -> None:
    folder = baking(slider(base, {Q: 2, CONV: 1}).update, base, tmp_path / "merged")
    found = TaskVector(folder).fit(base)
    assert isinstance(found, Translation)
    file = base.save_slider(Slider("task", found), tmp_path)
    other = UNetBackbone(str(folder))
    other.load()
    state = {"latents": base.start([1]), "timestep": torch.tensor([500])}
    with torch.no_grad(), attach(base, [diffusers.load(file)], {"task": 1.0}):
        moved = base.predict(state, base.encode(["a dog"]))
    with torch.no_grad():
        assert_close(moved, other.predict(state, other.encode(["a dog"])), atol=1e-4, rtol=1e-4)
        assert (moved - base.predict(state, base.encode(["a dog"]))).abs().max() > 1e-2


def test_a_bias_that_changed_is_a_column_more(base: UNetBackbone, tmp_path: Path) -> None:
    folder = tuned(base, tmp_path / "t", lambda m: m.get_submodule(CONV).get_parameter("bias").add_(0.5))
    found = TaskVector(folder).fit(base)
    assert isinstance(found, Affine)
    assert found.modules == (CONV,)
    weight, bias = layer_weights(base, CONV)
    after = found.apply_layer(CONV, weight, bias)
    assert after[1] is not None
    assert bias is not None
    assert_close(after[1], bias + 0.5)
    assert_close(after[0], weight, atol=1e-6, rtol=1e-6)


def test_what_no_layer_s_edit_holds_is_an_error_or_left_out(base: UNetBackbone, tmp_path: Path) -> None:
    def change(model: UNetBackbone) -> None:
        model.get_submodule("unet.conv_norm_out").get_parameter("weight").mul_(2)
        model.get_submodule(Q).get_parameter("weight").mul_(2)

    folder = tuned(base, tmp_path / "t", change)
    with pytest.raises(SliderError, match=r"1 tensors differ .* the first is 'unet\.conv_norm_out\.weight'"):
        TaskVector(folder).fit(base)
    assert TaskVector(folder, leave_rest=True).fit(base).modules == (Q,)


def test_a_tolerance_lowers_ranks_by_no_more_than_it_says(base: UNetBackbone, tmp_path: Path) -> None:
    folder = baking(slider(base, {Q: 4}).update, base, tmp_path / "merged")
    whole, low = (TaskVector(folder, tolerance=t).fit(base) for t in (0.0, 0.5))
    assert isinstance(whole, Translation)
    assert isinstance(low, Translation)
    assert low[Q].rank < 4 <= whole[Q].rank
    assert (low - whole).norm() <= 0.5 * whole.norm()


def test_the_same_model_and_another_architecture_are_errors(base: UNetBackbone, tmp_path: Path) -> None:
    with pytest.raises(SliderError, match="has the same weights"):
        TaskVector(Path(base.model)).fit(base)
    first, second = (tiny.save(tiny_lm.language_model(kind), tmp_path / kind) for kind in ("llama", "gpt2"))
    model = CausalLMBackbone(str(first))
    model.load()
    with pytest.raises(SliderError, match="not of the architecture"):
        TaskVector(second).fit(model)
