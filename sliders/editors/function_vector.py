"""Function vectors: what examples in a prompt make a language model do, as one vector (Todd et al. 2310.15213).

At a prompt's last token, some attention heads carry the task that the examples show.  Which do is found by putting
their mean output into prompts whose examples say nothing (eq. 4); the sum over the best is the vector (eq. 5).  The
paper adds it at the last token.  Here it is added at all, which makes it an edit of weights: a bias.
"""

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sliders.algebra.closed_forms import steer_output
from sliders.algebra.edit import Affine
from sliders.backbones.language.model import CausalLMBackbone
from sliders.batch import widened
from sliders.editors.base import Editor
from sliders.editors.contrast import writer, writers
from sliders.errors import SliderError
from sliders.language.in_context import Task, first_tokens
from sliders.language.recall import outputs, reading, run
from sliders.runtime.layers import weight_shape

ROWS = 90  # heads that are put in at once


@dataclass(frozen=True)
class FunctionVector(Editor[CausalLMBackbone]):
    """A task that the model does with examples, done without them.

    Args:
        task: YAML file, as `Task` has it.
        block: after which the vector is added (the first is 0).
        heads: how many heads are summed up.
        shots: examples in a prompt.
        prompts: with examples, over which the heads' outputs are averaged.
        trials: prompts with shuffled answers, on which the heads' effects are measured.
    """

    of = CausalLMBackbone

    task: Path
    block: int
    heads: int = 10
    shots: int = 10
    prompts: int = 32
    trials: int = 16

    @torch.no_grad()
    def fit(self, backbone: CausalLMBackbone, seed: int = 0) -> Affine:
        task, layers = Task.load(self.task), attention_outputs(backbone)
        chance = random.Random(seed)
        means = mean_heads(backbone, layers, self._asked(task, chance, self.prompts))
        effects = torch.zeros(len(layers), means.shape[1])
        for word, prompt in self._asked(task, chance, self.trials, shuffled=True):
            effects += head_effects(backbone, layers, means, prompt, task.examples[word]) / self.trials
        if not 0 < self.heads <= effects.numel():
            raise SliderError(f"function_vector: heads is {self.heads}; the model has {effects.numel()}")
        chosen = torch.zeros(effects.numel()).index_fill_(0, effects.flatten().topk(self.heads).indices, 1)
        kept = means * chosen.view_as(effects)[..., None].to(means)
        target = writer(backbone, self.block)
        parts = [_written(backbone, layer, own.flatten()) for layer, own in zip(layers, kept, strict=True)]
        vector = torch.stack(parts).sum(0)
        return Affine({target: steer_output(vector, weight_shape(backbone, target))})

    def _asked(self, task: Task, chance: random.Random, count: int, shuffled: bool = False) -> list[tuple[str, str]]:
        """Words drawn from the examples, and a prompt for each."""
        words = chance.choices(list(task.examples), k=count)
        return [(word, task.prompt(word, self.shots, chance, shuffled)) for word in words]

    def describe(self) -> str:
        return f"{self.task.stem} from {self.shots} examples, {self.heads} heads, added after block {self.block}"


def attention_outputs(backbone: CausalLMBackbone) -> list[str]:
    """The layer of each block that joins its heads."""
    return list(writers(backbone, "attention").values())


def mean_heads(backbone: CausalLMBackbone, layers: Sequence[str], asked: Sequence[tuple[str, str]]) -> Tensor:
    """The mean output of each head at the prompts' last token, ``[blocks, heads, width]``."""
    total: list[Tensor] = []
    for start in range(0, len(asked), 8):
        with reading(backbone, layers) as seen:
            run(backbone, backbone.encode_plain([prompt for _, prompt in asked[start : start + 8]]))
        total.append(torch.stack([seen[layer][:, -1] for layer in layers]))
    return widened(torch.cat(total, 1)).mean(1).unflatten(1, (backbone.lm.config.num_attention_heads, -1))


def head_effects(backbone: CausalLMBackbone, layers: Sequence[str], means: Tensor, prompt: str, answer: str) -> Tensor:
    """The causal effect of each head: what its mean output adds to P(answer) after a prompt, ``[blocks, heads]``.

    Only the last token sees the change, so the prompt before it is read once.
    """
    asked = backbone.encode_plain([prompt])
    ids = asked["prefix"][asked["prefix_mask"]][None]
    right = first_tokens(backbone, [answer])
    before = backbone.lm(ids[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
    blocks, heads = means.shape[:2]
    every = torch.cartesian_prod(torch.arange(blocks), torch.arange(heads))
    changed = torch.cat([torch.tensor([[-1, 0]]), every])  # the first changes nothing
    found = []
    for rows in changed.split(ROWS):
        cache = copy.deepcopy(before)
        cache.batch_repeat_interleave(len(rows))
        with putting_in(backbone, layers, means, rows):
            logits = backbone.lm(
                ids[:, -1:].expand(len(rows), 1),
                attention_mask=torch.ones_like(ids).expand(len(rows), -1),
                past_key_values=cache,
                use_cache=True,
            ).logits
        found.append(logits[:, -1].float().softmax(-1)[:, right[0]].cpu())
    likely = torch.cat(found)
    return (likely[1:] - likely[0]).view(blocks, heads)


@contextmanager
def putting_in(backbone: CausalLMBackbone, layers: Sequence[str], means: Tensor, rows: Tensor) -> Iterator[None]:
    """Run with the mean of one head in place of its own output in each row; ``rows`` are ``(block, head)``."""

    def change(block: int, _: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        own = given[0].clone()
        split = own.unflatten(-1, means.shape[1:])
        for row in (rows[:, 0] == block).nonzero()[:, 0].tolist():
            split[row, -1, rows[row, 1]] = means[block, rows[row, 1]]
        return (own, *given[1:])

    hooks = [
        backbone.get_submodule(layer).register_forward_pre_hook(partial(change, k)) for k, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _written(backbone: CausalLMBackbone, layer: str, heads: Tensor) -> Tensor:
    """What a layer adds to the residual stream for its heads' outputs ``[in]``, without its bias: ``[out]``."""
    both = outputs(backbone, layer, torch.stack([heads, torch.zeros_like(heads)], 1))
    return (both[:, 0] - both[:, 1]).to("cpu", torch.float32)
