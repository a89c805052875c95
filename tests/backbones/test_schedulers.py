"""Every scheduler of diffusers: its trajectories are the pipeline's own, row by row and the same again, or it is refused.

`docs/machines.md` has the table; each of its cells is a case of `test_is_the_pipeline_s_own`.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from sliders.backbones import schedulers
from sliders.backbones.base import guided
from sliders.backbones.sdxl import SDXLBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.batch import TensorBatch
from sliders.errors import SliderError
from tests import tiny

MACHINES = Path(__file__).parents[2] / "docs" / "machines.md"
FAMILIES: dict[str, tuple[Callable[[], Any], Any]] = {
    "Stable Diffusion": (tiny.stable_diffusion, UNetBackbone),
    "SDXL": (tiny.stable_diffusion_xl, SDXLBackbone),
}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
REFUSED = [
    name
    for name in sorted(dir(diffusers))
    if name.endswith("Scheduler") and not name.startswith("Flax") and name not in (*schedulers.EXACT, *schedulers.INSTEAD)
]
PROMPTS, SEEDS, STEPS, GUIDANCE = ["a person", "a happy person", "a dog"], [3, 1, 4], 3, 2.0
# what a pipeline is published with, or what makes a scheduler draw, or use times between the whole ones
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min", "algorithm_type": "dpmsolver"}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}),
    ("EulerDiscreteScheduler", {"timestep_type": "continuous", "use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"interpolation_type": "log_linear", "final_sigmas_type": "sigma_min"}),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    ("UniPCMultistepScheduler", {"use_karras_sigmas": True, "solver_type": "bh1"}),
    ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ("DDIMScheduler", {"clip_sample": True, "thresholding": True}),
    ("DDPMScheduler", {"variance_type": "fixed_large", "clip_sample": False}),
]
PREDICTIONS = ("epsilon", "v_prediction", "sample")


class Halves:
    """A predictor whose rows do not depend on each other, to the last bit; it counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, state: TensorBatch) -> Tensor:
        self.calls += 1
        return 0.5 * state["latents"]


@cache
def pipeline(family: str, precision: str) -> Any:
    """Of a family in a precision, silent."""
    made = FAMILIES[family][0]().to(PRECISIONS[precision])
    made.set_progress_bar_config(disable=True)
    return made


def backbone(scheduler: Any, family: str = "Stable Diffusion", precision: str = "float32", eta: float = 0.0) -> Any:
    """Of a tiny pipeline with this scheduler."""
    model = FAMILIES[family][1]("tiny", eta=eta)
    made = pipeline(family, precision)
    made.scheduler = scheduler
    model.use(made)
    return model


def make(name: str, prediction: str = "epsilon", **options: Any) -> Any:
    """A scheduler for the tiny models, of which nothing is left to chance."""
    own: Any = tiny.stable_diffusion_scheduler(prediction).config
    kind = getattr(diffusers, name)
    return kind(prediction_type=prediction, **options) if name.startswith("EDM") else kind.from_config(own, **options)


def generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def start(model: Any, seeds: list[int], precision: str) -> Tensor:
    return model.start(seeds).to(PRECISIONS[precision])


def ours(model: Any, precision: str, rows: slice = slice(None)) -> Tensor:
    """The finished latents of a guided trajectory."""
    prompts, seeds = PROMPTS[rows], SEEDS[rows]
    predict = guided(model, model.encode(prompts), model.encode([""] * len(prompts)), GUIDANCE)
    *_, finished = model.trajectory(predict, start(model, seeds, precision), STEPS, seeds)
    assert finished["latents"].dtype == PRECISIONS[precision]
    return finished["latents"].float()


def theirs(model: Any, eta: float = 0.0) -> Tensor:
    """The same by the pipeline itself, from the seeds alone."""
    return model.pipeline(
        PROMPTS, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators(SEEDS), eta=eta,
        output_type="latent",
    ).images  # fmt: skip


def distance(one: Tensor, other: Tensor) -> float:
    """Relative to the size of the second."""
    return float((one - other).norm() / other.norm())


@pytest.fixture(autouse=True)
def without_gradients_and_chance() -> Iterator[None]:
    """No trajectory reads or moves the global state of chance."""
    with torch.no_grad():
        yield


@cache
def exact(family: str, name: str) -> Tensor:
    """What the pipeline makes in float32."""
    return theirs(backbone(make(name), family))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", schedulers.EXACT)
def test_is_the_pipeline_s_own(name: str, family: str, precision: str) -> None:
    """In float32 to rounding; in bfloat16 to its own, which other noise on the way would be far from."""
    model, before = backbone(make(name), family, precision), torch.random.get_rng_state()
    found = ours(model, precision)
    assert torch.equal(torch.random.get_rng_state(), before)
    wanted = exact(family, name)
    assert distance(found, wanted) < {"float32": 1e-4, "bfloat16": 0.05}[precision]
    torch.manual_seed(int(found.sum().abs() * 1000))
    assert torch.equal(ours(backbone(make(name), family, precision), precision), found), "the same again, bit for bit"
