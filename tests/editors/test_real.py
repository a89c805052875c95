"""Each editor's committed config on the embedded models: it does what its paper says, and a control does not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sliders import formats
from sliders.algebra.edit import Factored
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.concept import BETWEEN, Concept, read_prompts
from sliders.editors.ablation import ablate
from sliders.editors.contrast import ResponseSampling, answer, at_layer, contrast
from sliders.editors.task_vector import TaskVector
from sliders.editors.uce import UCE
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.evaluation.pictures.sampling import Sampling, sample, scenes
from sliders.evaluation.texts.dose import log_odds
from sliders.runtime.baking import baked
from tests.commands import ROOT
from tests.editors.probe import probe_accuracy
from tests.factory import normal

pytestmark = pytest.mark.slow

PICTURES = 48
HOW = Sampling(steps=10)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in configs are relative to the repository."""
    monkeypatch.chdir(ROOT)


def edit_in(file: Path) -> Factored:
    edit = formats.load_dial(file).at(1.0)
    assert isinstance(edit, Factored)
    return edit


# UCE, task vectors


@pytest.fixture(scope="module")
def painter() -> UNetBackbone:
    made = UNetBackbone(str(ROOT / "data/avatars/model"))
    made.load()
    return made


class Seen:
    """What a judge sees in pictures of the held-out prompts with some words put in."""

    def __init__(self, painter: UNetBackbone) -> None:
        self.painter = painter
        self.judge = AttributeJudge.load(ROOT / "data/avatars/judge.safetensors")
        self.prompts = read_prompts(ROOT / "data/avatars/prompts/glasses.txt")[:PICTURES]

    def __call__(self, words: str, edit: Factored | None = None) -> dict[str, Tensor]:
        """Mean probabilities of every attribute's values, of the painter with or without an edit."""
        prompts = [p.replace("person", f"person, {words}", 1) for p in self.prompts]
        if edit is None:
            pictures = sample(self.painter, scenes(prompts, PICTURES), HOW)
        else:
            with baked(self.painter, edit):
                pictures = sample(self.painter, scenes(prompts, PICTURES), HOW)
        return {name: p.mean(0) for name, p in self.judge.probabilities(pictures).items()}

    def share(self, seen: dict[str, Tensor], value: str) -> float:
        return float(seen["glasses"][self.judge.column("glasses", value)])


@pytest.fixture(scope="module")
def seen(painter: UNetBackbone) -> Seen:
    return Seen(painter)


def drift(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """The largest change of a mean probability of any other attribute."""
    return max(float((one[name] - two[name]).abs().max()) for name in one if name != "glasses")


def test_uce_replaces_a_concept_and_keeps_the_others(seen: Seen, fitted: Callable[[str], Path]) -> None:
    edit = edit_in(fitted("uce"))
    before, after = seen("wearing glasses"), seen("wearing glasses", edit)
    assert seen.share(before, "glasses") > 0.9
    assert seen.share(after, "glasses") < 0.1
    assert seen.share(after, "none") > 0.9
    dark, still = seen("wearing sunglasses"), seen("wearing sunglasses", edit)
    assert seen.share(dark, "sunglasses") > 0.9
    assert seen.share(still, "sunglasses") > 0.9
    assert drift(before, after) < 0.1
    assert drift(dark, still) < 0.1
    other = UCE({"wearing sunglasses": "without glasses"}, ["a person, {}"]).fit(seen.painter)  # control
    assert seen.share(seen("wearing glasses", other), "glasses") > 0.9
    print({"glasses": (seen.share(before, "glasses"), seen.share(after, "glasses")), "drift": drift(before, after)})


def test_a_task_vector_added_and_taken_away_moves_and_restores(
    seen: Seen, fitted: Callable[[str], Path], tmp_path: Path
) -> None:
    """The second checkpoint is the model with UCE merged into it; the vector is not told so."""
    uce = edit_in(fitted("uce"))
    with baked(seen.painter, uce):
        seen.painter.export(tmp_path / "tuned")
    vector = TaskVector(tmp_path / "tuned", tolerance=1e-3).fit(seen.painter)
    assert set(vector.modules) == set(uce.modules)
    assert {e.shift.rank for e in vector.elements().values()} == {e.right.trim().rank for e in uce.elements().values()}
    assert seen.share(seen("wearing glasses"), "glasses") > 0.9
    assert seen.share(seen("wearing glasses", vector), "glasses") < 0.1
    tuned = UNetBackbone(str(tmp_path / "tuned"))
    tuned.load()
    again = Seen(tuned)
    assert again.share(again("wearing glasses"), "glasses") < 0.1
    back = vector.inverse()
    assert isinstance(back, Factored)
    assert again.share(again("wearing glasses", back), "glasses") > 0.9


# LEACE, ablation


@pytest.fixture(scope="module")
def speaker() -> CausalLMBackbone:
    made = CausalLMBackbone()
    made.load()
    return made


def test_leace_takes_a_probe_on_other_messages_to_chance(
    speaker: CausalLMBackbone, fitted: Callable[[str], Path]
) -> None:
    edit = edit_in(fitted("leace"))
    (name,) = edit.modules
    concept, how = Concept.load(ROOT / "data/text/concepts/pirate.yaml"), ResponseSampling(tokens=16)
    heldout = Concept(
        **{**vars(concept), "contexts": read_prompts(ROOT / "data/text/prompts/everyday_heldout.txt")[:24]}
    )
    answers = answer(speaker, concept, how, seed=100), answer(speaker, heldout, how, seed=500)

    def accuracy(layer: str) -> float:
        sides = [list(contrast(speaker, part, at_layer(speaker, layer, "output"))) for part in answers]
        states = [torch.cat([s.states[:, 0] for s in side]) for side in sides]
        labels = [torch.cat([torch.full((len(s.states),), s.positive) for s in side]) for side in sides]
        return probe_accuracy(states[0], labels[0], states[1], labels[1])

    before = accuracy(name)
    with baked(speaker, edit):
        after, elsewhere = accuracy(name), accuracy(name.replace(".16.", ".15."))
    print(json.dumps({"before": before, "after": after, "another layer": elsewhere}))
    assert before > 0.9
    assert abs(after - 0.5) < 0.06
    assert elsewhere > 0.9  # control: the other layers still tell


def test_ablation_takes_a_behaviour_s_direction(speaker: CausalLMBackbone, fitted: Callable[[str], Path]) -> None:
    """How much likelier a pirate's answers are under the pirate's instruction than under the clerk's, a token."""
    edit = edit_in(fitted("ablation"))
    concept = Concept.load(ROOT / "data/text/concepts/pirate.yaml")
    messages = read_prompts(ROOT / "data/text/prompts/everyday_heldout.txt")[:12]
    pirate = speaker.encode([concept.positives[0] + BETWEEN + message for message in messages])
    said = speaker.respond(pirate, range(1000, 1012), 24, 0.8)
    before = log_odds(speaker, concept, messages, said)

    def change(edit: Factored) -> tuple[float, float]:
        with baked(speaker, edit):
            moved = log_odds(speaker, concept, messages, said) - before
        return float(moved.mean()), float(moved.std() / len(moved) ** 0.5)

    without, by_chance = change(edit), change(ablate(speaker, normal(576, 1, seed=1, dtype=torch.float32)))
    print(json.dumps({"before": float(before.mean()), "change": without, "a random direction": by_chance}))
    assert before.mean() > 0.4
    assert without[0] < -0.2
    assert abs(by_chance[0]) < 0.1  # control
