"""One slider or edit looked at closely: what it does over its range, and where in the network and when it does it."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from torch import Tensor

from sliders.algebra.edit import Affine
from sliders.algebra.element import Element
from sliders.algebra.slider import Interpolated
from sliders.backbones.diffusion import DiffusionBackbone
from sliders.evaluation.pictures.sampling import Sampling, Scene
from sliders.page.edits import added
from sliders.page.library import ShownDial
from sliders.page.painting import Progress, Row, paint
from sliders.report.drawing import plt
from sliders.report.html_page import Section

FRAMES = 9
WINDOWS = 5


@dataclass(frozen=True)
class Comparison:
    """What was painted of one slider.

    Args:
        dials: of the frames, ascending.
        frames: ``[dials, 3, h, w]``.
        position: where the rest was painted.
        base, turned: ``[3, h, w]`` at 0 and at the position.
        parts: names of the parts of the network that it changes.
        without_part, only_part: ``[parts, 3, h, w]`` with the slider but for this part, and on this part alone.
        windows: the steps of sampling, cut into a few ranges.
        without_window, only_window: the same for when it is on.
    """

    dials: list[float]
    frames: Tensor
    position: float
    base: Tensor
    turned: Tensor
    parts: list[str]
    without_part: Tensor
    only_part: Tensor
    windows: list[range]
    without_window: Tensor
    only_window: Tensor

    def change(self) -> Tensor:
        """How much each pixel changed, ``[h, w]`` in [0, 1]."""
        return (self.turned - self.base).abs().mean(0) / 2

    def share(self, pictures: Tensor, of: Tensor) -> list[float]:
        """How far each picture is from ``of``, relative to what the whole slider changes."""
        whole = (self.turned - self.base).norm().clamp_min(1e-12)
        return [float((picture - of).norm() / whole) for picture in pictures]

    def sections(self) -> list[Section]:
        """Where and when it acts."""
        steps = [f"{w.start + 1} to {w.stop}" for w in self.windows]
        said = "Indigo: how much of its effect on the picture is lost without it; amber: how much it does alone."
        return [
            Section(
                "Where in the network it acts",
                f"The slider was turned off, or left on alone, in each part of the network. {said}",
                figure=self._bars("share of the whole effect", self.parts, self.without_part, self.only_part),
            ),
            Section(
                "When it acts",
                f"The same for the steps of sampling, from noise (1) to picture ({self.windows[-1].stop}). {said}",
                figure=self._bars("share of the whole effect", steps, self.without_window, self.only_window),
            ),
        ]

    def _bars(self, label: str, names: Sequence[str], without: Tensor, only: Tensor) -> Figure:
        lost, alone = self.share(without, self.turned), self.share(only, self.base)
        return _chart(label, names, {"lost without it": lost, "done by it alone": alone})


def compare(
    backbone: DiffusionBackbone, entry: ShownDial, scene: Scene, position: float, how: Sampling, report: Progress
) -> Comparison:
    """Paint all of it; rows of one batch differ in which parts are on, and when."""
    low, high = entry.span
    dials = [low + (high - low) * k / (FRAMES - 1) for k in range(FRAMES)]
    parts: dict[str, dict[str, Element]] = {}
    for module, shift in added(backbone, entry.dial, position).items():
        parts.setdefault(_part_of(module), {})[module] = shift
    pieces = [Interpolated(name, Affine(shifts)) for name, shifts in parts.items()]
    everything = dict.fromkeys(parts, 1.0)
    cuts = [round(k * how.steps / WINDOWS) for k in range(WINDOWS + 1)]
    windows = [range(a, b) for a, b in itertools.pairwise(cuts) if b > a]
    rows = [Row(scene, {entry.key: dial}) for dial in dials]
    rows += [Row(scene, {}), Row(scene, everything)]
    rows += [Row(scene, {name: 1.0 for name in parts if name != part}) for part in parts]
    rows += [Row(scene, {part: 1.0}) for part in parts]
    rows += [Row(scene, {}, window, everything) for window in windows]
    rows += [Row(scene, everything, window) for window in windows]
    painted = paint(backbone, [entry.dial, *pieces], rows, how, report)
    sizes = [len(dials), 1, 1, len(parts), len(parts), len(windows), len(windows)]
    frames, base, turned, without_part, only_part, without_window, only_window = painted.split(sizes)
    return Comparison(
        dials, frames, position, base[0], turned[0], list(parts), without_part, only_part,
        windows, without_window, only_window,
    )  # fmt: skip


def _part_of(module: str) -> str:
    """The part of the network that a layer belongs to: a block, and what kind of layers of it."""
    _, *inside = module.split(".")
    return ".".join(inside[: 2 if inside[0].startswith("mid") else 3]) or module


def _chart(label: str, names: Sequence[str], series: Mapping[str, Sequence[float]]) -> Figure:
    """Horizontal bars, two to a name."""
    height = 0.8 / len(series)
    figure, axis = plt.subplots(figsize=(7.5, 1.2 + 0.45 * len(names)), layout="constrained")
    for k, (name, values) in enumerate(series.items()):
        places = [-(row + (k - (len(series) - 1) / 2) * height) for row in range(len(names))]
        axis.barh(places, values, height * 0.92, color=("#4f46e5", "#f59e0b")[k], label=name)
    axis.set_yticks([-row for row in range(len(names))], names)
    axis.set_xlabel(label)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure
