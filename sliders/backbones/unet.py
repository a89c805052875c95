"""Latent diffusion models with a UNet: Stable Diffusion 1.x and 2.x, noise or v prediction."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, PNDMScheduler
from torch import Tensor

from sliders.backbones.base import DiffusionBackbone, Predictor, TargetGroup, hash_weights
from sliders.backbones.vocabulary import check_vocabulary
from sliders.batch import TensorBatch, rows_of
from sliders.errors import SliderError
from sliders.paths import Source
from sliders.shipped import MODELS, model_folder


class UNetBackbone(DiffusionBackbone):
    """Stable Diffusion: states are noisy latents and their timestep, predictions are what the UNet is trained for.

    Whether that is noise or v is left to the model's own scheduler.

    Args:
        model: folder or hub name of a diffusers pipeline, or ``avatars``, which comes with the package.
        channels_last: memory format of the UNet and the autoencoder; faster convolutions.
        checkpointing: compute the UNet's blocks again in the backward pass instead of keeping what they computed:
            less memory for more time.
        compile: compile the UNet with `torch.compile`: the first call with each shape takes minutes, the next ones less
            time.  Needs a C++ compiler.
    """

    conditioning_modules = ("text_encoder",)
    predicting_modules = ("unet",)
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)

    def __init__(
        self, model: Source | str, channels_last: bool = True, checkpointing: bool = False, compile: bool = False
    ) -> None:
        super().__init__()
        self.model = str(model)
        self.channels_last, self.checkpointing, self.compiled = channels_last, checkpointing, compile
        self.pipeline: Any = None
        self._fingerprint = ""

    @property
    def base_model(self) -> str:
        return self.model

    def load(self) -> None:
        if self.pipeline is not None:
            return
        place = model_folder(self.model)
        if not Path(place).exists() and (place.startswith((".", "/")) or place.count("/") != 1):
            names = ", ".join(MODELS)
            raise SliderError(
                f"no base model at {place}: give the folder of a diffusers pipeline, a hub name, or {names}"
            )
        try:
            pipeline = DiffusionPipeline.from_pretrained(place, dtype=torch.float32, **self._unused())
        except (OSError, ValueError) as error:
            raise SliderError(f"cannot load the base model {self.model}: {error}") from error
        self.use(pipeline)

    def _unused(self) -> dict[str, Any]:
        """Parts of the pipeline that are not needed and must not be loaded."""
        return {"safety_checker": None, "requires_safety_checker": False}

    def use(self, pipeline: Any) -> None:
        """Take a pipeline that is already in memory; its modules are frozen."""
        if getattr(pipeline, "unet", None) is None:
            raise SliderError(f"{self.model} is a {type(pipeline).__name__}, which has no UNet")
        found = tuple(name for name in ("text_encoder", "text_encoder_2") if getattr(pipeline, name, None) is not None)
        if found != self.encoders:
            raise SliderError(
                f"{self.model} is a {type(pipeline).__name__} with {' and '.join(found) or 'no text encoder'}, but "
                f"{type(self).__name__} is for {' and '.join(self.encoders)}; choose the backbone of its family"
            )
        for name in self.encoders:
            tokenizer = getattr(pipeline, name.replace("text_encoder", "tokenizer"))
            check_vocabulary(tokenizer, getattr(pipeline, name), f"{self.model} ({name})")
        if isinstance(pipeline.scheduler, PNDMScheduler):
            # Stable Diffusion 1.x comes with it.  It visits one timestep twice and its steps depend on the past, so
            # that a state is not a function of its timestep; DDIM follows the same trajectory of the same model.
            pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        self.pipeline = pipeline
        self.unet, self.vae = pipeline.unet, pipeline.vae
        for name in self.encoders:
            setattr(self, name, getattr(pipeline, name))
        self._fingerprint = hash_weights(self)
        if self.channels_last:
            self.unet.to(memory_format=torch.channels_last)
            self.vae.to(memory_format=torch.channels_last)
        if self.checkpointing:
            self.unet.enable_gradient_checkpointing()
        if self.compiled:
            self.unet.compile()
        self.requires_grad_(False).eval()

    def fingerprint(self) -> str:
        return self._fingerprint

    def target_groups(self) -> dict[str, TargetGroup]:
        time = (r"time_emb", r"add_embedding", r"conv_in$", r"conv_out$")
        return {
            "xattn": TargetGroup((r"^unet\..*\.attn2\.",)),
            "xattn-strict": TargetGroup((r"^unet\..*\.attn2\.to_[kv]$",)),
            "selfattn": TargetGroup((r"^unet\..*\.attn1\.",)),
            "noxattn": TargetGroup((r"^unet\.",), (r"\.attn2\.", *time)),
            "full": TargetGroup((r"^unet\.",), time),
            "text-encoder": TargetGroup(tuple(rf"^{name}\..*(self_attn|mlp)\." for name in self.encoders)),
        }

    def encode(self, prompts: Sequence[str]) -> TensorBatch:
        with rows_of(len(prompts)):
            embeddings, _ = self.pipeline.encode_prompt(list(prompts), self.device, 1, False)
        return {"prompt_embeds": embeddings}

    def predict(self, state: TensorBatch, conditioning: TensorBatch) -> Tensor:
        latents = state["latents"]
        if self.channels_last:
            latents = latents.contiguous(memory_format=torch.channels_last)
        with rows_of(len(latents)):
            return self.unet(
                latents,
                state["timestep"],
                encoder_hidden_states=conditioning["prompt_embeds"],
                added_cond_kwargs=self._added(conditioning),
            ).sample

    def _added(self, conditioning: TensorBatch) -> dict[str, Tensor] | None:
        """What the UNet takes beside the text, where it takes anything."""
        return None

    def start(self, seeds: Sequence[int]) -> Tensor:
        size, channels = self.unet.config.sample_size, self.unet.config.in_channels
        noise = [torch.randn(channels, size, size, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(noise).to(self.device)

    def trajectory(self, predict: Predictor, start: Tensor, steps: int) -> Iterator[TensorBatch]:
        scheduler = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        scheduler.set_timesteps(steps, device=self.device)
        latents = start * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            state = {"latents": scheduler.scale_model_input(latents, t), "timestep": t.expand(len(latents))}
            yield state
            latents = scheduler.step(predict(state), t, latents).prev_sample
        yield {"latents": latents, "timestep": torch.zeros(len(latents), dtype=torch.long, device=self.device)}

    @torch.no_grad()
    def decode(self, finished: TensorBatch) -> Tensor:
        latents = finished["latents"] / self.vae.config.scaling_factor
        return torch.cat([self.vae.decode(x).sample for x in latents.split(32)]).clamp(-1, 1)

    def write(self, folder: Path) -> None:
        self.pipeline.save_pretrained(folder)
