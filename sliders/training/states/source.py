"""What gives the states that a slider is trained on, and what the frozen model says of them."""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor

from sliders.backbones.base import AbstractBackbone, of_class
from sliders.batch import TensorBatch, take
from sliders.errors import SliderError
from sliders.runtime.adapter import Adapter
from sliders.teacher.teacher import Teacher
from sliders.training.data import StepBatch

Model = TypeVar("Model", bound=AbstractBackbone)


@dataclass(frozen=True)
class AnsweredStates:
    """States and what the frozen model says of them.

    Args:
        state: a row for each item of the step.
        question: which of the teacher's questions each row asks, int64 ``[n]``.
        base: the teacher's prediction of the target prompt, ``[n, ...]``.
        direction: the direction to move it along, ``[n, ...]``.
        weight: how much each position of a prediction counts; all the same if None.
    """

    state: TensorBatch
    question: Tensor
    base: Tensor
    direction: Tensor
    weight: Tensor | None = None

    def rows(self, index: Tensor) -> "AnsweredStates":
        """Of these rows alone."""
        return AnsweredStates(take(self.state, index), self.question[index], **take(self.answers(), index))

    def answers(self) -> TensorBatch:
        """What `Prediction` needs of it beside the student's words."""
        said = {"base": self.base, "direction": self.direction}
        return said if self.weight is None else said | {"weight": self.weight}


class StateSource(ABC, Generic[Model]):
    """Gives states with their answers for every step.

    What it draws is a function of the batch's seeds and of its own `state_dict`, so that a resumed run sees the same
    states as one that was not interrupted.
    """

    of: ClassVar[type[AbstractBackbone]] = AbstractBackbone
    """The models that it is made for: the class that stands for ``Model``."""

    def model(self, backbone: AbstractBackbone) -> Model:
        """A model, if it is one that the source is made for.

        Raises:
            SliderError: it is another.
        """
        who = f"model.states is {type(self).__name__}, which is made for"
        return cast("Model", of_class(backbone, self.of, who, "choose states for that"))

    @abstractmethod
    def draw(self, teacher: Teacher, adapter: Adapter, batch: StepBatch) -> AnsweredStates:
        """A row for each of the batch's items."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""


def choose_question(teacher: Teacher, preserved: bool, rng: random.Random) -> int:
    """One of the questions to move, or to keep."""
    options = teacher.kept if preserved else teacher.moved
    if not len(options):
        raise SliderError("data.preserve_batch_size is above 0, but the concept has no prompts to preserve")
    return int(options[rng.randrange(len(options))])


@dataclass
class _Contents:
    """What a pool holds between two refreshes."""

    answered: AnsweredStates
    preserved: Tensor
    made_at: int
    adapter: dict[str, Tensor] = field(default_factory=dict)


class Pooled(StateSource[Model]):
    """Lessons made many at a time, with the teacher's answers, and kept; steps draw from them.

    A pool is made anew after ``refresh`` steps of the optimizer, never if that is None; each one is kept ``growth``
    times as long as the one before.
    """

    refresh: int | None
    growth: float = 1.0

    def __init__(self) -> None:
        self._contents: _Contents | None = None
        self._restored: tuple[int, dict[str, Tensor]] | None = None

    @abstractmethod
    def fill(self, teacher: Teacher, adapter: Adapter, batch: StepBatch, rng: random.Random) -> AnsweredStates:
        """New states; all that is random about them comes from ``rng`` and the adapter's weights."""

    @torch.no_grad()
    def draw(self, teacher: Teacher, adapter: Adapter, batch: StepBatch) -> AnsweredStates:
        if self._restored is not None:  # after a resume: fill with the weights that the pool was filled with
            made_at, weights = self._restored
            now = adapter.state()
            adapter.load_state(weights)
            self._contents = self._fill(teacher, adapter, batch, made_at)
            adapter.load_state(now)
            self._restored = None
        old = self._contents
        if old is None or batch.step >= self.kept_until(old.made_at):
            self._contents = old = self._fill(teacher, adapter, batch, batch.step)
        index = []
        for seed, preserved in zip(batch.seeds, batch.preserved.tolist(), strict=True):
            fitting = (old.preserved == preserved).nonzero()[:, 0]
            index.append(fitting[random.Random(seed).randrange(len(fitting))])
        return old.answered.rows(torch.stack(index))

    def kept_until(self, made_at: int) -> float:
        """The training step in which what was made in step ``made_at`` is made anew."""
        return math.inf if self.refresh is None else self.growth * made_at + self.refresh

    def _fill(self, teacher: Teacher, adapter: Adapter, batch: StepBatch, step: int) -> _Contents:
        answered = self.fill(teacher, adapter, batch, random.Random(f"{batch.seed}/pool/{step}"))
        return _Contents(answered, torch.isin(answered.question, teacher.kept), step, adapter.state())

    def state_dict(self) -> dict[str, Any]:
        if self._restored is not None:
            return {"made_at": self._restored[0], "adapter": self._restored[1]}
        if self._contents is None:
            return {}
        return {"made_at": self._contents.made_at, "adapter": self._contents.adapter}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            self._restored = (state["made_at"], dict(state["adapter"]))
