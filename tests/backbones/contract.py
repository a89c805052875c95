"""What every backbone promises.  The test of a new model family says how to make one and inherits the laws.

A subclass of `BackboneContract` is called `Test...` and defines `pipeline` and `backbone`; one for a diffusion model
derives from `LatentDiffusionContract`, which adds the laws that need to know what a state is.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, EulerDiscreteScheduler, PNDMScheduler
from torch import Tensor, nn

from sliders.backbones.base import AbstractBackbone
from sliders.backbones.diffusion import DiffusionBackbone
from sliders.backbones.guidance import guided
from sliders.batch import TensorBatch, join, rows, take
from sliders.errors import SliderError
from sliders.runtime.adapter import Adapter
from sliders.runtime.layers import editable_modules
from tests import tiny

PROMPTS = ["a person", "a happy person", "", "a dog with a hat"]
SEEDS = [3, 1, 4]


def row(batch: TensorBatch, index: int) -> TensorBatch:
    """One row of a batch, as a batch."""
    return take(batch, torch.tensor([index]))


def same(one: TensorBatch, other: TensorBatch, atol: float = 1e-5) -> bool:
    """Whether two batches have the same names and, up to rounding, the same values."""
    return one.keys() == other.keys() and all(
        torch.allclose(one[name].double(), other[name].double(), rtol=1e-4, atol=atol) for name in one
    )


@torch.no_grad()
def randomize(adapter: Adapter, size: float = 0.2) -> None:
    """Move an adapter away from the identity."""
    generator = torch.Generator().manual_seed(7)
    for parameter in adapter.parameters():
        parameter.copy_(size * torch.randn(parameter.shape, generator=generator))


class Calls:
    """A predictor that counts, remembers what it was asked, and answers with a part of the state."""

    def __init__(self) -> None:
        self.asked: list[TensorBatch] = []

    def __call__(self, state: TensorBatch) -> Tensor:
        self.asked.append({name: value.clone() for name, value in state.items()})
        return 0.5 * next(iter(state.values()))


class BackboneContract(ABC):
    """The laws of `AbstractBackbone`."""

    def __init_subclass__(cls) -> None:
        """Refuse a family's tests that leave something open: pytest would pass over an abstract class in silence."""
        names = dir(cls) if cls.__name__.startswith("Test") else ()
        open_ = [name for name in names if getattr(getattr(cls, name, None), "__isabstractmethod__", False)]
        assert not open_, f"{cls.__name__} does not say {', '.join(open_)}"

    @classmethod
    @abstractmethod
    def pipeline(cls) -> Any:
        """A small model of the family, with the same weights every time."""

    @classmethod
    @abstractmethod
    def backbone(cls, folder: Path) -> AbstractBackbone:
        """The backbone for the saved model in this folder, not yet loaded."""

    @classmethod
    def loaded(cls, folder: Path) -> AbstractBackbone:
        """The same, loaded."""
        model = cls.backbone(folder)
        model.load()
        return model

    @pytest.fixture(autouse=True)
    def without_gradients(self) -> Iterator[None]:
        """What needs them, enables them."""
        with torch.no_grad():
            yield

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """The model, saved; the test may do with it what it likes."""
        return tiny.save(self.pipeline(), tmp_path / "model")

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, tmp_path_factory: pytest.TempPathFactory) -> AbstractBackbone:
        """The loaded backbone; every test leaves it as it was."""
        return cls.loaded(tiny.save(cls.pipeline(), tmp_path_factory.mktemp("base") / "model"))

    @pytest.fixture(scope="class")
    @classmethod
    def state(cls, model: AbstractBackbone) -> TensorBatch:
        """Three states."""
        with torch.no_grad():
            return cls.three_states(model)

    @classmethod
    @abstractmethod
    def three_states(cls, model: Any) -> TensorBatch:
        """Three states that differ in every part."""

    @classmethod
    def parts(cls, made: Any) -> dict[str, nn.Module]:
        """The parts of what `pipeline` makes that have weights, by name."""
        return {name: part for name, part in made.components.items() if isinstance(part, nn.Module)}

    moving: tuple[str, ...] = ()
    """The names in a state that a prediction must depend on; all of them if empty."""

    @pytest.fixture(scope="class")
    @classmethod
    def conditioning(cls, model: AbstractBackbone) -> TensorBatch:
        """Three different prompts'."""
        with torch.no_grad():
            return model.encode(PROMPTS[1:])

    # Loading

    def test_constructor_reads_nothing(self, tmp_path: Path) -> None:
        """A config can name a model that is not there yet."""
        model = self.backbone(tmp_path / "nowhere")
        assert not list(model.parameters())
        assert model.base_model == str(tmp_path / "nowhere")

    def test_load_of_a_missing_folder_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        with pytest.raises(SliderError, match="nowhere"):
            self.loaded(tmp_path / "nowhere")

    def test_load_of_a_folder_that_is_no_model_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("not a model")
        with pytest.raises(SliderError, match=tmp_path.name):
            self.loaded(tmp_path)

    def test_load_of_damaged_weights_is_an_error_that_names_the_folder(self, folder: Path) -> None:
        """A download that broke off."""
        weights = max(folder.rglob("*.safetensors"), key=lambda file: file.stat().st_size)
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        with pytest.raises(SliderError, match=folder.name):
            self.loaded(folder)

    def test_load_again_does_nothing(self, folder: Path) -> None:
        model = self.loaded(folder)
        before = dict(model.named_parameters())
        for file in folder.rglob("*.safetensors"):
            file.unlink()  # whatever would read again, would fail
        model.load()
        after = dict(model.named_parameters())
        assert before.keys() == after.keys()
        assert all(before[name] is after[name] for name in before)

    def test_is_frozen_and_in_evaluation_mode(self, model: AbstractBackbone) -> None:
        assert list(model.parameters())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any(module.training for module in model.modules())

    # Fingerprint

    def test_fingerprint_is_of_the_content(self, model: AbstractBackbone, tmp_path: Path) -> None:
        elsewhere = tiny.save(self.pipeline(), tmp_path / "copy")
        assert model.fingerprint()
        assert self.loaded(elsewhere).fingerprint() == model.fingerprint()

    def test_fingerprint_does_not_depend_on_the_stored_precision(self, tmp_path: Path) -> None:
        half = self.pipeline().to(torch.float16)
        tiny.save(half, tmp_path / "half")
        tiny.save(half.to(torch.float32), tmp_path / "full")
        files = [next((tmp_path / name).rglob("*.safetensors")) for name in ("half", "full")]
        assert files[0].stat().st_size < files[1].stat().st_size
        assert self.loaded(tmp_path / "half").fingerprint() == self.loaded(tmp_path / "full").fingerprint()

    def test_fingerprint_changes_with_any_one_weight(self, model: AbstractBackbone, tmp_path: Path) -> None:
        names = list(self.parts(self.pipeline()))
        seen = {model.fingerprint()}
        for name in names:
            pipeline = self.pipeline()
            list(self.parts(pipeline)[name].parameters())[-1].data.view(-1)[0] += 1e-3
            seen.add(self.loaded(tiny.save(pipeline, tmp_path / name)).fingerprint())
        assert len(seen) == 1 + len(names)

    # Conditioning and prediction

    def test_encode_gives_a_row_for_each_prompt(self, model: AbstractBackbone) -> None:
        for prompts in (PROMPTS, PROMPTS[:1], [PROMPTS[0]] * 5):
            assert {len(value) for value in model.encode(prompts).values()} == {len(prompts)}

    def test_encode_of_a_prompt_does_not_depend_on_the_others(self, model: AbstractBackbone) -> None:
        together = model.encode(PROMPTS)
        for k, prompt in enumerate(PROMPTS):
            assert same(row(together, k), model.encode([prompt]))
            assert same(row(together, k), row(model.encode(["a sad dog with a hat", prompt]), 1))

    def test_encode_tells_prompts_apart(self, model: AbstractBackbone) -> None:
        together = model.encode(PROMPTS)
        for i, j in combinations(range(len(PROMPTS)), 2):
            assert not same(row(together, i), row(together, j))

    def test_predict_goes_row_by_row(
        self, model: AbstractBackbone, state: TensorBatch, conditioning: TensorBatch
    ) -> None:
        together = model.predict(state, conditioning)
        apart = torch.cat([model.predict(row(state, k), row(conditioning, k)) for k in range(3)])
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)

    def test_predict_depends_on_the_state(
        self, model: AbstractBackbone, state: TensorBatch, conditioning: TensorBatch
    ) -> None:
        """On every part of it."""
        base = model.predict(state, conditioning)
        turned = torch.tensor([1, 2, 0])
        for name in self.moving or state:
            other = {**state, name: state[name][turned]}
            assert not torch.allclose(base, model.predict(other, conditioning), atol=1e-5), name

    def test_predict_depends_on_the_prompt(
        self, model: AbstractBackbone, state: TensorBatch, conditioning: TensorBatch
    ) -> None:
        other = model.predict(state, take(conditioning, torch.tensor([1, 2, 0])))
        assert ((model.predict(state, conditioning) - other).flatten(1).abs().amax(1) > 1e-5).all()

    # Guidance

    def test_guidance_1_is_the_prediction_without_an_empty_half(
        self, model: AbstractBackbone, state: TensorBatch, conditioning: TensorBatch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wanted = model.predict(state, conditioning)
        counts = count_rows(model, monkeypatch)
        given = guided(model, conditioning, model.encode([""] * 3), 1.0)(state)
        assert torch.equal(given, wanted)
        assert counts == [3]

    @pytest.mark.parametrize("guidance", [0.0, 0.5, 4.0])
    def test_guidance_is_the_formula_in_one_call(
        self,
        model: AbstractBackbone,
        state: TensorBatch,
        conditioning: TensorBatch,
        monkeypatch: pytest.MonkeyPatch,
        guidance: float,
    ) -> None:
        empty = model.encode([""] * 3)
        with_prompt, without = model.predict(state, conditioning), model.predict(state, empty)
        counts = count_rows(model, monkeypatch)
        given = guided(model, conditioning, empty, guidance)(state)
        torch.testing.assert_close(given, without + guidance * (with_prompt - without), rtol=1e-4, atol=1e-5)
        assert counts == [6]

    # Targets

    def test_every_group_names_layers_and_no_two_are_the_same(self, model: AbstractBackbone) -> None:
        layers = editable_modules(model)
        chosen = {group: model.select_targets([group]) for group in model.target_groups()}
        for group, names in chosen.items():
            assert names, group
            assert names == [name for name in layers if name in set(names)], f"{group}: in order, once, and real"
        assert len({tuple(names) for names in chosen.values()}) == len(chosen)

    def test_targets_join(self, model: AbstractBackbone) -> None:
        groups = list(model.target_groups())
        union = {name for group in groups for name in model.select_targets([group])}
        assert set(model.select_targets(groups)) == union
        assert model.select_targets(groups) == model.select_targets(groups[::-1])

    def test_a_target_may_be_a_pattern(self, model: AbstractBackbone) -> None:
        wanted = model.select_targets([next(iter(model.target_groups()))])[0]
        assert model.select_targets([f"^{wanted}$"]) == [wanted]

    @pytest.mark.parametrize("target", ["no-such-group", "unet.nowhere", "("])
    def test_an_unknown_target_is_an_error_with_the_groups(self, model: AbstractBackbone, target: str) -> None:
        groups = list(model.target_groups())
        with pytest.raises(SliderError) as caught:
            model.select_targets([groups[0], target])
        assert target in str(caught.value)
        assert all(group in str(caught.value) for group in groups)

    def test_an_unknown_pattern_names_the_nearest_layer(self, model: AbstractBackbone) -> None:
        wanted = model.select_targets([next(iter(model.target_groups()))])[0]
        with pytest.raises(SliderError) as caught:
            model.select_targets([f"{wanted}x"])
        assert f"{wanted}." in f"{caught.value}.".replace(",", ".")

    def test_no_target_selects_a_layer_that_a_slider_could_not_move(self, model: AbstractBackbone) -> None:
        """Any pattern: what is selected is run by `encode` or `predict`, so that it has a gradient."""
        ran: set[str] = set()
        hooks = [
            model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.add(name))
            for name in editable_modules(model)
        ]
        model.predict(row(self.three_states(model), 0), model.encode(["a person"]))
        for hook in hooks:
            hook.remove()
        assert set(model.select_targets(["."])) <= ran

    # Sliders

    def test_an_adapter_on_any_group_starts_as_the_identity(
        self, model: AbstractBackbone, state: TensorBatch, conditioning: TensorBatch
    ) -> None:
        base = model.predict(state, conditioning)
        for group in model.target_groups():
            with Adapter(model, model.select_targets([group]), 2, 2.0) as adapter:
                assert torch.equal(model.predict(state, conditioning), base), group
                with adapter.dial(torch.tensor([1.0, -1.0, 2.0])):
                    assert torch.equal(model.predict(state, conditioning), base), group
                    assert same(model.encode(PROMPTS[1:]), conditioning, atol=0), group

    def test_an_adapter_on_any_group_acts_and_goes_without_a_trace(
        self, model: AbstractBackbone, state: TensorBatch, conditioning: TensorBatch
    ) -> None:
        """On what `encode` runs it changes the conditioning, elsewhere the prediction, and nothing afterwards."""
        base, weights = model.predict(state, conditioning), dict(model.state_dict())
        content = {name: value.clone() for name, value in weights.items()}
        modules = dict(model.named_modules())
        for group in model.target_groups():
            with Adapter(model, model.select_targets([group]), 2, 2.0) as adapter:
                randomize(adapter)
                with adapter.dial(torch.ones(3)):
                    encodes = not same(model.encode(PROMPTS[1:]), conditioning)
                    predicts = not torch.allclose(model.predict(state, conditioning), base, atol=1e-4)
                assert encodes == adapter.touches(model.conditioning_modules), group
                assert predicts == (not encodes), group
                assert torch.equal(model.predict(state, conditioning), base), f"{group}: off outside of a dial"
            assert dict(model.named_modules()) == modules, group
            assert all(value.data_ptr() == weights[name].data_ptr() for name, value in model.state_dict().items())
            assert all(torch.equal(value, content[name]) for name, value in model.state_dict().items()), group
            assert not any(parameter.requires_grad for parameter in model.parameters()), group
            assert torch.equal(model.predict(state, conditioning), base), group

    def test_every_row_has_its_own_dial(
        self, model: AbstractBackbone, state: TensorBatch, conditioning: TensorBatch
    ) -> None:
        """Also in a guided batch, which is twice as long."""
        empty = model.encode([""] * 3)
        predict = guided(model, conditioning, empty, 3.0)
        dials = torch.tensor([1.0, 0.0, -2.0])
        with Adapter(model, model.select_targets([next(iter(model.target_groups()))]), 2, 2.0) as adapter:
            randomize(adapter)
            with adapter.dial(dials):
                together = predict(state)
            for k in range(3):
                alone = guided(model, row(conditioning, k), row(empty, k), 3.0)
                with adapter.dial(dials[k : k + 1]):
                    torch.testing.assert_close(together[k : k + 1], alone(row(state, k)), rtol=1e-4, atol=1e-4)

    def test_a_layer_of_every_group_gets_a_gradient(self, model: AbstractBackbone) -> None:
        """Through `encode` and `predict`; otherwise a slider there could not be trained."""
        state = row(self.three_states(model), 0)
        for group in model.target_groups():
            with Adapter(model, model.select_targets([group]), 2, 2.0) as adapter:
                with torch.enable_grad(), adapter.dial(torch.ones(1)):
                    model.predict(state, model.encode(["a person"])).square().sum().backward()
                moved = [p for p in adapter.parameters() if p.grad is not None and p.grad.abs().max() > 0]
                # B's alone, since B is 0; a CLIP's last layers may not be read
                assert len(moved) >= len(adapter.modules) / 2, group
            assert all(parameter.grad is None for parameter in model.parameters()), group

    # Export

    def test_export_writes_a_model_of_its_own_library(self, model: AbstractBackbone, tmp_path: Path) -> None:
        model.export(tmp_path / "new" / "copy")
        self.read_export(tmp_path / "new" / "copy")
        assert self.loaded(tmp_path / "new" / "copy").fingerprint() == model.fingerprint()

    @abstractmethod
    def read_export(self, folder: Path) -> None:
        """Load an exported folder with the model's own library and use it."""


