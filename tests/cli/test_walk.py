"""From the command to the dial: calls go downward, from package to package."""

import sys
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from sliders.backbones.unet import UNetBackbone
from sliders.cli import main as cli
from sliders.formats import diffusers
from tests.commands import run, world
from tests.factory import slider
from tests.test_imports import FLOORS, GROUND, ROOT

FLOOR = {package: height for height, packages in enumerate(FLOORS) for package in packages}


def package(frame: FrameType | None) -> str | None:
    """Of ours that a frame is in; what is imported meanwhile does not count."""
    if frame is None or frame.f_code.co_name == "<module>":
        return None
    place = Path(frame.f_code.co_filename)
    found = place.relative_to(ROOT).parts[0].removesuffix(".py") if place.is_relative_to(ROOT) else None
    return found if found in FLOOR else None  # not the front door, which only hands things out


class Walk:
    """Which package calls which, directly or by a library in between."""

    def __init__(self) -> None:
        self.steps: set[tuple[str, str]] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        here = package(frame) if event == "call" else None
        if here is None or here in GROUND:
            return
        above = frame.f_back
        while above is not None and (package(above) is None or package(above) in GROUND):
            above = above.f_back
        if (caller := package(above)) is not None and caller != here:
            self.steps.add((caller, here))


def test_generate_walks_down_to_the_dial(tmp_path: Path) -> None:
    made, walk = world(tmp_path), Walk()
    backbone = UNetBackbone(str(made.model))
    backbone.load()
    name = backbone.select_targets(["xattn"])[0]
    diffusers.save(slider(backbone, {name: 2}), tmp_path / "s.safetensors")
    flags = ["--base", made.model, "--sampling.steps", 2, "--out", tmp_path / "grid.png"]
    sys.setprofile(walk)
    try:
        ended = run(cli.main, "generate", "a person", "--slider", tmp_path / "s.safetensors", *flags)
    finally:
        sys.setprofile(None)
    assert ended.code == 0, ended.err
    assert not {f"{caller} calls {called}" for caller, called in walk.steps if FLOOR[caller] <= FLOOR[called]}
    way = ["cli", "media", "evaluation", "backbones", "runtime", "algebra"]
    assert walk.steps >= set(pairwise(way))
