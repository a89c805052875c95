"""Tiny pipelines of the true classes of diffusers' flow and diffusion transformers; the same weights every time."""
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# (diffusers annotates its tuples as having one element, and its optional parts as required)

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanImage,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests import tiny

W = 16
"""Width of every text encoder."""
LETTERS = 260
"""Tokens of the byte tokenizer."""


@dataclass(frozen=True)
class Family:
    """A pipeline that can be made.

    Args:
        make: it, with random weights.
        side: of its pictures in pixels.
        call: arguments of its call beside prompt, size and steps.
        video: whether it makes videos.
    """

    make: Callable[[], Any]
    side: int = 16
    call: dict[str, Any] = field(default_factory=dict)
    video: bool = False


# Parts that families share


def byte_tokenizer(length: int = 48, **more: Any) -> PreTrainedTokenizerFast:
    """Bytes, an end mark, and a chat template: stands for T5's, Gemma's, Qwen's, Llama's, GLM's and Mistral's."""
    marks = ["<pad>", "<eos>", "<bos>", "<unk>"]
    vocabulary = {t: i for i, t in enumerate([*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    part = "{% for c in m.content %}{{ c.text }}{% endfor %}"
    template = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        + part
        + "{% endif %}{% endfor %}"
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        model_max_length=length,
        chat_template=template,
        **more,
    )


def _words() -> CLIPTokenizer:
    """CLIP's, of its true length."""
    return tiny.tokenizer(77)


def _clip(kind: Any = CLIPTextModelWithProjection, tokens: CLIPTokenizer | None = None) -> Any:
    tokens = tokens or _words()
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=W,
        intermediate_size=W,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokens.model_max_length,
        projection_dim=W,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return kind(config)


def _t5(kind: Any = T5EncoderModel, config: Any = T5Config, width: int = W, letters: int = LETTERS) -> Any:
    gated = {"feed_forward_proj": "gated-gelu"}
    return kind(config(vocab_size=letters, d_model=width, d_kv=4, d_ff=W, num_layers=2, num_heads=2, **gated))


def _lm(kind: Any, config: Any, layers: int = 3, **more: Any) -> Any:
    return kind(
        config(
            vocab_size=LETTERS,
            hidden_size=W,
            intermediate_size=W,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=2048,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=1,
            **more,
        )
    )


def _qwen_with_sight() -> Qwen2_5_VLForConditionalGeneration:
    text = {
        "hidden_size": W,
        "intermediate_size": W,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": LETTERS,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    sight = {"depth": 1, "hidden_size": W, "intermediate_size": W, "num_heads": 2, "out_hidden_size": W}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=sight))


def _mistral_with_sight() -> Mistral3ForConditionalGeneration:
    text = {
        "model_type": "mistral",
        "vocab_size": LETTERS,
        "hidden_size": W,
        "intermediate_size": W,
        "num_hidden_layers": 31,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
    }
    sight = {
        "model_type": "pixtral",
        "hidden_size": W,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": W,
        "image_size": 30,
        "patch_size": 6,
    }
    return Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=sight))


def _kl(**more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 8],
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        **{"scaling_factor": 0.36, **more},
    )


def _shifted_kl() -> AutoencoderKL:
    return _kl(shift_factor=0.11, use_quant_conv=False, use_post_quant_conv=False)


_euler = FlowMatchEulerDiscreteScheduler


# Families


def sd3() -> Any:
    """Stable Diffusion 3.5, with attention to the picture alone in the first block, as in its medium size."""
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * W,
        caption_projection_dim=16,
        pooled_projection_dim=2 * W,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=_euler(shift=3.0),
        vae=_shifted_kl(),
        text_encoder=_clip(),
        text_encoder_2=_clip(),
        text_encoder_3=_t5(width=2 * W),
        tokenizer=_words(),
        tokenizer_2=_words(),
        tokenizer_3=byte_tokenizer(),
    )


def flux(guidance: bool = True) -> Any:
    """FLUX.1-dev, or without guidance as an input FLUX.1-schnell."""
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=W,
        pooled_projection_dim=W,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance,
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=_euler(use_dynamic_shifting=True, shift=3.0) if guidance else _euler(shift=1.0),
        vae=_shifted_kl(),
        text_encoder=_clip(CLIPTextModel),
        tokenizer=_words(),
        text_encoder_2=_t5(),
        tokenizer_2=byte_tokenizer(),
    )


def schnell() -> Any:
    """FLUX.1-schnell."""
    return flux(guidance=False)


def _flux2(guidance: bool) -> dict[str, Any]:
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * W,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
    )
    return {"transformer": transformer, "vae": vae, "scheduler": _euler(use_dynamic_shifting=True)}


def flux2() -> Any:
    """FLUX.2-dev, whose text encoder is a Mistral of 31 layers."""
    return Flux2Pipeline(text_encoder=_mistral_with_sight(), tokenizer=byte_tokenizer(512), **_flux2(guidance=True))


