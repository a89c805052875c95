"""Every scheduler of diffusers: its trajectories are the pipeline's own, row by row and every time, or it is refused.

`docs/machines.md` has the table; each of its cells is a case of `test_is_the_pipeline_s_own`.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from sliders.backbones import schedulers
from sliders.backbones.guidance import guided
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
    if name.endswith("Scheduler")
    and not name.startswith("Flax")
    and name not in (*schedulers.EXACT, *schedulers.INSTEAD)
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
    ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
    ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ("DDIMScheduler", {"clip_sample": True, "thresholding": True}),
    ("DDPMScheduler", {"variance_type": "fixed_large", "clip_sample": False}),
]
CELLS = (*schedulers.EXACT, *schedulers.INSTEAD)
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
def without_gradients() -> Iterator[None]:
    """Nothing here trains."""
    with torch.no_grad():
        yield


@cache
def exact(family: str, name: str) -> Tensor:
    """What the pipeline makes in float32."""
    return theirs(backbone(make(schedulers.INSTEAD.get(name, name)), family))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CELLS)
def test_is_the_pipeline_s_own(name: str, family: str, precision: str) -> None:
    """In float32 to rounding; in bfloat16 to its own, which other noise on the way would be far from."""
    model, before = backbone(make(name), family, precision), torch.random.get_rng_state()
    found = ours(model, precision)
    assert torch.equal(torch.random.get_rng_state(), before)
    wanted = exact(family, name)
    assert distance(found, wanted) < {"float32": 1e-4, "bfloat16": 0.05}[precision]
    torch.manual_seed(int(found.sum().abs() * 1000))
    assert torch.equal(ours(backbone(make(name), family, precision), precision), found), "the same again, bit for bit"


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in schedulers.EXACT), *VARIANTS])
def test_whatever_is_predicted_and_however_it_is_set_up(name: str, options: dict[str, Any], prediction: str) -> None:
    """It is the pipeline's own, or refused in one line what the scheduler itself cannot do."""
    scheduler, refusal, model = make(name, prediction, **options), "", None
    try:
        model = backbone(scheduler, eta=0.6)
    except SliderError as error:
        refusal = str(error)
    if model is not None:
        assert distance(ours(model, "float32"), theirs(model, eta=0.6)) < 1e-4
        return
    assert prediction == "sample" or options, "every one has the other two"
    assert name in refusal
    assert "\n" not in refusal
    model = backbone(make("DDIMScheduler"))
    model.pipeline.scheduler = scheduler
    with suppress(NotImplementedError, ValueError):
        assert theirs(model).isnan().all()


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in schedulers.EXACT), *VARIANTS])
def test_rows_are_their_own(name: str, options: dict[str, Any]) -> None:
    """To the last bit, whatever stands beside them, and with a state for each call of the model."""
    prediction = "v_prediction" if options.get("rescale_betas_zero_snr") else "epsilon"
    model, halves = backbone(make(name, prediction, **options), eta=0.6), Halves()
    together = list(model.trajectory(halves, model.start(SEEDS), STEPS, SEEDS))
    assert halves.calls == model.calls(STEPS) == len(together) - 1 >= STEPS
    assert {state["timestep"].dtype for state in together} == {together[0]["timestep"].dtype}
    for row, seed in enumerate(SEEDS):
        alone = list(model.trajectory(Halves(), model.start([seed]), STEPS, [seed]))
        for one, other in zip(together, alone, strict=True):
            assert torch.equal(one["latents"][row : row + 1], other["latents"])
            assert torch.equal(one["timestep"][row : row + 1], other["timestep"])


def test_another_seed_adds_other_noise() -> None:
    """The control: that a step draws from its row's seed is what the tests above look at."""
    model = backbone(make("EulerAncestralDiscreteScheduler"))
    (*_, one), (*_, other) = (model.trajectory(Halves(), model.start([3]), STEPS, [seed]) for seed in (3, 4))
    assert distance(one["latents"], other["latents"]) > 0.1


@pytest.mark.parametrize("name", REFUSED)
def test_any_other_is_refused_with_the_one_to_use(name: str) -> None:
    with pytest.raises(SliderError) as caught:
        schedulers.check(name, "folder/model")
    said = str(caught.value)
    assert name in said
    assert "folder/model" in said
    assert "\n" not in said
    assert said.split("set the backbone's scheduler to ")[1].split(",")[0] in schedulers.EXACT


