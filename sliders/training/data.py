"""What each training step is about: seeds, dials, and which rows are to be preserved."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from sliders.concept import Concept
from sliders.errors import SliderError


@dataclass(frozen=True)
class StepBatch:
    """One step's items.

    Args:
        step: of the optimizer, counted from 0; where gradients are accumulated, several batches have the same.
        seed: of the run.
        seeds: one for each item; all that is random about the item follows from it.
        magnitudes: of each item's dial, ``[n]``.
        preserved: which items ask for a prompt to preserve, bool ``[n]``.
    """

    step: int
    seed: int
    seeds: list[int]
    magnitudes: Tensor
    preserved: Tensor


class StepLoader:
    """A loader whose batch k is a function of (seed, k): resuming is a matter of knowing k.

    Args:
        data: what batches are made of.
        steps: of the optimizer.
        rank: of this process.
        world: processes.
        gathered: batches of a step.
    """

    def __init__(self, data: "ConceptData", steps: int, rank: int = 0, world: int = 1, gathered: int = 1) -> None:
        self.data, self.steps, self.rank, self.world, self.gathered = data, steps * gathered, rank, world, gathered
        self.step = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[StepBatch]:
        while self.step < self.steps:
            batch = self.data.step_batch(self.step, self.rank, self.world, self.gathered)
            self.step += 1  # before the yield: a checkpoint written during the step resumes after it
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position, for a checkpoint."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a checkpoint's position."""
        self.step = state["step"]


class ConceptData(L.LightningDataModule):
    """The concept, and the items of every step.

    Args:
        concept: what to train on; the path of a concept's YAML file, or in a config the mapping itself.
        batch_size: states of a step on each device; each is trained at all signs.
        preserve_batch_size: further states of a step under prompts to preserve; needs ``concept.preserve``.
        magnitude: the range that each item's dial magnitude is drawn from, uniformly.
        signs: of the dial in every step: both for a slider, ``[1]`` for a permanent erasure.
        seed: of all that is random about the states and dials.
    """

    def __init__(
        self,
        concept: Path | Concept,
        batch_size: int = 8,
        preserve_batch_size: int = 0,
        magnitude: tuple[float, float] = (0.5, 2.0),
        signs: list[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        concept = concept if isinstance(concept, Concept) else Concept.load(Path(concept))
        if batch_size < 1:
            raise SliderError(f"data.batch_size is {batch_size}; it must be at least 1")
        if not 0 < magnitude[0] <= magnitude[1] < math.inf:
            raise SliderError(f"data.magnitude is {list(magnitude)}; it must be two positive numbers, the lesser first")
        if preserve_batch_size and not concept.preserve:
            raise SliderError(f"data.preserve_batch_size is {preserve_batch_size}, but concept.preserve is empty")
        if concept.preserve and not preserve_batch_size:
            raise SliderError("concept.preserve names prompts, but data.preserve_batch_size is 0: they would not act")
        self.concept = concept
        self.batch_size, self.preserve_batch_size = batch_size, preserve_batch_size
        self.magnitude, self.seed = magnitude, seed
        self.signs = [1, -1] if signs is None else signs
        if not self.signs or any(s not in (1, -1) for s in self.signs):
            raise SliderError(f"data.signs is {self.signs}; use [1, -1], [1] or [-1]")

    def step_batch(self, step: int, rank: int = 0, world: int = 1, gathered: int = 1) -> StepBatch:
        """The items of batch ``step`` on one device; over all devices they are those of one device with all the rows.

        Args:
            step: counts the batches from 0.
            rank: of the device.
            world: devices.
            gathered: batches of a step of the optimizer.
        """
        seeds, magnitudes = [], []
        for size, kind in ((self.batch_size, "move"), (self.preserve_batch_size, "keep")):
            for row in range(rank * size, (rank + 1) * size):
                rng = random.Random(f"{self.seed}/{kind}/{step}/{row}")
                seeds.append(rng.randrange(2**31))
                magnitudes.append(rng.uniform(*self.magnitude))
        preserved = torch.arange(len(seeds)) >= self.batch_size
        return StepBatch(step // gathered, self.seed, seeds, torch.tensor(magnitudes), preserved)

    def train_dataloader(self) -> StepLoader:
        trainer = self.trainer
        if trainer is None or trainer.max_steps < 1:
            raise SliderError("trainer.max_steps says how long a run is; set it to at least 1")
        gathered = trainer.accumulate_grad_batches
        return StepLoader(self, trainer.max_steps, trainer.global_rank, trainer.world_size, gathered)

    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> StepBatch:
        return batch  # a few numbers; the states are made on the model's device
