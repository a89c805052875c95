"""`sliders explain` on the embedded models: edits whose origin it is not told, and twins of trained sliders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sliders import formats
from sliders.algebra.edit import Affine, Translation
from sliders.algebra.element import Element
from sliders.algebra.lowrank import LowRank
from sliders.algebra.nearest import nearest
from sliders.algebra.slider import Slider
from sliders.backbones.unet import UNetBackbone
from sliders.cli import main as cli
from sliders.formats import diffusers as slider_file
from sliders.formats import tensors
from sliders.runtime.baking import baked
from tests.commands import ROOT, run
from tests.factory import normal
from tests.test_algebra_real import NAMES

pytestmark = pytest.mark.slow

SLIDERS, TWINS = ROOT / "data/avatars/sliders", ROOT / "data/avatars/twins"
"""Trained with seed 0 and with seed 1."""
SUBJECTS = ("France", "Germany", "Hungary", "Japan", "Chile", "iron", "tin", "zinc")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def painter() -> UNetBackbone:
    made = UNetBackbone(str(ROOT / "data/avatars/model"))
    made.load()
    return made


def explained(update: Path, out: Path, *arguments: object) -> dict[str, Any]:
    ended = run(cli.main, "explain", update, "--out", out, *arguments)
    assert ended.code == 0, ended.err
    return json.loads((out / "explain.json").read_text())


def untold(file: Path, folder: Path) -> Path:
    """An edit's file without what it says of its making."""
    metadata, state = tensors.read(file)
    kept = ("sliders.edit", "sliders.shapes", "sliders.base_model", "sliders.base_fingerprint", "sliders.modality")
    tensors.write(state, folder / "edit.safetensors", {key: metadata[key] for key in kept})
    return folder / "edit.safetensors"


def read_of(found: dict[str, Any], title: str, count: int = 10) -> list[str]:
    entries = next(ranking["entries"] for ranking in found["reads"] if ranking["title"] == title)
    return [name for name, _ in entries[:count]]


# Pictures


def test_uce_and_its_words(painter: UNetBackbone, fitted: Callable[[str], Path], tmp_path: Path) -> None:
    file = untold(fitted("uce"), tmp_path)
    found = explained(file, tmp_path / "a")
    (part,) = found["parts"]
    assert (part["kind"], len(part["modules"])) == ("right factor", 14)
    assert part["rank"] <= 9  # contexts, whose vectors are much alike
    assert read_of(found, "Words it responds to")[0] == "glasses"
    assert read_of(found, "Words alone")[0] == "wearing"
    assert all("glasses" in prompt for prompt in read_of(found, "Prompts it responds to"))
    edit = formats.load_dial(file).at(1.0)
    with baked(painter, edit):
        painter.export(tmp_path / "model")  # in float32: nothing but the weights is passed on
    of_model = explained(tmp_path / "model", tmp_path / "b", "--base", painter.base_model, "--run", "false")
    assert [one["kind"] for one in of_model["parts"]] == ["right factor"]


