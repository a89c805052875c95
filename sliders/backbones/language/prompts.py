"""Text in and out of a language model: its chat template, what stands before a response, and responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sliders.batch import TensorBatch
from sliders.concept import BETWEEN
from sliders.errors import SliderError


def ends_of(lm: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a model's responses, the first of which it is given itself."""
    said = lm.generation_config.eos_token_id if lm.generation_config else None
    said = tokenizer.eos_token_id if said is None else said
    return [0] if said is None else said if isinstance(said, list) else [said]


@dataclass(frozen=True)
class Prompts:
    """How a model's texts become tokens and its tokens texts.

    Args:
        tokenizer: of transformers.
        called: the model in messages.
        chat: use the tokenizer's chat template; where there is one if None.
        room: tokens for the longest prompt.
        ends: the tokens that end a response.
        device: where tokens are put.
    """

    tokenizer: Any
    called: str
    chat: bool | None
    room: int
    ends: Sequence[int]
    device: torch.device

    def render(self, prompt: str) -> str:
        """The text in front of a response.

        Raises:
            SliderError: the chat template leaves out the message or the instruction.
        """
        instruction, blank, message = prompt.partition(BETWEEN)
        if not blank:
            instruction, message = "", prompt
        chat = bool(self.tokenizer.chat_template) if self.chat is None else self.chat
        if not chat:
            return message if not instruction else instruction + BETWEEN + message
        turns = [{"role": "user", "content": message}]
        if instruction:
            system = {"role": "system", "content": instruction}
            try:
                if (shown := self._shown([system, *turns])) is not None:
                    return shown
            except Exception:  # a template's own `raise_exception`, of whatever class jinja gives it
                pass
            turns[0]["content"] = instruction + BETWEEN + message
        if (shown := self._shown(turns)) is None:
            raise SliderError(
                f"the chat template of {self.called} leaves out what it is given: {turns[0]['content'][:60]!r}; give "
                "backbone.chat: false, or a model whose template shows it"
            )
        return shown

    def _shown(self, turns: list[dict[str, str]]) -> str | None:
        """What the chat template makes of turns; None if it leaves out what one of them says."""
        text = self._template(turns)
        for k, turn in enumerate(turns):
            other = {**turn, "content": turn["content"] + " x"}
            if self._template([*turns[:k], other, *turns[k + 1 :]]) == text:
                return None
        return text

    def _template(self, turns: list[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def encode(self, texts: Sequence[str], cut: bool = False) -> TensorBatch:
        """The conditioning of texts as they are, ``[n, room]``, padded on the left.

        Args:
            texts: a row each.
            cut: of a text that is too long keep the beginning.

        Raises:
            SliderError: a text is too long.
        """
        begin = next(i for i in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, 0) if i is not None)
        ids, mask = self._blank(len(texts), self.room)
        marked = self._adds_begin
        for row, text in enumerate(texts):
            tokens = self.tokenizer(text, add_special_tokens=False).input_ids
            if not tokens or (marked and tokens[0] != begin):
                tokens = [begin, *tokens]
            if cut:
                tokens = tokens[: self.room]
            if len(tokens) > self.room:
                raise SliderError(
                    f"a prompt has {len(tokens)} tokens, but backbone.prompt_tokens is {self.room}: {text[:60]!r}..."
                )
            ids[row, self.room - len(tokens) :] = torch.tensor(tokens)
            mask[row, self.room - len(tokens) :] = True
        return {"prefix": ids.to(self.device), "prefix_mask": mask.to(self.device)}

    def responses(self, texts: Sequence[str], tokens: int, end: bool = True) -> TensorBatch:
        """States ``[n, tokens]`` of given responses, cut to so many tokens; a complete one ends with the end mark.

        Args:
            texts: a row each.
            tokens: of the longest one.
            end: whether an end mark belongs to them.

        Raises:
            SliderError: a response is empty.
        """
        ids, mask = self._blank(len(texts), tokens)
        for row, text in enumerate(texts):
            said = self.tokenizer(text, add_special_tokens=False).input_ids + ([self.ends[0]] if end else [])
            if not said:
                raise SliderError("a response is empty; give at least one token")
            ids[row, : len(said)] = torch.tensor(said[:tokens])
            mask[row, : len(said)] = True
        return {"tokens": ids.to(self.device), "mask": mask.to(self.device)}

    def text(self, state: TensorBatch) -> list[str]:
        """The responses of a state as text, without marks."""
        rows = zip(state["tokens"], state["mask"], strict=True)
        return [self.tokenizer.decode(ids[keep], skip_special_tokens=True).strip() for ids, keep in rows]

    def _blank(self, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Tokens and mask ``[rows, tokens]`` of nothing but padding."""
        ids = torch.full((rows, tokens), self.padding)
        return ids, torch.zeros_like(ids, dtype=torch.bool)

    @property
    def padding(self) -> int:
        """The token that stands where there is none."""
        pad = self.tokenizer.pad_token_id
        return self.ends[0] if pad is None else pad

    @property
    def _adds_begin(self) -> bool:
        """Whether this tokenizer begins a text with a mark."""
        ids = self.tokenizer("a").input_ids
        return self.tokenizer.bos_token_id is not None and ids[:1] == [self.tokenizer.bos_token_id]
