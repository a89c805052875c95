"""What a path is relative to: in a config to the config, on the command line to where one is."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser, auto_cli

from sliders.resources.paths import Source, called_here


@dataclass
class Part:
    """As an editor or a callback: paths alone, in a list, or a name in their place."""

    file: Path = Path("default.txt")
    files: list[Path] = field(default_factory=list)
    model: Source | str = "avatars"
    judge: Source | Path | None = None


class Holder:
    """As a backbone or a callback that a config names by its class."""

    def __init__(self, part: Part, words: list[str] | Path | None = None) -> None:
        self.part, self.words = part, words


SAID = {
    "holder": {
        "class_path": f"{__name__}.Holder",
        "init_args": {
            "part": {"file": "a.txt", "files": ["../b.txt", "/c.txt", "other=d.txt"], "model": "m", "judge": "avatars"},
            "words": "w.txt",
        },
    },
    "out": "o.png",
}


def command(holder: Holder, out: Path = Path("out.png")) -> tuple[Holder, Path]:
    """What a command is given."""
    return holder, out


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a config and a model; the working directory is another one, which has other things of that name."""
    folder = tmp_path / "configs"
    for place in ("configs/m", "configs/avatars", "here/m", "here/org/name", "here/avatars"):
        (tmp_path / place).mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(SAID))
    monkeypatch.chdir(tmp_path / "here")
    return folder


def asked(*arguments: str) -> tuple[Holder, Path]:
    with called_here():
        made: Any = auto_cli(command, args=[*arguments], as_positional=False)
    return made


@pytest.mark.parametrize("given", ["absolute", "relative"])
def test_in_a_config_they_are_relative_to_it(configs: Path, given: str) -> None:
    holder, out = asked("--config", str(configs / "run.yaml") if given == "absolute" else "../configs/run.yaml")
    part = holder.part
    assert part.file == configs / "a.txt"
    assert part.files == [configs.parent / "b.txt", Path("/c.txt"), Path(f"other={configs}/d.txt")]
    assert part.model == str(configs / "m")
    assert holder.words == configs / "w.txt"
    assert out == configs / "o.png"


def test_a_known_name_is_that_name_whatever_lies_there(configs: Path) -> None:
    """There are folders `avatars` beside the config and where the command was called."""
    assert asked("--config", str(configs / "run.yaml"))[0].part.judge == "avatars"


def test_on_the_command_line_they_are_relative_to_where_one_is(configs: Path) -> None:
    """And stay as they were typed; the config's others stay the config's."""
    flags = ("--holder.part.file=x.txt", "--holder.part.model=m", "--out=y.png")
    holder, out = asked("--config", str(configs / "run.yaml"), *flags)
    assert holder.part.file == Path("x.txt")
    assert holder.part.model == "m"
    assert out == Path("y.png")
    assert asked("--config", str(configs / "run.yaml"), "--holder.part.model=./no")[0].part.model == "./no"
    assert holder.part.files[0] == configs.parent / "b.txt"


def test_what_nobody_says_is_the_default(configs: Path) -> None:
    (configs / "less.yaml").write_text(yaml.safe_dump({"holder": {"class_path": f"{__name__}.Holder"}}))
    holder, out = asked("--config", str(configs / "less.yaml"), "--holder.part.judge=null")
    assert (holder.part.file, out) == (Path("default.txt"), Path("out.png"))


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("m", "{c}/m"),
        ("./nowhere", "{c}/nowhere"),
        ("../m", "{c}/../m"),
        ("org/name", "org/name"),
        ("smollm2", "smollm2"),
    ],
)
def test_a_model_is_a_folder_or_a_name(configs: Path, said: str, meant: str) -> None:
    """A hub's name stays one, though a folder of that name is where the command is called."""
    (configs / "m.yaml").write_text(yaml.safe_dump({"part": {"model": said}}))
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Part, "part")
    model = parser.parse_args(["--config", str(configs / "m.yaml")]).part.model
    wanted = meant.format(c=configs)
    assert model == (str(Path(wanted).resolve()) if wanted.startswith("/") else wanted)


def test_what_is_written_can_be_read_anywhere(configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser: Any = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_function_arguments(command)
    with called_here():
        parsed = parser.parse_args(["--config", str(configs / "run.yaml"), "--holder.part.model=m"])
    written = parser.dump(parsed)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.yaml").write_text(written)
    monkeypatch.chdir(tmp_path)
    again = parser.parse_args(["--config", "elsewhere/config.yaml"])
    part = again.holder.init_args.part
    assert part.model == str(tmp_path / "here" / "m")
    assert part.judge == "avatars"
    assert part.file == configs / "a.txt"
    assert again.out == configs / "o.png"
    assert parser.dump(again) == written