def test_every_scheduler_is_there() -> None:
    """The control of the cases above: what pipelines of text to picture can have, by diffusers' own list."""
    from diffusers.schedulers import KarrasDiffusionSchedulers

    known = {*schedulers.EXACT, *schedulers.INSTEAD, *REFUSED}
    assert {kind.name for kind in KarrasDiffusionSchedulers} | {"LCMScheduler", "TCDScheduler"} <= known
    assert len(REFUSED) > 10


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["DPMSolverSDEScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_is_refused_before_a_weight_is_read(name: str, family: str, tmp_path: Path) -> None:
    """Also one whose library is not installed; another one can be set."""
    folder = tiny.save(FAMILIES[family][0](), tmp_path / "model")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("DDIMScheduler", name))
    for weights in folder.rglob("*.safetensors"):
        weights.rename(weights.with_suffix(".gone"))
    with pytest.raises(SliderError, match=rf"{name}.*set the backbone's scheduler to"):
        FAMILIES[family][1](str(folder)).load()
    with pytest.raises(SliderError, match="KarrasVeScheduler"):
        FAMILIES[family][1](str(folder), scheduler="KarrasVeScheduler").load()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}),
    ],
)
def test_what_would_divide_by_0_is_refused(name: str, options: dict[str, Any]) -> None:
    """The pipeline itself would show black pictures."""
    with pytest.raises(SliderError, match=f"{name}.*divides by 0"):
        backbone(make(name, **options))


@pytest.mark.parametrize("options", [{"use_flow_sigmas": True}, {"prediction_type": "flow_prediction"}])
def test_what_is_set_up_for_flows_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SliderError, match="flows"):
        backbone(make("DPMSolverMultistepScheduler", options.pop("prediction_type", "epsilon"), **options))


@pytest.mark.parametrize(
    ("name", "steps"), [("LCMScheduler", 60), ("DDIMScheduler", 2000), ("DPMSolverSinglestepScheduler", 0)]
)
def test_steps_that_cannot_be_made_are_one_line(name: str, steps: int) -> None:
    model = backbone(make(name))
    for ask in (model.calls, lambda n: next(model.trajectory(Halves(), model.start([1]), n, [1]))):
        with pytest.raises(SliderError, match=f"{name} cannot make {steps} steps") as caught:
            ask(steps)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("hidden", [{}, {"clip_sample": True}])
def test_what_stands_in_for_pndm_means_what_it_meant(hidden: dict[str, Any]) -> None:
    """PNDM never clips, also where its file, as many do, does not say so or says otherwise."""
    bare = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "skip_prk_steps": True,
        **hidden,
    }
    pndm: Any = diffusers.PNDMScheduler.from_config(bare)
    model = backbone(pndm)
    assert model.pipeline.scheduler is pndm, "what is written is what was read"
    expected = make("DDIMScheduler", clip_sample=False, set_alpha_to_one=False, steps_offset=0)

    def large(state: TensorBatch) -> Tensor:
        """A clean picture far out of [-1, 1], as latents are."""
        return torch.full_like(state["latents"], 0.3)

    paths = [list(one.trajectory(large, 10 * one.start(SEEDS), 5, SEEDS)) for one in (model, backbone(expected))]
    for one, other in zip(*paths, strict=True):
        torch.testing.assert_close(one["latents"], other["latents"])
    assert paths[0][-1]["latents"].abs().max() > 3
    default: Any = diffusers.DDIMScheduler.from_config({**pndm.config, "clip_sample": True})
    *_, clipped = backbone(default).trajectory(large, 10 * model.start(SEEDS), 5, SEEDS)
    assert distance(clipped["latents"], paths[0][-1]["latents"]) > 0.3, "the control: what diffusers fills in"


@pytest.mark.parametrize("name", ["DDPMScheduler", "LCMScheduler", "TCDScheduler", "DDIMScheduler"])
def test_one_that_is_set_clips_only_where_the_pipeline_s_own_did(name: str) -> None:
    """Its defaults would; a pipeline that cannot clip was made for one that does not."""
    for own, clips in ((make("PNDMScheduler"), False), (make("EulerDiscreteScheduler"), False),
                       (make("DDIMScheduler", clip_sample=True), True)):  # fmt: skip
        own.register_to_config(**({} if clips else {"clip_sample": True}))  # left over in the file
        model = UNetBackbone("tiny", scheduler=name)
        made = pipeline("Stable Diffusion", "float32")
        made.scheduler = own
        model.use(made)
        assert type(model.scheduler).__name__ == name
        assert model.scheduler.config.clip_sample == clips
        assert model.scheduler.config.beta_end == pytest.approx(0.012)
        assert made.scheduler is own


def table() -> list[str]:
    """The lines of the table in the docs."""
    columns = [(family, precision) for family in FAMILIES for precision in PRECISIONS]
    lines = [f"| scheduler | {' | '.join(f'{f}, {p}' for f, p in columns)} |", f"|---{'|---' * len(columns)}|"]
    lines += [f"| {name} |{' exact |' * len(columns)}" for name in schedulers.EXACT]
    lines += [f"| {name} |{f' as {other} |' * len(columns)}" for name, other in schedulers.INSTEAD.items()]
    return [*lines, f"| any other |{' refused |' * len(columns)}"]


def test_the_table_is_of_these_cases() -> None:
    assert "\n".join(table()) in MACHINES.read_text("utf-8")