@pytest.fixture(scope="module")
def trained() -> dict[str, Slider]:
    return {name: formats.load(SLIDERS / f"{name}.safetensors") for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_slider_trained_with_another_seed_is_nearest_to_its_twin(trained: dict[str, Slider], name: str) -> None:
    twin = formats.load(TWINS / f"{name}_seed1.safetensors")
    found = nearest(twin.update, list(trained.values()))
    assert found.neighbours[0].name == name
    assert max(found.neighbours, key=lambda one: one.columns).name == name
    assert max(found.neighbours, key=lambda one: abs(one.coefficient)).name == name
    assert found.neighbours[0].cosine > 4 * abs(found.neighbours[1].cosine)


def test_a_slider_and_random_updates_of_its_norm(
    painter: UNetBackbone, trained: dict[str, Slider], tmp_path: Path
) -> None:
    slider = trained["smile"]
    slider_file.save(slider, tmp_path / "smile.safetensors")
    found = explained(tmp_path / "smile.safetensors", tmp_path / "a")
    assert [part["kind"] for part in found["parts"]] == ["translation"]
    assert {one["rank"] for one in found["layers"].values()} == {4}
    assert {"happy", "smiling"} <= set(read_of(found, "Words that do what it does", 3))

    def random(update: LowRank, seed: int) -> LowRank:
        made = LowRank(normal(*update.B.shape, seed=seed), normal(*update.A.shape, seed=seed + 1), update.shape)
        return made.to(torch.float32) * float(update.norm() / made.norm())

    of_rank = Translation({module: random(update, 2 * k) for k, (module, update) in enumerate(slider.update.items())})
    slider_file.save(Slider("random", of_rank), tmp_path / "random.safetensors")
    by_rank = explained(tmp_path / "random.safetensors", tmp_path / "b", "--base", painter.base_model, "--run", "false")
    assert [part["kind"] for part in by_rank["parts"]] == ["random"]
    dense: dict[str, Element] = {}
    for k, (module, update) in enumerate(slider.update.items()):
        noise = normal(*update.shape, seed=k, dtype=torch.float32).flatten(1)
        shift = LowRank.nearest(noise * (update.norm() / noise.norm()), min(noise.shape))
        dense[module] = Element.of(update.shape, shift=shift)
    with baked(painter, Affine(dense)):
        painter.export(tmp_path / "model")
    by_noise = explained(tmp_path / "model", tmp_path / "c", "--base", painter.base_model, "--run", "false")
    assert [part["kind"] for part in by_noise["parts"]] == ["random"]
    assert {part["rank"] for part in by_noise["parts"]} == {0}


# Language


@pytest.mark.parametrize(
    ("method", "kind", "rank", "layers"),
    [
        ("steering", "bias shift", 1, 4),
        ("function_vector", "bias shift", 1, 1),
        ("ablation", "left orthogonal projection", 1, 60),
        ("leace", "left projection about a mean", 1, 1),
    ],
)
def test_edits_of_a_language_model(
    method: str, kind: str, rank: int, layers: int, fitted: Callable[[str], Path], tmp_path: Path
) -> None:
    if method == "leace":  # of a square layer, as the config's, the side of an oblique projection cannot be told
        file, layer = tmp_path / "wide.safetensors", r"['\.12\.mlp\.down_proj$']"  # (statement 3)
        config, brief = ROOT / "configs" / "editors" / "leace.yaml", ["--editor.responses.messages", 8]
        assert (
            run(cli.main, "edit", "leace", "--config", config, "--editor.layers", layer, *brief, "--out", file).code
            == 0
        )
    elif method == "steering":  # its kind needs no more than a few messages
        file, config = tmp_path / "brief.safetensors", ROOT / "configs" / "editors" / "steering.yaml"
        brief = ["--editor.responses.messages", 4, "--editor.responses.tokens", 8]
        assert run(cli.main, "edit", "steering", "--config", config, *brief, "--out", file).code == 0
    else:
        file = fitted(method)
    found = explained(untold(file, tmp_path), tmp_path / "out", "--run", "false")
    (part,) = found["parts"]
    assert (part["kind"], part["rank"], len(part["modules"])) == (kind, rank, layers)


@pytest.mark.parametrize(("method", "rank", "layers", "seen"), [("rome", 1, 1, 1), ("memit", 10, 3, 3)])
def test_facts_that_were_written(
    method: str, rank: int, layers: int, seen: int, fitted: Callable[[str], Path], tmp_path: Path
) -> None:
    """``seen`` of the subjects are among the first ten words."""
    file = untold(fitted(method), tmp_path)
    found = explained(file, tmp_path / "a")
    (part,) = found["parts"]
    assert (part["kind"], part["rank"], len(part["modules"])) == ("write", rank, layers)
    subjects = SUBJECTS[:1] if method == "rome" else SUBJECTS
    assert len(set(subjects) & set(read_of(found, "Words it responds to"))) >= seen
    blind = explained(file, tmp_path / "b", "--run", "false")
    assert blind["kind"] == "translation"  # control: without what the layers read, nobody can tell
