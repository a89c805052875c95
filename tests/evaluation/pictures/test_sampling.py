"""Pictures over a dial are the pictures of the dial at each place."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sliders.algebra.slider import Slider
from sliders.backbones.diffusion import DiffusionBackbone
from sliders.backbones.sdxl import SDXLBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.batch import rows
from sliders.concept import Concept
from sliders.errors import SliderError
from sliders.evaluation.base_states import picture_states
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.evaluation.pictures.sampling import (
    Sampling,
    Scene,
    check_sampling,
    finish,
    sample,
    sample_dial,
    sample_oracle,
    scenes,
)
from sliders.report.drawing import strip
from sliders.runtime.adapter import Adapter
from sliders.runtime.attach import attach
from sliders.runtime.baking import baked
from sliders.teacher.training_free import oracle
from tests import tiny
from tests.evaluation.conftest import random_slider

SCENES = [Scene("a person", 5), Scene("a dog with a hat", 6), Scene("a person", 7)]
HOW = Sampling(steps=3, guidance=2.0)
DIALS = [-1.0, 0.0, 1.5]
HAPPY = Concept("happy", "a person", ["a happy person"], ["a sad person"])

close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-3)


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference of two sets of pictures."""
    return float((one - other).abs().max())


def test_scenes_go_through_the_prompts_with_seeds_of_their_own() -> None:
    made = scenes(["a", "b"], 5, first_seed=10)
    assert [scene.prompt for scene in made] == ["a", "b", "a", "b", "a"]
    assert [scene.seed for scene in made] == [10, 11, 12, 13, 14]
    assert scenes(["a", "b"], 3, first_seed=10) == made[:3]


def test_a_picture_is_its_scene_s_alone(base: DiffusionBackbone) -> None:
    together = sample(base, SCENES, HOW)
    assert together.shape == (3, 3, 16, 16)
    for k, scene in enumerate(SCENES):
        close(together[k : k + 1], sample(base, [scene], HOW))
    close(together.flip(0), sample(base, SCENES[::-1], HOW))
    assert apart(together[0], together[2]) > 0.01


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batches_do_not_matter(base: DiffusionBackbone, batch: int) -> None:
    close(sample(base, SCENES, Sampling(3, 2.0, batch)), sample(base, SCENES, HOW))


def test_guidance_and_steps_are_heeded(base: DiffusionBackbone) -> None:
    """With guidance 1 it is the plain model; otherwise another picture."""
    prompt = base.encode([scene.prompt for scene in SCENES])
    with torch.no_grad():
        plain = finish(
            base, lambda state: base.predict(state, prompt), [scene.seed for scene in SCENES], Sampling(steps=3)
        )
    close(sample(base, SCENES, Sampling(steps=3, guidance=1.0)), plain)
    assert apart(sample(base, SCENES, Sampling(steps=3, guidance=6.0)), plain) > 1e-3
    assert apart(sample(base, SCENES, Sampling(steps=4, guidance=1.0)), plain) > 1e-3


@pytest.mark.parametrize("batch", [2, 4, 48])
def test_a_dial_s_pictures_are_those_at_each_place(base: DiffusionBackbone, slider: Slider, batch: int) -> None:
    """Though places and scenes share batches, also where a batch ends within a place."""
    with attach(base, [slider]) as dials:
        made = sample_dial(base, lambda s: dials.turned({slider.name: s}), SCENES, DIALS, Sampling(3, 2.0, batch))
    assert made.shape == (3, 3, 3, 16, 16)
    for k, dial in enumerate(DIALS):
        with attach(base, [slider], {slider.name: dial}):
            close(made[k], sample(base, SCENES, HOW))
        with baked(base, slider.at(dial)):
            close(made[k], sample(base, SCENES, HOW))
    assert apart(made[0], made[1]) > 0.01
    assert apart(made[2], made[1]) > 0.01


def test_a_slider_in_training_gives_the_pictures_of_the_finished_one(base: DiffusionBackbone) -> None:
    before = sample(base, SCENES, HOW)
    with Adapter(base, base.select_targets(["xattn"]), 2, 4.0) as adapter:
        generator = torch.Generator().manual_seed(1)
        for parameter in adapter.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        made = sample_dial(base, adapter.dial, SCENES, DIALS, HOW)
        slider = Slider("same", adapter.update())
    with attach(base, [slider]) as dials:
        close(made, sample_dial(base, lambda s: dials.turned({"same": s}), SCENES, DIALS, HOW))
    close(made[1], before)
    assert apart(made[2], before) > 0.01
    assert torch.equal(sample(base, SCENES, HOW), before)


def test_the_oracle_at_0_is_the_base(base: DiffusionBackbone) -> None:
    made = sample_oracle(base, HAPPY, 2.0, SCENES, [-1.0, 0.0, 1.0], HOW)
    assert made.shape == (3, 3, 3, 16, 16)
    close(made[1], sample(base, SCENES, HOW))
    assert apart(made[0], made[1]) > 1e-3
    assert apart(made[2], made[1]) > 1e-3
    close(sample_oracle(base, HAPPY, 0.0, SCENES, [1.0], HOW)[0], made[1])


@pytest.mark.parametrize("batch", [2, 48])
def test_the_oracle_s_amount_is_dial_times_eta(base: DiffusionBackbone, batch: int) -> None:
    made = sample_oracle(base, HAPPY, 3.0, SCENES, [-1.0, 2.0], Sampling(3, 2.0, batch))
    prompt, empty = base.encode([scene.prompt for scene in SCENES]), base.encode([""] * 3)
    for k, amount in enumerate([-3.0, 6.0]):
        with torch.no_grad():
            predict = oracle(base, [(HAPPY, torch.full((3,), amount))], prompt, empty, 2.0)
            close(made[k], finish(base, predict, [scene.seed for scene in SCENES], Sampling(steps=3)))


