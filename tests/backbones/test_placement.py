"""Where models are put, in which precision they come up, and what is said of those that cannot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from sliders.backbones import placement
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.placement import Placement, stored
from sliders.backbones.sdxl import SDXLBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.errors import SliderError
from tests import tiny, tiny_lm

KINDS: dict[str, tuple[Any, Any]] = {
    "sd": (tiny.stable_diffusion, UNetBackbone),
    "xl": (tiny.stable_diffusion_xl, SDXLBackbone),
    "lm": (lambda: tiny_lm.language_model("llama"), CausalLMBackbone),
}
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def main(model: AbstractBackbone) -> nn.Module:
    """What predicts."""
    return model.get_submodule(model.predicting_modules[0])


def precisions(module: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in module.parameters()}


def has(monkeypatch: pytest.MonkeyPatch, *devices: str) -> None:
    """Pretend that these are the machine's."""
    monkeypatch.setattr(placement, "present", lambda: list(devices))


class TestWhere:
    @pytest.mark.parametrize(
        ("devices", "wanted", "found"),
        [
            (["cpu"], "auto", "cpu"),
            (["mps", "cpu"], "auto", "mps"),
            (["cuda:0", "cuda:1", "cpu"], "auto", "cuda:0"),
            (["cuda:0", "cuda:1", "cpu"], "cuda", "cuda:0"),
            (["cuda:0", "cuda:1", "cpu"], "cuda:1", "cuda:1"),
            (["cuda:0", "cpu"], "cpu", "cpu"),
        ],
    )
    def test_the_best_or_what_is_asked(
        self, monkeypatch: pytest.MonkeyPatch, devices: Sequence[str], wanted: str, found: str
    ) -> None:
        has(monkeypatch, *devices)
        assert Placement(wanted).found() == torch.device(found)

    @pytest.mark.parametrize("wanted", ["gpu", "cuda:", "cuda:x", "meta", "CPU", ""])
    def test_a_device_that_is_none(self, kind: str, wanted: str) -> None:
        with pytest.raises(SliderError, match="give auto, cpu, cuda"):
            KINDS[kind][1]("anywhere", device=wanted)

    def test_a_precision_that_is_none(self, kind: str) -> None:
        with pytest.raises(SliderError, match=r"dtype is 'int8'; give auto, float32, bfloat16 or float16"):
            KINDS[kind][1]("anywhere", dtype="int8")

    @pytest.mark.parametrize("wanted", ["cuda", "cuda:3", "mps"])
    def test_a_device_that_is_not_there_before_a_weight_is_read(
        self, kind: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        has(monkeypatch, "cpu")
        (tmp_path / "no_model").mkdir()  # whose weights would be missed otherwise
        with pytest.raises(SliderError) as caught:
            KINDS[kind][1](str(tmp_path / "no_model"), device=wanted).load()
        assert str(caught.value) == f"device is {wanted}, but this machine has cpu; give one, or auto"

    @pytest.mark.parametrize(
        ("wanted", "trainers", "agreed"),
        [
            ("auto", "cuda:1", "cuda:1"), ("cuda", "cuda:1", "cuda:1"), ("cuda:1", "cuda:1", "cuda:1"),
            ("auto", "mps:0", "mps"), ("mps", "mps:0", "mps"), ("cpu", "cpu", "cpu"),
        ],
    )  # fmt: skip
    def test_a_trainer_decides(self, wanted: str, trainers: str, agreed: str) -> None:
        assert Placement(wanted, "bfloat16").on_trainers(torch.device(trainers)) == Placement(agreed, "bfloat16")

    @pytest.mark.parametrize(
        ("wanted", "trainers", "says"),
        [
            ("cpu", "cuda:0", "--trainer.accelerator cpu"),
            ("cuda", "cpu", "--trainer.accelerator cuda"),
            ("cuda:1", "cuda:0", r"--trainer.devices '\[1\]'"),
        ],
    )
    def test_a_trainer_that_is_elsewhere(self, wanted: str, trainers: str, says: str) -> None:
        with pytest.raises(SliderError, match=says):
            Placement(wanted).on_trainers(torch.device(trainers))


class TestPrecision:
    def test_float32_on_the_cpu_whatever_is_stored(self, kind: str, tmp_path: Path) -> None:
        make, family = KINDS[kind]
        model = family(str(tiny.save(make().to(torch.float16), tmp_path / "model")))
        model.load()
        assert precisions(model) == {torch.float32}

    @pytest.mark.parametrize("half", HALVES)
    def test_what_is_asked(self, kind: str, half: str, tmp_path: Path) -> None:
        make, family = KINDS[kind]
        model = family(str(tiny.save(make(), tmp_path / "model")), dtype=half)
        model.load()
        assert model.dtype == HALVES[half]
        assert precisions(main(model)) == {HALVES[half]}
        if kind != "lm":
            assert model.start([1]).dtype == HALVES[half]
            assert precisions(model.vae) == {torch.float32 if half == "float16" else torch.bfloat16}

    @pytest.mark.parametrize("half", HALVES)
    def test_that_of_the_files_elsewhere(self, kind: str, half: str, tmp_path: Path) -> None:
        make, _ = KINDS[kind]
        folder = tiny.save(make().to(HALVES[half]), tmp_path / "model")
        part = folder if kind == "lm" else folder / "unet"
        files = placement.weights(part, None)
        assert stored(files[0]) == HALVES[half]
        assert Placement().precision(torch.device("cuda:0"), files) == HALVES[half]
        assert Placement().precision(torch.device("cpu"), files) == torch.float32
        assert Placement(dtype="float32").precision(torch.device("cuda:0"), files) == torch.float32

    def test_a_pipeline_that_is_given_in_several_comes_up_in_one(self, tmp_path: Path) -> None:
        pipeline = tiny.stable_diffusion()
        pipeline.text_encoder.half()
        pipeline.vae.half()
        model = UNetBackbone("given")
        model.use(pipeline)
        assert precisions(model) == {torch.float32}
        *_, finished = model.trajectory(
            lambda state: model.predict(state, model.encode(["a person"])), model.start([1]), 1, [1]
        )
        assert model.decode(finished).isfinite().all()

    @pytest.mark.parametrize("half", HALVES)
    def test_a_pipeline_that_is_given_stays_what_it_is(self, half: str) -> None:
        pipeline = tiny.stable_diffusion().to(HALVES[half])
        model = UNetBackbone("given")
        model.use(pipeline)
        assert model.dtype == HALVES[half]
        assert pipeline.unet.dtype == HALVES[half]


class TestVariants:
    @pytest.fixture
    def folder(self, kind: str, tmp_path: Path) -> Path:
        """With files of the variant fp16 alone."""
        made = KINDS[kind][0]().to(torch.float16)
        whole = made.lm if kind == "lm" else made
        whole.save_pretrained(tmp_path / "model", variant="fp16")
        if kind == "lm":
            made.tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    def test_it_is_read_where_it_is_asked_for(self, kind: str, folder: Path) -> None:
        model = KINDS[kind][1](str(folder), variant="fp16", dtype="float16")
        model.load()
        assert model.dtype == torch.float16

    def test_and_named_where_it_is_not(self, kind: str, folder: Path) -> None:
        with pytest.raises(SliderError, match="holds only the variant fp16; give variant: fp16") as caught:
            KINDS[kind][1](str(folder)).load()
        assert "\n" not in str(caught.value)

    def test_another_one(self, kind: str, folder: Path) -> None:
        with pytest.raises(SliderError, match="has no variant bf16; it has fp16: give variant: fp16"):
            KINDS[kind][1](str(folder), variant="bf16").load()

    def test_one_of_a_model_without(self, kind: str, tmp_path: Path) -> None:
        folder = tiny.save(KINDS[kind][0](), tmp_path / "model")
        with pytest.raises(SliderError, match="has no variant fp16; leave variant out"):
            KINDS[kind][1](str(folder), variant="fp16").load()

    def test_a_pipeline_may_have_it_of_some_parts(self, tmp_path: Path) -> None:
        folder = tiny.save(tiny.stable_diffusion(), tmp_path / "model")
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        unet: Any = cast(Any, tiny.stable_diffusion().unet).half()
        unet.save_pretrained(folder / "unet", variant="fp16")
        model = UNetBackbone(str(folder), variant="fp16")
        model.load()
        assert precisions(model) == {torch.float32}

    def test_a_revision_reaches_the_library(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: dict[str, Any] = {}

        def refuse(*_: object, **kwargs: Any) -> None:
            asked.update(kwargs)
            raise OSError("it is not fetched here")

        monkeypatch.setattr(DiffusionPipeline, "download", refuse)
        monkeypatch.setattr("sliders.backbones.language.loading.AutoTokenizer.from_pretrained", refuse)
        with pytest.raises(SliderError, match="not fetched"):
            KINDS[kind][1]("some/model", revision="v2", variant="fp16").load()
        assert asked["revision"] == "v2"
