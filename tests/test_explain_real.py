"""`sliders explain` on the embedded models: edits whose origin it is not told, and twins of trained sliders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sliders import cli, formats
from sliders.algebra.edit import Affine, Factored, Translation
from sliders.algebra.element import Element
from sliders.algebra.elements import erase_output, steer_output, write
from sliders.algebra.lowrank import LowRank
from sliders.algebra.nearest import nearest
from sliders.algebra.slider import Slider
from sliders.attach import baked, weight_shape
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.causal_lm import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.concept import read_prompts
from sliders.editors.ablation import ablate
from sliders.editors.uce import UCE
from sliders.evaluation.explain import covariances_of, texts_for
from sliders.evaluation.interference import inputs_of
from sliders.formats import diffusers as slider_file
from sliders.formats import edit as edit_file
from tests.commands import ROOT, run
from tests.factory import normal
from tests.test_algebra_real import NAMES, RUNS

pytestmark = pytest.mark.slow

TWINS = RUNS / "interference" / "avatars" / "twins"
LAYER = "lm.model.layers.7.mlp.down_proj"
SUBJECTS = ("France", "Germany", "Italy", "Spain")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def painter() -> UNetBackbone:
    made = UNetBackbone(str(ROOT / "data/avatars/model"))
    made.load()
    return made


@pytest.fixture(scope="module")
def speaker() -> CausalLMBackbone:
    made = CausalLMBackbone()
    made.load()
    return made


def explained(update: Path, out: Path, *arguments: object) -> dict[str, Any]:
    ended = run(cli.main, "explain", update, "--out", out, *arguments)
    assert ended.code == 0, ended.err
    return json.loads((out / "explain.json").read_text())


def of_edit(backbone: AbstractBackbone, edit: Factored, folder: Path, *arguments: object) -> dict[str, Any]:
    """What is said of an edit's file; of its making it says nothing."""
    file = folder / "edit.safetensors"
    said = {"sliders.base_model": backbone.base_model, "sliders.modality": backbone.modality}
    edit_file.save("edit", edit, file, said)
    return explained(file, folder, *arguments)


def read_of(found: dict[str, Any], title: str, count: int = 10) -> list[str]:
    entries = next(ranking["entries"] for ranking in found["reads"] if ranking["title"] == title)
    return [name for name, _ in entries[:count]]


# Pictures


def test_uce_and_its_words(painter: UNetBackbone, tmp_path: Path) -> None:
    edit = UCE(
        replace={"wearing glasses": "without glasses"},
        contexts=["a person, {}", "a happy person, {}", "a person, with long hair, {}"],
        preserve=["a person", "a person, wearing sunglasses", "a person, with a beard", "a person, in a red shirt"],
    ).fit(painter)
    found = of_edit(painter, edit, tmp_path)
    (part,) = found["parts"]
    assert part["kind"] == "right factor"
    assert len(part["modules"]) == len(edit)
    assert part["rank"] <= 3
    assert {"wearing", "glasses"} & set(read_of(found, "Words it responds to"))
    assert all("glasses" in prompt for prompt in read_of(found, "Prompts it responds to"))
    with baked(painter, edit):
        painter.export(tmp_path / "model")  # in float32: nothing but the weights is passed on
    of_model = explained(tmp_path / "model", tmp_path / "b", "--base", painter.base_model, "--run", "false")
    assert [one["kind"] for one in of_model["parts"]] == ["right factor"]


@pytest.fixture(scope="module")
def trained() -> dict[str, Slider]:
    files = {name: ROOT / RUNS / name / f"{name}.safetensors" for name in NAMES}
    found = {name: formats.load(file) for name, file in files.items() if file.exists()}
    if len(found) < len(NAMES):
        pytest.skip("not all avatar sliders are trained; python -m benchmarks.avatars trains them")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_slider_trained_with_another_seed_is_nearest_to_its_twin(trained: dict[str, Slider], name: str) -> None:
    file = ROOT / TWINS / f"{name}_seed1" / f"{name}_seed1.safetensors"
    if not file.exists():
        pytest.skip("its twin is not trained; python -m benchmarks.interference trains it")
    found = nearest(formats.load(file).update, list(trained.values()))
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


