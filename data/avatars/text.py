"""The avatar model's words: a byte-pair tokenizer, and a CLIP text encoder that first learns to read.

A text encoder that learns from the diffusion loss alone takes thousands of steps to bind "purple" to "background" and
"without" to "beard".  Reading alone is cheap: from the states at the end mark and the padding after it, which see the
whole caption, a linear head has to tell what the caption says of each attribute.  CLIP's encoder knows such things
before any diffusion model is trained on it, too.
"""

import json
import random
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from data.avatars.attributes import (
    VALUES,
    Avatar,
    caption,
    is_defined,
    named_at_random,
    sample_avatar,
    training_caption,
)

TOKENS = 40  # longest caption, with its begin and end marks


def train_tokenizer(avatars: list[Avatar], folder: Path) -> CLIPTokenizer:
    """Byte-pair encoding learnt from captions, written as CLIP's `vocab.json` and `merges.txt`."""
    rng = random.Random("tokenizer")
    text = [training_caption(avatar, rng, empty=0) for avatar in avatars for _ in range(2)]
    tokenizer = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])
    marks = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=marks,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):  # a single letter may end a word nobody trained on
        vocabulary.setdefault(letter + "</w>", len(vocabulary))
    merges: Any = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    clip = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS, pad_token="<|endoftext|>")
    clip.save_pretrained(folder)
    return clip


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text encoder of 3 layers and width 128."""
    marks: dict[str, Any] = {f"{m}_token_id": getattr(tokenizer, f"{m}_token_id") for m in ("bos", "eos", "pad")}
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=128,
            **marks,
        )
    )


def encode_caption(tokenizer: CLIPTokenizer, text: str) -> Tensor:
    """int64 ``[TOKENS]``."""
    tokens = tokenizer(text, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    return tokens.input_ids[0]  # pyright: ignore[reportAttributeAccessIssue]


class ReadCaptions(Dataset[tuple[Tensor, Tensor]]):
    """Captions without pictures, and what each says: the index of the value, or one more where it says nothing."""

    def __init__(self, tokenizer: CLIPTokenizer, count: int, seed: int = 0) -> None:
        self.tokenizer, self.count = tokenizer, count
        self.rng = random.Random(f"reading/{seed}")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        avatar = sample_avatar(self.rng)
        named = named_at_random(self.rng)
        said = [
            values.index(avatar[name]) if name in named and is_defined(avatar, name) else len(values)
            for name, values in VALUES.items()
        ]
        return encode_caption(self.tokenizer, caption(avatar, named, self.rng)), torch.tensor(said)


class ReaderModule(L.LightningModule):
    """The text encoder with one linear head per attribute on its summary of the caption."""

    def __init__(self, tokenizer: CLIPTokenizer, learning_rate: float = 1e-3, total_steps: int = 1500) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="tokenizer")
        self.end: int = tokenizer.eos_token_id  # pyright: ignore[reportAttributeAccessIssue]
        self.text_encoder = new_text_encoder(tokenizer)
        self.heads = nn.ModuleList(nn.Linear(128, len(values) + 1) for values in VALUES.values())

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Scores ``[batch, values + 1]`` of every attribute for tokens ``[batch, TOKENS]``."""
        states = self.text_encoder(tokens).last_hidden_state
        after = (tokens == self.end).unsqueeze(-1)  # the end mark, and the padding, which is the same token
        summary = (states * after).sum(1) / after.sum(1)
        return [head(summary) for head in self.heads]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        tokens, said = batch
        scores = self(tokens)
        loss = sum((F.cross_entropy(s, said[:, k]) for k, s in enumerate(scores)), torch.zeros(())) / len(scores)
        right = torch.stack([s.argmax(1) == said[:, k] for k, s in enumerate(scores)]).float().mean()
        self.log_dict({"loss": loss, "read": right}, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        rate, steps = self.hparams["learning_rate"], self.hparams["total_steps"]
        optimizer = torch.optim.AdamW(self.parameters(), lr=rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
