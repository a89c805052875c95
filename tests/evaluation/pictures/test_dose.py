"""Dose and response, against numbers that were worked out by hand."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sliders.backbones.diffusion import DiffusionBackbone
from sliders.backbones.guidance import Predictor
from sliders.backbones.targets import TargetGroup
from sliders.batch import TensorBatch
from sliders.concept import Measure
from sliders.errors import SliderError
from sliders.evaluation.pictures.dose import Drift, dose_response, straightness
from sliders.evaluation.pictures.sampling import Sampling, Scene
from tests.evaluation.judges import ColorJudge, colors, constant

BRIGHT = Measure("light", ["a person"], "bright")
DIALS = [-1.0, 0.0, 1.0]


def over_dial(*rows: Tensor) -> Tensor:
    """Pictures ``[dials, n, 3, h, w]`` from each dial's."""
    return torch.stack(rows)


def test_response_is_the_mean_probability_and_its_error() -> None:
    pictures = over_dial(
        colors((0.1, 0.5, 0.5), (0.3, 0.5, 0.5)),
        colors((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        colors((0.6, 0.5, 0.5), (1.0, 0.5, 0.5)),
    )
    dose = dose_response(ColorJudge(), BRIGHT, pictures, DIALS)
    assert dose.dials == DIALS
    assert dose.pictures == 2
    assert (dose.attribute, dose.value) == ("light", "bright")
    assert dose.response == pytest.approx([0.2, 0.5, 0.8], abs=1e-6)
    # a sample's standard deviation of (a, b) is |a - b| / sqrt 2, and the mean's error is that over sqrt 2
    assert dose.error == pytest.approx([0.1, 0.0, 0.2], abs=1e-6)
    assert dose.means["light"]["dark"] == pytest.approx([0.8, 0.5, 0.2], abs=1e-6)
    assert dose.means["size"]["m"] == pytest.approx([0.5] * 3, abs=1e-6)
    assert [dose.at(dial) for dial in DIALS] == [0, 1, 2]


def test_the_value_is_the_one_that_was_asked_for() -> None:
    pictures = over_dial(colors((0.2, 0.5, 0.5)), colors((0.5, 0.5, 0.5)), colors((0.7, 0.5, 0.5)))
    dose = dose_response(ColorJudge(), Measure("light", ["a person"], "dark"), pictures, DIALS)
    assert dose.response == pytest.approx([0.8, 0.5, 0.3], abs=1e-6)
    assert dose.error == [0.0] * 3  # of one picture none is known


@pytest.mark.parametrize(
    ("reds", "wanted"),
    [([0.1, 0.2, 0.9], 1.0), ([0.9, 0.2, 0.1], -1.0), ([0.1, 0.9, 0.5], 0.5), ([0.4, 0.4, 0.4], 0.0)],
)
def test_spearman(reds: list[float], wanted: float) -> None:
    """The third's ranks are 1, 3, 2: one minus 6 (0 + 1 + 1) / (3 · 8)."""
    dose = dose_response(ColorJudge(), BRIGHT, over_dial(*[colors((r, 0.5, 0.5)) for r in reds]), DIALS)
    assert dose.spearman == pytest.approx(wanted)


def test_drift_names_the_worst_of_the_other_attributes() -> None:
    """At dial -1 the tint changes by 0.2 and the size by 0.1; at dial 1 by 0.1 and 0.3; the light is the concept."""
    pictures = over_dial(
        colors((0.0, 0.7, 0.4), (0.0, 0.7, 0.4)),
        colors((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        colors((1.0, 0.4, 0.8), (1.0, 0.4, 0.8)),
    )
    drift = dose_response(ColorJudge(), BRIGHT, pictures, DIALS).drift
    assert [d.change for d in drift] == pytest.approx([0.2, 0.0, 0.3], abs=1e-6)
    assert (drift[0].attribute, drift[2].attribute, drift[2].value) == ("tint", "size", "m")
    assert drift[0].value in ("plain", "green")
    assert drift[1] == Drift(0.0, "", "")


def test_drift_is_of_the_mean() -> None:
    """What changes one way in one picture and the other way in another is not drift."""
    pictures = over_dial(
        colors((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        colors((0.5, 0.9, 0.5), (0.5, 0.1, 0.5)),
        colors((0.5, 0.9, 0.5), (0.5, 0.6, 0.5)),
    )
    drift = dose_response(ColorJudge(), BRIGHT, pictures, [0.0, 1.0, 2.0]).drift
    assert [d.change for d in drift] == pytest.approx([0.0, 0.0, 0.25], abs=1e-6)


def test_dial_0_may_stand_anywhere() -> None:
    pictures = over_dial(colors((0.2, 0.5, 0.5)), colors((0.4, 0.5, 0.5)), colors((0.5, 0.8, 0.5)))
    dose = dose_response(ColorJudge(), BRIGHT, pictures, [1.0, 2.0, 0.0])
    assert [d.change for d in dose.drift] == pytest.approx([0.3, 0.3, 0.0], abs=1e-6)
    assert dose.pixel_change == pytest.approx([(0.3 + 0.3) / 3, (0.1 + 0.3) / 3, 0.0], abs=1e-6)


def test_a_judge_of_the_real_kind() -> None:
    judge = constant({"mood": {"sad": 0.2, "happy": 0.7, "angry": 0.1}, "hat": {"no": 0.75, "yes": 0.25}})
    pictures = torch.rand(3, 4, 3, 64, 64) * 2 - 1
    dose = dose_response(judge, Measure("mood", ["a person"], "happy"), pictures, DIALS)
    assert dose.response == pytest.approx([0.7] * 3, abs=1e-5)
    assert dose.means["hat"]["yes"] == pytest.approx([0.25] * 3, abs=1e-5)
    assert max(d.change for d in dose.drift) < 1e-6
    assert abs(dose.spearman) <= 1


@pytest.mark.parametrize("side", [64, 16])
def test_pixels_elsewhere_are_those_where_the_concept_cannot_show(side: int) -> None:
    """The concept shows in the upper half: a change there is none elsewhere."""
    judge = ColorJudge()
    judge.get_buffer("where_light")[:32] = 1
    zero = colors((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), side=side)
    above, below = zero.clone(), zero.clone()
    above[:, :, : side // 2] += 0.4  # in [-1, 1], so 0.2 of a pixel's range
    below[0, :, side // 2 :] -= 0.4
    dose = dose_response(judge, BRIGHT, over_dial(above, zero, below), DIALS)
    assert dose.pixel_change == pytest.approx([0.1, 0.0, 0.05], abs=1e-6)
    assert dose.pixel_change_elsewhere == pytest.approx([0.0, 0.0, 0.1], abs=1e-6)


def test_pixels_elsewhere_of_a_concept_that_shows_everywhere() -> None:
    judge = ColorJudge()
    judge.get_buffer("where_light").fill_(1)
    pictures = over_dial(colors((0.2, 0.2, 0.2)), colors((0.4, 0.4, 0.4)), colors((0.5, 0.5, 0.5)))
    dose = dose_response(judge, BRIGHT, pictures, DIALS)
    assert dose.pixel_change_elsewhere == [0.0] * 3


@pytest.mark.parametrize("measure", [Measure("mood", ["a person"], "happy"), Measure("light", ["a person"], "happy")])
def test_an_unknown_attribute_or_value_is_an_error_that_names_what_there_is(measure: Measure) -> None:
    with pytest.raises(SliderError, match=r"bright|light, tint"):
        dose_response(ColorJudge(), measure, over_dial(*[colors((0.5, 0.5, 0.5))] * 3), DIALS)


def test_it_is_plain_data() -> None:
    dose = dose_response(ColorJudge(), BRIGHT, over_dial(*[colors((r, 0.5, 0.5)) for r in (0.1, 0.2, 0.3)]), DIALS)
    plain = json.loads(json.dumps(dose.to_dict(), allow_nan=False))
    assert plain["response"] == dose.response
    assert plain["drift"][0] == {"change": 0.0, "attribute": "", "value": ""}


class Bent(DiffusionBackbone):
    """A model of two numbers whose prediction moves by ``bend(dial)`` along a direction."""

    def __init__(self, bend: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.where = torch.nn.Parameter(torch.zeros(1))
        self.bend, self.dial = bend, torch.zeros(1)

    def load(self) -> None:
        """There is nothing to load."""

    @property
    def base_model(self) -> str:
        return "bent"

    def fingerprint(self, components: Iterable[str] | None = None) -> str:
        return "bent"

    def target_groups(self) -> dict[str, TargetGroup]:
        return {}

    def encode(self, prompts: Sequence[str]) -> TensorBatch:
        return {"length": torch.tensor([[float(len(prompt))] for prompt in prompts])}

    def predict(self, state: TensorBatch, conditioning: TensorBatch) -> Tensor:
        base = state["x"] + conditioning["length"]
        return base + self.bend(self.dial).view(-1, 1) * torch.tensor([1.0, -2.0])

    def size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        raise NotImplementedError

    def start(self, seeds: Sequence[int], height: int | None = None, width: int | None = None) -> Tensor:
        return torch.tensor([[float(seed), 1.0] for seed in seeds])

    def trajectory(
        self, predict: Predictor, start: Tensor, steps: int, seeds: Sequence[int],
        height: int | None = None, width: int | None = None,
    ) -> Iterator[TensorBatch]:  # fmt: skip
        state = {"x": start}
        for _ in range(steps):
            yield state
            state = {"x": 0.5 * predict(state)}
        yield state

    def decode(self, finished: TensorBatch) -> Tensor:
        raise NotImplementedError

    def write(self, folder: Path) -> None:
        raise NotImplementedError

    @contextmanager
    def turn(self, positions: Tensor) -> Iterator[None]:
        """Set the dial."""
        before, self.dial = self.dial, positions
        try:
            yield
        finally:
            self.dial = before


@pytest.mark.parametrize(
    ("bend", "oddness", "additivity"),
    [
        (lambda s: 3 * s, 0.0, 0.0),
        (lambda s: s**2, 2.0, 1.0),  # d(1) = d(-1), and d(2) = 4 d(1)
        (lambda s: s**3, 0.0, 3.0),  # d(2) = 8 d(1)
        (lambda s: s + s.clamp_min(0), 0.5, 0.0),  # d(1) = 2, d(-1) = -1, d(2) = 4
    ],
    ids=["linear", "square", "cube", "hinge"],
)
def test_straightness(bend: Callable[[Tensor], Tensor], oddness: float, additivity: float) -> None:
    model = Bent(bend)
    straight = straightness(model, model.turn, [Scene("a person", 1), Scene("a", 2)], Sampling(steps=5, guidance=2.0))
    assert straight.oddness == pytest.approx(oddness, abs=1e-5)
    assert straight.additivity == pytest.approx(additivity, abs=1e-5)
    assert model.dial.tolist() == [0.0]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_straightness_of_any_number_of_steps(steps: int) -> None:
    model = Bent(lambda s: s**2)
    assert straightness(model, model.turn, [Scene("a", 1)], Sampling(steps=steps)).oddness == pytest.approx(2.0)


def test_straightness_of_a_dial_that_does_nothing_is_a_number() -> None:
    model = Bent(torch.zeros_like)
    straight = straightness(model, model.turn, [Scene("a", 1)], Sampling(steps=2))
    assert (straight.oddness, straight.additivity) == (0.0, 0.0)
