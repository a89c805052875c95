"""What a language model says: responses, token by token, each row with random numbers of its own."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sliders.backbones.language.network import Network, joined
from sliders.batch import TensorBatch, join, rows_of, take
from sliders.errors import SliderError
from sliders.formula import plausible, steer


@dataclass(frozen=True)
class PromptSteering:
    """The formula at sampling time, without any slider: ``y0(target) + amount [y0(positive) - y0(negative)]``.

    Args:
        positives: conditionings of n rows each; their log-probabilities are averaged.
        negatives: the same.
        amount: ``s * eta`` of each row, ``[n]``.
        plausible: share of the largest base probability that a token must have to be said at all.
    """

    positives: Sequence[TensorBatch]
    negatives: Sequence[TensorBatch]
    amount: Tensor
    plausible: float = 0.05

    @property
    def conditionings(self) -> list[TensorBatch]:
        """All that is asked beside the target."""
        return [*self.positives, *self.negatives]

    def combine(self, said: Tensor) -> Tensor:
        """Steered log-probabilities ``[n, vocabulary]`` from ``[1 + positives + negatives, n, vocabulary]``."""
        base, positive, negative = said[0], said[1 : 1 + len(self.positives)], said[1 + len(self.positives) :]
        steered = steer(base, positive.mean(0) - negative.mean(0), self.amount)
        return steered.masked_fill(~plausible(base, self.plausible), -math.inf).log_softmax(-1)


@dataclass(frozen=True)
class Sampler:
    """Samples a model's responses.

    Args:
        network: the model.
        ends: the tokens that end a response.
        padding: the token behind the end.
    """

    network: Network
    ends: Sequence[int]
    padding: int

    @torch.no_grad()
    def stream(
        self,
        conditioning: TensorBatch,
        seeds: Sequence[int],
        tokens: int,
        temperature: float = 1.0,
        steering: PromptSteering | None = None,
    ) -> Iterator[Tensor]:
        """Sample responses, one token ``[n]`` of every row at a time; rows that have ended give padding.

        Each row has its own random numbers, so that it does not depend on the other rows.

        Args:
            conditioning: what stands before them, a row each.
            seeds: of the rows.
            tokens: of the longest response.
            temperature: 0 takes the likeliest token.
            steering: from the conditioning, which is its target.

        Raises:
            SliderError: the temperature is below 0, or no token is asked for.
        """
        if temperature < 0:
            raise SliderError(f"temperature is {temperature:g}; it must be 0 or more")
        if tokens < 1:
            raise SliderError(f"tokens is {tokens}; it must be at least 1")
        device = self.network.device
        chance = torch.stack([torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        chance = chance.to(device)
        ends = torch.tensor(self.ends, device=device)
        asked = conditioning if steering is None else join([conditioning, *steering.conditionings])
        times = len(asked["prefix"]) // len(seeds)
        told = [_Told(self.network, asked, rows) for rows in self.network.parts(asked)]
        order = torch.cat([part.rows for part in told]).argsort().to(device)
        done = torch.zeros(len(seeds), dtype=torch.bool, device=device)
        for step in range(tokens):
            logits = torch.cat([part.next() for part in told])[order]
            if steering is not None:
                logits = steering.combine(logits.log_softmax(-1).unflatten(0, (times, len(seeds))))
            token = torch.where(done, self.padding, _drawn(logits, temperature, chance[:, step : step + 1]))
            yield token
            done = done | torch.isin(token, ends)
            if done.all():
                return
            for part in told:
                part.say(token.repeat(times), ~done.repeat(times))

    @torch.no_grad()
    def respond(
        self,
        conditioning: TensorBatch,
        seeds: Sequence[int],
        tokens: int,
        temperature: float = 1.0,
        steering: PromptSteering | None = None,
    ) -> TensorBatch:
        """States ``[n, tokens]`` of sampled responses of up to ``tokens`` tokens; see `stream`."""
        device = self.network.device
        said = torch.stack(list(self.stream(conditioning, seeds, tokens, temperature, steering)), 1)
        ids = torch.full((len(seeds), tokens), self.padding, device=device)
        ids[:, : said.shape[1]] = said
        last = torch.isin(ids, torch.tensor(self.ends, device=device))
        mask = last.cumsum(1) - last.long() == 0  # up to the first end mark, which is part of the response
        mask[:, said.shape[1] :] = False
        return {"tokens": ids, "mask": mask}


def _drawn(logits: Tensor, temperature: float, chance: Tensor) -> Tensor:
    """A token ``[n]`` of each row of ``[n, vocabulary]``, by a random number of its own in [0, 1), ``[n, 1]``."""
    if temperature == 0:
        return logits.argmax(-1)
    share = (logits / temperature).softmax(-1).cumsum(-1)
    return torch.searchsorted(share, chance * share[:, -1:])[:, 0].clamp_max(logits.shape[1] - 1)


class _Told:
    """Some rows of a batch, read token by token.

    Args:
        network: the model.
        conditioning: of the whole batch.
        rows: which of it are read, int64 ``[rows]``.
    """

    def __init__(self, network: Network, conditioning: TensorBatch, rows: Tensor) -> None:
        self.network, self.rows, self.count = network, rows, len(conditioning["prefix"])
        own = take(conditioning, rows)
        self.inputs = joined({name: own["prefix"].new_zeros(len(rows), 0) for name in ("tokens", "mask")}, own)
        self.cache: Any = None

    def next(self) -> Tensor:
        """Logits ``[rows, vocabulary]`` of the next token."""
        able = self.network.able
        known = {} if able.cache is None else {able.cache: self.cache}
        with rows_of(self.count, self.inputs["input_ids"].shape[1], self.rows.tolist()):
            out = able.run(self.network.lm, self.inputs, **known, use_cache=bool(known), logits_to_keep=1)
        self.cache = None if able.cache is None else getattr(out, able.cache)
        return out.logits[:, -1].float()

    def say(self, tokens: Tensor, counts: Tensor) -> None:
        """Go on with a token ``[n]`` of each row of the whole batch; it is padding where it does not count."""
        rows, able = self.rows.to(tokens.device), self.network.able
        tokens, counts = tokens[rows, None], counts[rows, None].long()
        mask = counts if able.own_mask else torch.cat([self.inputs["attention_mask"], counts], 1)
        position = self.inputs["position_ids"][:, -1:] + 1
        if able.cache is None:
            tokens = torch.cat([self.inputs["input_ids"], tokens], 1)
            position = torch.cat([self.inputs["position_ids"], position], 1)
        self.inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": position}
