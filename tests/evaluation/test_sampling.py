"""Pictures over a dial are the pictures of the dial at each place."""

from functools import partial

import pytest
import torch
from torch import Tensor

from sliders.algebra.slider import Slider
from sliders.attach import Adapter, attach, baked
from sliders.backbones.base import DiffusionBackbone
from sliders.batch import rows
from sliders.concept import Concept
from sliders.evaluation.sampling import Sampling, Scene, finish, sample, sample_dial, sample_oracle, scenes
from sliders.training.teacher import oracle

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
        plain = finish(base, lambda state: base.predict(state, prompt), [scene.seed for scene in SCENES], Sampling(steps=3))
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
