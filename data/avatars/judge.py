"""Training of the attribute judge on renders that the diffusion model never sees."""

import random
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from data.avatars.attributes import VALUES, sample_avatar
from data.avatars.render import render
from sliders.evaluation.pictures.judge import AttributeJudge


def degrade(images: Tensor) -> Tensor:
    """What separates samples from renders, at random strength: blur, noise, a shift of a pixel or two, brightness."""
    n = len(images)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = images.lerp(blurred, torch.rand(n, 1, 1, 1) * 0.7)
    images = images * (1 + 0.1 * torch.randn(n, 1, 1, 1)) + 0.05 * torch.randn(n, 3, 1, 1)
    images = images + torch.rand(n, 1, 1, 1) * 0.1 * torch.randn_like(images)
    dx, dy = torch.randint(-2, 3, (2,)).tolist()
    return images.roll((dx, dy), (2, 3))


class JudgeModule(L.LightningModule):
    """Cross-entropy per head; an attribute that a picture does not show (label -1) is left out."""

    def __init__(self, learning_rate: float = 2e-3, total_steps: int = 1000) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.judge = AttributeJudge(VALUES)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        scores = self.judge(degrade(images))
        loss = sum(F.nll_loss(s, labels[:, i], ignore_index=-1) for i, s in enumerate(scores.values()))
        self.log("loss", loss, prog_bar=True)
        return torch.as_tensor(loss)

    def configure_optimizers(self) -> Any:
        rate, steps = self.hparams["learning_rate"], self.hparams["total_steps"]
        optimizer = torch.optim.AdamW(self.parameters(), lr=rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def accuracy(judge: AttributeJudge, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of pictures that each head reads rightly, over those that show the attribute."""
    out: dict[str, float] = {}
    for i, (name, probability) in enumerate(judge.probabilities(images).items()):
        shown = labels[:, i] >= 0
        out[name] = (probability.argmax(-1) == labels[:, i])[shown].float().mean().item()
    return out


def regions(count: int = 40, threshold: float = 0.04) -> dict[str, Tensor]:
    """Where each attribute can show: 1 where changing it alone changes the drawing, ``[64, 64]`` of 0 and 1.

    For ``count`` avatars every value of the attribute is drawn; a pixel belongs to the region where any two drawings
    of one avatar differ by more than ``threshold`` of the range.
    """
    out: dict[str, Tensor] = {}
    for name, values in VALUES.items():
        region = torch.zeros(64, 64, dtype=torch.bool)
        for index in range(count):
            rng = random.Random(f"regions/{index}")
            avatar = sample_avatar(rng)
            if name == "hair_color" and avatar["hair"] == "bald":
                avatar["hair"] = "short"
            drawn = [
                torch.from_numpy(render({**avatar, name: value}, random.Random(k)).astype("float32")) / 255
                for value in values
                for k in range(2)
            ]
            stack = torch.stack(drawn).mean(-1)
            region |= (stack.amax(0) - stack.amin(0)) > threshold
        out[name] = region.float()
    return out
