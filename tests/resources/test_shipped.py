"""What comes with the package is found wherever one is, by name."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.cli import main as cli
from sliders.errors import SliderError
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.evaluation.texts.sampling import TextSampling
from sliders.resources import shipped
from sliders.training.cli import SliderCLI
from sliders.training.many import find_configs, plan
from tests.commands import ROOT, World, run, world


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which one is in."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "empty"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny model, concept and config."""
    return world(tmp_path_factory.mktemp("world"))


def test_an_installed_package_looks_into_itself(tmp_path: Path) -> None:
    """Where there is `share/`; a copy of the package's files stands for an installed one."""
    package = tmp_path / "lib" / "sliders"
    for folder in ("share/configs", "resources"):
        (package / folder).mkdir(parents=True)
    for name in ("resources/shipped.py", "errors.py"):
        (package / name).write_text((ROOT / "sliders" / name).read_text())
    for name in ("__init__.py", "resources/__init__.py"):
        (package / name).touch()
    code = "from sliders.resources.shipped import ROOT; print(ROOT)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(package.parent)},
    )
    assert done.stdout.strip() == str(package / "share")
    assert shipped.ROOT == ROOT  # control: the checkout has none


def test_a_config_by_its_name() -> None:
    assert shipped.config_file("avatars/smile") == shipped.config_file("smile") == ROOT / "configs/avatars/smile.yaml"
    assert shipped.config_file("rome") == ROOT / "configs/editors/rome.yaml"
    with pytest.raises(SliderError, match=r"avatars/happiness or smollm2/happiness"):
        shipped.config_file("happiness")
    with pytest.raises(SliderError, match=r"'?smyle'?.*avatars/smile"):
        shipped.config_file("smyle")


def test_arguments_with_names(empty: Path) -> None:
    smile = str(ROOT / "configs/avatars/smile.yaml")
    assert shipped.with_files(["a", "--config", "smile", "--x"]) == ["a", "--config", smile, "--x"]
    assert shipped.with_files(["--config=avatars/smile"]) == [f"--config={smile}"]
    unlike = ["--config", "{a: 1}", "--data.concept", "smile", "--config"]
    assert shipped.with_files(unlike) == unlike
    (empty / "smile").touch()
    assert shipped.with_files(["--config", "smile"]) == ["--config", "smile"], "a file that is there is meant"


def test_training_without_a_config_is_that_of_smile(made: World) -> None:
    parsed = SliderCLI(["--trainer.accelerator=cpu"]).config
    assert parsed.data.concept == ROOT / "data/avatars/concepts/smile.yaml"
    assert parsed.runs == Path("runs")
    mine = SliderCLI(["--trainer.accelerator=cpu", f"--data.concept={made.concept}"]).config
    assert mine.data.concept == made.concept


@pytest.mark.parametrize("name", ["smile", "avatars/beard", "smollm2/pirate"])
def test_training_by_the_name_of_a_config(name: str) -> None:
    trained = SliderCLI(["--config", name, "--trainer.accelerator=cpu"]).datamodule
    assert trained.concept.name == name.rpartition("/")[2]


def test_an_unknown_config_is_one_line_that_names_the_known() -> None:
    for command in (["train", "--config", "smyle"], ["edit", "rome", "--config", "smyle"], ["train-many", "smyle"]):
        ended = run(cli.main, *command)
        assert ended.code == 1
        assert "smyle" in ended.err
        assert "avatars/smile" in ended.err
        assert "Traceback" not in ended.err


def test_train_is_a_command(made: World, empty: Path) -> None:
    ended = run(cli.main, "train", "--config", made.config)
    assert ended.code == 0, ended.err
    assert (empty / "runs/happy/happy.safetensors").is_file()
    assert "train" in run(cli.main, "--help").out
    told = run(cli.main, "train", "--help").out
    assert "--data.concept" in told
    assert "smollm2/sentiment" in told


