"""Every family of diffusers' transformers through the one backbone that knows none; the pipeline is the oracle."""

from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, modular_pipelines
from torch import Tensor

from sliders.backbones.base import AbstractBackbone
from sliders.backbones.diffusion import DiffusionBackbone
from sliders.backbones.guidance import guided
from sliders.backbones.rehearsed.backbone import PipelineBackbone
from sliders.batch import TensorBatch
from sliders.errors import SliderError
from sliders.runtime.attach import attach
from sliders.runtime.layers import editable_modules
from sliders.training.states import Pool
from tests import tiny
from tests.backbones.contract import SEEDS, LatentDiffusionContract
from tests.factory import slider
from tests.families import FAMILIES, family
from tests.training import runs

ALWAYS = ("sd3", "flux", "qwen", "zimage", "wan22")
"""What is checked with the unit tests: joint and packed, lists, masks and lengths, videos and two denoisers."""
STEPS = 3
GUIDANCE = 3.0


def rehearsed(folder: Path | str, name: str, **more: Any) -> PipelineBackbone:
    """The backbone of a family's folder."""
    known = FAMILIES[name]
    return PipelineBackbone(
        str(folder), **{"height": known.side, "width": known.side, "call": known.call, "words": 24, **more}
    )


class PipelineContract(LatentDiffusionContract):
    """The laws of a family, against its own call."""

    name: str
    clock = "time"

    @classmethod
    def pipeline(cls) -> Any:
        return family(cls.name)

    @classmethod
    def backbone(cls, folder: Path) -> AbstractBackbone:
        return rehearsed(folder, cls.name)

    @property
    def moving(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ("latents",)

    @classmethod
    def loaded(cls, folder: Path) -> AbstractBackbone:
        model: Any = super().loaded(folder)
        if cls.name == "hidream":
            model.pipeline.default_sample_size = 8  # see `tests.families.family`
        return model

    def read_export(self, folder: Path) -> None:
        pipeline: Any = DiffusionPipeline.from_pretrained(folder)
        assert type(pipeline) is type(self.pipeline())

    def called(self, pipeline: Any, prompts: list[str], seeds: list[int], **more: Any) -> Tensor:
        """Pictures of the pipeline's own call, in [-1, 1]."""
        known = FAMILIES[self.name]
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        made = pipeline(
            prompt=list(prompts), height=known.side, width=known.side, num_inference_steps=STEPS, generator=noise,
            output_type="pt", return_dict=False, **known.call, **more,
        )[0]  # fmt: skip
        return torch.as_tensor(made).float() * 2 - 1

    def test_its_pictures_are_the_call_s(self, model: Any) -> None:
        """Without guidance by the loop of states and predictions, and with it as the call means it."""
        off = model._rehearsals.caller.unguided()
        prompts = ["a sad dog with a hat", "a person"]
        conditioning = model.encode(prompts)
        *_, end = model.trajectory(lambda x: model.predict(x, conditioning), model.start(SEEDS[:2]), STEPS, SEEDS[:2])
        plain = self.called(model.pipeline, prompts, SEEDS[:2], **off)
        if self.name == "cogview4":  # the length of a prompt's neighbours changes its picture, in the call as well
            plain = model.decode(end)
        torch.testing.assert_close(model.decode(end), plain, rtol=0, atol=1e-4)
        guided = model.pictures(prompts, SEEDS[:2], STEPS, GUIDANCE)
        words = model._rehearsals.caller.guided(GUIDANCE, 2)
        assert not words or not torch.equal(guided, plain)
        torch.testing.assert_close(guided, self.called(model.pipeline, prompts, SEEDS[:2], **words), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("steps", [1, 2, 7])
    def test_trajectory_yields_a_state_for_each_step_and_the_end(self, model: Any, steps: int) -> None:
        if self.name == "mochi" and steps == 1:  # its own schedule divides by the number of steps less one
            with pytest.raises(SliderError, match="cannot be rehearsed"):
                model.calls(1)
            return
        super().test_trajectory_yields_a_state_for_each_step_and_the_end(model, steps)

    @pytest.mark.parametrize("guidance", [0.0, 0.5, 4.0])
    def test_guidance_is_the_formula_in_one_call(
        self,
        model: Any,
        state: TensorBatch,
        conditioning: TensorBatch,
        monkeypatch: pytest.MonkeyPatch,
        guidance: float,
    ) -> None:
        """A model that takes guidance as an input is guided already."""
        if not model.takes_guidance:
            super().test_guidance_is_the_formula_in_one_call(model, state, conditioning, monkeypatch, guidance)
            return
        given = guided(model, conditioning, model.encode([""] * 3), guidance)(state)
        assert torch.equal(given, model.predict(state, conditioning))

    def test_no_target_selects_a_layer_that_a_slider_could_not_move(self, model: Any) -> None:
        """Of two denoisers one runs at noisy states, and the other at clean ones."""
        ran: set[str] = set()
        hooks = [
            model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.add(name))
            for name in editable_modules(model)
        ]
        state = self.three_states(model)
        for expert in range(len(model.predicting_modules)):
            model.predict({**state, "expert": torch.full_like(state["expert"], expert)}, model.encode(["a person"] * 3))
        for hook in hooks:
            hook.remove()
        assert set(model.select_targets(["."])) <= ran

    @pytest.mark.parametrize("scheduler", ["its own"])
    def test_every_state_is_at_its_timestep(self, folder: Path, scheduler: Any) -> None:
        """With a clairvoyant predictor, each state is the known picture with its share of the known noise."""
        model = self.loaded(folder)
        assert isinstance(model, DiffusionBackbone)
        if self.name in ("pixart", "cogvideox"):
            pytest.skip("it is no flow; `test_schedulers.py` has the law")
        generator = torch.Generator().manual_seed(0)
        noise = model.start(SEEDS)
        clean = torch.randn(noise.shape, generator=generator)

        def velocity(state: TensorBatch) -> Tensor:
            return noise - clean

        states = list(model.trajectory(velocity, noise, 6, SEEDS))
        for state in states:
            moved = ((state["latents"] - clean) / (noise - clean)).flatten(1)
            share = moved.median(1).values
            wanted = clean + share.view(-1, *[1] * (clean.dim() - 1)) * (noise - clean)
            torch.testing.assert_close(state["latents"], wanted, rtol=1e-3, atol=1e-3)
            assert ((share >= -1e-3) & (share <= 1 + 1e-3)).all()
        torch.testing.assert_close(states[-1]["latents"], clean, rtol=1e-3, atol=2e-2)

    def test_a_slider_s_file_in_the_plain_pipeline(self, model: Any, tmp_path: Path) -> None:
        """The lines that a run prints load it, and the pictures are the same; every row has its own dial here."""
        named = model.select_targets(["attn"])
        made = slider(model, dict.fromkeys(named, 2), scale=1.0)
        file = model.save_slider(made, tmp_path)
        prompts, seeds = ["a sad dog with a hat", "a person"], SEEDS[:2]
        with attach(model, [made]) as dials:
            base = model.pictures(prompts, seeds, STEPS, GUIDANCE)
            dials.set({"s": torch.tensor([1.0, -2.0])})
            ours = model.pictures(prompts, seeds, STEPS, GUIDANCE)
        words, pipe = model._rehearsals.caller.guided(GUIDANCE, 2), self.pipeline()
        torch.testing.assert_close(base, self.called(pipe, prompts, seeds, **words), rtol=0, atol=1e-4)
        assert (ours - base).flatten(1).abs().amax(1).min() > 1e-4
        if self.name == "pixart":
            assert "no loader" in model.usage(made, file)[0]
            return
        for line in model.usage(made, file)[: -1 if hasattr(pipe, "load_lora_weights") else None]:
            exec(line, {"pipe": pipe})  # as a user does
        for k, dial in enumerate((1.0, -2.0)):
            for part in model.predicting_modules:
                getattr(pipe, part).set_adapters(["s"], [dial])
            theirs = self.called(pipe, prompts, seeds, **words)
            torch.testing.assert_close(ours[k], theirs[k], rtol=0, atol=2e-4)

    @torch.enable_grad()
    def test_it_trains_and_resumes_bit_by_bit(self, tmp_path: Path) -> None:
        folder = tiny.save(self.pipeline(), tmp_path / "model")

        def trained(name: str, steps: int, resume: Path | None = None, every: int = 0) -> dict[str, Tensor]:
            states = Pool(trajectories=2, steps=2, refresh=2, growth=1)
            made = runs.module(folder, states, targets=["attn"], backbone=self.loaded(folder))
            runs.fit(made, tmp_path / name, steps, resume=resume, every=every)
            assert made.adapter is not None
            return made.adapter.state()

        whole = trained("whole", 3, every=1)
        assert not runs.equal(whole, trained("shorter", 2))
        again = trained("again", 3, resume=tmp_path / "whole" / "2.ckpt")
        assert runs.equal(whole, again)


def contract_of(name: str) -> type[PipelineContract]:
    """The suite of a family."""
    made = type(f"Test_{name}", (PipelineContract,), {"name": name, "__module__": __name__})
    return made if name in ALWAYS else pytest.mark.slow(made)


globals().update({f"Test_{name}": contract_of(name) for name in FAMILIES})


# Whatever the family


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("sd3", "StableDiffusion3AutoBlocks"),
        ("flux", "FluxAutoBlocks"),
        ("klein", "Flux2KleinAutoBlocks"),
        ("zimage", "ZImageAutoBlocks"),
    ],
)
def test_a_pipeline_of_blocks_is_the_same(name: str, blocks: str) -> None:
    """What exists as a `ModularPipeline` alone comes through the same seam."""
    plain = family(name)
    modular: Any = getattr(modular_pipelines, blocks)().init_pipeline()
    parts = {part: module for part, module in plain.components.items() if part in modular.components and module}
    modular.update_components(**parts)
    prompts, made = ["a sad dog with a hat", "a person"], []
    for pipeline in (plain, modular):
        model = rehearsed("", name)
        model.use(pipeline)
        asked = model.encode(prompts)
        with torch.no_grad():
            *_, end = model.trajectory(lambda x, m=model, c=asked: m.predict(x, c), model.start([3, 1]), STEPS, [3, 1])
        made.append(model.decode(end))
    torch.testing.assert_close(*made, rtol=0, atol=1e-5)


