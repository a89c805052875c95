"""ROME on tiny models of both kinds of feed-forward part, in float64: what it does to its key and to others."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sliders.algebra.closed_forms import rome_gains
from sliders.algebra.edit import Affine, Translation
from sliders.algebra.laws import commutes, is_idempotent, is_invertible
from sliders.algebra.slider import Slider
from sliders.backbones.language.model import CausalLMBackbone
from sliders.editors.contrast import writer
from sliders.editors.rome import ROME
from sliders.errors import SliderError
from sliders.language.recall import keys, outputs, written
from sliders.runtime.attach import attach
from sliders.runtime.baking import baked
from sliders.runtime.layers import weight_shape
from tests.editors import facts
from tests.factory import lowrank, normal


@pytest.fixture
def rome(place: Path) -> ROME:
    return ROME(facts.facts(place), "a dog", 1, facts.search(place), facts.covariance(place))


def key(lm: CausalLMBackbone, rome: ROME, seed: int = 0) -> tuple[str, Tensor]:
    layer = writer(lm, rome.block)
    return layer, keys(lm, [layer], [rome.search.asked(lm, rome.fact, seed)])[layer]


def test_the_edit_writes_the_value_at_the_key_of_one_layer(lm: CausalLMBackbone, rome: ROME) -> None:
    layer, k = key(lm, rome)
    before = outputs(lm, layer, k)
    edit = rome.fit(lm)
    assert edit.modules == (layer,)
    assert_close(outputs(lm, layer, k), before)  # fitting left the model alone
    move = rome.search.move(lm, layer, rome.fact, before[:, 0], float(before.norm()), 0)
    with baked(lm, edit):
        assert_close(outputs(lm, layer, k)[:, 0], before[:, 0] + move)
    assert move.norm() > 0.1


def test_what_is_attached_while_it_is_fitted_goes_on_adding_its_own(lm: CausalLMBackbone, rome: ROME) -> None:
    layer = writer(lm, rome.block)
    rome.covariance.fit(lm, [layer])
    slider = Slider("s", Translation({layer: lowrank(weight_shape(lm, layer), 2)}))
    with attach(lm, [slider], {"s": 20.0}):
        _, k = key(lm, rome)
        before = outputs(lm, layer, k)
        move = rome.search.move(lm, layer, rome.fact, before[:, 0], float(before.norm()), 0)
        edit = rome.fit(lm)
        with baked(lm, edit):
            assert_close(outputs(lm, layer, k)[:, 0], before[:, 0] + move)
    assert (before - outputs(lm, layer, k)).norm() > 0.1  # control: it did add something


def test_it_makes_the_new_answer_likelier_and_the_other_way_round(lm: CausalLMBackbone, rome: ROME) -> None:
    """Control: the same edit turned round, which moves as far, makes it less likely."""
    prompt = rome.fact.prompt.format(rome.subject)
    layer, k = key(lm, rome)
    before = facts.probability(lm, prompt, rome.fact.new)
    edit = rome.fit(lm)
    with baked(lm, edit):
        after = facts.probability(lm, prompt, rome.fact.new)
        value = outputs(lm, layer, k)
    gains = rome_gains(k, rome.covariance.fit(lm, [layer])[layer])
    with baked(lm, Affine({layer: written(lm, layer, k, gains, outputs(lm, layer, k) - value)})):
        turned = facts.probability(lm, prompt, rome.fact.new)
    assert turned < before < after


def test_other_subjects_are_damaged_by_the_formula(lm: CausalLMBackbone, rome: ROME, place: Path) -> None:
    """``|v* - W k| |u^T x| / (u^T k)`` for another subject's key ``x``, and nothing where ``u^T x = 0``."""
    layer, k = key(lm, rome)
    other = keys(lm, [layer], [rome.search.asked(lm, ROME(rome.facts, "the hat", 1).fact, 0)])[layer]
    u = torch.linalg.solve(rome.covariance.fit(lm, [layer])[layer], k)
    before = outputs(lm, layer, torch.cat([k, other], 1))
    with baked(lm, rome.fit(lm)):
        after = outputs(lm, layer, torch.cat([k, other], 1))
        apart = other - k * (u.T @ other) / (u.T @ k)
        unseen = outputs(lm, layer, apart)
    move, damage = (after - before).norm(dim=0)
    assert_close(damage, move * float((u.T @ other).abs() / (u.T @ k)))
    assert damage > 1e-3 * move
    assert_close(unseen, outputs(lm, layer, apart))


def test_two_edits_commute_where_the_keys_are_orthogonal_in_the_inverse_covariance(
    lm: CausalLMBackbone, rome: ROME
) -> None:
    layer, k = key(lm, rome)
    covariance = rome.covariance.fit(lm, [layer])[layer]
    other = keys(lm, [layer], [rome.search.asked(lm, ROME(rome.facts, "the hat", 1).fact, 0)])[layer]
    apart = other - k * (rome_gains(k, covariance) @ other)

    def fit(read: Tensor) -> Affine:
        return Affine({layer: written(lm, layer, read, rome_gains(read, covariance), normal(16, 1, seed=1))})

    assert commutes(rome.fit(lm), fit(apart))
    assert not commutes(rome.fit(lm), fit(other))  # control


def test_it_is_idempotent_and_has_no_inverse(lm: CausalLMBackbone, rome: ROME) -> None:
    edit = rome.fit(lm)
    assert is_idempotent(edit)
    assert not is_invertible(edit)
    assert not is_idempotent(edit * 0.5)  # control


def test_one_seed_gives_one_edit_and_another_seed_another(lm: CausalLMBackbone, rome: ROME) -> None:
    layer = writer(lm, 1)
    weight, bias = torch.zeros(weight_shape(lm, layer)), torch.zeros(16)
    one, again, other = (rome.fit(lm, seed).apply_layer(layer, weight, bias)[0] for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_what_is_wrong_is_said(lm: CausalLMBackbone, rome: ROME, place: Path) -> None:
    with pytest.raises(SliderError, match="no block 9"):
        ROME(rome.facts, "a dog", 9, rome.search, rome.covariance).fit(lm)
    with pytest.raises(SliderError, match="no fact about 'me'"):
        ROME(rome.facts, "me", 1, rome.search, rome.covariance).fit(lm)
    assert rome.describe() == "the day of a dog is sad (was good), at block 1"