def klein() -> Any:
    """FLUX.2-klein, whose text encoder is a Qwen3 of 28 layers."""
    text = _lm(Qwen3ForCausalLM, Qwen3Config, 28)
    return Flux2KleinPipeline(text_encoder=text, tokenizer=byte_tokenizer(512), **_flux2(guidance=False))


def qwen() -> Any:
    """Qwen-Image."""
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=W,
        axes_dims_rope=(8, 4, 4),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=12,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1] * 4,
        latents_std=[1.2] * 4,
    )
    shift = {"use_dynamic_shifting": True, "max_image_seq_len": 8192, "max_shift": 0.9, "shift_terminal": 0.02}
    return QwenImagePipeline(
        transformer=transformer,
        scheduler=_euler(**shift),
        vae=vae,
        text_encoder=_qwen_with_sight(),
        tokenizer=byte_tokenizer(2048),
    )


def zimage() -> Any:
    """Z-Image, whose denoiser takes and gives lists of pictures."""
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=W,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 32, 32],
    )
    return ZImagePipeline(
        transformer=transformer,
        scheduler=_euler(shift=3.0),
        vae=_shifted_kl(),
        text_encoder=_lm(Qwen3Model, Qwen3Config),
        tokenizer=byte_tokenizer(512),
    )


def sana() -> Any:
    """Sana, whose call makes multiples of 32 pixels."""
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=[1, 1],
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=W,
        sample_size=8,
    )
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return SanaPipeline(
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(**flow),
        vae=vae,
        text_encoder=_lm(Gemma2Model, Gemma2Config),
        tokenizer=byte_tokenizer(4096),
    )


def lumina2() -> Any:
    """Lumina-Image 2.0."""
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(300, 32, 32),
        cap_feat_dim=W,
    )
    return Lumina2Pipeline(
        transformer=transformer,
        scheduler=_euler(shift=6.0),
        vae=_shifted_kl(),
        text_encoder=_lm(Gemma2Model, Gemma2Config),
        tokenizer=byte_tokenizer(512),
    )


def pixart() -> Any:
    """PixArt-Sigma, which predicts noise and a variance beside it."""
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=W,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
    )
    return PixArtSigmaPipeline(
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
        vae=_kl(),
        text_encoder=_t5(),
        tokenizer=byte_tokenizer(300),
    )


def hidream() -> Any:
    """HiDream-I1, with four text encoders and routed experts."""
    long = tiny.tokenizer(128)
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[W, W],
        text_emb_dim=2 * W,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(8, 8),
        llama_layers=(0, 1),
    )
    return HiDreamImagePipeline(
        transformer=transformer,
        scheduler=_euler(shift=3.0),
        vae=_shifted_kl(),
        text_encoder=_clip(tokens=long),
        tokenizer=long,
        text_encoder_2=_clip(tokens=long),
        tokenizer_2=long,
        text_encoder_3=_t5(),
        tokenizer_3=byte_tokenizer(128),
        text_encoder_4=_lm(LlamaForCausalLM, LlamaConfig, attn_implementation="eager"),
        tokenizer_4=byte_tokenizer(128),
    )


def aura() -> Any:
    """AuraFlow."""
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=W,
        caption_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=64,
    )
    return AuraFlowPipeline(
        transformer=transformer,
        scheduler=_euler(shift=1.73),
        vae=_kl(),
        text_encoder=_t5(UMT5EncoderModel, UMT5Config),
        tokenizer=byte_tokenizer(256),
    )


def chroma() -> Any:
    """Chroma."""
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=W,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return ChromaPipeline(
        transformer=transformer,
        scheduler=_euler(use_dynamic_shifting=True),
        vae=_shifted_kl(),
        text_encoder=_t5(),
        tokenizer=byte_tokenizer(512),
    )


def cogview4() -> Any:
    """CogView4, which pads prompts to the longest beside them and does not mask what it pads."""
    transformer = CogView4Transformer2DModel(
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=W,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
        rope_axes_dim=(8, 8),
    )
    shift = {"use_dynamic_shifting": True, "base_shift": 0.25, "max_shift": 0.75, "time_shift_type": "linear"}
    return CogView4Pipeline(
        transformer=transformer,
        scheduler=_euler(**shift),
        vae=_kl(),
        text_encoder=_lm(GlmModel, GlmConfig),
        tokenizer=byte_tokenizer(1024, padding_side="left"),
    )


def hunyuanimage() -> Any:
    """HunyuanImage 2.1."""
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=W,
        text_embed_2_dim=W,
        rope_axes_dim=(4, 4),
    )
    vae = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=16,
        scaling_factor=0.75,
    )
    return HunyuanImagePipeline(
        transformer=transformer,
        vae=vae,
        scheduler=_euler(shift=5.0),
        text_encoder=_qwen_with_sight(),
        tokenizer=byte_tokenizer(2048),
        text_encoder_2=_t5(letters=384),
        tokenizer_2=ByT5Tokenizer(),
    )


