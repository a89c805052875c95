"""What is asked of a pipeline of diffusers with a UNet, whichever family it is of."""

from collections.abc import Sequence
from typing import Any

from sliders.backbones.vocabulary import check_vocabulary
from sliders.errors import SliderError


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
