"""Pictures as HTML, each with words: inside the page itself, so that there is no file that others could ask for."""

import base64
import html
import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image
from torch import Tensor, stack

from sliders.page.comparison import Comparison
from sliders.report.drawing import dial_label, to_uint8
from sliders.report.html_page import Section

FRAME_MILLISECONDS = 220
_BROAD = 5


def data_uri(image: Image.Image, kind: str = "PNG", **options: object) -> str:
    """An image as a link that contains it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture_uri(picture: Tensor) -> str:
    """A picture ``[3, h, w]`` in [-1, 1] as a link that contains it."""
    return data_uri(Image.fromarray(to_uint8(picture)))


def figure(uri: str, alt: str, caption: str, name: str = "") -> str:
    """A picture with its caption."""
    return (
        f'<figure class="picture {name}"><img src="{uri}" alt="{html.escape(alt, quote=True)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def pair(base: Tensor, turned: Tensor, prompt: str, dials: str) -> str:
    """The base beside the result."""
    return (
        '<div class="pair">'
        + figure(picture_uri(base), f"{prompt}: the base model's picture", "base", "base")
        + figure(picture_uri(turned), f"{prompt}: the same seed with {dials}", dials, "turned")
        + "</div>"
    )


def table(pictures: Tensor, across: Sequence[str], down: Sequence[str], corner: str, alt: str) -> str:
    """A grid ``[across, down, 3, h, w]`` with the dials' positions at its edges."""
    head = "".join(f'<th scope="col">{_breakable(label)}</th>' for label in across)
    rows = []
    for j, label in enumerate(down):
        cells = "".join(
            f'<td><img src="{picture_uri(pictures[i, j])}" alt="{html.escape(f"{alt}: {x} {label}", quote=True)}"></td>'
            for i, x in enumerate(across)
        )
        rows.append(f'<tr><th scope="row">{_breakable(label)}</th>{cells}</tr>')
    top = f"<tr><th>{_breakable(corner)}</th>{head}</tr>"
    return f'<div class="grid" tabindex="0"><table>{top}{"".join(rows)}</table></div>'


def _breakable(label: str) -> str:
    """A label whose lines may break between the words of a name, such as a layer's."""
    return f"<span>{html.escape(label).replace('.', '.<wbr>').replace('_', '_<wbr>')}</span>"


def cards(sections: Sequence[Section]) -> str:
    """Studies side by side; one with a broad table has the whole width."""
    made = (
        f'<section class="study{" broad" * (len(section.headings) > _BROAD)}">{section.html()}</section>'
        for section in sections
    )
    return f'<div class="studies">{"".join(made)}</div>'


def comparison(found: Comparison, key: str) -> str:
    """The moving dial, the difference, and what each part of the network and of the time does."""
    at = dial_label(found.position)
    frames = [Image.fromarray(to_uint8(picture)) for picture in found.frames]
    there_and_back = [*frames, *frames[-2:0:-1]]
    moving = data_uri(
        there_and_back[0], "WEBP", save_all=True, append_images=there_and_back[1:], loop=0, lossless=True,
        duration=FRAME_MILLISECONDS,
    )  # fmt: skip
    labels = [dial_label(round(dial, 2)) for dial in found.dials]
    top = float(found.change().max())
    parts = [
        '<div class="pair three">',
        figure(
            moving, f"{key} moving from {labels[0]} to {labels[-1]} and back", f"{key}, {labels[0]} to {labels[-1]}"
        ),
        figure(picture_uri(found.turned), f"the picture with {key} at {at}", f"{key} {at}", "turned"),
        figure(
            _heat(found.change()), f"where {key} at {at} changed the picture", f"changed: at most {top:.0%}", "heat"
        ),
        "</div>",
        table(found.frames[:, None], labels, [key], "", f"{key} at"),
        cards(found.sections()),
        '<section class="study"><h2>Without each part, and with it alone</h2>'
        "<p>What the bars measure, as pictures: above, the slider without this part of the network; below, "
        "on this part alone.</p>",
        table(_stacked(found.without_part, found.only_part), found.parts, ["without", "alone"], "", key),
        "</section>",
    ]
    return "".join(parts)


def _stacked(*rows: Tensor) -> Tensor:
    """Rows of pictures ``[n, 3, h, w]`` as ``[n, rows, 3, h, w]``."""
    return stack(rows, 1)


def _heat(change: Tensor) -> str:
    """Bright where much changed; the brightest is the largest change."""
    values = (change / change.max().clamp_min(1e-6)).numpy()
    colours = matplotlib.colormaps["magma"](values)[..., :3]
    return data_uri(Image.fromarray((colours * 255).astype(np.uint8)))
