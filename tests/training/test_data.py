"""The items of a step are a function of the run's seed and the step."""

from itertools import islice, pairwise
from typing import Any

import lightning as L
import pytest
import torch

from sliders.concept import Concept
from sliders.errors import SliderError
from sliders.training.data import ConceptData, StepBatch, StepLoader
from tests.training.runs import HAPPY, RICH


def plain(batch: StepBatch) -> tuple[Any, ...]:
    """For comparisons."""
    return batch.step, batch.seed, batch.seeds, batch.magnitudes.tolist(), batch.preserved.tolist()


def rich(**changes: Any) -> ConceptData:
    """Data of a concept with prompts to preserve."""
    return ConceptData(RICH, **{"batch_size": 4, "preserve_batch_size": 2, **changes})


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    assert plain(rich().step_batch(5)) == plain(rich().step_batch(5))
    torch.manual_seed(1)
    data = rich()
    data.step_batch(9)  # whatever was asked for before
    assert plain(data.step_batch(5)) == plain(rich().step_batch(5))


def test_other_steps_and_seeds_give_other_items() -> None:
    seeds = [seed for run in (0, 1) for step in range(20) for seed in rich(seed=run).step_batch(step).seeds]
    assert len(set(seeds)) == len(seeds) == 2 * 20 * 6


def test_a_batch_says_what_it_is() -> None:
    batch = rich(seed=3).step_batch(7)
    assert (batch.step, batch.seed) == (7, 3)
    assert batch.preserved.tolist() == [False] * 4 + [True] * 2
    assert batch.magnitudes.shape == (6,)


def test_magnitudes_fill_their_range() -> None:
    drawn = torch.cat([rich(magnitude=(0.5, 2.0)).step_batch(step).magnitudes for step in range(200)])
    assert drawn.min() >= 0.5
    assert drawn.max() <= 2.0
    counts = torch.histc(drawn, 3, 0.5, 2.0) / len(drawn)
    assert (counts - 1 / 3).abs().max() < 0.05
    assert rich(magnitude=(1.0, 1.0)).step_batch(0).magnitudes.tolist() == [1.0] * 6


@pytest.mark.parametrize("world", [2, 3])
def test_devices_share_the_batch_of_one_device(world: int) -> None:
    """Together they have the items of one device with all the rows, each once."""
    one = rich(batch_size=4 * world, preserve_batch_size=2 * world).step_batch(3)
    parts = [rich().step_batch(3, rank, world) for rank in range(world)]
    for kept in (False, True):
        whole = [
            item
            for item, p in zip(zip(one.seeds, one.magnitudes.tolist(), strict=True), one.preserved, strict=True)
            if p == kept
        ]
        shared = [
            item
            for part in parts
            for item, p in zip(zip(part.seeds, part.magnitudes.tolist(), strict=True), part.preserved, strict=True)
            if p == kept
        ]
        assert shared == whole


def test_loader_gives_every_step_once() -> None:
    data = rich()
    batches = list(islice(StepLoader(data, 5), 9))
    assert [plain(batch) for batch in batches] == [plain(data.step_batch(step)) for step in range(5)]
    assert len(StepLoader(data, 5)) == 5


def test_loader_is_for_its_rank() -> None:
    assert plain(next(iter(StepLoader(rich(), 5, rank=1, world=2)))) == plain(rich().step_batch(0, 1, 2))


@pytest.mark.parametrize("taken", [0, 1, 4, 5])
def test_loader_goes_on_where_a_checkpoint_was_written(taken: int) -> None:
    """The state during a step is that after it, since its batch has been used."""
    first = StepLoader(rich(), 5)
    seen = [next(stream).step for stream in [iter(first)] for _ in range(taken)]
    second = StepLoader(rich(), 5)
    second.load_state_dict(first.state_dict())
    assert seen + [batch.step for batch in islice(second, 9)] == list(range(5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "data.batch_size"),
        ({"magnitude": (2.0, 1.0)}, "data.magnitude"),
        ({"magnitude": (0.0, 1.0)}, "data.magnitude"),
        ({"magnitude": (-1.0, 1.0)}, "data.magnitude"),
        ({"signs": []}, "data.signs"),
        ({"signs": [1, 2]}, "data.signs"),
        ({"signs": [0]}, "data.signs"),
        ({"preserve_batch_size": 2}, "data.preserve_batch_size"),
        ({"preserve_batch_size": -1}, "data.preserve_batch_size"),
    ],
)
def test_what_cannot_be_is_an_error_that_names_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SliderError, match=message):
        ConceptData(HAPPY, **changes)


def test_prompts_to_preserve_that_would_not_act_are_an_error() -> None:
    with pytest.raises(SliderError, match="preserve_batch_size"):
        ConceptData(RICH)


def test_both_signs_unless_told_otherwise() -> None:
    assert sorted(ConceptData(HAPPY).signs) == [-1, 1]
    assert ConceptData(HAPPY, signs=[1]).signs == [1]


def test_the_trainer_says_how_long_a_run_is() -> None:
    data = ConceptData(HAPPY)
    with pytest.raises(SliderError, match="max_steps"):
        data.train_dataloader()
    quiet = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    data.trainer = L.Trainer(max_steps=-1, max_epochs=1, **quiet)
    with pytest.raises(SliderError, match="max_steps"):
        data.train_dataloader()
    data.trainer = L.Trainer(max_steps=7, **quiet)
    assert [batch.step for batch in data.train_dataloader()] == list(range(7))


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    short, long = ([plain(batch) for batch in StepLoader(rich(), steps)] for steps in (3, 6))
    assert long[:3] == short
    assert all(one != other for one, other in pairwise(long))


def test_more_rows_leave_the_first_ones_as_they_are() -> None:
    small, large = (ConceptData(HAPPY, batch_size=size).step_batch(2) for size in (2, 5))
    assert large.seeds[:2] == small.seeds


def test_concept_stays_as_it_is() -> None:
    concept = Concept("happy", "a person", ["a happy person"], ["a sad person"])
    assert ConceptData(concept).concept is concept
