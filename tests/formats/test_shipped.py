"""The sliders that are shipped say what they are, and need no other file for it."""

from pathlib import Path

import pytest

from sliders import formats
from sliders.concept import Concept
from sliders.formats.metadata import concept_of

ROOT = Path(__file__).parents[2]
SLIDERS = [*ROOT.glob("data/avatars/*/*_seed1.safetensors"), *ROOT.glob("data/*/sliders/*")]


@pytest.mark.parametrize("path", SLIDERS, ids=lambda path: path.stem)
def test_its_prompts_are_in_it(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    slider = formats.load(path)
    concept = concept_of(slider)
    assert ".txt" not in slider.metadata["sliders.concept"]
    assert len(concept.heldout()) >= 32
    name = concept.name.removesuffix("_seed1")
    own = Concept.load(path.parents[1] / "concepts" / f"{name}.yaml")
    assert (concept.heldout(), concept.positives, concept.contexts) == (own.heldout(), own.positives, own.contexts)


def test_they_are_found() -> None:
    assert len(SLIDERS) == 14
