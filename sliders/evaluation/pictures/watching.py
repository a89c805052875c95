"""What a training of pictures shows while it goes and leaves when it ends."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from sliders.algebra.slider import Slider
from sliders.backbones.diffusion import DiffusionBackbone
from sliders.evaluation.pictures.dose import dose_response
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.evaluation.pictures.report import evaluate_dial, heldout_prompts, write_report
from sliders.evaluation.pictures.sampling import Sampling, check_sampling, sample_dial, scenes
from sliders.evaluation.watching import Finished, Watch
from sliders.formats.metadata import number_of
from sliders.report.drawing import strip
from sliders.runtime.attach import attach
from sliders.runtime.dials import DialContext

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class PictureWatch(Watch[DiffusionBackbone, Sampling]):
    """Held-out scenes over the dial, read by the attribute judge.

    Args:
        judge: without one there are pictures, and no numbers.

    Raises:
        SliderError: there are no scenes.
    """

    judge: AttributeJudge | None = None

    def __post_init__(self) -> None:
        scenes(heldout_prompts(self.concept), self.plan.scenes)

    def check(self, backbone: DiffusionBackbone) -> None:
        check_sampling(backbone, self.plan.how)

    def look(
        self, backbone: DiffusionBackbone, turn: DialContext, board: "SummaryWriter | None", step: int
    ) -> Mapping[str, float]:
        """The concept's effect (the difference of its probability between the ends) and the drift of all else."""
        dials, measure = self.plan.dials, self.concept.measure
        wanted = scenes(heldout_prompts(self.concept), self.plan.scenes)
        pictures = sample_dial(backbone, turn, wanted, dials, self.plan.how)
        if board is not None:
            image = strip(pictures[:, :4], dials, [scene.prompt for scene in wanted[:4]], f"step {step}")
            board.add_image("strip", torch.from_numpy(np.array(image)).permute(2, 0, 1), step)
        if self.judge is None or measure is None:
            return {}
        dose = dose_response(self.judge, measure, pictures, dials)
        drift = max(one.change for one in dose.drift)
        return {"probe_effect": dose.response[-1] - dose.response[0], "probe_drift": drift}

    def report(self, backbone: DiffusionBackbone, turn: DialContext, slider: Slider, folder: Path) -> Finished:
        with attach(backbone, [slider]) as turned:  # folded, which a slider in training is not
            evaluation = evaluate_dial(
                backbone,
                lambda positions: turned.turned({slider.name: positions}),
                self.concept,
                judge=self.judge,
                eta=number_of(slider, "sliders.eta"),
                dials=self.plan.dials,
                pictures=self.plan.scenes,
                how=self.plan.how,
                with_oracle=self.plan.oracle,
            )
        write_report(evaluation, folder)
        shown = [evaluation.table()] if evaluation.dose else []
        return Finished(evaluation.summary(), shown, {"strip": folder / "strip.png"}, self.concept.target)
