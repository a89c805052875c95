"""Files appear whole or not at all, whoever else writes them, and others may read them."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sliders.algebra.edit import Translation
from sliders.algebra.slider import Slider
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.files import replacing, write_text
from sliders.formats import diffusers, peft
from tests.factory import lowrank


def test_it_takes_the_old_file_s_place_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "a.json"
    for text in ("one", "twö"):
        before = file.read_text() if file.exists() else None
        with replacing(file) as new:
            assert new != file
            assert new.suffix == ".json"
            assert not new.exists()
            new.write_text(text)
            assert (file.read_text() if file.exists() else None) == before
        assert file.read_text() == text
        assert list(file.parent.iterdir()) == [file]


def test_nobody_who_looks_for_results_finds_it(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.json") as new:
        new.write_text("half of")
        assert not list(tmp_path.glob("*.json"))
        assert not list(tmp_path.glob("a*"))
        assert [path.name[0] for path in tmp_path.iterdir()] == ["."]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("older", [True, False])
def test_a_writer_that_fails_leaves_what_was_there(error: type[BaseException], older: bool, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    if older:
        file.write_text("older")

    def write_half() -> None:
        with replacing(file) as new:
            new.write_text("half of")
            (new.parent / "a library's own temporary file").write_text("x")
            raise error

    with pytest.raises(error):
        write_half()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "older")] * older


def test_a_writer_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("older")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a"):
        pass
    assert [path.read_text() for path in tmp_path.iterdir()] == ["older"]


def test_two_writers_at_once_do_not_meet(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with replacing(file) as slow:
        slow.write_text("slow, first half; ")
        with replacing(file) as quick:
            assert quick != slow
            quick.write_text("quick")
        assert file.read_text() == "quick"
        with slow.open("a") as more:
            more.write("second half")
    assert file.read_text() == "slow, first half; second half"
    assert list(tmp_path.iterdir()) == [file]


def test_processes_that_write_one_file(tmp_path: Path) -> None:
    """Whoever reads finds one writer's text, whole, and no writer loses its own."""
    code = (
        "import sys; from pathlib import Path; from sliders.files import write_text\n"
        "for _ in range(100): write_text(Path(sys.argv[1]), sys.argv[2] * 100_000)"
    )
    file = tmp_path / "a"
    write_text(file, "c" * 100_000)
    writers = [subprocess.Popen([sys.executable, "-c", code, str(file), letter]) for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        said = file.read_text()
        assert len(said) == 100_000
        assert len(set(said)) == 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert list(tmp_path.iterdir()) == [file]


@pytest.fixture
def shared() -> Iterator[int]:
    """A umask under which a group may read; the mode of files under it."""
    before = os.umask(0o027)
    yield 0o640
    os.umask(before)


def modes(folder: Path) -> set[int]:
    """Of all files in a folder."""
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


def test_a_file_has_the_mode_of_any_new_file(shared: int, tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as new:
        os.close(os.open(new, os.O_CREAT | os.O_WRONLY, 0o600))
        assert stat.S_IMODE(new.stat().st_mode) == 0o600  # control
    assert modes(tmp_path) == {shared}
    assert os.umask(0o027) == 0o027, "it is the whole process's, and was left alone"


@pytest.mark.parametrize("kind", ["tensors", "diffusers", "peft", "judge"])
def test_what_safetensors_writes_can_be_read_by_others(kind: str, shared: int, tmp_path: Path) -> None:
    """The library gives its files to their owner alone."""
    update = Translation({"lm.a": lowrank((4, 4), 1, dtype=torch.float32)})
    if kind == "tensors":
        with replacing(tmp_path / "a.safetensors") as new:
            save_file({"a": torch.ones(1)}, new)
    elif kind == "diffusers":
        diffusers.save(Slider("s", update), tmp_path / "a.safetensors")
    elif kind == "peft":
        peft.save(Slider("s", update), tmp_path / "s", "base")
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o750
    else:
        AttributeJudge({"a": ["x", "y"]}, width=8).save(tmp_path / "a.safetensors")
    assert modes(tmp_path) == {shared}


def test_it_needs_python_alone() -> None:
    code = "import sys, sliders.files; print([n for n in ('torch', 'numpy', 'safetensors') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
