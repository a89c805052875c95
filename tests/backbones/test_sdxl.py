"""Stable Diffusion XL."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sliders.backbones.base import AbstractBackbone
from sliders.backbones.sdxl import SDXLBackbone
from sliders.errors import SliderError
from tests import tiny
from tests.backbones.contract import LatentDiffusionContract


class TestSDXL(LatentDiffusionContract):
    """Two text encoders, pooled embeddings and time ids."""

    @classmethod
    def pipeline(cls) -> Any:
        return tiny.stable_diffusion_xl()

    @classmethod
    def backbone(cls, folder: Path) -> AbstractBackbone:
        return SDXLBackbone(str(folder))

    def test_prediction_is_that_of_the_pipeline(self, model: SDXLBackbone) -> None:
        """The conditioning is put together as diffusers does: one step of its own pipeline is one step of ours."""
        latents = model.start([5])
        theirs = model.pipeline(
            "a happy person", num_inference_steps=1, guidance_scale=1.0, latents=latents, output_type="latent"
        ).images
        prompt = model.encode(["a happy person"])
        *_, ours = model.trajectory(lambda state: model.predict(state, prompt), latents, 1, [5])
        torch.testing.assert_close(ours["latents"], theirs, rtol=1e-4, atol=1e-5)


def test_a_model_of_another_family_is_an_error(tmp_path: Path) -> None:
    """Stable Diffusion 1.x has no second text encoder; the message names the folder."""
    folder = tiny.save(tiny.stable_diffusion(), tmp_path / "sd")
    with pytest.raises(SliderError, match="sd"):
        SDXLBackbone(str(folder)).load()
