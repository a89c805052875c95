"""Stable Diffusion XL: two text encoders, pooled embeddings and time ids beside the text."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sliders.backbones.unet import UNetBackbone
from sliders.batch import TensorBatch, rows_of


class SDXLBackbone(UNetBackbone):
    """SDXL at one picture size; everything but the conditioning is as in `UNetBackbone`.

    Where the pipeline says so (`force_zeros_for_empty_prompt`, as in the published model), the conditioning of the
    empty prompt is zeros.

    Args:
        model: folder or hub name of a diffusers pipeline.
        channels_last: memory format of the UNet and the autoencoder; faster convolutions.
        checkpointing: compute the UNet's blocks again in the backward pass: less memory for more time.
        compile: compile the UNet with `torch.compile`; see `UNetBackbone`.
    """

    conditioning_modules = ("text_encoder", "text_encoder_2")
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")

    def _unused(self) -> dict[str, Any]:
        return {}

    def encode(self, prompts: Sequence[str]) -> TensorBatch:
        with rows_of(len(prompts)):
            embeddings, _, pooled, _ = self.pipeline.encode_prompt(
                list(prompts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        if self.pipeline.config.get("force_zeros_for_empty_prompt"):
            empty = torch.tensor([not prompt for prompt in prompts], device=self.device)
            embeddings = embeddings.masked_fill(empty[:, None, None], 0)
            pooled = pooled.masked_fill(empty[:, None], 0)
        side = self.unet.config.sample_size * self.pipeline.vae_scale_factor
        time_ids = torch.tensor([side, side, 0, 0, side, side], dtype=embeddings.dtype, device=self.device)
        return {"prompt_embeds": embeddings, "pooled": pooled, "time_ids": time_ids.repeat(len(prompts), 1)}

    def _added(self, conditioning: TensorBatch) -> dict[str, Tensor] | None:
        return {"text_embeds": conditioning["pooled"], "time_ids": conditioning["time_ids"]}
