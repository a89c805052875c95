"""Training of the avatar diffusion model: UNet and text encoder, in Stable Diffusion's shape."""

import random
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from torch import Tensor
from torch.utils.data import Dataset
from transformers import CLIPTokenizer

from data.avatars.attributes import Avatar, training_caption
from data.avatars.text import encode_caption, new_text_encoder


def new_unet() -> UNet2DConditionModel:
    """Two levels with cross-attention on 8 x 8 latents; about 9.5 million parameters."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        layers_per_block=1,
        block_out_channels=(96, 192),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's scaled-linear schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class CaptionedLatents(Dataset[tuple[Tensor, Tensor]]):
    """Scaled latents ``[n, 8, 8, 8]``, each with a caption drawn anew every time it is read."""

    def __init__(self, latents: Tensor, avatars: list[Avatar], tokenizer: CLIPTokenizer, seed: int = 0) -> None:
        self.latents, self.avatars, self.tokenizer = latents, avatars, tokenizer
        self.rng = random.Random(seed)

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        text = training_caption(self.avatars[index], self.rng)
        return self.latents[index], encode_caption(self.tokenizer, text)


def noise_weight(snr: Tensor, gamma: float = 6.0, largest: float = 25.0) -> Tensor:
    """How much a squared error of the noise counts at a signal-to-noise ratio ``[n]``.

    In terms of the clean latents the weight is ``min(snr + 1, gamma)``: that of v prediction, truncated as in Min-SNR
    (Hang et al. 2023).  With the noise's own weight of 1, colours hardly follow the caption: they are decided where
    there is almost only noise, and there an error of the clean latents counts ``snr`` times.
    """
    return ((snr + 1).clamp(max=gamma) / snr).clamp(max=largest)


class DiffusionModule(L.LightningModule):
    """Noise prediction."""

    def __init__(self, tokenizer: CLIPTokenizer, learning_rate: float = 1e-3, total_steps: int = 3500) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="tokenizer")
        self.text_encoder = new_text_encoder(tokenizer)
        self.unet = new_unet().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.scheduler = new_scheduler()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        latents, tokens = batch
        noise = torch.randn_like(latents)
        t = torch.randint(0, self.scheduler.config["num_train_timesteps"], (len(latents),))
        noisy = self.scheduler.add_noise(latents, noise, t)  # pyright: ignore[reportArgumentType]
        context = self.text_encoder(tokens).last_hidden_state
        predicted = self.unet(noisy.contiguous(memory_format=torch.channels_last), t, context).sample
        weight = noise_weight(compute_snr(self.scheduler, t))
        loss = (F.mse_loss(predicted, noise, reduction="none").mean((1, 2, 3)) * weight).mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        rate, steps = self.hparams["learning_rate"], self.hparams["total_steps"]
        optimizer = torch.optim.AdamW(self.parameters(), lr=rate, weight_decay=1e-2, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
