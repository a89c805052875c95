"""TIES against PEFT's, DARE against its expectation, KnOTS against dense SVDs; and that none is a sum."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils
from torch.testing import assert_close

from sliders.algebra.compose import Composition
from sliders.algebra.edit import Translation
from sliders.algebra.laws import is_associative
from sliders.algebra.lowrank import LowRank
from sliders.algebra.merges import aligned, dare, knots, ties, vote
from sliders.errors import SliderError
from tests.algebra.cases import in_gauge
from tests.algebra.test_compose import check_report, flat, slider
from tests.factory import lowrank, normal

laws = settings(deadline=None, max_examples=12, derandomize=True)
seeds = st.integers(0, 2**16)
FULL = 6
"""A rank that cuts nothing."""


def three(seed: int) -> list[Translation]:
    return [slider("s", seed + 10 * i, rank=i + 1).update for i in range(3)]


@laws
@given(seeds, st.floats(0.1, 0.99))
def test_the_vote_is_that_of_peft(seed: int, keep: float) -> None:
    entries = normal(3, 6, 5, seed=seed)
    wanted = merge_utils.ties(list(entries), torch.ones(3), keep)
    assert_close(vote(entries, keep), wanted)


def test_a_vote_by_hand() -> None:
    entries = torch.tensor([[3.0, -1, 0.1], [1, 4, 0.2], [-2, -2, 0.3]])
    assert_close(vote(entries, 1.0), torch.tensor([2.0, 4.0, 0.2]))
    assert_close(vote(entries, 0.67), torch.tensor([2.0, 4.0, 0.0]))


@laws
@given(seeds)
def test_ties_is_the_vote_and_reports_what_its_rank_costs(seed: int) -> None:
    updates = three(seed)
    whole, cut = ties(updates, 0.5, FULL, scale=0.7), ties(updates, 0.5, 2, scale=0.7)
    for module in whole.update:
        voted = 0.7 * vote(torch.stack([u[module].dense() for u in updates]), 0.5)
        assert_close(whole.update[module].dense(), voted)
    assert whole.error < 1e-7
    assert cut.error > 1e-3  # control
    check_report(cut, whole.update, *updates)
    assert all(part.rank == 2 for part in cut.update.values())


def test_dare_has_the_sum_as_its_mean() -> None:
    updates = three(1)
    wanted = torch.stack([flat(u) for u in updates]).sum(0)
    draws = torch.stack([flat(dare(updates, 0.5, FULL, seed).update) for seed in range(200)])
    assert_close(draws.mean(0), wanted, atol=4 * float(draws.std(0).max()) / 200**0.5, rtol=0)
    assert (draws.mean(0) * 0.5 - wanted).norm() > 0.3 * wanted.norm()  # control: without the division it is half
    assert (draws[0] - wanted).norm() > 0.3 * wanted.norm()  # control: a single draw is not the sum
    assert_close(flat(dare(updates, 0.0, FULL, 0).update), wanted)


def test_dare_is_seeded_module_by_module() -> None:
    updates = three(1)
    one, again, other = (dare(updates, 0.5, 2, seed) for seed in (3, 3, 4))
    assert torch.equal(flat(one.update), flat(again.update))
    assert not torch.equal(flat(one.update), flat(other.update))
    alone = dare([Translation({"conv": u["conv"]}) for u in updates], 0.5, 2, 3)
    assert torch.equal(alone.update["conv"].dense(), one.update["conv"].dense())
    check_report(one, dare(updates, 0.5, FULL, 3).update, *updates)


@laws
@given(seeds)
def test_the_joint_svd_is_that_of_the_concatenation(seed: int) -> None:
    parts = [u["conv"] for u in three(seed)]
    basis, coordinates = aligned(parts)
    dense = torch.cat([p.dense().flatten(1) for p in parts], 1)
    u, s, vh = torch.linalg.svd(dense, full_matrices=False)
    true = basis.shape[1]
    assert_close(basis @ basis.T, u[:, :true] @ u[:, :true].T)
    assert_close((basis.T @ dense).abs(), (s[:true, None] * vh[:true]).abs(), atol=1e-7, rtol=1e-7)
    for part, mine in zip(parts, coordinates, strict=True):
        assert_close(basis @ mine, part.dense().flatten(1))


@laws
@given(seeds)
def test_knots_votes_on_the_aligned_parts(seed: int) -> None:
    updates = three(seed)
    result = knots(updates, 0.4, scale=1.5)
    for module, part in result.update.items():
        basis, coordinates = aligned([u[module] for u in updates])
        assert_close(part.dense().flatten(1), 1.5 * basis @ vote(coordinates, 0.4))
        assert part.rank <= 6
    assert result.error == 0
    check_report(result, result.update, *updates)


def test_a_lone_update_survives_every_merge_whole() -> None:
    update = slider("s", 1).update
    for result in (ties([update], 1.0, FULL), dare([update], 0.0, FULL, 0), knots([update], 1.0)):
        assert_close(flat(result.update), flat(update), atol=1e-7, rtol=1e-7)
        assert result.survived == pytest.approx((1.0,))
    assert ties([update], 0.1, FULL).survived[0] < 0.9  # control


MERGES: dict[str, Callable[[list[Translation]], Composition]] = {
    "ties": lambda updates: ties(updates, 0.5, 3),
    "dare": lambda updates: dare(updates, 0.5, 3, 0),
    "knots": lambda updates: knots(updates, 0.5),
}


@pytest.mark.parametrize("name", MERGES)
@laws
@given(seeds)
def test_merging_does_not_depend_on_the_gauge(name: str, seed: int) -> None:
    updates = three(seed)
    turned = [Translation({m: in_gauge(u, seed + i) for m, u in t.items()}) for i, t in enumerate(updates)]
    assert_close(flat(MERGES[name](turned).update), flat(MERGES[name](updates).update), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("name", ["ties", "knots"])
def test_merges_commute_but_do_not_associate(name: str) -> None:
    a, b, c = three(2)
    assert_close(flat(MERGES[name]([a, b]).update), flat(MERGES[name]([b, a]).update), atol=1e-7, rtol=1e-7)
    law = is_associative(lambda x, y: MERGES[name]([x, y]).update, a, b, c)
    assert not law
    assert law.value > 1e-2


def test_a_module_that_an_update_lacks_takes_part_as_zero() -> None:
    some = Translation({"fc": lowrank((6, 5), 2)})
    whole = slider("s", 1).update
    assert_close(dare([some, whole], 0.0, FULL, 0).update["conv"].dense(), whole["conv"].dense())
    zero = Translation({"fc": LowRank.zero((6, 5), whole["fc"].B)})
    assert knots([zero], 0.5).survived == (0.0,)
    assert float(knots([zero], 0.5).update["fc"].norm()) == 0


@pytest.mark.parametrize("merge", [lambda u: ties(u, 0.0, 2), lambda u: knots(u, 1.5), lambda u: dare(u, 1.0, 2, 0)])
def test_shares_are_shares(merge: Callable[[list[Translation]], Composition]) -> None:
    with pytest.raises(SliderError, match="a share"):
        merge(three(1))


def test_merging_nothing_or_unlike_weights_is_refused() -> None:
    with pytest.raises(SliderError, match="nothing to merge"):
        ties([], 0.5, 2)
    with pytest.raises(SliderError, match="'fc'"):
        knots([slider("s", 1).update, Translation({"fc": lowrank((5, 6), 2)})], 0.5)
