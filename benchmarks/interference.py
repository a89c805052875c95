"""Predicted against measured interference of all trained sliders: `python -m benchmarks.interference`.

Takes the sliders in `runs/` that are there, of the avatar model and of the language model, trains a twin of each with
another seed for the null, measures the interaction of all pairs, and writes `docs/interference.md` with a scatter of
each model.  What was trained or measured before is kept (`runs/interference/`), as long as the sliders are the same.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from PIL import Image

from sliders import formats
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.console import hush_libraries
from sliders.evaluation.pictures.sampling import Sampling
from sliders.evaluation.statistics import Estimate
from sliders.evaluation.texts.sampling import TextSampling
from sliders.files import replacing, write_text
from sliders.report.drawing import save_figure
from sliders.studies.interference import Forecast
from sliders.studies.laws import study as laws_study
from sliders.studies.laws.refitting import config_of, fit_again
from sliders.studies.laws.report import scatter_figure
from sliders.studies.scenes import states_for

AVATARS = ("smile", "surprise", "glasses", "beard", "hair_length", "hair_darkness")
LANGUAGE = ("sentiment", "formality", "confidence", "verbosity", "pirate")
INTRODUCTION = """# Predicted and measured interference

How far two sliders together are from the sum of what each does alone, in prediction space at states that the base
visits: `|f(a+b) - f(a) - f(b) + f(0)|` relative to the geometric mean of their own changes. 0 is none. The prediction
is from factors alone (`sliders.algebra.pairs`), before anything is run. The null is how far the pair is from the same
two sliders trained with another seed. Intervals are over scenes, those of correlations over pairs; p of a correlation
is by permuting sliders (Mantel). Written by `python -m benchmarks.interference`.
"""


def found(runs: Path, names: Sequence[str]) -> list[Path]:
    """Files or folders of the sliders that are there."""
    places = [(runs / name / f"{name}.safetensors", runs / name / name / "adapter_config.json") for name in names]
    return [file if file.exists() else folder.parent for file, folder in places if file.exists() or folder.exists()]


def measure(
    backbone: AbstractBackbone, files: Sequence[Path], folder: Path, twins: bool, count: int, steps: int, tokens: int
) -> dict[str, Any]:
    """The report's data, measured unless it is there for the same sliders."""
    content = [formats.load(file) for file in files]
    told = repr((twins, count, steps, tokens, [slider.digest() for slider in content]))
    key, kept = hashlib.sha256(told.encode()).hexdigest()[:32], folder / "laws.json"
    if kept.exists() and (before := json.loads(kept.read_text())).get("key") == key:
        return before
    again = {
        slider.name: fit_again(config_of(file), folder / "twins", f"{slider.name}_seed1", 1)
        for slider, file in zip(content, files, strict=True)
        if twins
    }
    backbone.load()
    how = {"image": Sampling(steps=steps), "text": TextSampling(tokens=tokens, batch=16)}[backbone.modality]
    states = states_for(backbone, content, count, None, how)
    report = laws_study.behaviour(states, content, again)
    report.data["key"] = key
    report.write(folder)
    return report.data


def page(title: str, data: dict[str, Any], picture: Path) -> list[str]:
    """A model's part of the page; its scatter is written as well."""
    pairs = [law for law in data["laws"] if law["law"] == "interaction"]
    said = data.get("forecasts", [])
    factors = next((f for f in said if (f["from"], f["by"]) == ("factors", "interference")), None)
    lines = [f"## {title}", ""]
    if factors is None:
        lines += ["Fewer than three sliders were there; a prediction needs more pairs to be compared with.", ""]
        predictions = [""] * len(pairs)
    else:
        plain = {key: value for key, value in factors.items() if key != "from"}
        forecast = Forecast(**{**plain, "correlation": Estimate(**plain["correlation"])})
        predictions = [f"{predicted:.3f}" for predicted in forecast.predicted]
        save_figure(scatter_figure(forecast, [tuple(pair["of"]) for pair in pairs]), picture)
        with replacing(picture) as new:
            Image.open(picture).quantize(64).save(new)
        lines += [f"![predicted against measured]({picture.name})", ""]
    lines += ["| pair | predicted | measured | between twins | p of more than twins |", "|---|---|---|---|---|"]
    for pair, predicted in zip(pairs, predictions, strict=True):
        gap, null = Estimate(**pair["gap"]), pair["null"]
        twin = [str(Estimate(**null)), f"{pair['p']:.2g}"] if null else ["", ""]
        lines.append("| " + " | ".join([" + ".join(pair["of"]), predicted, str(gap), *twin]) + " |")
    lines += ["", "| predictor | from | Spearman | p |", "|---|---|---|---|"] if said else []
    lines += [f"| {f['by']} | {f['from']} | {Estimate(**f['correlation'])} | {f['p']:.2g} |" for f in said]
    if "remedies" in data:
        before, after = data["remedies"]["before"], data["remedies"]["after"]
        lines += ["", f"What helps {' and '.join(before['of'])}, the pair that interacts most:", ""]
        lines += ["| remedy | interaction | kept of the changed one's effect |", "|---|---|---|"]
        lines.append(f"| none | {Estimate(**before['gap'])} | 1.00 |")
        for one in after:
            lines.append(f"| {one['what']} | {Estimate(**one['interaction']['gap'])} | {one['kept']:.2f} |")
    return [*lines, ""]


def main(
    runs: Path = Path("runs"),
    out: Path = Path("docs"),
    twins: bool = True,
    count: int = 24,
    steps: int = 15,
    tokens: int = 24,
) -> None:
    """Measure all pairs of each model.

    Args:
        runs: where the sliders are, and what is kept.
        out: where `interference.md` and the scatters go.
        twins: train every slider once more with another seed, for the null.
        count: of scenes.
        steps: of sampling the pictures whose states are compared.
        tokens: of the responses whose states are compared.
    """
    hush_libraries()
    lines = [INTRODUCTION]
    models = (
        ("Avatars", "avatars", AVATARS, UNetBackbone("data/avatars/model")),
        ("SmolLM2-135M-Instruct", "smollm2", LANGUAGE, CausalLMBackbone("smollm2")),
    )
    for title, short, names, backbone in models:
        if len(files := found(runs, names)) < 2:
            continue
        data = measure(backbone, files, runs / "interference" / short, twins, count, steps, tokens)
        lines += page(title, data, out / f"interference_{short}.png")
        print("\n".join(lines[-30:]), flush=True)
    write_text(out / "interference.md", "\n".join(lines))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
