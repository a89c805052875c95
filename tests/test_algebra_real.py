"""The algebra on the models and the trained sliders that come with this repository."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from sliders import formats
from sliders.algebra.compose import combine, compress
from sliders.algebra.slider import Hinge, Slider, hinge
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.concept import read_prompts
from sliders.evaluation.base_states import Behaviour, picture_states
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.evaluation.pictures.sampling import Sampling, Scene, sample, scenes
from sliders.formats.metadata import concept_of
from sliders.resources.fetch import fetch
from sliders.runtime.attach import attach
from sliders.studies.behavioural_laws import oracle_gap, path
from tests import clients

pytestmark = pytest.mark.slow

AVATARS, TEXT = Path("data/avatars"), Path("data/text")
NAMES = ("smile", "surprise", "glasses", "beard", "hair_length", "hair_darkness")
QUICK = Sampling(steps=6, guidance=4.0, batch=8)
CLIENT = Sampling(steps=clients.STEPS, guidance=clients.GUIDANCE)
"""As plain diffusers samples in `clients`."""


@pytest.fixture(scope="module")
def model() -> UNetBackbone:
    made = UNetBackbone(str(AVATARS / "model"))
    made.load()
    return made


@pytest.fixture(scope="module")
def trained() -> dict[str, Slider]:
    return {name: formats.load(AVATARS / "sliders" / f"{name}.safetensors") for name in NAMES}


@pytest.fixture(scope="module")
def language() -> CausalLMBackbone:
    made = CausalLMBackbone()
    made.load()
    return made


@pytest.fixture(scope="module")
def spoken() -> dict[str, Slider]:
    return {name: formats.load(TEXT / "sliders" / name) for name in ("sentiment", "formality")}


def test_all_sliders_at_once_are_their_sum(model: UNetBackbone, trained: dict[str, Slider], tmp_path: Path) -> None:
    """At dials in [-1, 1]: attached side by side, as one composed file, and as plain diffusers shows that file."""
    dials = dict(zip(trained, torch.linspace(-1, 1, len(trained)).tolist(), strict=True))
    total, file = combine([(slider, dials[name]) for name, slider in trained.items()]), tmp_path / "all.safetensors"
    for module, update in total.items():
        parts = (s.update[module].dense() * dials[n] for n, s in trained.items() if module in s.update)
        torch.testing.assert_close(update.dense(), sum(parts, torch.zeros(update.shape)), atol=1e-5, rtol=1e-4)
    formats.save_like(Slider("all", total), file, [AVATARS / "sliders" / "smile.safetensors"])
    wanted = [Scene(prompt, seed) for prompt, seed in zip(clients.PROMPTS, clients.SEEDS, strict=True)]
    base = sample(model, wanted, CLIENT)
    with attach(model, list(trained.values()), dials):
        apart = sample(model, wanted, CLIENT)
    with attach(model, [formats.load(file)], {"all": 1.0}):
        together = sample(model, wanted, CLIENT)
    theirs = clients.pictures(AVATARS / "model", file, [1.0], tmp_path)
    assert (apart - together).abs().max() < 1e-3
    assert ((together + 1) / 2 - theirs["1.0"]).abs().max() <= 1e-3
    assert ((base + 1) / 2 - theirs["base"]).abs().max() <= 1e-4
    assert (apart - base).abs().max() > 0.1


def test_half_the_rank_keeps_what_the_sum_does_but_for_the_error_that_it_reports(
    model: UNetBackbone, trained: dict[str, Slider]
) -> None:
    """In predictions; a quarter of the rank loses more, in weights and in predictions."""
    total = combine([(slider, 1.0) for slider in trained.values()])
    half, quarter = (compress(total, rank=rank) for rank in (12, 6))
    assert 0 < half.error < quarter.error < 1
    parts = {"all": total, "half": half.update, "quarter": quarter.update}
    prompts = read_prompts(AVATARS / "prompts" / "expression.txt")
    with attach(model, [Slider(name, update) for name, update in parts.items()]) as dials:
        states = picture_states(model, scenes(prompts, 6), QUICK)
        told = Behaviour(states, dials)
        change = {name: told.change({name: 1.0}) for name in parts}
    whole = states.squared(change["all"]).sum()
    lost = {name: float((states.squared(change["all"] - change[name]).sum() / whole).sqrt()) for name in parts}
    assert lost["half"] <= half.error, (lost, half.error)
    assert lost["half"] < lost["quarter"], lost


def read(judge: AttributeJudge, pictures: torch.Tensor, sliders: Mapping[str, Slider]) -> dict[str, float]:
    """The mean probability of each slider's own value."""
    seen = judge.probabilities(pictures)
    measures = {name: measure for name, s in sliders.items() if (measure := concept_of(s).measure) is not None}
    return {n: float(seen[m.attribute][:, judge.column(m.attribute, m.value)].mean()) for n, m in measures.items()}


