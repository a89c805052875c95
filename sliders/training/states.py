"""Where the states come from that a slider is trained on."""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor

from sliders.backbones.base import AbstractBackbone, of_class
from sliders.backbones.diffusion import DiffusionBackbone
from sliders.batch import TensorBatch, join, take
from sliders.errors import SliderError
from sliders.runtime.adapter import Adapter
from sliders.teacher.teacher import Teacher
from sliders.training.data import StepBatch

Model = TypeVar("Model", bound=AbstractBackbone)


@dataclass(frozen=True)
class Lesson:
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

    def rows(self, index: Tensor) -> "Lesson":
        """The lesson of these rows."""
        return Lesson(take(self.state, index), self.question[index], **take(self.answers(), index))

    def answers(self) -> TensorBatch:
        """What `Prediction` needs of it beside the student's words."""
        said = {"base": self.base, "direction": self.direction}
        return said if self.weight is None else said | {"weight": self.weight}


class StateSource(ABC, Generic[Model]):
    """Gives a lesson for every step.

    What it draws is a function of the batch's seeds and of its own `state_dict`, so that a resumed run sees the same
    lessons as one that was not interrupted.
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
    def draw(self, teacher: Teacher, adapter: Adapter, batch: StepBatch) -> Lesson:
        """A lesson with a row for each of the batch's items."""

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


class Rollout(StateSource[DiffusionBackbone]):
    """A fresh partial denoising in every step, with the slider on, as the paper has it.

    Each item starts from its own noise and walks to a random depth; its state is scored at the timestep at which it
    really is.

    Args:
        steps: of the full trajectory.
        guidance: of the rollout.
        signed: roll out at the dial's negative side for every second item; otherwise always at the positive side.
    """

    of = DiffusionBackbone

    def __init__(self, steps: int = 50, guidance: float = 3.0, signed: bool = True) -> None:
        if steps < 1:
            raise SliderError(f"Rollout.steps is {steps}; it must be at least 1")
        self.steps, self.guidance, self.signed = steps, guidance, signed

    @torch.no_grad()
    def draw(self, teacher: Teacher, adapter: Adapter, batch: StepBatch) -> Lesson:
        backbone = self.model(teacher.backbone)
        states, questions, calls = [], [], backbone.calls(self.steps)
        for row, (seed, preserved) in enumerate(zip(batch.seeds, batch.preserved.tolist(), strict=True)):
            rng = random.Random(seed)
            question = torch.tensor([choose_question(teacher, preserved, rng)])
            sign = rng.choice((1, -1)) if self.signed else 1
            depth = rng.randrange(calls)
            with adapter.dial(sign * batch.magnitudes[row : row + 1]):
                predict = teacher.follow(question, self.guidance)
                path = backbone.trajectory(predict, backbone.start([seed]), self.steps, [seed])
                states.append(next(state for k, state in enumerate(path) if k == depth))
            teacher.evaluations += depth * (1 if self.guidance == 1 else 2)
            questions.append(question)
        state, question = join(states), torch.cat(questions)
        return Lesson(state, question, *teacher.answer(state, question))


@dataclass
class _Contents:
    """What a pool holds between two refreshes."""

    lesson: Lesson
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
    def fill(self, teacher: Teacher, adapter: Adapter, batch: StepBatch, rng: random.Random) -> Lesson:
        """New lessons; all that is random about them comes from ``rng`` and the adapter's weights."""

    @torch.no_grad()
    def draw(self, teacher: Teacher, adapter: Adapter, batch: StepBatch) -> Lesson:
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
        return old.lesson.rows(torch.stack(index))

    def kept_until(self, made_at: int) -> float:
        """The training step in which what was made in step ``made_at`` is made anew."""
        return math.inf if self.refresh is None else self.growth * made_at + self.refresh

    def _fill(self, teacher: Teacher, adapter: Adapter, batch: StepBatch, step: int) -> _Contents:
        lesson = self.fill(teacher, adapter, batch, random.Random(f"{batch.seed}/pool/{step}"))
        return _Contents(lesson, torch.isin(lesson.question, teacher.kept), step, adapter.state())

    def state_dict(self) -> dict[str, Any]:
        if self._restored is not None:
            return {"made_at": self._restored[0], "adapter": self._restored[1]}
        if self._contents is None:
            return {}
        return {"made_at": self._contents.made_at, "adapter": self._contents.adapter}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            self._restored = (state["made_at"], dict(state["adapter"]))


