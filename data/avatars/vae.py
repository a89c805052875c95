"""Training of the avatar autoencoder: 64 x 64 pictures to 8 x 8 latents of 8 channels."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor


def new_autoencoder() -> AutoencoderKL:
    """A small `AutoencoderKL` in the shape Stable Diffusion uses (factor 8), with 8 latent channels."""
    shape: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (16, 32, 64, 96),
    }
    return AutoencoderKL(
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        **shape,
    )


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1], clipped as they are shown, averaged over the batch."""
    error = (output.clamp(-1, 1) - target).square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(4 / error.clamp_min(1e-8))).mean()


def _gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


class AutoencoderModule(L.LightningModule):
    """L1 + 0.5 L1 of image gradients + MSE + 1e-5 KL."""

    def __init__(self, learning_rate: float = 2e-3, total_steps: int = 3000) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.vae = new_autoencoder().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        batch = batch.contiguous(memory_format=torch.channels_last)
        posterior = self.vae.encode(batch).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        output = self.vae.decode(posterior.sample()).sample  # pyright: ignore[reportAttributeAccessIssue]
        edges = sum(F.l1_loss(a, b) for a, b in zip(_gradients(output), _gradients(batch), strict=True))
        loss = F.l1_loss(output, batch) + F.mse_loss(output, batch) + 0.5 * edges + 1e-5 * posterior.kl().mean()
        self.log("psnr", psnr(output.detach(), batch), prog_bar=True)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        latents = self.vae.encode(batch).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
        self.log("val_psnr", psnr(self.vae.decode(latents).sample, batch), prog_bar=True)  # pyright: ignore[reportAttributeAccessIssue]

    def configure_optimizers(self) -> Any:
        rate, steps = self.hparams["learning_rate"], self.hparams["total_steps"]
        optimizer = torch.optim.AdamW(self.parameters(), lr=rate, weight_decay=1e-4, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
