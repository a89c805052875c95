"""Training of the avatar flow model: a transformer in Stable Diffusion 3's shape, on latents and words of the first.

The autoencoder and the text encoder are the diffusion model's and stay as they are.
"""

import random
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

LONGEST = 256
"""Tokens of the third text encoder, which this model has not: diffusers puts as many zeros in its place."""


def new_transformer() -> SD3Transformer2DModel:
    """Six joint blocks of width 192 on 8 x 8 latents, one token each; about 7.9 million parameters."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=8,
        out_channels=8,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=256,
        caption_projection_dim=192,
        pooled_projection_dim=256,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )


def with_projection(encoder: CLIPTextModel) -> CLIPTextModelWithProjection:
    """The same text encoder as Stable Diffusion 3 wants it: what it projects is its summary as it is."""
    made = CLIPTextModelWithProjection(encoder.config)
    made.text_model.load_state_dict(encoder.state_dict(), strict=False)
    with torch.no_grad():
        made.text_projection.weight.copy_(torch.eye(len(made.text_projection.weight)))
    return made.eval().requires_grad_(False)


def read(encoder: CLIPTextModelWithProjection, tokens: Tensor, more: int) -> tuple[Tensor, Tensor]:
    """What `StableDiffusion3Pipeline` makes of captions with this encoder twice and without a third one.

    Args:
        encoder: of text.
        tokens: ``[n, TOKENS]``.
        more: tokens of zeros in the third one's place.

    Returns:
        States ``[n, TOKENS + more, 256]`` and summaries ``[n, 256]``.
    """
    said = encoder(tokens, output_hidden_states=True)
    states = said.hidden_states[-2].repeat(1, 1, 2)
    zeros = states.new_zeros(len(states), more, states.shape[-1])
    return torch.cat([states, zeros], 1), said.text_embeds.repeat(1, 2)


class FlowModule(L.LightningModule):
    """Rectified flow: the velocity from picture to noise, at logit-normal times (Esser et al. 2024, eq. 13 and 19)."""

    def __init__(
        self, encoder: CLIPTextModelWithProjection, learning_rate: float = 1e-3, total_steps: int = 1600
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="encoder")
        self.transformer = new_transformer()
        self._encoder = [encoder]  # not a part of what is trained and kept
        self._rng = random.Random(0)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        latents, tokens = batch
        more = LONGEST if self._rng.random() < 0.06 else 0  # so that it can be called with diffusers' default as well
        with torch.no_grad():
            context, pooled = read(self._encoder[0], tokens, more)
        noise = torch.randn_like(latents)
        sigma = torch.sigmoid(torch.randn(len(latents)) + 0.5)
        share = sigma.view(-1, 1, 1, 1)
        said = self.transformer(
            (1 - share) * latents + share * noise,
            encoder_hidden_states=context,
            pooled_projections=pooled,
            timestep=1000 * sigma,
        ).sample
        loss = F.mse_loss(said, noise - latents)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        rate, steps = self.hparams["learning_rate"], self.hparams["total_steps"]
        optimizer = torch.optim.AdamW(self.parameters(), lr=rate, weight_decay=1e-2, betas=(0.9, 0.99), fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.03, final_div_factor=1000)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
