"""Where predictions are compared: states that the base visits, the same for every dial."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sliders.backbones.base import AbstractBackbone
from sliders.backbones.diffusion import DiffusionBackbone
from sliders.backbones.language.model import CausalLMBackbone
from sliders.batch import TensorBatch, join, take
from sliders.concept import BETWEEN, Concept
from sliders.evaluation.pictures.sampling import Sampling, Scene, visited
from sliders.evaluation.texts.sampling import TextSampling
from sliders.losses.erasure import AbstractLoss, ErasureLoss, HiddenStateLoss, LogProbabilityLoss, Prediction
from sliders.runtime.dials import Dials
from sliders.teacher.teacher import Teacher

_LOSSES: Mapping[str, type[AbstractLoss]] = {
    loss.space: loss for loss in (ErasureLoss, LogProbabilityLoss, HiddenStateLoss)
}


@dataclass(frozen=True)
class BaseStates:
    """States of the base, and what the base says there.

    Args:
        backbone: the model.
        state: a row for each state.
        prompts: of each row.
        scene: which scene a row belongs to, int64 ``[n]``; scenes are what intervals are over.
        contexts: what stands after a concept's prompts, where concepts are asked about themselves.
        context: which of them belongs to a row, int64 ``[n]``.
        base: the base's predictions ``[n, ...]``.
        weight: how much each entry of a prediction counts, broadcastable to them.
        batch: rows at a time.
    """

    backbone: AbstractBackbone
    state: TensorBatch
    prompts: list[str]
    scene: Tensor
    contexts: list[str]
    context: Tensor
    base: Tensor
    weight: Tensor
    batch: int

    @property
    def scenes(self) -> int:
        """How many there are."""
        return int(self.scene.max()) + 1

    @torch.no_grad()
    def predict(self) -> Tensor:
        """Predictions ``[n, ...]`` with whatever is attached."""
        distinct = list(dict.fromkeys(self.prompts))
        conditioning = self.backbone.encode(distinct)
        asked = torch.tensor([distinct.index(prompt) for prompt in self.prompts])
        parts = torch.arange(len(asked)).split(self.batch)
        answers = [self.backbone.predict(take(self.state, rows), take(conditioning, asked[rows])) for rows in parts]
        return torch.cat(answers).float().cpu()

    def squared(self, change: Tensor) -> Tensor:
        """The weighted squared size of a change of predictions, for each scene: ``[scenes]``, float64."""
        each = (change.double().square() * self.weight).flatten(1).sum(1)
        return torch.zeros(self.scenes, dtype=torch.float64).index_add(0, self.scene, each)

    def oracle(self, amounts: Sequence[tuple[Concept, float]]) -> Tensor:
        """What the formula itself changes, without sliders: all concepts' directions added, ``[n, ...]``.

        Args:
            amounts: each concept with its ``s * eta``.
        """
        direction = torch.zeros_like(self.base)
        for concept, amount in amounts:
            asked = replace(concept.worded(self.backbone.modality), contexts=self.contexts, preserve=None)
            _, own = Teacher(self.backbone, asked).answer(self.state, self.context, self.batch, with_base=False)
            direction += amount * own.float().cpu()
        said = Prediction(self.base, self.base, direction, torch.ones(len(self.base)))
        return _LOSSES[self.backbone.space](eta=1.0).target(said) - self.base


class Behaviour:
    """What positions of attached dials change at these states; each is asked once."""

    def __init__(self, states: BaseStates, dials: Dials) -> None:
        self.states, self.dials = states, dials
        self._known: dict[frozenset[tuple[str, float]], Tensor] = {}

    def change(self, positions: Mapping[str, float]) -> Tensor:
        """``f(positions) - f(0)``, ``[n, ...]``; dials that are not named stand at 0."""
        key = frozenset((name, float(position)) for name, position in positions.items() if position)
        if key not in self._known:
            everywhere = {name: dict(key).get(name, 0.0) for name in self.dials.names}
            with self.dials.turned(everywhere):
                self._known[key] = self.states.predict() - self.states.base
        return self._known[key]


def _base_states(
    backbone: AbstractBackbone, state: TensorBatch, prompts: list[str], scene: Tensor, contexts: list[str],
    context: Tensor, batch: int,
) -> BaseStates:  # fmt: skip
    nothing = torch.zeros(())
    states = BaseStates(backbone, state, prompts, scene, contexts, context, nothing, nothing, batch)
    base = states.predict()
    weight = backbone.weight(state)
    said = Prediction(base, base, base, torch.ones(len(base)), None if weight is None else weight.cpu())
    return replace(states, base=base, weight=_LOSSES[backbone.space]().focus(said).double())


@torch.no_grad()
def picture_states(backbone: DiffusionBackbone, wanted: Sequence[Scene], how: Sampling | None = None) -> BaseStates:
    """A third of the states that the base visits on its way to these scenes."""
    how = how or Sampling()
    state, scene = visited(backbone, wanted, how)
    prompts = [wanted[i].prompt for i in scene.tolist()]
    return _base_states(backbone, state, prompts, scene, [""], torch.zeros_like(scene), how.batch)


@torch.no_grad()
def text_states(
    backbone: CausalLMBackbone, target: str, messages: Sequence[str], how: TextSampling | None = None
) -> BaseStates:
    """The base's own responses to these messages under one target; a token counts by its base probability."""
    how = how or TextSampling()
    prompts = [target + BETWEEN + message for message in messages]
    rows = torch.arange(len(prompts))
    conditioning = backbone.encode(prompts)
    said = []
    for part in rows.split(how.batch):
        asked = take(conditioning, part)
        seeds = [how.first_seed + i for i in part.tolist()]
        said.append(backbone.complete(backbone.respond(asked, seeds, how.tokens, how.temperature), asked))
    return _base_states(backbone, join(said), prompts, rows, list(messages), rows, min(how.batch, 8))
