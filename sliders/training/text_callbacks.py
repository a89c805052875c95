"""What a run on a language model shows while it goes and leaves when it ends."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from sliders.concept import read_prompts
from sliders.console import say
from sliders.errors import SliderError
from sliders.evaluation.texts.dose import BETWEEN, evaluate_text, heldout_messages
from sliders.evaluation.texts.knowledge import Facts, evaluate_erasure, write_erasure_report
from sliders.evaluation.texts.report import write_text_report
from sliders.evaluation.texts.sampling import Speaking, say_over_dial
from sliders.evaluation.texts.scores import read
from sliders.runtime.adapter import Adapter
from sliders.training.callbacks import AbstractProbe, AbstractReport, run_folder, write_slider
from sliders.training.module import SliderModule
from sliders.training.responses import speaker


class TextProbe(AbstractProbe):
    """Says early whether a run learns: a few responses at dials -1, 0, 1, read by the concept's score.

    The progress bar and the logger get the difference of the mean score between dials 1 and -1, where the concept names
    a score; the logger gets the texts.

    Args:
        every: steps between two probes.
        prompts: responses at each dial.
        speaking: how they are sampled.
    """

    dials = (-1.0, 0.0, 1.0)

    def __init__(self, every: int = 20, prompts: int = 12, speaking: Speaking | None = None) -> None:
        super().__init__(every)
        self.prompts, self.speaking = prompts, speaking or Speaking(tokens=24)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, SliderModule)
        heldout_messages(pl_module.concept, self.prompts)  # too few should be known before the training

    def look(self, trainer: L.Trainer, module: SliderModule, adapter: Adapter) -> None:
        backbone, concept = speaker(module.backbone), module.concept
        messages = heldout_messages(concept, self.prompts)
        prompts = [concept.target + BETWEEN + message for message in messages]
        states = say_over_dial(backbone, adapter.dial, prompts, self.dials, self.speaking)
        texts = [backbone.text(state) for state in states]
        if concept.measure is not None and concept.measure.attribute:
            low, _, high = (float(read(concept.measure.attribute, said).mean()) for said in texts)
            module.log("probe_effect", high - low, prog_bar=True)
        if isinstance(trainer.logger, TensorBoardLogger):
            lines = [f"{d:+g}: {said[0]}" for d, said in zip(self.dials, texts, strict=True)]
            trainer.logger.experiment.add_text(messages[0], "\n\n".join(lines), trainer.global_step)


class TextReport(AbstractReport):
    """Evaluates the finished slider, writes its texts and numbers, and says how to use it.

    Args:
        dials: positions, 0 among them.
        prompts: held-out messages at each position.
        speaking: how the model answers them.
        show: responses that are printed.
    """

    def __init__(
        self,
        dials: Sequence[float] = (-2, -1, 0, 1, 2),
        prompts: int = 64,
        speaking: Speaking | None = None,
        show: int = 2,
    ) -> None:
        if 0 not in dials:
            raise SliderError(f"TextReport.dials is {list(dials)}; 0, the base, must be among them")
        self.dials, self.prompts, self.speaking, self.show = [float(d) for d in dials], prompts, speaking, show

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, SliderModule)
        heldout_messages(pl_module.concept, self.prompts)
        read_prompts((self.speaking or Speaking()).neutral)

    def report(self, trainer: L.Trainer, module: SliderModule, adapter: Adapter) -> None:
        folder, concept, backbone = run_folder(trainer), module.concept, speaker(module.backbone)
        dose = evaluate_text(backbone, adapter.dial, concept, self.dials, self.prompts, self.speaking)
        write_text_report(dose, folder)
        module.measured = dose.summary()
        place = write_slider(trainer, module)
        say("", dose.samples(self.show), dose.table())
        usage = backbone.usage(module.slider(), place)
        say(
            f"slider   {place}",
            f"texts    {folder / 'samples.md'}",
            f"picture  {folder / 'dose_response.png'}",
            f"turn it  sliders generate 'How was your day?' --text true --slider {place} --dial 1",
            *[f"{'or' if k == 0 else '':9s}{line}" for k, line in enumerate(usage)],
        )


class ErasureReport(AbstractReport):
    """Asks the model what it knows before and after an erasure, and writes its answers and the numbers.

    Args:
        bodies: files of facts; the first is the one that was erased.
        speaking: how the model answers questions about the first; what is asked of all bodies takes the likeliest
            tokens.
    """

    def __init__(self, bodies: Sequence[Path], speaking: Speaking | None = None) -> None:
        self.bodies, self.speaking = [Facts.load(Path(file)) for file in bodies], speaking or Speaking()

    def report(self, trainer: L.Trainer, module: SliderModule, adapter: Adapter) -> None:
        backbone, folder = speaker(module.backbone), run_folder(trainer)
        erased = evaluate_erasure(backbone, adapter.dial, self.bodies, self.speaking)
        write_erasure_report(erased, folder)
        place = write_slider(trainer, module)
        for question, before, after in erased.answers[:3]:
            say("", f"> {question}", f"before: {before}", f"after:  {after}")
        say("", erased.table(), f"slider   {place}", f"answers  {folder / 'answers.md'}")