def test_the_oracle_asks_for_nothing_that_it_does_not_use(
    base: DiffusionBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step needs the prompt, the empty prompt, and each positive and negative: 4 rows for a picture here."""
    asked: list[int] = []
    predict = base.predict
    monkeypatch.setattr(base, "predict", lambda x, c: (asked.append(rows(x)), predict(x, c))[1])
    sample_oracle(base, HAPPY, 3.0, SCENES, [1.0], HOW)
    assert sum(asked) == 3 * 3 * 4


@pytest.fixture(params=["EulerAncestralDiscreteScheduler", "LCMScheduler", "KDPM2AncestralDiscreteScheduler"])
def noisy(request: pytest.FixtureRequest) -> DiffusionBackbone:
    """A base whose steps add noise."""
    model = UNetBackbone("tiny", scheduler=request.param)
    model.use(tiny.stable_diffusion())
    return model


def test_a_scene_is_the_same_every_time_where_steps_add_noise(noisy: DiffusionBackbone) -> None:
    """Also beside others, and with a dial at 0, which shows the base."""
    wanted = sample(noisy, SCENES, HOW)
    torch.manual_seed(1)
    assert torch.equal(sample(noisy, SCENES, HOW), wanted)
    close(sample(noisy, SCENES[1:2], HOW), wanted[1:2])
    slider = random_slider(noisy, "xattn")
    with attach(noisy, [slider], {slider.name: 0.0}) as dials:
        assert torch.equal(sample(noisy, SCENES, HOW), wanted)
        dials.set({slider.name: torch.tensor([1.0])})
        assert apart(sample(noisy, SCENES, HOW), wanted) > 1e-3
    other = [Scene(scene.prompt, scene.seed + 100) for scene in SCENES]
    assert apart(sample(noisy, other, HOW), wanted) > 0.01


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_pictures_of_any_height_and_width(family: str) -> None:
    """From the noise to the judge, the strip and the stage; the pipeline makes the same ones."""
    made = tiny.stable_diffusion_xl() if family == "xl" else tiny.stable_diffusion()
    made.set_progress_bar_config(disable=True)
    model = (SDXLBackbone if family == "xl" else UNetBackbone)("tiny", height=24)
    model.use(made)
    how = Sampling(steps=2, guidance=2.0, width=32)
    pictures = sample(model, SCENES, how)
    assert pictures.shape == (3, 3, 24, 32)
    theirs: Any = made(
        [scene.prompt for scene in SCENES], num_inference_steps=2, guidance_scale=2.0, height=24, width=32,
        generator=[torch.Generator().manual_seed(scene.seed) for scene in SCENES], output_type="pt",
    )  # fmt: skip
    close(pictures, 2 * theirs.images - 1)
    assert sample(model, SCENES, Sampling(steps=2)).shape == (3, 3, 24, 16)
    dial = torch.stack([pictures, pictures])
    assert strip(dial, [0, 1], ["a", "b", "c"], "t").width > strip(dial.mT, [0, 1], ["a", "b", "c"], "t").width
    assert AttributeJudge({"hat": ["no", "yes"]}, 8).probabilities(pictures)["hat"].shape == (3, 2)
    assert picture_states(model, SCENES, how).base.shape[-2:] == (12, 16)


def test_sdxl_is_told_the_size() -> None:
    """Original size, crop and target size of every call, height first; the control of the pictures above."""
    model, told = SDXLBackbone("tiny"), []
    model.use(tiny.stable_diffusion_xl())
    model.unet.register_forward_pre_hook(
        lambda _, __, kwargs: told.extend(kwargs["added_cond_kwargs"]["time_ids"].tolist()), with_kwargs=True
    )
    sample(model, SCENES[:1], Sampling(steps=1, guidance=2.0, height=24, width=32))
    assert told == 2 * [[24, 32, 0, 0, 24, 32]]


@pytest.mark.parametrize(
    ("sample_size", "asked", "size"),
    [(8, (None, None), (16, 16)), ([8, 12], (None, None), (16, 24)), ([8, 12], (20, None), (20, 24)),
     (None, (16, 24), (16, 24))],
)  # fmt: skip
def test_the_model_s_own_size_and_another(
    sample_size: int | list[int] | None, asked: tuple[int | None, int | None], size: tuple[int, int]
) -> None:
    model, made = UNetBackbone("tiny"), tiny.stable_diffusion()
    made.unet.register_to_config(sample_size=sample_size)
    model.use(made)
    assert model.size(*asked) == size
    assert model.start([1], *asked).shape == (1, 4, size[0] // 2, size[1] // 2)


def test_a_size_that_cannot_be_names_the_nearest() -> None:
    model, made = UNetBackbone("tiny"), tiny.stable_diffusion()
    model.use(made)
    for height, said in ((23, "give 22 or 24"), (1, "give 2")):
        with pytest.raises(SliderError, match=f"height is {height}.*multiples of 2; {said}"):
            check_sampling(model, Sampling(height=height))
    with pytest.raises(SliderError, match="width"):
        Sampling(width=0)
    made.unet.register_to_config(sample_size=None)
    with pytest.raises(SliderError, match="does not say how large"):
        model.start([1])
