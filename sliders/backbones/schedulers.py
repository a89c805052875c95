"""Which of diffusers' schedulers a UNet's trajectories follow, and what stands in for one that they cannot follow."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, PNDMScheduler

from sliders.errors import SliderError, one_line

EXACT = (
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
"""Classes of diffusers whose trajectories are those of the pipeline, row by row and the same every time."""

INSTEAD = {"PNDMScheduler": "DDIMScheduler"}
"""Classes that another one stands in for: what each means is carried over by `sampler`."""

_OF_FLOWS = "is for models of flows, which a UNet of Stable Diffusion is not", "EulerDiscreteScheduler"
_INVERSE = "goes from a picture to noise"
_REFUSED = {
    "CogVideoXDDIMScheduler": ("is for video models", "DDIMScheduler"),
    "CogVideoXDPMScheduler": ("is for video models", "DPMSolverMultistepScheduler"),
    "CosineDPMSolverMultistepScheduler": ("is for audio models", "DPMSolverMultistepScheduler"),
    "DDIMInverseScheduler": (_INVERSE, "DDIMScheduler"),
    "DPMSolverMultistepInverseScheduler": (_INVERSE, "DPMSolverMultistepScheduler"),
    "DPMSolverSDEScheduler": (
        "draws one noise for a whole batch, so that a picture depends on its neighbours",
        "DPMSolverMultistepScheduler, with algorithm_type sde-dpmsolver++ in its configuration",
    ),
}
"""Why, and the one to use; any other class is refused as unknown, and those of flows by their name."""


def check(name: str, model: str) -> None:
    """Refuse a class of schedulers that trajectories cannot follow.

    Raises:
        SliderError: why not, and which class to use instead.
    """
    if name in EXACT or name in INSTEAD:
        return
    unknown = _OF_FLOWS if name.startswith("Flow") else ("is not for text-to-image models with a UNet", "DDIMScheduler")
    why, use = _REFUSED.get(name, unknown)
    raise SliderError(f"the scheduler of {model} is {name}, which {why}; set the backbone's scheduler to {use}")


def sampler(scheduler: Any, model: str, name: str | None = None) -> Any:
    """What trajectories of a pipeline follow.

    Stable Diffusion 1.x comes with PNDM, which visits one timestep twice and whose steps depend on the past, so that a
    state is not a function of its timestep; DDIM follows the same trajectory of the same model.

    Args:
        scheduler: the pipeline's own, which stays as it is.
        model: what messages call the pipeline.
        name: a class of diffusers to sample with instead, made from the configuration of the pipeline's own.

    Raises:
        SliderError: it is one that trajectories cannot follow; the message names the one to use.
    """
    check(name or type(scheduler).__name__, model)
    if name is not None and name != type(scheduler).__name__:
        scheduler = _replaced(scheduler, getattr(diffusers, name))
    if isinstance(scheduler, PNDMScheduler):
        scheduler = _ddim(scheduler.config)
    config = scheduler.config
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        raise SliderError(
            f"the {type(scheduler).__name__} of {model} is set up for models of flows, which a UNet of Stable "
            "Diffusion is not; give one whose configuration has no use_flow_sigmas and another prediction_type"
        )
    _try(scheduler, model)
    return scheduler


def _try(scheduler: Any, model: str) -> None:
    """Go through a trajectory of nothing, which shows whether a scheduler can do what it is set up for."""
    name, latents = type(scheduler).__name__, torch.ones(1, 1, 2, 2)
    trial = begin(scheduler, 2, latents.device)
    added = options(trial, [0], latents.shape[1:], 0.0)
    try:
        for t in trial.timesteps:
            trial.scale_model_input(latents, t)
            latents = trial.step(latents, t, latents, **added).prev_sample
    except (NotImplementedError, ValueError) as error:
        raise SliderError(f"the {name} of {model} cannot make a step as it is set up: {one_line(error)}") from error
    if not latents.isfinite().all():
        raise SliderError(
            f"the {name} of {model} divides by 0 as it is set up (rescale_betas_zero_snr needs another prediction_type "
            "than epsilon, and solver_type bh1 final sigmas above 0); set the backbone's scheduler to another"
        )


def _ddim(pndm: Any) -> DDIMScheduler:
    """The DDIM with the meaning of a PNDM's configuration: what that lacks has PNDM's default, and nothing clips."""
    shared = (
        "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "set_alpha_to_one",
        "prediction_type", "timestep_spacing", "steps_offset",
    )  # fmt: skip
    return DDIMScheduler(**{key: pndm[key] for key in shared}, clip_sample=False)


def _replaced(scheduler: Any, kind: Any) -> Any:
    """Another class with the same configuration, which clips only if the one before did."""
    clips = "clip_sample" in inspect.signature(type(scheduler)).parameters
    guarded = not clips and "clip_sample" in inspect.signature(kind).parameters
    return kind.from_config(scheduler.config, **({"clip_sample": False} if guarded else {}))


def begin(scheduler: Any, steps: int, device: torch.device) -> Any:
    """A scheduler for one trajectory: a scheduler remembers its past, which its timesteps, when they are set, clear.

    It is copied, since making some (KDPM2) takes as long as a hundred steps of theirs.

    Raises:
        SliderError: it cannot make so many steps.
    """
    fresh = copy.copy(scheduler)
    vars(fresh).update({name: [*value] for name, value in vars(scheduler).items() if isinstance(value, list)})
    if steps < 1:
        raise SliderError(f"{type(scheduler).__name__} cannot make {steps} steps; give at least 1")
    try:
        fresh.set_timesteps(steps, device=device)
    except (ValueError, IndexError) as error:
        raise SliderError(f"{type(scheduler).__name__} cannot make {steps} steps: {one_line(error)}") from error
    return fresh


def options(scheduler: Any, seeds: Sequence[int], shape: torch.Size, eta: float) -> dict[str, Any]:
    """What a step needs beside the prediction: each row's own chance, and how much of it.

    A row's chance goes on where `DiffusionBackbone.start` left it, as in a pipeline that is given a generator for each
    row.  It is drawn on the CPU, the same for every device.

    Args:
        scheduler: whose steps they are.
        seeds: of the rows.
        shape: of one row's noise at the start.
        eta: how much noise to add where the scheduler lets this be chosen.
    """
    accepted = inspect.signature(scheduler.step).parameters
    found: dict[str, Any] = {"eta": eta} if "eta" in accepted else {}
    if "generator" in accepted:
        found["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
        for generator in found["generator"]:
            torch.randn(shape, generator=generator)
    return found