def count_rows(model: AbstractBackbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every call of `predict` from now on."""
    counts: list[int] = []
    predict = model.predict

    def counting(state: TensorBatch, conditioning: TensorBatch) -> Tensor:
        assert rows(state) == rows(conditioning)
        counts.append(rows(state))
        return predict(state, conditioning)

    monkeypatch.setattr(model, "predict", counting)
    return counts


class LatentDiffusionContract(BackboneContract):
    """The further laws of models whose states are noisy latents and a timestep."""

    prediction = "epsilon"
    """What the model predicts: ``epsilon`` or ``v_prediction``."""

    clock = "timestep"
    """What a state calls the scheduler's time, which falls."""

    @classmethod
    def three_states(cls, model: Any) -> TensorBatch:
        """Each at a time of its own."""
        paths = [model.trajectory(Calls(), model.start([seed]), 4, [seed]) for seed in SEEDS]
        return join([next(islice(path, depth, None)) for depth, path in enumerate(paths)])

    def read_export(self, folder: Path) -> None:
        pipeline: Any = DiffusionPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline("a person", num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)

    def test_start_of_a_seed_does_not_depend_on_the_others(self, model: DiffusionBackbone) -> None:
        together = model.start(SEEDS)
        torch.manual_seed(99)  # nor on the global state of chance
        for k, seed in enumerate(SEEDS):
            assert torch.equal(together[k : k + 1], model.start([seed]))
        assert not torch.equal(together[0], together[1])

    def test_start_leaves_global_chance_alone(self, model: DiffusionBackbone) -> None:
        before = torch.random.get_rng_state()
        model.start(SEEDS)
        assert torch.equal(before, torch.random.get_rng_state())

    @pytest.mark.parametrize("steps", [1, 2, 7])
    def test_trajectory_yields_a_state_for_each_step_and_the_end(self, model: DiffusionBackbone, steps: int) -> None:
        calls = Calls()
        states = list(model.trajectory(calls, model.start(SEEDS), steps, SEEDS))
        assert len(states) == steps + 1
        assert len(calls.asked) == steps
        assert {rows(state) for state in states} == {len(SEEDS)}
        assert len({frozenset(state) for state in states}) == 1

    def test_trajectory_asks_about_exactly_the_states_it_yields(self, model: DiffusionBackbone) -> None:
        calls = Calls()
        states = list(model.trajectory(calls, model.start(SEEDS), 4, SEEDS))
        for asked, state in zip(calls.asked, states[:-1], strict=True):
            assert all(torch.equal(asked[name], state[name]) for name in state)

    def test_trajectory_predicts_only_when_the_next_state_is_asked_for(self, model: DiffusionBackbone) -> None:
        calls = Calls()
        path = model.trajectory(calls, model.start(SEEDS), 4, SEEDS)
        assert not calls.asked
        for k, _ in enumerate(path):
            assert len(calls.asked) == k

    def test_trajectory_goes_row_by_row_and_the_same_again(
        self, model: DiffusionBackbone, conditioning: TensorBatch
    ) -> None:
        *_, together = model.trajectory(lambda x: model.predict(x, conditioning), model.start(SEEDS), 3, SEEDS)
        torch.manual_seed(99)
        for k, seed in enumerate(SEEDS):
            prompt = row(conditioning, k)
            *_, alone = model.trajectory(
                lambda x, prompt=prompt: model.predict(x, prompt), model.start([seed]), 3, [seed]
            )
            assert same(row(together, k), alone, atol=1e-4)

    def test_trajectory_follows_the_predictor(self, model: DiffusionBackbone, conditioning: TensorBatch) -> None:
        start = model.start(SEEDS)
        *_, followed = model.trajectory(lambda x: model.predict(x, conditioning), start, 3, SEEDS)
        *_, other = model.trajectory(Calls(), start, 3, SEEDS)
        assert not same(followed, other)

    def test_decode_gives_pictures(self, model: DiffusionBackbone) -> None:
        *_, finished = model.trajectory(Calls(), 10 * model.start(SEEDS), 2, SEEDS)
        pictures = model.decode(finished)
        assert (pictures.shape[0], pictures.shape[-3]) == (3, 3)
        assert pictures.abs().max() <= 1
        torch.testing.assert_close(pictures[1:2], model.decode(row(finished, 1)), rtol=1e-4, atol=1e-4)

    def test_timesteps_fall(self, model: DiffusionBackbone) -> None:
        states = list(model.trajectory(Calls(), model.start(SEEDS), 6, SEEDS))
        times = torch.stack([state[self.clock] for state in states])
        assert times.shape == (7, 3)
        assert (times[1:] < times[:-1]).all()
        assert (times == times[:, :1]).all()

    # DDIM as trained here, and what Stable Diffusion 1.x and XL are published with
    @pytest.mark.parametrize("scheduler", [DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler])
    def test_every_state_is_at_its_timestep(self, folder: Path, scheduler: Any) -> None:
        """With a clairvoyant predictor, each state is the known latent with the known noise of its timestep.

        This is what the loss relies on: it asks the teacher and the student at the timestep of the state.
        """
        pipeline = self.pipeline()
        pipeline.scheduler = scheduler.from_config(
            pipeline.scheduler.config, skip_prk_steps=True, timestep_spacing="leading"
        )
        model = self.loaded(tiny.save(pipeline, folder))
        assert isinstance(model, DiffusionBackbone)
        reference: Any = DDIMScheduler.from_config(pipeline.scheduler.config)
        abar = reference.alphas_cumprod
        generator = torch.Generator().manual_seed(0)
        clean, noise = torch.randn(2, 3, *model.start([0]).shape[1:], generator=generator).unbind()

        def expected(state: TensorBatch) -> Tensor:
            return reference.add_noise(clean, noise, state["timestep"].long())

        def clairvoyant(state: TensorBatch) -> Tensor:
            a = abar[state["timestep"].long()].view(-1, 1, 1, 1)
            return noise if self.prediction == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * clean

        # `start` is pure noise; scaled so that the first state is the known one (a scheduler may scale it itself)
        first = next(iter(model.trajectory(clairvoyant, torch.ones_like(clean), 6, SEEDS)))
        states = list(model.trajectory(clairvoyant, expected(first) / first["latents"], 6, SEEDS))
        assert len(states) == 7
        times = [int(state["timestep"][0]) for state in states]
        assert times == sorted(set(times), reverse=True)
        for state in states[:-1]:
            torch.testing.assert_close(state["latents"], expected(state), rtol=1e-4, atol=1e-4)
        # the finished one is clean, or has as little noise as timestep 0
        at_0, finished = expected(states[-1]), states[-1]["latents"]
        assert min((finished - at_0).abs().max(), (finished - clean).abs().max()) < 1e-4
