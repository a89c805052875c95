"""Where states come from: each answered is the teacher's answer at a state that the slider itself leads to."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sliders.backbones.diffusion import DiffusionBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.batch import TensorBatch, take
from sliders.errors import SliderError
from sliders.runtime.adapter import Adapter
from sliders.teacher.teacher import Teacher
from sliders.training.states import AnsweredStates, Pool, Rollout, StateSource
from tests import tiny
from tests.training import runs

SEEDS = [11, 12, 13, 14, 15, 16]
PRESERVED = [False, True, False, False, True, True]

SOURCES = {
    "rollout": lambda: Rollout(steps=4, guidance=1.0),
    "guided rollout": lambda: Rollout(steps=3, guidance=2.0, signed=False),
    "pool": lambda: Pool(trajectories=4, steps=3, refresh=3, growth=1, kept=None),
    "guided pool": lambda: Pool(trajectories=4, steps=2, refresh=3, growth=1, guidance=2.0, dial=2.0),
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> StateSource:
    """Each kind, fresh."""
    return SOURCES[request.param]()


@pytest.fixture
def teacher(shared: DiffusionBackbone, adapter: Adapter) -> Teacher:
    """Of a concept with everything."""
    return Teacher(shared, runs.RICH, adapter)


def same(one: AnsweredStates, other: AnsweredStates) -> bool:
    """Bit by bit."""
    tensors = [[x.question, x.base, x.direction, *x.state.values()] for x in (one, other)]
    return all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


def distinct(states: TensorBatch, at: int) -> Tensor:
    """The different latents among the states at one timestep, ``[n, ...]``."""
    return states["latents"][states["timestep"] == at].unique(dim=0)


class TestEverySource:
    """What holds wherever the states come from."""

    def test_lesson_is_the_teacher_s_answer_at_its_own_state(
        self, source: StateSource, teacher: Teacher, adapter: Adapter, shared: DiffusionBackbone
    ) -> None:
        """By a teacher that has seen nothing else, one row at a time."""
        answered = source.draw(teacher, adapter, runs.batch(SEEDS, PRESERVED))
        fresh = Teacher(shared, runs.RICH)
        for row in range(len(SEEDS)):
            one = torch.tensor([row])
            base, direction = fresh.answer(take(answered.state, one), answered.question[one])
            torch.testing.assert_close(answered.base[one], base, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(answered.direction[one], direction, rtol=1e-4, atol=1e-5)

    def test_only_preserved_rows_ask_what_to_preserve(
        self, source: StateSource, teacher: Teacher, adapter: Adapter
    ) -> None:
        questions: dict[bool, set[int]] = {True: set(), False: set()}
        for step in range(0, 15, 3):
            seeds = [100 * step + s for s in SEEDS]
            answered = source.draw(teacher, adapter, runs.batch(seeds, PRESERVED, step))
            for question, direction, preserved in zip(
                answered.question.tolist(), answered.direction, PRESERVED, strict=True
            ):
                questions[preserved].add(question)
                assert bool(direction.any()) != preserved
        assert questions[True] <= set(teacher.kept.tolist())
        assert questions[False] <= set(teacher.moved.tolist())
        assert all(len(asked) > 1 for asked in questions.values())

    def test_every_evaluation_is_counted(
        self, source: StateSource, teacher: Teacher, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One for each row that the model is asked about, and none besides."""
        counts = runs.count_rows(teacher.backbone, monkeypatch)
        for step in (0, 1, 3):
            source.draw(teacher, adapter, runs.batch(SEEDS, PRESERVED, step))
            assert sum(counts) == teacher.evaluations > 0

    def test_the_same_run_sees_the_same_lessons(self, source: StateSource, teacher: Teacher, adapter: Adapter) -> None:
        again = type(source)(**{k: v for k, v in vars(source).items() if not k.startswith("_")})
        for step in (0, 3):
            items = runs.batch([s + step for s in SEEDS], PRESERVED, step)
            torch.manual_seed(step)
            one = source.draw(teacher, adapter, items)
            torch.manual_seed(-step)
            assert same(one, again.draw(teacher, adapter, items))

    def test_drawing_leaves_the_slider_as_it_is(self, source: StateSource, teacher: Teacher, adapter: Adapter) -> None:
        """Off, unchanged and without gradients."""
        before = adapter.state()
        assert isinstance(teacher.backbone, DiffusionBackbone)
        state, prompt = {"latents": teacher.backbone.start([1]), "timestep": torch.tensor([501])}, torch.tensor([0])
        with torch.no_grad():
            base = teacher.backbone.predict(state, teacher.targets(prompt))
            answered = source.draw(teacher, adapter, runs.batch(SEEDS, PRESERVED))
            assert torch.equal(teacher.backbone.predict(state, teacher.targets(prompt)), base)
        assert runs.equal(before, adapter.state())
        assert not any(t.requires_grad for t in (answered.base, answered.direction, *answered.state.values()))

    def test_a_row_asks_one_question(self, source: StateSource, teacher: Teacher, adapter: Adapter) -> None:
        answered = source.draw(teacher, adapter, runs.batch(SEEDS, PRESERVED))
        sizes = {len(t) for t in (answered.question, answered.base, answered.direction, *answered.state.values())}
        assert sizes == {len(SEEDS)}

    def test_preserved_rows_need_prompts_to_preserve(
        self, source: StateSource, shared: DiffusionBackbone, adapter: Adapter
    ) -> None:
        with pytest.raises(SliderError, match="preserve"):
            source.draw(Teacher(shared, runs.HAPPY, adapter), adapter, runs.batch(SEEDS, PRESERVED))

    def test_states_are_those_of_the_slider(
        self, source: StateSource, shared: DiffusionBackbone, adapter: Adapter
    ) -> None:
        """Without one, there are others."""
        teacher, items = Teacher(shared, runs.HAPPY, adapter), runs.batch(SEEDS)
        with_slider = source.draw(teacher, adapter, items)
        for parameter in adapter.parameters():
            parameter.data.zero_()
        again = type(source)(**{k: v for k, v in vars(source).items() if not k.startswith("_")})
        without = again.draw(teacher, adapter, items)
        assert torch.equal(with_slider.state["timestep"], without.state["timestep"])
        moved = (with_slider.state["latents"] - without.state["latents"]).abs().amax((1, 2, 3)) > 1e-3
        first = with_slider.state["timestep"] == with_slider.state["timestep"].max()
        assert torch.equal(moved, ~first)
        assert 0 < int(first.sum()) < len(SEEDS)


