"""A pipeline's own call with stand-ins for what is heavy: what it would ask its denoiser, and where it steps."""

import copy
import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from diffusers import ModularPipeline
from torch import Tensor, nn

FILLER = "a"
"""The word of the prompt that is encoded beside every other one; see `Rehearser`."""

Answer = Callable[[nn.Module, dict[str, Any]], Any]
"""What a stand-in says: from the denoiser and its arguments by name, in order, to what its forward returns first."""


@dataclass(frozen=True)
class Ask:
    """One time that a call asks its denoiser.

    Args:
        expert: index of the denoiser that is asked.
        arguments: of its forward, by name, the state first; what is None is left out.
    """

    expert: int
    arguments: dict[str, Any]


@dataclass
class Rehearsal:
    """What a call did.

    Args:
        asked: of the denoisers, in order.
        said: what the scheduler was given as the prediction of each step.
        samples: what it was to step from.
        times: the scheduler's time of each step.
        stepped: what it gave back.
        made: what the call returned.
        cut: parts of prompts that it said it does not read.
    """

    asked: list[Ask] = field(default_factory=list)
    said: list[Tensor] = field(default_factory=list)
    samples: list[Tensor] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    stepped: list[Tensor] = field(default_factory=list)
    made: Any = None
    cut: list[str] = field(default_factory=list)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of an object with another value, and as it was afterwards."""
    absent = object()
    before = vars(owner).get(name, absent)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name) if before is absent else setattr(owner, name, before)


def _parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def echo(denoiser: nn.Module, arguments: dict[str, Any]) -> Any:
    """The stand-in that says the state that it is asked about."""
    return next(iter(arguments.values()))


class Caller:
    """Runs a pipeline's call, whole or with stand-ins.

    Text encoders run once for the filler prompt, whatever is rehearsed with it.

    Args:
        pipeline: of diffusers.
        denoisers: its experts, in the order of their names.
        options: arguments that every call is given.
    """

    def __init__(self, pipeline: Any, denoisers: Sequence[nn.Module], options: Mapping[str, Any]) -> None:
        self.pipeline, self.denoisers, self.options = pipeline, denoisers, options
        self._modular = isinstance(pipeline, ModularPipeline)
        named = (one.name for one in pipeline.blocks.inputs) if self._modular else _parameters(type(pipeline).__call__)
        self.accepted = frozenset(name for name in named if name)
        self._encoded: dict[str, Any] = {}  # what `encode_prompt` said of filler prompts

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int], steps: int, **more: Any) -> Any:
        """What the pipeline makes of prompts, as it returns it first.

        Args:
            prompts: one a row.
            seeds: of the rows.
            steps: of sampling.
            more: arguments of the call; those that it does not have are left out.
        """
        arguments = {
            "prompt": list(prompts),  # of its own: some calls write into it
            "num_inference_steps": steps,
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
            "return_dict": False,
            **self.options,
            **{name: value for name, value in more.items() if value is not None},
        }
        known = {name: value for name, value in arguments.items() if name in self.accepted}
        if not self._modular:
            return self.pipeline(**known)[0]
        return self.pipeline(output="images", **known | {"output_type": "pt"})  # they always make their pictures

    def pictures(self, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float, **more: Any) -> Any:
        """What the pipeline makes of prompts with a guidance scale, in [0, 1]; see `__call__`."""
        with ExitStack() as stack:
            if self._guider is not None:
                stack.enter_context(replaced(self._guider, "guidance_scale", guidance))
            return self(prompts, seeds, steps, output_type="pt", **self.guided(guidance, len(prompts)), **more)

    @property
    def _guider(self) -> Any:
        """The component that guides, of pipelines that have one."""
        return getattr(self.pipeline, "guider", None)

    def rehearse(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        answer: Answer = echo,
        finished: Tensor | None = None,
        stepping: bool = False,
        **more: Any,
    ) -> Rehearsal:
        """Run the call without its denoiser.

        Args:
            prompts: one a row.
            seeds: of the rows.
            steps: of sampling.
            answer: what is said in place of the denoisers.
            finished: latents that the scheduler gives back at every step, to see what the call makes of them.
            stepping: let the scheduler step; otherwise it gives back where it stood.
            more: arguments of the call.
        """
        seen = Rehearsal()
        with ExitStack() as stack:
            for expert, denoiser in enumerate(self.denoisers):
                stack.enter_context(replaced(denoiser, "forward", self._stand_in(seen, expert, denoiser, answer)))
            step = self._step(seen, finished, stepping)
            stack.enter_context(replaced(self.pipeline.scheduler, "step", step))
            if self._guider is not None:
                stack.enter_context(replaced(self._guider, "_enabled", False))
            if hasattr(self.pipeline, "encode_prompt"):
                stack.enter_context(replaced(self.pipeline, "encode_prompt", self._encode_prompt))
            kind = "latent" if finished is None else "pt"
            stack.enter_context(_noting_cuts(seen.cut))
            seen.made = self(prompts, seeds, steps, output_type=kind, **self.unguided(), **more)
        return seen

    def guided(self, guidance: float, rows: int) -> dict[str, Any]:
        """The arguments that ask for a guidance scale: of the one where a call has another for real guidance."""
        if self._guider is not None:  # a component has the scale, see `pictures`
            return {"negative_prompt": [""] * rows} if "negative_prompt" in self.accepted else {}
        if "true_cfg_scale" in self.accepted and not self._embedded():
            return {"true_cfg_scale": guidance, "negative_prompt": [" "] * rows}
        return {"guidance_scale": guidance} if "guidance_scale" in self.accepted else {}

    def unguided(self) -> dict[str, Any]:
        """What switches classifier-free guidance off, which every call takes for that."""
        return {} if self._embedded() else {"guidance_scale": 0.0} if "guidance_scale" in self.accepted else {}

    def _embedded(self) -> bool:
        """Whether guidance is an input of a denoiser."""
        return any(getattr(one.config, "guidance_embeds", False) for one in self.denoisers)

    @staticmethod
    def _stand_in(seen: Rehearsal, expert: int, denoiser: nn.Module, answer: Answer) -> Callable[..., tuple[Any]]:
        forward = inspect.signature(type(denoiser).forward)

        @wraps(denoiser.forward)
        def stand_in(*args: Any, **kwargs: Any) -> tuple[Any]:
            bound = forward.bind(denoiser, *args, **kwargs).arguments
            _, *given = bound.items()
            named = {name: value for name, value in given if value is not None and name != "return_dict"}
            seen.asked.append(Ask(expert, flat(named)))
            return (answer(denoiser, named),)

        return stand_in

    def _step(self, seen: Rehearsal, finished: Tensor | None, stepping: bool) -> Callable[..., tuple[Tensor]]:
        real = self.pipeline.scheduler.step

        @wraps(real)  # whose arguments calls ask for
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
            seen.said.append(model_output)
            seen.samples.append(sample)
            seen.times.append(float(timestep))
            if stepping:
                after = real(model_output, timestep, sample, *args, **{**kwargs, "return_dict": False})[0]
            else:
                after = sample if finished is None else finished
            seen.stepped.append(after)
            return (after,)

        return step

    def _encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """The pipeline's own, which is asked about filler prompts once."""
        real = type(self.pipeline).encode_prompt
        prompts = next(
            (v for v in [*args, *kwargs.values()] if isinstance(v, list) and v and isinstance(v[0], str)), []
        )
        if any(set(prompt.split()) != {FILLER} for prompt in prompts) or not prompts:
            return real(self.pipeline, *args, **kwargs)
        key = repr((args, sorted(kwargs.items())))
        if key not in self._encoded:
            self._encoded[key] = real(self.pipeline, *args, **kwargs)
        return copy.copy(self._encoded[key])


