"""Pipelines of diffusers: how they are read, what is asked of one with a UNet, and how their LoRAs are loaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from sliders.algebra.slider import Slider
from sliders.backbones.origin import Origin
from sliders.backbones.placement import Placement, weights
from sliders.backbones.vocabulary import check_vocabulary
from sliders.errors import SliderError, one_line
from sliders.formats.pretrained import load_pipeline
from sliders.formats.skeleton import model_class
from sliders.resources.shipped import MODELS, model_folder


@dataclass(frozen=True)
class ReadPipeline:
    """A pipeline that was read, and from where."""

    pipeline: Any
    origin: Origin


def read_pipeline(
    model: str,
    placement: Placement,
    predicting: Sequence[str],
    revision: str | None,
    variant: str | None,
    without: Mapping[str, Any] | None = None,
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> ReadPipeline:
    """A pipeline of a folder, of a hub, or of what comes with the package.

    Args:
        model: folder, hub name, or name of what comes with the package.
        placement: of its weights.
        predicting: names of the parts that may predict, the first of which says the precision.
        revision: of a hub model.
        variant: of the files that are read.
        without: parts that are not needed, with what stands in their place.
        check: refuses a pipeline by its index, before weights are read.

    Raises:
        SliderError: there is no such model, or it cannot be read.
    """
    place, without = model_folder(model), dict(without or {})
    if not Path(place).exists() and (place.startswith((".", "/")) or place.count("/") != 1):
        names = ", ".join(MODELS)
        raise SliderError(f"no base model at {place}: give the folder of a diffusers pipeline, a hub name, or {names}")
    device = placement.found()
    try:
        folder = _fetched(place, revision, variant, without)
        config: Any = DiffusionPipeline.load_config(folder)
        if check is not None:
            check(config)
        kinds = {n: k for n, k in config.items() if n not in without and isinstance(k, list | tuple) and None not in k}
        parts = [folder / name for name, kind in kinds.items() if model_class(*kind) is not None]
        files = {part.name: weights(part, variant, parts) for part in parts}
        first = next((name for name in predicting if files.get(name)), None)
        dtype = placement.precision(device, files[first] if first else [])
        precisions = {"default": dtype, "vae": torch.float32 if dtype == torch.float16 else dtype}
    except (OSError, ValueError) as error:
        raise SliderError(f"cannot load the base model {model}: {one_line(error)}") from error
    pipeline = load_pipeline(folder, without, dtype=precisions, variant=variant)
    return ReadPipeline(pipeline.to(device) if device.type != "cpu" else pipeline, Origin(folder, files))


def _fetched(place: str, revision: str | None, variant: str | None, without: Mapping[str, Any]) -> Path:
    """The folder of a pipeline, which is fetched if it is the hub's."""
    if (folder := Path(place)).exists():
        return folder
    return Path(DiffusionPipeline.download(place, revision=revision, variant=variant, **without))


def whole_pipeline(model: str, folder: Path, revision: str | None, variant: str | None) -> Path:
    """The folder of a pipeline with all its parts, of which no more may have been fetched than is run here.

    Raises:
        SliderError: it cannot be fetched.
    """
    place = model_folder(model)
    if Path(place).exists():
        return folder
    try:
        return Path(DiffusionPipeline.download(place, revision=revision, variant=variant))
    except (OSError, ValueError) as error:
        raise SliderError(f"cannot fetch all parts of {model} to copy it: {one_line(error)}") from error


