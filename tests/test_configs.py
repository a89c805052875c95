"""Every config and every concept that is shipped is one."""

import importlib
import inspect
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from benchmarks import methods
from sliders.backbones.base import AbstractBackbone
from sliders.cli import edit as cli_edit
from sliders.cli import main as cli
from sliders.concept import Concept
from sliders.editors.base import Editor
from sliders.evaluation.pictures.report import heldout_prompts
from sliders.studies.methods.report import PROPERTIES
from sliders.training.callbacks import AbstractReport, Probe, callbacks_of
from sliders.training.cli import SliderCLI
from tests.commands import ROOT, run

EDITORS = sorted((ROOT / "configs" / "editors").glob("*.yaml"))
TABLES = sorted((ROOT / "configs" / "tables").glob("*.yaml"))
OF_RUNS = set((ROOT / "configs").rglob("*.yaml")) - {*EDITORS, *TABLES, ROOT / "configs" / "base.yaml"}
CONFIGS = sorted(OF_RUNS)
CONCEPTS = sorted(
    file
    for file in (ROOT / "data").rglob("*.yaml")
    if "cache" not in file.parts and "positives" in (yaml.safe_load(file.read_text()) or {})
)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Paths in configs are relative to the config; pytest's own arguments are none of the run's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes to the network, fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it goes to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_there_are_configs_and_concepts() -> None:
    assert len(CONFIGS) >= 3
    assert len(CONCEPTS) >= 3


def test_no_two_configs_write_to_one_run_folder() -> None:
    read = {file: yaml.safe_load(file.read_text()) for file in CONFIGS}
    names = [
        config.get("name") or Concept.load(file.parent / config["data"]["concept"]).name
        for file, config in read.items()
    ]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_config_instantiates_without_reading_a_model(file: Path, tmp_path: Path, offline: None) -> None:
    """The accelerator is the one thing that is not asked of this machine."""
    made = SliderCLI(["--config", str(file), "--trainer.accelerator", "cpu", "--runs", str(tmp_path / "runs")])
    backbone = made.model.backbone
    assert isinstance(backbone, AbstractBackbone)
    assert not list(backbone.parameters())
    written = [file for file in (tmp_path / "runs").rglob("*") if file.is_file() and not file.name.startswith(".")]
    assert not written, "the run's folder is taken, and no more"
    groups = backbone.target_groups() or {"attention", "mlp", "full"}  # a language model's are known when it is loaded
    assert all(target in groups or not target.replace("-", "").isalpha() for target in made.model.targets)
    assert made.trainer.max_steps >= 1


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_config_s_reports_are_of_its_medium(file: Path, tmp_path: Path) -> None:
    """What can be said before a model is read; a text's takes no judge from `base.yaml`, for example."""
    made = SliderCLI(["--config", str(file), "--trainer.accelerator", "cpu", "--runs", str(tmp_path / "runs")])
    reports = [one for one in callbacks_of(made.trainer) if isinstance(one, Probe | AbstractReport)]
    assert reports
    made.model.trainer = made.trainer
    for report in reports:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(made.trainer, "datamodule", made.datamodule, raising=False)
            report.setup(made.trainer, made.model, "fit")
    assert not list(made.model.backbone.parameters())


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_config_s_concept_is_a_file_of_its_own(file: Path) -> None:
    """So that `sliders preview` can show it before it is trained."""
    concept = yaml.safe_load(file.read_text())["data"]["concept"]
    assert (file.parent / concept).resolve() in CONCEPTS


@pytest.mark.parametrize("file", EDITORS, ids=lambda file: file.stem)
def test_an_editor_s_config_is_one_for_its_command(file: Path, offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command would fit, without reading a model."""
    asked: list[tuple[Editor, AbstractBackbone, str]] = []
    monkeypatch.setattr(cli_edit, "fit", lambda *given: asked.append(given[:3]))
    assert run(cli.main, "edit", file.stem, "--config", file).code == 0
    ((editor, backbone, name),) = asked
    assert type(editor) is cli_edit.editor(file.stem)
    editor.check(backbone)
    assert name == file.stem
    assert editor.describe()
    assert not list(backbone.parameters())


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_a_table_s_config_names_what_there_is(file: Path, offline: None) -> None:
    parser = ArgumentParser()
    parser.add_function_arguments(methods.main)
    made: Any = parser.instantiate_classes(parser.parse_path(str(file)))
    for entry in made.edits.values():
        if entry.editor is not None:
            entry.editor.check(made.backbone)
    named = {name for part in [*(made.pairs or []), *(made.chains or [])] for name in part}
    assert named <= set(made.edits)
    assert set(made.expected) == {entry.method for entry in made.edits.values()}
    assert {law for laws in made.expected.values() for law in laws} <= set(PROPERTIES)
    assert made.prompts.is_file()


def test_every_editor_has_a_config() -> None:
    assert {file.stem for file in EDITORS} == set(cli_edit.methods())


@pytest.mark.parametrize("file", CONCEPTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_concept_loads_and_its_prompts_are_there(file: Path) -> None:
    concept = Concept.load(file)
    assert concept.name == file.stem
    prompts = heldout_prompts(concept)
    assert prompts
    if concept.measure is not None:
        asked = {prompt for c in concept.in_contexts() for prompt in (c[0], *c[1], *c[2])} - {concept.target}
        assert not asked & set(prompts), "what is measured on was held out"


def test_the_defaults_name_every_choice() -> None:
    """A config overrides what `base.yaml` shows."""
    base = yaml.safe_load((ROOT / "configs" / "base.yaml").read_text())
    assert set(base) >= {"trainer", "model", "data"}
    assert {"backbone", "loss", "states", "optimizer", "targets", "rank"} <= set(base["model"])


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_config_of_another_class_takes_no_setting_from_the_defaults(file: Path) -> None:
    """What `base.yaml` sets for one class would reach a setting of the same name of the class in its place."""
    base = yaml.safe_load((ROOT / "configs" / "base.yaml").read_text())["model"]
    model = yaml.safe_load(file.read_text()).get("model", {})
    for key in ("backbone", "loss", "states", "optimizer"):
        theirs = model.get(key)
        if theirs is None or theirs["class_path"] == base[key]["class_path"]:
            continue
        module, _, name = theirs["class_path"].rpartition(".")
        takes = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        assert set(base[key].get("init_args", {})) & set(takes) <= set(theirs.get("init_args", {})), key
