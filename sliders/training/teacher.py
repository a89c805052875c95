"""What the frozen model is asked, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sliders.attach import Adapter
from sliders.backbones.base import AbstractBackbone, Predictor, guided
from sliders.batch import TensorBatch, take
from sliders.concept import Concept


@dataclass(frozen=True)
class Question:
    """One prompt to move and what to move it along, as rows of the teacher's prompts; without these, one to keep."""

    target: int
    positives: tuple[int, ...]
    negatives: tuple[int, ...]


class Teacher:
    """The same weights with the slider off, asked about one concept.

    All prompts are encoded once.  A question is a target prompt with the positives and negatives that give its
    direction; the concept's contexts make one question each, and so does every prompt to preserve.
    """

    def __init__(self, backbone: AbstractBackbone, concept: Concept, adapter: Adapter | None = None) -> None:
        self.backbone, self.adapter = backbone, adapter
        self.prompts: list[str] = []
        moved = [
            Question(self._row(t), tuple(map(self._row, p)), tuple(map(self._row, n)))
            for t, p, n in concept.in_contexts()
        ]
        kept = [Question(self._row(prompt), (), ()) for prompt in concept.preserve or ()]
        self.questions = (*moved, *kept)
        self.moved = torch.arange(len(moved))
        self.kept = torch.arange(len(moved), len(self.questions))
        self._empty = self._row("")
        with torch.no_grad():
            self.conditioning = backbone.encode(self.prompts)
        self.evaluations = 0

    def _row(self, prompt: str) -> int:
        if prompt not in self.prompts:
            self.prompts.append(prompt)
        return self.prompts.index(prompt)

    def targets(self, questions: Tensor) -> TensorBatch:
        """The target prompts' conditioning for these questions, a row each.

        Where the slider itself changes the conditioning (it is on a text encoder), the prompts are encoded anew, with
        gradients and at the dial that is set; otherwise this is a look-up.
        """
        index = [self.questions[q].target for q in questions.tolist()]
        if self.adapter is not None and self.adapter.touches(self.backbone.conditioning_modules):
            return self.backbone.encode([self.prompts[i] for i in index])
        return take(self.conditioning, torch.tensor(index))

    def follow(self, questions: Tensor, guidance: float) -> Predictor:
        """A predictor for trajectories: the target prompts with classifier-free guidance, whatever is attached."""
        if guidance == 1:
            prompt = self.targets(questions)
            return lambda state: self.backbone.predict(state, prompt)
        empty = take(self.conditioning, torch.full((len(questions),), self._empty))
        return guided(self.backbone, self.targets(questions), empty, guidance)

    @torch.no_grad()
    def answer(
        self, state: TensorBatch, questions: Tensor, chunk: int = 64, with_base: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The base prediction and the direction at each state, ``[n, ...]`` both.

        Every prediction that is needed is one row of a batch, and nothing else is computed: 1 + positives + negatives
        rows for a question with a direction, 1 for a prompt to preserve.  Without ``with_base`` the target prompts are
        not asked, and the first tensor is 0.
        """
        asked: list[tuple[int, int, float, float]] = []  # state row, prompt row, share in base, share in direction
        for row, q in enumerate(questions.tolist()):
            question = self.questions[q]
            if with_base:
                asked.append((row, question.target, 1.0, 0.0))
            asked += [(row, p, 0.0, 1 / len(question.positives)) for p in question.positives]
            asked += [(row, n, 0.0, -1 / len(question.negatives)) for n in question.negatives]
        rows, prompts = (torch.tensor(c) for c in zip(*[(a[0], a[1]) for a in asked], strict=True))
        shares = torch.tensor([a[2:] for a in asked])
        chunks = zip(rows.split(chunk), prompts.split(chunk), strict=True)
        answers = torch.cat([self._ask(state, r, p) for r, p in chunks])
        self.evaluations += len(asked)
        device = answers.device
        share = shares.to(device).view(-1, 2, *[1] * (answers.dim() - 1)).to(answers.dtype)
        sums = answers.new_zeros(len(questions), 2, *answers.shape[1:])
        sums.index_add_(0, rows.to(device), answers[:, None] * share)
        return sums[:, 0], sums[:, 1]

    def _ask(self, state: TensorBatch, rows: Tensor, prompts: Tensor) -> Tensor:
        return self.backbone.predict(take(state, rows), take(self.conditioning, prompts))


def oracle(
    backbone: AbstractBackbone, concepts: Sequence[tuple[Concept, Tensor]], prompt: TensorBatch, empty: TensorBatch,
    guidance: float,
) -> Predictor:  # fmt: skip
    """Sampling along the directions themselves, without any slider.

    ``y0(prompt) + sum_i s_i eta_i [y0(positive_i) - y0(negative_i)]``, with guidance for the prompt: what sliders that
    had learnt their targets perfectly would do, alone or together.

    Args:
        concepts: each with the amount ``s * eta`` of every row, ``[n]``.
        prompt: the conditioning of each row; its own number of rows is n.
        empty: the empty prompt's, n rows.
        guidance: classifier-free guidance scale.
    """
    from sliders.losses.erasure import steer

    plain = guided(backbone, prompt, empty, guidance)
    teachers = [(Teacher(backbone, concept), amount) for concept, amount in concepts]

    def predict(state: TensorBatch) -> Tensor:
        out = plain(state)
        for teacher, amount in teachers:
            _, direction = teacher.answer(state, torch.zeros(len(out), dtype=torch.long), with_base=False)
            out = steer(out, direction, amount)
        return out

    return predict
