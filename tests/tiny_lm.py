"""Tiny language models of the true architectures, made from nothing; the same weights every time."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[model] {% endif %}"
)
TEXT = [
    "a person is happy", "a person is sad", "a dog with a hat", "how was your day", "the day was good and long",
    "tell me about the dog", "you are a happy person", "you are a sad person", "it was a sad day for the dog",
]  # fmt: skip

_SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}
_GLU = {**_SMALL, "intermediate_size": 24}
CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (LlamaConfig, {**_GLU, "num_key_value_heads": 1}),
    "mistral": (MistralConfig, {**_GLU, "num_key_value_heads": 1, "sliding_window": 8}),
    "qwen2": (Qwen2Config, {**_GLU, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "gemma": (GemmaConfig, {**_GLU, "num_key_value_heads": 1, "head_dim": 8}),
    "gpt2": (GPT2Config, {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 256}),
    "neox": (GPTNeoXConfig, _GLU),
    "phi": (PhiConfig, {**_GLU, "partial_rotary_factor": 0.5}),
}


@dataclass
class LanguageModel:
    """A model and its tokenizer, which save as one folder."""

    lm: Any
    tokenizer: Any

    @property
    def components(self) -> dict[str, nn.Module]:
        """What has weights."""
        return {"lm": self.lm}

    def to(self, dtype: torch.dtype) -> "LanguageModel":
        """In another precision."""
        self.lm.to(dtype)
        return self

    def save_pretrained(self, folder: Path) -> None:
        """Write both."""
        self.lm.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer.to_str()


def tokenizer(chat: str | None = None, pad: bool = False) -> PreTrainedTokenizerFast:
    """Bytes, and pairs learnt from a few sentences; so a text's tokens depend on what stands beside it."""
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_trained()), bos_token="<s>", eos_token="</s>")
    made.chat_template = chat
    if pad:
        made.pad_token = "</s>"
    return made


def language_model(kind: str, chat: str | None = None) -> LanguageModel:
    """A model of one of the architectures in `CONFIGS`."""
    torch.manual_seed(0)
    words = tokenizer(chat)
    make, shape = CONFIGS[kind]
    config = make(vocab_size=len(words) + 8, bos_token_id=0, eos_token_id=1, pad_token_id=None, **shape)
    lm = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in lm.parameters():  # larger than at initialisation, so that predictions differ
            if parameter.dim() > 1:
                parameter.mul_(6)
    return LanguageModel(lm, words)
