"""How good the embedded model is: `python -m data.avatars.measure`.

Reads held-out renders and held-out captions, which no training saw, and writes `quality.json` and `samples.png`.
The same command measures the flow model (`--model data/avatars/flow --out data/avatars/flow_quality`), an edited model
(`--model runs/erase_sunglasses/model`) or a slider (`--slider FILE`).
"""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor

from data.avatars import build, corpus
from data.avatars.attributes import VALUES
from data.avatars.judge import accuracy
from data.avatars.vae import psnr
from sliders.backbones.choice import backbone_of
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.evaluation.pictures.sampling import Sampling, Scene, sample
from sliders.files import replacing, write_text
from sliders.formats import diffusers as slider_file
from sliders.report.drawing import grid
from sliders.resources.shipped import MODELS, shipped
from sliders.runtime.attach import attach


def followed(
    judge: AttributeJudge, pictures: Tensor, captions: list[tuple[str, corpus.Avatar, list[str]]]
) -> dict[str, dict[str, list[int]]]:
    """How often a named attribute is in the picture: ``{attribute: {value: [found, named]}}``."""
    counts = {name: {value: [0, 0] for value in values} for name, values in VALUES.items()}
    read = judge.probabilities(pictures)
    for row, (_, avatar, named) in enumerate(captions):
        for name in named:
            value = VALUES[name][int(read[name][row].argmax())]
            counts[name][avatar[name]][0] += value == avatar[name]
            counts[name][avatar[name]][1] += 1
    return counts


def measure(
    model: Path = build.MODEL,
    slider: Path | None = None,
    dial: float = 1.0,
    captions: int = 500,
    reconstruct: bool = True,
    out: Path = build.HERE,
) -> None:
    """Measure a model of avatars.

    Args:
        model: folder of the pipeline.
        slider: attach this slider file.
        dial: where to turn it.
        captions: how many held-out captions to sample, at guidance 4 with 25 steps.
        reconstruct: also measure the autoencoder and the judge on held-out renders (needs the renderer's packages).
        out: folder for `quality.json` and `samples.png`.
    """
    backbone: Any = backbone_of(
        next((name for name, place in MODELS.items() if shipped(place) == model.resolve()), str(model))
    )
    backbone.load()
    judge = AttributeJudge.load(build.JUDGE)
    quality: dict[str, object] = {}
    if reconstruct:
        test = corpus.load("test", build.CACHE)
        renders = build.pictures("test")
        quality["judge_accuracy"] = accuracy(judge, renders, torch.from_numpy(test.labels()))
        with torch.no_grad():
            latents = [backbone.vae.encode(x).latent_dist.mean for x in renders[:1000].split(50)]
            decoded = torch.cat([backbone.vae.decode(x).sample for x in latents])
        quality["autoencoder_psnr_db"] = float(psnr(decoded, renders[:1000]))
        quality["judge_accuracy_after_autoencoder"] = accuracy(
            judge, decoded.clamp(-1, 1), torch.from_numpy(test.labels()[:1000])
        )
    asked = corpus.heldout_captions(captions)
    wanted = [Scene(text, 5000 + i) for i, (text, _, _) in enumerate(asked)]
    loaded = [slider_file.load(slider)] if slider else []
    with attach(backbone, loaded, {s.name: dial for s in loaded}) if loaded else nullcontext():
        pictures = sample(backbone, wanted, Sampling(steps=25, guidance=4.0))
    counts = followed(judge, pictures, asked)
    out.mkdir(parents=True, exist_ok=True)
    quality["followed_by_value"] = {n: {v: c[0] / max(1, c[1]) for v, c in per.items()} for n, per in counts.items()}
    quality["followed"] = {
        n: sum(c[0] for c in per.values()) / sum(c[1] for c in per.values()) for n, per in counts.items()
    }
    write_text(out / "quality.json", json.dumps(quality, indent=1) + "\n")
    shown = pictures[:64].unflatten(0, (8, 8)).transpose(0, 1)
    with replacing(out / "samples.png") as new:
        grid(shown, [""] * 8, [""] * 8, "64 held-out captions, guidance 4, 25 steps").save(new)
    print(json.dumps(quality, indent=1))


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    auto_cli(measure, as_positional=False)
