"""The tiny models that training is tested on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sliders.backbones.base import AbstractBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.runtime.adapter import Adapter
from tests import tiny
from tests.training import runs


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Stable Diffusion."""
    return tiny.save(tiny.stable_diffusion(), tmp_path_factory.mktemp("base") / "sd")


@pytest.fixture(scope="session")
def shared(base: Path) -> AbstractBackbone:
    """It, loaded, for tests that leave it as it was."""
    model = UNetBackbone(str(base))
    model.load()
    return model


@pytest.fixture
def adapter(shared: AbstractBackbone) -> Iterator[Adapter]:
    """An adapter on the shared model that does something; taken off again."""
    with Adapter(shared, shared.select_targets(["xattn"]), 2, 2.0) as made:
        runs.randomize(made)
        yield made
