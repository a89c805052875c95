"""Tiny models of many causal architectures of transformers, made from nothing; the same weights every time."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests import tiny_lm

_SIZES: dict[str, Any] = {
    "hidden_size": 16, "n_embd": 16, "d_model": 16, "word_embed_proj_dim": 16, "embed_dim": 16,
    "n_inner": 24, "intermediate_size": 24, "ffn_dim": 24, "decoder_ffn_dim": 24, "ffn_hidden_size": 24, "dff": 24,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "decoder_layers": 2, "encoder_layers": 2,
    "num_attention_heads": 2, "n_head": 2, "n_heads": 2, "decoder_attention_heads": 2, "encoder_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "rotary_dim": 4,
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "max_seq_len": 64, "sliding_window": 8,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "moe_topk": 2,
    "state_size": 4, "time_step_rank": 2, "conv_kernel": 4, "expand": 2,
}  # fmt: skip
_LATENT = {"num_key_value_heads": 2, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "q_lora_rank": 8}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
OVER: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA2, "attn_layer_indices": [1], "num_key_value_heads": 1},
    "bert": {"is_decoder": True},
    "codegen": {"n_head": 4, "n_embd": 32},
    "diffllama": {"num_key_value_heads": 2},
    "dots1": {"n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "lsh"]},
    "rembert": {"is_decoder": True},
    "roformer": {"is_decoder": True},
    "zamba": {"num_hidden_layers": 3},
    "deepseek_v2": {**_LATENT, "kv_lora_rank": 8, "head_dim": 4, "first_k_dense_replace": 1},
    "deepseek_v3": {
        **_LATENT,
        "kv_lora_rank": 8,
        "head_dim": 4,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 32},
    "gemma3": {
        "text_config": {**_SIZES, "vocab_size": 356, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None},
        "vision_config": {**_SIZES, "image_size": 8, "patch_size": 4},
        "mm_tokens_per_image": 4,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "granitemoehybrid": {**_MAMBA2, "layer_types": ["mamba", "attention"]},
    "jamba": {"mamba_d_state": 4, "mamba_dt_rank": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba2": {"num_heads": 4, "head_dim": 8, "n_groups": 1},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 4, "n_groups": 1},
    "qwen3_5_text": {**_LINEAR},
    "qwen3_next": {**_LINEAR},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 16, "attention_window_size": 8},
    "rwkv": {"attention_hidden_size": 16},
    "roberta": {"is_decoder": True, "pad_token_id": 1},
}


def architecture(name: str) -> tiny_lm.LanguageModel:
    """A tiny model of a `model_type` of transformers."""
    words = tiny_lm.tokenizer()
    default = AutoConfig.for_model(name)
    mapped, over = getattr(type(default), "attribute_map", {}), OVER.get(name, {})
    sizes = {
        key: value
        for key, value in _SIZES.items()
        if key not in mapped and hasattr(default, key) and not isinstance(getattr(type(default), key, None), property)
    }
    marks = {"vocab_size": len(words) + 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    config = AutoConfig.for_model(name, **(sizes | marks | over))
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in lm.parameters():  # larger than at initialisation, so that predictions differ
            if parameter.dim() > 1:
                parameter.mul_(3)
    return tiny_lm.LanguageModel(lm.eval(), words)
