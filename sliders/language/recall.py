"""What a language model recalls at the last token of a subject: the keys that a layer reads there, and its answers.

A feed-forward part's last layer is taken for a memory (Geva et al. 2012.14913; Meng et al. 2202.05262): the key ``k``
is its input at the subject's last token, and its output there, the value, decides what is said of the subject.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sliders.algebra.closed_forms import write
from sliders.algebra.element import Element
from sliders.backbones.language.model import CausalLMBackbone
from sliders.batch import TensorBatch
from sliders.errors import SliderError
from sliders.runtime.layers import layer_weights


def from_end(backbone: CausalLMBackbone, text: str, end: int) -> int:
    """Where the token that holds the character before ``end`` stands in a text, counted from its end: 1 is the last.

    A token that holds the subject's last character and more is the subject's last; of several that share this
    character's bytes, the last is.

    Raises:
        SliderError: no token holds it, or the tokenizer does not tell.
    """
    try:
        spans = backbone.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    except NotImplementedError:
        raise SliderError(f"the tokenizer of {backbone.base_model} does not tell where its tokens stand") from None
    holding = [i for i, (a, b) in enumerate(spans) if a < end <= b]
    if not holding:
        raise SliderError(f"no token of {text!r} holds {text[end - 1 : end]!r}, with which the subject ends")
    return len(spans) - holding[-1]


@dataclass(frozen=True)
class Asked:
    """Prompts, and in each the subject's last token.

    Args:
        prompts: a conditioning of n rows.
        back: how far it stands from the prompt's end, ``[n]``; 1 is the end.
    """

    prompts: TensorBatch
    back: Tensor

    @classmethod
    def about(cls, backbone: CausalLMBackbone, subject: str, prompts: Sequence[str]) -> "Asked":
        """Prompts with ``{}`` for the subject."""
        texts, back = [], []
        for prompt in prompts:
            before, _, after = prompt.partition("{}")
            texts.append(before + subject + after)
            back.append(from_end(backbone, texts[-1], len(before + subject)))
        return cls(backbone.encode_plain(texts), torch.tensor(back, device=backbone.device))

    def at_subject(self, states: Tensor) -> Tensor:
        """The rows' states ``[n, width]`` there, of ``[n, length, width]`` at all of the prompts' positions."""
        return states[torch.arange(len(states)), states.shape[1] - self.back]


@contextmanager
def reading(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What each of these layers is given while the model runs, ``[n, length, in]`` of the latest run."""
    seen: dict[str, Tensor] = {}

    def keep(layer: str, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen[layer] = given[0]

    hooks = [model.get_submodule(layer).register_forward_pre_hook(partial(keep, layer)) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def answering(model: nn.Module, layer: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Run the model with another output of a layer, made from its own ``[n, length, out]``."""

    def answer(_: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return change(out)

    hook = model.get_submodule(layer).register_forward_hook(answer)
    try:
        yield
    finally:
        hook.remove()


def run(backbone: CausalLMBackbone, prompts: TensorBatch, block: int = 0) -> tuple[Tensor, Tensor]:
    """States after a block ``[n, length, width]`` (the first is 0), and which positions are tokens ``[n, length]``."""
    mask = prompts["prefix_mask"]
    empty = {"tokens": prompts["prefix"][:, :0], "mask": mask[:, :0]}  # of an empty response, all positions are given
    states = backbone.hidden(empty, prompts, [block + 1])[:, 0]
    return states, mask[:, -states.shape[1] :]


@torch.no_grad()
def keys(backbone: CausalLMBackbone, layers: Sequence[str], facts: Sequence[Asked]) -> dict[str, Tensor]:
    """The key of each fact at each layer, the mean over its prompts (2202.05262, eq. 3): ``[in, facts]`` in float64."""
    found: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for fact in facts:
        with reading(backbone, layers) as seen:
            run(backbone, fact.prompts)
        for layer, own in found.items():
            own.append(fact.at_subject(seen[layer]).double().mean(0))
    return {layer: torch.stack(own, 1) for layer, own in found.items()}


@torch.no_grad()
def outputs(backbone: CausalLMBackbone, layer: str, keys: Tensor) -> Tensor:
    """What a layer answers to keys ``[in, m]``, with its bias and all that is attached: ``[out, m]`` in float64."""
    module = backbone.get_submodule(layer)
    return module(keys.T.to(module.get_parameter("weight"))).T.double()


def written(backbone: CausalLMBackbone, layer: str, keys: Tensor, gains: Tensor, moves: Tensor) -> Element:
    """`write` on a layer, whose own answers at the keys move by ``moves [out, m]``; on the CPU.

    Its bias (GPT-2's has one) is part of the answers but stays; what is attached to the layer goes on adding its own.
    """
    weight, bias = layer_weights(backbone, layer)
    values = weight.to(keys) @ keys + moves
    if bias is not None:
        values = values + bias.to(keys)[:, None]
        keys, gains = torch.cat([keys, torch.ones_like(keys[:1])]), torch.nn.functional.pad(gains, (0, 1))
    precision = torch.promote_types(weight.dtype, torch.float32)
    return write(keys, gains, values, tuple(weight.shape)).to("cpu", precision)
