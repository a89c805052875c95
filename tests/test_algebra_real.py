"""The algebra on the models that come with the package, with their trained sliders where these are there."""

from pathlib import Path

import pytest
import torch

from sliders import formats
from sliders.algebra.compose import combine
from sliders.algebra.slider import Slider, hinge
from sliders.attach import attach
from sliders.backbones.base import DiffusionBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.concept import read_prompts
from sliders.evaluation.judge import AttributeJudge
from sliders.evaluation.laws import oracle_gap, path
from sliders.evaluation.sampling import Sampling, sample, scenes
from sliders.evaluation.stages import Behaviour, picture_stage
from sliders.formats.metadata import concept_of

pytestmark = pytest.mark.slow

RUNS, AVATARS = Path("runs"), Path("data/avatars")
NAMES = ("smile", "surprise", "glasses", "beard", "hair_length", "hair_darkness")
HOW = Sampling(steps=6, guidance=4.0, batch=8)


@pytest.fixture(scope="module")
def model() -> DiffusionBackbone:
    made = UNetBackbone(str(AVATARS / "model"))
    made.load()
    return made


@pytest.fixture(scope="module")
def trained() -> dict[str, Slider]:
    files = {name: RUNS / name / f"{name}.safetensors" for name in NAMES}
    found = {name: formats.load(file) for name, file in files.items() if file.exists()}
    if len(found) < 2:
        pytest.skip("fewer than two avatar sliders are trained; python -m benchmarks.avatars trains them")
    return found


def test_all_sliders_at_once_are_their_sum(
    model: DiffusionBackbone, trained: dict[str, Slider], tmp_path: Path
) -> None:
    """At dials in [-1, 1]: attached side by side, and as one composed file."""
    dials = dict(zip(trained, torch.linspace(-1, 1, len(trained)).tolist(), strict=True))
    total = combine([(slider, dials[name]) for name, slider in trained.items()])
    for module, update in total.items():
        parts = (s.update[module].dense() * dials[n] for n, s in trained.items() if module in s.update)
        torch.testing.assert_close(update.dense(), sum(parts, torch.zeros(update.shape)), atol=1e-5, rtol=1e-4)
    formats.save_like(Slider("all", total), tmp_path / "all.safetensors", [tmp_path / "x.safetensors"])
    wanted = scenes(["a person"], 2)
    with attach(model, list(trained.values()), dials):
        apart = sample(model, wanted, HOW)
    with attach(model, [formats.load(tmp_path / "all.safetensors")], {"all": 1.0}):
        together = sample(model, wanted, HOW)
    assert (apart - together).abs().max() < 1e-3
    assert (apart - sample(model, wanted, HOW)).abs().max() > 0.1


def test_a_hinge_shows_one_concept_below_0_and_another_above(
    model: DiffusionBackbone, trained: dict[str, Slider]
) -> None:
    """A beard grows below 0 (its slider is negated first), and a smile above; the judge sees each on its side alone."""
    if not {"smile", "beard"} <= trained.keys():
        pytest.skip("smile and beard are not trained")
    judge, both = AttributeJudge.load(AVATARS / "judge.safetensors"), hinge(-trained["beard"], trained["smile"])
    wanted = scenes(read_prompts(AVATARS / "prompts" / "expression.txt"), 8)
    measures = {name: concept_of(trained[name]).measure for name in ("smile", "beard")}
    seen: dict[float, dict[str, float]] = {}
    with attach(model, [both]) as dials:
        for dial in (-1.0, 0.0, 1.0):
            dials.set({both.name: dial})
            read = judge.probabilities(sample(model, wanted, HOW))
            seen[dial] = {
                name: float(read[m.attribute][:, judge.column(m.attribute, m.value)].mean())
                for name, m in measures.items()
                if m is not None
            }
    assert seen[-1.0]["beard"] > seen[0.0]["beard"] + 0.1
    assert seen[1.0]["smile"] > seen[0.0]["smile"] + 0.1
    assert abs(seen[-1.0]["smile"] - seen[0.0]["smile"]) < seen[1.0]["smile"] - seen[0.0]["smile"]
    assert abs(seen[1.0]["beard"] - seen[0.0]["beard"]) < seen[-1.0]["beard"] - seen[0.0]["beard"]


def test_a_trained_dial_is_nearly_straight_and_near_its_oracle(
    model: DiffusionBackbone, trained: dict[str, Slider]
) -> None:
    name, slider = next(iter(trained.items()))
    prompts = read_prompts(AVATARS / "prompts" / "expression.txt")
    with attach(model, [slider]) as dials:
        told = Behaviour(picture_stage(model, scenes(prompts, 4), HOW), dials)
        found = path(told, name, {})
        amounts = [(name, concept_of(slider), float(slider.metadata["sliders.eta"]))]
        near = oracle_gap(told, amounts, {}, {name: 1.0})
        far = oracle_gap(told, amounts, {}, {name: -1.0})
    assert found.straight[0] <= -0.5
    assert found.straight[1] >= 0.5
    assert near.gap.value < 1 < far.gap.value