class _Cuts(logging.Handler):
    """Keeps what is said of prompts that are too long, which may be fillers, and passes all else on.

    Args:
        found: gets the parts of prompts that are left out.
        others: that print what is passed on, from this level upwards.
        level: see there.
    """

    def __init__(self, found: list[str], others: Sequence[logging.Handler], level: int) -> None:
        super().__init__()
        self._found, self._others, self._from = found, others, level

    def emit(self, record: logging.LogRecord) -> None:
        told = record.getMessage()
        if "your input was truncated" in told:
            self._found.extend(re.findall(r"'([^']*)'", told.partition(":")[2] or told) or [told.rpartition(":")[2]])
        elif "Token indices sequence length is longer" not in told and record.levelno >= self._from:
            for handler in self._others:
                handler.handle(record)


@contextmanager
def _noting_cuts(found: list[str]) -> Iterator[None]:
    """Keep what diffusers and transformers say of prompts that are too long instead of printing it; print all else."""
    with ExitStack() as stack:
        for logger in map(logging.getLogger, ("diffusers", "transformers")):
            noting = _Cuts(found, logger.handlers[:], logger.getEffectiveLevel())
            stack.enter_context(replaced(logger, "handlers", [noting]))
            stack.enter_context(replaced(logger, "propagate", False))
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(min(logger.getEffectiveLevel(), logging.WARNING))
        yield


def flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Dictionaries that hold tensors, such as SDXL's ``added_cond_kwargs``, in one level, their names joined by `/`."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        inner = isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())
        found |= {f"{name}/{key}": v for key, v in value.items() if v is not None} if inner else {name: value}
    return found


def nested(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        outer, slash, inner = name.partition("/")
        if slash:
            found.setdefault(outer, {})[inner] = value
        else:
            found[name] = value
    return found
