"""Where the states of a diffusion model come from: its own trajectories, begun anew every step or kept in a pool."""

import random
from contextlib import nullcontext

import torch

from sliders.backbones.diffusion import DiffusionBackbone
from sliders.batch import TensorBatch, join, take
from sliders.errors import SliderError
from sliders.runtime.adapter import Adapter
from sliders.teacher.teacher import Teacher
from sliders.training.data import StepBatch
from sliders.training.states.source import AnsweredStates, Pooled, StateSource, choose_question


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
    def draw(self, teacher: Teacher, adapter: Adapter, batch: StepBatch) -> AnsweredStates:
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
        return AnsweredStates(state, question, *teacher.answer(state, question))


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

    def fill(self, teacher: Teacher, adapter: Adapter, batch: StepBatch, rng: random.Random) -> AnsweredStates:
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
        return AnsweredStates(state, question, *teacher.answer(state, question, self.chunk, lasting=base_alone))
