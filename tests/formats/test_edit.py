"""Files of edits: what is read is what was written, and nothing else is read."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sliders import formats
from sliders.algebra.distance import distance
from sliders.algebra.edit import Affine, Identity, Translation
from sliders.algebra.slider import Interpolated, Slider
from sliders.errors import SliderError
from sliders.formats import edit as edit_file
from sliders.formats import tensors
from tests.algebra.cases import METHODS, edit
from tests.factory import lowrank

SHAPES = [(5, 4), (4, 2, 2, 1)]
SAID = {"sliders.base_model": "m", "sliders.modality": "text"}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_read_is_what_was_written(method: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    wanted = edit(method, shape, 1)
    edit_file.save("mine", wanted, tmp_path / "f.safetensors", SAID)
    dial = formats.load_dial(tmp_path / "f.safetensors")
    assert dial.name == "mine"
    assert dial.metadata.items() >= SAID.items()
    read = dial.at(1.0)
    assert distance(read, wanted) < 1e-12
    for part in ("left", "right", "shift"):
        one, two = (getattr(f.elements()["fc"], part) for f in (read, wanted))
        assert one.shape == two.shape
        assert torch.equal(one.B, two.B)
        assert torch.equal(one.A, two.A)
    assert read.elements()["fc"].shape == shape
    assert isinstance(dial, Slider if method == "translation" else Interpolated)
    assert not list(tmp_path.glob(".*"))


def test_a_translation_of_several_layers_is_a_slider_of_their_shapes(tmp_path: Path) -> None:
    update = Translation({"a": lowrank((3, 4), 2), "b": lowrank((4, 2, 3, 3), 1)})
    edit_file.save("t", update, tmp_path / "t.safetensors", {})
    read = formats.load_dial(tmp_path / "t.safetensors")
    assert isinstance(read, Slider)
    assert {name: part.shape for name, part in read.update.items()} == {"a": (3, 4), "b": (4, 2, 3, 3)}
    assert read.update["b"].B.dtype == torch.float64
    assert torch.equal(read.update["b"].B, update["b"].B)


def test_what_it_is_for_is_told_by_its_metadata(tmp_path: Path) -> None:
    for modality in ("text", "image"):
        file = tmp_path / f"{modality}.safetensors"
        edit_file.save("e", edit("uce", (5, 4), 1), file, {"sliders.modality": modality})
        assert formats.modality_of(file) == modality


def test_nothing_to_write_and_another_ending_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SliderError, match="changes no layer"):
        edit_file.save("e", Identity(), tmp_path / "e.safetensors", {})
    with pytest.raises(SliderError, match=r"one \.safetensors file"):
        edit_file.save("e", edit("uce", (5, 4), 1), tmp_path / "e", {})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    edit_file.save("e", edit("leace", (5, 4), 1), tmp_path / "e.safetensors", {})
    return tmp_path / "e.safetensors"


def test_a_corrupt_file_is_an_error(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(SliderError, match="not a readable safetensors file"):
        edit_file.load(file)
    with pytest.raises(SliderError, match="not a readable safetensors file"):
        formats.load_dial(file)


def test_another_version_and_another_thing_are_errors(file: Path) -> None:
    metadata, state = tensors.read(file)
    tensors.write(state, file, {**metadata, "sliders.edit": "7"})
    with pytest.raises(SliderError, match=r"version 1: its metadata says sliders\.edit '7'"):
        formats.load_dial(file)
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(SliderError, match=r"says sliders\.edit None"):
        edit_file.load(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, m: s.pop("fc.left.A"), "B and A of 'fc.left' do not fit"),
        (lambda s, m: s.update({"fc.left.A": s["fc.left.A"][:, :3]}), "do not act on a weight"),
        (lambda s, m: s.update({"fc.left.A": s["fc.left.A"].T}), "do not fit each other"),
        (lambda s, m: s.update({"other.left.A": torch.zeros(1, 1)}), "'other.left.A', which is no factor"),
        (lambda s, m: m.update({"sliders.shapes": "{"}), "sliders.shapes is malformed"),
        (lambda s, m: m.pop("sliders.shapes"), "it has no .sliders.shapes."),
        (lambda s, m: m.update({"sliders.shapes": json.dumps({"fc": [5, 9]})}), "do not act on a weight"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_what(file: Path, change, message: str) -> None:
    metadata, state = tensors.read(file)
    change(state, metadata)
    tensors.write(state, file, metadata)
    with pytest.raises(SliderError, match=message):
        formats.load_dial(file)


def test_factors_of_a_shared_tensor_are_written_apart(tmp_path: Path) -> None:
    """UCE has one right factor for all layers; safetensors refuses storage that is shared."""
    element = edit("uce", (5, 4), 1)["fc"]
    edit_file.save("e", Affine({"a": element, "b": element}), tmp_path / "e.safetensors", {})
    assert len(load_file(tmp_path / "e.safetensors")) == 4
