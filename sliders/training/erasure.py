"""What is left by a run that erases facts from a language model."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L

from sliders.backbones.base import of_class
from sliders.backbones.language.model import CausalLMBackbone
from sliders.console import say
from sliders.evaluation.texts.knowledge import Facts, evaluate_erasure, write_erasure_report
from sliders.evaluation.texts.sampling import TextSampling
from sliders.runtime.adapter import Adapter
from sliders.training.callbacks import AbstractReport, run_folder, write_slider
from sliders.training.module import SliderModule


class ErasureReport(AbstractReport):
    """Asks the model what it knows before and after an erasure, and writes its answers and the numbers.

    Args:
        bodies: files of facts; the first is the one that was erased.
        speaking: how the model answers questions about the first; what is asked of all bodies takes the likeliest
            tokens.
    """

    def __init__(self, bodies: Sequence[Path], speaking: TextSampling | None = None) -> None:
        self.bodies, self.speaking = [Facts.load(Path(file)) for file in bodies], speaking or TextSampling()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, SliderModule)
        self._model(pl_module)

    def _model(self, module: SliderModule) -> CausalLMBackbone:
        return of_class(module.backbone, CausalLMBackbone, "ErasureReport asks", "use FinalReport")

    def report(self, trainer: L.Trainer, module: SliderModule, adapter: Adapter) -> None:
        backbone, folder = self._model(module), run_folder(trainer)
        erased = evaluate_erasure(backbone, adapter.dial, self.bodies, self.speaking)
        write_erasure_report(erased, folder)
        place = write_slider(trainer, module)
        for question, before, after in erased.answers[:3]:
            say("", f"> {question}", f"before: {before}", f"after:  {after}")
        say("", erased.table(), f"slider   {place}", f"answers  {folder / 'answers.md'}")
