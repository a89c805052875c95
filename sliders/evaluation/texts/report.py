"""What was measured of a dial of a language model, as files."""

import json
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from sliders.evaluation.texts.dose import TextDose
from sliders.files import write_text
from sliders.report.drawing import COLORS, dial_label, save_figure


def text_dose_figure(doses: Mapping[str, "TextDose"]) -> Figure:
    """The score of what a language model says over the dial, and what the dial does to neutral text."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for (label, dose), color in zip(doses.items(), COLORS, strict=False):
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


def write_text_report(dose: TextDose, folder: Path) -> None:
    """Write `metrics.json`, `samples.md` and `dose_response.png`."""
    write_text(folder / "metrics.json", json.dumps(dose.to_dict(), indent=1))
    lines = [f"# {dose.concept}: the same prompts and seeds over the dial", ""]
    for k, prompt in enumerate(dose.prompts[:12]):
        lines += [f"## {prompt}", ""]
        lines += [f"- **{dial_label(d)}** {dose.texts[i][k]}" for i, d in enumerate(dose.dials)]
        lines.append("")
    write_text(folder / "samples.md", "\n".join(lines))
    save_figure(text_dose_figure({"slider": dose}), folder / "dose_response.png")
