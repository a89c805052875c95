"""Pictures: strips, grids and the attribute judge."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from rich.table import Table

from sliders.algebra.slider import NamedDial
from sliders.backbones.diffusion import DiffusionBackbone
from sliders.concept import Concept
from sliders.console import say
from sliders.errors import SliderError
from sliders.evaluation.base_states import BaseStates, picture_states
from sliders.evaluation.pictures.dose import dose_response
from sliders.evaluation.pictures.report import (
    STRIP_ROWS,
    dose_response_figure,
    evaluate_dial,
    heldout_prompts,
    load_judge,
    write_report,
)
from sliders.evaluation.pictures.sampling import Sampling, Scene, sample, sample_oracle, scenes
from sliders.evaluation.pictures.strength import suggest_eta
from sliders.evaluation.pictures.watching import PictureWatch
from sliders.evaluation.watching import Plan
from sliders.files import check_place
from sliders.formats.metadata import concept_of, number_of
from sliders.media.base import Medium
from sliders.report.drawing import dial_label, save_figure, save_grid, save_strip
from sliders.resources.paths import Source
from sliders.runtime.attach import attach


class Pictures(Medium[DiffusionBackbone, Sampling]):
    """What models of pictures make."""

    flags = ("sampling", "oracle", "eta", "out")
    amounts = (0.5, 1, 2, 3, 4, 6, 8)
    how = Sampling
    probing = Plan((-1.0, 0.0, 1.0), 8, Sampling(steps=12))
    reporting = Plan((-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0), 16, Sampling())

    def place(self, out: Path | None) -> Path:
        file = out or Path("grid.png")
        if Image.registered_extensions().get(file.suffix.lower()) not in Image.SAVE:
            raise SliderError(f"--out is {file}; give a file that ends as a picture's does, such as .png")
        check_place(file)
        return file

    def preview(
        self,
        backbone: DiffusionBackbone,
        concept: Concept,
        amounts: Sequence[float],
        count: int,
        how: Sampling | None,
        out: Path,
        judge: Source | Path | None = None,
    ) -> None:
        wanted = scenes(heldout_prompts(concept), count)
        reader = load_judge(judge, concept) if judge is not None and concept.measure is not None else None
        made = sample_oracle(backbone, concept, 1.0, wanted, amounts, how)
        prompts = [s.prompt for s in wanted[:STRIP_ROWS]]
        title = f"{concept.name}: the oracle over dial x eta"
        written = save_strip(made[:, :STRIP_ROWS], amounts, prompts, title, out / "strip.png")
        if reader is not None and concept.measure is not None:
            dose = dose_response(reader, concept.measure, made, amounts)
            table = Table("dial x eta", f"{dose.attribute} = {dose.value}", "worst drift", "of", title=concept.name)
            for amount, mean, error, drift in zip(amounts, dose.response, dose.error, dose.drift, strict=True):
                other = f"{drift.attribute} = {drift.value}" if drift.attribute else ""
                table.add_row(dial_label(amount), f"{mean:.2f} ± {error:.2f}", f"{drift.change:.3f}", other)
            eta, reason = suggest_eta(amounts, dose)
            say(table, f"suggested eta: {'none' if eta is None else f'{eta:g}'} ({reason})")
            figure = dose_response_figure(f"{concept.name}: the oracle", {"oracle": dose})
            save_figure(figure, out / "dose_response.png")
        say(*(f"strip   {file}" for file in written))

    def generate(
        self,
        backbone: DiffusionBackbone,
        prompts: Sequence[str],
        seeds: Sequence[int],
        dials: Sequence[NamedDial],
        positions: Mapping[str, float],
        how: Sampling | None,
        out: Path | None,
    ) -> None:
        wanted = [Scene(prompt, number) for number in seeds for prompt in prompts]
        pictures = sample(backbone, wanted, how).unflatten(0, (len(seeds), len(prompts)))
        columns = [f"seed {number}" for number in seeds]
        if dials:
            with attach(backbone, dials, positions):
                turned = sample(backbone, wanted, how).unflatten(0, (len(seeds), len(prompts)))
            pictures = torch.stack([pictures, turned], 1).flatten(0, 1)
            columns = [label for number in seeds for label in (f"seed {number}: base", "turned")]
        title = "  ".join(f"{name} {dial_label(p)}" for name, p in positions.items())
        say(*(f"grid    {file}" for file in save_grid(pictures, columns, prompts, title, self.place(out))))

    def evaluate(
        self,
        backbone: DiffusionBackbone,
        dial: NamedDial,
        concept: Concept | None,
        positions: Sequence[float],
        count: int,
        how: Sampling | None,
        out: Path,
        judge: Source | Path | None = None,
        oracle: bool = False,
        eta: float | None = None,
    ) -> None:
        what = (concept or concept_of(dial)).worded("image")
        with attach(backbone, [dial]) as attached:
            evaluation = evaluate_dial(
                backbone,
                lambda values: attached.turned({dial.name: values}),
                what,
                judge=load_judge(judge, what) if judge else None,
                eta=eta if eta is not None else number_of(dial, "sliders.eta", 1.0),
                dials=positions,
                pictures=count,
                how=how or Sampling(),
                with_oracle=oracle,
            )
        write_report(evaluation, out, dial.name)
        say(*([evaluation.table()] if evaluation.dose else []), f"report  {out}")

    def states(
        self,
        backbone: DiffusionBackbone,
        prompts: Sequence[str],
        count: int,
        target: str = "",
        how: Sampling | None = None,
        seed: int | None = None,
    ) -> BaseStates:
        first = {} if seed is None else {"first_seed": seed}
        return picture_states(backbone, scenes(prompts, count, **first), how)

    def watch(self, concept: Concept, plan: Plan[Sampling], judge: Source | Path | None = None) -> PictureWatch:
        made = PictureWatch(concept, plan)
        return made if judge is None else replace(made, judge=load_judge(judge, concept))


MEDIUM = Pictures()