@torch.no_grad()
def reading(speaker: CausalLMBackbone, layer: str, texts: list[str], side: str) -> Tensor:
    """What a layer reads (or writes) at the last token of each text, ``[n, width]``."""
    seen: list[Tensor] = []
    module = speaker.get_submodule(layer)
    hook = module.register_forward_hook(
        lambda m, args, out: seen.append(inputs_of(m, args[0])[-1] if side == "input" else out[0, -1])
    )
    try:
        for text in texts:
            state = speaker.responses([f" {text}"], 32, end=False)
            kept = {name: value[:, state["mask"][0]] for name, value in state.items()}
            speaker.hidden(kept, speaker.encode_plain(["He said:"]), [1])
    finally:
        hook.remove()
    return torch.stack(seen).double()


def written(speaker: CausalLMBackbone, subjects: tuple[str, ...]) -> Affine:
    """ROME with one subject, MEMIT with several: their keys answered as another country's (2202.05262, 2210.07229)."""
    prompts, _ = texts_for(speaker, 0)
    weight = speaker.get_submodule(LAYER).get_parameter("weight").double()
    c = covariances_of(speaker, [LAYER], prompts[::2])[LAYER].double()
    c = c + 1e-3 * c.trace() / len(c) * torch.eye(len(c)).double()
    keys = reading(speaker, LAYER, list(subjects), "input").T
    values = weight @ reading(speaker, LAYER, ["Norway", "Poland", "Kenya", "Peru"][: len(subjects)], "input").T
    if len(subjects) == 1:
        seen = torch.linalg.solve(c, keys)
        gains = seen.T / (seen.T @ keys)
    else:
        gains = torch.linalg.solve(c + keys @ keys.T, keys).T
    element = write(keys, gains, values, (weight.shape[0], weight.shape[1]))
    return Affine({LAYER: element.to(torch.float32)})


def direction(speaker: CausalLMBackbone) -> Tensor:
    """A difference of what the layer writes at the end of two texts, ``[width]``."""
    one, two = reading(speaker, LAYER, ["I am happy today", "I am so sad today"], "output")
    return (one - two).float()


def ablated(speaker: CausalLMBackbone) -> Factored:
    return ablate(speaker, direction(speaker)[:, None])


def steered(speaker: CausalLMBackbone) -> Factored:
    return Affine({LAYER: steer_output(direction(speaker), weight_shape(speaker, LAYER))})


def erased(speaker: CausalLMBackbone) -> Factored:
    """LEACE of questions of capitals against everyday ones, by its own package."""
    from concept_erasure import LeaceFitter

    sides = [read_prompts(ROOT / f"data/text/prompts/{name}.txt")[:32] for name in ("capitals", "everyday")]
    states = torch.cat([reading(speaker, LAYER, texts, "output") for texts in sides])
    labels = torch.tensor([0.0] * len(sides[0]) + [1.0] * len(sides[1])).double()
    fitter = LeaceFitter(states.shape[1], 1, dtype=torch.float64, shrinkage=True, svd_tol=0.01,
                         constrain_cov_trace=False)  # fmt: skip
    fitter.update(states, labels)
    eraser = fitter.eraser
    projection = LowRank(eraser.proj_left, eraser.proj_right, (states.shape[1], states.shape[1]))
    element = erase_output(projection, fitter.mean_x, weight_shape(speaker, LAYER))
    return Affine({LAYER: element.to(torch.float32)})


@pytest.mark.parametrize(
    ("make", "kind", "rank"),
    [
        (steered, "bias shift", 1),
        (ablated, "left orthogonal projection", 1),
        (erased, "left projection about a mean", 1),
    ],
)
def test_edits_of_a_language_model(
    speaker: CausalLMBackbone, make: Callable[[CausalLMBackbone], Factored], kind: str, rank: int, tmp_path: Path
) -> None:
    found = of_edit(speaker, make(speaker), tmp_path, "--run", "false")
    (part,) = found["parts"]
    assert (part["kind"], part["rank"]) == (kind, rank)
    assert len(part["modules"]) == (60 if make is ablated else 1)


@pytest.mark.parametrize("subjects", [SUBJECTS[:1], SUBJECTS])
def test_facts_that_were_written(speaker: CausalLMBackbone, subjects: tuple[str, ...], tmp_path: Path) -> None:
    edit = written(speaker, subjects)
    found = of_edit(speaker, edit, tmp_path)
    (part,) = found["parts"]
    assert (part["kind"], part["rank"]) == ("write", len(subjects))
    assert set(subjects) <= set(read_of(found, "Words it responds to"))
    blind = of_edit(speaker, edit, tmp_path, "--run", "false")
    assert blind["kind"] == "translation"  # control: without what the layer reads, nobody can tell
