"""A language model as everything here runs it: prompt and response in one row, and the rows together or in parts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sliders.backbones.language.blocks import blocks_of
from sliders.backbones.language.trial import Abilities, positions
from sliders.batch import TensorBatch, rows_of, take
from sliders.errors import SliderError


@dataclass(frozen=True)
class Network:
    """A frozen language model, with what it can do.

    Args:
        lm: a transformers model.
        forward: what gives its log-probabilities: the model itself, or its compiled forward pass.
        able: what it can do.
        called: the model in messages.
    """

    lm: Any
    forward: Callable[..., Any]
    able: Abilities
    called: str

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.lm.parameters()).device

    @property
    def blocks(self) -> list[tuple[str, int]]:
        """The names of the blocks with their numbers, in order."""
        return blocks_of(self.lm, self.able.unfit)

    def parts(self, conditioning: TensorBatch) -> list[Tensor]:
        """Which rows are run together, int64 ``[rows]`` each: all, or those of one length where padding counts."""
        rows, lengths = len(conditioning["prefix"]), conditioning["prefix_mask"].sum(1)
        if self.able.pads:
            return [torch.arange(rows)]
        return [(lengths == length).nonzero()[:, 0].cpu() for length in lengths.unique().tolist()]

    def check_together(self, conditioning: TensorBatch) -> None:
        """For whoever looks into a run of all rows.

        Raises:
            SliderError: the model must run them in parts.
        """
        if len(self.parts(conditioning)) > 1:
            raise SliderError(
                f"{self.called} ({type(self.lm).__name__}) runs rows of one length at a time, and its layers cannot be "
                "read for prompts of different lengths; give prompts with as many tokens each, or another model"
            )

    def in_parts(
        self, run: Callable[[dict[str, Tensor]], Tensor], state: TensorBatch, conditioning: TensorBatch
    ) -> Tensor:
        """What ``run`` gives, ``[n, ...]``, for prefix and response in one row, by as many calls as there are parts."""
        parts, index = [], self.parts(conditioning)
        for rows in index:
            inputs = joined(take(state, rows), take(conditioning, rows))
            with rows_of(len(state["tokens"]), inputs["input_ids"].shape[1], rows.tolist()):
                parts.append(run(inputs))
        return torch.cat(parts)[torch.cat(index).argsort().to(parts[0].device)] if len(parts) > 1 else parts[0]


def joined(state: TensorBatch, conditioning: TensorBatch) -> dict[str, Tensor]:
    """A model's inputs ``[n, tokens]``: prefix and response in one row, without the padding that all rows share."""
    used = int(conditioning["prefix_mask"].sum(1).max())
    prefix, prefix_mask = (conditioning[name][:, -used:] for name in ("prefix", "prefix_mask"))
    mask = torch.cat([prefix_mask, state["mask"]], 1).long()
    return {
        "input_ids": torch.cat([prefix, state["tokens"]], 1),
        "attention_mask": mask,
        "position_ids": positions(mask),
    }
