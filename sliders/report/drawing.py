"""Pictures for people who would rather look than read."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sliders.files import replacing

INK, _PAPER = "#1b1f24", "#ffffff"
COLORS = ("#d1495b", "#30638e", "#8d96a3", "#edae49")
_GAP, _MARGIN, _LABEL = 3, 10, 30


def to_uint8(pictures: Tensor) -> np.ndarray:
    """Pictures in [-1, 1], ``[..., 3, h, w]``, as bytes ``[..., h, w, 3]``."""
    bytes_ = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to("cpu").numpy().astype(np.uint8)
    return np.moveaxis(bytes_, -3, -1)


def filmstrips(videos: Tensor, shown: int = 4) -> Tensor:
    """Videos ``[..., frames, 3, h, w]`` as pictures ``[..., 3, h, shown * w]``: so many of the frames side by side."""
    frames = videos.shape[-4]
    chosen = torch.linspace(0, frames - 1, min(shown, frames)).round().long()
    return torch.cat(videos.index_select(-4, chosen).unbind(-4), -1)


def save_grid(
    pictures: Tensor, columns: Sequence[str], rows: Sequence[str], title: str, file: Path, rate: int = 8
) -> list[Path]:
    """Write a labelled grid; of videos as filmstrips, and beside it as a WebP in which all of them move.

    Args:
        pictures: ``[columns, rows, 3, h, w]``, or videos ``[columns, rows, frames, 3, h, w]``.
        columns: labels.
        rows: labels.
        title: above all.
        file: of the picture.
        rate: frames a second.

    Returns:
        What was written.
    """
    with replacing(file) as new:
        grid(pictures, columns, rows, title).save(new)
    if pictures.dim() == 5:
        return [file]
    first, *others = (grid(frame, columns, rows, title) for frame in pictures.unbind(2))
    moving = file.with_suffix(".webp") if file.suffix != ".webp" else file.with_name(f"{file.stem}-moving.webp")
    with replacing(moving) as new:
        first.save(new, "WEBP", save_all=True, append_images=others, duration=1000 // rate, loop=0)
    return [file, moving]


def grid(pictures: Tensor, columns: Sequence[str], rows: Sequence[str], title: str = "", scale: int = 2) -> Image.Image:
    """A labelled grid: pictures ``[columns, rows, 3, h, w]``, ``scale`` times as large, or filmstrips of videos.

    Column labels stand above, row labels (shortened where they are long) below each row.
    """
    images = to_uint8(pictures if pictures.dim() == 5 else filmstrips(pictures))
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
        draw.text((canvas.width / 2, _LABEL / 2 + 3), title, INK, font, anchor="mm")
    for c, label in enumerate(columns):
        x = _MARGIN + c * (width + _GAP)
        draw.text((x + width / 2, head - _LABEL / 2), label, INK, font, anchor="mm")
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
    """A strip over the dial: rows are prompts, columns positions; ``pictures [dials, prompts, 3, h, w]``, or videos."""
    return grid(pictures, [dial_label(d) for d in dials], prompts, title)


def save_strip(pictures: Tensor, dials: Sequence[float], prompts: Sequence[str], title: str, file: Path) -> list[Path]:
    """Write a strip over the dial; see `save_grid`."""
    return save_grid(pictures, [dial_label(d) for d in dials], prompts, title, file)


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure and let go of its memory."""
    with replacing(file) as new:
        figure.savefig(new, dpi=130)
    plt.close(figure)
