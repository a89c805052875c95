"""What a trajectory follows: a prediction, or one guided away from the empty prompt's."""

from collections.abc import Callable

import torch
from torch import Tensor

from sliders.backbones.base import AbstractBackbone
from sliders.batch import TensorBatch

Predictor = Callable[[TensorBatch], Tensor]
"""From a state to the prediction for it, ``[n, ...]``."""


def guided(backbone: AbstractBackbone, prompt: TensorBatch, empty: TensorBatch, guidance: float) -> Predictor:
    """Classifier-free guidance (Ho & Salimans 2022): ``y(empty) + guidance (y(prompt) - y(empty))``, in one call.

    With ``guidance`` 1 it is the plain prediction, and the empty half is not computed; so it is of a model that takes
    guidance as an input.
    """
    if guidance == 1 or getattr(backbone, "takes_guidance", False):
        return lambda state: backbone.predict(state, prompt)

    both = {name: torch.cat([empty[name], prompt[name]]) for name in prompt}

    def predict(state: TensorBatch) -> Tensor:
        doubled = {name: torch.cat([value, value]) for name, value in state.items()}
        without, with_prompt = backbone.predict(doubled, both).chunk(2)
        return without + guidance * (with_prompt - without)

    return predict
