"""Where the states of a language model come from: responses, sampled or given."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch

from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.language.sampling import PromptSteering
from sliders.batch import TensorBatch, join, rows, take
from sliders.concept import read_prompts
from sliders.errors import SliderError
from sliders.runtime.adapter import Adapter
from sliders.teacher.teacher import Teacher
from sliders.training.data import StepBatch
from sliders.training.states.source import AnsweredStates, Pooled, choose_question

Voice = Literal["target", "positive", "negative", "slider", "steered"]
"""Who says a response: the model under one of the concept's instructions, or under the target with the slider on, or
the formula itself at sampling time (the diverted responses on which ELM trains fluency)."""


def steering(teacher: Teacher, questions: Sequence[int], amount: float, plausible: float) -> PromptSteering:
    """The formula at sampling time for these questions, which have as many positives and negatives each."""

    def column(prompts: Sequence[int]) -> TensorBatch:
        return take(teacher.conditioning, torch.tensor(prompts))

    asked = [teacher.questions[q] for q in questions]
    return PromptSteering(
        [column(c) for c in zip(*(q.positives for q in asked), strict=True)],
        [column(c) for c in zip(*(q.negatives for q in asked), strict=True)],
        torch.full((len(asked),), amount, device=teacher.backbone.device),
        plausible,
    )


class Responses(Pooled[CausalLMBackbone]):
    """Responses that the model samples itself, responses of a file, or both, with the teacher's answers.

    Sampled ones go through the ``voices`` in turn, each to a message drawn from the concept's contexts, so that the
    states are those of both ends of the dial and of its middle.  Where a step has rows to preserve, every second
    response is to a prompt to preserve, said by the target.

    Args:
        sampled: responses to sample.
        tokens: the longest a response can be.
        voices: whose they are; ``slider`` is the slider's own at dials drawn from -``dial`` to ``dial``, ``steered``
            that of the formula at ``steer_by``.
        dial: see ``voices``.
        steer_by: dial times eta of the voice ``steered``.
        plausible: of that voice, see `PromptSteering`; give it what the loss has.
        temperature: of the sampling.
        file: a text file with a response a line; each is asked about under a message drawn at random.
        refresh: training steps between two fillings; without it the first one is kept.
        chunk: rows the teacher is asked about in one call.
    """

    of = CausalLMBackbone

    def __init__(
        self,
        sampled: int = 48,
        tokens: int = 40,
        voices: Sequence[Voice] = ("target", "positive", "negative"),
        dial: float = 1.0,
        steer_by: float = 1.0,
        plausible: float = 0.05,
        temperature: float = 0.8,
        file: Path | None = None,
        refresh: int | None = None,
        chunk: int = 12,
    ) -> None:
        super().__init__()
        if sampled < 0 or tokens < 1 or (refresh is not None and refresh < 1):
            raise SliderError("Responses: sampled must not be below 0, tokens and refresh at least 1")
        if sampled < 1 and file is None:
            raise SliderError("Responses: sampled is 0 and there is no file, so that there are no states")
        if not voices and sampled:
            raise SliderError("Responses.voices is empty; name at least one")
        if wrong := [voice for voice in voices if voice not in get_args(Voice)]:
            raise SliderError(f"Responses.voices has {wrong[0]!r}; there are {', '.join(get_args(Voice))}")
        self.sampled, self.tokens, self.voices, self.dial = sampled, tokens, list(voices), dial
        self.steer_by, self.plausible = steer_by, plausible
        self.temperature, self.file, self.refresh, self.chunk = temperature, file, refresh, chunk

    def fill(self, teacher: Teacher, adapter: Adapter, batch: StepBatch, rng: random.Random) -> AnsweredStates:
        backbone = self.model(teacher.backbone)
        any_kept = bool(batch.preserved.any())
        states: list[TensorBatch] = []
        questions: list[int] = []
        if self.sampled:
            asked = [choose_question(teacher, any_kept and k % 2 == 1, rng) for k in range(self.sampled)]
            states.append(self._sample(teacher, adapter, asked, any_kept, rng))
            questions += asked
        if self.file is not None:
            lines = read_prompts(self.file)
            states.append(backbone.responses(lines, self.tokens, end=False))
            questions += [choose_question(teacher, any_kept and k % 2 == 1, rng) for k in range(len(lines))]
        state, question = join(states), torch.tensor(questions)
        if any_kept and not torch.isin(question, teacher.kept).any():
            raise SliderError("Responses: of one response none can be to a prompt to preserve; sample at least 2")
        lasting = self._lasting(adapter)
        parts = []
        for r in torch.arange(len(question)).split(self.chunk):
            asked = take(state, r), teacher.targets(question[r])

            def complete(asked: tuple[TensorBatch, TensorBatch] = asked) -> TensorBatch:
                teacher.evaluations += 0 if backbone.hidden_layers else rows(asked[0])  # these need no support
                return backbone.complete(*asked)

            parts.append(teacher.recall("complete", asked, complete, lasting))
        state = join(parts)
        base, direction = teacher.answer(state, question, self.chunk, lasting=lasting)
        return AnsweredStates(state, question, base, direction, backbone.weight(state))

    def _lasting(self, adapter: Adapter) -> bool:
        """Whether the responses are the base's alone, so that other sliders may ask about the same."""
        return "slider" not in self.voices or adapter.is_identity()

    def _sample(
        self, teacher: Teacher, adapter: Adapter, asked: Sequence[int], any_kept: bool, rng: random.Random
    ) -> TensorBatch:
        """Responses to these questions, in the voices' turn; those of the steered voice apart, which ask more."""
        backbone = self.model(teacher.backbone)
        voices = [self.voices[k // (1 + any_kept) % len(self.voices)] for k in range(len(asked))]
        voices = [v if teacher.questions[q].positives else "target" for v, q in zip(voices, asked, strict=True)]
        prompts, dials, seeds = [], [], []
        for q, voice in zip(asked, voices, strict=True):
            question = teacher.questions[q]
            said_by = {"positive": question.positives, "negative": question.negatives}.get(voice, (question.target,))
            prompts.append(said_by[rng.randrange(len(said_by))])
            dials.append(rng.uniform(-self.dial, self.dial) if voice == "slider" else 0.0)
            seeds.append(rng.randrange(2**31))
        conditioning = take(teacher.conditioning, torch.tensor(prompts))
        steered = torch.tensor([voice == "steered" for voice in voices])
        parts: list[TensorBatch] = []
        groups = [((~steered).nonzero()[:, 0], False), (steered.nonzero()[:, 0], True)]
        for index, on in groups:
            if len(index):
                numbers = index.tolist()
                said_to, chosen = take(conditioning, index), [seeds[k] for k in numbers]
                ends = steering(teacher, [asked[k] for k in numbers], self.steer_by, self.plausible) if on else None

                def respond(
                    said_to: TensorBatch = said_to, chosen: list[int] = chosen, ends: PromptSteering | None = ends
                ) -> TensorBatch:
                    return backbone.respond(said_to, chosen, self.tokens, self.temperature, ends)

                how = f"respond {chosen} {self.tokens} {self.temperature}" + (f" {self.steer_by} {self.plausible}" * on)
                batches = (said_to, *(ends.conditionings if ends else ()))
                with adapter.dial(torch.tensor(dials)[index]):
                    parts.append(teacher.recall(how, batches, respond, self._lasting(adapter)))
        order = torch.cat([index for index, _ in groups]).argsort()
        return take(join(parts), order)
