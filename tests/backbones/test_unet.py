"""Stable Diffusion with a UNet, noise and v prediction."""

from pathlib import Path
from typing import Any

import pytest

from sliders.backbones.base import AbstractBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.errors import SliderError
from tests import tiny
from tests.backbones.contract import LatentDiffusionContract


class TestStableDiffusion(LatentDiffusionContract):
    """The shape of Stable Diffusion 1.x."""

    @classmethod
    def pipeline(cls) -> Any:
        return tiny.stable_diffusion()

    @classmethod
    def backbone(cls, folder: Path) -> AbstractBackbone:
        return UNetBackbone(str(folder))


class TestVPrediction(LatentDiffusionContract):
    """The shape of Stable Diffusion 2.x."""

    prediction = "v_prediction"

    @classmethod
    def pipeline(cls) -> Any:
        return tiny.stable_diffusion("v_prediction")

    @classmethod
    def backbone(cls, folder: Path) -> AbstractBackbone:
        return UNetBackbone(str(folder), channels_last=False)


def test_a_model_of_another_family_is_an_error(tmp_path: Path) -> None:
    """SDXL takes other conditionings; the message names the folder."""
    folder = tiny.save(tiny.stable_diffusion_xl(), tmp_path / "xl")
    with pytest.raises(SliderError, match="xl"):
        UNetBackbone(str(folder)).load()


@pytest.mark.parametrize("name", ["no/such/folder", "./folder", "folder"])
def test_what_cannot_be_a_hub_name_is_not_looked_up(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative folder that is missing is said to be missing, without going to the network."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SliderError, match="no base model at"):
        UNetBackbone(name).load()
