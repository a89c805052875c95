"""What a language model can do, found out by running it on a few tokens when it is loaded.

Architectures differ in what they take, in whether padding in front of a text leaves it as it is, in how they go on from
what they have read, and in which of their layers run as layers.  None of this is written in a config.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sliders.errors import SliderError
from sliders.runtime.layers import editable_modules

_CACHES = [(name, own) for name in ("past_key_values", "cache_params") for own in (False, True)]
_ROWS, _TOKENS = 3, 5


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
        own_mask: going on, it takes the mask of the new token alone.
        unfit: layers that no slider can be on, with what is wrong with them.
    """

    takes: frozenset[str]
    pads: bool = True
    cache: str | None = "past_key_values"
    own_mask: bool = False
    unfit: Mapping[str, str] = field(default_factory=dict)

    def run(self, network: Callable[..., Any], inputs: dict[str, Tensor], **options: Any) -> Any:
        """Call the model with those of the arguments that it takes."""
        return network(**{name: value for name, value in (inputs | options).items() if name in self.takes})


@torch.no_grad()
def try_out(lm: Any, name: str) -> Abilities:
    """Run a model on a few rows of a few tokens, in evaluation mode, and see.

    Args:
        lm: a transformers model.
        name: of it, for messages.

    Raises:
        SliderError: it does not run on tokens alone, or what it says of a token depends on later ones.
    """
    takes = accepted(lm.forward)
    device = next(lm.parameters()).device
    if device.type == "meta":
        return Abilities(takes)
    words = lm.config.get_text_config().vocab_size
    a, b, c, d, e, f = [int(words * (0.2 + 0.1 * k)) for k in range(6)]
    ids = torch.tensor([[a, b, c, d, e], [a, b, d, f, c], [a, b, c, d, f]], device=device)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)}
    unfit = dict.fromkeys(editable_modules(lm), "the model does not run it as a layer")
    hooks = [
        lm.get_submodule(n).register_forward_hook(lambda _, given, out, n=n: unfit.update({n: _fault(given, out)}))
        for n in unfit
    ]
    able = Abilities(takes)

    def plain(ids: Tensor) -> Tensor:
        return able.run(lm, {"input_ids": ids}, use_cache=False).logits[0]

    try:
        said = able.run(lm, inputs, use_cache=False).logits
    except Exception as error:  # of whatever kind a model raises that wants something else
        said = str(error).partition("\n")[0]
        raise SliderError(f"{name} ({type(lm).__name__}) does not run on tokens alone: {said}") from error
    finally:
        for hook in hooks:
            hook.remove()
    close = _closeness(said)
    if not close(said[0, :-1], said[2, :-1]):
        raise SliderError(
            f"{name} ({type(lm).__name__}) sees later tokens when it predicts one; give a causal model, or set "
            "is_decoder in its config"
        )
    pads = close(said[1, 2:], plain(ids[1:2, 2:]))
    if not pads and not close(said[0], plain(ids[:1])):  # it counts positions in a way of its own
        able = Abilities(takes - {"position_ids"})
        said = able.run(lm, inputs, use_cache=False).logits
        pads = close(said[1, 2:], plain(ids[1:2, 2:]))
    rows = inputs if pads else {n: value[::2] for n, value in inputs.items()}
    wanted = said if pads else said[::2]
    cache, own_mask = next(
        (how for how in _CACHES if how[0] in able.takes and _goes_on(lm, able, rows, wanted[:, -2:], close, *how)),
        (None, False),
    )
    unfit |= {n: "it is an expert, which sees some tokens of all rows" for n in unfit if re.search(r"\bexperts\.\d", n)}
    return Abilities(able.takes, pads, cache, own_mask, {n: fault for n, fault in unfit.items() if fault})


def _fault(given: tuple[Any, ...], out: object) -> str:
    """What is wrong with a layer that was run on this, if anything is."""
    if not isinstance(out, Tensor) or len(given) != 1:
        return "it gives more than one tensor or takes more than one"
    if out.shape[0] != (_ROWS * _TOKENS if out.dim() == 2 else _ROWS):
        return f"it sees {tuple(given[0].shape)} of {_ROWS} rows of {_TOKENS} tokens, so that it is open whose they are"
    return ""


def _closeness(said: Tensor) -> Callable[[Tensor, Tensor], bool]:
    """Whether two predictions are one up to rounding, measured by how much logits differ from word to word."""
    exact = said.dtype in (torch.float32, torch.float64)
    allowed = float(said.float().std(-1).mean()) * (1e-3 if exact else 0.1)
    return lambda one, other: bool((one.float() - other.float()).abs().max() <= allowed)


def _goes_on(
    lm: nn.Module,
    able: Abilities,
    inputs: dict[str, Tensor],
    wanted: Tensor,
    close: Callable[[Tensor, Tensor], bool],
    cache: str,
    own_mask: bool,
) -> bool:
    """Whether with this cache the model goes on for two tokens as if it had read all."""
    try:
        told, said = able.run(lm, {n: value[:, :-2] for n, value in inputs.items()}, use_cache=True), []
        for end in (_TOKENS - 1, _TOKENS):
            step = {n: value[:, end - 1 : end] for n, value in inputs.items()}
            if not own_mask:
                step["attention_mask"] = inputs["attention_mask"][:, :end]
            told = able.run(lm, step, use_cache=True, **{cache: getattr(told, cache)})
            said.append(told.logits[:, -1])
    except Exception:  # of whatever kind; then all is read anew
        return False
    return close(torch.stack(said, 1), wanted)
