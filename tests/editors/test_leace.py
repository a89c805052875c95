"""LEACE through the package that fits it, on tiny language models and on points."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from concept_erasure import LeaceFitter
from torch import Tensor
from torch.testing import assert_close

from sliders.algebra.closed_forms import erase_output
from sliders.algebra.distance import distance, size
from sliders.algebra.edit import Affine
from sliders.algebra.laws import commutes, is_idempotent, is_invertible
from sliders.algebra.lowrank import LowRank
from sliders.backbones.language.model import CausalLMBackbone
from sliders.concept import Concept
from sliders.editors.contrast import Answers, ResponseSampling, answer, at_layer, contrast, writer, writers
from sliders.editors.leace import LEACE
from sliders.errors import SliderError
from sliders.runtime.baking import baked
from tests.factory import normal


@pytest.fixture
def leace(mood: Concept, tmp_path: Path) -> LEACE:
    """Without shrinkage it is exact on the points that it was fitted to."""
    file = tmp_path / "mood.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in mood.to_dict().items() if v is not None}))
    return LEACE(file, [r"\.1\."], shrinkage=False, svd_tol=1e-6, responses=ResponseSampling(tokens=8))


def apart(model: CausalLMBackbone, answers: Sequence[Answers], name: str) -> tuple[Tensor, Tensor]:
    """The difference of both sides' means of what a layer writes, and the mean of all."""
    sides = list(contrast(model, answers, at_layer(model, name, "output")))
    means = [torch.cat([s.states[:, 0] for s in sides if s.positive is side]).mean(0) for side in (True, False)]
    return means[0] - means[1], (means[0] + means[1]) / 2


@pytest.mark.parametrize("side", ["output", "input"])
def test_afterwards_the_two_sides_have_one_mean(
    model: CausalLMBackbone, mood: Concept, leace: LEACE, side: str
) -> None:
    """For a binary concept that is what keeps a linear readout from it (theorem 3.1)."""
    name, answers = writer(model, 1), answer(model, mood, ResponseSampling(tokens=8))
    edit = replace(leace, layers=[name], side=side).fit(model)
    base, centre = apart(model, answers, name)
    with baked(model, edit):
        after, still = apart(model, answers, name)
    assert base.norm() > 1e-2
    assert after.norm() < 1e-3 * base.norm()
    assert_close(still, centre, atol=1e-3, rtol=1e-3)
    assert is_idempotent(edit, 1e-3)
    assert not is_invertible(edit)
    elsewhere = replace(leace, layers=[writers(model, "attention")[0]]).fit(model)  # control: erased in another place
    with baked(model, elsewhere):
        assert apart(model, answers, name)[0].norm() > 1e-2 * base.norm()


def test_each_layer_is_fitted_with_those_before_it_erased(model: CausalLMBackbone, mood: Concept, leace: LEACE) -> None:
    names, answers = [writers(model, "attention")[0], writer(model, 1)], answer(model, mood, ResponseSampling(tokens=8))
    both = replace(leace, layers=names).fit(model)
    assert list(both) == names
    with baked(model, both):
        for name in names:
            assert apart(model, answers, name)[0].norm() < 2e-3
    alone = [replace(leace, layers=[name]).fit(model) for name in names]
    assert distance(Affine({names[0]: both[names[0]]}), alone[0]) < 1e-4
    assert distance(Affine({names[1]: both[names[1]]}), alone[1]) > 1e-3  # control: fitted on the base


def test_a_layer_that_says_nothing_is_an_error(model: CausalLMBackbone, leace: LEACE) -> None:
    with pytest.raises(SliderError, match=r"says nothing of 'mood'"):
        replace(leace, layers=[writer(model, 1)], svd_tol=1e3).fit(model)


def erase(points: Tensor, labels: Tensor, tolerance: float = 1e-6) -> Affine:
    fitter = LeaceFitter(
        points.shape[1], labels.shape[1], constrain_cov_trace=False, dtype=torch.float64, shrinkage=False,
        svd_tol=tolerance,
    ).update(points, labels)  # fmt: skip
    eraser = fitter.eraser
    width = points.shape[1]
    projection = LowRank(eraser.proj_left, eraser.proj_right, (width, width)).trim()
    return Affine({"fc": erase_output(projection, fitter.mean_x, (width, 4))})


def through(edit: Affine, points: Tensor) -> Tensor:
    """Points that the layer puts out, after the edit of the layer: as those of a layer whose bias they are."""
    rows = [edit.apply_layer("fc", torch.zeros(points.shape[1], 4, dtype=torch.float64), p)[1] for p in points]
    return torch.stack([row for row in rows if row is not None])


@pytest.mark.parametrize("seed", range(5))
def test_in_sequence_it_is_the_joint_fit_and_apart_it_is_not(seed: int) -> None:
    points = normal(80, 6, seed=seed) @ normal(6, 6, seed=seed + 10) + normal(6, seed=seed + 20)
    z1 = (points @ normal(6, 1, seed=seed + 30) > 0).double()
    z2 = (points @ normal(6, 1, seed=seed + 40) > 0).double()
    first, joint = erase(points, z1), erase(points, torch.cat([z1, z2], 1))
    second = erase(through(first, points), z2)
    assert distance(second @ first, joint) < 1e-5 * (1 + size(joint))
    other = erase(points, z2)
    assert distance(erase(through(other, points), z1) @ other, joint) < 1e-5 * (1 + size(joint))
    assert distance(other @ first, joint) > 1e-3  # control: both fitted on the base
    assert not commutes(other, first)


def test_a_layer_of_a_compiled_model_is_read(
    model: CausalLMBackbone, mood: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward that is compiled already takes no notice of a new hook."""
    name, answers = writer(model, 1), answer(model, mood, ResponseSampling(tokens=8))

    def states() -> Tensor:
        return torch.cat([side.states for side in contrast(model, answers, at_layer(model, name, "output"))])

    plain = states()
    compiled = torch.compile(model.lm.forward, backend="eager")
    monkeypatch.setattr(model, "network", replace(model.network, forward=compiled))
    model.log_probabilities(answers[0].said, model.encode(answers[0].positives[0]))
    assert_close(states(), plain)
