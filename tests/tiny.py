"""Tiny models of the true architectures, made from nothing; the same weights every time."""
# pyright: reportArgumentType=false
# (diffusers annotates its tuples as having one element, and its optional parts as required)

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WORDS = ["a", "person", "happy", "sad", "with", "hat", "dog"]


def tokenizer(room: int = 32) -> CLIPTokenizer:
    """Letters, and every letter as the end of a word; prompts are cut to ``room`` tokens."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [","]
    marks = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate([*marks, *letters, *(f"{letter}</w>" for letter in letters)])}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=room, pad_token="<|endoftext|>")


def _text_config(width: int, tokens: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokens.model_max_length,
        projection_dim=width,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )


def stable_diffusion_scheduler(prediction: str = "epsilon") -> DDIMScheduler:
    """With the noise of Stable Diffusion."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def _unet(width: int, **extra: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=width,
        **extra,
    )


def stable_diffusion(prediction: str = "epsilon", room: int = 32) -> StableDiffusionPipeline:
    """A pipeline of the shape of Stable Diffusion 1.x (``epsilon``) or 2.x (``v_prediction``)."""
    torch.manual_seed(0)
    tokens = tokenizer(room)
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(16, tokens)),
        tokenizer=tokens,
        unet=_unet(16),
        scheduler=stable_diffusion_scheduler(prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(room: int = 32) -> StableDiffusionXLPipeline:
    """A pipeline of the shape of SDXL: two text encoders, pooled embeddings, time ids."""
    torch.manual_seed(0)
    tokens = tokenizer(room)
    unet = _unet(
        32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(16, tokens)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(16, tokens)),
        tokenizer=tokens,
        tokenizer_2=tokens,
        unet=unet,
        scheduler=stable_diffusion_scheduler("epsilon"),
        add_watermarker=False,
    )


def save(pipeline: Any, folder: Path) -> Path:
    """Write a pipeline in its own library's layout."""
    pipeline.save_pretrained(folder)
    return folder