class Pool(Pooled[DiffusionBackbone]):
    """Trajectories rolled out in one batch with the slider on at both signs; their states are kept.

    The teacher answers once for every state, when the pool is filled.  The pool is rolled out again, since states of
    the base alone train a weaker dial than states that the slider itself leads to: early, because the slider moves most
    at first, and then ever more seldom (with the defaults after 10, 40 and 130 steps).  Where a step has rows to
    preserve, every second pair of trajectories runs under a prompt to preserve.

    While the slider is still the identity, both signs lead along the same states, which are the base's, and one of them
    is rolled out for both; what is said of these states is the same for all sliders on this base.

    Args:
        trajectories: rolled out together; pairs share their noise and differ in the dial's sign.
        steps: of each trajectory.
        refresh: training steps from the first filling to the second.
        growth: by how much longer than the one before each filling is kept; 1 fills at an even interval.
        guidance: of the rollout.
        dial: largest magnitude of the dial during the rollout; each trajectory draws its own.
        kept: states of each trajectory that the teacher is asked about, at depths drawn at random, twice as many where
            one trajectory stands for a pair; None is all of them.
        chunk: rows the teacher is asked about in one call.
    """

    of = DiffusionBackbone

    def __init__(
        self, trajectories: int = 16, steps: int = 12, refresh: int = 10, growth: float = 3.0, guidance: float = 1.0,
        dial: float = 1.0, kept: int | None = 2, chunk: int = 64,
    ) -> None:  # fmt: skip
        super().__init__()
        if trajectories < 2 or steps < 1 or refresh < 1:
            raise SliderError("Pool: trajectories must be at least 2, steps and refresh at least 1")
        if kept is not None and kept < 1:
            raise SliderError(f"Pool.kept is {kept}; it must be at least 1")
        if not growth >= 1:
            raise SliderError(f"Pool.growth is {growth}; it must be at least 1")
        self.trajectories, self.steps, self.refresh, self.growth = trajectories, steps, refresh, growth
        self.guidance, self.dial, self.kept, self.chunk = guidance, dial, kept, chunk

    def fill(self, teacher: Teacher, adapter: Adapter, batch: StepBatch, rng: random.Random) -> Lesson:
        backbone, base_alone = self.model(teacher.backbone), adapter.is_identity()
        any_kept = bool(batch.preserved.any())
        if any_kept and self.trajectories < 3:
            raise SliderError("Pool.trajectories must be at least 3 where the concept has prompts to preserve")
        questions, dials, seeds = [], [], []
        for pair in range((self.trajectories + 1) // 2):
            seed, magnitude = rng.randrange(2**31), rng.uniform(0, self.dial)
            asked = choose_question(teacher, any_kept and pair % 2 == 1, rng)
            for dial in [0.0] if base_alone else [magnitude, -magnitude]:
                questions.append(asked)
                dials.append(dial)
                seeds.append(seed)
        question, count = torch.tensor(questions), len(questions)
        calls = backbone.calls(self.steps)

        def visit() -> TensorBatch:
            predict = teacher.follow(question, self.guidance)
            path = backbone.trajectory(predict, backbone.start(seeds), self.steps, seeds)
            teacher.evaluations += count * calls * (1 if self.guidance == 1 else 2)
            return join(list(path)[:-1])

        with nullcontext() if base_alone else adapter.dial(torch.tensor(dials)):
            how = f"visit {seeds} {self.steps} {self.guidance}"
            state = teacher.recall(how, (teacher.targets(question),), visit, lasting=base_alone)
        kept = calls if self.kept is None else min(self.kept * (1 + base_alone), calls)
        depths = [rng.sample(range(calls), kept) for _ in questions]
        index = torch.tensor(sorted(depth * count + k for k, drawn in enumerate(depths) for depth in drawn))
        state, question = take(state, index), question.repeat(calls)[index]
        return Lesson(state, question, *teacher.answer(state, question, self.chunk, lasting=base_alone))
