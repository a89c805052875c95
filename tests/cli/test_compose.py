"""`sliders compose` and `sliders laws`, on tiny models, and what other programs make of the files."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from sliders import formats
from sliders.algebra.slider import Hinge, Slider
from sliders.backbones.unet import UNetBackbone
from sliders.cli import main as cli
from sliders.concept import Concept
from sliders.evaluation.pictures.sampling import sample
from sliders.formats import diffusers as slider_file
from sliders.formats import peft
from sliders.formats.metadata import describe
from sliders.runtime.attach import attach
from tests import tiny, tiny_lm
from tests.commands import Ended, World, run, world
from tests.factory import slider
from tests.formats.test_diffusers import CONV, HOW, SCENES, SEEN, TINY, TO_K, TO_Q, pictures, write
from tests.formats.test_peft import client, loaded, said, turn
from tests.formats.test_peft import mixed as spoken


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> World:
    return world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def base(here: World) -> UNetBackbone:
    model = UNetBackbone(str(here.model))
    model.load()
    return model


@pytest.fixture(scope="module")
def parts(here: World, base: UNetBackbone) -> list[Path]:
    """Of unlike ranks on layers of which they share some; the second, as another program writes it, has alphas."""
    concept = Concept.load(here.concept)
    known = describe(concept, base.base_model, base.class_path, base.fingerprint(), 2, 2.0, ["x"], 1.0, {})
    one = slider(base, {TO_K: 2, TO_Q: 3, CONV: 1}, "one", 1, 0.8)
    slider_file.save(Slider("one", one.update, known), here.folder / "one.safetensors")
    two = slider(base, {TO_K: 4, CONV: 2}, "two", 2, 0.8).update
    alphas = {f"{TO_K}.alpha": torch.tensor(2.0), f"{CONV}.alpha": torch.tensor(6.0)}
    write(here.folder / "two.safetensors", two, {**known, "sliders.name": "two"}, alphas)
    three = slider(base, {TO_K: 1, TO_Q: 1}, "three", 3, 0.8)
    slider_file.save(Slider("three", three.update, known), here.folder / "three.safetensors")
    return [here.folder / f"{name}.safetensors" for name in ("one", "two", "three")]


def compose(files: Sequence[Path], out: Path, *arguments: object) -> Ended:
    return run(cli.main, "compose", f"[{', '.join(map(str, files))}]", out, *arguments)


@torch.no_grad()
def shown(base: UNetBackbone, files: Sequence[Path], dials: Sequence[float]) -> Tensor:
    """Pictures with the files attached side by side."""
    loaded_ = [formats.load_dial(file) for file in files]
    with attach(base, loaded_, {one.name: dial for one, dial in zip(loaded_, dials, strict=True)}):
        return sample(base, SCENES, HOW)


class TestComposeForDiffusers:
    def test_a_sum_is_the_same_in_the_client(self, base: UNetBackbone, parts: list[Path], tmp_path: Path) -> None:
        ended = compose(parts, tmp_path / "sum.safetensors", "--dial", "[1, -0.5, 0.25]")
        assert ended.code == 0, ended.err
        pipe: Any = tiny.stable_diffusion()
        before = pictures(pipe)
        pipe.load_lora_weights(str(tmp_path / "sum.safetensors"), adapter_name="sum")
        theirs = pictures(pipe)
        assert (theirs - shown(base, parts, [1, -0.5, 0.25])).abs().max() < TINY
        assert (theirs - shown(base, parts, [1, -0.5, -0.25])).abs().max() > SEEN / 10
        assert (theirs - before).abs().max() > SEEN
        pipe.set_adapters(["sum"], [0.5])
        assert (pictures(pipe) - shown(base, parts, [0.5, -0.25, 0.125])).abs().max() < TINY

    def test_it_says_what_it_was_made_of(self, base: UNetBackbone, parts: list[Path], tmp_path: Path) -> None:
        out = tmp_path / "both.safetensors"
        assert compose(parts, out, "--how", "compress", "--merging.rank", 2, "--name", "less").code == 0
        with safe_open(out, "pt") as f:
            known = f.metadata()
        made = json.loads(known["sliders.composed"])
        assert [part["name"] for part in made["parts"]] == ["one", "two", "three"]
        assert [part["dial"] for part in made["parts"]] == [1.0, 1.0, 1.0]
        assert (made["how"], made["rank"]) == ("compress", 2)
        assert known["sliders.base_fingerprint"] == base.fingerprint()
        assert known["sliders.name"] == "less"
        sliders = [formats.load(path) for path in parts]
        exact, less = sum((s.update for s in sliders[1:]), sliders[0].update), formats.load(out).update
        assert made["error"] == pytest.approx((exact - less).norm() / exact.norm(), rel=1e-4)
        assert 0 < made["error"] < 1
        assert max(update.rank for update in less.values()) == 2

    @pytest.mark.parametrize(
        "how",
        [
            ["ties", "--merging.keep", 0.4],
            ["dare", "--merging.drop", 0.3],
            ["knots"],
            ["compress", "--merging.tolerance", 0.3],
        ],
        ids=lambda how: how[0],
    )
    def test_other_ways_give_files_too(
        self, how: list[object], base: UNetBackbone, parts: list[Path], tmp_path: Path
    ) -> None:
        ended = compose(parts, tmp_path / "made.safetensors", "--how", *how)
        assert ended.code == 0, ended.err
        assert "survived" in ended.out
        one = formats.load(tmp_path / "made.safetensors")
        assert one.update.norm() > 0
        assert json.loads(one.metadata["sliders.composed"])["how"] == how[0]

    def test_orthogonalise_keeps_the_first_clear_of_all_others(self, parts: list[Path], tmp_path: Path) -> None:
        out = tmp_path / "clear.safetensors"
        assert compose(parts, out, "--how", "orthogonalise", "--merging.by", "rows").code == 0
        made = formats.load(out)
        for other in parts[1:]:
            for module, update in formats.load(other).update.items():
                if module in made.update:
                    assert float((made.update[module] @ update.T.unfolded()).norm()) < 1e-4
        assert "sliders.concept" in made.metadata  # it still is a slider of its concept
        own = json.loads(made.metadata["sliders.composed"])["survived"]
        assert 0 < own[0] < 1

    def test_a_hinge_is_a_folder_that_is_one_dial(
        self, here: World, base: UNetBackbone, parts: list[Path], tmp_path: Path
    ) -> None:
        out = tmp_path / "both"
        ended = compose(parts[:2], out, "--how", "hinge")
        assert ended.code == 0, ended.err
        assert "No single LoRA bends" in ended.out
        for dial, own, other in ((-1.0, parts[0], parts[1]), (1.0, parts[1], parts[0])):
            assert (shown(base, [out], [dial]) - shown(base, [own], [dial])).abs().max() < TINY
            assert (shown(base, [out], [dial]) - shown(base, [other], [dial])).abs().max() > SEEN
        assert isinstance(formats.load_dial(out), Hinge)
        pipe: Any = tiny.stable_diffusion()
        pipe.load_lora_weights(str(out / "left.safetensors"), adapter_name="left")
        pipe.set_adapters(["left"], [-1.0])
        assert (pictures(pipe) - shown(base, [out], [-1.0])).abs().max() < TINY
        again = tmp_path / "side.safetensors"  # one side of it, as any program reads it
        assert compose([out], again, "--dial", 0.5).code == 0
        assert (shown(base, [again], [1.0]) - shown(base, [parts[1]], [0.5])).abs().max() < TINY
        picture = tmp_path / "grid.png"
        arguments = ["--slider", out, "--base", here.model, "--sampling.steps", 1, "--out", picture]
        assert run(cli.main, "generate", "a person", *arguments).code == 0
        assert picture.exists()


WRONG: dict[str, tuple[list[object], str]] = {
    "dials for others": (["--dial", "[1, 2]"], "--dial"),
    "no rank": (["--how", "compress"], "exactly one of rank"),
    "a hinge of three": (["--how", "hinge"], "two sliders"),
    "rank 0": (["--how", "compress", "--merging.rank", 0], "error: --merging.rank is 0; it must be at least 1\n"),
    "nothing left": (["--how", "compress", "--merging.tolerance", 2], "changes no layer"),
}


class TestErrors:
    @pytest.mark.parametrize("case", WRONG)
    def test_of_arguments(self, case: str, parts: list[Path], tmp_path: Path) -> None:
        arguments, words = WRONG[case]
        ended = compose(parts, tmp_path / "out.safetensors", *arguments)
        assert ended.code == 1
        assert words in ended.err
        assert not list(tmp_path.iterdir())

    def test_of_places(self, parts: list[Path], tmp_path: Path) -> None:
        assert ".safetensors file" in compose(parts, tmp_path / "folder").err
        assert "a hinge is a folder" in compose(parts[:2], tmp_path / "h.safetensors", "--how", "hinge").err
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("dear")
        assert "holds no hinge" in compose(parts[:2], tmp_path / "mine", "--how", "hinge").err

    def test_of_unlike_bases(self, parts: list[Path], tmp_path: Path) -> None:
        one = formats.load(parts[0])
        other = {**one.metadata, "sliders.base_fingerprint": "unet=other"}
        slider_file.save(Slider("other", one.update, other), tmp_path / "other.safetensors")
        files, out = [parts[1], tmp_path / "other.safetensors"], tmp_path / "out.safetensors"
        assert "different bases" in compose(files, out).err
        assert compose(files, out, "--any_base", "true").code == 0

    def test_of_a_broken_hinge(self, parts: list[Path], tmp_path: Path) -> None:
        assert compose(parts[:2], tmp_path / "h", "--how", "hinge").code == 0
        (tmp_path / "h" / "left.safetensors").unlink()
        assert "left.safetensors" in compose([tmp_path / "h"], tmp_path / "o.safetensors").err
        (tmp_path / "h" / "hinge.json").write_text("{}")
        assert "not the manifest" in compose([tmp_path / "h"], tmp_path / "o.safetensors").err


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_compose_for_peft(kind: str, tmp_path: Path) -> None:
    """A sum at dials, mixed ranks, and a hinge."""
    folder = tiny.save(tiny_lm.language_model(kind), tmp_path / "model")
    backbone = loaded(folder)
    files = [backbone.save_slider(spoken(backbone, name, seed), tmp_path) for name, seed in (("a", 1), ("b", 2))]
    ended = compose(files, tmp_path / "sum", "--dial", "[0.5, -0.25]")
    assert ended.code == 0, ended.err
    with attach(backbone, [formats.load(file) for file in files], {"a": 0.5, "b": -0.25}):
        ours = said(backbone.lm)
    theirs = said(client(folder, tmp_path / "sum"))
    assert (theirs - ours).abs().max() < 2e-4
    assert (theirs - said(client(folder))).abs().max() > 1e-2
    assert compose(files, tmp_path / "hinge", "--how", "hinge").code == 0
    with attach(backbone, [formats.load_dial(tmp_path / "hinge")], {"hinge": -0.5}):
        ours = said(backbone.lm)
    left = client(folder, tmp_path / "hinge" / "left")
    turn(left, -0.5)
    assert (said(left) - ours).abs().max() < 2e-4
    assert peft.base_of(tmp_path / "sum") == (str(folder), kind == "gpt2")


def external(page: str) -> list[str]:
    """What a page refers to outside itself."""
    bare = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "data:", page)
    return [
        *re.findall(r'(?:src|href)="(?!data:)[^"]*"', bare),
        *re.findall(r"https?://|@import|url\(|<link|<script", bare),
    ]


class TestLaws:
    def laws(self, here: World, files: Sequence[Path], out: Path, *arguments: object) -> dict[str, Any]:
        names = f"[{', '.join(map(str, files))}]"
        quick = ["--sampling.steps", 2, "--scenes", 3, "--base", here.model]
        ended = run(cli.main, "laws", names, "--out", out, *quick, *arguments)
        assert ended.code == 0, ended.err
        page = (out / "laws.html").read_text()
        assert "<table>" in page
        assert external(page) == []
        assert str(out / "laws.html") in ended.out
        return json.loads((out / "laws.json").read_text())

    def test_external_sees_what_it_should(self) -> None:
        assert external('<img src="data:image/png;base64,httpAAA="><p>') == []
        assert external('<img src="a.png">')
        assert external("<style>@import 'x'</style><script>")

    def test_weights(self, here: World, parts: list[Path], tmp_path: Path) -> None:
        assert compose(parts[:2], tmp_path / "h", "--how", "hinge").code == 0
        found = self.laws(here, [*parts, tmp_path / "h"], tmp_path / "out", "--level", "weights")
        holds = {(law["of"], law["law"]): law["holds"] for law in found["laws"]}
        assert holds["one", "one-parameter group"]
        assert not holds["h", "one-parameter group"]
        assert holds["one", "restored in float32"]
        assert not holds["one", "restored in bfloat16"]
        assert found["pairs"]["names"] == ["one", "two", "three"]

    def test_behaviour_with_twins(self, here: World, parts: list[Path], tmp_path: Path) -> None:
        twins = f"[{parts[0]}, {parts[2]}, {parts[1]}]"  # an exact one for the first alone
        found = self.laws(here, parts, tmp_path, "--twin", twins)
        assert [path["name"] for path in found["paths"]] == ["one", "two", "three"]
        odd = {law["of"][0]: law for law in found["laws"] if law["law"] == "oddness"}
        assert odd["one"]["null"]["value"] < 1e-6 < odd["two"]["null"]["value"]
        kinds = [law["law"] for law in found["laws"]]
        assert kinds.count("interaction") == 3
        assert kinds.count("oracle gap") == 7  # alone, in pairs, all together
        assert {one["from"] for one in found["forecasts"]} == {"factors", "factors and activations"}
        assert len(found["forecasts"][0]["predicted"]) == 3
        assert found["remedies"]["after"]

    def test_fitting(self, here: World, parts: list[Path], tmp_path: Path) -> None:
        files = []
        for name, part in zip(("first", "second"), parts, strict=False):
            concept, run_folder = tmp_path / f"{name}.yaml", tmp_path / name
            concept.write_text(here.concept.read_text().replace("name: happy", f"name: {name}"))
            run_folder.mkdir()
            config = here.config.read_text().replace(str(here.concept), str(concept))
            (run_folder / "config.yaml").write_text(config)
            files.append(run_folder / f"{name}.safetensors")
            one = formats.load(part)
            slider_file.save(Slider(name, one.update, one.metadata), files[-1])
        found = self.laws(here, files, tmp_path / "out", "--level", "fitting", "--seeds", 1, "--steps", 2)
        (law,) = found["laws"]
        assert (law["law"], law["of"], law["null"]) == ("order gap", ["first", "second"], None)
        fits = sorted(path.name for path in (tmp_path / "out" / "fits").iterdir())
        assert fits == ["first_on_second_seed0", "second_on_first_seed0"]
        fitted = tmp_path / "out" / "fits" / fits[0] / f"{fits[0]}.safetensors"
        assert json.loads(formats.load(fitted).metadata["sliders.fitted_on"])["name"] == "second"
        before = fitted.stat().st_mtime_ns
        assert self.laws(here, files, tmp_path / "out", "--level", "fitting", "--seeds", 1, "--steps", 2) == found
        assert fitted.stat().st_mtime_ns == before  # what is there is not trained again
        self.laws(here, files, tmp_path / "out", "--level", "fitting", "--seeds", 1, "--steps", 1)
        assert fitted.stat().st_mtime_ns != before  # but it is where it was made from something else
