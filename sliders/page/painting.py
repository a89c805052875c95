"""Pictures whose dials may stand elsewhere in every row of a batch and at every step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sliders.algebra.slider import Piecewise
from sliders.backbones.diffusion import DiffusionBackbone
from sliders.backbones.guidance import Predictor, guided
from sliders.batch import TensorBatch
from sliders.evaluation.pictures.sampling import Sampling, Scene, conditionings, finish
from sliders.runtime.attach import attach
from sliders.runtime.dials import Dials

Positions = Mapping[str, float]
"""Where dials stand; those that are not named stand at 0."""

Progress = Callable[[int, int, str], None]
"""Is told how many parts of how many are done, and of what; may raise to end it."""


def quiet(done: int, total: int, what: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Row:
    """One picture.

    Args:
        scene: its prompt and seed.
        positions: where the dials stand.
        during: the steps at which they do; None for all.
        otherwise: where they stand at the other steps.
    """

    scene: Scene
    positions: Positions
    during: range | None = None
    otherwise: Positions = field(default_factory=dict)

    def at(self, step: int) -> Positions:
        """Where they stand at a step."""
        return self.positions if self.during is None or step in self.during else self.otherwise


@torch.no_grad()
def paint(
    backbone: DiffusionBackbone,
    dials: Sequence[Piecewise],
    rows: Sequence[Row],
    how: Sampling,
    report: Progress = quiet,
) -> Tensor:
    """A picture of each row, ``[n, 3, h, w]``; dials that all rows of a batch share cost nothing.

    Args:
        backbone: the model, which is as it was afterwards.
        dials: those that rows name.
        rows: what to paint.
        how: steps, guidance, and how many rows at a time.
        report: is told each step.
    """
    pictures = []
    parts = [rows[start : start + how.batch] for start in range(0, len(rows), how.batch)]
    for k, part in enumerate(parts):

        def told(step: int, before: int = k * how.steps) -> None:
            report(before + step, len(parts) * how.steps, "sampling steps")

        with attach(backbone, dials) as attached:
            predict = _scheduled(backbone, attached, dials, part, how, told)
            pictures.append(finish(backbone, predict, [row.scene.seed for row in part], how))
    return torch.cat(pictures)


def _scheduled(
    backbone: DiffusionBackbone, attached: Dials, dials: Sequence[Piecewise], rows: Sequence[Row], how: Sampling,
    told: Callable[[int], None],
) -> Predictor:  # fmt: skip
    """A predictor that turns the dials before each step, and encodes the prompts anew where that changes them."""
    prompts = [row.scene.prompt for row in rows]
    turns = _turns(attached.names, rows, how.steps, backbone.calls(how.steps))
    encoding = {module.split(".")[0] for dial in dials for piece in dial.pieces() for module in piece.edit.modules}
    moves_prompts = not encoding.isdisjoint(backbone.conditioning_modules)
    known: tuple[TensorBatch, TensorBatch] | None = None
    plain: Predictor | None = None

    def predict(state: TensorBatch) -> Tensor:
        nonlocal known, plain
        step, turn = next(turns)
        told(step)
        if turn is not None:
            attached.set(turn)
        if plain is None or (turn is not None and moves_prompts):
            known = conditionings(backbone, prompts)
            plain = guided(backbone, *known, how.guidance)
        return plain(state)

    return predict


def _turns(
    names: Sequence[str], rows: Sequence[Row], steps: int, calls: int
) -> Iterator[tuple[int, dict[str, Tensor] | None]]:
    """The step of each call of the model, and where the dials must be turned to before it; None where they stay."""
    before = None
    for call in range(calls):
        step = call * steps // calls
        wanted = [row.at(step) for row in rows]
        if wanted == before:
            yield step, None
            continue
        before = wanted
        shared = wanted[:1] if all(one == wanted[0] for one in wanted) else wanted
        yield step, {name: torch.tensor([one.get(name, 0.0) for one in shared]) for name in names}
