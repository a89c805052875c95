"""The laws of behaviour, on a model that obeys them and on one that does not."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch

from sliders.algebra.pairs import pairwise
from sliders.algebra.slider import Hinge, Slider
from sliders.evaluation.base_states import Behaviour
from sliders.runtime.attach import attach
from sliders.studies.behavioural_laws import behavioural_order_gap, interaction, interactions, matrix, path
from sliders.studies.interference import advice, covariances, forecasts, remedies
from tests.evaluation.toy import SCENES, Toy, crossing, on, states


@pytest.fixture(scope="module")
def model() -> Toy:
    return Toy()


@contextmanager
def told(model: Toy, *dials: Slider | Hinge) -> Iterator[Behaviour]:
    with attach(model, dials) as attached:
        yield Behaviour(states(model), attached)


class TestInteraction:
    @pytest.mark.parametrize("layers", [("one", "other"), ("one", "one"), ("one", "bent")])
    def test_where_the_model_is_linear_there_is_none(self, layers: Sequence[str], model: Toy) -> None:
        a, b = on(layers[0], "a", 1), on(layers[1], "b", 2)
        with told(model, a, b) as behaviour:
            assert interaction(behaviour, "a", "b", {}).gap.value < 1e-5

    def test_two_sliders_on_one_bent_layer(self, model: Toy) -> None:
        with told(model, on("bent", "a", 1), on("bent", "b", 2)) as behaviour:
            found = interaction(behaviour, "a", "b", {})
        assert found.gap.value > 0.1
        assert 0 < found.gap.low < found.gap.value < found.gap.high
        assert (found.null, found.p) == (None, None)

    def test_by_hand(self, model: Toy) -> None:
        a, b, here = on("bent", "a", 1), on("bent", "b", 2), states(model)
        f = {}
        for positions in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
            with attach(model, [a, b], dict(zip("ab", positions, strict=True))):
                f[positions] = here.predict().double()
        base, one, two, both = f.values()
        wanted = (both - one - two + base).norm() ** 2
        whole = [
            (
                (one - base).view(3, SCENES, 5).square().sum((0, 2))
                * (two - base).view(3, SCENES, 5).square().sum((0, 2))
            )
        ]
        with told(model, a, b) as behaviour:
            value = interaction(behaviour, "a", "b", {}).gap.value
        assert value == pytest.approx(float((wanted / whole[0].sqrt().sum()).sqrt()), rel=1e-4)

    def test_against_twins(self, model: Toy) -> None:
        """Of exact copies any gap is more than chance; of unrelated ones none is."""
        a, b = on("bent", "a", 1), on("bent", "b", 2)
        for seeds, sure in (((1, 2), True), ((11, 12), False)):
            twins = [on("bent", f"{name}2", seed) for name, seed in zip("ab", seeds, strict=True)]
            with told(model, a, b, *twins) as behaviour:
                found = interaction(behaviour, "a", "b", {"a": "a2", "b": "b2"})
            assert found.null is not None
            assert found.p is not None
            assert (found.p < 0.01) == sure
            assert (found.null.value < 1e-6) == sure


class TestPath:
    def test_a_linear_dial_is_straight(self, model: Toy) -> None:
        with told(model, on("one", "a", 1)) as behaviour:
            found = path(behaviour, "a", {})
        assert found.straight == (-2.0, 2.0)
        assert found.size == pytest.approx([abs(d) for d in found.dials], abs=1e-5)
        assert max([*found.bend, *found.turn, *(law.gap.value for law in found.laws)]) < 1e-4
        assert [law.law for law in found.laws] == ["oddness", "additivity to -2", "additivity to +2", "curvature"]

    def test_a_bent_dial_is_not(self, model: Toy) -> None:
        with told(model, on("bent", "a", 1, scale=3.0)) as behaviour:
            found = path(behaviour, "a", {})
        assert found.straight[0] > -2.0
        assert found.straight[1] < 2.0
        assert min(law.gap.value for law in found.laws) > 0.05

    def test_a_hinge_is_additive_on_its_sides_and_not_odd(self, model: Toy) -> None:
        both = Hinge("h", on("one", "l", 1), on("one", "r", 2))
        with told(model, both) as behaviour:
            odd, *additive, _ = path(behaviour, "h", {}).laws
        assert odd.gap.value > 0.5
        assert max(law.gap.value for law in additive) < 1e-5


class TestForecast:
    def test_sliders_that_share_nothing_are_known_beforehand(self, model: Toy) -> None:
        """On one bent layer sliders interact where they write the same outputs, and not where they write others."""
        sliders = [crossing("a", 0, 0), crossing("b", 0, 1), crossing("c", 1, 0), crossing("d", 1, 1)]
        with told(model, *sliders) as behaviour:
            table = matrix(interactions(behaviour, "abcd", {}), "abcd")
        assert table[0, 1] > 0.1
        assert table[2, 3] > 0.1
        assert max(table[0, 2], table[0, 3], table[1, 2], table[1, 3]) < 1e-5
        by = {one.by: one for one in forecasts(pairwise(sliders), table)}
        assert by["writing"].correlation.value == 1 or by["writing"].correlation.value > 0.9
        assert by["reading"].correlation.value < 0.9
        assert by["writing"].p < by["reading"].p

    def test_covariances_are_what_a_layer_reads(self, model: Toy) -> None:
        here = states(model)
        x = here.state["x"] + model.encode(here.prompts)["shift"][:, None]
        found = covariances(here, ["one", "bent"])
        torch.testing.assert_close(found["one"], (x.T @ x / len(x)).float())
        assert not model.one._forward_pre_hooks

    def test_orthogonal_writing_is_the_remedy(self, model: Toy) -> None:
        before, found = remedies(states(model), crossing("a", 0, 0), on("bent", "b", 5, rank=4))
        best = found[0]
        assert best.what == "b writes nothing that a writes"
        assert best.interaction.gap.value < 1e-5 < before.gap.value
        assert 0 < best.kept <= 1
        text = advice(before, found)
        assert ("Where b writes nothing" in text) == (best.kept >= 0.8)

    def test_no_remedy_for_a_copy(self, model: Toy) -> None:
        before, found = remedies(states(model), on("bent", "a", 1), Slider("b", on("bent", "a", 1).update))
        assert max(one.kept for one in found) < 1e-5
        assert "no way to orthogonalise" in advice(before, found)


class TestOrder:
    def runs(self, second: int, seeds: Sequence[int], jitter: float) -> list[tuple[Slider, Slider]]:
        return [
            (on("one", "a", 1), Slider("b", on("other", "b", second).update + on("other", "j", 50 + s).update * jitter))
            for s in seeds
        ]

    def test_orders_that_end_apart(self, model: Toy) -> None:
        one, two = self.runs(2, (0, 1, 2, 3), 0.05), self.runs(3, (4, 5, 6, 7), 0.05)
        found = behavioural_order_gap(states(model), "a", "b", one, two)
        assert found.null is not None
        assert found.gap.value > 5 * found.null.value
        assert found.p is not None
        assert found.p < 0.01
        assert found.p_runs == pytest.approx(2 / 70)

    def test_orders_that_differ_as_seeds_do(self, model: Toy) -> None:
        one, two = self.runs(2, (0, 1, 2, 3), 0.05), self.runs(2, (4, 5, 6, 7), 0.05)
        found = behavioural_order_gap(states(model), "a", "b", one, two)
        assert found.p_runs is not None
        assert found.p_runs > 0.05

    def test_one_seed_has_no_null(self, model: Toy) -> None:
        found = behavioural_order_gap(states(model), "a", "b", self.runs(2, (0,), 0.1), self.runs(3, (1,), 0.1))
        assert found.gap.value > 0
        assert (found.null, found.p, found.p_runs) == (None, None, None)
