"""Latent diffusion models with a UNet: Stable Diffusion 1.x and 2.x, noise or v prediction."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sliders.backbones import schedulers
from sliders.backbones.diffusion import DiffusionBackbone
from sliders.backbones.guidance import Predictor
from sliders.backbones.origin import Origin
from sliders.backbones.pipelines import check_pipeline, picture_side, read_pipeline, unread, whole_pipeline
from sliders.backbones.placement import Placement
from sliders.backbones.precision import Precision
from sliders.backbones.reading import warn_unread
from sliders.backbones.targets import TargetGroup
from sliders.batch import TensorBatch, rows_of
from sliders.formats.pretrained import save_pipeline
from sliders.resources.paths import Source
from sliders.resources.shipped import DEFAULT_CONFIG, model_folder


class UNetBackbone(DiffusionBackbone):
    """Stable Diffusion: states are noisy latents and their timestep, predictions are what the UNet is trained for.

    Whether that is noise or v is left to the model's own scheduler.  A state holds ``latents`` ``[n, channels, high,
    wide]``, in whose units predictions are, and ``timestep`` ``[n]``; a conditioning holds ``prompt_embeds`` ``[n,
    tokens, width]``.

    Args:
        model: folder or hub name of a diffusers pipeline, or ``avatars``, which comes with the package.
        channels_last: memory format of the UNet and the autoencoder; faster convolutions.
        checkpointing: compute the UNet's blocks again in the backward pass instead of keeping what they computed:
            less memory for more time.
        compile: compile the UNet with `torch.compile`: the first call with each shape takes minutes, the next ones less
            time.  Needs a C++ compiler.
        height: of pictures in pixels, in training and where sampling does not say otherwise; the model's own if None.
        width: likewise.
        scheduler: class of diffusers to sample with instead of the pipeline's own, such as ``DDIMScheduler``.
        eta: how much noise steps add where the scheduler lets this be chosen (DDIM, TCD): from 0, none, to 1.
        device: where it runs: ``cpu``, ``cuda``, one such as ``cuda:1``, or ``mps``; ``auto`` is the best there is.
        dtype: precision of the weights; ``auto`` is float32 on the CPU, and elsewhere that of the UNet's file.  The
            autoencoder is float32 where the rest is float16, in which numbers of SDXL's have no place.
        revision: of a hub model: a branch, a tag or a commit.
        variant: of the files that are read, such as ``fp16``, where the model has several.
    """

    conditioning_modules = ("text_encoder",)
    predicting_modules = ("unet",)
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)

    def __init__(
        self, model: Source | str, channels_last: bool = True, checkpointing: bool = False, compile: bool = False,
        height: int | None = None, width: int | None = None, scheduler: str | None = None, eta: float = 0.0,
        device: str = "auto", dtype: Precision = "auto", revision: str | None = None, variant: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.revision, self.variant = str(model), revision, variant
        self.placement = Placement(device, dtype)
        self.height, self.width, self.scheduler_name, self.eta = height, width, scheduler, eta
        self.channels_last, self.checkpointing, self.compiled = channels_last, checkpointing, compile
        self.pipeline: Any = None
        self.scheduler: Any = None

    @property
    def base_model(self) -> str:
        return self.model

    @property
    def recipe(self) -> str:
        embedded = Path(model_folder(self.model)).resolve() == Path(model_folder("avatars"))
        return DEFAULT_CONFIG if embedded else "sd15/age"

    def load(self) -> None:
        if self.pipeline is not None:
            return
        read = read_pipeline(
            self.model, self.placement, ("unet",), self.revision, self.variant, self._unused(), self._check_scheduler
        )
        self.use(read.pipeline)
        self.origin = read.origin

    def _check_scheduler(self, config: Mapping[str, Any]) -> None:
        if name := self.scheduler_name or config.get("scheduler", (None, None))[1]:
            schedulers.check(name, self.model)

    def _unused(self) -> dict[str, Any]:
        """Parts of the pipeline that are not needed and must not be loaded."""
        return {"safety_checker": None, "requires_safety_checker": False}

    def use(self, pipeline: Any) -> None:
        """Take a pipeline that is already in memory, where it is and in its precision; its modules are frozen.

        `load` does nothing afterwards.  In messages and in files it is called what the constructor was given.  Its
        parts get one precision, the UNet's, but for an autoencoder in float16, which becomes float32.

        Args:
            pipeline: of diffusers, of this family.

        Raises:
            SliderError: it is of another family, or was made for other prompts or schedulers than it has.
        """
        check_pipeline(pipeline, self.encoders, self.model, type(self).__name__)
        self.scheduler = schedulers.sampler(pipeline.scheduler, self.model, self.scheduler_name)
        for name in self.encoders:  # a library may have opened a pipeline in several precisions
            getattr(pipeline, name).to(pipeline.unet.dtype)
        if pipeline.vae.dtype == torch.float16:  # which SDXL's overflows
            pipeline.vae.to(torch.float32)
        self.pipeline = pipeline
        self.unet, self.vae = pipeline.unet, pipeline.vae
        for name in self.encoders:
            setattr(self, name, getattr(pipeline, name))
        self.origin = Origin()
        if self.channels_last:
            self.unet.to(memory_format=torch.channels_last)
            self.vae.to(memory_format=torch.channels_last)
        if self.checkpointing:
            self.unet.enable_gradient_checkpointing()
        if self.compiled:
            self.unet.compile()
        self.requires_grad_(False).eval()

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

    def unread(self, prompts: Sequence[str]) -> dict[str, str]:
        return unread(self.pipeline, self.encoders, self.model, prompts)

    def encode(self, prompts: Sequence[str]) -> TensorBatch:
        warn_unread(self, prompts)
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
                added_cond_kwargs=self._added(latents, conditioning),
            ).sample

    def _added(self, latents: Tensor, conditioning: TensorBatch) -> dict[str, Tensor] | None:
        """What the UNet takes beside the text, where it takes anything."""
        return None

    def size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        asked = {"height": height, "width": width}
        made = {"height": self.height, "width": self.width}
        high, wide = (
            picture_side(self.pipeline, name, made[name] if pixels is None else pixels, self.model)
            for name, pixels in asked.items()
        )
        return high, wide

    def start(self, seeds: Sequence[int], height: int | None = None, width: int | None = None) -> Tensor:
        high, wide = (side // self.pipeline.vae_scale_factor for side in self.size(height, width))
        channels = self.unet.config.in_channels
        noise = [torch.randn(channels, high, wide, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(noise).to(self.device, self.dtype)

    def calls(self, steps: int) -> int:
        return len(schedulers.begin(self.scheduler, steps, torch.device("cpu")).timesteps)

    def trajectory(
        self, predict: Predictor, start: Tensor, steps: int, seeds: Sequence[int],
        height: int | None = None, width: int | None = None,
    ) -> Iterator[TensorBatch]:  # fmt: skip
        """See `DiffusionBackbone.trajectory`.

        Between two states everything is float32, whatever the precision of the model: neither its rounding nor what is
        drawn on the way depends on it.
        """
        scheduler = schedulers.begin(self.scheduler, steps, self.device)
        options = schedulers.options(scheduler, seeds, start.shape[1:], self.eta)
        latents = start.float() * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            noisy = scheduler.scale_model_input(latents, t).to(start.dtype)
            state = {"latents": noisy, "timestep": t.expand(len(latents))}
            yield state
            latents = scheduler.step(predict(state).float(), t, latents, **options).prev_sample
        end = torch.zeros(len(latents), dtype=scheduler.timesteps.dtype, device=self.device)
        yield {"latents": latents.to(start.dtype), "timestep": end}

    @torch.no_grad()
    def decode(self, finished: TensorBatch) -> Tensor:
        config = self.vae.config
        latents = finished["latents"].to(self.vae.dtype) / config.scaling_factor
        if config.get("latents_mean") and config.get("latents_std"):  # of each channel
            mean, std = (latents.new_tensor(config[name])[:, None, None] for name in ("latents_mean", "latents_std"))
            latents = latents * std + mean
        return torch.cat([self.vae.decode(x).sample for x in latents.split(32)]).clamp(-1, 1)

    def write(self, folder: Path) -> None:
        save_pipeline(self.pipeline, folder, self.encoders)

    def _whole(self, folder: Path) -> Path:
        return whole_pipeline(self.model, folder, self.revision, self.variant)