class TestRollout:
    """A fresh partial denoising for each item."""

    def test_a_row_follows_from_its_item_alone(self, teacher: Teacher, adapter: Adapter) -> None:
        items = runs.batch(SEEDS, PRESERVED)
        together = Rollout(steps=4).draw(teacher, adapter, items)
        order = torch.tensor([3, 0, 5])
        some = runs.batch([SEEDS[i] for i in order], [PRESERVED[i] for i in order], step=9)
        apart = Rollout(steps=4).draw(teacher, adapter, some)
        wanted = together.rows(order)
        assert torch.equal(apart.question, wanted.question)
        torch.testing.assert_close(apart.state["latents"], wanted.state["latents"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(apart.direction, wanted.direction, rtol=1e-4, atol=1e-5)

    def test_all_depths_and_both_signs(self, shared: DiffusionBackbone, adapter: Adapter) -> None:
        """A state of depth k is k steps from its noise, at its own magnitude and sign."""
        teacher, steps, seeds = Teacher(shared, runs.HAPPY, adapter), 2, list(range(12))
        items = runs.batch(seeds)
        answered = Rollout(steps=steps, guidance=1.0).draw(teacher, adapter, items)
        prompt, found = shared.encode(["a person"]), []
        for row, seed in enumerate(seeds):
            mine = take(answered.state, torch.tensor([row]))
            for sign in (1, -1):
                with torch.no_grad(), adapter.dial(sign * items.magnitudes[row : row + 1]):
                    path = shared.trajectory(lambda x: shared.predict(x, prompt), shared.start([seed]), steps, [seed])
                    for depth, state in enumerate(path):
                        if torch.equal(state["timestep"], mine["timestep"]):
                            close = torch.allclose(state["latents"], mine["latents"], rtol=1e-4, atol=1e-4)
                            found += [(row, depth, sign)] * close
        assert {row for row, _, _ in found} == set(range(12))
        assert {(depth, sign) for _, depth, sign in found} == {(d, s) for d in range(steps) for s in (1, -1)}

    def test_unsigned_has_the_positive_side_alone(self, shared: DiffusionBackbone, adapter: Adapter) -> None:
        teacher, items, dials = Teacher(shared, runs.HAPPY, adapter), runs.batch(list(range(12))), []
        real = adapter.dial
        adapter.dial = lambda positions: (dials.append(float(positions)), real(positions))[1]  # type: ignore[method-assign]
        Rollout(steps=2, guidance=1.0, signed=False).draw(teacher, adapter, items)
        assert dials == items.magnitudes.tolist()
        dials.clear()
        Rollout(steps=2, guidance=1.0).draw(teacher, adapter, items)
        assert [abs(d) for d in dials] == items.magnitudes.tolist()
        assert min(dials) < 0 < max(dials)


class Watched:
    """A pool whose fillings are seen: the dials, seeds and questions of its trajectories."""

    def __init__(self, shared: DiffusionBackbone, adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dials: list[Tensor] = []
        self.seeds: list[list[int]] = []
        turn, start = adapter.dial, shared.start

        def dial(positions: Tensor) -> Any:
            self.dials.append(positions.clone())
            return turn(positions)

        def begin(seeds: Sequence[int]) -> Tensor:
            self.seeds.append(list(seeds))
            return start(seeds)

        monkeypatch.setattr(adapter, "dial", dial)
        monkeypatch.setattr(shared, "start", begin)


class TestPool:
    """Trajectories rolled out together and kept for a while."""

    def test_is_filled_at_the_interval_and_only_then(
        self, shared: DiffusionBackbone, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        teacher, pool = Teacher(shared, runs.HAPPY, adapter), Pool(trajectories=4, steps=2, refresh=3, growth=1)
        watched, filled, counts = Watched(shared, adapter, monkeypatch), [], runs.count_rows(shared, monkeypatch)
        for step in range(8):
            before, asked = len(watched.dials), len(counts)
            pool.draw(teacher, adapter, runs.batch(SEEDS, step=step))
            if len(watched.dials) > before:
                filled.append(step)
            else:
                assert len(counts) == asked, "between fillings the model is not asked"
        assert filled == [0, 3, 6]
        assert len({tuple(seeds) for seeds in watched.seeds}) == 3, "each filling has noise of its own"

    def test_runs_every_noise_at_both_signs(
        self, shared: DiffusionBackbone, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        teacher = Teacher(shared, runs.HAPPY, adapter)
        watched = Watched(shared, adapter, monkeypatch)
        Pool(trajectories=8, steps=2, dial=1.5).draw(teacher, adapter, runs.batch(SEEDS))
        dials, seeds = watched.dials[0], watched.seeds[0]
        assert len(dials) == len(seeds) == 8
        at = {seed: sorted(float(d) for d, s in zip(dials, seeds, strict=True) if s == seed) for seed in seeds}
        assert len(at) == 4
        assert all(low == -high and 0 < high <= 1.5 for low, high in at.values())
        assert len({high for _, high in at.values()}) == 4

    def test_holds_all_states_of_its_trajectories(
        self, shared: DiffusionBackbone, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The slider is on: a pair starts from one noise and is taken apart by its signs."""
        teacher = Teacher(shared, runs.HAPPY, adapter)
        watched = Watched(shared, adapter, monkeypatch)
        pool = Pool(trajectories=2, steps=3, kept=None)
        states = pool.draw(teacher, adapter, runs.batch(list(range(60)))).state
        prompt = shared.encode(["a person"] * 2)
        with torch.no_grad(), adapter.dial(watched.dials[0]):
            path = list(
                shared.trajectory(
                    lambda x: shared.predict(x, prompt), shared.start(watched.seeds[0]), 3, watched.seeds[0]
                )
            )[:-1]
        times = [int(state["timestep"][0]) for state in path]
        assert set(states["timestep"].tolist()) == set(times)
        for depth, (at, wanted) in enumerate(zip(times, path, strict=True)):
            held = distinct(states, at)
            assert len(held) == (1 if depth == 0 else 2)
            torch.testing.assert_close(held, wanted["latents"].unique(dim=0), rtol=1e-4, atol=1e-4)

    def test_without_a_slider_both_signs_are_the_same(self, shared: DiffusionBackbone, adapter: Adapter) -> None:
        """The control of the test above."""
        for parameter in adapter.parameters():
            parameter.data.zero_()
        teacher = Teacher(shared, runs.HAPPY, adapter)
        states = Pool(trajectories=2, steps=3).draw(teacher, adapter, runs.batch(list(range(60)))).state
        assert all(len(distinct(states, at)) == 1 for at in set(states["timestep"].tolist()))

    def test_goes_on_as_it_was_after_a_resume(self, teacher: Teacher, adapter: Adapter) -> None:
        """With the weights that it was filled with, though training has moved on since."""
        first, filled_at = Pool(trajectories=4, steps=2, refresh=4, growth=1), 4
        first.draw(teacher, adapter, runs.batch(SEEDS, PRESERVED, filled_at))
        runs.randomize(adapter, seed=8)
        now = adapter.state()
        kept = first.state_dict()
        second = Pool(trajectories=4, steps=2, refresh=4, growth=1)
        second.load_state_dict(kept)
        for step in (5, 7):
            items = runs.batch([s + step for s in SEEDS], PRESERVED, step)
            assert same(first.draw(teacher, adapter, items), second.draw(teacher, adapter, items))
        assert runs.equal(now, adapter.state())
        fresh = Pool(trajectories=4, steps=2, refresh=4, growth=1).draw(teacher, adapter, items)
        assert not same(fresh, first.draw(teacher, adapter, items)), "the control: a pool made now is another one"
        assert same(*(p.draw(teacher, adapter, runs.batch(SEEDS, PRESERVED, 8)) for p in (first, second)))

    def test_it_is_made_anew_ever_more_seldom(self, teacher: Teacher, adapter: Adapter) -> None:
        pool, made = Pool(trajectories=2, steps=2, refresh=2, growth=3), []
        for step in range(30):
            pool.draw(teacher, adapter, runs.batch(SEEDS, step=step))
            made.append(pool.state_dict()["made_at"])
        assert sorted(set(made)) == [0, 2, 8, 26]
        assert made.index(8) == 8

    def test_what_was_loaded_is_what_would_be_saved(self, teacher: Teacher, adapter: Adapter) -> None:
        """Also before the first draw: a run may be stopped again at once."""
        first, second = Pool(trajectories=4, steps=2), Pool(trajectories=4, steps=2)
        assert first.state_dict() == {}
        first.draw(teacher, adapter, runs.batch(SEEDS, PRESERVED, 4))
        kept = first.state_dict()
        second.load_state_dict(kept)
        again = second.state_dict()
        assert again.keys() == kept.keys()
        assert again["made_at"] == kept["made_at"] == 4
        assert runs.equal(again["adapter"], kept["adapter"])

    def test_another_seed_of_the_run_makes_another_pool(self, teacher: Teacher, adapter: Adapter) -> None:
        one, two = (
            Pool(trajectories=2, steps=2).draw(teacher, adapter, runs.batch(SEEDS, PRESERVED[:0] or None, seed=seed))
            for seed in (0, 1)
        )
        assert not set(one.state["latents"].flatten().tolist()) & set(two.state["latents"].flatten().tolist())

    def test_the_smallest_pools_have_room_for_what_is_preserved(self, teacher: Teacher, adapter: Adapter) -> None:
        """Or say how many trajectories have."""
        with pytest.raises(SliderError, match=r"Pool\.trajectories must be at least 3"):
            Pool(trajectories=2, steps=2).draw(teacher, adapter, runs.batch(SEEDS, PRESERVED))
        answered = Pool(trajectories=3, steps=2).draw(teacher, adapter, runs.batch(SEEDS, PRESERVED))
        assert torch.equal(torch.isin(answered.question, teacher.kept), torch.tensor(PRESERVED))

    def test_the_identity_is_rolled_out_on_one_side(
        self, shared: DiffusionBackbone, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Since the other is the same: half of the trajectories, as many different states."""
        costs = []
        for _ in range(2):
            teacher, pool = Teacher(shared, runs.HAPPY, adapter), Pool(trajectories=4, steps=3, kept=None)
            counts = runs.count_rows(shared, monkeypatch)
            pool.draw(teacher, adapter, runs.batch(SEEDS))
            assert sum(counts) == teacher.evaluations
            costs.append(teacher.evaluations)
            for name, parameter in adapter._named_factors():
                if name.endswith(".B"):
                    parameter.data.zero_()
        assert costs == [48, 24]

    @pytest.mark.parametrize("kept", [1, 2])
    def test_keeps_some_of_each_trajectory_s_states(
        self, shared: DiffusionBackbone, adapter: Adapter, kept: int
    ) -> None:
        """At random depths, and asks about no others; they are states of the same trajectories."""
        teacher, filled = Teacher(shared, runs.HAPPY, adapter), {}
        for count in (kept, None):
            pool = Pool(trajectories=16, steps=4, kept=count)
            before = teacher.evaluations
            pool.draw(teacher, adapter, runs.batch(SEEDS))
            assert pool._contents is not None
            filled[count] = pool._contents.answered
            assert teacher.evaluations - before == 16 * 4 + 16 * (count or 4) * 3
        times = filled[kept].state["timestep"].tolist()
        assert len(times) == 16 * kept
        assert len(set(times)) == 4
        everything = filled[None].state["latents"]
        assert all((everything == x).flatten(1).all(1).any() for x in filled[kept].state["latents"])

    @pytest.mark.parametrize("wrong", [{"trajectories": 1}, {"steps": 0}, {"refresh": 0}, {"growth": 0.5}, {"kept": 0}])
    def test_what_cannot_be_is_an_error(self, wrong: dict[str, int]) -> None:
        with pytest.raises(SliderError, match=next(iter(wrong))):
            Pool(**wrong)

    def test_schedulers_that_ask_twice_a_step(self) -> None:
        """A trajectory's states are all that the model is asked about, and every call is counted."""
        model = UNetBackbone("tiny", scheduler="HeunDiscreteScheduler")
        model.use(tiny.stable_diffusion())
        adapter = Adapter(model, model.select_targets(["xattn"]), 2, 2.0)
        runs.randomize(adapter)
        counts, steps = runs.count_rows(model, pytest.MonkeyPatch()), 3
        teacher, pool = Teacher(model, runs.HAPPY, adapter), Pool(trajectories=2, steps=steps, kept=None)
        pool.draw(teacher, adapter, runs.batch(SEEDS))
        assert pool._contents is not None
        assert len(pool._contents.answered.question) == 2 * (2 * steps - 1)
        Rollout(steps=steps).draw(teacher, adapter, runs.batch(list(range(20))))
        assert sum(counts) == teacher.evaluations
        times = Rollout(steps=1, guidance=1.0).draw(teacher, adapter, runs.batch(SEEDS)).state["timestep"]
        assert len(set(times.tolist())) == 1, "one step, and the last one of Heun asks once"

    def test_noise_on_the_way_is_each_trajectory_s_own(self) -> None:
        """A answered does not depend on the global state of chance, and a rollout's row not on the others."""
        model = UNetBackbone("tiny", scheduler="EulerAncestralDiscreteScheduler")
        model.use(tiny.stable_diffusion())
        adapter = Adapter(model, model.select_targets(["xattn"]), 2, 2.0)
        runs.randomize(adapter)
        teacher, items = Teacher(model, runs.HAPPY, adapter), runs.batch(SEEDS)
        for make in (lambda: Pool(trajectories=4, steps=3), lambda: Rollout(steps=4)):
            one = make().draw(teacher, adapter, items)
            torch.manual_seed(9)
            assert same(one, make().draw(teacher, adapter, items))
        alone = Rollout(steps=4).draw(teacher, adapter, runs.batch(SEEDS[2:3]))
        torch.testing.assert_close(alone.state["latents"], one.state["latents"][2:3], rtol=1e-4, atol=1e-4)
