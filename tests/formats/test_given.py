"""Sliders under other names, and paths one at a time."""

from pathlib import Path

import pytest

from sliders import formats
from sliders.algebra.slider import Hinge
from sliders.cli.defaults import listed, one_each, some
from sliders.errors import SliderError
from sliders.formats import diffusers, hinge, tensors
from sliders.formats.given import given
from sliders.formats.metadata import check_name
from sliders.runtime.attach import check_names
from tests.formats.test_diffusers import plain


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A slider called smile."""
    diffusers.save(plain("smile"), tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A hinge called both."""
    sides = [plain("left"), plain("right")]
    joined = Hinge("both", *sides)
    hinge.save(joined, tmp_path / "both", diffusers.save, ".safetensors")
    return tmp_path / "both"


def test_a_slider_can_be_called_otherwise(file: Path, folder: Path) -> None:
    assert [formats.load(file).name, formats.load_dial(file).name, formats.load_dial(folder).name] == [
        "smile",
        "smile",
        "both",
    ]
    assert [
        formats.load(file, name="x").name,
        formats.load_dial(file, "x").name,
        formats.load_dial(folder, name="x").name,
    ] == ["x"] * 3


def test_of_a_command(file: Path, folder: Path) -> None:
    one, two, three = given([file, Path(f"grin={file}"), Path(f"h={folder}")], "--slider")
    assert [one.load().name, two.load().name, three.load().name] == ["smile", "grin", "h"]
    assert [one.path, two.path, three.path] == [file, file, folder]
    assert given(file, "--slider") == given([file], "--slider") == [one]
    assert given(None, "--slider") == given([], "--slider") == []


def test_two_of_one_name_are_told_how_to_go_on(file: Path) -> None:
    with pytest.raises(SliderError, match=r"two sliders are called 'smile'.*NAME=PATH.*name="):
        check_names([one.load() for one in given([file, file], "--slider")])
    check_names([one.load() for one in given([file, Path(f"other={file}")], "--slider")])


def test_a_path_that_is_there_is_a_path_whatever_it_is_called(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    other = file.rename("lr=0.1.safetensors")
    assert [one.name for one in given(other, "--slider")] == [None]
    (named,) = given(Path(f"x={other}"), "--slider")
    assert (named.name, named.path) == ("x", other)


@pytest.mark.parametrize("said", ["absent", "x=absent", "x=", "=", "../x=absent"])
def test_nothing_there(said: str) -> None:
    with pytest.raises(SliderError, match="no slider file at"):
        given(Path(said), "--slider")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".hidden", "", "a\nb", "a\\b", "x" * 200, "a\0b"])
def test_names_that_lead_elsewhere(name: str, file: Path) -> None:
    """A stranger's file is called what its metadata says, and files are called by it."""
    with pytest.raises(SliderError):
        check_name(name, "it")
    metadata, state = tensors.read(file)
    tensors.write(state, file, {**metadata, "sliders.name": name})
    with pytest.raises(SliderError, match=r"a\.safetensors.*NAME="):
        formats.load_dial(file)
    assert formats.load_dial(file, "x").name == "x"


@pytest.mark.parametrize("side", ["../a.safetensors", "/etc/passwd", "..", "", "./right.safetensors"])
def test_a_hinge_s_sides_lie_in_its_folder(side: str, file: Path, folder: Path) -> None:
    manifest = folder / hinge.MANIFEST
    manifest.write_text(manifest.read_text().replace("left.safetensors", side))
    assert (folder / side).exists()  # the control: it could be read
    with pytest.raises(SliderError, match=r"hinge\.json.*is no name of a file beside it"):
        formats.load_dial(folder)


def test_one_value_is_as_good_as_a_list_of_one() -> None:
    assert listed(3) == listed([3]) == listed((3,)) == [3]
    assert listed("words") == ["words"]
    assert listed(None) == []
    assert one_each(2.0, "ab") == one_each([2.0], "ab") == [2.0, 2.0]
    with pytest.raises(SliderError, match="3 numbers for 2"):
        one_each([1.0, 2.0, 3.0], "ab")
    with pytest.raises(SliderError, match="--seed is empty"):
        some("--seed", [])
