"""What a language model predicts of responses: log-probabilities, with a support or of all words, and hidden states.

A state holds ``tokens`` and ``mask`` ``[n, response]`` and may hold a ``support`` ``[n, response, k]``; a conditioning
holds ``prefix`` and ``prefix_mask`` ``[n, prompt_tokens]``.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sliders.backbones.language.network import Network
from sliders.backbones.language.trial import accepted
from sliders.batch import TensorBatch
from sliders.errors import SliderError


def log_probabilities(network: Network, state: TensorBatch, conditioning: TensorBatch) -> Tensor:
    """``[n, response, k]`` of the support's tokens at each position, or of the whole vocabulary without one."""
    length = state["tokens"].shape[1]

    def run(inputs: dict[str, Tensor]) -> Tensor:
        out = network.able.run(network.forward, inputs, logits_to_keep=length + 1, use_cache=False)
        return out.logits[:, -length - 1 : -1]

    logits = network.in_parts(run, state, conditioning).float()
    if "support" not in state:
        return logits.log_softmax(-1)
    return logits.gather(-1, state["support"]) - logits.logsumexp(-1, keepdim=True)


def likelihood(network: Network, state: TensorBatch, conditioning: TensorBatch) -> Tensor:
    """Log-probability of each token of the responses ``[n, response]``, 0 on the padding."""
    own = {"tokens": state["tokens"], "mask": state["mask"], "support": state["tokens"][..., None]}
    return log_probabilities(network, own, conditioning)[..., 0] * state["mask"]


def hidden(network: Network, state: TensorBatch, conditioning: TensorBatch, layers: Sequence[int]) -> Tensor:
    """States ``[n, layers, response, width]`` after these blocks (the first is 1) at the response's tokens.

    Where a response has no tokens they are those of the prefix.

    Raises:
        SliderError: see `check_layers`; or a prefix is to be read whole, and the model runs rows of one length at a
            time.
    """
    check_layers(network, layers)
    length = state["tokens"].shape[1]
    body, able = network.lm.base_model, network.able
    takes = accepted(body.forward)
    if "kwargs" not in takes:
        able = replace(able, takes=able.takes & takes)
    seen: dict[int, Tensor] = {}
    hooks = [
        network.lm.get_submodule(name).register_forward_hook(
            lambda _, __, out, k=k: seen.update({k: out if isinstance(out, Tensor) else out[0]})
        )
        for k, (name, _) in enumerate(network.blocks, 1)
        if k in layers
    ]

    def run(inputs: dict[str, Tensor]) -> Tensor:
        able.run(body, inputs, use_cache=False)
        return torch.stack([seen[layer][:, -length:] for layer in layers], 1)

    if not length:
        network.check_together(conditioning)
    try:
        return network.in_parts(run, state, conditioning)
    finally:
        for hook in hooks:
            hook.remove()


def check_layers(network: Network, layers: Sequence[int]) -> None:
    """Refuse what `hidden` cannot read.

    Raises:
        SliderError: the model has no such block, or none is named.
    """
    if not layers:
        raise SliderError("no block is named whose states are read; give at least one")
    count = len(blocks := network.blocks)
    if len({number for _, number in blocks}) < count:
        raise SliderError(f"{network.called} has several stacks of blocks, so that a number names none of its states")
    if wrong := [layer for layer in layers if not 1 <= layer <= count]:
        raise SliderError(
            f"there are no states after block {wrong[0] - 1}: {network.called} has the blocks 0 to {count - 1}"
        )
