"""Build the embedded avatar models from nothing: `python -m data.avatars.build all`.

Stages, each resumable (run the same command again): `vae`, `judge`, `text`, `diffusion`, `export`, `flow`,
`export_flow`.  Work in progress lies in `data/avatars/cache/`; `export` writes `data/avatars/model/`, `judge`
`data/avatars/judge.safetensors`, and `export_flow` `data/avatars/flow/`.
"""

import copy
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from data.avatars import corpus
from sliders.files import replacing

HERE = Path(__file__).parent
CACHE = HERE / "cache"
MODEL = HERE / "model"
FLOW = HERE / "flow"
JUDGE = HERE / "judge.safetensors"


def pictures(split: str, count: int | None = None) -> Tensor:
    """float32 ``[n, 3, 64, 64]`` in [-1, 1]."""
    images = torch.from_numpy(corpus.load(split, CACHE, count).images)
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _first(rows: list[tuple[Tensor, ...]]) -> Tensor:
    return torch.stack([row[0] for row in rows])


def _endless(data: list[Tensor], batch: int, steps: int) -> DataLoader[tuple[Tensor, ...]]:
    dataset = TensorDataset(*data)
    sampler = RandomSampler(dataset, replacement=True, num_samples=steps * batch)
    collate = _first if len(data) == 1 else None
    return DataLoader(dataset, batch, sampler=sampler, collate_fn=collate)