def check_side(pipeline: Any, name: str, pixels: int, called: str) -> None:
    """Refuse a side of pictures that a pipeline does not make, and would make smaller.

    Raises:
        SliderError: with the nearest that it makes.
    """
    processor = getattr(pipeline, "image_processor", None) or getattr(pipeline, "video_processor", None)
    factor = int(getattr(getattr(processor, "config", None), "vae_scale_factor", 1))
    if pixels < factor or pixels % factor:
        below = max(1, pixels // factor) * factor
        nearest = f"{below}" if pixels < factor else f"{below} or {below + factor}"
        raise SliderError(f"{name} is {pixels}, but {called} makes multiples of {factor}; give {nearest}")


def usage(pipeline: Any, slider: Slider, saved: Path) -> list[str]:
    """Lines that load a slider's file in diffusers, as far as diffusers has a loader for the pipeline.

    A pipeline's loader never reads what is of a second transformer; the transformer's own does.
    """
    parts = sorted({name.partition(".")[0] for name in slider.update})
    file, name = repr(str(saved)), repr(slider.name)
    if not hasattr(pipeline, "load_lora_weights"):
        if all(hasattr(getattr(pipeline, part), "load_lora_adapter") for part in parts):
            return [f"pipe.{p}.load_lora_adapter({file}, prefix={p!r}, adapter_name={name})" for p in parts]
        return [f"diffusers has no loader for a {type(pipeline).__name__}; use sliders.use(pipe) and sliders.attach"]
    lines = []
    if set(parts) - {"transformer_2"}:
        lines.append(f"pipe.load_lora_weights({file}, adapter_name={name})")
    if "transformer_2" in parts:
        lines.append(f"pipe.transformer_2.load_lora_adapter({file}, prefix='transformer_2', adapter_name={name})")
    return [*lines, f"pipe.set_adapters([{name}], [1.0])"]


def check_pipeline(pipeline: Any, encoders: tuple[str, ...], called: str, family: str) -> None:
    """Refuse a pipeline that a backbone does not know how to run.

    Args:
        pipeline: of diffusers.
        encoders: names of the text encoders that it must have.
        called: the model in messages.
        family: class of the backbone, in messages.

    Raises:
        SliderError: it has no UNet or other text encoders, a tokenizer of another model, or a UNet that takes guidance.
    """
    if getattr(pipeline, "unet", None) is None:
        raise SliderError(f"{called} is a {type(pipeline).__name__}, which has no UNet")
    found = tuple(name for name in ("text_encoder", "text_encoder_2") if getattr(pipeline, name, None) is not None)
    if found != encoders:
        raise SliderError(
            f"{called} is a {type(pipeline).__name__} with {' and '.join(found) or 'no text encoder'}, but "
            f"{family} is for {' and '.join(encoders)}; choose the backbone of its family"
        )
    for name in encoders:
        check_vocabulary(_tokenizer(pipeline, name), getattr(pipeline, name), f"{called} ({name})")
    if pipeline.unet.config.get("time_cond_proj_dim") is not None:
        raise SliderError(
            f"{called} was distilled to take the guidance as an input of its UNet, which {family} "
            "cannot give it; use the model that it was distilled from"
        )


def unread(pipeline: Any, encoders: tuple[str, ...], called: str, prompts: Sequence[str]) -> dict[str, str]:
    """Which prompts a text encoder reads only a part of, and what it leaves out; see `AbstractBackbone.unread`."""
    found: dict[str, str] = {}
    for name in encoders:
        tokenizer = _tokenizer(pipeline, name)
        room = int(tokenizer.model_max_length)
        for prompt in dict.fromkeys(prompts):
            ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
            if len(ids) > room:
                rest = tokenizer.decode(ids[room - 1 : -1]).strip()
                found.setdefault(
                    prompt,
                    f"has {len(ids)} tokens with its marks, {len(ids) - room} more than the {room} that the "
                    f"{name} of {called} reads, which leaves out {rest!r}",
                )
    return found


def _tokenizer(pipeline: Any, encoder: str) -> Any:
    return getattr(pipeline, encoder.replace("text_encoder", "tokenizer"))


def picture_side(pipeline: Any, name: str, asked: int | None, called: str) -> int:
    """One side of pictures in pixels: what is asked for, otherwise the model's own.

    Args:
        pipeline: of diffusers.
        name: of the side: ``height`` or ``width``.
        asked: for, in pixels.
        called: the model in messages.

    Raises:
        SliderError: the model has no pictures of this size; with the nearest that it has.
    """
    factor, own = pipeline.vae_scale_factor, pipeline.unet.config.sample_size
    side = own if isinstance(own, int) or not own else own[("height", "width").index(name)]
    pixels = asked if asked is not None else side and side * factor
    if pixels is None:
        raise SliderError(f"{called} does not say how large its pictures are; give the backbone a {name}")
    if pixels < factor or pixels % factor:
        below = max(1, pixels // factor) * factor
        nearest = f"{below}" if pixels < factor else f"{below} or {below + factor}"
        raise SliderError(f"{name} is {pixels}, but {called} makes multiples of {factor}; give {nearest}")
    return pixels