def test_a_run_is_replayed_from_its_own_config_elsewhere(
    made: World, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given by relative paths, replayed from another folder: bit for bit the same file but for its date and seconds."""
    monkeypatch.chdir(made.folder)
    config = made.folder / "near.yaml"
    text = made.config.read_text()
    config.write_text(text.replace(f"{made.folder}/", ""))
    assert f"{made.folder}" in text
    assert f"{made.folder}" not in config.read_text()
    assert run(cli.main, "train", "--config", "near.yaml", "--runs", tmp_path / "one").code == 0
    monkeypatch.chdir(empty)
    written = tmp_path / "one/happy/config.yaml"
    assert run(cli.main, "train", "--config", written, "--runs", "two").code == 0
    from safetensors.torch import load_file

    first, second = (load_file(folder / "happy/happy.safetensors") for folder in (tmp_path / "one", empty / "two"))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_configs_by_the_name_of_their_folder(empty: Path) -> None:
    assert {file.name for file in find_configs([Path("avatars")])} >= {"smile.yaml", "beard.yaml"}
    assert find_configs([Path("smile")]) == [ROOT / "configs/avatars/smile.yaml"]


def test_a_key_does_not_depend_on_where_files_are(made: World, tmp_path: Path) -> None:
    """But on what they say."""
    places = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("happy.yaml", "prompts.txt"):
            (folder / file).write_text((made.folder / file).read_text().replace(str(made.folder), str(folder)))
        text = made.config.read_text()
        (folder / "run.yaml").write_text(text.replace(str(made.concept), "happy.yaml"))
        places.append(folder)
    keys = [plan(folder / "run.yaml", Path("runs")).key for folder in places]
    assert keys[0] == keys[1] == plan(Path(os.path.relpath(places[0] / "run.yaml")), Path("elsewhere")).key
    concept = places[1] / "happy.yaml"
    concept.write_text(concept.read_text().replace("a happy person", "a very happy person"))
    assert plan(places[1] / "run.yaml", Path("runs")).key != keys[0]


def test_the_models_and_the_judge_by_name() -> None:
    """From the files, in a folder where they are not."""
    assert AttributeJudge.load("avatars").values["expression"]
    backbone = UNetBackbone("avatars")
    backbone.load()
    assert backbone.base_model == "avatars"
    older = UNetBackbone("data/avatars/model")  # what slider files say
    older.load()
    assert older.fingerprint() == backbone.fingerprint()
    assert TextSampling().neutral.is_file()


@pytest.mark.parametrize("kind", [UNetBackbone, CausalLMBackbone])
def test_an_unknown_model_names_the_known(kind: type[UNetBackbone] | type[CausalLMBackbone]) -> None:
    with pytest.raises(SliderError, match="avatars" if kind is UNetBackbone else "smollm2"):
        kind("./avatar").load()
    with pytest.raises(SliderError, match=r"judge.*avatars"):
        AttributeJudge.load("avatar")


def test_a_folder_where_a_name_is(empty: Path) -> None:
    """A name is that name; a folder beside it is written with its place."""
    (empty / "avatars").mkdir()
    assert shipped.model_folder("avatars") == str(ROOT / "data/avatars/model")
    assert shipped.model_folder("./avatars") == "./avatars"


def _in_the_wheel() -> list[str]:
    """The places that a wheel is made from, beside the package."""
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    include = said["force-include"]
    assert all(there == f"sliders/share/{place}" for place, there in include.items())
    return list(include)


def test_the_wheel_has_every_config_and_what_it_names() -> None:
    """But for the tables of the benchmarks; a config's names are relative to it."""
    places = _in_the_wheel()

    def held(file: Path) -> bool:
        place = file.relative_to(ROOT).as_posix()
        return any(place == included or place.startswith(f"{included}/") for included in places)

    for file in (*shipped.config_names().values(), ROOT / "configs/base.yaml"):
        assert held(file), file
        named = re.findall(r"(?:\.\./)+[\w/.]+", file.read_text())
        assert all(held((file.parent / name).resolve()) for name in named if "runs/" not in name), file
    for model in (*shipped.MODELS.values(), *shipped.JUDGES.values()):
        assert held(ROOT / model)
    assert held(TextSampling().neutral)
    assert not held(ROOT / "data/avatars/twins")  # control


def test_the_files_of_a_concept_inside_a_config_are_relative_to_the_config(made: World, tmp_path: Path) -> None:
    """Also for the key of a run; and a run's own config holds what they say, or where they are."""
    said = yaml.safe_load(made.config.read_text())
    concept = yaml.safe_load(made.concept.read_text())
    concept["measure"]["prompts"] = "near/held.txt"
    said["data"]["concept"] = concept | {"contexts": "near/contexts.txt"}
    for name, words in (("one", ", old"), ("two", ", young")):
        (tmp_path / name / "near").mkdir(parents=True)
        (tmp_path / name / "near/held.txt").write_text("a dog\n")
        (tmp_path / name / "near/contexts.txt").write_text(f"{words}\n")
        (tmp_path / name / "run.yaml").write_text(yaml.safe_dump(said))
        held = SliderCLI(["--config", str(tmp_path / name / "run.yaml")]).datamodule.concept
        assert held.contexts == [words]
        assert held.heldout() == ["a dog"]
    assert len({plan(tmp_path / name / "run.yaml", Path("runs")).key for name in ("one", "two")}) == 2
