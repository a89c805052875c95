"""Where nothing can be written, every command says so in one line, before the work."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import train
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.cli import main as cli
from sliders.errors import SliderError
from sliders.files import check_place
from tests.commands import World, run, world


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A model, a concept and a slider."""
    made = world(tmp_path_factory.mktemp("world"))
    ended = run(train.main, "--config", made.config, "--runs", made.folder / "runs", "--trainer.max_steps", 1)
    assert ended.code == 0, ended.err
    (made.folder / "uce.yaml").write_text('editor: { replace: { "a dog": "a person" } }')
    return made


@pytest.fixture(params=["read-only", "full"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk that cannot be written, where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    size = "size=4k,nr_inodes=8"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root and the right to mount")
    try:
        if request.param == "full":
            (place / "filler").write_bytes(b"0" * 4096)
        else:
            subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_is_tried(disk: Path) -> None:
    with pytest.raises(SliderError, match="cannot be written"):
        check_place(disk / "new" / "file.png")
    with pytest.raises(SliderError, match="cannot be written"):
        check_place(disk, folder=True)
    assert {path.name for path in disk.iterdir()} <= {"filler"}


def test_a_place_is_as_it_was(tmp_path: Path) -> None:
    check_place(tmp_path / "new" / "file.png")
    check_place(tmp_path / "new" / "folder", folder=True)
    check_place(tmp_path, folder=True)
    (tmp_path / "old.png").write_text("older")
    check_place(tmp_path / "old.png")
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
    assert (tmp_path / "old.png").read_text() == "older"


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_what_the_system_says_is_in_the_message(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(SliderError, match=os.strerror(number)):
        check_place(tmp_path / "a.png")


def test_kinds_of_places(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, folder, new in (
        (tmp_path / "file", True, False),
        (tmp_path, False, False),
        (tmp_path / "file" / "below", False, False),
        (tmp_path / "file" / "below", True, False),
        (tmp_path / "file", False, True),
    ):
        with pytest.raises(SliderError, match=str(place)):
            check_place(place, folder, new)


COMMANDS: dict[str, Callable[[World, Path], list[object]]] = {
    "train": lambda w, out: ["train", "--config", w.config, "--runs", out],
    "train-many": lambda w, out: ["train-many", w.config, "--runs", out],
    "generate": lambda w, out: ["generate", "a person", "--base", w.model, "--out", out / "grid.png"],
    "preview": lambda w, out: ["preview", w.concept, "--base", w.model, "--out", out],
    "evaluate": lambda w, out: ["evaluate", slider(w), "--base", w.model, "--out", out],
    "bake": lambda w, out: ["bake", slider(w), out / "model", "--base", w.model],
    "compose": lambda w, out: ["compose", f"[{slider(w)}]", out / "sum.safetensors"],
    "edit": lambda w, out: [
        *("edit", "uce", "--config", w.folder / "uce.yaml", "--base", w.model),
        *("--out", out / "edit.safetensors"),
    ],
    "export": lambda w, out: ["export", slider(w), out / "slider.gguf"],
    "laws": lambda w, out: ["laws", slider(w), "--base", w.model, "--out", out],
    "explain": lambda w, out: ["explain", slider(w), "--out", out],
    "demo": lambda w, out: ["demo", "--base", w.model, "--out", out],
}
"""Every command that writes, told to write into a folder."""


def slider(made: World) -> Path:
    """The world's slider."""
    return made.folder / "runs" / "happy" / "happy.safetensors"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_knows_before_the_work(
    here: World, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read of a model, and the file that is in the way stays."""
    for kind in (UNetBackbone, CausalLMBackbone):
        monkeypatch.setattr(kind, "load", lambda self: pytest.fail("weights are read"))
    place = tmp_path / "taken"
    place.write_text("a letter")
    arguments = COMMANDS[command](here, place)
    main = train.main if command == "train" else cli.main
    ended = run(main, *(arguments[1:] if command == "train" else arguments))
    error = ended.err.splitlines()[-1]
    assert ended.code == 1, ended.err
    assert error.startswith("error: ")
    assert str(place) in error
    assert place.read_text() == "a letter"
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_every_command_that_writes_is_here() -> None:
    """All of `sliders --help`, but for one that writes into the user's cache alone."""
    ended = run(cli.main, "--help")
    listed = ended.out.partition("{")[2].partition("}")[0].split(",")
    assert set(listed) == {*COMMANDS, "fetch"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/grid.png"), OSError("gone")])
def test_what_fails_later_is_one_line_too(
    here: World, tmp_path: Path, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("PIL.Image.Image.save", refuse)
    wanted = ["generate", "a person", "--base", here.model, "--out", tmp_path / "grid.png"]
    ended = run(cli.main, *wanted, "--sampling.steps", 1)
    assert ended.code == 1
    line = ended.err.splitlines()[-1]
    assert line == ("error: gone" if error.errno is None else "error: /disk/grid.png: No space left on device")
    assert not list(tmp_path.iterdir())
