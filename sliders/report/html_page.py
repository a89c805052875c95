"""A report for people: sections of a sentence, a table and a picture; JSON, a terminal, one page."""

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from sliders.files import write_text
from sliders.report.drawing import INK, plt

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;color:#1b1f24;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0;font-size:14px}td,th{padding:.25rem .7rem;border-bottom:1px solid #d0d7de}
td{text-align:right}td:first-child,th:first-child{text-align:left}img{max-width:100%}p.note{color:#57606a}"""


@dataclass(frozen=True)
class Section:
    """One thing that was measured.

    Args:
        title: of it.
        says: a sentence or two: what the table and the picture show.
        headings: of the table; empty for none.
        rows: of the table.
        figure: the picture, if any.
    """

    title: str
    says: str
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figure: Figure | None = None

    def table(self) -> Table:
        """For a terminal."""
        made = Table(title=self.title, title_justify="left", caption=self.says, caption_justify="left")
        for k, heading in enumerate(self.headings):
            made.add_column(heading, justify="left" if k == 0 else "right")
        for row in self.rows:
            made.add_row(*row)
        return made

    def html(self) -> str:
        """For a page, with the picture inside."""
        parts = [f"<h2>{html.escape(self.title)}</h2><p>{html.escape(self.says)}</p>"]
        if self.figure is not None:
            alt = html.escape(f"{self.title}: {self.says}")
            parts.append(f'<img alt="{alt}" src="{_embedded(self.figure)}">')
        if self.rows:
            parts.append(f"<table>{_row(self.headings, 'th')}{''.join(_row(r, 'td') for r in self.rows)}</table>")
        return "".join(parts)


@dataclass
class Report:
    """All sections, and the numbers behind them as plain data; its files are called by its ``name``."""

    title: str
    note: str
    name: str = "laws"
    sections: list[Section] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write `NAME.json` and `NAME.html`, a page that needs nothing else."""
        write_text(folder / f"{self.name}.json", json.dumps(self.data, indent=1))
        write_text(folder / f"{self.name}.html", self.page())

    def page(self) -> str:
        """The report as HTML with its pictures inside."""
        parts = [f"<h1>{html.escape(self.title)}</h1><p class=note>{html.escape(self.note)}</p>"]
        parts += [section.html() for section in self.sections]
        head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(self.title)}</title>"
        return f"{head}<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"


def _row(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _embedded(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def heatmap(table: Tensor, names: Sequence[str], label: str, signed: bool = False) -> Figure:
    """All pairs as coloured squares with their numbers."""
    figure, axis = plt.subplots(figsize=(2.4 + 0.75 * len(names), 1.6 + 0.65 * len(names)), layout="constrained")
    values = table.numpy()
    top = float(np.abs(values[~np.eye(len(values), dtype=bool)]).max(initial=0.0)) or 1.0
    colours = {"cmap": "RdBu_r", "vmin": -top, "vmax": top} if signed else {"cmap": "Blues", "vmin": 0, "vmax": top}
    image = axis.imshow(np.where(np.eye(len(values), dtype=bool), np.nan, values), **colours)
    for (i, j), value in np.ndenumerate(values):
        if i != j:
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", color="w" if abs(value) > 0.6 * top else INK)
    axis.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axis.set_yticks(range(len(names)), names)
    figure.colorbar(image, ax=axis, label=label)
    return figure