def with_a_secret(pipeline: Any) -> Any:
    """The same, but its call adds to what it steps with: nothing that a trajectory of states would show."""

    class Secretive(type(pipeline)):
        @wraps(type(pipeline).__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            step = self.scheduler.step

            @wraps(step)
            def changed(said: Tensor, t: Any, x: Tensor, **more: Any) -> Any:
                return step(said * (1 + 0.1 * (t < 900)), t, x, **more)

            self.scheduler.step = changed
            try:
                return super().__call__(*args, **kwargs)
            finally:
                self.scheduler.step = step

    pipeline.__class__ = Secretive
    return pipeline


def test_a_call_that_does_something_else_is_refused_before_anything_is_trained() -> None:
    model = rehearsed("secretive", "sd3")
    model.use(with_a_secret(family("sd3")))
    with pytest.raises(SliderError, match=r"secretive cannot be run here: the prediction of step 1 is off by"):
        model.encode(["a person"])


def test_a_denoiser_that_mixes_its_rows_is_refused_where_a_slider_is_put_on_it() -> None:
    pipeline = family("sd3")
    forward = pipeline.transformer.proj_out.forward
    pipeline.transformer.proj_out.forward = lambda x: forward(x) + x.mean()
    model = rehearsed("mixed", "sd3")
    model.use(pipeline)
    with pytest.raises(SliderError, match="mixed cannot be trained on here: what it predicts of a row is off by"):
        model.select_targets(["attn"])


def test_what_cannot_be_asked_for() -> None:
    model = rehearsed("odd", "sd3", height=18)
    model.use(family("sd3"))
    with pytest.raises(SliderError, match="have to be divisible by 4"):
        model.start([0])
    with pytest.raises(SliderError, match="call says prompt"):
        PipelineBackbone("x", call={"prompt": "a"})
    short = rehearsed("short", "zimage", words=2)
    short.use(family("zimage"))
    with pytest.raises(SliderError, match="longer as it is read"):
        short.encode(["a person with a hat and a dog and a hat"])


def test_a_slider_on_a_text_encoder_is_heard_after_its_prompt_was_encoded_without() -> None:
    """Another's LoRA may be on one; what was encoded before is not what is encoded now, and again afterwards."""
    model = rehearsed("sd3", "sd3")
    model.use(family("sd3"))
    before = model.encode(["a person"])
    layer = next(name for name in editable_modules(model) if name.startswith("text_encoder.") and "q_proj" in name)
    with attach(model, [slider(model, {layer: 2}, scale=4.0)], {"s": 1.0}):
        turned = model.encode(["a person"])
    assert not torch.allclose(turned["encoder_hidden_states"], before["encoder_hidden_states"], atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.encode(["a person"]).items())


def test_what_a_text_encoder_does_not_read_is_said_and_fillers_are_not(caplog: pytest.LogCaptureFixture) -> None:
    model = rehearsed("sd3", "sd3", words=100)  # so that the longest prompt beside every other is cut
    model.use(family("sd3"))
    long = " ".join(["hat"] * 40)
    said = model.unread([long, "a person"])
    assert list(said) == [long]
    assert "which leaves out" in said[long]
    model.encode(["a person"])
    assert not [record for record in caplog.records if "truncated" in record.getMessage()]


def test_settings_are_what_a_slider_s_file_keeps() -> None:
    model = rehearsed("x", "wan", words=64)
    assert model.settings == {"height": 16, "width": 16, "call": {"num_frames": 2}}
