"""What a language model can do, found out by running it on a few tokens when it is loaded.

Architectures differ in what they take, in whether padding in front of a text leaves it as it is, in how they go on from
what they have read, and in which of their layers run as layers.  None of this is written in a config.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sliders.attach import editable_modules
from sliders.errors import SliderError

_CACHES = ("past_key_values", "cache_params", "state")


def accepted(run: Callable[..., Any]) -> frozenset[str]:
    """Names of the arguments that a forward pass takes, of those that are given to language models."""
    parameters = inspect.signature(run).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return frozenset(parameters) | (frozenset({"use_cache"}) if open_ended else frozenset())


def positions(mask: Tensor) -> Tensor:
    """Where each token stands in its row ``[n, tokens]``, padding not counted."""
    return (mask.cumsum(1) - 1).clamp_min(0)


@dataclass(frozen=True)
class Abilities:
    """What a language model can do.

    Args:
        takes: names of the arguments of its forward pass.
        pads: rows of different lengths may be run together, padded on the left; otherwise rows of one length at a time.
        cache: under which name it takes what it has read, to go on from; None if it must read all anew.
        unused: names of linear layers that are not run as layers, so that a slider there would do nothing.
    """

    takes: frozenset[str]
    pads: bool = True
    cache: str | None = "past_key_values"
    unused: frozenset[str] = frozenset()

    def run(self, network: Callable[..., Any], inputs: dict[str, Tensor], **options: Any) -> Any:
        """Call the model with those of the arguments that it takes."""
        return network(**{name: value for name, value in (inputs | options).items() if name in self.takes})


@torch.no_grad()
def try_out(lm: Any, name: str) -> Abilities:
    """Run a model on three rows of five tokens, in evaluation mode, and see.

    Args:
        lm: a transformers model.
        name: of it, for messages.

    Raises:
        SliderError: it does not run on tokens alone, or what it says of a token depends on later ones.
    """
    able = Abilities(accepted(lm.forward))
    device = next(lm.parameters()).device
    if device.type == "meta":
        return able
    words = lm.config.get_text_config().vocab_size
    a, b, c, d, e, f = [int(words * (0.2 + 0.1 * k)) for k in range(6)]
    ids = torch.tensor([[a, b, c, d, e], [a, b, d, f, c], [a, b, c, d, f]], device=device)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)}
    ran: set[str] = set()
    layers = editable_modules(lm)
    hooks = [lm.get_submodule(n).register_forward_hook(lambda *_, n=n: ran.add(n)) for n in layers]
    try:
        said = able.run(lm, inputs, use_cache=False).logits
    except Exception as error:  # of whatever kind a model raises that wants something else
        raise SliderError(f"{name} ({type(lm).__name__}) does not run on tokens alone: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    close = _closeness(said)
    if not close(said[0, :-1], said[2, :-1]):
        raise SliderError(
            f"{name} ({type(lm).__name__}) sees later tokens when it predicts one; give a causal model, or set "
            "is_decoder in its config"
        )
    alone = {n: value[1:2, 2:] for n, value in inputs.items()} | {"position_ids": positions(mask[1:2, 2:])}
    pads = close(said[1, 2:], able.run(lm, alone, use_cache=False).logits[0])
    rows = inputs if pads else {n: value[::2] for n, value in inputs.items()}
    wanted = said if pads else said[::2]
    return Abilities(able.takes, pads, _cache(lm, able, rows, wanted[:, -2:], close), frozenset(layers) - ran)


def _closeness(said: Tensor) -> Callable[[Tensor, Tensor], bool]:
    """Whether two predictions are one up to rounding, measured by how much logits differ from word to word."""
    exact = said.dtype in (torch.float32, torch.float64)
    allowed = float(said.float().std(-1).mean()) * (1e-3 if exact else 0.1)
    return lambda one, other: bool((one.float() - other.float()).abs().max() <= allowed)


def _cache(
    lm: nn.Module, able: Abilities, inputs: dict[str, Tensor], wanted: Tensor, close: Callable[[Tensor, Tensor], bool]
) -> str | None:
    """The name of the cache with which the model goes on as if it had read all, for two tokens."""
    for name in _CACHES:
        if name not in able.takes:
            continue
        first = {n: value[:, :-2] for n, value in inputs.items()}
        try:
            told, said = able.run(lm, first, use_cache=True), []
            for end in (-1, None):
                cache = getattr(told, name)
                step = {n: value[:, :end][:, -1:] for n, value in inputs.items()}
                step["attention_mask"] = inputs["attention_mask"][:, :end]
                told = able.run(lm, step, use_cache=True, **{name: cache})
                said.append(told.logits[:, -1])
        except Exception:  # of whatever kind; then all is read anew
            continue
        if cache is not None and close(torch.stack(said, 1), wanted):
            return name
    return None
