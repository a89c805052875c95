"""Latent diffusion models with a UNet: Stable Diffusion 1.x and 2.x, noise or v prediction."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from sliders.backbones import schedulers
from sliders.backbones.base import DiffusionBackbone, Predictor, TargetGroup
from sliders.backbones.placement import Placement, Precision, weights
from sliders.backbones.reading import warn_unread
from sliders.backbones.vocabulary import check_vocabulary
from sliders.batch import TensorBatch, rows_of
from sliders.errors import SliderError, one_line
from sliders.formats.pretrained import load_pipeline, save_pipeline
from sliders.resources.paths import Source
from sliders.resources.shipped import DEFAULT_CONFIG, MODELS, model_folder


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
        place = model_folder(self.model)
        if not Path(place).exists() and (place.startswith((".", "/")) or place.count("/") != 1):
            names = ", ".join(MODELS)
            raise SliderError(
                f"no base model at {place}: give the folder of a diffusers pipeline, a hub name, or {names}"
            )
        device = self.placement.found()
        try:
            folder = self._folder(place)
            config: Any = DiffusionPipeline.load_config(folder)
            if name := self.scheduler_name or config.get("scheduler", (None, None))[1]:
                schedulers.check(name, self.model)
            parts = [folder / name for name in ("unet", "vae", *self.encoders)]
            files = {part.name: weights(part, self.variant, parts) for part in parts}
            dtype = self.placement.precision(device, files["unet"])
            precisions = {"default": dtype, "vae": torch.float32 if dtype == torch.float16 else dtype}
        except (OSError, ValueError) as error:
            raise SliderError(f"cannot load the base model {self.model}: {one_line(error)}") from error
        pipeline = load_pipeline(folder, self._unused(), dtype=precisions, variant=self.variant)
        self.use(pipeline.to(device) if device.type != "cpu" else pipeline)
        self._remember(folder, files)

    def _folder(self, place: str) -> Path:
        """Of the pipeline, which is fetched if it is the hub's."""
        if (folder := Path(place)).exists():
            return folder
        asked = {"revision": self.revision, "variant": self.variant, **self._unused()}
        return Path(DiffusionPipeline.download(place, **asked))

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
        if pipeline.unet.config.get("time_cond_proj_dim") is not None:
            raise SliderError(
                f"{self.model} was distilled to take the guidance as an input of its UNet, which {type(self).__name__} "
                "cannot give it; use the model that it was distilled from"
            )
        self.scheduler = schedulers.sampler(pipeline.scheduler, self.model, self.scheduler_name)
        for name in self.encoders:  # a library may have opened a pipeline in several precisions
            getattr(pipeline, name).to(pipeline.unet.dtype)
        if pipeline.vae.dtype == torch.float16:  # which SDXL's overflows
            pipeline.vae.to(torch.float32)
        self.pipeline = pipeline
        self.unet, self.vae = pipeline.unet, pipeline.vae
        for name in self.encoders:
            setattr(self, name, getattr(pipeline, name))
        self._remember()
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
        found: dict[str, str] = {}
        for name in self.encoders:
            tokenizer = getattr(self.pipeline, name.replace("text_encoder", "tokenizer"))
            room = int(tokenizer.model_max_length)
            for prompt in dict.fromkeys(prompts):
                ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
                if len(ids) > room:
                    rest = tokenizer.decode(ids[room - 1 : -1]).strip()
                    found.setdefault(
                        prompt,
                        f"has {len(ids)} tokens with its marks, {len(ids) - room} more than the {room} that the "
                        f"{name} of {self.model} reads, which leaves out {rest!r}",
                    )
        return found

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
        factor, own = self.pipeline.vae_scale_factor, self.unet.config.sample_size
        sides = (own, own) if isinstance(own, int) else own or (None, None)
        found: list[int] = []
        for name, asked, made, side in zip(
            ("height", "width"), (height, width), (self.height, self.width), sides, strict=True
        ):
            pixels = asked if asked is not None else made if made is not None else side and side * factor
            if pixels is None:
                raise SliderError(f"{self.model} does not say how large its pictures are; give the backbone a {name}")
            if pixels < factor or pixels % factor:
                below = max(1, pixels // factor) * factor
                nearest = f"{below}" if pixels < factor else f"{below} or {below + factor}"
                raise SliderError(f"{name} is {pixels}, but {self.model} makes multiples of {factor}; give {nearest}")
            found.append(pixels)
        return found[0], found[1]

    def start(self, seeds: Sequence[int], height: int | None = None, width: int | None = None) -> Tensor:
        high, wide = (side // self.pipeline.vae_scale_factor for side in self.size(height, width))
        channels = self.unet.config.in_channels
        noise = [torch.randn(channels, high, wide, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(noise).to(self.device, self.dtype)

    def calls(self, steps: int) -> int:
        return len(schedulers.begin(self.scheduler, steps, torch.device("cpu")).timesteps)

    def trajectory(self, predict: Predictor, start: Tensor, steps: int, seeds: Sequence[int]) -> Iterator[TensorBatch]:
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

    def _whole(self) -> Path:
        place = model_folder(self.model)
        if Path(place).exists():
            return super()._whole()
        try:  # the hub's, of which no more was fetched than is run here
            return Path(DiffusionPipeline.download(place, revision=self.revision, variant=self.variant))
        except (OSError, ValueError) as error:
            raise SliderError(f"cannot fetch all parts of {self.model} to copy it: {one_line(error)}") from error