def _trainer(name: str, steps: int, ema: float | None = None, **kwargs: object) -> tuple[L.Trainer, str | None]:
    folder = CACHE / name
    keep = ModelCheckpoint(folder, filename="last", every_n_train_steps=200, save_top_k=1, enable_version_counter=False)
    callbacks: list[L.Callback] = [keep, TQDMProgressBar(refresh_rate=20)]
    if ema is not None:
        callbacks.append(EMAWeightAveraging(decay=ema, update_starting_at_step=steps // 2))
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        callbacks=callbacks,
        logger=CSVLogger(folder),
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        **kwargs,  # pyright: ignore[reportArgumentType]
    )
    last = folder / "last.ckpt"
    return trainer, str(last) if last.exists() else None


def vae(steps: int = 3000, batch: int = 16, count: int = 6000) -> None:
    """Train the autoencoder; about 25 minutes on two cores."""
    from data.avatars.vae import AutoencoderModule

    L.seed_everything(0)
    trainer, resume = _trainer("vae", steps, ema=0.998, val_check_interval=500)
    test = DataLoader(TensorDataset(pictures("test")[:500]), 50, collate_fn=_first)
    module = AutoencoderModule(total_steps=steps)
    trainer.fit(module, _endless([pictures("train", count)], batch, steps), test, ckpt_path=resume)
    trained = module.vae.eval()
    with torch.no_grad():
        sample = pictures("train", count)[:1000]
        latents = torch.cat([trained.encode(x).latent_dist.mean for x in sample.split(100)])  # pyright: ignore[reportAttributeAccessIssue]
    trained.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    trained.save_pretrained(CACHE / "vae" / "trained")


def judge(steps: int = 1500, batch: int = 64) -> None:
    """Train the attribute judge on renders of its own; about 6 minutes on two cores."""
    from data.avatars.judge import JudgeModule, accuracy, regions

    L.seed_everything(0)
    labels = {split: torch.from_numpy(corpus.load(split, CACHE).labels()) for split in ("judge", "test")}
    trainer, resume = _trainer("judge", steps)
    module = JudgeModule(total_steps=steps)
    trainer.fit(module, _endless([pictures("judge"), labels["judge"]], batch, steps), ckpt_path=resume)
    trained = module.judge.eval()
    for name, region in regions().items():
        trained.get_buffer(f"where_{name}").copy_(region)
    trained.save(JUDGE)
    for name, share in accuracy(trained, pictures("test"), labels["test"]).items():
        print(f"{name:15s} {share:.4f}")


def text(steps: int = 1500, batch: int = 64, start_from: Path | None = None) -> None:
    """Train the tokenizer, and the text encoder to read captions; about 4 minutes on two cores.

    Args:
        steps: of training.
        batch: captions in a step.
        start_from: folder of an exported model, whose text encoder learns on.
    """
    from transformers import CLIPTextModel

    from data.avatars.text import ReadCaptions, ReaderModule, train_tokenizer

    L.seed_everything(0)
    tokenizer = train_tokenizer([corpus.avatar_at("train", i) for i in range(3000)], CACHE / "text" / "tokenizer")
    trainer, resume = _trainer("text", steps)
    module = ReaderModule(tokenizer, total_steps=steps)
    if start_from is not None:
        earlier = CLIPTextModel.from_pretrained(start_from, subfolder="text_encoder", dtype=torch.float32)
        module.text_encoder.load_state_dict(earlier.state_dict())
    trainer.fit(module, DataLoader(ReadCaptions(tokenizer, steps * batch), batch), ckpt_path=resume)
    module.text_encoder.save_pretrained(CACHE / "text" / "trained")


def diffusion(steps: int = 4200, batch: int = 32, start_from: Path | None = None) -> None:
    """Train UNet and text encoder on the autoencoder's latents; about half an hour on two quiet cores.

    Args:
        steps: of training.
        batch: captioned latents in a step.
        start_from: folder of an exported model, whose autoencoder is used and whose UNet learns on.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from data.avatars.diffusion import CaptionedLatents, DiffusionModule

    L.seed_everything(0)
    data = corpus.load("train", CACHE)
    tokenizer = CLIPTokenizer.from_pretrained(CACHE / "text" / "tokenizer")
    if start_from is not None:
        autoencoder = AutoencoderKL.from_pretrained(start_from, subfolder="vae", torch_dtype=torch.float32)
        autoencoder.save_pretrained(CACHE / "vae" / "trained")
    latents_file = CACHE / "diffusion" / "latents.pt"
    if not latents_file.exists():
        autoencoder = AutoencoderKL.from_pretrained(CACHE / "vae" / "trained").eval()
        with torch.no_grad():
            parts = [autoencoder.encode(x).latent_dist.mean for x in pictures("train").split(100)]  # pyright: ignore[reportAttributeAccessIssue]
        with replacing(latents_file) as new:
            torch.save(torch.cat(parts) * autoencoder.config["scaling_factor"], new)
    latents = torch.load(latents_file, weights_only=True)
    dataset = CaptionedLatents(latents, data.avatars, tokenizer)
    sampler = RandomSampler(dataset, replacement=True, num_samples=steps * batch)
    trainer, resume = _trainer("diffusion", steps, ema=0.998)
    module = DiffusionModule(tokenizer, total_steps=steps)
    module.text_encoder.load_state_dict(CLIPTextModel.from_pretrained(CACHE / "text" / "trained").state_dict())
    if start_from is not None:
        earlier = UNet2DConditionModel.from_pretrained(start_from, subfolder="unet", torch_dtype=torch.float32)
        module.unet.load_state_dict(earlier.state_dict())  # pyright: ignore[reportAttributeAccessIssue]
    trainer.fit(module, DataLoader(dataset, batch, sampler=sampler), ckpt_path=resume)
    trainer.save_checkpoint(CACHE / "diffusion" / "last.ckpt")


def export(folder: Path = MODEL) -> None:
    """Write the model of the newest checkpoint (its averaged weights) as a pipeline, in float16."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    from data.avatars.diffusion import DiffusionModule
    from sliders.formats.pretrained import save_pipeline

    tokenizer = CLIPTokenizer.from_pretrained(CACHE / "text" / "tokenizer")
    module = DiffusionModule(tokenizer)
    checkpoint = torch.load(CACHE / "diffusion" / "last.ckpt", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    vae = AutoencoderKL.from_pretrained(CACHE / "vae" / "trained")
    vae.register_to_config(_name_or_path="vae")  # not a folder of this machine
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=module.text_encoder,
        tokenizer=tokenizer,
        unet=module.unet,
        scheduler=module.scheduler,  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    save_pipeline(pipeline.to(torch.float16), folder, ["text_encoder"])
    print(f"step {checkpoint['global_step']} -> {folder}")


def flow(steps: int = 1600, batch: int = 48, count: int = 10_000, base: Path = MODEL) -> None:
    """Train the flow transformer on the latents and the words of the exported diffusion model; about 40 minutes on two
    quiet cores.

    Args:
        steps: of training.
        batch: captioned latents in a step.
        count: of renders.
        base: folder of the model whose autoencoder and text encoder it shares.
    """
    from diffusers import StableDiffusionPipeline

    from data.avatars.diffusion import CaptionedLatents
    from data.avatars.flow import FlowModule, with_projection

    L.seed_everything(0)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    data, latents_file = corpus.load("train", CACHE, count), CACHE / "flow" / f"latents-{count}.pt"
    if not latents_file.exists():
        with torch.no_grad():
            parts = [pipeline.vae.encode(x).latent_dist.mean for x in pictures("train", count).split(100)]
        latents_file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(latents_file) as new:
            torch.save(torch.cat(parts) * pipeline.vae.config["scaling_factor"], new)
    dataset = CaptionedLatents(torch.load(latents_file, weights_only=True), data.avatars, pipeline.tokenizer)
    sampler = RandomSampler(dataset, replacement=True, num_samples=steps * batch)
    trainer, resume = _trainer("flow", steps, ema=0.998)
    module = FlowModule(with_projection(pipeline.text_encoder), total_steps=steps)
    trainer.fit(module, DataLoader(dataset, batch, sampler=sampler), ckpt_path=resume)
    trainer.save_checkpoint(CACHE / "flow" / "last.ckpt")


def export_flow(folder: Path = FLOW, base: Path = MODEL) -> None:
    """Write the flow model of the newest checkpoint (its averaged weights) as a pipeline, in float16.

    Args:
        folder: of the new model.
        base: folder of the model whose autoencoder and text encoder it shares.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline, StableDiffusionPipeline

    from data.avatars.flow import FlowModule, with_projection
    from sliders.formats.pretrained import save_pipeline

    shared: Any = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    encoder = with_projection(shared.text_encoder)
    module = FlowModule(encoder)
    checkpoint = torch.load(CACHE / "flow" / "last.ckpt", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    shared.vae.register_to_config(_name_or_path="vae", shift_factor=0.0)
    pipeline: Any = StableDiffusion3Pipeline(
        transformer=module.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=shared.vae,
        text_encoder=encoder,
        tokenizer=shared.tokenizer,
        text_encoder_2=copy.deepcopy(encoder),
        tokenizer_2=shared.tokenizer,
        text_encoder_3=None,  # pyright: ignore[reportArgumentType]
        tokenizer_3=None,  # pyright: ignore[reportArgumentType]
    )
    save_pipeline(pipeline.to(torch.float16), folder, ["text_encoder", "text_encoder_2"])
    print(f"step {checkpoint['global_step']} -> {folder}")


def prompts(count: int = 64) -> None:
    """Write held-out prompts: `<attribute>.txt` leave that attribute open, `sunglasses.txt` ask for them."""
    from data.avatars.attributes import VALUES, caption

    for attribute in ("expression", "glasses", "beard", "hair", "hair_color"):
        lines = []
        for _, avatar, named in corpus.heldout_captions(4 * count):
            if attribute == "hair_color" and avatar["hair"] == "bald":
                continue
            said = [name for name in named if name != attribute and name in VALUES]
            if attribute == "hair":
                said = [name for name in said if name != "hair_color"]
            lines.append(caption(avatar, said))
        (HERE / "prompts" / f"{attribute}.txt").write_text("\n".join(lines[:count]) + "\n")
    asking = [
        caption({**avatar, "glasses": "sunglasses"}, [name for name in VALUES if name in named or name == "glasses"])
        for _, avatar, named in corpus.heldout_captions(count)
    ]
    (HERE / "prompts" / "sunglasses.txt").write_text("\n".join(asking) + "\n")


def everything() -> None:
    """All stages, one after the other."""
    vae()
    judge()
    text()
    diffusion()
    export()
    flow()
    export_flow()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_flush_denormal(True)
    auto_cli(
        {
            "all": everything,
            "vae": vae,
            "judge": judge,
            "text": text,
            "diffusion": diffusion,
            "export": export,
            "flow": flow,
            "export_flow": export_flow,
            "prompts": prompts,
        }
    )
