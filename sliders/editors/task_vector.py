"""Task vectors: what fine-tuning changed, as an edit (Ilharco et al. 2212.04089, section 2)."""

from dataclasses import dataclass
from pathlib import Path

import torch

from sliders.algebra.compose import compress
from sliders.algebra.edit import Affine, Factored, Translation
from sliders.algebra.element import Element
from sliders.algebra.lowrank import LowRank
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.placement import Placement
from sliders.batch import widened
from sliders.editors.base import Editor
from sliders.errors import SliderError
from sliders.runtime.layers import editable_modules, layer_weights


@dataclass(frozen=True)
class TaskVector(Editor[AbstractBackbone]):
    """Task vector: what a fine-tuned model's layers have more than the base's, to add or to take away.

    Args:
        tuned: folder of the fine-tuned model, of the base's architecture and layout.
        tolerance: relative error that lower ranks may cost; at 0 every layer keeps its whole difference.
        leave_rest: leave out what differs outside of the layers that can be edited (norms, embeddings), instead of
            refusing.
    """

    of = AbstractBackbone

    tuned: Path
    tolerance: float = 0.0
    leave_rest: bool = False

    @torch.no_grad()
    def fit(self, backbone: AbstractBackbone, seed: int = 0) -> Factored:
        tuned = type(backbone)(str(self.tuned))  # pyright: ignore[reportCallIssue]  (each takes its model first)
        tuned.placement = Placement(str(backbone.device), str(backbone.dtype).removeprefix("torch."))  # pyright: ignore[reportArgumentType]
        tuned.load()
        ours, theirs = dict(backbone.named_parameters()), dict(tuned.named_parameters())
        if [(n, p.shape) for n, p in ours.items()] != [(n, p.shape) for n, p in theirs.items()]:
            raise SliderError(f"task_vector: {self.tuned} is not of the architecture of {backbone.base_model}")
        rest = {name for name, parameter in ours.items() if not torch.equal(parameter, theirs[name])}
        if not rest:
            raise SliderError(f"task_vector: {self.tuned} has the same weights as {backbone.base_model}")
        changes: dict[str, LowRank] = {}
        biased: set[str] = set()
        for name in editable_modules(backbone):
            if not backbone.reaches(name) or not rest & {f"{name}.weight", f"{name}.bias"}:
                continue
            (weight, bias), (other, other_bias) = layer_weights(backbone, name), layer_weights(tuned, name)
            change = (widened(other) - widened(weight)).flatten(1)
            if bias is not None and other_bias is not None and f"{name}.bias" in rest:
                change = torch.cat([change, (widened(other_bias) - widened(bias))[:, None]], 1)
                biased.add(name)
            changes[name] = LowRank.nearest(change, min(change.shape)).trim().to("cpu")
            rest -= {f"{name}.weight", f"{name}.bias"}
        if rest and not self.leave_rest:
            raise SliderError(
                f"task_vector: {len(rest)} tensors differ that no edit of a layer reaches, the first is "
                f"{min(rest)!r}; leave_rest leaves them as they are in the base"
            )
        kept = compress(Translation(changes), tolerance=self.tolerance).update if self.tolerance else changes
        shapes = {name: tuple(layer_weights(backbone, name)[0].shape) for name in kept}
        if not biased:
            return Translation({name: LowRank(u.B, u.A, shapes[name]) for name, u in kept.items()})
        return Affine({name: Element.of(shapes[name], shift=update) for name, update in kept.items()})

    def describe(self) -> str:
        return f"what {self.tuned} has more than the base"
