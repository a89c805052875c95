"""What one slider's training has asked the base, the next one's need not ask again; and nothing else changes."""

from collections.abc import Callable

import pytest
import torch

from sliders.backbones.base import AbstractBackbone
from sliders.batch import TensorBatch
from sliders.concept import Concept
from sliders.runtime.adapter import Adapter
from sliders.teacher.answers import AnswerCache
from sliders.teacher.teacher import Teacher
from sliders.training.states import AnsweredStates, Pool
from tests.training import runs

MANY = Concept("many", "a person", ["a happy person"], ["a sad person", "a person with a hat"])
SWAPPED = Concept("swapped", "a person", ["a person with a hat"], ["a happy person", "a dog"])
"""It shares the target, a positive that is a negative here, and a negative that is a positive."""


def numbers(*values: float) -> TensorBatch:
    return {"x": torch.tensor(values, dtype=torch.float32)}


def once(answer: TensorBatch) -> Callable[[], TensorBatch]:
    """A model that may be asked only once."""
    left = [answer]
    return lambda: left.pop()


class TestMemory:
    """By itself."""

    def test_a_call_is_known_by_all_of_its_content(self) -> None:
        answers, asked = AnswerCache(), numbers(1, 2)
        make = once(numbers(5))
        assert torch.equal(answers.recall("a", (asked,), make)["x"], torch.tensor([5.0]))
        assert torch.equal(answers.recall("a", (numbers(1, 2),), make)["x"], torch.tensor([5.0]))
        others = [
            ("b", (asked,)),
            ("a", (numbers(1, 3),)),
            ("a", (numbers(1, 2, 0),)),
            ("a", ({"y": asked["x"]},)),
            ("a", ({"x": asked["x"].double()},)),
            ("a", ({"x": asked["x"][:, None]},)),
            ("a", (asked, asked)),
        ]
        for k, (what, batches) in enumerate(others):
            assert float(answers.recall(what, batches, lambda k=k: numbers(k))["x"]) == k

    def test_what_was_not_asked_for_the_longest_time_goes_first(self) -> None:
        answers = AnswerCache(room=8)
        for what in ("a", "b", "a", "c"):
            answers.recall(what, (), lambda: numbers(1))
        assert answers.size == 8
        answers.recall("a", (), lambda: pytest.fail("it was asked for just now"))
        assert float(answers.recall("b", (), lambda: numbers(2))["x"]) == 2


def filled(
    model: AbstractBackbone, concept: Concept, answers: AnswerCache | None, move: bool = False
) -> tuple[AnsweredStates, int]:
    """All that a pool's filling holds, and how often the model was asked."""
    with Adapter(model, model.select_targets(["xattn"]), 2, 2.0) as adapter:
        if move:
            runs.randomize(adapter)
        teacher, pool = Teacher(model, concept, adapter, answers), Pool(trajectories=4, steps=3, kept=4)
        pool.draw(teacher, adapter, runs.batch([1, 2]))
        assert pool._contents is not None
        return pool._contents.answered, teacher.evaluations


def same(one: AnsweredStates, other: AnsweredStates) -> bool:
    """Bit by bit."""
    return torch.equal(one.base, other.base) and torch.equal(one.direction, other.direction)


def test_another_slider_is_told_what_it_would_have_asked(shared: AbstractBackbone) -> None:
    """2 trajectories of 3 states; with the base's own states, a prompt that the other has asked costs nothing."""
    answers = AnswerCache()
    for concept, cost in ((MANY, 6 + 6 * 4), (MANY, 0), (SWAPPED, 6), (Concept("one", "a dog", ["a"], [""]), 6 * 4)):
        told, asked = filled(shared, concept, answers)
        assert asked == cost, concept.name
        assert same(told, filled(shared, concept, None)[0]), concept.name


def test_states_of_a_slider_are_its_own(shared: AbstractBackbone) -> None:
    """Nothing of them is kept, nor recalled."""
    answers = AnswerCache()
    filled(shared, MANY, answers)
    size = answers.size
    told, asked = filled(shared, MANY, answers, move=True)
    assert asked == 12 + 12 * 4
    assert answers.size == size
    assert same(told, filled(shared, MANY, None, move=True)[0])


def test_prompts_are_encoded_once_for_all(shared: AbstractBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, encoded, encode = AnswerCache(), [], shared.encode
    monkeypatch.setattr(shared, "encode", lambda prompts: (encoded.extend(prompts), encode(prompts))[1])
    teachers = [Teacher(shared, concept, None, answers) for concept in (MANY, SWAPPED)]
    assert len(encoded) == len(set(encoded)) == len({p for t in teachers for p in t.prompts})
    alone = Teacher(shared, SWAPPED)
    assert runs.equal(alone.conditioning, teachers[1].conditioning)
