"""The search for a value: what a layer must answer at a subject's last token for the model to say something new."""

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sliders.backbones.language.model import CausalLMBackbone
from sliders.batch import widened
from sliders.concept import read_prompts
from sliders.errors import SliderError
from sliders.language.facts import Rewrite
from sliders.language.recall import Asked, answering
from sliders.resources.shipped import shipped
from sliders.runtime.layers import weight_shape

ESSENCE = "{} is a"
"""The prompt whose answer must stay, so that the subject remains what it is (2202.05262, eq. 4)."""


@dataclass(frozen=True)
class Prefixes:
    """Beginnings that stand before a prompt, so that a key and a value hold wherever the subject is spoken of.

    Args:
        texts: a text file; a beginning is a few words from one of its lines.
        count: of them, beside none at all.
        words: of each.
    """

    texts: Path = field(default_factory=lambda: shipped("data/text/sampled.txt"))
    count: int = 5
    words: int = 5

    def draw(self, seed: int) -> list[str]:
        """The empty beginning and the drawn ones."""
        chance, known = random.Random(seed), read_prompts(self.texts)
        if self.count > len(known):
            raise SliderError(f"prefixes.count is {self.count}, but {self.texts} has {len(known)} lines")
        lines = [line.split() for line in chance.sample(known, self.count)]
        starts = [chance.randint(0, max(len(words) - self.words, 0)) for words in lines]
        parts = [words[i : i + self.words] for words, i in zip(lines, starts, strict=True)]
        return ["", *(" ".join(words).rstrip(".,;:") + ". " for words in parts)]


class PrefixCachedPrompts:
    """Prompts and an answer, read up to the subject's last token once and from there on at every try.

    What comes before that token does not see what a layer answers there, so that a try costs a few tokens a prompt.

    Args:
        backbone: a causal language model.
        asked: the prompts.
        answer: what follows each of them, the same tokens after all.
    """

    def __init__(self, backbone: CausalLMBackbone, asked: Asked, answer: str) -> None:
        self.backbone = backbone
        tokens = backbone.tokenizer(answer, add_special_tokens=False).input_ids
        self.answer = torch.tensor(tokens, device=backbone.device)
        back = asked.back.tolist()
        rows = [ids[mask].tolist() for ids, mask in zip(*asked.prompts.values(), strict=True)]
        before = [row[:-k] for row, k in zip(rows, back, strict=True)]
        after = [row[-k:] + tokens for row, k in zip(rows, back, strict=True)]
        ids, mask = self._padded(before, left=True)
        self.ids, own = self._padded(after, left=False)
        self.mask = torch.cat([mask, own], 1)
        self.position = (self.mask.cumsum(1) - 1).clamp_min(0)
        self.places = asked.back[:, None] - 1 + torch.arange(len(tokens), device=backbone.device)
        with torch.no_grad():
            self.cache = self._run(ids, mask, self.position[:, : ids.shape[1]]).past_key_values if ids.numel() else None

    def _padded(self, rows: Sequence[list[int]], left: bool) -> tuple[Tensor, Tensor]:
        """Ids and mask ``[n, longest]``."""
        width = max(map(len, rows))
        ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long, device=self.backbone.device)
        for k, row in enumerate(rows):
            part = slice(width - len(row), width) if left else slice(len(row))
            ids[k, part], mask[k, part] = torch.tensor(row, device=ids.device), 1
        return ids, mask

    def _run(self, ids: Tensor, mask: Tensor, position: Tensor, cache: Any = None) -> Any:
        return self.backbone.lm(
            input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
        )

    def log_probabilities(self) -> Tensor:
        """Of what may stand at each of the answer's tokens, ``[n, answer, vocabulary]``; it can be differentiated."""
        position = self.position[:, -self.ids.shape[1] :]
        logits = self._run(self.ids, self.mask, position, copy.deepcopy(self.cache)).logits
        return logits[torch.arange(len(logits))[:, None], self.places].float().log_softmax(-1)


@dataclass(frozen=True)
class ValueSearch:
    """How the value is found that makes the model say the new answer (2202.05262, eq. 4).

    Args:
        steps: of Adam, at most.
        rate: of Adam, in root mean squares of the vector that is moved.
        essence: weight of the divergence from the base on what the subject is.
        limit: how far the vector may be moved, in its own norms; as the published code has it.
        enough: the loss at which the search ends.
        prefixes: what stands before the prompts.
    """

    steps: int = 20
    rate: float = 0.5
    essence: float = 0.0625
    limit: float = 4.0
    enough: float = 0.05
    prefixes: Prefixes = field(default_factory=Prefixes)

    def asked(self, backbone: CausalLMBackbone, fact: Rewrite, seed: int) -> Asked:
        """The fact's prompt after every beginning."""
        return Asked.about(backbone, fact.subject, [before + fact.prompt for before in self.prefixes.draw(seed)])

    def move(
        self, backbone: CausalLMBackbone, layer: str, fact: Rewrite, start: Tensor | None, size: float, seed: int
    ) -> Tensor:
        """What to add to a layer's answer at the subject's last token: ``[out]`` in float64.

        The divergence is asked behind a beginning too: a text's first token is where attention goes that has nowhere
        to go, and its states are unlike all others.

        Args:
            backbone: a causal language model.
            layer: whose answer is changed.
            fact: what it shall say.
            start: the answer that stands in place of the layer's own at all prompts, ``[out]``; None adds to its own.
            size: the norm that ``rate`` and ``limit`` are shares of.
            seed: of the beginnings.
        """
        before = self.prefixes.draw(seed)
        asked = Asked.about(backbone, fact.subject, [*(b + fact.prompt for b in before), before[-1] + ESSENCE])
        told = PrefixCachedPrompts(backbone, asked, f" {fact.new}")
        like = backbone.get_submodule(layer).get_parameter("weight")
        delta = widened(like[:1]).new_zeros(weight_shape(backbone, layer)[0]).requires_grad_()

        def moved(out: Tensor) -> Tensor:
            own = out[:, 0] if start is None else start.to(delta).expand(len(out), -1)
            return torch.cat([(own + delta).to(out)[:, None], out[:, 1:]], 1)

        with torch.no_grad():
            known = told.log_probabilities()[-1, 0]
        descent = torch.optim.Adam([delta], lr=self.rate * size / len(delta) ** 0.5)
        for _ in range(self.steps):
            with answering(backbone, layer, moved), torch.enable_grad():
                found = told.log_probabilities()
                likely = found[:-1, torch.arange(len(told.answer)), told.answer]
                drift = (found[-1, 0].exp() * (found[-1, 0] - known)).sum()
                loss = -likely.mean() + self.essence * drift
            if float(loss.detach()) < self.enough:
                break
            descent.zero_grad()
            loss.backward()
            descent.step()
            with torch.no_grad():
                delta *= (self.limit * size / delta.norm()).clamp_max(1)
        return delta.detach().double()