def hunyuanvideo() -> Any:
    """HunyuanVideo."""
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        text_embed_dim=W,
        pooled_projection_dim=W,
        rope_axes_dim=(2, 4, 4),
    )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
    )
    words = _words()
    return HunyuanVideoPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=_euler(shift=7.0),
        text_encoder=_lm(LlamaModel, LlamaConfig),
        tokenizer=byte_tokenizer(1024),
        text_encoder_2=_clip(CLIPTextModel, words),
        tokenizer_2=words,
    )


def wan(**more: Any) -> Any:
    """Wan 2.1, or with a ``boundary_ratio`` the two denoisers of Wan 2.2."""

    def transformer() -> WanTransformer3DModel:
        return WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=W,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
        )

    second = {"transformer_2": transformer()} if "boundary_ratio" in more else {}
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1] * 4,
        latents_std=[1.2] * 4,
        scale_factor_spatial=2,
        scale_factor_temporal=1,
    )
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return WanPipeline(
        transformer=transformer(),
        vae=vae,
        scheduler=UniPCMultistepScheduler(**flow),
        text_encoder=_t5(UMT5EncoderModel, UMT5Config),
        tokenizer=byte_tokenizer(512),
        **second,
        **more,
    )


def ltx() -> Any:
    """LTX-Video; with the next two, tried only when the backbone was written."""
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=W,
    )
    vae = AutoencoderKLLTXVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    return LTXPipeline(
        transformer=transformer, vae=vae, scheduler=_euler(), text_encoder=_t5(), tokenizer=byte_tokenizer(128)
    )


def cogvideox() -> Any:
    """CogVideoX, which predicts v on the schedule of a diffusion model."""
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=W,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=32,
    )
    vae = AutoencoderKLCogVideoX(
        in_channels=3,
        out_channels=3,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    return CogVideoXPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=DDIMScheduler(prediction_type="v_prediction", steps_offset=1),
        text_encoder=_t5(),
        tokenizer=byte_tokenizer(226),
    )


def mochi() -> Any:
    """Mochi 1."""
    transformer = MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=W,
        in_channels=12,
        out_channels=None,
        qk_norm="rms_norm",
        text_embed_dim=W,
        time_embed_dim=4,
        activation_fn="swiglu",
        max_sequence_length=32,
    )
    vae = AutoencoderKLMochi(
        latent_channels=12,
        out_channels=3,
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
    )
    return MochiPipeline(
        transformer=transformer, vae=vae, scheduler=_euler(), text_encoder=_t5(), tokenizer=byte_tokenizer(64)
    )


_NO_BINS = {"use_resolution_binning": False}
FAMILIES = {
    "sd3": Family(sd3),
    "flux": Family(flux),
    "schnell": Family(schnell),
    "flux2": Family(flux2),
    "klein": Family(klein),
    "qwen": Family(qwen),
    "zimage": Family(zimage),
    "sana": Family(sana, 32, _NO_BINS),
    "lumina2": Family(lumina2, 64),  # its call takes the autoencoder's factor for 8, whatever it is
    "pixart": Family(pixart, call=_NO_BINS),
    "hidream": Family(hidream),
    "aura": Family(aura),
    "chroma": Family(chroma),
    "cogview4": Family(cogview4),
    "hunyuanimage": Family(hunyuanimage),
    "hunyuanvideo": Family(hunyuanvideo, call={"num_frames": 5}, video=True),
    "wan": Family(wan, call={"num_frames": 2}, video=True),
    "wan22": Family(lambda: wan(boundary_ratio=0.875), call={"num_frames": 2}, video=True),
    "ltx": Family(ltx, 32, {"num_frames": 9}, video=True),
    "cogvideox": Family(cogvideox, call={"num_frames": 9, "max_sequence_length": 32}, video=True),
    "mochi": Family(mochi, call={"num_frames": 7, "max_sequence_length": 32}, video=True),
    "wan22_5b": Family(lambda: wan(expand_timesteps=True), call={"num_frames": 2}, video=True),
}


def family(name: str) -> Any:
    """A pipeline in which nothing is 0 or uninitialised, as after training."""
    torch.manual_seed(0)
    pipeline = FAMILIES[name].make()
    pipeline.set_progress_bar_config(disable=True)
    if name == "hidream":
        pipeline.default_sample_size = 8  # 128 in its code, to which every size that is asked for is scaled
    with torch.no_grad():
        for part in ("transformer", "transformer_2"):
            for parameter in (getattr(pipeline, part, None) or nn.Module()).parameters():
                if not parameter.isfinite().all() or not 0 < parameter.abs().max() < 1e3:
                    parameter.normal_(0, 0.05)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    return pipeline
