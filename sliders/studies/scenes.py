"""The scenes at which a study compares dials."""

import itertools
from collections.abc import Sequence
from typing import Any

from sliders.algebra.slider import NamedDial
from sliders.backbones.base import AbstractBackbone
from sliders.errors import SliderError
from sliders.evaluation.base_states import BaseStates
from sliders.evaluation.pictures.report import heldout_prompts
from sliders.formats.metadata import concept_of
from sliders.media.base import medium_of


def states_for(
    backbone: AbstractBackbone,
    dials: Sequence[NamedDial],
    count: int,
    prompts: Sequence[str] | None = None,
    how: Any | None = None,
) -> BaseStates:
    """Where dials are compared: at ``count`` scenes of the prompts that their concepts are measured on, in turn.

    Args:
        backbone: the model that the dials are for.
        dials: those to be compared.
        count: scenes; of language each has a message of its own.
        prompts: others than the concepts' own.
        how: the base makes the scenes, as its medium has it.

    Raises:
        SliderError: no dial says which prompts it is measured on, or there are too few.
    """
    if count < 1:
        raise SliderError(f"--scenes is {count}; it must be at least 1")
    concepts = [concept_of(d).worded(backbone.modality) for d in dials if "sliders.concept" in d.metadata]
    if prompts is None:
        sets = [heldout_prompts(concept) for concept in concepts]
        turns = [prompt for row in itertools.zip_longest(*sets) for prompt in row if prompt is not None]
        prompts = list(dict.fromkeys(turns))
    if not prompts:
        raise SliderError("no slider says which prompts it is measured on; give --prompts")
    target = concepts[0].target if concepts else ""
    return medium_of(backbone).states(backbone, prompts, count, target, how)
