"""Stable Diffusion XL: two text encoders, pooled embeddings and time ids beside the text."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sliders.backbones.reading import warn_unread
from sliders.backbones.unet import UNetBackbone
from sliders.batch import TensorBatch, rows_of


class SDXLBackbone(UNetBackbone):
    """SDXL; everything but the conditioning is as in `UNetBackbone`: it holds ``pooled`` ``[n, width]`` as well.

    Where the pipeline says so (`force_zeros_for_empty_prompt`, as in the published model), the conditioning of the
    empty prompt is zeros.

    Args:
        model: folder or hub name of a diffusers pipeline.
        channels_last: memory format of the UNet and the autoencoder; faster convolutions.
        checkpointing: compute the UNet's blocks again in the backward pass: less memory for more time.
        compile: compile the UNet with `torch.compile`; see `UNetBackbone`.
        height: of pictures in pixels; the model's own if None.  What the UNet is told of their size follows it.
        width: likewise.
        scheduler: class of diffusers to sample with instead of the pipeline's own.
        eta: how much noise steps add where the scheduler lets this be chosen.
        device: where it runs; see `UNetBackbone`.
        dtype: precision of the weights; see `UNetBackbone`.
        revision: of a hub model: a branch, a tag or a commit.
        variant: of the files that are read, such as ``fp16``, where the model has several.
    """

    conditioning_modules = ("text_encoder", "text_encoder_2")
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")

    @property
    def recipe(self) -> str:
        return "sdxl/age"

    def _unused(self) -> dict[str, Any]:
        return {}

    def encode(self, prompts: Sequence[str]) -> TensorBatch:
        warn_unread(self, prompts)
        with rows_of(len(prompts)):
            embeddings, _, pooled, _ = self.pipeline.encode_prompt(
                list(prompts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        if self.pipeline.config.get("force_zeros_for_empty_prompt"):
            empty = torch.tensor([not prompt for prompt in prompts], device=self.device)
            embeddings = embeddings.masked_fill(empty[:, None, None], 0)
            pooled = pooled.masked_fill(empty[:, None], 0)
        return {"prompt_embeds": embeddings, "pooled": pooled}

    def _added(self, latents: Tensor, conditioning: TensorBatch) -> dict[str, Tensor] | None:
        """The pooled text, and the time ids of a picture that was neither resized nor cropped to its size."""
        pooled, factor = conditioning["pooled"], self.pipeline.vae_scale_factor
        size = [side * factor for side in latents.shape[-2:]]
        time_ids = torch.tensor([*size, 0, 0, *size], dtype=pooled.dtype, device=self.device)
        return {"text_embeds": pooled, "time_ids": time_ids.repeat(len(latents), 1)}
