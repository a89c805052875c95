"""Sampling along the directions themselves, without any slider."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sliders.backbones.base import AbstractBackbone
from sliders.backbones.guidance import Predictor, guided
from sliders.batch import TensorBatch, widened
from sliders.concept import Concept
from sliders.teacher.teacher import Teacher


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
    from sliders.formula import steer

    plain = guided(backbone, prompt, empty, guidance)
    teachers = [(Teacher(backbone, concept), amount) for concept, amount in concepts]

    def predict(state: TensorBatch) -> Tensor:
        said = plain(state)
        out = widened(said)
        for teacher, amount in teachers:
            _, direction = teacher.answer(state, torch.zeros(len(out), dtype=torch.long), with_base=False)
            out = steer(out, direction, amount)
        return out.to(said.dtype)

    return predict
