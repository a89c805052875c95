"""MEMIT on tiny models, in float64: many facts, several blocks, and what one edit after the other is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sliders.algebra.closed_forms import memit_gains
from sliders.algebra.distance import distance, size
from sliders.algebra.edit import Affine
from sliders.algebra.laws import is_idempotent, is_invertible
from sliders.backbones.language.model import CausalLMBackbone
from sliders.editors.contrast import writer
from sliders.editors.memit import MEMIT
from sliders.errors import SliderError
from sliders.language.facts import read_rewrites
from sliders.language.recall import keys, outputs, run, written
from sliders.runtime.baking import baked
from tests.editors import facts
from tests.factory import normal


@pytest.fixture
def memit(place: Path) -> MEMIT:
    search = facts.search(place, steps=8, limit=0.75)
    return MEMIT(facts.facts(place), [0, 1], None, 1e-6, search, facts.covariance(place))


def states(lm: CausalLMBackbone, memit: MEMIT) -> Tensor:
    """At the subjects' last tokens after the last block, ``[width, facts]``."""
    asked = [memit.search.asked(lm, fact, 0) for fact in read_rewrites(memit.facts)]
    with torch.no_grad():
        return torch.stack([a.at_subject(run(lm, a.prompts, memit.blocks[-1])[0]).mean(0) for a in asked], 1)


def moves(lm: CausalLMBackbone, memit: MEMIT) -> Tensor:
    """What the search asks to add to them."""
    layer, before = writer(lm, memit.blocks[-1]), states(lm, memit)
    found = [
        memit.search.move(lm, layer, fact, None, float(state.norm()), 0)
        for fact, state in zip(read_rewrites(memit.facts), before.T, strict=True)
    ]
    return torch.stack(found, 1)


def test_all_facts_get_what_was_searched_for_them_at_one_block(lm: CausalLMBackbone, memit: MEMIT) -> None:
    """Of one block with next to no weight on the covariance, the mean of the states moves by it exactly."""
    memit = replace(memit, blocks=[1])
    before, wanted, edit = states(lm, memit), moves(lm, memit), memit.fit(lm)
    assert edit.modules == (writer(lm, 1),)
    assert wanted.norm(dim=0).min() > 0.1
    with baked(lm, edit):
        assert_close(states(lm, memit) - before, wanted, atol=1e-3, rtol=1e-2)
    heavy = replace(memit, weight=1e6)  # control: the covariance forbids it
    with baked(lm, heavy.fit(lm)):
        assert (states(lm, heavy) - before).norm() < 0.01 * wanted.norm()


def test_several_blocks_share_it(lm: CausalLMBackbone, memit: MEMIT) -> None:
    """The first block writes half of what is missing; the last one what is still missing with the first one edited."""
    first, last = writer(lm, 0), writer(lm, 1)
    edit = memit.fit(lm)
    assert edit.modules == (first, last)
    before, wanted = states(lm, memit), moves(lm, memit)
    asked = [memit.search.asked(lm, fact, 0) for fact in read_rewrites(memit.facts)]
    read = keys(lm, [first], asked)[first]
    old = outputs(lm, first, read)
    with baked(lm, edit):
        assert_close(outputs(lm, first, read) - old, wanted / 2, atol=1e-3, rtol=1e-2)
    with baked(lm, Affine({first: edit[first]})):
        partly, read = states(lm, memit), keys(lm, [last], asked)[last]
        old = outputs(lm, last, read)
    with baked(lm, edit):
        assert_close(outputs(lm, last, read) - old, before + wanted - partly, atol=1e-3, rtol=1e-2)
    assert (before + wanted - partly).norm() > 1e-2


def test_in_sequence_it_is_joint_where_the_first_keys_join_the_weighted_covariance(
    lm: CausalLMBackbone, memit: MEMIT
) -> None:
    """With the model's own keys and given values; the keys forgotten, or inside lambda, are the controls."""
    layer, weight = writer(lm, 1), 0.3
    asked = [memit.search.asked(lm, fact, 0) for fact in read_rewrites(memit.facts)]
    read, covariance = keys(lm, [layer], asked)[layer], memit.covariance.fit(lm, [layer])[layer]
    value = normal(16, 2, seed=1)

    def fit(columns: list[int], penalty: Tensor) -> Affine:
        k = read[:, columns]
        moves = value[:, columns] - outputs(lm, layer, k)
        return Affine({layer: written(lm, layer, k, memit_gains(k, penalty), moves)})

    own = read[:, :1] @ read[:, :1].T
    joint, first = fit([0, 1], weight * covariance), fit([0], weight * covariance)
    assert distance(fit([1], weight * covariance + own) @ first, joint) < 1e-9 * (1 + size(joint))
    for other in (weight * covariance, weight * (covariance + own)):
        assert distance(fit([1], other) @ first, joint) > 1e-4 * size(joint)


def test_it_can_be_taken_back_and_is_not_idempotent(lm: CausalLMBackbone, memit: MEMIT) -> None:
    edit = replace(memit, weight=1.0).fit(lm)
    assert is_invertible(edit)
    assert not is_idempotent(edit)
    assert is_idempotent(replace(memit, weight=1e-12).fit(lm), 1e-4)  # control: the limit is ROME with several keys


def test_what_is_wrong_is_said(lm: CausalLMBackbone, memit: MEMIT) -> None:
    for blocks in ([], [1, 0], [1, 1]):
        with pytest.raises(SliderError, match="in ascending order"):
            replace(memit, blocks=blocks).fit(lm)
    assert memit.describe() == "the day of a dog is sad (was good), and 1 more, at blocks 0, 1"