def test_a_hinge_shows_one_concept_below_0_and_another_above(model: UNetBackbone, trained: dict[str, Slider]) -> None:
    """A beard grows below 0 (its slider is negated first), and a smile above; the judge sees each on its side alone."""
    judge, both = AttributeJudge.load(AVATARS / "judge.safetensors"), hinge(-trained["beard"], trained["smile"])
    wanted = scenes(["a person"], 32)
    two = {name: trained[name] for name in ("smile", "beard")}
    seen: dict[float, dict[str, float]] = {}
    with attach(model, [both]) as dials:
        for dial in (-1.0, 0.0, 1.0):
            dials.set({both.name: dial})
            seen[dial] = read(judge, sample(model, wanted), two)
    assert seen[-1.0]["beard"] > seen[0.0]["beard"] + 0.2, seen
    assert seen[1.0]["smile"] > seen[0.0]["smile"] + 0.2, seen
    assert abs(seen[-1.0]["smile"] - seen[0.0]["smile"]) < seen[1.0]["smile"] - seen[0.0]["smile"]
    assert abs(seen[1.0]["beard"] - seen[0.0]["beard"]) < seen[-1.0]["beard"] - seen[0.0]["beard"]


def test_a_trained_dial_is_nearly_straight_and_near_its_oracle(model: UNetBackbone, trained: dict[str, Slider]) -> None:
    name, slider = next(iter(trained.items()))
    prompts = read_prompts(AVATARS / "prompts" / "expression.txt")
    with attach(model, [slider]) as dials:
        told = Behaviour(picture_states(model, scenes(prompts, 4), QUICK), dials)
        found = path(told, name, {})
        amounts = [(name, concept_of(slider), float(slider.metadata["sliders.eta"]))]
        near = oracle_gap(told, amounts, {}, {name: 1.0})
        far = oracle_gap(told, amounts, {}, {name: -1.0})
    assert found.straight[0] <= -0.5
    assert found.straight[1] >= 0.5
    assert near.gap.value < 1 < far.gap.value


def test_language_sliders_compose_into_one_folder_that_peft_loads(
    language: CausalLMBackbone, spoken: dict[str, Slider], tmp_path: Path
) -> None:
    """The logits of both at once, of the composed folder, and of plain PEFT with it are the same."""
    positions = {"sentiment": -1.0, "formality": 0.7}
    total = combine([(slider, positions[name]) for name, slider in spoken.items()])
    formats.save_like(Slider("both", total), tmp_path / "both", [TEXT / "sliders" / "sentiment"])
    with clients.in_float64(language.lm):
        base = logits(language)
        with attach(language, list(spoken.values()), positions):
            apart = logits(language)
    theirs = clients.logits(fetch("smollm2"), tmp_path / "both", [1.0], tmp_path)
    torch.testing.assert_close(theirs["base"], base, atol=1e-4, rtol=0)
    torch.testing.assert_close(theirs["1.0"], apart, atol=1e-3, rtol=0)
    assert (apart - base).abs().max() > 0.1


def logits(language: CausalLMBackbone) -> torch.Tensor:
    """Of the clients' text, with whatever is attached."""
    with torch.no_grad():
        return language.lm(**language.tokenizer(clients.TEXT, return_tensors="pt")).logits


def test_a_hinge_of_language_sliders_is_each_on_its_side(language: CausalLMBackbone, spoken: dict[str, Slider]) -> None:
    left, right = spoken["sentiment"], spoken["formality"]
    said: dict[str, dict[float, torch.Tensor]] = {}
    for dial in (Hinge("both", left, right), left, right):
        with attach(language, [dial]) as dials:
            said[dial.name] = {}
            for position in (-1.0, 1.0):
                dials.set({dial.name: position})
                said[dial.name][position] = logits(language)
    torch.testing.assert_close(said["both"][-1.0], said["sentiment"][-1.0], atol=1e-5, rtol=0)
    torch.testing.assert_close(said["both"][1.0], said["formality"][1.0], atol=1e-5, rtol=0)
    assert (said["formality"][1.0] - said["sentiment"][1.0]).abs().max() > 0.1
