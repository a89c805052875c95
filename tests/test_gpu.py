"""Every command on an accelerator, with a tiny model of every family: `make gpu`.  Skipped where there is none."""

from pathlib import Path

import pytest
import torch

from sliders.backbones.unet import UNetBackbone
from sliders.evaluation.pictures.sampling import Sampling, Scene, sample
from tests.machines import CASES, FAMILIES, Case, Where, World, run_case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]
TRAINER = {"accelerator": "cuda", "devices": 1}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    """The folder of each family."""
    return {family: World(tmp_path_factory.mktemp("world"), family) for family in FAMILIES}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_command(case: Case, dtype: str, worlds: dict[str, World], tmp_path: Path) -> None:
    run_case(case, worlds[case.family], tmp_path, Where("cuda", dtype, TRAINER))


def test_auto_is_the_accelerator_in_the_precision_of_the_files(worlds: dict[str, World]) -> None:
    model = UNetBackbone(str(worlds["Stable Diffusion"].folder / "model"))
    model.load()
    assert model.device.type == "cuda"
    assert model.dtype == torch.float32
    assert model.start([1]).device.type == "cuda"


def test_pictures_are_those_of_the_cpu(worlds: dict[str, World]) -> None:
    made = []
    for device in ("cpu", "cuda"):
        model = UNetBackbone(str(worlds["Stable Diffusion"].folder / "model"), device=device, dtype="float32")
        model.load()
        made.append(sample(model, [Scene("a person", 1), Scene("a dog", 2)], Sampling(steps=3, guidance=2.0)))
    torch.testing.assert_close(made[0], made[1], atol=2e-2, rtol=0)
