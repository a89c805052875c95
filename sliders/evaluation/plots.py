"""Pictures for people who would rather look than read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sliders.evaluation.dose import DoseResponse
from sliders.files import replacing

if TYPE_CHECKING:
    from sliders.evaluation.text import TextDose

_INK, _PAPER = "#1b1f24", "#ffffff"
_COLORS = ("#d1495b", "#30638e", "#8d96a3", "#edae49")
_GAP, _MARGIN, _LABEL = 3, 10, 30


def to_uint8(pictures: Tensor) -> np.ndarray:
    """Pictures in [-1, 1], ``[..., 3, h, w]``, as bytes ``[..., h, w, 3]``."""
    bytes_ = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to("cpu").numpy().astype(np.uint8)
    return np.moveaxis(bytes_, -3, -1)


def grid(pictures: Tensor, columns: Sequence[str], rows: Sequence[str], title: str = "", scale: int = 2) -> Image.Image:
    """A labelled grid: ``pictures [columns, rows, 3, h, w]``, each drawn ``scale`` times as large.

    Column labels stand above, row labels (shortened where they are long) below each row.
    """
    images = to_uint8(pictures)
    wide, tall = images.shape[0], images.shape[1]
    height, width = images.shape[2] * scale, images.shape[3] * scale
    head = _LABEL * (2 if title else 1)
    foot = 18 if any(rows) else 0
    canvas = Image.new(
        "RGB",
        (2 * _MARGIN + wide * (width + _GAP), head + tall * (height + _GAP + foot) + _MARGIN),
        _PAPER,
    )
    draw = ImageDraw.Draw(canvas)
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    if title:
        draw.text((canvas.width / 2, _LABEL / 2 + 3), title, _INK, font, anchor="mm")
    for c, label in enumerate(columns):
        x = _MARGIN + c * (width + _GAP)
        draw.text((x + width / 2, head - _LABEL / 2), label, _INK, font, anchor="mm")
        for r in range(tall):
            y = head + r * (height + _GAP + foot)
            tile = Image.fromarray(images[c, r]).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(tile, (x, y))
    for r, label in enumerate(rows):
        room = (canvas.width - 2 * _MARGIN) // 6
        text = label if len(label) <= room else label[: room - 1] + "…"
        y = head + r * (height + _GAP + foot) + height + 2
        draw.text((_MARGIN, y), text, "#57606a", small)
    return canvas


def dial_label(position: float) -> str:
    """``-2``, ``0``, ``+0.5``."""
    return f"{position:+g}" if position else "0"


def strip(pictures: Tensor, dials: Sequence[float], prompts: Sequence[str], title: str) -> Image.Image:
    """A strip over the dial: rows are prompts, columns positions; ``pictures [dials, prompts, 3, h, w]``."""
    return grid(pictures, [dial_label(d) for d in dials], prompts, title)


def dose_response_figure(title: str, responses: Mapping[str, DoseResponse]) -> Figure:
    """The concept's probability over the dial with its standard error, and the worst drift of anything else."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    for (label, dose), color in zip(responses.items(), _COLORS, strict=False):
        mean, error = np.array(dose.response), np.array(dose.error)
        left.plot(dose.dials, mean, "o-", color=color, label=label)
        left.fill_between(dose.dials, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
        right.plot(dose.dials, [d.change for d in dose.drift], "o-", color=color, label=label)
    first = next(iter(responses.values()))
    left.set(
        title=f"{first.attribute} = {first.value}", xlabel="dial", ylabel="judge's mean probability", ylim=(-0.02, 1.02)
    )
    right.set(title="everything else: worst attribute", xlabel="dial", ylabel="change of mean probability")
    right.set_ylim(0, max(0.2, right.get_ylim()[1]))
    for axis in (left, right):
        axis.axvline(0, color="#d0d7de", linewidth=1, zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.suptitle(title)
    return figure


def text_dose_figure(doses: Mapping[str, "TextDose"]) -> Figure:
    """The score of what a language model says over the dial, and what the dial does to neutral text."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for (label, dose), color in zip(doses.items(), _COLORS, strict=False):
        mean, error = np.array(dose.response), np.array(dose.error)
        axes[0].plot(dose.dials, mean, "o-", color=color, label=label)
        axes[0].fill_between(dose.dials, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
        axes[1].plot(dose.dials, dose.perplexity, "o-", color=color, label=label)
        axes[2].plot(dose.dials, dose.repetition, "o-", color=color, label=label)
    first = next(iter(doses.values()))
    axes[0].set(title=f"what it says: {first.score or 'log-odds'}", xlabel="dial", ylabel="mean of held-out prompts")
    axes[1].set(title="perplexity of neutral text", xlabel="dial")
    axes[2].set(title="repetition", xlabel="dial", ylabel="trigrams said before")
    axes[1].set_ylim(0, 1.1 * axes[1].get_ylim()[1])
    axes[2].set_ylim(0, max(0.1, axes[2].get_ylim()[1]))
    for axis in axes:
        axis.axvline(0, color="#d0d7de", linewidth=1, zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.suptitle(first.concept)
    return figure


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure and let go of its memory."""
    with replacing(file) as new:
        figure.savefig(new, dpi=130)
    plt.close(figure)
