"""What a training of a language model shows while it goes and leaves when it ends."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sliders.algebra.slider import Slider
from sliders.backbones.language.model import CausalLMBackbone
from sliders.concept import BETWEEN, read_prompts
from sliders.errors import SliderError
from sliders.evaluation.texts.dose import evaluate_text, heldout_messages
from sliders.evaluation.texts.report import write_text_report
from sliders.evaluation.texts.sampling import TextSampling, say_over_dial
from sliders.evaluation.texts.scores import read
from sliders.evaluation.watching import Finished, Watch
from sliders.runtime.dials import DialContext

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class TextWatch(Watch[CausalLMBackbone, TextSampling]):
    """Responses to held-out messages over the dial, read by the concept's score.

    Raises:
        SliderError: the concept has too few messages or no such score, there is no neutral text, or the plan has what
            text has not.
    """

    def __post_init__(self) -> None:
        if self.plan.oracle:
            raise SliderError("oracle is measured of pictures alone; `sliders preview` shows it of text")
        heldout_messages(self.concept, self.plan.scenes)
        read_prompts(self.plan.how.neutral)

    def look(
        self, backbone: CausalLMBackbone, turn: DialContext, board: "SummaryWriter | None", step: int
    ) -> Mapping[str, float]:
        """The difference of the mean score between the ends, where the concept names a score."""
        dials, messages = self.plan.dials, heldout_messages(self.concept, self.plan.scenes)
        prompts = [self.concept.target + BETWEEN + message for message in messages]
        states = say_over_dial(backbone, turn, prompts, dials, self.plan.how)
        texts = [backbone.text(state) for state in states]
        if board is not None:
            lines = [f"{dial:+g}: {said[0]}" for dial, said in zip(dials, texts, strict=True)]
            board.add_text(messages[0], "\n\n".join(lines), step)
        score = self.concept.measure.attribute if self.concept.measure else ""
        if not score:
            return {}
        low, *_, high = (float(read(score, said).mean()) for said in texts)
        return {"probe_effect": high - low}

    def report(self, backbone: CausalLMBackbone, turn: DialContext, slider: Slider, folder: Path) -> Finished:
        dose = evaluate_text(backbone, turn, self.concept, self.plan.dials, self.plan.scenes, self.plan.how)
        write_text_report(dose, folder)
        files = {"texts": folder / "samples.md", "picture": folder / "dose_response.png"}
        return Finished(dose.summary(), [dose.samples(self.plan.samples), dose.table()], files, "How was your day?")
