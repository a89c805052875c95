"""The table methods x properties: cells against what is known of them, on tiny models; and that they are kept."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from sliders.algebra.closed_forms import erase_output, onto
from sliders.algebra.edit import Affine
from sliders.algebra.slider import Slider
from sliders.backbones.unet import UNetBackbone
from sliders.editors.base import Editor
from sliders.editors.uce import UCE
from sliders.errors import SliderError
from sliders.evaluation.base_states import BaseStates, picture_states
from sliders.evaluation.pictures.sampling import Sampling, scenes
from sliders.files import replacing
from sliders.formats import diffusers
from sliders.runtime.layers import weight_shape
from sliders.studies.methods import report
from sliders.studies.methods.fits import ComparedEdit, FittedEdits
from sliders.studies.methods.study import Study
from tests import tiny
from tests.factory import normal, slider

Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
FITTED: list[tuple[str, int]] = []


@dataclass(frozen=True)
class Removal(Editor[UNetBackbone]):
    """What a layer writes without a direction that depends on the layer's own weight, and a little on the seed.

    Args:
        column: whose direction it is.
        words: a text file that it is made from.
    """

    of = UNetBackbone

    column: int
    words: Path = field(default=Path("none"))

    def fit(self, backbone: UNetBackbone, seed: int = 0) -> Affine:
        FITTED.append((self.describe(), seed))
        weight = backbone.get_submodule(Q).get_parameter("weight").data
        noise = 1e-2 * normal(len(weight), 1, seed=seed, dtype=torch.float32)
        direction = weight[:, self.column : self.column + 1] + noise
        return Affine({Q: erase_output(onto(direction), None, weight_shape(backbone, Q))})

    def describe(self) -> str:
        return f"column {self.column}"


@pytest.fixture(scope="module")
def model() -> UNetBackbone:
    backbone = UNetBackbone("tiny")
    backbone.use(tiny.stable_diffusion())
    return backbone


@pytest.fixture(scope="module")
def states(model: UNetBackbone) -> BaseStates:
    return picture_states(model, scenes(["a happy person", "a dog", "a hat"], 3), Sampling(steps=2, guidance=2))


@pytest.fixture
def study(model: UNetBackbone, states: BaseStates, tmp_path: Path) -> Study:
    files = [tmp_path / "s0.safetensors", tmp_path / "s1.safetensors"]
    for seed, file in enumerate(files):
        diffusers.save(Slider("s", slider(model, {Q: 2}, seed=seed).update), file)
    happy = UCE({"happy": "sad"}, ["a {} person", "a {} dog"], draw=1)
    entries = {
        "slider": ComparedEdit("slider", files=files),
        "one": ComparedEdit("removal", Removal(0)),
        "two": ComparedEdit("removal", Removal(1)),
        "happy": ComparedEdit("UCE", happy),
        "hat": ComparedEdit("UCE", replace(happy, replace={"hat": "dog"})),
    }
    FITTED.clear()
    return Study(FittedEdits(model, entries, tmp_path / "kept"), states, tmp_path / "kept")


def law(cell: dict, name: str) -> dict:
    return next(one for one in cell["laws"] if one["law"] == name)


def test_the_weights_say_of_each_what_it_is(study: Study) -> None:
    cells = {name: study.weights(name) for name in study.fits.entries}
    holds = {name: {law for law, found in cell["laws"].items() if found["holds"]} for name, cell in cells.items()}
    assert {"invertible", "additive", "group"} <= holds["slider"]
    assert holds["one"] == {"idempotent", "additive"}
    assert {"invertible", "additive"} <= holds["happy"]
    assert not holds["happy"] & {"idempotent", "group"}
    assert cells["slider"]["sides"] == []
    assert cells["one"]["sides"] == ["left"]
    assert cells["happy"]["sides"] == ["right"]


def test_pairs_commute_associate_and_are_closed_where_they_should(study: Study) -> None:
    removals, sides = study.weights_of_pair("one", "two"), study.weights_of_pair("one", "slider")
    assert not removals["commutative"]["holds"]
    assert removals["associative"]["holds"]
    assert not removals["closed"]["holds"]  # two slanted projections are none
    assert removals["closed"]["kinds"][:2] == ["left projection"] * 2
    assert study.weights_of_pair("happy", "hat")["closed"]["holds"]
    assert not sides["closed"]["holds"]


def test_behaviour_knows_doing_it_twice_from_doing_it_once(study: Study) -> None:
    once, adds = law(study.behaviour("one"), "idempotence"), law(study.behaviour("slider"), "idempotence")
    assert once["gap"]["value"] < 1e-3
    assert adds["gap"]["value"] > 0.3
    assert once["null"]["value"] > once["gap"]["value"]  # the twin has another direction


def test_the_order_of_fitting_matters_for_what_reads_the_weights(study: Study) -> None:
    """UCE reads none: fitted on the other one it is itself, and the orders are those of application."""
    uce, removals = study.behaviour_of_pair("happy", "hat"), study.behaviour_of_pair("one", "two")
    assert max(uce["fitting"].values()) < 1e-6
    assert law(uce, "order of fitting")["gap"]["value"] == law(uce, "order of application")["gap"]["value"]
    assert min(removals["fitting"].values()) > 1e-2
    fitting, application = (law(removals, f"order of {what}")["gap"]["value"] for what in ("fitting", "application"))
    assert fitting != pytest.approx(application, rel=1e-2)


def test_a_trained_slider_is_not_fitted_again(study: Study) -> None:
    cell = study.behaviour_of_pair("slider", "one")
    assert set(cell["fitting"]) == {"one on slider"}
    assert law(cell, "order of fitting")["null"] is not None


def test_what_is_kept_is_not_made_again_and_what_changed_is(study: Study, tmp_path: Path) -> None:
    first = study.behaviour("one"), study.behaviour_of_pair("one", "two")
    fits = len(FITTED)
    assert sorted(FITTED)[:2] == [("column 0", 0), ("column 0", 0)]  # on the base and on the other one
    again = Study(
        FittedEdits(study.fits.backbone, study.fits.entries, tmp_path / "kept"), study.states, tmp_path / "kept"
    )
    assert (again.behaviour("one"), again.behaviour_of_pair("one", "two")) == first
    assert len(FITTED) == fits
    changed = {**study.fits.entries, "one": ComparedEdit("removal", Removal(2))}
    other = Study(FittedEdits(study.fits.backbone, changed, tmp_path / "kept"), study.states, tmp_path / "kept")
    assert other.behaviour("one") != first[0]
    assert len(FITTED) > fits


def test_the_content_of_a_file_that_is_named_counts(study: Study, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("a\n")
    Path("concept.yaml").write_text("prompts: words.txt\n")
    entries = {"one": ComparedEdit("removal", Removal(0, Path("concept.yaml")))}
    fits = FittedEdits(study.fits.backbone, entries, tmp_path)
    before = fits.key("one")
    assert fits.key("one") == before
    assert fits.key("one", 1) != before
    Path("words.txt").write_text("b\n")
    assert fits.key("one") != before


def test_a_file_that_somebody_is_writing_is_no_content_of_a_folder(study: Study, tmp_path: Path) -> None:
    folder = tmp_path / "hinge"
    diffusers.save(Slider("s", slider(study.fits.backbone, {Q: 1}).update), folder / "left.safetensors")
    fits = FittedEdits(study.fits.backbone, {"one": ComparedEdit("removal", Removal(0, folder))}, tmp_path)
    before = fits.key("one")
    with replacing(folder / "right.safetensors") as new:
        new.write_text("half of")
        assert fits.key("one") == before
    assert fits.key("one") != before


def test_replacing_is_measured_in_both_orders(study: Study) -> None:
    found = study.chain("happy", "hat", "happy")
    assert list(found) == ["happy, then hat", "hat, then happy"]
    assert all(one["gap"]["value"] > 0 for one in found.values())


def test_an_entry_is_an_editor_or_files() -> None:
    for wrong in ({}, {"editor": Removal(0), "files": [Path("x")]}):
        with pytest.raises(SliderError, match="needs an editor, or files"):
            ComparedEdit("m", **wrong)


def test_the_page_shows_in_bold_what_was_not_expected(study: Study) -> None:
    names = {"removal": ["one", "two"], "UCE": ["happy", "hat"]}
    single = {name: study.weights(name) for pair in names.values() for name in pair}
    pairs = {"one | two": study.weights_of_pair("one", "two"), "happy | hat": study.weights_of_pair("happy", "hat")}
    table = report.weights_table(names, single, pairs, {"removal": {"invertible": False, "commutative": True}})
    lines = {line.split(" | ")[0].strip("| "): line for line in table.splitlines()[2:]}
    assert lines["removal"].startswith("| removal | 2 | left | no | yes |")
    assert "**no**" in lines["removal"]
    assert "**" not in lines["UCE"]
    cells = {"one | two": study.behaviour_of_pair("one", "two")}
    assert "null" in report.gaps_table(cells, ["interaction", "oddness"])
    assert report.gaps_table(cells, ["oddness"]).endswith("| – |")
    assert json.dumps(cells)
    assert "one on two" in report.refits_table(cells)
    chain = report.chain_list("happy | hat | happy", study.chain("happy", "hat", "happy"))
    assert "happy, then hat" in chain
